//! Writes, and the resolution of writes with an unknown outcome.

use std::{ops::Range, sync::atomic::Ordering};

use location_service::proto::location::v1;
use prost_types::FieldMask;
use rand::{RngExt as _, rngs::StdRng, seq::IndexedRandom as _};
use tonic::Code;
use uuid::Uuid;

use super::{
    Worker,
    calling::{WRITE_DEADLINE, changed_nothing, describe},
};
use crate::history::{
    Content, Event, Item, Kind, Label, Micros, Name, Operation, Outcome, Page, Reply, Write,
    Written, short_etag,
};

/// The number of locations that a client keeps, except those in doubt.
const LOCATIONS: Range<usize> = 2..6;

/// The interval between attempts to resolve a doubt.
const LOOK_AGAIN: Micros = 300_000;

/// Maximum number of reads to find a location whose creation is in doubt.
const LOOKS: u32 = 100;

/// A location that a client writes.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) name: Name,
    /// The id; empty while it is unknown.
    pub(super) id: String,
    /// The number of the last write.
    version: u32,
    /// The last known state.
    pub(super) content: Content,
    etag: String,
    /// A doubt to resolve before other writes, and the time of the next attempt.
    doubt: Option<(Doubt, Micros)>,
    /// Whether a conditional write, or the creation, was in doubt: all writes are then conditional until
    /// one is acknowledged, which fixes their order.
    careful: bool,
}

/// A write with an unknown outcome.
#[derive(Debug)]
enum Doubt {
    /// A creation, which is retried with its request id.
    Creation(Box<v1::CreateLocationRequest>),
    /// A write whose effect a read must show, with the number of reads so far.
    State(u32),
    /// An unconditional update, which may take effect after any later update. A deletion ends the doubt.
    Update,
    /// A deletion, which is retried.
    Deletion,
}

/// A write to send.
enum Sending {
    Create(Box<v1::CreateLocationRequest>),
    Update(Box<v1::UpdateLocationRequest>),
    Delete(v1::DeleteLocationRequest),
}

/// The result of a write for its client.
enum Sent {
    Done(Option<Box<v1::Location>>),
    Failed(Code),
    InDoubt,
}

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
        let chosen = !retriable || rng.random_ratio(1, 2);
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
    async fn send_creation(
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
        let etag = owned.etag.clone();
        let request = v1::UpdateLocationRequest {
            location: Some(v1::Location {
                id: owned.id.clone(),
                etag: if conditional { etag } else { String::new() },
                ..proto(&after, label)
            }),
            update_mask: Some(FieldMask { paths }),
            validate_only: false,
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
            // The other one of two writes in doubt has taken effect.
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

    async fn delete(&mut self, rng: &mut StdRng, index: usize) {
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

    /// Makes the next attempt to resolve the doubt of one location, if it is due.
    pub(super) async fn resolve_doubt(&mut self, rng: &mut StdRng) {
        let now = self.recorder.now();
        let due = |owned: &Owned| owned.doubt.as_ref().is_some_and(|(_, when)| *when <= now);
        let Some(index) = self.owned.iter().position(due) else {
            return;
        };
        match &self.owned[index].doubt {
            Some((Doubt::Creation(request), _)) => {
                let request = request.clone();
                self.send_creation(rng, index, request).await;
            }
            Some((Doubt::State(looks), _)) => {
                let looks = *looks;
                self.look(rng, index, looks).await;
            }
            Some((Doubt::Update | Doubt::Deletion, _)) => self.delete(rng, index).await,
            None => {}
        }
    }

    /// Reads the state of a location in doubt.
    async fn look(&mut self, rng: &mut StdRng, index: usize, looks: u32) {
        let (name, id) = (self.owned[index].name, self.owned[index].id.clone());
        let found = self.get(rng, name, &id, true).await;
        let later = self.recorder.now() + LOOK_AGAIN;
        let owned = &mut self.owned[index];
        let ours = |location: &v1::Location| {
            let item = Item::of(location)?;
            Some((item.label, Content::of(location)?))
        };
        match found {
            Ok(Some(location)) => {
                if let Some((_, content)) = ours(&location) {
                    owned.content = content;
                    owned.etag = location.etag;
                    owned.careful = true;
                    owned.doubt = None;
                }
            }
            // A creation that may still take effect. After the last read, the location is abandoned.
            Ok(None) if looks == LOOKS || owned.version > 0 => {
                self.owned.swap_remove(index);
            }
            Ok(None) => owned.doubt = Some((Doubt::State(looks + 1), later)),
            Err(()) => owned.doubt = Some((Doubt::State(looks), later)),
        }
    }

    /// Sends the write of the location's current version, and records it.
    async fn send(
        &self,
        rng: &mut StdRng,
        index: usize,
        description: &str,
        leaves: Option<Content>,
        sending: Sending,
    ) -> Sent {
        let owned = &self.owned[index];
        let label = Label {
            name: owned.name,
            version: owned.version,
        };
        let replica = self.replica(rng);
        let deadline = self.deadline(rng, WRITE_DEADLINE);
        let begun = self.recorder.now();
        let text = leaves.as_ref().map(|content| content.text(label));
        let description = match &text {
            Some(text) => format!("{description}: {text}"),
            None => description.to_owned(),
        };
        self.recorder
            .record(Event::Write(Write {
                at: begun,
                client: self.number,
                replica,
                label,
                description,
                leaves,
            }))
            .await;
        let mut stub = self.stubs[replica].clone();
        let called = match sending {
            Sending::Create(request) => {
                let request = self.request(*request, deadline, false);
                let called = self.call(replica, deadline, stub.create_location(request));
                called.await.map(|response| Some(response.into_inner()))
            }
            Sending::Update(request) => {
                let request = self.request(*request, deadline, false);
                let called = self.call(replica, deadline, stub.update_location(request));
                called.await.map(|response| Some(response.into_inner()))
            }
            Sending::Delete(request) => {
                let request = self.request(request, deadline, false);
                let called = self.call(replica, deadline, stub.delete_location(request));
                called.await.map(|_| None)
            }
        };
        let at = self.recorder.now();
        let outcome = match &called {
            Ok(location) => {
                let etag = location.as_ref().map(|it| short_etag(&it.etag));
                Outcome::Acknowledged(etag)
            }
            Err(status) if changed_nothing(status) => Outcome::Failed(describe(status)),
            Err(status) => Outcome::InDoubt(describe(status)),
        };
        let sent = match (&outcome, called) {
            (Outcome::Failed(_), Err(status)) => Sent::Failed(status.code()),
            (_, Ok(location)) => Sent::Done(location.map(Box::new)),
            _ => Sent::InDoubt,
        };
        self.recorder
            .record(Event::Written(Written {
                at,
                begun,
                client: self.number,
                replica,
                label,
                outcome,
            }))
            .await;
        // The response to a write is also a read of the location.
        let page = |reply| Page {
            start: begun,
            end: at,
            cache: "write".to_owned(),
            reply,
        };
        let said = match &sent {
            Sent::Done(Some(location)) => {
                let shown = Item::of(location).map(|item| item.text);
                (shown != text).then(|| Reply::Invalid(format!("{location:?}")))
            }
            // This is the only writer of the location, and it has no deletion in doubt.
            Sent::Failed(Code::NotFound) => Some(Reply::Missing),
            _ => None,
        };
        if let Some(reply) = said {
            let operation = Operation::Get(label.name);
            self.record(replica, operation, vec![page(reply)]).await;
        }
        if matches!(sent, Sent::Done(_)) {
            let states = &self.fleet.states[replica];
            states.acknowledged.fetch_max(begun, Ordering::Relaxed);
        }
        sent
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
