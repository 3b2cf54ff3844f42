//! PostgreSQL 14 or later: many processes, one database.
//!
//! **A write dies in time.** Whoever waits for one that doesn't report back relies on it. Three
//! things see to it, because each has a gap that another closes:
//!
//! - The commit's own message first compares the server's clock with the transaction's beginning,
//!   and refuses after [`MAX_WRITE`]. It catches a process that was suspended, a message that was
//!   long under way, and a write of many statements.
//! - `statement_timeout` and `idle_in_transaction_session_timeout` end a write that stands still,
//!   and give back its locks. Their timers don't follow the server's clock, so they hold even
//!   should it be set back in the middle of a write.
//! - `client_connection_check_interval` ends what a client no longer waits for, which is how a read
//!   whose future was dropped ends as well: its connection is closed.
//!
//! What remains is a server that stands still between the comparison and the commit next to it in
//! the same message, with no wait for the client between the two, for longer than the margin.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, Postgres,
    migrate::Migrator,
    postgres::{PgArguments, PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use super::{
    EpochTable, MAX_WRITE, Migrate, OpenError, STATEMENT_TIMEOUT, Store, StoreError, epoch, schema,
    sql::{Dialect, SqlStore, Value, bind},
};
use crate::model::Epoch;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a connection is waited for, from the pool or from the server. Short: callers of a
/// database that is away should hear of it while they still wait.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long after its last use a connection is taken to be alive, which saves busy callers the round
/// trip of asking. Shorter than a server takes to start again.
const FRESH: Duration = Duration::from_millis(100);

/// The connections for the cache's epoch: one to read it, one to change it.
const EPOCH_CONNECTIONS: u32 = 2;

/// How long another write's lock is waited for: longer than the server takes to see a deadlock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a write may stand still between two statements, while its locks are held.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the server looks whether somebody still waits for a statement's end.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How long the first connection is waited for, at start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long all migrations may take, and the wait for another process's.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(10);

/// How to use a database.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The most connections that are open at once, 1 or more.
    pub max_connections: u32,
    /// What to do about its schema.
    pub migrate: Migrate,
}

/// Migrates the database of a `postgres://` URL, alone: others wait meanwhile.
pub async fn migrate(url: &str) -> Result<(), OpenError> {
    ensure_schema(&parse(url)?, Migrate::Auto).await
}

/// Opens the database of a `postgres://` URL, which must exist and have this release's schema,
/// unless the options let it be migrated. The URL takes what libpq's take, such as `sslmode` and
/// `sslrootcert`.
pub async fn open(url: &str, options: Options) -> Result<Arc<dyn Store>, OpenError> {
    let connect = parse(url)?;
    ensure_schema(&connect, options.migrate).await?;
    let connect = bounded(connect);
    let pool = |max_connections| {
        PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, idle| {
                Box::pin(async move {
                    if idle.idle_for > FRESH {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(connect.clone())
    };
    let shared = pool(options.max_connections);
    Ok(Arc::new(SqlStore {
        readers: shared.clone(),
        writers: shared,
        prober: pool(1),
        lock: None,
    }))
}

/// The cache's epoch in a database that has this release's schema. It has connections of its own,
/// so that it never waits for calls.
pub fn epochs(url: &str) -> Result<EpochTable, OpenError> {
    let pool = PgPoolOptions::new()
        .max_connections(EPOCH_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(bounded(parse(url)?));
    Ok(EpochTable::new(pool))
}

/// Sets bounds that the server keeps by itself.
fn bounded(connect: PgConnectOptions) -> PgConnectOptions {
    connect
        // Errors are logged where a call ends, and the text of statements nowhere.
        .disable_statement_logging()
        .options([
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
            // Commits are guarded by statements that must see what was committed before them.
            ("default_transaction_isolation", "read committed".to_owned()),
        ])
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

/// As the settings take it: without a unit it is milliseconds.
fn millis(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// Works on a connection of its own, because the pool's have time-outs that a migration, or the
/// wait for another one, may well exceed.
async fn ensure_schema(connect: &PgConnectOptions, migrate: Migrate) -> Result<(), OpenError> {
    let database = format!(
        "postgres://{}:{}/{}",
        connect.get_host(),
        connect.get_port(),
        connect.get_database().unwrap_or_default()
    );
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| OpenError::Refused {
        database: database.clone(),
        source,
    };
    let connect = connect
        .clone()
        .options([("statement_timeout", millis(MIGRATION_TIMEOUT))]);
    let mut connection: PgConnection = timeout(CONNECT_TIMEOUT, connect.connect())
        .await
        .map_err(|elapsed| refused(elapsed.into()))?
        .map_err(|error| refused(error.into()))?;
    let ensured = schema::ensure(&mut connection, &MIGRATIONS, migrate, &database, |error| {
        refused(error.into())
    });
    timeout(MIGRATION_TIMEOUT, ensured)
        .await
        .map_err(|elapsed| refused(elapsed.into()))??;
    // All is done: how the connection ends doesn't matter any more.
    let _ = connection.close().await;
    Ok(())
}

// SQLSTATEs: https://www.postgresql.org/docs/current/errcodes-appendix.html
const CONNECTION_EXCEPTION: &str = "08";
const INSUFFICIENT_RESOURCES: &str = "53";
/// Also a statement that took too long.
const OPERATOR_INTERVENTION: &str = "57";
const IDLE_IN_TRANSACTION: &str = "25P03";
/// After a fail-over the address may lead to a standby for a while.
const READ_ONLY: &str = "25006";
const SERIALIZATION_FAILURE: &str = "40001";
const OUTCOME_UNKNOWN: &str = "40003";
const DEADLOCK: &str = "40P01";
const DISK_FULL: &str = "53100";
const LOCK_NOT_AVAILABLE: &str = "55P03";

#[async_trait]
impl Dialect for Postgres {
    /// Row locks make writes wait for each other; a database whose default is stricter would only
    /// make them fail instead.
    const BEGIN: &'static str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    const FOR_UPDATE: &'static str = " FOR UPDATE";

    type Interrupt = ();

    /// In one message, so that nothing the client does, or fails to do, comes between the two.
    fn commit(epoch: Option<Epoch>) -> String {
        let epoch = epoch.map_or("NULL".to_owned(), |Epoch(epoch)| epoch.to_string());
        let max_age = MAX_WRITE.as_millis();
        format!(
            "SELECT check_write({}, {epoch}, {max_age}); COMMIT",
            epoch::LOCK
        )
    }

    /// Closing the connection is enough.
    async fn interruptible(_: &mut PgConnection) -> sqlx::Result<()> {
        Ok(())
    }

    fn map_error(error: sqlx::Error) -> StoreError {
        let state = sqlstate(&error);
        match state.as_deref() {
            Some(DISK_FULL) => StoreError::Full(Arc::new(error)),
            Some(SERIALIZATION_FAILURE | DEADLOCK) => StoreError::Conflict(Arc::new(error)),
            Some(LOCK_NOT_AVAILABLE | IDLE_IN_TRANSACTION | READ_ONLY) => {
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
                // A proxy whose server is gone ends the connection in the middle of a message.
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

    /// A server that answers with an error hasn't committed. A proxy in front of it may not know.
    fn map_commit_error(error: sqlx::Error) -> StoreError {
        match sqlstate(&error).as_deref() {
            Some(state) if state != OUTCOME_UNKNOWN && !state.starts_with(CONNECTION_EXCEPTION) => {
                Self::map_error(error)
            }
            _ => StoreError::OutcomeUnknown(Arc::new(error)),
        }
    }

    fn arguments(values: Vec<Value>) -> PgArguments {
        bind::<Self>(values)
    }
}

/// The SQLSTATE of an error of the server's.
fn sqlstate(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
