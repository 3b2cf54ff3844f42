//! The row `cache_epoch` of a `PostgreSQL` database: the state of the cache that replicas share.
//!
//! The commit of a write checks the row under a shared lock, which it holds until the commit is
//! visible (`check_commit` in the migrations); the epoch changes under the exclusive lock. So a write is
//! either visible to everything in the next epoch, or refused. The lock is an advisory one, because
//! a lock on the row would make every commit write to the same row.
//!
//! The row belongs to one database: it records the database's identity, and the transaction that wrote
//! it. A row that was restored from a dump or cloned, or inherited by a promoted standby or by a server
//! that was recovered to a point in time, doesn't match. The read that finds this begins a new epoch,
//! whose number is ahead of the last one by a random distance: a database that went back in time
//! would otherwise count the same numbers again.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    StoreError, StoreResult,
    identity::{TrustedServer, Untrusted},
};
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

/// Whether the row was written by the database that it is in.
const GENUINE: &str = "identity = database_identity() AND xmin = written_by::xid";

/// The row.
#[derive(Debug, Clone)]
pub struct EpochTable {
    pool: PgPool,
    trusted: Arc<TrustedServer>,
}

/// The row as it was read.
#[derive(Debug)]
pub struct EpochRow {
    /// The state of the cache.
    pub epoch: CacheEpoch,
    /// The transactions that hold the shared lock: the commits that aren't visible yet.
    pub commits: Vec<String>,
}

#[derive(FromRow)]
struct Row {
    epoch: i64,
    incarnation: Option<Uuid>,
    replication_ids: Option<String>,
    may_activate: bool,
    commits: Vec<String>,
    identity: Option<String>,
    genuine: Option<bool>,
}

impl EpochTable {
    /// The row in the pool's database. One connection polls, another one changes the row.
    pub(super) fn new(pool: PgPool, trusted: Arc<TrustedServer>) -> Self {
        Self { pool, trusted }
    }

    /// Reads the row. Begins a new epoch first if the row was written by another database. From then on
    /// all pools trust connections to the server that was read from, and to no other one.
    ///
    /// Fails, as all methods do, with [`StoreError::Unavailable`], after a second at most.
    pub async fn read(&self) -> StoreResult<EpochRow> {
        let mut row = self.select().await?;
        if row.genuine != Some(true) && row.identity.is_some() {
            tracing::warn!(
                epoch = row.epoch,
                "the database was restored, replaced or promoted: beginning a new epoch of the cache"
            );
            self.renew().await?;
            row = self.select().await?;
        }
        let (Some(identity), Some(true)) = (&row.identity, row.genuine) else {
            return Err(StoreError::unavailable(Untrusted::InRecovery));
        };
        self.trusted.trust(identity);
        Ok(EpochRow {
            epoch: CacheEpoch {
                epoch: Epoch(row.epoch),
                server: row
                    .incarnation
                    .zip(row.replication_ids)
                    .map(|(name, histories)| CacheServer { name, histories }),
                may_activate: row.may_activate,
            },
            commits: row.commits,
        })
    }

    async fn select(&self) -> StoreResult<Row> {
        // A clock that was set back may not prolong a suspension.
        let sql = format!(
            "SELECT epoch, incarnation, replication_ids, incarnation IS NULL
                    AND clock_timestamp() NOT BETWEEN changed_at AND changed_at + pause
                    AND clock_timestamp()
                        NOT BETWEEN away_at AND away_at + interval '{REACHABLE_FOR}'
                    AS may_activate,
                ARRAY(
                    SELECT virtualtransaction FROM pg_locks
                    WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted
                        AND database = (SELECT oid FROM pg_database
                            WHERE datname = current_database())
                        AND classid = {} AND objid = {} AND objsubid = 1
                ) AS commits,
                database_identity() AS identity, {GENUINE} AS genuine
             FROM cache_epoch",
            LOCK >> 32,
            LOCK & 0xffff_ffff,
        );
        let mut connection = self.pool.acquire().await.map_err(StoreError::unavailable)?;
        let row = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut *connection);
        match timeout(TIMEOUT, row).await {
            Ok(row) => row.map_err(StoreError::unavailable),
            Err(elapsed) => {
                connection.close_on_drop();
                Err(StoreError::unavailable(elapsed))
            }
        }
    }

    /// Begins a new epoch, in which the cache is suspended, unless the row is this database's own.
    async fn renew(&self) -> StoreResult<()> {
        self.run(format!(
            "SELECT pg_advisory_xact_lock({LOCK});
             UPDATE cache_epoch SET
                 epoch = epoch + 1 + ('x' || left(md5(gen_random_uuid()::text), 10))::bit(40)::bigint,
                 state = 'suspended', incarnation = NULL, replication_ids = NULL,
                 changed_at = clock_timestamp(), away_at = clock_timestamp(), pause = '{MIN_PAUSE}',
                 identity = database_identity(), written_by = pg_current_xact_id()
             WHERE ({GENUINE}) IS NOT TRUE"
        ))
        .await
    }

    /// Suspends the cache, in a new epoch, if it is active in epoch `from`.
    pub async fn suspend(&self, Epoch(from): Epoch) -> StoreResult<()> {
        self.run(format!(
            "SELECT pg_advisory_xact_lock({LOCK});
             UPDATE cache_epoch SET
                 epoch = epoch + 1, state = 'suspended',
                 incarnation = NULL, replication_ids = NULL,
                 changed_at = clock_timestamp(), away_at = clock_timestamp(),
                 pause = CASE WHEN clock_timestamp() < changed_at + interval '{MIN_PAUSE}'
                     THEN least(2 * pause, interval '{MAX_PAUSE}')
                     ELSE interval '{MIN_PAUSE}' END,
                 written_by = pg_current_xact_id()
             WHERE epoch = {from} AND state = 'active' AND {GENUINE}"
        ))
        .await
    }

    /// Reports that this replica can't reach the server, if the cache is suspended.
    pub async fn report_away(&self) -> StoreResult<()> {
        self.run(format!(
            "UPDATE cache_epoch
             SET away_at = clock_timestamp(), written_by = pg_current_xact_id()
             WHERE state = 'suspended' AND {GENUINE}
               AND away_at NOT BETWEEN clock_timestamp() - interval '{REPORT_EVERY}'
                   AND clock_timestamp()"
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
                 epoch = epoch + 1, state = 'active',
                 incarnation = '{name}', replication_ids = '{histories}',
                 changed_at = clock_timestamp(), written_by = pg_current_xact_id()
             WHERE epoch = {from} AND state = 'suspended' AND {GENUINE}"
        ))
        .await
    }

    /// Runs statements in one message, which is one transaction.
    async fn run(&self, sql: String) -> StoreResult<()> {
        let mut connection = self.pool.acquire().await.map_err(StoreError::unavailable)?;
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection);
        match timeout(TIMEOUT, done).await {
            Ok(done) => done.map(|_| ()).map_err(StoreError::unavailable),
            Err(elapsed) => {
                connection.close_on_drop();
                Err(StoreError::unavailable(elapsed))
            }
        }
    }
}
