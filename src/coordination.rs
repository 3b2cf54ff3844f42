//! The coordination of replicas that share a cache server, which may fail, restart, or be replaced
//! by one with other data. The database arbitrates, with the row of [`EpochTable`].
//!
//! The cache is either *active* or *suspended*. Every change of state begins a new *epoch*. The epoch
//! is part of every key in the cache, so an epoch begins with an empty cache.
//!
//! - **Lease.** Each replica polls the row four times a second. It serves from the cache only while
//!   the last poll said *active* and is younger than [`LEASE`], counted on the monotonic clock from
//!   when the poll was sent.
//! - **Guard.** A write closes its tags in the epoch that its replica knows, and commits only if that
//!   is still the current one; otherwise it starts again. While the cache is suspended there are no
//!   tags to close.
//! - **Wait.** A write doesn't begin in a suspension that its replica has known for less than a lease.
//!   By the time it commits, every replica that served from the epoch before has stopped. The wait
//!   counts from when the suspension was seen, not from when it was written, because its commit may
//!   have been delayed; so no clock is compared with another machine's.
//! - **Suspension.** A replica suspends the cache as soon as the server doesn't confirm a `close` or a
//!   `reopen`, or fails [`MAX_FAILURES`] checks in a row. A write whose `reopen` wasn't confirmed is
//!   acknowledged when the suspension is one lease old.
//! - **Activation.** Any replica that reaches the server activates the cache, two seconds after the
//!   last report of a replica that can't reach it. It first gives the server's processes a new name,
//!   the *incarnation*, within the text of the scripts that run every step of the protocol. Redis
//!   neither persists nor replicates scripts, so a process that was restarted, or promoted, or was on
//!   the other side of a partition, doesn't have them: it can't run a step, and fails the checks. A
//!   process that has the scripts, and has taken over another one's data since, fails the checks
//!   because the replication id of its data has changed.
//!
//! Without any one of epoch, guard, wait and incarnation, some sequence of under twenty steps leads to
//! a stale read: `tests/model` finds it.

use std::{error::Error, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use uuid::Uuid;

use crate::{
    cache::{CacheError, LEASE, RedisCache},
    model::{CacheEpoch, Epoch},
    store::{EpochTable, StoreResult},
};

/// The time between two polls of the row, and between two checks of the server. A lease spans
/// several, so that a failed poll doesn't end it.
const INTERVAL: Duration = Duration::from_millis(250);

/// The number of checks in a row that fail before the cache is suspended.
const MAX_FAILURES: u32 = 3;

/// A replica's part in the coordination. Dropping it stops its background tasks.
#[derive(Debug)]
pub struct Coordinator {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    table: EpochTable,
    cache: Arc<RedisCache>,
    last_poll: Mutex<Poll>,
    /// Why the cache server can't be used, as it was last logged.
    logged: Mutex<Option<CacheError>>,
}

/// The result of a poll of the row.
#[derive(Debug, Clone)]
struct Poll {
    row: CacheEpoch,
    sent: Instant,
    /// When the leases on all earlier epochs have expired.
    leases_expired: Instant,
}

impl Poll {
    /// The first poll that returns the row's epoch.
    fn first(row: CacheEpoch, sent: Instant) -> Self {
        let now = Instant::now();
        // The cache is activated only when its suspension is more than a lease old, and there are no
        // leases on epochs before the first.
        let no_older_lease = row.server.is_some() || row.epoch == Epoch(0);
        Self {
            row,
            sent,
            leases_expired: if no_older_lease { now } else { now + LEASE },
        }
    }
}

impl Coordinator {
    /// Starts to poll the row and to check the server, after one poll and one check.
    pub async fn follow(table: EpochTable, cache: Arc<RedisCache>) -> StoreResult<Self> {
        let sent = Instant::now();
        let row = table.read().await?;
        cache.renew_lease(&row, sent.into_std());
        let shared = Arc::new(Shared {
            table,
            cache,
            last_poll: Mutex::new(Poll::first(row, sent)),
            logged: Mutex::new(None),
        });
        // Start one failure short of the limit: a problem seen at startup may have existed while no
        // replica was running.
        let mut failures = MAX_FAILURES - 1;
        shared.reconcile(&mut failures).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(poll_loop(Arc::clone(&shared)));
        tasks.spawn(reconcile_loop(Arc::clone(&shared)));
        Ok(Self {
            shared,
            _tasks: tasks,
        })
    }

    /// Waits until no replica serves from an epoch before the current one, and returns the current
    /// one. Takes at most one lease, or two if the epoch changes meanwhile.
    pub async fn wait_for_old_leases(&self) -> Epoch {
        loop {
            let (epoch, expired) = {
                let poll = self.shared.last_poll.lock();
                (poll.row.epoch, poll.leases_expired)
            };
            if expired <= Instant::now() {
                return epoch;
            }
            sleep_until(expired).await;
        }
    }

    /// Suspends the cache, unless `epoch` has ended, and polls the row.
    pub async fn suspend(&self, epoch: Epoch) -> StoreResult<()> {
        self.shared.suspend(epoch).await
    }

    /// Polls the row.
    pub async fn refresh(&self) -> StoreResult<()> {
        self.shared.poll().await
    }
}

impl Shared {
    async fn poll(&self) -> StoreResult<()> {
        let sent = Instant::now();
        let row = self.table.read().await?;
        let mut last = self.last_poll.lock();
        // Polls may overtake each other.
        if sent < last.sent {
            return Ok(());
        }
        self.cache.renew_lease(&row, sent.into_std());
        if row.epoch == last.row.epoch {
            (last.row, last.sent) = (row, sent);
            return Ok(());
        }
        if row.server.is_some() {
            tracing::info!(epoch = row.epoch.0, "the cache is active");
        } else {
            tracing::warn!(epoch = row.epoch.0, "the cache is suspended");
        }
        *last = Poll::first(row, sent);
        Ok(())
    }

    async fn suspend(&self, epoch: Epoch) -> StoreResult<()> {
        self.table.suspend(epoch).await?;
        self.poll().await
    }

    /// Checks the server. Suspends the cache when the server can't be used or has failed
    /// [`MAX_FAILURES`] checks, and activates it when the server is healthy.
    async fn reconcile(&self, failures: &mut u32) {
        let Poll {
            row,
            leases_expired,
            ..
        } = self.last_poll.lock().clone();
        let checked = self.cache.check().await;
        *failures = match &checked {
            Ok(()) => 0,
            Err(error) if error.is_certain() => MAX_FAILURES,
            Err(_) => *failures + 1,
        };
        if *failures == 0 || *failures >= MAX_FAILURES {
            self.log(checked.as_ref().err());
        }
        let changed: Result<(), Box<dyn Error + Send + Sync>> = match (row.server, checked) {
            (Some(_), Err(_)) if *failures < MAX_FAILURES => Ok(()),
            (Some(_), Err(_)) => self.suspend(row.epoch).await.map_err(Into::into),
            (None, Err(_)) => self.table.report_away().await.map_err(Into::into),
            (None, Ok(())) if row.may_activate && leases_expired <= Instant::now() => {
                self.activate(row.epoch).await
            }
            (_, Ok(())) => Ok(()),
        };
        if let Err(error) = changed {
            tracing::warn!(%error, "can't change the cache's epoch");
        }
    }

    /// Logs the state of the cache server when it has changed. A server that is out of reach may fail
    /// each check in another way.
    fn log(&self, error: Option<&CacheError>) {
        let mut logged = self.logged.lock();
        let unchanged = match (&*logged, error) {
            (None, None) => true,
            (Some(old), Some(new)) => old == new || !old.is_certain() && !new.is_certain(),
            _ => false,
        };
        if unchanged {
            return;
        }
        match error {
            Some(error) => tracing::warn!(%error, "the cache server can't be used"),
            None => tracing::info!("the cache server can be used"),
        }
        *logged = error.cloned();
    }

    async fn activate(&self, from: Epoch) -> Result<(), Box<dyn Error + Send + Sync>> {
        let server = self.cache.install_scripts(Uuid::new_v4()).await?;
        self.table.activate(from, &server).await?;
        Ok(self.poll().await?)
    }
}

/// Renews the lease. It expires while the database is unavailable.
async fn poll_loop(shared: Arc<Shared>) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        let _ = shared.poll().await;
    }
}

async fn reconcile_loop(shared: Arc<Shared>) {
    let mut ticks = ticks();
    let mut failures = 0;
    loop {
        ticks.tick().await;
        shared.reconcile(&mut failures).await;
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
