//! `NextFlight`: readers of one key on one replica that share their reads of the database.
//!
//! **State.** The numbers of writes that are committed and that are acknowledged; the running
//! flight; for each reader the flight that it waits for, if any, and the number of writes that were
//! acknowledged when it asked.
//!
//! **Actions.** A write is committed, and acknowledged. A reader asks, and so joins a flight; or
//! leaves. The flight reads, and then ends, and the next one starts if readers wait for it. It is
//! dropped when no reader waits for it any more.
//!
//! **Bounds.** Three writes; three readers, which ask any number of times. The cache is in `protocol`.

use stateright::{Model, Property};

use crate::{refute, verify};

/// A response reflects the writes that were acknowledged before its reader asked.
const REFLECTS: &str =
    "a response reflects every write that was acknowledged before its reader asked";

const WRITES: u8 = 3;
const READERS: usize = 3;

/// The model.
#[derive(Debug, Clone)]
struct Sharing {
    /// Whether a reader joins the next flight; if not, the running one, as in ordinary single-flight.
    next: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    committed: u8,
    acknowledged: u8,
    flight: Flight,
    readers: [Reader; READERS],
    /// A reader received a list from before a write that was acknowledged when it asked.
    stale: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Flight {
    None,
    Started,
    Read(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Idle,
    /// Waits for the running flight, with the number of writes acknowledged when it asked.
    Joined(u8),
    /// Waits for the next flight.
    Waiting(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Commit,
    Acknowledge,
    Ask(usize),
    Leave(usize),
    Read,
    End,
}

impl State {
    /// Starts the next flight, if there are readers for it.
    fn start_next(&mut self) {
        self.flight = Flight::None;
        for reader in &mut self.readers {
            if let Reader::Waiting(acknowledged) = *reader {
                *reader = Reader::Joined(acknowledged);
                self.flight = Flight::Started;
            }
        }
    }

    fn is_abandoned(&self) -> bool {
        let mut readers = self.readers.iter();
        self.flight != Flight::None && !readers.any(|reader| matches!(reader, Reader::Joined(_)))
    }
}

impl Model for Sharing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            committed: 0,
            acknowledged: 0,
            flight: Flight::None,
            readers: [Reader::Idle; READERS],
            stale: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.committed < WRITES {
            actions.push(Action::Commit);
        }
        if state.acknowledged < state.committed {
            actions.push(Action::Acknowledge);
        }
        for (i, reader) in state.readers.iter().enumerate() {
            actions.push(match reader {
                Reader::Idle => Action::Ask(i),
                Reader::Joined(_) | Reader::Waiting(_) => Action::Leave(i),
            });
        }
        match state.flight {
            Flight::None => {}
            Flight::Started => actions.push(Action::Read),
            Flight::Read(_) => actions.push(Action::End),
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Commit => state.committed += 1,
            Action::Acknowledge => state.acknowledged += 1,
            Action::Ask(i) => {
                let asked = before.acknowledged;
                if before.flight != Flight::None && self.next {
                    state.readers[i] = Reader::Waiting(asked);
                } else {
                    state.readers[i] = Reader::Joined(asked);
                    if before.flight == Flight::None {
                        state.flight = Flight::Started;
                    }
                }
            }
            Action::Leave(i) => {
                state.readers[i] = Reader::Idle;
                if state.is_abandoned() {
                    state.start_next();
                }
            }
            Action::Read => state.flight = Flight::Read(before.committed),
            Action::End => {
                let Flight::Read(list) = before.flight else {
                    return None;
                };
                for reader in &mut state.readers {
                    if let Reader::Joined(asked) = *reader {
                        state.stale |= list < asked;
                        *reader = Reader::Idle;
                    }
                }
                state.start_next();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(REFLECTS, |_, state: &State| !state.stale),
            Property::always("no reader waits without a flight", |_, state: &State| {
                let mut readers = state.readers.iter();
                !state.is_abandoned()
                    && (state.flight != Flight::None
                        || readers.all(|reader| *reader == Reader::Idle))
            }),
            Property::sometimes("two share a flight", |_, state: &State| {
                let joined = |reader: &&Reader| matches!(reader, Reader::Joined(_));
                state.readers.iter().filter(joined).count() == 2
            }),
        ]
    }
}

#[test]
fn three_readers_and_three_writes() {
    verify(&Sharing { next: true }, 3202);
}

#[test]
fn with_ordinary_single_flight_a_response_is_older_than_its_request() {
    refute(&Sharing { next: false }, REFLECTS, 6);
}
