//! The statements of a write within its transaction.

mod create;
mod delete;
mod update;

use super::call::{Generated, Write, Written};
use crate::{
    error::{Culprits, Error},
    model::{Etag, Image, Location, LocationId, Micros, NewLocation, OwnerId, Principal},
    store::{StoreError, Transaction},
};

/// The effect of a write within its transaction.
#[derive(Default)]
pub(super) struct Applied {
    /// The locations to return.
    pub locations: Vec<Written>,
    /// Images before and after the write, plus the ones before the previous moves or deletions:
    /// acknowledging this write implies that those were committed, and their writers may have died
    /// before they reopened their tags. Earlier images don't matter: the previous writes closed their
    /// tags.
    pub images: Vec<Image>,
    /// Those of the images that earlier writes have left, and that the response reveals even if this
    /// write is only validated.
    pub revealed: Vec<Image>,
    /// The records of the images before moves. The next write needs them until this one has reopened
    /// its tags.
    pub previous_images: Option<PreviousImages>,
}

/// Records of images that were made at the same time.
pub(super) struct PreviousImages {
    pub ids: Vec<LocationId>,
    pub recorded: Micros,
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

/// The transaction in which a write's statements run, and its caller.
pub(super) struct Statements<'a> {
    pub transaction: &'a mut dyn Transaction,
    pub caller: &'a Principal,
    /// Whether errors have the indexes of requests.
    pub batch: bool,
}

impl Statements<'_> {
    /// Executes a write's statements. `new_ids` are the ids of the locations to create.
    pub async fn apply(
        &mut self,
        write: &Write,
        new_ids: &[LocationId],
    ) -> Result<Applied, Rejected> {
        match write {
            Write::Create(creations) => self.create(creations, new_ids).await,
            Write::Update(updates) => self.update(updates).await,
            Write::Delete(deletions) => self.delete(deletions).await,
        }
    }

    /// The path of a request's field: in a batch, with its index.
    fn path(&self, index: usize, field: &str) -> String {
        if self.batch {
            format!("requests[{index}].{field}")
        } else {
            field.to_owned()
        }
    }

    /// Whether the caller may see the locations of an owner.
    fn sees(&self, owner: &OwnerId) -> bool {
        self.caller.scope().is_none_or(|scope| scope == owner)
    }

    /// Rejects a write because of these requests and locations, with the images that earlier writes of
    /// the locations have left. Does nothing if there are none.
    async fn reject(
        &mut self,
        error: impl FnOnce(Culprits) -> Error,
        items: Vec<(usize, LocationId)>,
    ) -> Result<(), Rejected> {
        let Some(culprits) = Culprits::new(items, self.batch) else {
            return Ok(());
        };
        let ids: Vec<_> = culprits.ids().collect();
        let error = error(culprits);
        let mut images = self.transaction.take_previous_images(&ids).await?;
        // A location that wasn't found may be another owner's.
        if !matches!(error, Error::NotFound(_)) {
            let locked = self.transaction.lock_images(&ids).await?;
            images.extend(locked.into_iter().map(|(image, _)| image));
        }
        Err(Rejected { error, images })
    }
}

/// A new location, created at this time.
fn created(id: LocationId, new: NewLocation, now: Micros) -> Written {
    Written {
        generated: Generated::ForCreation {
            id: new.id.is_none(),
        },
        location: Location {
            id,
            kind: new.kind,
            owner: new.owner,
            details: new.details,
            create_time: now,
            update_time: now,
            etag: Etag::generate(),
        },
    }
}

/// The ids of a batch, each once.
fn distinct(ids: impl Iterator<Item = LocationId>) -> Vec<LocationId> {
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
