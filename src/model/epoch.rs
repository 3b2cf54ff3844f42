//! The epochs of a cache that replicas share.

use uuid::Uuid;

/// The number of a period in which the shared cache's state doesn't change. Numbers grow with time,
/// and start at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(pub i64);

/// The cache server of an active epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheServer {
    /// The name that its processes were given.
    pub incarnation: Uuid,
    /// A digest of the settings that replicas share.
    pub settings: u64,
    /// The replication ids of its data, which identify the data's history, separated by commas.
    pub replication_ids: String,
}

/// The state of the shared cache, as the database records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEpoch {
    /// The current epoch.
    pub epoch: Epoch,
    /// The server, if the cache is active; `None` if it is suspended.
    pub server: Option<CacheServer>,
    /// Whether the suspension has lasted long enough, and every replica has reached the server
    /// lately.
    pub may_activate: bool,
}
