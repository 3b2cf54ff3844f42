//! Errors of the domain. `api::status` maps them to gRPC statuses.

use std::{error::Error as StdError, fmt, sync::Arc};

use crate::model::LocationId;

/// A result with an [`Error`] of the domain.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error. It is logged, and never sent to a client.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// Why a call failed. `Clone`, because calls that share a database read share its error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Fields of the request are invalid. All violations are included.
    #[error("{}", describe(.0))]
    InvalidArgument(Violations),

    /// A page token wasn't made for an equal request.
    #[error(
        "{field} isn't valid for this request: pass the next_page_token of the previous page \
         unchanged, with all fields except page_size, skip and include_total_size as in the \
         previous request, or leave it empty"
    )]
    PageTokenInvalid {
        /// The path of the token.
        field: String,
    },

    /// A repeated field has too many items. Detected before the request is decoded.
    #[error("{field} must have at most {limit} items, has {count}")]
    TooManyItems {
        /// The path of the field.
        field: String,
        /// Maximum number of items.
        limit: usize,
        /// The number of items.
        count: usize,
    },

    /// The message is larger than the method accepts.
    #[error("the request message has {size} bytes, over the limit of {limit}: split it")]
    MessageTooLarge {
        /// Maximum size in bytes.
        limit: usize,
        /// The size that was announced or received so far.
        size: usize,
    },

    /// The message is larger than the method accepts once it is decompressed.
    #[error("the request message has more than {limit} bytes once it is decompressed: split it")]
    DecompressedTooLarge {
        /// Maximum size in bytes.
        limit: usize,
    },

    /// The message didn't arrive in time.
    #[error("the request message didn't arrive within {0:?}")]
    MessageTimeout(std::time::Duration),

    /// A limit of the service is reached.
    #[error("the service is overloaded, its limit is {value} {limit}: retry later")]
    Overloaded {
        /// The name of the limit.
        limit: &'static str,
        /// The value of the limit.
        value: usize,
    },

    /// The maximum number of health watches is open.
    #[error("too many watches are open, the limit is {0}: close some, or retry later")]
    TooManyWatches(usize),

    /// A list with `query` wasn't read within its time limit.
    #[error(
        "the list with this query wasn't read within {0:?}: narrow it, with production_run_id or \
         owner_id for example"
    )]
    QueryTooSlow(std::time::Duration),

    /// The caller has too many calls under way.
    #[error(
        "you have too many calls under way, the limit is {value} {limit}: send fewer at once, and retry later"
    )]
    CallerLimit {
        /// The name of the limit.
        limit: &'static str,
        /// The value of the limit.
        value: usize,
    },

    /// No locations that the caller may see have these ids.
    #[error("location {0} was not found")]
    NotFound(Culprits),

    /// Locations with these ids exist.
    #[error("location {0} already exists")]
    AlreadyExists(Culprits),

    /// The caller used the request id for a different location.
    #[error("{field} {id} was used for a different location: use a new request id")]
    RequestIdReused {
        /// The request id.
        id: uuid::Uuid,
        /// The path of the field.
        field: String,
    },

    /// The etags of conditional writes aren't current.
    #[error("location {0} has changed: read it again and retry with its current etag")]
    EtagMismatch(Culprits),

    /// The caller has no valid token.
    #[error("{message}")]
    Unauthenticated {
        /// What is wrong with the token.
        problem: TokenProblem,
        /// The problem in words, and how to correct the call.
        message: String,
    },

    /// The response isn't cached, and the request has `cache-control: only-if-cached`.
    #[error("the response isn't cached: retry without `cache-control: only-if-cached`")]
    NotCached,

    /// The service has no such method.
    #[error("the service has no such method")]
    UnknownMethod,

    /// The message can't be decoded.
    #[error("the request message can't be decoded: {0}")]
    MalformedMessage(String),

    /// The message is compressed with an unknown encoding.
    #[error(
        "the encoding of the request message isn't supported: send it plain, or with gzip or zstd"
    )]
    UnsupportedEncoding,

    /// The caller lacks the permission.
    #[error("{0}")]
    PermissionDenied(String),

    /// The database is full.
    #[error("the database is full: nothing was changed")]
    StorageFull(#[source] Cause),

    /// The write conflicted with a concurrent one and was rolled back.
    #[error("the write conflicted with a concurrent one: nothing was changed, retry it")]
    Conflict(#[source] Cause),

    /// The database isn't available.
    #[error("the database is unavailable: nothing was changed, retry later")]
    DatabaseUnavailable(#[source] Cause),

    /// The cache isn't available, so a write can't invalidate it.
    #[error("the cache is unavailable: nothing was changed, retry later")]
    CacheUnavailable(#[source] Cause),

    /// A write may or may not have been committed.
    #[error("the outcome of the write is unknown: {}", if *.repeatable {
        "retry it with the same request_id"
    } else {
        "read before you retry; a creation with a request_id can be retried"
    })]
    OutcomeUnknown {
        /// Whether the call can be retried, because it has a request id.
        repeatable: bool,
        /// Why the outcome is unknown.
        #[source]
        cause: Cause,
    },

    /// The caller cancelled before the write was committed.
    #[error("cancelled by the caller: nothing was changed")]
    Cancelled,

    /// The deadline of the caller or of the service has passed.
    #[error("not completed within {0:?}: nothing was changed unless the commit had begun")]
    DeadlineExceeded(std::time::Duration),

    /// The service is stopping.
    #[error("the service is stopping: nothing was changed, retry")]
    Stopping,

    /// A bug in the service, or corrupt data.
    #[error("internal error")]
    Internal(#[source] Cause),
}

/// The locations that make a call fail: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprits(Vec<Culprit>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Culprit {
    id: LocationId,
    /// The index in the batch.
    index: Option<usize>,
}

impl Culprits {
    /// The location of a call that isn't a batch.
    pub fn single(id: LocationId) -> Self {
        Self(vec![Culprit { id, index: None }])
    }

    /// Locations with the indexes of their requests, in ascending order; the indexes are dropped
    /// unless the call is a batch. `None` if there are none.
    pub fn new(items: impl IntoIterator<Item = (usize, LocationId)>, batch: bool) -> Option<Self> {
        let culprits: Vec<_> = items
            .into_iter()
            .map(|(index, id)| Culprit {
                id,
                index: batch.then_some(index),
            })
            .collect();
        (!culprits.is_empty()).then_some(Self(culprits))
    }

    /// The ids, in the order of the batch.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = LocationId> {
        self.0.iter().map(|culprit| culprit.id)
    }

    /// The indexes in the batch; none if the call isn't a batch.
    pub fn indexes(&self) -> impl Iterator<Item = usize> {
        self.0.iter().filter_map(|culprit| culprit.index)
    }
}

impl fmt::Display for Culprits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.0.first() {
            first.id.fmt(formatter)?;
        }
        formatter.write_str(&and_more(self.0.len()))
    }
}

/// What is wrong with a caller's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenProblem {
    /// The call has none.
    Missing,
    /// It has expired.
    Expired,
    /// Its start lies in the future.
    NotYetValid,
    /// It isn't a token of this service.
    Invalid,
}

/// A constraint that a field of a request violates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field, such as `location.address.region_code`.
    pub field: String,
    /// The constraint, the actual value where it helps, and how to correct it.
    pub description: String,
}

/// The violations of a request, which are reported together: the first [`Violations::MAX`] in full,
/// and the number of all.
#[derive(Debug, Clone, Default)]
pub struct Violations {
    first: Vec<Violation>,
    count: usize,
}

impl Violations {
    /// Violations that are reported in full.
    pub const MAX: usize = 100;

    /// Adds a violation.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        self.count += 1;
        if self.first.len() < Self::MAX {
            self.first.push(Violation {
                field: field.into(),
                description: description.into(),
            });
        }
    }

    /// The violations that are reported in full.
    pub fn first(&self) -> &[Violation] {
        &self.first
    }

    /// The number of all violations.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds the violations of a part of the request.
    pub fn append(&mut self, other: Self) {
        self.count += other.count;
        let space = Self::MAX - self.first.len();
        self.first.extend(other.first.into_iter().take(space));
    }

    /// Prefixes the paths of all fields.
    pub fn prefix(&mut self, prefix: &str) {
        for violation in &mut self.first {
            violation.field.insert_str(0, prefix);
        }
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
        self.check_all(value).map_err(Error::InvalidArgument)
    }

    /// As [`finish`](Self::finish), with the violations as the error.
    pub fn check_all<T>(self, value: Option<T>) -> Result<T, Self> {
        value.filter(|_| self.count == 0).ok_or(self)
    }
}

impl Error {
    /// An invalid field.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut violations = Violations::default();
        violations.add(field, description);
        Self::InvalidArgument(violations)
    }

    /// An internal error with its cause.
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Internal(cause.into().into())
    }

    /// Prefixes the paths of the fields in the error.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        match &mut self {
            Self::InvalidArgument(violations) => violations.prefix(prefix),
            Self::PageTokenInvalid { field } | Self::RequestIdReused { field, .. } => {
                field.insert_str(0, prefix);
            }
            _ => {}
        }
        self
    }

    /// A write that may have been committed, and why its outcome is unknown.
    pub fn outcome_unknown(cause: Cause) -> Self {
        Self::OutcomeUnknown {
            repeatable: false,
            cause,
        }
    }

    /// A write conflict with its cause.
    pub fn conflict(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Conflict(cause.into().into())
    }
}

fn describe(violations: &Violations) -> String {
    let Some(first) = violations.first.first() else {
        return "the request is invalid".to_owned();
    };
    let more = and_more(violations.count);
    format!("{} {}{more}", first.field, first.description)
}

fn and_more(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    }
}
