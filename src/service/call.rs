//! Writes as callers request them, and their results.

use uuid::Uuid;

use crate::{
    error::{Result, Violations},
    model::{Details, Etag, Location, LocationId, NewLocation, OwnerId},
};

/// A call that writes.
pub struct WriteCall {
    /// The write.
    pub write: Write,
    /// Whether the call is a batch, whose errors have the indexes of requests.
    pub batch: bool,
    /// Whether the write is only tried, and then rolled back.
    pub validate_only: bool,
}

/// A write of locations, all or none, in order.
pub enum Write {
    /// Creates locations.
    Create(Vec<Creation>),
    /// Changes locations.
    Update(Vec<Update>),
    /// Deletes locations.
    Delete(Vec<Deletion>),
}

/// A change of a location.
pub struct Update {
    /// The location.
    pub id: LocationId,
    /// The etag that must be current, if any.
    pub etag: Option<Etag>,
    /// Computes the change.
    pub edit: Edit,
    /// The location to create if there is none, or why it is invalid. `None` to create none.
    pub create: Option<Result<NewLocation, Violations>>,
}

/// Computes the change of a location from its current state. Fails with the violations of the
/// result.
pub type Edit = Box<dyn Fn(&Location) -> Result<Edited> + Send + Sync>;

/// The changed fields of a location.
pub struct Edited {
    /// The owner.
    pub owner: OwnerId,
    /// The details.
    pub details: Details,
}

/// A deletion of a location.
pub struct Deletion {
    /// The location.
    pub id: LocationId,
    /// The etag that must be current, if any.
    pub etag: Option<Etag>,
    /// Whether deleting a missing location succeeds.
    pub allow_missing: bool,
}

/// A location that a write returns.
#[derive(Debug)]
pub struct Written {
    /// The location after the write.
    pub location: Location,
    /// The fields that the write has generated, or would generate.
    pub generated: Generated,
}

/// The fields of a location that a write generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    /// None: the location was stored before.
    Nothing,
    /// The time of the update and the etag.
    ForChange,
    /// The times, the etag, and the id unless the client has chosen it.
    ForCreation {
        /// Whether the id is generated.
        id: bool,
    },
}

/// A location to create.
#[derive(Debug)]
pub struct Creation {
    /// The location.
    pub location: NewLocation,
    /// Makes the creation safe to retry (AIP-155).
    pub idempotency: Option<Idempotency>,
}

/// The request id of a creation, and what it is used for.
#[derive(Debug, Clone, Copy)]
pub struct Idempotency {
    /// The request id.
    pub request_id: Uuid,
    /// A digest of the location and its chosen id.
    pub fingerprint: [u8; 32],
}
