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

use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    PoolStats, StoreError, StoreResult,
    identity::{TrustedServer, Untrusted},
};
use crate::{
    failpoints::{Failpoint, is_enabled},
    model::{CacheEpoch, CacheServer, Epoch},
};

/// The key of the advisory lock: `location` in ASCII.
pub(super) const LOCK: i64 = 0x6c6f_6361_7469_6f6e;

/// Timeout of a statement.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Minimum length of a suspension. Doubles while the cache is active for less than this between
/// two suspensions, up to [`MAX_PAUSE`].
const MIN_PAUSE: &str = "2 s";

/// Upper bound of the doubled [`MIN_PAUSE`].
const MAX_PAUSE: &str = "8 s";

/// Minimum time between the last report that the server is unreachable and the activation.
const REACHABLE_FOR: &str = "2 s";

/// Minimum time between two reports that the server is unreachable.
const REPORT_EVERY: &str = "500 ms";

/// Whether the row was written by the database that it is in.
const GENUINE: &str = "identity = database_identity() AND xmin = written_by::xid";

/// The first key of the advisory locks that the replicas' connections to this table hold, shared:
/// `locs` in ASCII. The second key is a digest of the settings that replicas must share, so the locks
/// show which settings are in use.
const SETTINGS_LOCK: u32 = 0x6c6f_6373;

/// The table `cache_epoch`, which has one row, and the connections to it.
#[derive(Debug, Clone)]
pub struct EpochTable {
    pool: PgPool,
    trusted: Arc<TrustedServer>,
    settings: SettingsKey,
}

/// The second key of the advisory lock of a replica's settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct SettingsKey(u32);

impl SettingsKey {
    /// The key of settings with this digest.
    pub(super) fn new(digest: u64) -> Self {
        Self((digest >> 32) as u32)
    }

    /// Makes a connection hold the lock. The server frees it 25 s after the client's machine has
    /// vanished.
    pub(super) async fn lock(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(
            "SELECT pg_advisory_lock_shared($1, $2), set_config('tcp_keepalives_idle', '10', FALSE), \
                 set_config('tcp_keepalives_interval', '5', FALSE), \
                 set_config('tcp_keepalives_count', '3', FALSE)",
        )
        .persistent(false)
        .bind(SETTINGS_LOCK.cast_signed())
        .bind(self.0.cast_signed())
        .execute(connection)
        .await
        .map(drop)
    }
}

/// The row as it was read.
#[derive(Debug)]
pub struct EpochRow {
    /// The state of the cache.
    pub epoch: CacheEpoch,
    /// The transactions that hold the shared lock: the commits that aren't visible yet.
    pub commits: Vec<String>,
    /// Whether replicas with other settings are running.
    pub other_settings: bool,
}

#[derive(FromRow)]
struct Row {
    epoch: i64,
    incarnation: Option<Uuid>,
    replication_ids: Option<String>,
    may_activate: bool,
    commits: Vec<String>,
    other_settings: bool,
    identity: Option<String>,
    genuine: Option<bool>,
}

impl EpochTable {
    /// The row in the pool's database. One connection polls, another one changes the row.
    pub(super) fn new(pool: PgPool, trusted: Arc<TrustedServer>, settings: SettingsKey) -> Self {
        Self {
            pool,
            trusted,
            settings,
        }
    }

    /// The connections to the row.
    pub fn stats(&self) -> PoolStats {
        PoolStats::of("epoch", &self.pool)
    }

    /// Reads the row. Begins a new epoch first if the row was written by another database. From then on
    /// all pools trust connections to the server that was read from, and to no other one.
    ///
    /// Fails, as all methods do, with [`StoreError::Unavailable`]: each statement has a second, after the
    /// wait for a connection.
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
                    .map(|(incarnation, record)| server(incarnation, &record)),
                may_activate: row.may_activate,
            },
            commits: row.commits,
            other_settings: row.other_settings,
        })
    }

    async fn select(&self) -> StoreResult<Row> {
        // A clock that was set back must not prolong a suspension.
        let sql = format!(
            "SELECT epoch, incarnation, replication_ids, incarnation IS NULL
                    AND clock_timestamp() NOT BETWEEN changed_at AND changed_at + pause
                    AND clock_timestamp()
                        NOT BETWEEN away_at AND away_at + interval '{REACHABLE_FOR}'
                    AS may_activate,
                commits, other_settings,
                this.identity,
                cache_epoch.identity = this.identity AND cache_epoch.xmin = written_by::xid AS genuine
             FROM cache_epoch, (SELECT database_identity() AS identity) AS this, (
                 SELECT
                     coalesce(array_agg(virtualtransaction) FILTER (
                         WHERE classid = {} AND objid = {} AND objsubid = 1), '{{}}') AS commits,
                     count(*) FILTER (
                         WHERE classid = {SETTINGS_LOCK} AND objid <> {} AND objsubid = 2) > 0
                         AS other_settings
                 FROM pg_locks
                 WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted
                     AND database = (SELECT oid FROM pg_database
                         WHERE datname = current_database())
             ) AS locks",
            LOCK >> 32,
            LOCK & 0xffff_ffff,
            self.settings.0,
        );
        let mut connection = self.pool.acquire().await.map_err(StoreError::unavailable)?;
        let row = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&mut *connection);
        match timeout(TIMEOUT, row).await {
            Ok(row) => {
                let mut row: Row = row.map_err(StoreError::unavailable)?;
                if is_enabled(Failpoint::TrustAnyDatabase) {
                    row.genuine = Some(true);
                }
                Ok(row)
            }
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
    pub async fn report_unreachable(&self) -> StoreResult<()> {
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
    /// server must already have the scripts with its incarnation.
    pub async fn activate(&self, Epoch(from): Epoch, server: &CacheServer) -> StoreResult<()> {
        let CacheServer {
            incarnation,
            settings,
            replication_ids,
        } = server;
        // Redis's replication ids are hexadecimal. They become part of a statement, so other characters
        // are dropped.
        let replication_ids: String = replication_ids
            .chars()
            .filter(|char| char.is_ascii_alphanumeric() || *char == ',')
            .collect();
        self.run(format!(
            "SELECT pg_advisory_xact_lock({LOCK});
             UPDATE cache_epoch SET
                 epoch = epoch + 1, state = 'active',
                 incarnation = '{incarnation}', replication_ids = '{settings:016x},{replication_ids}',
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

/// The server of a row. `record` has the digest of the settings before the replication ids.
fn server(incarnation: Uuid, record: &str) -> CacheServer {
    let (settings, replication_ids) = record.split_once(',').unwrap_or((record, ""));
    CacheServer {
        incarnation,
        settings: u64::from_str_radix(settings, 16).unwrap_or_default(),
        replication_ids: replication_ids.to_owned(),
    }
}
