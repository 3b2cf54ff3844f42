//! Why a database couldn't be opened, and why an operation on it failed.

use std::{error::Error as StdError, path::PathBuf, sync::Arc, time::Duration};

use crate::{error::Cause, model::LocationId};

/// The result of an operation on a store.
pub type StoreResult<T> = Result<T, StoreError>;

/// Why an operation on a store failed. A driver's error is the source: it goes to the log, and is
/// never shown to clients.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Locations with these ids exist already.
    #[error("location {id} already exists")]
    AlreadyExists {
        /// The first id in use.
        id: LocationId,
        /// The index of each colliding location in the batch.
        indexes: Vec<usize>,
    },

    /// A concurrent write, or a change of the cache's epoch, prevented this write. Nothing was
    /// written, and the transaction may be tried again from its beginning.
    #[error("a concurrent write prevented this one")]
    Conflict(#[source] Cause),

    /// The database has no space left. Nothing was written.
    #[error("the database has no space left")]
    Full(#[source] Cause),

    /// The database can't be reached, or didn't respond in time.
    #[error("the database is unavailable")]
    Unavailable(#[source] Cause),

    /// A limit of the database is reached, and the wait for it has timed out.
    #[error("the limit of {value} {limit} is reached")]
    Overloaded {
        /// The name of the limit.
        limit: &'static str,
        /// The value of the limit.
        value: usize,
    },

    /// The statement read too many rows, and was cancelled.
    #[error("the statement took longer than {0:?}")]
    TooSlow(Duration),

    /// The commit may or may not have taken effect.
    #[error("the outcome of the commit is unknown")]
    OutcomeUnknown(#[source] Cause),

    /// A stored value can't be read.
    #[error("the database holds an invalid value")]
    Corrupt(#[source] Cause),

    /// Any other error of the database.
    #[error("the database refused a statement")]
    Unexpected(#[source] Cause),
}

impl StoreError {
    /// [`StoreError::Unavailable`] with its cause.
    pub fn unavailable(cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::Unavailable(Arc::new(cause))
    }

    /// [`StoreError::Corrupt`] with its cause.
    pub(super) fn corrupt(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Corrupt(cause.into().into())
    }
}

/// Why a database couldn't be opened. Its contents are unchanged, except by the migrations that
/// succeeded before one failed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database file or its folder can't be written.
    #[error("can't open the database {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Another process has the file open. Each would serve lists that lack the other's writes.
    #[error("the database {0} is in use by another location-service: stop it, or use another file")]
    InUse(PathBuf),
    /// The file isn't an `SQLite` database.
    #[error("{0} isn't an SQLite database: name another file")]
    NotADatabase(PathBuf),
    /// The URL can't be parsed. It isn't shown, because it may contain a password.
    #[error("the database's URL isn't like postgres://user:password@host:5432/database")]
    Url(#[source] Box<dyn StdError + Send + Sync>),
    /// A later release has migrated the database, in a way that isn't compatible with this one.
    #[error(
        "the database {database} has schema {version}, which is newer than this release: it needs a \
         release with schema {needs} or later, and this one has schema {release}: run the release \
         that migrated it, or a later one"
    )]
    Newer {
        /// The file, or the server and its database.
        database: String,
        /// The number of the newest migration that was applied.
        version: i64,
        /// The number that a release's newest migration must have at least.
        needs: i64,
        /// The number of this release's newest migration.
        release: i64,
    },
    /// Migrations are missing, and [`Migrate::Never`](super::Migrate::Never) forbids running them.
    #[error(
        "the database {database} lacks schema {version} of this release: migrate it first with \
         `location-service migrate`, or start with `--migrate auto`"
    )]
    Older {
        /// The file, or the server and its database.
        database: String,
        /// The version of the first migration that is missing.
        version: i64,
    },
    /// The database can't store all text.
    #[error("the database {database} has the encoding {encoding}: use one with the encoding UTF8")]
    Encoding {
        /// The server and its database.
        database: String,
        /// The database's encoding.
        encoding: String,
    },
    /// A pooler drops the settings of connections, or lets them share sessions.
    #[error("the database {database} {problem}. Or connect to PostgreSQL directly")]
    Session {
        /// The server and its database.
        database: String,
        /// The problem, and the remedy.
        problem: String,
    },
    /// The database refused the connection or a statement.
    #[error("can't open the database {database}")]
    Refused {
        /// The file, or the server and its database.
        database: String,
        /// The driver's error.
        source: Box<dyn StdError + Send + Sync>,
    },
}
