//! Creations.

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    super::call::{Creation, Generated, Written},
    Applied, Rejected, Statements, created,
};
use crate::{
    error::{Error, Result},
    model::{Location, LocationId, Micros, OwnerId},
    proto,
    store::{IdempotencyRecord, StoreError, Transaction},
};

/// The result of a creation with a request id.
struct Known {
    fingerprint: [u8; 32],
    location: Location,
    /// [`Generated::Nothing`] for the result of an earlier call.
    generated: Generated,
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
                generated: Generated::Nothing,
            };
            Ok((record.request_id, known))
        })
        .collect()
}

impl Statements<'_> {
    /// Creates locations, all or none.
    pub(super) async fn create(
        &mut self,
        creations: &[Creation],
        new_ids: &[LocationId],
    ) -> Result<Applied, Rejected> {
        let caller = &self.caller.subject;
        let request_ids: Vec<Uuid> = creations
            .iter()
            .filter_map(|new| Some(new.idempotency?.request_id))
            .collect();
        let mut known = find_known(self.transaction, caller, &request_ids).await?;
        let known_before = known.len();
        let now = Micros::now();
        let mut inserts = Vec::new();
        let mut applied = Applied::default();
        for (index, creation) in creations.iter().enumerate() {
            let earlier = creation
                .idempotency
                .and_then(|new| Some((new, known.get(&new.request_id)?)));
            if let Some((repeated, earlier)) = earlier {
                if earlier.fingerprint != repeated.fingerprint {
                    return Err(Rejected {
                        error: Error::RequestIdReused {
                            id: repeated.request_id,
                            field: self.path(index, "request_id"),
                        },
                        images: vec![earlier.location.image()],
                    });
                }
                // The first call may have died before it reopened the tags.
                applied.images.push(earlier.location.image());
                if earlier.generated == Generated::Nothing {
                    applied.revealed.push(earlier.location.image());
                }
                applied.locations.push(Written {
                    location: earlier.location.clone(),
                    generated: earlier.generated,
                });
                continue;
            }
            let created = created(new_ids[index], creation.location.clone(), now);
            let location = created.location.clone();
            if let Some(idempotency) = creation.idempotency {
                let new = Known {
                    fingerprint: idempotency.fingerprint,
                    location: location.clone(),
                    generated: created.generated,
                };
                known.insert(idempotency.request_id, new);
            }
            applied.images.push(location.image());
            applied.locations.push(created);
            inserts.push(Insert { index, location });
        }
        let records: Vec<_> = inserts
            .iter()
            .filter_map(|insert| {
                let idempotency = creations[insert.index].idempotency?;
                Some(IdempotencyRecord {
                    request_id: idempotency.request_id,
                    fingerprint: idempotency.fingerprint,
                    location: proto::encode_location(&insert.location),
                })
            })
            .collect();
        let (indexes, locations): (Vec<_>, Vec<_>) = inserts
            .into_iter()
            .map(|insert| (insert.index, insert.location))
            .unzip();
        if !locations.is_empty()
            && let Err(error) = self.transaction.insert(&locations).await
        {
            let StoreError::AlreadyExists { indexes: used, .. } = error else {
                return Err(error.into());
            };
            // The ids may belong to another call with the same request ids, whose records are visible
            // now.
            if find_known(self.transaction, caller, &request_ids)
                .await?
                .len()
                > known_before
            {
                return Err(concurrent_request_id().into());
            }
            let used = used
                .into_iter()
                .map(|used| (indexes[used], locations[used].id));
            self.reject(Error::AlreadyExists, used.collect()).await?;
            return Err(Error::internal("no location exists").into());
        }
        let chosen: Vec<_> = creations.iter().filter_map(|new| new.location.id).collect();
        if !chosen.is_empty() {
            let previous = self.transaction.take_previous_images(&chosen).await?;
            applied.images.extend(previous);
        }
        if !records.is_empty()
            && !self
                .transaction
                .save_idempotency_records(caller, &records)
                .await?
        {
            return Err(concurrent_request_id().into());
        }
        Ok(applied)
    }
}

fn concurrent_request_id() -> Error {
    Error::conflict("a concurrent call uses the same request_id")
}
