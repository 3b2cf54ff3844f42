//! The row `cache_epoch` of a `PostgreSQL` database: the state of the cache that replicas share.
//!
//! The commit of a write checks the row under a shared lock, which it holds until the commit is
//! visible (`check_write` in the migrations); the epoch changes under the exclusive lock. So a write is
//! either visible to everything in the next epoch, or refused. The lock is an advisory one, because
//! a lock on the row would make every commit write to the same row.

use std::time::Duration;

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use tokio::time::timeout;
use uuid::Uuid;

use super::{StoreError, StoreResult};
use crate::model::{CacheEpoch, CacheServer, Epoch};

/// The key of the advisory lock: `location` in ASCII.
pub(super) const LOCK: i64 = 0x6c6f_6361_7469_6f6e;

/// Time-out of a statement.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Minimum length of a suspension. Doubles while the cache is active for less than this between
/// two suspensions, up to [`MAX_PAUSE`].
const MIN_PAUSE: &str = "2 s";

/// Maximum of the minimum length of a suspension.
const MAX_PAUSE: &str = "8 s";

/// Minimum time between the last report that the server is unreachable and the activation.
const REACHABLE_FOR: &str = "2 s";

/// Minimum time between two reports that the server is unreachable.
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
    /// The row in the pool's database. One connection polls, another one changes the row.
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Reads the row.
    ///
    /// Fails, as all methods do, with [`StoreError::Unavailable`], after a second at most.
    pub async fn read(&self) -> StoreResult<CacheEpoch> {
        let sql = format!(
            "SELECT epoch, server, histories, server IS NULL
                    AND clock_timestamp() > changed_at + pause
                    AND clock_timestamp() > away_at + interval '{REACHABLE_FOR}' AS may_activate
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

    /// Suspends the cache, in a new epoch, if it is active in epoch `from`.
    pub async fn suspend(&self, Epoch(from): Epoch) -> StoreResult<()> {
        self.run(format!(
            "SELECT pg_advisory_xact_lock({LOCK});
             UPDATE cache_epoch SET
                 epoch = epoch + 1, state = 'suspended', server = NULL, histories = NULL,
                 changed_at = clock_timestamp(), away_at = clock_timestamp(),
                 pause = CASE WHEN clock_timestamp() < changed_at + interval '{MIN_PAUSE}'
                     THEN least(2 * pause, interval '{MAX_PAUSE}')
                     ELSE interval '{MIN_PAUSE}' END
             WHERE epoch = {from} AND state = 'active'"
        ))
        .await
    }

    /// Reports that this replica can't reach the server, if the cache is suspended.
    pub async fn report_away(&self) -> StoreResult<()> {
        self.run(format!(
            "UPDATE cache_epoch SET away_at = clock_timestamp()
             WHERE state = 'suspended'
               AND away_at < clock_timestamp() - interval '{REPORT_EVERY}'"
        ))
        .await
    }

    /// Activates the cache, in a new epoch, if it is suspended in epoch `from`. Every process of the
    /// server must have its scripts by now.
    pub async fn activate(&self, Epoch(from): Epoch, server: &CacheServer) -> StoreResult<()> {
        let CacheServer { name, histories } = server;
        // Redis's replication ids are hexadecimal. They become part of a statement: drop the rest.
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

    /// Runs statements in one message, which is one transaction.
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
