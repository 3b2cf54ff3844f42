//! Notifications of the service manager: the protocol of `sd_notify(3)`, for units with
//! `Type=notify-reload` and `WatchdogSec=`. Without `NOTIFY_SOCKET` in the environment nothing is
//! sent.
//!
//! The crates for it don't support addresses in the abstract namespace, which containers use.

use std::{
    env,
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

/// The service manager.
pub struct Manager {
    /// `None` if there is none.
    socket: Option<UnixDatagram>,
}

impl Manager {
    /// The manager that the environment names. One that can't be reached is logged, and not notified.
    pub fn of_environment() -> Self {
        let address = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty());
        let socket = address.map(|address| connect(&address));
        let socket = socket.transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot connect to the service manager's NOTIFY_SOCKET");
            None
        });
        Self { socket }
    }

    /// Reports that the service accepts calls.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Reports that the service rereads its files. [`Self::ready`] reports the end.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// Reports that the service is stopping.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Reports twice in each period of the manager's watchdog that the runtime is alive. Ends at once
    /// if there is no watchdog.
    pub async fn watchdog_loop(&self) {
        let Some(period) = watchdog_period() else {
            return;
        };
        let mut ticks = interval(period / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::warn!(%error, "cannot notify the service manager");
        }
    }
}

fn connect(address: &OsString) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // A manager that doesn't read must not block the runtime.
    socket.set_nonblocking(true)?;
    match address.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    Ok(socket)
}

/// The period of the manager's watchdog, if it watches this process.
fn watchdog_period() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_watched = number("WATCHDOG_PID").is_none_or(|id| id == u64::from(process::id()));
    let microseconds = number("WATCHDOG_USEC").filter(|microseconds| *microseconds > 0)?;
    is_watched.then(|| Duration::from_micros(microseconds))
}
