//! The consistency protocol, and the trait that an engine implements.
//!
//! **Promise.** An answer to a read that starts after a write was acknowledged reflects that write.
//! The cache changes how fast an answer comes, never what it says; time to live frees memory and
//! makes nothing right.
//!
//! Every cached answer has one [`Tag`]: the predicate that its request states. A tag that has a
//! [`Version`] is *open*; without one it is *closed*, and nothing is served or filled under it.
//!
//! | step | when | what it does, atomically on a tag |
//! | --- | --- | --- |
//! | [`lookup`](Cache::lookup) | a read begins | opens the tag with a fresh version if it has none and no write is in flight; returns the version, and the entry if it was filled under it |
//! | [`fill`](Cache::fill) | the database was read | stores the answer, if the version is still the one from before the read |
//! | [`close`](Cache::close) | before a commit | notes the write as in flight, drops version and entries |
//! | [`reopen`](Cache::reopen) | after the commit, before the acknowledgement | takes the note away, drops the version again |
//!
//! Between `close` and `reopen` nothing is served or filled. A fill that read the database before
//! the commit carries a version that is gone for ever. Whoever opens the tag later reads the
//! database after the commit. A writer that dies leaves its tags closed until [`WRITE_DEADLINE`]:
//! there is nothing to repair. `reopen` drops the version too because an engine may lose its notes
//! (eviction, a flush), whereupon a reader may open the tag before the commit.

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

pub(crate) use self::stats::Counter;
pub use self::{
    flight::{NextFlight, Panicked, Shared},
    key::Key,
    memory::MemoryCache,
    redis::{RedisCache, RedisConfig, RedisConfigError},
    stats::Stats,
    tag::Tag,
};

/// How long a replica may serve from a shared cache after it has read that the cache is in use.
pub const LEASE: Duration = Duration::from_secs(1);

/// How long a write that doesn't report back keeps its tags closed. Longer, by a wide margin, than
/// any write can live.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// A tag's version: random, so that one that was lost never comes back.
// Bytes, because every entry has one, and a `u128` would be padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version([u8; 16]);

impl Version {
    /// A fresh one.
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

/// One write, for as long as it is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WriteId(Uuid);

impl WriteId {
    /// A new one.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

/// A tag and a key at one moment.
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

/// Where a hit came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The process.
    Local,
    /// The cache server that replicas share.
    Redis,
}

/// Why a lookup of a key would hit or miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// The tag's version, if it is open.
    pub current: Option<Version>,
    /// How many writes on the tag are in flight.
    pub writers: u64,
    /// What the process holds under the key.
    pub local: Option<EntryInfo>,
    /// What the cache server holds under the key.
    pub redis: Option<EntryInfo>,
}

/// A stored entry, current or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInfo {
    /// The tag's version from before the database was read.
    pub version: Version,
    /// The length of the answer.
    pub bytes: u64,
    /// How long ago it was stored there.
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
}

impl CacheError {
    /// Whether the cache server itself has said that it can't be used, which trying again doesn't
    /// change: the cache is suspended at once.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::WrongServer(_) | Self::Refused(_))
    }
}

/// The steps of the protocol. Each is atomic on a tag.
#[async_trait]
pub trait Cache: Send + Sync + 'static {
    /// Opens the tag with a fresh version, if it has none and no write is in flight on it; and reads
    /// its version and the key's entry: a hit if the entry was filled under that version.
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError>;

    /// The answer that the process holds under a key, if it was filled under this version: current if
    /// the version is.
    fn peek_local(&self, key: &Key, version: Version) -> Option<Bytes>;

    /// Stores an answer that was read from the database after `version` was. False if the version
    /// has changed since, or if the answer doesn't fit.
    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        answer: Bytes,
    ) -> Result<bool, CacheError>;

    /// Closes the tags that a write is about to change, until its [`reopen`](Self::reopen), or
    /// [`WRITE_DEADLINE`] if that never comes. Fails if the epoch that the write began in (`None`: this
    /// cache has no epochs) isn't the one that is known any more.
    async fn close(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError>;

    /// Lets the tags be opened again, after the write has been committed or undone. Fails if the
    /// epoch that they were closed in isn't the one that is known any more.
    async fn reopen(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError>;

    /// Drops whatever is cached under a tag, and returns how many entries that were.
    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError>;

    /// Drops whatever is cached under the tags that are open when it is called, and returns how
    /// many entries that were.
    async fn invalidate_all(&self) -> Result<u64, CacheError>;

    /// What is known of a tag and a key, for people.
    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError>;

    /// What this cache has done since it started.
    fn stats(&self) -> Stats;
}
