//! The consistency protocol, and the trait that an engine implements.
//!
//! **Promise.** The response to a read that starts after a write was acknowledged reflects that write,
//! on every replica, whatever crashed, stalled, restarted, was evicted or failed over in between. The
//! cache changes the speed of a response, never its content; times to live only free memory.
//!
//! # Terms
//!
//! | term | meaning |
//! | --- | --- |
//! | [`Tag`] | the predicate that a cached response depends on. Every cached response has exactly one, which its request states |
//! | [`Key`] | the digest of the canonical request |
//! | [`Version`] | a tag's current random value. A tag with a version is *open*; without one it is *closed*, and nothing is served or filled under it |
//! | entry | a serialized response, stored under its key with the version that its tag had *before* the database was read |
//! | writers | the writes in flight on a tag, each with a deadline |
//!
//! # Steps
//!
//! | step | when | effect, atomic on a tag |
//! | --- | --- | --- |
//! | [`lookup`](Cache::lookup) | a read begins | opens the tag with a fresh version if it has none and no write is in flight; returns the version, and the entry if it was filled under it |
//! | [`fill`](Cache::fill) | the database was read | stores the entry, if the version is still the one from before the read |
//! | [`close`](Cache::close) | before a commit | adds the write to the writers, deletes the version and the entries |
//! | [`reopen`](Cache::reopen) | after the commit, before the acknowledgement | removes the write from the writers, deletes the version again |
//!
//! A read looks up; on a miss it reads the database and fills under the version of its lookup; on a
//! closed tag it reads the database and doesn't fill. A write closes every tag that it touches, commits,
//! reopens them, and is acknowledged.
//!
//! # Why it is right
//!
//! Between `close` and the end of the write nothing is served or filled under its tags. A fill that read
//! the database before the commit carries a version from before the `close`, which is gone forever. A
//! reader that opens the tag later reads the database after the commit. If the writer dies anywhere, its
//! tags stay closed until [`WRITE_DEADLINE`]; then a reader opens them with a fresh version. There is no
//! outbox to drain and nothing to repair. In the process there is no deadline: a write reopens its tags
//! when the database has given the result of its commit.
//!
//! Four rules that look optional and aren't. A model finds a stale read without each (`tests/model`):
//!
//! - *`reopen` comes before the acknowledgement, and deletes the version.* If the server loses the
//!   writers between `close` and the commit (eviction, a flush), a reader opens the tag and fills it with
//!   the old state. `reopen` kills that entry before the write is acknowledged.
//! - *`close` comes before the commit.* Otherwise a crash between the two leaves the old entry until it
//!   expires, and a reader can see a write appear and disappear again.
//! - *Every acknowledgement of a write closes and reopens.* A retry with a known `request_id`
//!   acknowledges the first call's write, which may have died before its `reopen`.
//! - *A fresh version is drawn for one execution of one step.* If two executions set the same one, a
//!   whole write may run between them, and entries from before it are current again.
//!
//! Two promises follow. Always, whatever the server loses: reads reflect acknowledged writes. And while
//! the writers aren't lost during a write: lists are linearizable, that is, a state that any reader has
//! seen is visible to every later one.
//!
//! The database enforces that a write ends before its deadline, with a wide margin: by timeouts, and by
//! a check of the write's age in its commit.
//!
//! Work is shared by [`NextFlight`]: a caller joins the next execution, which starts after it arrived. So
//! one query at a time runs for a key, and one check of versions at a time for the local entries.
//!
//! [`coordination`](crate::coordination) has the other half: a cache server that can't be reached,
//! restarts, or is replaced by one with other data.

mod flight;
mod key;
mod local;
mod memory;
mod redis;
mod stats;
mod tag;

use std::{collections::BTreeSet, fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use crate::model::Epoch;

pub use self::{
    flight::{NextFlight, Panicked, Shared},
    key::Key,
    memory::MemoryCache,
    redis::{RedisCache, RedisConfig, RedisConfigError},
    stats::Stats,
    tag::Tag,
};

/// How long a replica may serve from a shared cache after it has read that the cache is active.
pub const LEASE: Duration = Duration::from_secs(1);

/// How long a write that never reopens its tags keeps them closed in a shared cache. Longer, by a wide
/// margin, than any write can last.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// A tag's version: random, so that one that was lost never comes back.
// Bytes, because the alignment of a `u128` would pad every entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version([u8; 16]);

impl Version {
    /// A fresh version.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Identifies a write in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriteId(Uuid);

impl WriteId {
    /// A new id.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

/// The result of [`Cache::lookup`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The entry is current.
    Hit {
        /// The serialized response.
        body: Bytes,
        /// Where the entry was found.
        tier: Tier,
        /// The version of the tag and of the entry.
        version: Version,
    },
    /// There is no current entry, and the tag is open with this version: a read of the database that
    /// starts now may be filled under it.
    Miss(Version),
    /// A write is in flight on the tag: nothing may be filled.
    Closed,
}

/// Where an entry was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The memory of the process.
    Local,
    /// The cache server that replicas share.
    Redis,
}

/// The state of a tag and a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// The tag's version, if it is open.
    pub current: Option<Version>,
    /// The number of writes in flight on the tag.
    pub writers: u64,
    /// The entry in the process.
    pub local: Option<EntryInfo>,
    /// The entry on the cache server.
    pub redis: Option<EntryInfo>,
}

/// A stored entry, current or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInfo {
    /// The tag's version from before the database was read.
    pub version: Version,
    /// The length of the response.
    pub bytes: u64,
    /// The time since it was stored there.
    pub age: Duration,
}

/// Why a step failed. It may have been executed nevertheless, or may still be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The database hasn't confirmed within [`LEASE`] that the cache is active.
    #[error("the lease on the cache has expired")]
    NoLease,
    /// The cache is suspended.
    #[error("the cache is suspended")]
    Suspended,
    /// The epoch of the write isn't the current one.
    #[error("the cache's epoch has changed")]
    EpochChanged,
    /// There is no connection to the cache server.
    #[error("there is no connection to the cache server")]
    Disconnected,
    /// The cache server didn't respond in time.
    #[error("the cache server didn't respond in time")]
    Timeout,
    /// Too many commands are queued or in flight.
    #[error("too many commands are waiting for the cache server")]
    QueueFull,
    /// The task that runs the step has ended: the cache is being dropped.
    #[error("the cache is shutting down")]
    ShuttingDown,
    /// The cache server can't do it at the moment.
    #[error("the cache server is busy: {0}")]
    Busy(String),
    /// The cache server isn't the one that the epoch names.
    #[error("the cache server isn't the one in use: {0}")]
    WrongServer(String),
    /// The cache server refused the command, or can't be used at all.
    #[error("the cache server can't be used: {0}")]
    Refused(String),
    /// The epoch was activated by a replica with other settings. This one neither serves from the cache
    /// nor writes, because it can't invalidate the others' entries.
    #[error(
        "other replicas use the cache with other settings than this one ({0}): give every replica the \
         same key prefix and Redis database"
    )]
    SettingsDiffer(String),
}

impl CacheError {
    /// The names of the kinds of errors.
    pub const KINDS: [&str; 11] = [
        "no_lease",
        "suspended",
        "epoch_changed",
        "disconnected",
        "timeout",
        "queue_full",
        "shutting_down",
        "busy",
        "wrong_server",
        "refused",
        "settings_differ",
    ];

    /// The index of the kind in [`KINDS`](Self::KINDS).
    fn kind(&self) -> usize {
        match self {
            Self::NoLease => 0,
            Self::Suspended => 1,
            Self::EpochChanged => 2,
            Self::Disconnected => 3,
            Self::Timeout => 4,
            Self::QueueFull => 5,
            Self::ShuttingDown => 6,
            Self::Busy(_) => 7,
            Self::WrongServer(_) => 8,
            Self::Refused(_) => 9,
            Self::SettingsDiffer(_) => 10,
        }
    }

    /// Whether a retry can't succeed.
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::WrongServer(_) | Self::Refused(_) | Self::SettingsDiffer(_)
        )
    }
}

/// An encoding in which a response may be kept besides its plain form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// The steps of the protocol. Each is atomic on a tag.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// Opens the tag with a fresh version, if it has none and no write is in flight on it; and reads
    /// its version and the key's entry: a hit if the entry was filled under that version.
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError>;

    /// The response that the process holds under a key, if it was filled under this version. It is
    /// current if the version is.
    fn peek_local(&self, key: &Key, version: Version) -> Option<Bytes>;

    /// Stores a response that was read from the database after `version` was looked up. Returns false if
    /// the version has changed since, or if the response doesn't fit.
    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        body: Bytes,
    ) -> Result<bool, CacheError>;

    /// Closes the tags that a write is about to change, until its [`reopen`](Self::reopen), or, in a
    /// shared cache, until [`WRITE_DEADLINE`] if that never comes. `epoch` is the epoch in which the write
    /// began, or `None` if this cache has no epochs. Fails if that epoch has ended.
    async fn close(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError>;

    /// Lets the tags be opened again, after the write has been committed or undone. Fails if the epoch
    /// in which they were closed has ended.
    async fn reopen(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError>;

    /// Drops the entries of a tag, and returns their number.
    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError>;

    /// Drops the entries of all tags that are open when it is called, and returns their number.
    async fn invalidate_all(&self) -> Result<u64, CacheError>;

    /// The compressed form of a response that the process holds under a key.
    fn peek_compressed(&self, _key: &Key, _body: &Bytes, _encoding: Encoding) -> Option<Bytes> {
        None
    }

    /// Keeps the compressed form of a response, if the process holds `body` itself under the key.
    fn keep_compressed(&self, _key: &Key, _body: &Bytes, _encoding: Encoding, _compressed: Bytes) {}

    /// The state of a tag and a key, for display.
    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError>;

    /// The state, and the counts since the start.
    fn stats(&self) -> Stats;
}
