//! The bound of SQLite's write-ahead log.
//!
//! SQLite restarts the log only at a moment without readers, which never comes while reads overlap: the
//! log would grow without end. So when the log is long, a task makes such a moment: it takes the write
//! connection, lets new reads wait, and truncates the log once the running ones have ended. Long reads
//! are interrupted when the log is about to exceed its bound, and begin again.

use std::{
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{QueryBuilder, Sqlite, SqlitePool};
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedRwLockReadGuard, RwLock},
    time::{sleep, timeout},
};

use super::{
    StoreError, StoreResult, WAIT_SECS,
    sql::{ConnectionGuard, TIMEOUT},
    sqlite::OpenFile,
};

/// SQLite copies the log to the database, and restarts it if it can, after a commit that makes it longer
/// than this, in pages: about 8 MiB. The longer the log, the more changes of a page are copied at once.
pub(super) const CHECKPOINT_PAGES: u32 = 2_000;

/// Above this size the log is truncated when no read runs.
pub(super) const LONG: u64 = 12 << 20;

/// Above this size, reads are interrupted so that it can be truncated.
const TOO_LONG: u64 = 16 << 20;

/// Above this size, writes wait until it is truncated. A batch of a thousand new locations adds some
/// 10 MiB. Only one that gives a thousand scattered locations new values in all indexes adds more than
/// 40 MiB, up to 71 MiB.
const MAX: u64 = 24 << 20;

/// The time for running reads to end, while new ones wait.
const DRAIN: Duration = Duration::from_millis(100);

/// The time from an attempt that failed to the next one.
const RETRY: Duration = Duration::from_secs(1);

/// The time for the readers of other processes to end, and for interrupted ones to stop.
const BUSY_TIMEOUT_MS: u64 = 250;

/// The log of a database file.
#[derive(Debug)]
pub(super) struct Wal {
    path: PathBuf,
    /// The database, as long as its store exists.
    file: Weak<OpenFile>,
    write_pool: SqlitePool,
    /// Held shared by reads, and exclusively while the log is truncated.
    reads: Arc<RwLock<()>>,
    /// Interrupts running reads.
    interrupt: Notify,
    /// Whether the task runs that truncates the log.
    truncating: AtomicBool,
    /// Ends the pause of the task.
    urgent: Notify,
    /// Notified after each attempt.
    attempted: Notify,
    /// Whether another process's reader kept the log from being truncated at the last attempt.
    is_held_outside: AtomicBool,
}

enum Attempt {
    Truncated,
    /// Reads of this process take too long.
    Reading,
    /// Another process reads.
    HeldOutside,
}

impl Wal {
    /// The log of a database that is written over one connection.
    pub(super) fn new(file: &Arc<OpenFile>, write_pool: SqlitePool) -> Arc<Self> {
        let mut log = file.path().as_os_str().to_owned();
        log.push("-wal");
        Arc::new(Self {
            file: Arc::downgrade(file),
            path: log.into(),
            write_pool,
            reads: Arc::default(),
            interrupt: Notify::new(),
            truncating: AtomicBool::new(false),
            urgent: Notify::new(),
            attempted: Notify::new(),
            is_held_outside: AtomicBool::new(false),
        })
    }

    fn size(&self) -> u64 {
        self.path.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Begins a read. Waits while the log is truncated.
    pub(super) async fn read(&self) -> Use {
        Use::Read(Arc::clone(&self.reads).read_owned().await)
    }

    /// Completes when running reads have to stop.
    pub(super) async fn interrupted(&self) {
        self.interrupt.notified().await;
    }

    /// Begins a write. Waits while the log is too long.
    pub(super) async fn write(self: &Arc<Self>) -> StoreResult<Use> {
        let limit = Duration::from_secs(WAIT_SECS);
        timeout(limit, self.wait_until_short())
            .await
            .map_err(|_| StoreError::Overloaded {
                limit: "MiB of the write-ahead log",
                value: usize::try_from(MAX >> 20).unwrap_or(usize::MAX),
            })?;
        Ok(Use::Write(Arc::clone(self)))
    }

    async fn wait_until_short(self: &Arc<Self>) {
        loop {
            let attempted = self.attempted.notified();
            if self.is_held_outside.load(Ordering::Relaxed) || self.size() <= MAX {
                return;
            }
            self.truncate_if_long();
            self.urgent.notify_one();
            attempted.await;
        }
    }

    fn truncate_if_long(self: &Arc<Self>) {
        if self.size() > LONG
            && let Ok(runtime) = Handle::try_current()
            && !self.truncating.swap(true, Ordering::AcqRel)
        {
            runtime.spawn(Arc::clone(self).truncate());
        }
    }

    /// Tries until the log is truncated, or the store is closed or dropped.
    async fn truncate(self: Arc<Self>) {
        loop {
            let attempt = self.attempt().await;
            if let Ok(Attempt::HeldOutside) = attempt {
                if !self.is_held_outside.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        log.path = %self.path.display(),
                        log.bytes = self.size(),
                        "another process, such as a backup, holds a read transaction open: the \
                         write-ahead log grows until it ends",
                    );
                }
            } else {
                self.is_held_outside.store(false, Ordering::Relaxed);
            }
            self.attempted.notify_waiters();
            match attempt {
                Ok(Attempt::Truncated) => break,
                Ok(Attempt::HeldOutside) => sleep(RETRY).await,
                Ok(Attempt::Reading) => {
                    tokio::select! {
                        () = sleep(RETRY) => {}
                        () = self.urgent.notified() => {}
                    }
                }
                Err(_) if self.write_pool.is_closed() || self.file.strong_count() == 0 => break,
                Err(error) => {
                    tracing::warn!(%error, "failed to truncate the write-ahead log");
                    sleep(RETRY).await;
                }
            }
        }
        self.truncating.store(false, Ordering::Release);
    }

    async fn attempt(&self) -> StoreResult<Attempt> {
        OpenFile::check_if_open(&self.file).map_err(StoreError::unavailable)?;
        let mut writer = ConnectionGuard::acquire(&self.write_pool).await?;
        // Copies most pages while reads go on.
        checkpoint(&mut writer, "PASSIVE").await?;
        let drained = timeout(DRAIN, self.reads.write()).await;
        let _no_reads = match drained {
            Ok(guard) => guard,
            Err(_) if self.size() <= TOO_LONG => return Ok(Attempt::Reading),
            Err(_) => {
                let drained = self.reads.write();
                self.interrupt.notify_waiters();
                drained.await
            }
        };
        busy_timeout(&mut writer, BUSY_TIMEOUT_MS).await?;
        let truncated = checkpoint(&mut writer, "TRUNCATE").await;
        busy_timeout(&mut writer, WAIT_SECS * 1_000).await?;
        Ok(if truncated? {
            Attempt::Truncated
        } else {
            Attempt::HeldOutside
        })
    }
}

/// Copies pages from the log to the database. Returns whether a `TRUNCATE` has emptied the log.
async fn checkpoint(writer: &mut ConnectionGuard<Sqlite>, mode: &str) -> StoreResult<bool> {
    let mut statement = QueryBuilder::new(format!("PRAGMA wal_checkpoint({mode})"));
    let rows: Vec<(i64, i64, i64)> = writer.rows(&mut statement).await?;
    Ok(rows.first().is_some_and(|(busy, ..)| *busy == 0))
}

async fn busy_timeout(writer: &mut ConnectionGuard<Sqlite>, millis: u64) -> StoreResult<()> {
    let pragma = format!("PRAGMA busy_timeout = {millis}");
    let done = writer.command(pragma, TIMEOUT).await?;
    done.map_err(StoreError::unavailable)
}

/// Held by a connection while it reads or writes.
#[derive(Debug)]
pub(super) enum Use {
    Read(#[allow(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
    Write(Arc<Wal>),
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Self::Write(wal) = self {
            wal.truncate_if_long();
        }
    }
}
