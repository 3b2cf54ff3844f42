//! Sends writes, and records them.

use std::sync::atomic::Ordering;

use location_service::proto::location::v1;
use rand::rngs::StdRng;
use tonic::Code;

use super::{
    Worker,
    calling::{WRITE_DEADLINE, changed_nothing, describe},
};
use crate::history::{
    Content, Event, Item, Label, Operation, Outcome, Page, Reply, Write, Written, short_etag,
};

/// A write to send.
pub(super) enum Sending {
    Create(Box<v1::CreateLocationRequest>),
    Update(Box<v1::UpdateLocationRequest>),
    Delete(v1::DeleteLocationRequest),
}

/// The result of a write for its client.
pub(super) enum Sent {
    Done(Option<Box<v1::Location>>),
    Failed(Code),
    InDoubt,
}

impl Worker {
    /// Sends the write of the location's current version, and records it.
    pub(super) async fn send(
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
