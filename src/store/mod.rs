//! The system of record, and the traits that a database engine implements.

mod sql;
pub mod sqlite;

use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    error::Result,
    model::{
        Cursor, ListQuery, Location, LocationId, Micros, OwnerId, Page, Report, ReportCursor,
        ReportQuery,
    },
};

/// How much text a page of locations holds before it is cut short: clients refuse answers of more
/// than 4 MiB.
pub const MAX_PAGE_BYTES: usize = 3 << 20;

/// How long a pooled connection, or another process's lock, is waited for.
pub const WAIT_SECS: u64 = 5;

/// A database of locations.
///
/// Every method fails with `Error::DatabaseUnavailable` when the database doesn't answer. Dropping
/// a future cancels its query.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The page of the query's list that follows `after`, in one query, and one more for the count.
    async fn list(
        &self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> Result<Page<Location, Cursor>>;

    /// Those of the locations that exist and belong to `owner` (`None`: to anyone), in any order.
    async fn get(&self, ids: &[LocationId], owner: Option<&OwnerId>) -> Result<Vec<Location>>;

    /// The page of the query's reports that follows `after`.
    async fn reports(
        &self,
        query: &ReportQuery,
        after: Option<&ReportCursor>,
    ) -> Result<Page<Report, ReportCursor>>;

    /// Begins to write. Nothing is seen by others before the commit; dropping it undoes it.
    async fn begin(&self) -> Result<Box<dyn Transaction>>;

    /// Forgets the answers to creations before this time.
    async fn forget_answers(&self, before: Micros) -> Result<()>;

    /// The secret that page tokens are signed with, the same for all who share the database.
    async fn page_token_key(&self) -> Result<[u8; 32]>;

    /// Whether the database answers.
    async fn ping(&self) -> Result<()>;

    /// Finishes what is under way and closes the database.
    async fn close(&self);
}

/// A write under way. Rows that it has read or written are locked until it ends.
#[async_trait]
pub trait Transaction: Send {
    /// Reads a location and locks it.
    async fn lock(&mut self, id: LocationId) -> Result<Option<Location>>;

    /// Adds locations. `Error::AlreadyExists` tells which of them exist; nothing is to be
    /// committed then.
    async fn insert(&mut self, locations: &[Location]) -> Result<()>;

    /// Replaces a location that is locked.
    async fn update(&mut self, location: &Location) -> Result<()>;

    /// Deletes a location that is locked.
    async fn delete(&mut self, id: LocationId) -> Result<()>;

    /// The answers that this caller's creations with these request ids had.
    async fn answers(&mut self, caller: &OwnerId, ids: &[Uuid]) -> Result<Vec<Answer>>;

    /// Keeps answers. False if another write has kept one under one of the ids meanwhile; nothing
    /// is to be committed then.
    async fn keep_answers(
        &mut self,
        caller: &OwnerId,
        answers: &[Answer],
        now: Micros,
    ) -> Result<bool>;

    /// Makes the write last. `Error::OutcomeUnknown` if it can't tell whether it did; after any
    /// other error nothing was written.
    async fn commit(self: Box<Self>) -> Result<()>;

    /// Undoes it.
    async fn rollback(self: Box<Self>);
}

/// What a creation with a `request_id` was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The request id.
    pub request_id: Uuid,
    /// A digest of the request's body.
    pub fingerprint: [u8; 32],
    /// The serialized `location.v1.Location`.
    pub location: Vec<u8>,
}
