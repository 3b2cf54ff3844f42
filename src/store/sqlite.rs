//! SQLite: one process, one file, in WAL mode.

use std::{
    fs::{File, TryLockError},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    Sqlite, SqliteConnection,
    migrate::Migrator,
    sqlite::{
        SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions,
        SqliteSynchronous,
    },
};

use super::{
    Migrate, OpenError, Store, WAIT_SECS, schema,
    sql::{Dialect, SqlStore, Value, bind},
};
use crate::error::Error;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

const READERS: u32 = 4;

/// How many instructions of SQLite's virtual machine pass before it looks whether it is still
/// wanted: some microseconds.
const INTERRUPT_EVERY: i32 = 4_096;

/// Migrates a database file, which is made if it is missing, and closes it again.
pub async fn migrate(path: &Path) -> Result<(), OpenError> {
    open(path, Migrate::Auto).await?.close().await;
    Ok(())
}

/// Opens a database file. While it is open no other `location-service` opens it. With
/// [`Migrate::Auto`] the file is made if it is missing.
pub async fn open(path: &Path, migrate: Migrate) -> Result<Arc<dyn Store>, OpenError> {
    let file = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    // flock(2) and SQLite's own locks don't meet; but closing any descriptor of the file would
    // drop SQLite's, so the store keeps this one as long as its pools.
    let lock = File::options()
        .read(true)
        .write(true)
        .create(migrate == Migrate::Auto)
        .truncate(false)
        .open(path)
        .map_err(file)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => return Err(file(source)),
    }
    let refused = |error: sqlx::Error| match code(&error) {
        Some(NOTADB) => OpenError::NotADatabase(path.to_owned()),
        _ => OpenError::Refused {
            database: path.display().to_string(),
            source: error.into(),
        },
    };
    let wait = Duration::from_secs(WAIT_SECS);
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // An acknowledged write survives a power cut, not only a crash.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(wait);
    let pool = || SqlitePoolOptions::new().acquire_timeout(wait);
    let writers = pool()
        .max_connections(1)
        .connect_with(options.clone())
        .await
        .map_err(refused)?;
    let mut connection = writers.acquire().await.map_err(refused)?;
    let database = path.display().to_string();
    schema::ensure(&mut *connection, &MIGRATIONS, migrate, &database, refused).await?;
    drop(connection);
    let readers = pool()
        .max_connections(READERS)
        .connect_with(options.read_only(true))
        .await
        .map_err(refused)?;
    Ok(Arc::new(SqlStore {
        readers,
        writers,
        lock: Some(lock),
    }))
}

// SQLite's result codes: https://www.sqlite.org/rescode.html
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const INTERRUPT: i32 = 9;
const IOERR: i32 = 10;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;

/// The primary result code of an error of SQLite's.
fn code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    Some(code.parse::<i32>().ok()? & 0xFF)
}

#[async_trait]
impl Dialect for Sqlite {
    /// Takes the write lock at once: a transaction that asks for it later fails whatever the
    /// busy time-out.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    const FOR_UPDATE: &'static str = "";

    type Interrupt = Interrupt;

    fn commit() -> String {
        "COMMIT".to_owned()
    }

    async fn interruptible(connection: &mut SqliteConnection) -> sqlx::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let wanted = Arc::clone(&interrupt.0);
        connection
            .lock_handle()
            .await?
            .set_progress_handler(INTERRUPT_EVERY, move || !wanted.load(Ordering::Relaxed));
        Ok(interrupt)
    }

    fn explain(error: sqlx::Error) -> Error {
        match code(&error) {
            Some(FULL) => Error::StorageFull(Arc::new(error)),
            Some(BUSY | LOCKED | INTERRUPT | IOERR | CANTOPEN) => {
                Error::DatabaseUnavailable(Arc::new(error))
            }
            _ => match error {
                sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => {
                    Error::DatabaseUnavailable(Arc::new(error))
                }
                error => Error::internal(error),
            },
        }
    }

    /// A commit that fails for want of room or of a lock has written nothing.
    fn explain_commit(error: sqlx::Error) -> Error {
        match code(&error) {
            Some(FULL | BUSY) => Self::explain(error),
            _ => Error::OutcomeUnknown(Arc::new(error)),
        }
    }

    fn arguments(values: Vec<Value>) -> SqliteArguments {
        bind::<Self>(values)
    }
}

/// Ends the query of its connection when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
