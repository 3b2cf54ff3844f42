//! The statements of a write within its transaction.

use std::collections::HashMap;

use uuid::Uuid;

use super::write::{Creation, Edit, Write};
use crate::{
    error::{Error, Result},
    model::{Etag, Image, Location, LocationId, Micros, OwnerId, Principal},
    proto,
    store::{IdempotencyRecord, StoreError, Transaction},
};

/// The effect of a write within its transaction.
#[derive(Default)]
pub(super) struct Applied {
    /// The locations to return.
    pub locations: Vec<Location>,
    /// Images before and after the write, plus the one before the previous move or deletion:
    /// acknowledging this write implies that one was committed, and its writer may have died before
    /// it reopened its tags. Earlier images don't matter: the previous write closed their tags.
    pub images: Vec<Image>,
    /// The record of the image before a move: its location, and its time. The next write needs it
    /// until this one has reopened its tags.
    pub previous_image: Option<(LocationId, Micros)>,
}

/// A write that isn't executed.
pub(super) struct Rejected {
    pub error: Error,
    /// The images that earlier writes have left, which the error reveals to have been committed:
    /// their writers may have died before they reopened their tags.
    pub images: Vec<Image>,
}

impl From<Error> for Rejected {
    fn from(error: Error) -> Self {
        Self {
            error,
            images: Vec::new(),
        }
    }
}

impl From<StoreError> for Rejected {
    fn from(error: StoreError) -> Self {
        Error::from(error).into()
    }
}

/// Executes a write's statements. `new_ids` are the ids of the locations to create.
pub(super) async fn apply(
    transaction: &mut dyn Transaction,
    write: &Write,
    caller: &Principal,
    new_ids: &[LocationId],
) -> Result<Applied, Rejected> {
    match write {
        Write::Create(creations) => create(transaction, creations, &caller.subject, new_ids).await,
        Write::Update { id, etag, edit } => {
            let before = lock(transaction, *id, etag.as_ref(), caller).await?;
            update(transaction, before, edit).await
        }
        Write::Delete {
            id,
            etag,
            allow_missing,
        } => match lock(transaction, *id, etag.as_ref(), caller).await {
            Ok(before) => delete(transaction, &before).await,
            Err(Rejected {
                error: Error::NotFound(_),
                images,
            }) if *allow_missing => Ok(Applied {
                images,
                ..Applied::default()
            }),
            Err(rejected) => Err(rejected),
        },
    }
}

/// Locks a location that the caller may change.
async fn lock(
    transaction: &mut dyn Transaction,
    id: LocationId,
    etag: Option<&Etag>,
    caller: &Principal,
) -> Result<Location, Rejected> {
    let location = transaction
        .lock(id)
        .await?
        .filter(|location| caller.scope().is_none_or(|owner| *owner == location.owner));
    let (error, image) = match location {
        None => (Error::NotFound(vec![id]), None),
        Some(location) if etag.is_some_and(|etag| *etag != location.etag) => {
            (Error::EtagMismatch(id), Some(location.image()))
        }
        Some(location) => return Ok(location),
    };
    let mut images = transaction.take_previous_images(&[id]).await?;
    images.extend(image);
    Err(Rejected { error, images })
}

async fn update(
    transaction: &mut dyn Transaction,
    before: Location,
    edit: &Edit,
) -> Result<Applied, Rejected> {
    let after = Location {
        details: edit(&before)?,
        update_time: Micros::now().max(Micros(before.update_time.0 + 1)),
        etag: Etag::generate(),
        ..before.clone()
    };
    transaction.update(&after).await?;
    let mut images = transaction.take_previous_images(&[after.id]).await?;
    let mut previous_image = None;
    if before.image() != after.image() {
        let recorded = transaction.record_previous_image(&before.image()).await?;
        previous_image = Some((after.id, recorded));
    }
    images.extend([before.image(), after.image()]);
    Ok(Applied {
        locations: vec![after],
        images,
        previous_image,
    })
}

async fn delete(transaction: &mut dyn Transaction, before: &Location) -> Result<Applied, Rejected> {
    transaction.delete(before.id).await?;
    let mut images = transaction.take_previous_images(&[before.id]).await?;
    let image = before.image();
    transaction.record_previous_image(&image).await?;
    images.push(image);
    Ok(Applied {
        images,
        // The record outlives the write, because a deletion may be retried.
        previous_image: None,
        ..Applied::default()
    })
}

/// The result of a creation with a request id.
struct Known {
    fingerprint: [u8; 32],
    location: Location,
}

impl Known {
    fn new(creation: &Creation, location: &Location) -> Self {
        Self {
            fingerprint: creation.fingerprint,
            location: location.clone(),
        }
    }
}

/// A location to insert.
struct Insert {
    /// The index of its request in the batch.
    index: usize,
    location: Location,
}

/// Returns the results of earlier creations by request id.
async fn find_known(
    transaction: &mut dyn Transaction,
    caller: &OwnerId,
    request_ids: &[Uuid],
) -> Result<HashMap<Uuid, Known>> {
    if request_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let records = transaction
        .find_idempotency_records(caller, request_ids)
        .await?;
    records
        .into_iter()
        .map(|record| {
            let known = Known {
                fingerprint: record.fingerprint,
                location: proto::decode_location(&record.location)?,
            };
            Ok((record.request_id, known))
        })
        .collect()
}

async fn create(
    transaction: &mut dyn Transaction,
    creations: &[Creation],
    caller: &OwnerId,
    new_ids: &[LocationId],
) -> Result<Applied, Rejected> {
    let request_ids: Vec<Uuid> = creations.iter().filter_map(|new| new.request_id).collect();
    let mut known = find_known(transaction, caller, &request_ids).await?;
    let known_before = known.len();
    let now = Micros::now();
    let mut inserts = Vec::new();
    let mut applied = Applied::default();
    for (index, creation) in creations.iter().enumerate() {
        let earlier = creation
            .request_id
            .and_then(|id| Some((id, known.get(&id)?)));
        if let Some((
            request_id,
            Known {
                fingerprint,
                location,
            },
        )) = earlier
        {
            if *fingerprint != creation.fingerprint {
                return Err(Rejected {
                    error: Error::RequestIdReused(request_id),
                    images: vec![location.image()],
                });
            }
            // The first call may have died before it reopened the tags.
            applied.images.push(location.image());
            applied.locations.push(location.clone());
            continue;
        }
        let new = creation.location.clone();
        let location = Location {
            id: new_ids[index],
            kind: new.kind,
            owner: new.owner,
            details: new.details,
            create_time: now,
            update_time: now,
            etag: Etag::generate(),
        };
        if let Some(request_id) = creation.request_id {
            known.insert(request_id, Known::new(creation, &location));
        }
        applied.images.push(location.image());
        applied.locations.push(location.clone());
        inserts.push(Insert { index, location });
    }
    let records: Vec<_> = inserts
        .iter()
        .filter_map(|insert| {
            let creation = &creations[insert.index];
            Some(IdempotencyRecord {
                request_id: creation.request_id?,
                fingerprint: creation.fingerprint,
                location: proto::encode_location(&insert.location),
            })
        })
        .collect();
    let (indexes, locations): (Vec<_>, Vec<_>) = inserts
        .into_iter()
        .map(|insert| (insert.index, insert.location))
        .unzip();
    if !locations.is_empty()
        && let Err(error) = transaction.insert(&locations).await
    {
        // The ids may belong to another call with the same request ids, whose records are visible
        // now.
        if !request_ids.is_empty()
            && matches!(error, StoreError::AlreadyExists { .. })
            && transaction
                .find_idempotency_records(caller, &request_ids)
                .await?
                .len()
                > known_before
        {
            return Err(concurrent_request_id().into());
        }
        let mut images = Vec::new();
        if let StoreError::AlreadyExists { indexes, .. } = &error {
            let existing: Vec<_> = indexes.iter().map(|index| locations[*index].id).collect();
            images = existing_images(transaction, &existing).await?;
        }
        return Err(Rejected {
            error: in_batch(error, &indexes).into(),
            images,
        });
    }
    let chosen: Vec<_> = creations.iter().filter_map(|new| new.location.id).collect();
    if !chosen.is_empty() {
        let previous = transaction.take_previous_images(&chosen).await?;
        applied.images.extend(previous);
    }
    if !records.is_empty()
        && !transaction
            .save_idempotency_records(caller, &records)
            .await?
    {
        return Err(concurrent_request_id().into());
    }
    Ok(applied)
}

/// The images that the writes of these locations have left.
async fn existing_images(
    transaction: &mut dyn Transaction,
    ids: &[LocationId],
) -> Result<Vec<Image>, StoreError> {
    let mut images = transaction.take_previous_images(ids).await?;
    for id in ids {
        let location = transaction.lock(*id).await?;
        images.extend(location.map(|location| location.image()));
    }
    Ok(images)
}

fn concurrent_request_id() -> Error {
    Error::conflict("a concurrent call uses the same request_id")
}

/// Maps the indexes of the inserted locations to those of the requests in the batch.
fn in_batch(error: StoreError, requests: &[usize]) -> StoreError {
    match error {
        StoreError::AlreadyExists { id, indexes } => StoreError::AlreadyExists {
            id,
            indexes: indexes.into_iter().map(|index| requests[index]).collect(),
        },
        error => error,
    }
}
