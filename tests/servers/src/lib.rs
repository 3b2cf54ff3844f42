//! PostgreSQL, Redis and `PgBouncer` servers and certificates of a test, on free ports and in temporary
//! folders. Servers end with the process that started them, even if it is killed.

#![allow(
    clippy::missing_panics_doc,
    reason = "every function panics when a server fails, which fails the test"
)]

use std::{
    env,
    ffi::OsStr,
    net::TcpListener,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{self, Pid, Signal};

pub mod certificates;
pub mod pgbouncer;
pub mod postgres;
pub mod redis;
pub mod supervised;

/// A command without the settings and proxies of the caller's environment.
pub fn isolated(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("LOCATION_SERVICE_")
            || name_text.starts_with("OTEL_")
            || name_text.to_lowercase().ends_with("_proxy")
        {
            command.env_remove(name);
        }
    }
    command
}

/// The service beside the running program, in `target/<profile>`.
///
/// # Errors
///
/// It isn't built.
pub fn service_binary() -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|error| error.to_string())?;
    let binary = own.with_file_name("location-service");
    if binary.exists() {
        return Ok(binary);
    }
    Err(format!(
        "{} is missing: run `cargo build` first, or give --binary",
        binary.display()
    ))
}

/// The time limit of [`until`].
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `happened` returns true. Panics after the time limit.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// A free port below the ephemeral ports, so that no connection takes it while its server is down.
pub fn fixed_port() -> u16 {
    loop {
        let port = rand::random_range(12_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal, such as `TERM`, `KILL`, `STOP` or `CONT`, to each process. Returns `false` if all
/// of them have ended.
pub fn signal(name: &str, pids: impl IntoIterator<Item = impl AsRef<str>>) -> bool {
    let signal = match name {
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "TERM" => Signal::TERM,
        _ => panic!("unknown signal: {name}"),
    };
    let sent = pids
        .into_iter()
        .map(|id| process::kill_process(pid(id.as_ref()), signal).is_ok());
    sent.fold(false, |any, sent| any | sent)
}

/// Whether a process exists.
pub fn is_alive(id: &str) -> bool {
    process::test_kill_process(pid(id)).is_ok()
}

fn pid(id: &str) -> Pid {
    let id = id.parse().ok().and_then(Pid::from_raw);
    id.expect("a process id")
}
