//! The system of record, and the traits that a database engine implements.

mod epoch;
mod error;
pub mod postgres;
mod schema;
mod sql;
pub mod sqlite;

pub use self::{
    epoch::EpochTable,
    error::{OpenError, StoreError, StoreResult},
};

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::model::{
    Cursor, Epoch, Image, ListQuery, Location, LocationId, Micros, OwnerId, Page, Report,
    ReportCursor, ReportQuery,
};

/// How much text a page of locations holds before it is cut short: clients refuse answers of more
/// than 4 MiB.
pub const MAX_PAGE_BYTES: usize = 3 << 20;

/// How long a pooled connection, or another process's lock, is waited for.
pub const WAIT_SECS: u64 = 5;

/// How long one statement may take. PostgreSQL ends it by itself then.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a write may live: PostgreSQL refuses to commit one that began longer ago. Whoever waits
/// for a write that doesn't report back has to wait longer than this, by a wide margin.
pub const MAX_WRITE: Duration = Duration::from_secs(15);

/// How much later than the database the client gives up on a statement: time for the answer to
/// travel.
const REPLY_MARGIN: Duration = Duration::from_secs(2);

/// What happens at start to a schema that isn't this release's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrate {
    /// An older one is brought up to date.
    #[default]
    Auto,
    /// The database isn't opened.
    Never,
}

/// A database of locations.
///
/// Every method fails with [`StoreError::Unavailable`] when the database doesn't answer. Dropping
/// a future cancels its query.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The page of the query's list that follows `after`, in one query, and one more for the count.
    async fn list(
        &self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> StoreResult<Page<Location, Cursor>>;

    /// Those of the locations that exist and belong to `owner` (`None`: to anyone), in any order.
    async fn get(&self, ids: &[LocationId], owner: Option<&OwnerId>) -> StoreResult<Vec<Location>>;

    /// The page of the query's reports that follows `after`.
    async fn reports(
        &self,
        query: &ReportQuery,
        after: Option<&ReportCursor>,
    ) -> StoreResult<Page<Report, ReportCursor>>;

    /// Begins to write. Nothing is seen by others before the commit; dropping it undoes it.
    ///
    /// [`MAX_WRITE`] counts from here: what has to outlast the write starts afterwards.
    async fn begin(&self) -> StoreResult<Box<dyn Transaction>>;

    /// Forgets the former image that a write noted at this time, unless another has noted one since.
    async fn delete_previous_image(&self, id: LocationId, noted: Micros) -> StoreResult<()>;

    /// Forgets the answers to creations, and the former images, from before this time.
    async fn purge_expired(&self, before: Micros) -> StoreResult<()>;

    /// The secret that page tokens are signed with, the same for all who share the database.
    async fn page_token_key(&self) -> StoreResult<[u8; 32]>;

    /// Whether the database records.
    async fn ping(&self) -> StoreResult<()>;

    /// Finishes what is under way and closes the database.
    async fn close(&self);
}

/// A write under way. Rows that it has read or written are locked until it ends.
///
/// Every method but `rollback` may fail with [`StoreError::Conflict`]: then the write is to be undone, and
/// may be tried again from its beginning.
#[async_trait]
pub trait Transaction: Send {
    /// Reads a location and locks it.
    async fn lock(&mut self, id: LocationId) -> StoreResult<Option<Location>>;

    /// Adds locations. [`StoreError::AlreadyExists`] tells which of them exist; nothing is to be
    /// committed then.
    async fn insert(&mut self, locations: &[Location]) -> StoreResult<()>;

    /// Replaces a location that is locked.
    async fn update(&mut self, location: &Location) -> StoreResult<()>;

    /// Deletes a location that is locked.
    async fn delete(&mut self, id: LocationId) -> StoreResult<()>;

    /// The images that were noted for these locations and not forgotten yet. This write, which closes
    /// their tags, forgets them.
    async fn take_previous_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Image>>;

    /// Notes the image that a location has before it is moved or deleted.
    async fn record_previous_image(&mut self, former: &Image, now: Micros) -> StoreResult<()>;

    /// The answers that this caller's creations with these request ids had.
    async fn find_idempotency_records(
        &mut self,
        caller: &OwnerId,
        ids: &[Uuid],
    ) -> StoreResult<Vec<IdempotencyRecord>>;

    /// Keeps records. False if another write has kept one under one of the ids meanwhile; nothing
    /// is to be committed then.
    async fn save_idempotency_records(
        &mut self,
        caller: &OwnerId,
        records: &[IdempotencyRecord],
        now: Micros,
    ) -> StoreResult<bool>;

    /// Makes the write last, if this is the cache's epoch then (`None`: the cache has no epochs);
    /// [`StoreError::Conflict`] if it isn't. [`StoreError::OutcomeUnknown`] if it can't tell whether the write
    /// lasts: then it may still come to last until [`MAX_WRITE`] is over. After any other error
    /// nothing was written.
    async fn commit(self: Box<Self>, epoch: Option<Epoch>) -> StoreResult<()>;

    /// Undoes it.
    async fn rollback(self: Box<Self>);
}

/// What a creation with a `request_id` was answered.
#[derive(Debug, Clone)]
pub struct IdempotencyRecord {
    /// The request id.
    pub request_id: Uuid,
    /// A digest of the request's body.
    pub fingerprint: [u8; 32],
    /// The serialized `location.v1.Location`.
    pub location: Vec<u8>,
}
