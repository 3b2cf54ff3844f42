//! The open connections: their limits, and the end of those that are idle or stalled.
//!
//! When a limit is reached, the longest idle connection is closed for the new one. A sweep each
//! second closes connections that sent no request in time, that were idle for too long, or whose
//! client doesn't take a response.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{MissedTickBehavior, interval};

/// Maximum number of open connections, if the limit of file descriptors allows it. An idle one takes
/// some tens of KiB.
const MAX_CONNECTIONS: usize = 8_192;

/// File descriptors that remain for the database, Redis, files, the listener and closing sockets.
const RESERVED_DESCRIPTORS: usize = 96;

/// The part of the connections that one address may have: a half. Clients behind a proxy share an
/// address.
const ADDRESS_SHARE: usize = 2;

/// Seconds from the start of a connection to the headers of its first request, including the TLS
/// handshake.
const FIRST_REQUEST_SECS: u64 = 10;

/// Seconds without a call after which a connection is closed: 15 minutes.
const IDLE_SECS: u64 = 15 * 60;

/// Length of a period in seconds. The age of a response's last progress is measured in periods.
const PERIOD_SECS: u64 = 5;

/// Number of periods for which calls are counted. A connection is closed when one of its responses has
/// made no progress until the last of them begins: for 30 to 35 s.
const PERIODS: usize = 8;

/// The bytes of all responses that clients have not taken yet. Above this, the connection with the
/// most is closed.
const MAX_UNSENT_BYTES: usize = 256 << 20;

/// The open connections.
pub struct Connections {
    /// Seconds since the start, as of the last sweep.
    now: AtomicU64,
    max: usize,
    open: Mutex<HashMap<u64, Arc<Activity>>>,
    next_id: AtomicU64,
    unsent: AtomicUsize,
    limit_reached: AtomicBool,
}

/// The calls of a connection.
pub struct Activity {
    connections: Arc<Connections>,
    id: u64,
    address: IpAddr,
    /// Whether a request has arrived.
    called: AtomicBool,
    /// The time at which the last call started or ended.
    last_call: AtomicU64,
    /// Unary calls in progress, by the period of their last progress.
    calls: [AtomicU32; PERIODS],
    /// Streams in progress. They may be silent without limit.
    streams: AtomicU32,
    unsent: AtomicUsize,
    closed: AtomicBool,
    waker: AtomicWaker,
}

impl Connections {
    /// Raises the limit of file descriptors, which bounds the number of connections. `max` is
    /// [`MAX_CONNECTIONS`] by default.
    pub fn new(max: Option<usize>) -> Arc<Self> {
        let possible = raise_descriptor_limit().saturating_sub(RESERVED_DESCRIPTORS);
        if let Some(max) = max.filter(|max| *max > possible) {
            tracing::warn!(
                connections.max = possible,
                "the limit of file descriptors allows fewer than {max} connections",
            );
        }
        Self::with_max(max.unwrap_or(MAX_CONNECTIONS).min(possible).max(1))
    }

    fn with_max(max: usize) -> Arc<Self> {
        Arc::new(Self {
            now: AtomicU64::new(0),
            max,
            open: Mutex::default(),
            next_id: AtomicU64::new(0),
            unsent: AtomicUsize::new(0),
            limit_reached: AtomicBool::new(false),
        })
    }

    /// Maximum number of open connections.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.open.lock().len()
    }

    /// Adds a connection, and closes the longest idle one if there are too many. `None` if none is
    /// idle.
    pub fn add(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Activity>> {
        let mut open = self.open.lock();
        let same_address = open
            .values()
            .filter(|other| other.address == address)
            .count();
        let address_is_full = same_address >= (self.max / ADDRESS_SHARE).max(1);
        if address_is_full || open.len() >= self.max {
            if !self.limit_reached.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    connections.open = open.len(),
                    connections.max = self.max,
                    connections.of_address = same_address,
                    client.address = %address,
                    "the limit of connections was reached: the longest idle ones are closed",
                );
            }
            let idle = open
                .values()
                .filter(|other| !address_is_full || other.address == address)
                .filter(|other| other.is_idle())
                .min_by_key(|other| {
                    let called = other.called.load(Ordering::Relaxed);
                    (called, other.last_call.load(Ordering::Relaxed), other.id)
                })
                .cloned()?;
            open.remove(&idle.id);
            idle.close();
        }
        let activity = Arc::new(Activity {
            connections: Arc::clone(self),
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            address,
            called: AtomicBool::new(false),
            last_call: AtomicU64::new(self.now.load(Ordering::Relaxed)),
            calls: Default::default(),
            streams: AtomicU32::new(0),
            unsent: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        open.insert(activity.id, Arc::clone(&activity));
        Some(activity)
    }

    /// Sweeps each second.
    pub async fn sweep_loop(self: Arc<Self>) {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.sweep();
        }
    }

    /// Advances the time by a second, and closes the connections that are overdue.
    fn sweep(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.lock().retain(|_, activity| {
            let overdue = activity.is_overdue(now);
            if overdue {
                activity.close();
            }
            !overdue
        });
    }

    fn period(&self) -> usize {
        let period = self.now.load(Ordering::Relaxed) / PERIOD_SECS;
        usize::try_from(period % PERIODS as u64).unwrap_or_default()
    }

    /// Closes the connection with the most unsent bytes.
    fn close_largest(&self) {
        let mut open = self.open.lock();
        // Without the connections that are about to end.
        let unsent: usize = open
            .values()
            .map(|activity| activity.unsent.load(Ordering::Relaxed))
            .sum();
        if unsent <= MAX_UNSENT_BYTES {
            return;
        }
        let largest = open
            .values()
            .max_by_key(|activity| activity.unsent.load(Ordering::Relaxed))
            .cloned();
        if let Some(largest) = largest {
            tracing::warn!(
                client.address = %largest.address,
                responses.bytes = largest.unsent.load(Ordering::Relaxed),
                "a client was disconnected: it takes no responses, and too many bytes wait",
            );
            open.remove(&largest.id);
            largest.close();
        }
    }
}

impl Activity {
    /// The address of the client, or of a proxy in front of it.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Counts a unary call, until the guard is dropped.
    pub fn call(self: &Arc<Self>) -> CallGuard {
        self.touch();
        let period = self.connections.period();
        self.calls[period].fetch_add(1, Ordering::Relaxed);
        CallGuard {
            activity: Arc::clone(self),
            period: Some(period),
            unsent: 0,
        }
    }

    /// Counts a stream, until the guard is dropped.
    pub fn stream(self: &Arc<Self>) -> CallGuard {
        self.touch();
        self.streams.fetch_add(1, Ordering::Relaxed);
        CallGuard {
            activity: Arc::clone(self),
            period: None,
            unsent: 0,
        }
    }

    /// Whether the connection was closed. Otherwise the waker is woken when it is.
    pub fn is_closed(&self, waker: &std::task::Waker) -> bool {
        self.waker.register(waker);
        self.closed.load(Ordering::Acquire)
    }

    /// Completes when the connection is closed.
    pub async fn closed(&self) {
        poll_fn(|context| {
            if self.is_closed(context.waker()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Removes the connection, because it has ended.
    pub fn remove(&self) {
        self.connections.open.lock().remove(&self.id);
    }

    fn touch(&self) {
        self.called.store(true, Ordering::Relaxed);
        self.last_call.store(
            self.connections.now.load(Ordering::Relaxed),
            Ordering::Relaxed,
        );
    }

    fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0
            && self
                .calls
                .iter()
                .all(|calls| calls.load(Ordering::Relaxed) == 0)
    }

    fn is_overdue(&self, now: u64) -> bool {
        let age = now.saturating_sub(self.last_call.load(Ordering::Relaxed));
        let max_age = if self.called.load(Ordering::Relaxed) {
            IDLE_SECS
        } else {
            FIRST_REQUEST_SECS
        };
        if age > max_age && self.is_idle() {
            return true;
        }
        // The period after the current one is the oldest.
        let oldest = (self.connections.period() + 1) % PERIODS;
        self.calls[oldest].load(Ordering::Relaxed) > 0
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// Counts a call of a connection until its response has been sent.
pub struct CallGuard {
    activity: Arc<Activity>,
    /// The period of the last progress; `None` for a stream.
    period: Option<usize>,
    unsent: usize,
}

impl CallGuard {
    /// Counts the bytes of the response.
    pub fn add_unsent(&mut self, bytes: usize) {
        self.unsent += bytes;
        self.activity.unsent.fetch_add(bytes, Ordering::Relaxed);
        let connections = &self.activity.connections;
        let before = connections.unsent.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 && before + bytes > MAX_UNSENT_BYTES {
            connections.close_largest();
        }
    }

    /// Records that the client has taken a part of the response.
    pub fn progress(&mut self) {
        if let Some(period) = &mut self.period {
            let current = self.activity.connections.period();
            if *period != current {
                self.activity.calls[current].fetch_add(1, Ordering::Relaxed);
                self.activity.calls[*period].fetch_sub(1, Ordering::Relaxed);
                *period = current;
            }
        }
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let Self {
            activity, unsent, ..
        } = self;
        activity.touch();
        match self.period {
            Some(period) => activity.calls[period].fetch_sub(1, Ordering::Relaxed),
            None => activity.streams.fetch_sub(1, Ordering::Relaxed),
        };
        activity.unsent.fetch_sub(*unsent, Ordering::Relaxed);
        activity
            .connections
            .unsent
            .fetch_sub(*unsent, Ordering::Relaxed);
    }
}

/// Raises the soft limit of file descriptors to the hard limit, and returns it.
fn raise_descriptor_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "failed to raise the limit of file descriptors");
        }
    }
    // `None` is no limit.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn is_closed(activity: &Activity) -> bool {
        activity.is_closed(Waker::noop())
    }

    fn sweep(connections: &Connections, seconds: u64) {
        for _ in 0..seconds {
            connections.sweep();
        }
    }

    #[test]
    fn a_connection_without_a_request_is_closed_soon_and_an_idle_one_later() {
        let connections = Connections::with_max(10);
        let silent = connections.add(HERE).expect("space");
        let idle = connections.add(HERE).expect("space");
        drop(idle.call());
        let watching = connections.add(HERE).expect("space");
        let _watch = watching.stream();
        sweep(&connections, FIRST_REQUEST_SECS);
        assert!(!is_closed(&silent));
        sweep(&connections, 1);
        assert!(is_closed(&silent));
        sweep(&connections, IDLE_SECS - FIRST_REQUEST_SECS - 1);
        assert!(!is_closed(&idle));
        sweep(&connections, 1);
        assert!(is_closed(&idle));
        assert!(!is_closed(&watching));
    }

    #[test]
    fn the_longest_idle_connection_is_closed_for_a_new_one() {
        let connections = Connections::with_max(4);
        let busy = connections.add(HERE).expect("space");
        let _call = busy.call();
        let idle = connections.add(HERE).expect("space");
        drop(idle.call());
        // Half of the connections have this address.
        let new = connections.add(HERE).expect("the idle one is closed");
        assert!(is_closed(&idle) && !is_closed(&busy) && !is_closed(&new));
        let _second = new.call();
        assert!(
            connections.add(HERE).is_none(),
            "both have calls in progress"
        );

        let old = connections.add(THERE).expect("space");
        drop(old.call());
        sweep(&connections, 1);
        let silent = connections.add(THERE).expect("space");
        let newest = connections.add(THERE).expect("one is closed");
        assert!(is_closed(&silent), "it has sent no request yet");
        assert!(!is_closed(&old) && !is_closed(&newest));
    }

    #[test]
    fn a_client_that_takes_no_response_is_disconnected() {
        let connections = Connections::with_max(10);
        let (stalled, slow) = (connections.add(HERE), connections.add(HERE));
        let (stalled, slow) = (stalled.expect("space"), slow.expect("space"));
        let (_stalled_call, mut slow_call) = (stalled.call(), slow.call());
        for _ in 0..60 {
            sweep(&connections, 1);
            slow_call.progress();
        }
        assert!(is_closed(&stalled) && !is_closed(&slow));
        sweep(&connections, 29);
        assert!(!is_closed(&slow));
        sweep(&connections, 11);
        assert!(is_closed(&slow));
    }

    #[test]
    fn the_connection_with_the_most_unsent_bytes_is_closed() {
        let connections = Connections::with_max(10);
        let (large, small) = (connections.add(HERE), connections.add(HERE));
        let (large, small) = (large.expect("space"), small.expect("space"));
        let (mut first, mut second) = (large.call(), small.call());
        first.add_unsent(MAX_UNSENT_BYTES - 10);
        second.add_unsent(10);
        assert!(!is_closed(&large) && !is_closed(&small));
        second.add_unsent(1);
        assert!(is_closed(&large) && !is_closed(&small));
        drop((first, second));
        assert_eq!(connections.unsent.load(Ordering::Relaxed), 0);
    }
}
