//! The database of locations: the traits that an engine implements, and the engines.

mod epoch;
mod error;
mod identity;
pub mod postgres;
mod schema;
mod session;
mod sql;
pub mod sqlite;
mod stats;
mod wal;

pub use self::{
    epoch::{EpochRow, EpochTable},
    error::{OpenError, StoreError, StoreResult},
    schema::{MigrationState, MigrationStatus, SchemaStatus},
    stats::{Operations, PoolStats, StoreStats},
};

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::model::{
    Cursor, Epoch, Etag, Image, ListQuery, Location, LocationId, Micros, OwnerId, Page, Report,
    ReportCursor, ReportQuery,
};

/// A page of locations ends before it exceeds this size: clients refuse responses over 4 MiB.
pub const MAX_PAGE_BYTES: usize = 3 << 20;

/// Timeout of SQLite for a pooled connection, and for another process's lock.
pub const WAIT_SECS: u64 = 5;

/// Timeout of a statement. PostgreSQL enforces it by itself.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of a list with [`ListQuery::text`], which reads every row that the other filters leave.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum age of a write: PostgreSQL refuses to commit an older one. The wait for a write whose
/// outcome is unknown must be longer, by a wide margin.
pub const MAX_WRITE: Duration = Duration::from_secs(15);

/// The client's timeout of a statement exceeds the database's by this, for the reply to arrive.
const REPLY_MARGIN: Duration = Duration::from_secs(2);

/// Whether to migrate a database at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrate {
    /// Migrate an older schema.
    #[default]
    Auto,
    /// Don't open a database with an older schema.
    Never,
}

/// A database of locations.
///
/// Every method may fail with [`StoreError::Unavailable`]. Dropping a future cancels its query.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Returns the page of the list that follows `after`, and the total in the same snapshot if the query
    /// asks for it. A list with a text to search for fails with [`StoreError::TooSlow`] after
    /// [`QUERY_TIMEOUT`].
    async fn list(
        &self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> StoreResult<Page<Location, Cursor>>;

    /// Returns the locations that exist and belong to `owner` (`None`: to any), in any order.
    async fn get(&self, ids: &[LocationId], owner: Option<&OwnerId>) -> StoreResult<Vec<Location>>;

    /// Returns the page of the reports that follows `after`.
    async fn reports(
        &self,
        query: &ReportQuery,
        after: Option<&ReportCursor>,
    ) -> StoreResult<Page<Report, ReportCursor>>;

    /// Begins a write. Dropping the transaction rolls it back.
    ///
    /// [`MAX_WRITE`] counts from here: a deadline that has to outlast the write starts afterwards.
    async fn begin(&self) -> StoreResult<Box<dyn Transaction>>;

    /// Deletes the previous images that were recorded at this time, except those that a later write
    /// has replaced.
    async fn delete_previous_images(&self, ids: &[LocationId], recorded: Micros)
    -> StoreResult<()>;

    /// Deletes the idempotency records and previous images that are older than `age`, by the database's
    /// clock.
    async fn purge_expired(&self, age: Duration) -> StoreResult<()>;

    /// Returns the secret that signs page tokens, which the replicas on a database share.
    async fn page_token_key(&self) -> StoreResult<[u8; 32]>;

    /// Checks that the database can be read.
    async fn ping(&self) -> StoreResult<()>;

    /// Closes the database after the operations in progress.
    async fn close(&self);

    /// The state of the connections, and the durations of the operations.
    fn stats(&self) -> StoreStats;
}

/// A write in progress. The rows that it has read or written are locked until it ends.
///
/// Every method except `rollback` may fail with [`StoreError::Conflict`]: roll back then, and try
/// again from the beginning.
#[async_trait]
pub trait Transaction: Send {
    /// Locks the locations that exist and returns them, in any order.
    async fn lock(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Location>>;

    /// Locks the locations that exist and returns their images and etags, in any order: much less than
    /// the locations, of which a batch may have 50 MB.
    async fn lock_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<(Image, Etag)>>;

    /// Inserts locations. After [`StoreError::AlreadyExists`] the transaction must not be committed.
    async fn insert(&mut self, locations: &[Location]) -> StoreResult<()>;

    /// Replaces locked locations. Their ids must be distinct.
    async fn update(&mut self, locations: &[Location]) -> StoreResult<()>;

    /// Deletes locked locations.
    async fn delete(&mut self, ids: &[LocationId]) -> StoreResult<()>;

    /// Deletes the previous images of these locations and returns them: this write also closes their
    /// tags.
    async fn take_previous_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Image>>;

    /// Records the images of locations before they are moved or deleted, at least one. Returns the
    /// time of the records, by the database's clock.
    async fn record_previous_images(&mut self, images: &[Image]) -> StoreResult<Micros>;

    /// Returns the records of this caller's creations with these request ids.
    async fn find_idempotency_records(
        &mut self,
        caller: &OwnerId,
        ids: &[Uuid],
    ) -> StoreResult<Vec<IdempotencyRecord>>;

    /// Saves records. Returns false if a concurrent write has saved one of the ids: the transaction
    /// must not be committed then.
    async fn save_idempotency_records(
        &mut self,
        caller: &OwnerId,
        records: &[IdempotencyRecord],
    ) -> StoreResult<bool>;

    /// Commits, provided that this is the cache's current epoch (`None`: the cache has no epochs);
    /// fails with [`StoreError::Conflict`] otherwise. After [`StoreError::OutcomeUnknown`] the write
    /// may have taken effect. On PostgreSQL it may even do so later, which [`EpochRow::commits`] shows;
    /// on SQLite it may not. After any other error nothing was written.
    async fn commit(self: Box<Self>, epoch: Option<Epoch>) -> StoreResult<()>;

    /// Rolls back.
    async fn rollback(self: Box<Self>);
}

/// The result of a creation with a `request_id`, for its retries.
#[derive(Debug, Clone)]
pub struct IdempotencyRecord {
    /// The caller's id of the request.
    pub request_id: Uuid,
    /// Digest of the request's body.
    pub fingerprint: [u8; 32],
    /// The response: a serialized `location.v1.Location`.
    pub location: Vec<u8>,
}
