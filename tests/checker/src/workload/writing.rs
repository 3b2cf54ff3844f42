//! Creations, updates and deletions.

use std::ops::Range;

use location_service::proto::location::v1;
use prost_types::FieldMask;
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use tonic::Code;
use uuid::Uuid;

use super::{
    Losses, Worker,
    doubt::{Doubt, LOOK_AGAIN, Owned},
    sending::{Sending, Sent},
};
use crate::history::{Content, Kind, Label, Name};

/// The number of locations that a client keeps, except those in doubt.
const LOCATIONS: Range<usize> = 2..6;

impl Worker {
    /// Makes a random write.
    pub(super) async fn write(&mut self, rng: &mut StdRng) {
        let roll = rng.random_range(0..100);
        let sure: Vec<_> = (0..self.owned.len())
            .filter(|&index| self.owned[index].doubt.is_none())
            .collect();
        let pick = sure.choose(rng).copied();
        match pick {
            Some(index) if self.owned.len() >= LOCATIONS.end || sure.len() > LOCATIONS.start => {
                if roll < 20 || self.owned.len() > LOCATIONS.end {
                    self.delete(rng, index).await;
                } else if roll < 40 && self.owned.len() < LOCATIONS.end {
                    self.create(rng).await;
                } else {
                    self.update(rng, index).await;
                }
            }
            _ if self.owned.len() < 2 * LOCATIONS.end => self.create(rng).await,
            _ => self.read(rng).await,
        }
    }

    async fn create(&mut self, rng: &mut StdRng) {
        let name = Name {
            client: self.number,
            serial: self.serial,
        };
        self.serial += 1;
        let owner = if self.admin && rng.random_ratio(2, 3) {
            self.settings.owner(rng)
        } else {
            self.subject.clone()
        };
        let content = Content {
            kind: [Kind::Delivery, Kind::Storage][rng.random_range(0..2)],
            owner,
            run: self.settings.run(rng),
            active: rng.random_ratio(3, 4),
            capacity: rng.random_range(0..1_000),
        };
        let label = Label { name, version: 0 };
        let mut location = proto(&content, label);
        if !self.admin {
            location.owner_id.clear();
        }
        // Without a request id it can't be retried, so its id must be known to read it.
        let retriable = rng.random_ratio(1, 2);
        let chosen = !retriable || rng.random_ratio(1, 2) || self.settings.losses == Losses::Split;
        // Not from the seed: ids must differ between runs on the same database.
        let uuid = |wanted: bool| wanted.then(|| Uuid::new_v4().to_string());
        let request = v1::CreateLocationRequest {
            location: Some(location),
            location_id: uuid(chosen).unwrap_or_default(),
            request_id: uuid(retriable).unwrap_or_default(),
            validate_only: false,
        };
        self.owned.push(Owned {
            name,
            id: request.location_id.clone(),
            version: 0,
            content,
            etag: String::new(),
            doubt: None,
            careful: false,
        });
        let index = self.owned.len() - 1;
        if let Some(name) = self.send_creation(rng, index, Box::new(request)).await {
            self.echo(rng, name, None).await;
        }
    }

    /// Sends a creation, or retries it. Returns the location if it was acknowledged.
    pub(super) async fn send_creation(
        &mut self,
        rng: &mut StdRng,
        index: usize,
        request: Box<v1::CreateLocationRequest>,
    ) -> Option<Name> {
        let first = self.owned[index].doubt.is_none();
        let description = match (request.request_id.is_empty(), first) {
            (true, _) => "creation",
            (false, true) => "creation with request_id",
            (false, false) => "creation, retried",
        };
        let sending = Sending::Create(request.clone());
        let leaves = Some(self.owned[index].content.clone());
        let sent = self.send(rng, index, description, leaves, sending).await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        match sent {
            Sent::Done(Some(location)) => {
                owned.doubt = None;
                owned.id.clone_from(&location.id);
                owned.etag = location.etag;
                self.fleet.publish(owned.name, &location.id);
                return Some(owned.name);
            }
            Sent::Failed(_) if first => {
                self.owned.swap_remove(index);
            }
            _ if request.request_id.is_empty() => owned.doubt = Some((Doubt::State(0), later)),
            _ => owned.doubt = Some((Doubt::Creation(request), later)),
        }
        None
    }

    async fn update(&mut self, rng: &mut StdRng, index: usize) {
        let run = self.settings.run(rng);
        let capacity = rng.random_range(0..1_000);
        let (roll, conditional) = (rng.random_range(0..4), rng.random_ratio(1, 2));
        let owned = &mut self.owned[index];
        owned.version += 1;
        let label = Label {
            name: owned.name,
            version: owned.version,
        };
        let mut after = owned.content.clone();
        // The display name always changes, because it repeats the other fields.
        let mut paths = vec!["display_name".to_owned()];
        let description = match roll {
            0 => {
                after.run = run;
                paths.push("production_run_id".to_owned());
                "move"
            }
            1 => {
                after.active = !after.active;
                paths.push("state".to_owned());
                "change of state"
            }
            2 => {
                after.capacity = capacity;
                paths.push("capacity".to_owned());
                "change of capacity"
            }
            _ => "rename",
        };
        let conditional = conditional || owned.careful;
        if self.settings.losses != Losses::None && !conditional {
            paths = ["display_name", "production_run_id", "state", "capacity"]
                .map(str::to_owned)
                .into();
        }
        let etag = owned.etag.clone();
        let request = v1::UpdateLocationRequest {
            location: Some(v1::Location {
                id: owned.id.clone(),
                etag: if conditional { etag } else { String::new() },
                ..proto(&after, label)
            }),
            update_mask: Some(FieldMask { paths }),
            ..v1::UpdateLocationRequest::default()
        };
        let description = format!(
            "{description}{}",
            if conditional { ", with etag" } else { "" }
        );
        let sending = Sending::Update(Box::new(request));
        let sent = self
            .send(rng, index, &description, Some(after.clone()), sending)
            .await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        match sent {
            Sent::Done(Some(location)) => {
                owned.careful = false;
                owned.etag = location.etag;
                let before = std::mem::replace(&mut owned.content, after);
                let name = owned.name;
                self.echo(rng, name, Some(before)).await;
            }
            Sent::Failed(Code::NotFound) => {
                self.owned.swap_remove(index);
            }
            // An earlier write in doubt has taken effect.
            Sent::Failed(Code::Aborted) => {
                owned.careful = true;
                owned.doubt = Some((Doubt::State(0), 0));
            }
            Sent::Failed(_) => {}
            Sent::Done(None) | Sent::InDoubt if conditional => {
                owned.careful = true;
                owned.doubt = Some((Doubt::State(0), later));
            }
            Sent::Done(None) | Sent::InDoubt => owned.doubt = Some((Doubt::Update, later)),
        }
    }

    pub(super) async fn delete(&mut self, rng: &mut StdRng, index: usize) {
        let (conditional, allow_missing) = (rng.random_ratio(1, 2), rng.random_ratio(1, 3));
        let owned = &mut self.owned[index];
        let ends_doubt = matches!(owned.doubt, Some((Doubt::Update, _)));
        // A retried deletion may find the location missing.
        let again = matches!(owned.doubt, Some((Doubt::Deletion, _)));
        if !again {
            owned.version += 1;
        }
        let conditional = !again && !ends_doubt && (conditional || owned.careful);
        let etag = owned.etag.clone();
        let request = v1::DeleteLocationRequest {
            id: owned.id.clone(),
            etag: if conditional { etag } else { String::new() },
            allow_missing: again || allow_missing,
            validate_only: false,
        };
        let description = match (conditional, request.allow_missing) {
            (true, _) => "deletion, with etag",
            (_, true) => "deletion, allow_missing",
            _ => "deletion",
        };
        let sent = self
            .send(rng, index, description, None, Sending::Delete(request))
            .await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        let name = owned.name;
        match sent {
            Sent::Done(_) => {
                let before = self.owned.swap_remove(index).content;
                self.echo(rng, name, Some(before)).await;
            }
            Sent::InDoubt => owned.doubt = Some((Doubt::Deletion, later)),
            Sent::Failed(_) if again => owned.doubt = Some((Doubt::Deletion, later)),
            Sent::Failed(Code::NotFound) => {
                self.owned.swap_remove(index);
            }
            Sent::Failed(_) if ends_doubt => owned.doubt = Some((Doubt::Update, later)),
            Sent::Failed(Code::Aborted) => {
                owned.careful = true;
                owned.doubt = Some((Doubt::State(0), 0));
            }
            Sent::Failed(_) => {}
        }
    }
}

fn proto(content: &Content, label: Label) -> v1::Location {
    let state = if content.active {
        v1::LocationState::Active
    } else {
        v1::LocationState::Inactive
    };
    v1::Location {
        r#type: content.kind.proto().into(),
        display_name: content.text(label),
        production_run_id: content.run.clone(),
        owner_id: content.owner.clone(),
        capacity: content.capacity,
        state: state.into(),
        ..v1::Location::default()
    }
}
