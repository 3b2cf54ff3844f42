//! Updates, and creations of missing locations.

use std::collections::HashMap;

use super::{
    super::call::{Edited, Generated, Update, Written},
    Applied, PreviousImages, Rejected, Statements, created, distinct,
};
use crate::{
    error::{Error, Result, Violations},
    model::{Etag, Image, Location, LocationId, Micros},
    proto::{MAX_RESPONSE_BYTES, item_bytes},
    store::StoreError,
};

/// Why requests of a batch fail.
#[derive(Default)]
struct Failures {
    invalid: Violations,
    missing: Vec<(usize, LocationId)>,
    existing: Vec<(usize, LocationId)>,
    stale: Vec<(usize, LocationId)>,
}

/// A location before the batch, and after the requests so far.
struct State {
    before: Option<Location>,
    after: Option<Location>,
}

impl Statements<'_> {
    /// Updates locations in order, all or none.
    pub(super) async fn update(&mut self, updates: &[Update]) -> Result<Applied, Rejected> {
        let ids = distinct(updates.iter().map(|update| update.id));
        let mut states: HashMap<_, _> = ids
            .iter()
            .map(|id| {
                let state = State {
                    before: None,
                    after: None,
                };
                (*id, state)
            })
            .collect();
        for location in self.transaction.lock(&ids).await? {
            if let Some(state) = states.get_mut(&location.id) {
                state.after = Some(location.clone());
                state.before = Some(location);
            }
        }
        let mut failures = Failures::default();
        let mut written = Vec::with_capacity(updates.len());
        for (index, update) in updates.iter().enumerate() {
            let Some(State { after, .. }) = states.get_mut(&update.id) else {
                continue;
            };
            if let Some(result) = self.step(index, update, after.as_ref(), &mut failures)? {
                *after = Some(result.location.clone());
                written.push(result);
            }
        }
        self.check(failures).await?;
        if self.batch {
            check_size(&written)?;
        }
        let states = ids.iter().filter_map(|id| states.remove(id));
        self.store(&ids, states, written).await
    }

    /// The result of one request; `None` if it fails.
    fn step(
        &self,
        index: usize,
        update: &Update,
        current: Option<&Location>,
        failures: &mut Failures,
    ) -> Result<Option<Written>> {
        let Update {
            id,
            etag,
            edit,
            create,
        } = update;
        let visible = current.filter(|location| self.sees(&location.owner));
        let Some(before) = visible else {
            match create {
                None => failures.missing.push((index, *id)),
                Some(_) if current.is_some() => failures.existing.push((index, *id)),
                Some(_) if etag.is_some() => failures.stale.push((index, *id)),
                Some(new) => match new {
                    Ok(new) => return Ok(Some(created(*id, new.clone(), Micros::now()))),
                    Err(violations) => self.add(index, violations.clone(), failures),
                },
            }
            return Ok(None);
        };
        let is_stale = etag.as_ref().is_some_and(|etag| *etag != before.etag);
        match edit(before) {
            // RFC 9110, 13.1.1: the change has been made already.
            Ok(Edited { owner, details }) if owner == before.owner && details == before.details => {
                return Ok(Some(Written {
                    location: before.clone(),
                    generated: Generated::Nothing,
                }));
            }
            Ok(_) | Err(Error::InvalidArgument(_)) if is_stale => {
                failures.stale.push((index, *id));
            }
            Ok(edited) => return Ok(Some(changed(before, edited))),
            Err(Error::InvalidArgument(violations)) => self.add(index, violations, failures),
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    fn add(&self, index: usize, mut violations: Violations, failures: &mut Failures) {
        violations.prefix(&self.path(index, ""));
        failures.invalid.append(violations);
    }

    /// Rejects the write if requests fail.
    async fn check(&mut self, failures: Failures) -> Result<(), Rejected> {
        let Failures {
            invalid,
            missing,
            existing,
            stale,
        } = failures;
        invalid.finish(Some(()))?;
        self.reject(Error::NotFound, missing).await?;
        self.reject(Error::AlreadyExists, existing).await?;
        self.reject(Error::EtagMismatch, stale).await
    }

    /// Writes the locations that have changed.
    async fn store(
        &mut self,
        ids: &[LocationId],
        states: impl Iterator<Item = State>,
        locations: Vec<Written>,
    ) -> Result<Applied, Rejected> {
        let mut images = Vec::new();
        let (mut new, mut changed, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for State { before, after } in states {
            let before_image = before.as_ref().map(Location::image);
            let Some(after) = after else {
                continue;
            };
            let after_image = after.image();
            match (before, &before_image) {
                (None, _) => new.push(after),
                (Some(before), Some(image)) if before.etag != after.etag => {
                    if *image != after_image {
                        moved.push(image.clone());
                    }
                    changed.push(after);
                }
                _ => {}
            }
            images.extend(before_image);
            images.push(after_image);
        }
        if !new.is_empty() {
            match self.transaction.insert(&new).await {
                // A concurrent call has created it: update it in the next attempt.
                Err(StoreError::AlreadyExists { .. }) => {
                    return Err(Error::conflict("the location was created concurrently").into());
                }
                inserted => inserted?,
            }
        }
        if !changed.is_empty() {
            self.transaction.update(&changed).await?;
        }
        let previous = self.transaction.take_previous_images(ids).await?;
        let previous_images = if moved.is_empty() {
            None
        } else {
            let recorded = self.transaction.record_previous_images(&moved).await?;
            let ids = moved.iter().map(|image| image.id).collect();
            Some(PreviousImages { ids, recorded })
        };
        // A creation reveals that the location was deleted.
        let is_new = |image: &Image| new.iter().any(|location| location.id == image.id);
        let revealed = previous
            .iter()
            .filter(|image| is_new(image))
            .cloned()
            .collect();
        images.extend(previous);
        Ok(Applied {
            locations,
            images,
            revealed,
            previous_images,
        })
    }
}

fn changed(before: &Location, Edited { owner, details }: Edited) -> Written {
    Written {
        location: Location {
            owner,
            details,
            update_time: Micros::now().max(Micros(before.update_time.0 + 1)),
            etag: Etag::generate(),
            ..before.clone()
        },
        generated: Generated::ForChange,
    }
}

/// Checks that clients accept the response.
fn check_size(written: &[Written]) -> Result<()> {
    let bytes: usize = written
        .iter()
        .map(|written| item_bytes(&written.location.clone().into()))
        .sum();
    if bytes <= MAX_RESPONSE_BYTES {
        return Ok(());
    }
    Err(Error::invalid(
        "requests",
        format!(
            "would return locations of {bytes} bytes, over the limit of {MAX_RESPONSE_BYTES} for a \
             response: update fewer at once"
        ),
    ))
}
