//! PostgreSQL 14 or later: many processes, one database.
//!
//! **Every write ends within a bound.** A replica that waits for a write of another one relies on
//! it. Three mechanisms enforce the bound, because each has a gap that another one closes:
//!
//! - The message with the commit compares the server's clock with the start of the transaction first,
//!   and fails after [`MAX_WRITE`]. This stops a process that was suspended, a message that was
//!   delayed, and a write of many statements.
//! - `statement_timeout` and `idle_in_transaction_session_timeout` end a write that makes no
//!   progress, and release its locks. Their timers don't depend on the server's clock, so they hold
//!   even if it is set back during a write.
//! - `client_connection_check_interval` ends statements whose client has disconnected. This is also
//!   how a read ends whose future was dropped: its connection is closed.
//!
//! The remaining gap is a server that stops between the comparison and the commit, which are in the
//! same message with no wait for the client between them, for longer than the margin.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use super::{
    EpochTable, MAX_WRITE, Migrate, OpenError, STATEMENT_TIMEOUT, SchemaStatus, Store, StoreError,
    epoch::{self, SettingsKey},
    identity::{TrustedServer, identify},
    schema, session,
    sql::{Dialect, SqlStore, refold_names},
    stats::Operations,
};
use crate::model::Epoch;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// Timeout for a connection from the pool or from the server. Short, so that calls to an
/// unavailable database fail while their callers still wait.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that was used within this time is taken to be alive, which saves busy callers a round
/// trip. Shorter than the restart of a server.
const FRESH: Duration = Duration::from_millis(100);

/// Connections for the cache's epoch: one to read it, one to change it.
const EPOCH_CONNECTIONS: u32 = 2;

/// Timeout for a lock of another write. Longer than the server's `deadlock_timeout`.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for a write between two of its statements, while it holds its locks.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the server checks, during a statement, whether its client is still connected.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Timeout for the connection that inspects or migrates the schema.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for all migrations, including the wait for those of another process.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(10);

/// Settings of a database.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The maximum number of open connections, at least 1.
    pub max_connections: u32,
    /// Whether to migrate the schema.
    pub migrate: Migrate,
}

/// Migrates the database of a `postgres://` URL. Concurrent migrations wait.
pub async fn migrate(url: &str) -> Result<(), OpenError> {
    ensure_schema(&parse(url)?, Migrate::Auto).await
}

/// Returns which migrations were applied to the database of a `postgres://` URL. Changes nothing.
pub async fn schema_status(url: &str) -> Result<SchemaStatus, OpenError> {
    let connect = parse(url)?;
    let database = name(&connect);
    let mut connection = connect_to_schema(&connect, true).await?;
    let status = schema::inspect::<Postgres>(&mut connection, &MIGRATIONS, &database);
    let status = timeout(STATEMENT_TIMEOUT, status)
        .await
        .map_err(|elapsed| refused(&database, elapsed))?
        .map_err(|error| refused(&database, error))?;
    // It has been read, whether or not the connection closes cleanly.
    let _ = connection.close().await;
    Ok(status)
}

/// A database of a `postgres://` URL, which takes libpq's parameters, such as `sslmode` and
/// `sslrootcert`.
#[derive(Debug)]
pub struct Database {
    connect: PgConnectOptions,
    trusted: Arc<TrustedServer>,
}

impl Database {
    /// Parses a URL.
    pub fn new(url: &str) -> Result<Self, OpenError> {
        Ok(Self {
            connect: parse(url)?,
            trusted: Arc::default(),
        })
    }

    /// Opens the store. The database must exist, and have this release's schema unless the options
    /// allow migrations.
    pub async fn open(&self, options: Options) -> Result<Arc<dyn Store>, OpenError> {
        // First: a database that can't be used must not be migrated.
        let connect = bounded(self.connect.clone());
        session::check(&connect, &settings(), &name(&connect)).await?;
        ensure_schema(&self.connect, options.migrate).await?;
        let shared = self.pool(options.max_connections);
        Ok(Arc::new(SqlStore {
            read_pool: shared.clone(),
            write_pool: shared,
            ping_pool: self.pool(1),
            operations: Operations::of("postgresql"),
            file: None,
            wal: None,
        }))
    }

    /// Opens the cache's epoch in a database that has this release's schema, over connections of its
    /// own, so that it never waits for calls. `settings` is a digest of those that replicas must share.
    pub fn epochs(&self, settings: u64) -> EpochTable {
        let settings = SettingsKey::new(settings);
        // They may lead to a server that isn't trusted yet: reading the row decides.
        let pool = PgPoolOptions::new()
            .max_connections(EPOCH_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    identify(connection).await?;
                    settings.lock(connection).await
                })
            })
            .connect_lazy_with(bounded(self.connect.clone()));
        EpochTable::new(pool, Arc::clone(&self.trusted), settings)
    }

    /// A pool of connections to the trusted server.
    fn pool(&self, max_connections: u32) -> PgPool {
        let (on_connect, on_acquire) = (Arc::clone(&self.trusted), Arc::clone(&self.trusted));
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let trusted = Arc::clone(&on_connect);
                Box::pin(async move { trusted.check(connection).await })
            })
            .before_acquire(move |connection, meta| {
                let covered = on_acquire.covers(meta.age);
                Box::pin(async move {
                    if covered && meta.idle_for > FRESH {
                        connection.ping().await?;
                    }
                    Ok(covered)
                })
            })
            .connect_lazy_with(bounded(self.connect.clone()))
    }
}

/// Opens the store of a `postgres://` URL: [`Database::open`].
pub async fn open(url: &str, options: Options) -> Result<Arc<dyn Store>, OpenError> {
    Database::new(url)?.open(options).await
}

/// Adds the settings that the service relies on.
fn bounded(connect: PgConnectOptions) -> PgConnectOptions {
    connect
        // Errors are logged once, where a call ends; statements aren't logged.
        .disable_statement_logging()
        .options(settings())
}

/// The timeouts that the server enforces, and the settings that statements rely on, whatever those of
/// the database and the role are.
fn settings() -> [(&'static str, String); 7] {
    [
        ("statement_timeout", millis(STATEMENT_TIMEOUT)),
        ("lock_timeout", millis(LOCK_TIMEOUT)),
        (
            "idle_in_transaction_session_timeout",
            millis(IDLE_IN_TRANSACTION_TIMEOUT),
        ),
        (
            "client_connection_check_interval",
            millis(CLIENT_CHECK_INTERVAL),
        ),
        // The check before a commit must see all earlier commits.
        ("default_transaction_isolation", "read committed".to_owned()),
        ("default_transaction_read_only", "off".to_owned()),
        ("standard_conforming_strings", "on".to_owned()),
    ]
}

fn parse(url: &str) -> Result<PgConnectOptions, OpenError> {
    let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| {
        OpenError::Url(match error {
            sqlx::Error::Configuration(source) => source,
            error => error.into(),
        })
    })?;
    Ok(match options.get_application_name() {
        Some(_) => options,
        None => options.application_name(env!("CARGO_PKG_NAME")),
    })
}

/// A duration as the server's settings take it: milliseconds, without a unit.
fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// The server and the database that a URL leads to, for messages.
fn name(connect: &PgConnectOptions) -> String {
    format!(
        "postgres://{}:{}/{}",
        connect.get_host(),
        connect.get_port(),
        connect.get_database().unwrap_or_default()
    )
}

/// The error of a statement or connection.
pub(super) fn refused(
    database: &str,
    source: impl Into<Box<dyn StdError + Send + Sync>>,
) -> OpenError {
    OpenError::Refused {
        database: database.to_owned(),
        source: source.into(),
    }
}

/// Connects to inspect or migrate the schema, apart from the pool: a migration may exceed the timeouts
/// of the pool's connections.
async fn connect_to_schema(
    connect: &PgConnectOptions,
    read_only: bool,
) -> Result<PgConnection, OpenError> {
    let database = name(connect);
    let read_only = if read_only { "on" } else { "off" };
    let connect = connect.clone().options([
        ("statement_timeout", millis(MIGRATION_TIMEOUT)),
        ("default_transaction_read_only", read_only.to_owned()),
        ("standard_conforming_strings", "on".to_owned()),
    ]);
    let mut connection: PgConnection = timeout(CONNECT_TIMEOUT, connect.connect())
        .await
        .map_err(|elapsed| refused(&database, elapsed))?
        .map_err(|error| refused(&database, error))?;
    let encoding: String = sqlx::query_scalar("SHOW server_encoding")
        .fetch_one(&mut connection)
        .await
        .map_err(|error| refused(&database, error))?;
    if encoding != "UTF8" {
        return Err(OpenError::Encoding { database, encoding });
    }
    Ok(connection)
}

async fn ensure_schema(connect: &PgConnectOptions, migrate: Migrate) -> Result<(), OpenError> {
    let database = &name(connect);
    let mut connection = connect_to_schema(connect, false).await?;
    let ensure =
        schema::ensure::<Postgres>(&mut connection, &MIGRATIONS, migrate, database, |error| {
            refused(database, error)
        });
    timeout(MIGRATION_TIMEOUT, ensure)
        .await
        .map_err(|elapsed| refused(database, elapsed))??;
    if migrate == Migrate::Auto {
        timeout(MIGRATION_TIMEOUT, refold_names::<Postgres>(&mut connection))
            .await
            .map_err(|elapsed| refused(database, elapsed))?
            .map_err(|error| refused(database, error))?;
    }
    // The schema is there, whether or not the connection closes cleanly.
    let _ = connection.close().await;
    Ok(())
}

// SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
const CONNECTION_EXCEPTION: &str = "08";
const FEATURE_NOT_SUPPORTED: &str = "0A000";
const INSUFFICIENT_RESOURCES: &str = "53";
/// Includes statements that were cancelled by a timeout.
const OPERATOR_INTERVENTION: &str = "57";
const IDLE_IN_TRANSACTION: &str = "25P03";
/// After a failover the address may lead to a standby for a while.
const READ_ONLY: &str = "25006";
/// A database that is dropped and created again, to restore a dump, doesn't exist for a while.
const NO_SUCH_DATABASE: &str = "3D000";
const SERIALIZATION_FAILURE: &str = "40001";
const OUTCOME_UNKNOWN: &str = "40003";
const DEADLOCK: &str = "40P01";
const DISK_FULL: &str = "53100";
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The classes of errors that end a transaction without a commit: violated constraints, invalid
/// transaction states, rollbacks, unknown names, insufficient resources, states of objects, operator
/// intervention, and errors that functions raise.
const ROLLED_BACK: [&str; 8] = [
    "23",
    "25",
    "40",
    "42",
    INSUFFICIENT_RESOURCES,
    "55",
    OPERATOR_INTERVENTION,
    "P0",
];

#[async_trait]
impl Dialect for Postgres {
    /// Row locks make writes wait for each other; a stricter isolation level would make them fail
    /// instead.
    const BEGIN: &'static str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    const BEGIN_SNAPSHOT: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    const FOR_UPDATE: &'static str = " FOR UPDATE";
    const HAS_STATISTICS: bool = true;
    const POSITION: &'static str = "strpos";

    const SURVIVES_INTERRUPT: bool = false;

    type Interrupt = ();

    /// The time of the statement, which an index scan can compare with.
    const NOW: &'static str = "(extract(epoch FROM statement_timestamp()) * 1000000)::bigint";

    const KEEPS_NEGATIVE_ZERO: bool = true;

    /// The commit may still become visible later, when it waits for a standby or a disk: see
    /// [`EpochRow::commits`](super::EpochRow::commits).
    const COMMIT_TIMEOUT: Option<Duration> = Some(STATEMENT_TIMEOUT);

    /// One message, so that the client can't delay the commit after the check.
    fn commit(epoch: Option<Epoch>) -> String {
        let epoch = epoch.map_or("NULL".to_owned(), |Epoch(epoch)| epoch.to_string());
        let max_age = MAX_WRITE.as_millis();
        format!(
            "SELECT check_commit({}, {epoch}, {max_age}); COMMIT",
            epoch::LOCK
        )
    }

    /// Nothing to do: the server ends the statements of a closed connection.
    async fn interruptible(_: &mut PgConnection) -> sqlx::Result<()> {
        Ok(())
    }

    fn map_error(error: sqlx::Error) -> StoreError {
        let state = sqlstate(&error);
        match state.as_deref() {
            Some(DISK_FULL) => StoreError::Full(Arc::new(error)),
            Some(SERIALIZATION_FAILURE | DEADLOCK) => StoreError::Conflict(Arc::new(error)),
            Some(LOCK_NOT_AVAILABLE | IDLE_IN_TRANSACTION | READ_ONLY | NO_SUCH_DATABASE) => {
                StoreError::Unavailable(Arc::new(error))
            }
            Some(state) => match state.get(..2) {
                Some(CONNECTION_EXCEPTION | INSUFFICIENT_RESOURCES | OPERATOR_INTERVENTION) => {
                    StoreError::Unavailable(Arc::new(error))
                }
                _ => StoreError::Unexpected(Arc::new(error)),
            },
            None => match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                // A proxy that loses its server ends the connection in the middle of a message.
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed => StoreError::Unavailable(Arc::new(error)),
                sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                    StoreError::corrupt(error)
                }
                error => StoreError::Unexpected(Arc::new(error)),
            },
        }
    }

    fn is_stale_plan(error: &sqlx::Error) -> bool {
        // "cached plan must not change result type"
        sqlstate(error).as_deref() == Some(FEATURE_NOT_SUPPORTED)
            && error.to_string().contains("cached plan")
    }

    /// A server that rolls back says so by one of these states. A proxy that has lost its server reports
    /// others without knowing the outcome, such as `08P01`, `58000` or `XX000`.
    fn map_commit_error(error: sqlx::Error) -> StoreError {
        let state = sqlstate(&error).unwrap_or_default();
        let class = state.get(..2).unwrap_or_default();
        if ROLLED_BACK.contains(&class) && state != OUTCOME_UNKNOWN {
            Self::map_error(error)
        } else {
            StoreError::OutcomeUnknown(Arc::new(error))
        }
    }
}

/// The SQLSTATE of an error from the server.
fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
