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
//! - **Late commits.** A commit may wait without bound, for a synchronous standby or a disk, after the
//!   database has checked it, and become visible long after its tags were opened again. It holds the
//!   guard's lock until then, so each poll lists the commits in progress: while one has been in
//!   progress for more than `MAX_COMMIT`, no replica has a lease. A replica counts from its last poll
//!   that didn't list the commit.
//! - **Settings.** Replicas that name keys differently would not invalidate each other's entries. The
//!   connections of each hold an advisory lock for its settings, so a replica refuses to start while
//!   replicas with other settings are running.
//! - **The database.** A database that was restored, replaced, cloned or promoted has a row that it
//!   didn't write itself. The poll that finds this begins a new epoch, before its replica trusts a
//!   connection to that database ([`EpochTable::read`]).
//! - **Suspension.** A replica suspends the cache as soon as the server doesn't confirm a `close` or a
//!   `reopen`, says that it can't be used, or fails `MAX_FAILURES` checks in a row. A write whose
//!   `reopen` wasn't confirmed is acknowledged when the suspension is one lease old.
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

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use uuid::Uuid;

use crate::{
    cache::{CacheError, LEASE, RedisCache, WRITE_DEADLINE},
    model::{CacheEpoch, Epoch},
    store::{EpochRow, EpochTable, MAX_WRITE, PoolStats, StoreError, StoreResult},
};

/// The time between two polls of the row, and between two checks of the server. A lease spans
/// several, so that a failed poll doesn't end it.
const INTERVAL: Duration = Duration::from_millis(250);

/// The cache isn't used while a commit has been in progress for longer than this.
const MAX_COMMIT: Duration = Duration::from_secs(5);

// The tags of a write stay closed until every replica has found its commit late, and the last lease
// from before that has expired.
const _: () = assert!(
    MAX_WRITE.as_millis() + MAX_COMMIT.as_millis() + 2 * LEASE.as_millis()
        < WRITE_DEADLINE.as_millis()
);

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
    /// The commits in progress, each with the time of the last poll without it, if any.
    commits: HashMap<String, Option<Instant>>,
    /// Whether replicas with other settings are running.
    other_settings: bool,
}

/// A replica can't take part in the coordination.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The row can't be read.
    #[error(transparent)]
    Database(#[from] StoreError),
    /// Running replicas use the cache with other settings.
    #[error(transparent)]
    OtherSettings(CacheError),
}

/// The state of [`Shared::reconcile`] from one check to the next.
#[derive(Debug, Default)]
struct Checks {
    /// The number of checks in a row that have failed.
    failures: u32,
    /// Whether the last change of the row has failed.
    change_failed: bool,
}

impl Poll {
    /// The poll after `last`.
    fn new(row: EpochRow, sent: Instant, last: Option<&Self>) -> Self {
        let EpochRow {
            epoch: row,
            commits,
            other_settings,
        } = row;
        let commits = commits.into_iter().map(|commit| {
            let since = last.and_then(|last| match last.commits.get(&commit) {
                Some(since) => *since,
                None => Some(last.sent),
            });
            (commit, since)
        });
        let leases_expired = match last {
            Some(last) if last.row.epoch == row.epoch => last.leases_expired,
            // The cache is activated only when its suspension is more than a lease old, and there
            // are no leases on epochs before the first.
            _ if row.server.is_some() || row.epoch == Epoch(0) => Instant::now(),
            _ => Instant::now() + LEASE,
        };
        Self {
            commits: commits.collect(),
            other_settings,
            row,
            sent,
            leases_expired,
        }
    }

    /// Whether a commit has been in progress for too long.
    fn has_late_commit(&self) -> bool {
        let is_late = |since: &Option<Instant>| {
            since.is_none_or(|since| self.sent.duration_since(since) > MAX_COMMIT)
        };
        self.commits.values().any(is_late)
    }

    /// Tells the cache the epoch, with a lease unless there is a late commit.
    fn renew_lease(&self, cache: &RedisCache) {
        let from = if self.has_late_commit() {
            self.sent.checked_sub(LEASE)
        } else {
            Some(self.sent)
        };
        if let Some(from) = from {
            cache.renew_lease(&self.row, from.into_std());
        }
    }
}

impl Coordinator {
    /// Starts to poll the row and to check the server, after one poll and one check. Fails while replicas
    /// with other settings are running.
    pub async fn follow(table: EpochTable, cache: Arc<RedisCache>) -> Result<Self, FollowError> {
        let sent = Instant::now();
        let poll = Poll::new(table.read().await?, sent, None);
        poll.renew_lease(&cache);
        if poll.other_settings {
            return Err(FollowError::OtherSettings(cache.settings_differ()));
        }
        let shared = Arc::new(Shared {
            table,
            cache,
            last_poll: Mutex::new(poll),
            logged: Mutex::new(None),
        });
        // Start one failure short of the limit: a problem seen at startup may have existed while no
        // replica was running.
        let mut checks = Checks {
            failures: MAX_FAILURES - 1,
            ..Checks::default()
        };
        shared.reconcile(&mut checks).await;
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

    /// The connections to the row.
    pub fn pool(&self) -> PoolStats {
        self.shared.table.stats()
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
        let poll = Poll::new(row, sent, Some(&last));
        poll.renew_lease(&self.cache);
        if poll.row.epoch != last.row.epoch {
            let epoch = poll.row.epoch.0;
            if poll.row.server.is_some() {
                tracing::info!(epoch, "the cache is active");
            } else {
                tracing::warn!(epoch, "the cache is suspended");
            }
        }
        match (last.has_late_commit(), poll.has_late_commit()) {
            (false, true) => tracing::warn!(
                "a commit has been in progress for more than {MAX_COMMIT:?}: not using the cache \
                 until it ends"
            ),
            (true, false) => tracing::info!("no commit is late any more: using the cache again"),
            _ => {}
        }
        *last = poll;
        Ok(())
    }

    async fn suspend(&self, epoch: Epoch) -> StoreResult<()> {
        self.table.suspend(epoch).await?;
        self.poll().await
    }

    /// Checks the server. Suspends the cache when the server can't be used or has failed
    /// [`MAX_FAILURES`] checks, and activates it when the server is healthy.
    async fn reconcile(&self, checks: &mut Checks) {
        let Poll {
            row,
            leases_expired,
            other_settings,
            ..
        } = self.last_poll.lock().clone();
        let checked = self.cache.check().await;
        checks.failures = match &checked {
            Ok(()) => 0,
            Err(error) if error.is_permanent() => MAX_FAILURES,
            Err(_) => checks.failures + 1,
        };
        if checks.failures == 0 || checks.failures >= MAX_FAILURES {
            self.log(checked.as_ref().err());
        }
        let changed: Result<(), Box<dyn Error + Send + Sync>> = match (row.server, checked) {
            (Some(_), Err(_)) if checks.failures < MAX_FAILURES => Ok(()),
            // Other replicas use the cache, and this one doesn't write.
            (Some(_), Err(CacheError::SettingsDiffer(_))) if other_settings => Ok(()),
            (Some(_), Err(_)) => self.suspend(row.epoch).await.map_err(Into::into),
            (None, Err(_)) => self.table.report_unreachable().await.map_err(Into::into),
            (None, Ok(())) if row.may_activate && leases_expired <= Instant::now() => {
                self.activate(row.epoch).await
            }
            (_, Ok(())) => Ok(()),
        };
        // The database may be unavailable for a long time.
        if let Err(error) = &changed
            && !checks.change_failed
        {
            tracing::warn!(%error, "can't change the cache's epoch");
        }
        checks.change_failed = changed.is_err();
    }

    /// Logs the state of the cache server when it has changed. A server that is out of reach may fail
    /// each check in another way.
    fn log(&self, error: Option<&CacheError>) {
        let mut logged = self.logged.lock();
        let unchanged = match (&*logged, error) {
            (None, None) => true,
            (Some(old), Some(new)) => old == new || !old.is_permanent() && !new.is_permanent(),
            _ => false,
        };
        if unchanged {
            return;
        }
        if let Some(error) = error {
            tracing::warn!(%error, "the cache server can't be used");
        } else {
            tracing::info!("the cache server can be used");
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
    let mut checks = Checks::default();
    loop {
        ticks.tick().await;
        shared.reconcile(&mut checks).await;
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
