//! What can go wrong, in the words of the domain. `api::status` alone turns it into a gRPC status.

use std::{error::Error as StdError, sync::Arc};

use crate::model::LocationId;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error, for the log and never for a client.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// Why a call failed. Cheap to clone, because callers who share one database read share its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Fields of the request are bad; all of them are here.
    #[error("{}", describe(.0))]
    InvalidArgument(Vec<Violation>),

    /// No locations with these ids, or none that the caller may see.
    #[error("location {} was not found{}", .0[0], and_more(.0.len()))]
    NotFound(Vec<LocationId>),

    /// The id is used. `indexes` are the colliding requests of a batch.
    #[error("location {id} already exists{}", and_more(indexes.len()))]
    AlreadyExists {
        /// The first id that is used.
        id: LocationId,
        /// Which requests of the batch collide.
        indexes: Vec<usize>,
    },

    /// The caller used this request id for another body.
    #[error("request_id {0} was used with another body: use a new one")]
    RequestIdReused(uuid::Uuid),

    /// The etag that a write is conditional on isn't current.
    #[error("location {0} has changed: read it again and retry with its current etag")]
    EtagMismatch(LocationId),

    /// The caller isn't known.
    #[error("{0}")]
    Unauthenticated(String),

    /// The caller may not do this.
    #[error("{0}")]
    PermissionDenied(String),

    /// The database has no room left.
    #[error("the database has no room left to write to: nothing was changed")]
    StorageFull(#[source] Cause),

    /// Another write was in the way, and the database undid this one.
    #[error("another write was in the way: nothing was changed, try again")]
    Conflict(#[source] Cause),

    /// The database doesn't answer.
    #[error("the database is unavailable")]
    DatabaseUnavailable(#[source] Cause),

    /// The cache doesn't answer, so that a write can't invalidate it.
    #[error("the cache is unavailable: nothing was changed")]
    CacheUnavailable(#[source] Cause),

    /// A write may or may not have been done.
    #[error(
        "the outcome of the write is unknown: read before you retry, or retry with the same request_id"
    )]
    OutcomeUnknown(#[source] Cause),

    /// The caller went away before the write was committed.
    #[error("cancelled by the caller: nothing was changed")]
    Cancelled,

    /// The caller's deadline, or the service's own, is over. Shown only if the caller still waits.
    #[error("not done within {0:?}: nothing was changed unless the commit had begun")]
    DeadlineExceeded(std::time::Duration),

    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,

    /// A fault of the service.
    #[error("internal error")]
    Internal(#[source] Cause),
}

/// What is wrong with a field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as `location.address.region_code`.
    pub field: String,
    /// What is wrong, the limit, and how to mend it.
    pub description: String,
}

/// The violations of a request, all of which are reported at once.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Adds a violation.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.0.push(Violation {
            field: field.into(),
            description: description.into(),
        });
    }

    /// Returns the parsed value, or adds the violation and returns `None`.
    pub fn check<T, E: Into<String>>(
        &mut self,
        field: impl Into<String>,
        parsed: Result<T, E>,
    ) -> Option<T> {
        parsed
            .map_err(|description| self.add(field, description))
            .ok()
    }

    /// Returns the value if there are no violations, or else [`Error::InvalidArgument`].
    ///
    /// `None` stands for a value that couldn't be built because of a violation.
    pub fn finish<T>(self, value: Option<T>) -> Result<T> {
        value
            .filter(|_| self.0.is_empty())
            .ok_or(Error::InvalidArgument(self.0))
    }
}

impl Error {
    /// One bad field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::InvalidArgument(vec![Violation {
            field: field.into(),
            description: description.into(),
        }])
    }

    /// A fault of the service, with its cause.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Internal(cause.into().into())
    }

    /// A write that met another one.
    pub fn conflict(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Conflict(cause.into().into())
    }
}

fn describe(violations: &[Violation]) -> String {
    let Some(first) = violations.first() else {
        return "the request is invalid".to_owned();
    };
    let more = and_more(violations.len());
    format!("{} {}{more}", first.field, first.description)
}

fn and_more(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    }
}
