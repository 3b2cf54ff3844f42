//! The locations that a client writes, and the resolution of writes with an unknown outcome.

use location_service::proto::location::v1;
use rand::rngs::StdRng;

use super::Worker;
use crate::history::{Content, Item, Micros, Name};

/// The interval between attempts to resolve a doubt.
pub(super) const LOOK_AGAIN: Micros = 300_000;

/// Maximum number of reads to find a location whose creation is in doubt.
const LOOKS: u32 = 100;

/// A location that a client writes.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) name: Name,
    /// The id; empty while it is unknown.
    pub(super) id: String,
    /// The number of the last write.
    pub(super) version: u32,
    /// The last known state.
    pub(super) content: Content,
    pub(super) etag: String,
    /// A doubt to resolve before other writes, and the time of the next attempt.
    pub(super) doubt: Option<(Doubt, Micros)>,
    /// Whether a conditional write, or the creation, was in doubt: all writes are then conditional until
    /// one is acknowledged, which fixes their order.
    pub(super) careful: bool,
}

/// A write with an unknown outcome.
#[derive(Debug)]
pub(super) enum Doubt {
    /// A creation, which is retried with its request id.
    Creation(Box<v1::CreateLocationRequest>),
    /// A write whose effect a read must show, with the number of reads so far.
    State(u32),
    /// An unconditional update, which may take effect after any later update. A deletion ends the doubt.
    Update,
    /// A deletion, which is retried.
    Deletion,
}

impl Worker {
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
            // Deleted, or a creation that had no effect within the maximum number of reads.
            Ok(None) if looks == LOOKS || owned.version > 0 => {
                self.owned.swap_remove(index);
            }
            // A creation that may still take effect.
            Ok(None) => owned.doubt = Some((Doubt::State(looks + 1), later)),
            Err(()) => owned.doubt = Some((Doubt::State(looks), later)),
        }
    }
}
