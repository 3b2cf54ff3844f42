//! The row `cache_epoch` of a `PostgreSQL` database: how replicas use the cache that they share.
//!
//! A write's commit looks at the row under a shared lock, which is held until the commit can be seen
//! (`check_write` in the migrations); whoever changes the epoch does so under the exclusive one. So a
//! write is either seen by all that happens in the next epoch, or is refused. The lock is an advisory
//! one, because a lock on the row itself would have every commit write to the one row.

use std::time::Duration;

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use tokio::time::timeout;
use uuid::Uuid;

use super::{StoreError, StoreResult};
use crate::model::{CacheEpoch, CacheServer, Epoch};

/// `location`, in ASCII: a number that nothing else on the database locks.
pub(super) const LOCK: i64 = 0x6c6f_6361_7469_6f6e;

/// How long a statement may take. The row is read much more often than that.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The shortest and the longest suspension. A suspension lasts twice as long as the last one if the
/// cache was in use for less than the shortest between the two.
const PAUSE: (&str, &str) = ("2 s", "8 s");

/// How long after the last replica without contact the cache may be used again.
const REACHED_FOR: &str = "2 s";

/// How often a replica without contact says so, at most.
const REPORT_EVERY: &str = "500 ms";

/// The row.
#[derive(Debug, Clone)]
pub struct EpochTable {
    pool: PgPool,
}

#[derive(FromRow)]
struct Row {
    epoch: i64,
    server: Option<Uuid>,
    histories: Option<String>,
    may_activate: bool,
}

impl EpochTable {
    /// The row in the database of a pool, which has a connection for each two that use this at once.
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Reads the row.
    ///
    /// Fails, as all methods do, with [`StoreError::Unavailable`] when the database doesn't answer
    /// within a second.
    pub async fn read(&self) -> StoreResult<CacheEpoch> {
        let sql = format!(
            "SELECT epoch, server, histories, server IS NULL
                    AND clock_timestamp() > changed_at + pause
                    AND clock_timestamp() > away_at + interval '{REACHED_FOR}' AS may_activate
             FROM cache_epoch"
        );
        let mut connection = self.pool.acquire().await.map_err(StoreError::unavailable)?;
        let row = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut *connection);
        let row: Row = match timeout(TIMEOUT, row).await {
            Ok(row) => row.map_err(StoreError::unavailable)?,
            Err(late) => {
                connection.close_on_drop();
                return Err(StoreError::unavailable(late));
            }
        };
        Ok(CacheEpoch {
            epoch: Epoch(row.epoch),
            server: row
                .server
                .zip(row.histories)
                .map(|(name, histories)| CacheServer { name, histories }),
            may_activate: row.may_activate,
        })
    }

    /// Suspends the cache, in a new epoch, if it is in use in this one.
    pub async fn suspend(&self, Epoch(from): Epoch) -> StoreResult<()> {
        let (shortest, longest) = PAUSE;
        self.run(format!(
            "SELECT pg_advisory_xact_lock({LOCK});
             UPDATE cache_epoch SET
                 epoch = epoch + 1, state = 'suspended', server = NULL, histories = NULL,
                 changed_at = clock_timestamp(), away_at = clock_timestamp(),
                 pause = CASE WHEN clock_timestamp() < changed_at + interval '{shortest}'
                     THEN least(2 * pause, interval '{longest}')
                     ELSE interval '{shortest}' END
             WHERE epoch = {from} AND state = 'active'"
        ))
        .await
    }

    /// Notes that a replica can't reach the server, while the cache is suspended.
    pub async fn report_away(&self) -> StoreResult<()> {
        self.run(format!(
            "UPDATE cache_epoch SET away_at = clock_timestamp()
             WHERE state = 'suspended'
               AND away_at < clock_timestamp() - interval '{REPORT_EVERY}'"
        ))
        .await
    }

    /// Puts the cache to use, in a new epoch, if it is suspended in this one. All processes of the
    /// server have to know its name by now.
    pub async fn activate(&self, Epoch(from): Epoch, server: &CacheServer) -> StoreResult<()> {
        let CacheServer { name, histories } = server;
        // It goes into the text of a statement. Redis makes it of hexadecimal digits.
        let histories: String = histories
            .chars()
            .filter(|char| char.is_ascii_alphanumeric() || *char == ',')
            .collect();
        self.run(format!(
            "SELECT pg_advisory_xact_lock({LOCK});
             UPDATE cache_epoch SET
                 epoch = epoch + 1, state = 'active', server = '{name}',
                 histories = '{histories}', changed_at = clock_timestamp()
             WHERE epoch = {from} AND state = 'suspended'"
        ))
        .await
    }

    /// Runs statements in one message, which makes them one transaction.
    async fn run(&self, sql: String) -> StoreResult<()> {
        let mut connection = self.pool.acquire().await.map_err(StoreError::unavailable)?;
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection);
        match timeout(TIMEOUT, done).await {
            Ok(done) => done.map(|_| ()).map_err(StoreError::unavailable),
            Err(late) => {
                connection.close_on_drop();
                Err(StoreError::unavailable(late))
            }
        }
    }
}
