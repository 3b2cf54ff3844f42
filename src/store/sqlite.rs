//! SQLite: one process, one file, in WAL mode.

use std::{
    fs::{File, Metadata, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, Sqlite, SqliteConnection,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Migrate, OpenError, SchemaStatus, Store, StoreError, WAIT_SECS, schema,
    sql::{Dialect, SqlStore, refold_names},
    stats::Operations,
    wal::{self, Wal},
};
use crate::{model::Epoch, threads::lower_priority};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Connections that read at the same time. A caller's share, a quarter, still uses two cores.
pub const READERS: u32 = 8;

/// Connections that write at the same time: SQLite has one write lock.
const WRITERS: u32 = 1;

/// Writes that are in progress at the same time: one in a transaction, and one that has committed and
/// reopens its tags, or waits for the connection.
pub const WRITES: u32 = 2;

/// The page cache of the write connection, in KiB. A large batch changes some thousand pages in all
/// indexes, which would otherwise go to the log and back within the transaction.
const WRITER_CACHE_KIB: u32 = 32 * 1024;

/// Rows that a connection's thread reads ahead: a page of the default size and the row after it, so that
/// the thread doesn't wait for its reader.
const ROWS_AHEAD: usize = 64;

/// The number of virtual machine instructions between two checks for an interrupt: some
/// microseconds.
const INTERRUPT_EVERY: i32 = 4_096;

/// Migrates a database file. Creates it if it doesn't exist.
pub async fn migrate(path: &Path) -> Result<(), OpenError> {
    open(path, Migrate::Auto).await?.close().await;
    Ok(())
}

/// Returns which migrations were applied to a database file: none if it doesn't exist. Works while a
/// service uses it. Creates no file, except the index of a write-ahead log that was copied without one.
pub async fn schema_status(path: &Path) -> Result<SchemaStatus, OpenError> {
    let database = path.display().to_string();
    let size = |path: &Path| match path.metadata() {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(source) => Err(OpenError::File {
            path: path.to_owned(),
            source,
        }),
    };
    if size(path)? == 0 {
        return Ok(SchemaStatus::new(&database, &MIGRATIONS, Vec::new()));
    }
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        // Otherwise a reader creates the log if there is none, and can be in the way of writers.
        .immutable(size(Path::new(&log))? == 0)
        .busy_timeout(Duration::from_secs(WAIT_SECS))
        .disable_statement_logging()
        .connect()
        .await
        .map_err(|error| open_error(path, error))?;
    let status = schema::inspect::<Sqlite>(&mut connection, &MIGRATIONS, &database).await;
    let status = status.map_err(|error| open_error(path, error))?;
    // It has been read, whether or not the connection closes cleanly.
    let _ = connection.close().await;
    Ok(status)
}

fn open_error(path: &Path, error: sqlx::Error) -> OpenError {
    match code(&error) {
        Some(NOTADB) => OpenError::NotADatabase(path.to_owned()),
        _ => OpenError::Refused {
            database: path.display().to_string(),
            source: error.into(),
        },
    }
}

/// Opens a database file, and locks it against other `location-service` processes. Creates it with
/// [`Migrate::Auto`] if it doesn't exist.
pub async fn open(path: &Path, migrate: Migrate) -> Result<Arc<dyn Store>, OpenError> {
    let file = Arc::new(OpenFile::lock(path, migrate)?);
    let refused = |error| open_error(path, error);
    let wait = Duration::from_secs(WAIT_SECS);
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .pragma("journal_size_limit", wal::LONG.to_string())
        // Acknowledged writes survive a loss of power.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(wait)
        // Errors are logged once, where a call ends; statements aren't logged.
        .disable_statement_logging();
    // A connection to another file must not be used, not even once the path leads back. The pools may
    // outlive the store for a moment, and the file's lock mustn't.
    let pool = |reads: bool| {
        let opened = Arc::downgrade(&file);
        SqlitePoolOptions::new()
            .acquire_timeout(wait)
            .after_connect(move |connection, _| {
                let checked = OpenFile::check_if_open(&opened);
                Box::pin(async move {
                    checked?;
                    if reads {
                        lower_thread_priority(connection).await?;
                    }
                    Ok(())
                })
            })
    };
    let write_pool = pool(false)
        .max_connections(WRITERS)
        .connect_with(
            options
                .clone()
                .pragma("cache_size", format!("-{WRITER_CACHE_KIB}"))
                .pragma("wal_autocheckpoint", wal::CHECKPOINT_PAGES.to_string())
                // For the journals of statements.
                .pragma("temp_store", "MEMORY"),
        )
        .await
        .map_err(refused)?;
    let mut connection = write_pool.acquire().await.map_err(refused)?;
    let database = path.display().to_string();
    schema::ensure::<Sqlite>(&mut connection, &MIGRATIONS, migrate, &database, refused).await?;
    if migrate == Migrate::Auto {
        refold_names::<Sqlite>(&mut connection)
            .await
            .map_err(refused)?;
    }
    drop(connection);
    let options = options.read_only(true).row_buffer_size(ROWS_AHEAD);
    let read_pool = pool(true)
        .max_connections(READERS)
        .connect_with(options.clone())
        .await
        .map_err(refused)?;
    let wal = Wal::new(&file, write_pool.clone());
    Ok(Arc::new(SqlStore {
        read_pool,
        write_pool,
        ping_pool: pool(false).max_connections(1).connect_lazy_with(options),
        operations: Operations::of("sqlite"),
        file: Some(file),
        wal: Some(wal),
    }))
}

/// Lowers the priority of a connection's thread. The writing thread keeps its priority, because other
/// writes wait for it.
async fn lower_thread_priority(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let on_thread = || {
        lower_priority();
        true
    };
    connection
        .lock_handle()
        .await?
        .set_progress_handler(1, on_thread);
    connection.execute("SELECT 1").await?;
    Ok(())
}

/// The database file, which is open and locked.
#[derive(Debug)]
pub(super) struct OpenFile {
    // flock(2) doesn't interfere with SQLite's own locks. Closing any descriptor of the file would
    // release those, though, so this one stays open as long as the store.
    file: File,
    path: PathBuf,
    lost: AtomicBool,
}

impl OpenFile {
    fn lock(path: &Path, migrate: Migrate) -> Result<Self, OpenError> {
        let failed = |source| OpenError::File {
            path: path.to_owned(),
            source,
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create(migrate == Migrate::Auto)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                file,
                path: path.to_owned(),
                lost: AtomicBool::new(false),
            }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// The path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the path still leads to the file that is open. After the file was renamed, replaced or
    /// deleted, writes to it would be lost, and new connections would lead elsewhere.
    pub(super) fn check(&self) -> io::Result<()> {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let there = self.path.metadata().map(identity);
        let open = self.file.metadata().map(identity);
        if matches!((&there, &open), (Ok(there), Ok(open)) if there == open) {
            self.lost.store(false, Ordering::Relaxed);
            return Ok(());
        }
        if !self.lost.swap(true, Ordering::Relaxed) {
            tracing::error!(
                path = %self.path.display(),
                "the database file was renamed, replaced or deleted while it is open: refusing \
                 reads and writes of it until it is back, or the service is restarted"
            );
        }
        Err(io::Error::other(
            "the database file was renamed, replaced or deleted while it is open",
        ))
    }

    /// Checks the file of a store that may have been dropped.
    pub(super) fn check_if_open(file: &Weak<Self>) -> io::Result<()> {
        let dropped = || io::Error::other("the store of the database file was dropped");
        file.upgrade().ok_or_else(dropped)?.check()
    }

    pub(super) fn unlock(&self) {
        // If this fails, the lock ends when the file is closed.
        let _ = self.file.unlock();
    }
}

// SQLite's result codes: https://www.sqlite.org/rescode.html
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const INTERRUPT: i32 = 9;
const IOERR: i32 = 10;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const NOTADB: i32 = 26;

/// The primary result code of an error from SQLite.
fn code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    Some(code.parse::<i32>().ok()? & 0xFF)
}

#[async_trait]
impl Dialect for Sqlite {
    /// Takes the write lock at once: a transaction that asks for it later fails regardless of the
    /// busy timeout.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    const BEGIN_SNAPSHOT: &'static str = "BEGIN";
    const FOR_UPDATE: &'static str = "";
    const HAS_STATISTICS: bool = false;
    const POSITION: &'static str = "instr";

    const NOW: &'static str = "CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)";

    /// A double without decimals is stored as an integer.
    const KEEPS_NEGATIVE_ZERO: bool = false;

    /// No commit is visible before its outcome is known, so the store waits for the outcome.
    const COMMIT_TIMEOUT: Option<Duration> = None;

    const SURVIVES_INTERRUPT: bool = true;

    type Interrupt = Interrupt;

    fn commit(_: Option<Epoch>) -> String {
        "COMMIT".to_owned()
    }

    async fn interruptible(connection: &mut SqliteConnection) -> sqlx::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let interrupted = Arc::clone(&interrupt.0);
        connection
            .lock_handle()
            .await?
            .set_progress_handler(INTERRUPT_EVERY, move || {
                !interrupted.load(Ordering::Relaxed)
            });
        Ok(interrupt)
    }

    /// SQLite prepares statements again by itself.
    fn is_stale_plan(_: &sqlx::Error) -> bool {
        false
    }

    fn map_error(error: sqlx::Error) -> StoreError {
        match code(&error) {
            Some(FULL) => StoreError::Full(Arc::new(error)),
            Some(BUSY | LOCKED | INTERRUPT | IOERR | CANTOPEN) => {
                StoreError::Unavailable(Arc::new(error))
            }
            _ => match error {
                // Opening a file takes no time, so the connections are in use.
                sqlx::Error::PoolTimedOut => StoreError::Overloaded {
                    limit: "writes at once",
                    value: WRITERS as usize,
                },
                sqlx::Error::PoolClosed | sqlx::Error::Io(_) => {
                    StoreError::Unavailable(Arc::new(error))
                }
                sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                    StoreError::corrupt(error)
                }
                error => StoreError::Unexpected(Arc::new(error)),
            },
        }
    }

    /// A commit that fails because the disk is full or the database is locked has written nothing.
    fn map_commit_error(error: sqlx::Error) -> StoreError {
        match code(&error) {
            Some(FULL | BUSY) => Self::map_error(error),
            _ => StoreError::OutcomeUnknown(Arc::new(error)),
        }
    }
}

/// Interrupts the query of its connection when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, QueryBuilder, Row as _, SqlitePool};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        model::{
            Cursor, LabelKey, ListQuery, LocationId, LocationType, Order, OrderField, Predicate,
            ReportQuery, SortValue, Text,
        },
        store::sql::{ConnectionGuard, Driver, list_statement, report_statement},
    };

    async fn plan(pool: &SqlitePool, statement: QueryBuilder<Sqlite>) -> Vec<String> {
        let sql = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", statement.into_string()));
        let rows = sqlx::query(sql).fetch_all(pool).await.expect("a plan");
        rows.iter().map(|row| row.get("detail")).collect()
    }

    #[tokio::test]
    async fn a_dropped_read_is_interrupted_and_its_connection_kept() {
        let pool = SqlitePoolOptions::new().max_connections(1);
        let pool = pool.connect("sqlite::memory:").await.expect("a database");
        let mark = "CREATE TEMP TABLE of_this_connection (x)";
        sqlx::query(mark).execute(&pool).await.expect("created");
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        for _ in 0..3 {
            let mut reader = ConnectionGuard::acquire(&pool).await.expect("a connection");
            let mut endless = QueryBuilder::new(endless);
            let read = reader.rows::<(i64,)>(&mut endless);
            let timed_out = timeout(Duration::from_millis(50), read).await;
            timed_out.expect_err("it has no end");
        }
        let same = sqlx::query("SELECT x FROM of_this_connection").fetch_all(&pool);
        let same = timeout(Duration::from_secs(20), same).await;
        same.expect("the reads have ended")
            .expect("the same connection");
    }

    #[tokio::test]
    #[expect(clippy::too_many_lines, reason = "a table of lists and their plans")]
    async fn lists_neither_scan_the_table_nor_sort() {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let path = dir.path().join("plans.db");
        drop(open(&path, Migrate::Auto).await.expect("a new database"));
        let options = SqliteConnectOptions::new().filename(&path);
        let pool = SqlitePool::connect_with(options).await.expect("a pool");

        let run = Some(Text::from_trusted("run".to_owned()));
        let owner = Some(Text::from_trusted("ann".to_owned()));
        let by = |run: &Option<_>, owner: &Option<_>, kind| Predicate {
            run: run.clone(),
            owner: owner.clone(),
            kind,
        };
        let storage = Some(LocationType::Storage);
        let predicates = [
            (by(&None, &None, None), "locations_by_create_time"),
            (by(&None, &None, storage), "locations_by_type"),
            (by(&run, &None, None), "locations_by_run"),
            (by(&run, &None, storage), "locations_by_run"),
            (by(&None, &owner, None), "locations_by_owner"),
            (by(&None, &owner, storage), "locations_by_owner"),
            (by(&run, &owner, None), "locations_by_run_and_owner"),
            (by(&run, &owner, storage), "locations_by_run_and_owner"),
        ];
        let mut lists: Vec<_> = predicates
            .into_iter()
            .map(|(predicate, index)| {
                let query = ListQuery {
                    predicate,
                    limit: 50,
                    ..ListQuery::default()
                };
                (query, SortValue::Number(1), index)
            })
            .collect();
        for (field, index) in [
            (OrderField::UpdateTime, "locations_by_update_time"),
            (OrderField::DisplayName, "locations_by_display_name"),
            (OrderField::Capacity, "locations_by_capacity"),
        ] {
            for descending in [false, true] {
                let order = Order { field, descending };
                let value = SortValue::Number(1);
                lists.push((
                    ListQuery {
                        order,
                        limit: 50,
                        ..ListQuery::default()
                    },
                    value,
                    index,
                ));
            }
        }
        for (query, value, index) in lists {
            let id = LocationId::generate();
            for after in [
                None,
                Some(Cursor {
                    value: value.clone(),
                    id,
                }),
            ] {
                let driver = Driver::preset(&query);
                let plan = plan(&pool, list_statement(&query, after.as_ref(), driver)).await;
                let [step] = plan.as_slice() else {
                    panic!("more than one step: {plan:?}");
                };
                let used = step
                    .split_whitespace()
                    .skip_while(|word| *word != "INDEX")
                    .nth(1);
                assert_eq!(used, Some(index), "{step}");
                // The next page starts in the middle of the index.
                assert!(after.is_none() || step.starts_with("SEARCH"), "{step}");
            }
        }

        // The index on labels has the order of creation. No driver makes the database sort.
        let label = |key: &str| (LabelKey::from_trusted(key.to_owned()), Text::default());
        let labels = std::collections::BTreeMap::from([label("a"), label("b")]);
        let by_create_time = Order::default();
        let by_name = Order {
            field: OrderField::DisplayName,
            descending: false,
        };
        let from_label = ["location_labels", "locations"];
        let searches = [
            (None, by_create_time, Driver::Label(0), from_label),
            (run.clone(), by_create_time, Driver::Label(1), from_label),
            (
                run.clone(),
                by_create_time,
                Driver::Predicate,
                ["locations_by_run", "other"],
            ),
            (
                None,
                by_name,
                Driver::Order,
                ["locations_by_display_name", "other"],
            ),
            (
                run.clone(),
                by_name,
                Driver::Order,
                ["locations_by_display_name", "other"],
            ),
        ];
        for (run, order, driver, tables) in searches {
            let query = ListQuery {
                predicate: by(&run, &None, storage),
                labels: labels.clone(),
                order,
                limit: 50,
                ..ListQuery::default()
            };
            let is_text = order.field == OrderField::DisplayName;
            let after = Cursor {
                value: if is_text {
                    SortValue::Text("dock".to_owned())
                } else {
                    SortValue::Number(1)
                },
                id: LocationId::generate(),
            };
            for after in [None, Some(after)] {
                let is_first = after.is_none();
                let plan = plan(&pool, list_statement(&query, after.as_ref(), driver)).await;
                for (step, table) in plan.iter().zip(tables) {
                    assert!(
                        step.starts_with("SEARCH")
                            || step.contains("SUBQUERY")
                            || (is_first && driver == Driver::Order),
                        "{plan:?}"
                    );
                    assert!(
                        step.contains(table) || step.contains("SUBQUERY"),
                        "{plan:?}"
                    );
                }
                assert!(
                    !plan.iter().any(|step| step.contains("TEMP B-TREE")),
                    "{plan:?}"
                );
                // The index of the order is read from its beginning.
                assert!(
                    !plan.iter().any(|step| step.starts_with("SCAN"))
                        || (is_first && driver == Driver::Order),
                    "{plan:?}"
                );
            }
        }

        let reports = ReportQuery {
            predicate: Predicate::default(),
            limit: 50,
        };
        for after in [None, Some((LocationType::Delivery, Text::default()))] {
            let plan = plan(&pool, report_statement(&reports, after.as_ref())).await;
            let [step, distinct] = plan.as_slice() else {
                panic!("more than two steps: {plan:?}");
            };
            assert!(
                step.contains("USING COVERING INDEX locations_for_reports"),
                "{step}"
            );
            assert_eq!(distinct, "USE TEMP B-TREE FOR count(DISTINCT)");
        }
    }
}
