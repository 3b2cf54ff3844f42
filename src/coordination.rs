//! What happens when the cache that replicas share is away, or isn't what it was: the database
//! arbitrates, by the row of [`EpochTable`].
//!
//! The cache is *active* or *suspended*, and every change begins a new epoch, which is part of every
//! key: an empty name space.
//!
//! - **The lease.** Each replica reads the row four times a second, and serves from the cache only if
//!   the last read is younger than [`LEASE`], counted from when it was sent, and says *active*.
//! - **The guard.** A write begins in the epoch that its replica knows, and closes its tags and commits
//!   in that one; if it is over by then, the write begins again. While the cache is suspended nothing
//!   is closed.
//! - **The wait.** A write doesn't begin in a suspension that its replica has known for less than a
//!   lease. So by its commit whoever served from the epoch before has stopped. Nobody's clock is
//!   compared with another's, and the time is counted from when the suspension was seen, because it
//!   may have taken long to commit.
//! - **Suspending.** A replica does it as soon as the server doesn't confirm a `close` or `reopen`,
//!   or fails three checks in a row, which each replica makes four times a second. A write whose `reopen` wasn't
//!   confirmed is acknowledged when the suspension is a lease old.
//! - **Activating.** Any replica that reaches the server does it, two seconds after the last one
//!   that doesn't has said so. It first gives the server's processes a new name, as the text of the
//!   scripts that all steps use. Redis neither keeps nor replicates scripts, so a process that was
//!   restarted, or promoted, or stood on the other side of a split, doesn't know them: whatever it
//!   holds isn't served, and it fails the checks. So does a process that knows them but has taken
//!   another's data meanwhile, by the replication id of its data.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use uuid::Uuid;

use crate::{
    cache::{LEASE, RedisCache},
    model::{CacheEpoch, Epoch},
    store::{EpochTable, StoreResult},
};

/// How often the row is read and the server is checked. A few reads may fail within a lease.
const INTERVAL: Duration = Duration::from_millis(250);

/// How many checks have to fail, one after the other, until the cache is suspended though no write
/// has asked for it.
const FAILURES: u32 = 3;

/// How replicas use the cache that they share. Dropping it ends its background work.
#[derive(Debug)]
pub struct Coordinator {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    table: EpochTable,
    cache: Arc<RedisCache>,
    seen: Mutex<Seen>,
}

/// The row, as it was last read.
#[derive(Debug, Clone)]
struct Seen {
    row: CacheEpoch,
    /// When the read was sent.
    asked: Instant,
    /// From when on nobody serves from an epoch before this one.
    settled: Instant,
}

impl Seen {
    fn new(row: CacheEpoch, asked: Instant) -> Self {
        let now = Instant::now();
        let settled = match &row {
            // Only what was suspended for longer than a lease becomes active, and nothing was before 0.
            CacheEpoch {
                server: Some(_), ..
            }
            | CacheEpoch {
                epoch: Epoch(0), ..
            } => now,
            _ => now + LEASE,
        };
        Self {
            row,
            asked,
            settled,
        }
    }
}

impl Coordinator {
    /// Begins to follow the epochs, and tries once to put a cache to use that nobody has used.
    pub async fn follow(table: EpochTable, cache: Arc<RedisCache>) -> StoreResult<Self> {
        let asked = Instant::now();
        let row = table.read().await?;
        cache.renew_lease(&row, asked.into_std());
        let shared = Arc::new(Shared {
            table,
            cache,
            seen: Mutex::new(Seen::new(row, asked)),
        });
        // What is wrong already was so while no replica was there to see it.
        shared.reconcile(&mut (FAILURES - 1)).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(poll_loop(Arc::clone(&shared)));
        tasks.spawn(reconcile_loop(Arc::clone(&shared)));
        Ok(Self {
            shared,
            _tasks: tasks,
        })
    }

    /// Waits until nobody serves from an epoch before the one that is known, and answers that: a lease
    /// at most, or less than two if it changes meanwhile.
    pub async fn wait_for_old_leases(&self) -> Epoch {
        loop {
            let Seen { row, settled, .. } = self.shared.seen();
            if settled <= Instant::now() {
                return row.epoch;
            }
            sleep_until(settled).await;
        }
    }

    /// Suspends the cache, if it is still used as it was when the server didn't confirm a step.
    /// Afterwards the current epoch is known.
    pub async fn suspend(&self, epoch: Epoch) -> StoreResult<()> {
        self.shared.suspend(epoch).await
    }

    /// Reads the row. Afterwards the current epoch is known.
    pub async fn refresh(&self) -> StoreResult<()> {
        self.shared.refresh().await
    }
}

impl Shared {
    fn seen(&self) -> Seen {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refresh(&self) -> StoreResult<()> {
        let asked = Instant::now();
        let row = self.table.read().await?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Another read may have overtaken this one.
        if asked >= seen.asked {
            self.cache.renew_lease(&row, asked.into_std());
            if row.epoch == seen.row.epoch {
                (seen.row, seen.asked) = (row, asked);
            } else {
                if row.server.is_some() {
                    tracing::info!(epoch = row.epoch.0, "the cache is used");
                } else {
                    tracing::warn!(epoch = row.epoch.0, "the cache is suspended");
                }
                *seen = Seen::new(row, asked);
            }
        }
        Ok(())
    }

    async fn suspend(&self, epoch: Epoch) -> StoreResult<()> {
        self.table.suspend(epoch).await?;
        self.refresh().await
    }

    /// Checks the server, and does what the answer asks for.
    async fn reconcile(&self, failures: &mut u32) {
        let Seen { row, settled, .. } = self.seen();
        let checked = self.cache.check().await;
        *failures = if checked.is_ok() { 0 } else { *failures + 1 };
        let done: Result<(), Box<dyn Error + Send + Sync>> = match (row.server, checked) {
            (Some(_), Err(_)) if *failures < FAILURES => Ok(()),
            (Some(_), Err(error)) => {
                tracing::warn!(%error, "the cache server isn't what it was: suspending the cache");
                self.suspend(row.epoch).await.map_err(Into::into)
            }
            (None, Err(_)) => self.table.report_away().await.map_err(Into::into),
            (None, Ok(())) if row.may_activate && settled <= Instant::now() => {
                self.activate(row.epoch).await
            }
            (_, Ok(())) => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "the cache's epoch couldn't be changed");
        }
    }

    async fn activate(&self, from: Epoch) -> Result<(), Box<dyn Error + Send + Sync>> {
        let server = self.cache.install_scripts(Uuid::new_v4()).await?;
        self.table.activate(from, &server).await?;
        Ok(self.refresh().await?)
    }
}

/// Keeps the lease. While the database is away it runs out.
async fn poll_loop(shared: Arc<Shared>) {
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        let _ = shared.refresh().await;
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
