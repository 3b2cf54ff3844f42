//! The local cache (L1) of one replica, over the tag protocol.
//!
//! **State.** That of [`protocol`](crate::protocol); the entry in the process, and one that will be
//! inserted; the running check of the tag's version; for each reader which check it waits for, if
//! any, and the writes that its result must reflect.
//!
//! **Actions.** Those of the protocol. An entry that was filled, or found on the server, is inserted
//! any time later, and may be evicted. A reader asks while there is an entry, and joins the next
//! check. The check reads the version, and ends any time later: its readers are served from the process
//! if the entry there has that version, and otherwise ask the server.
//!
//! **Bounds.** One or two writes, one loader; two readers, which ask any number of times.

use stateright::{Model, Property};

use crate::{
    protocol::{self, Protocol},
    refute,
    tag::{Entry, Version, Writes, renumber},
    verify,
};

/// Every acknowledged write; if no record of a write in flight is lost, every committed one.
const REFLECTS: &str = "a local hit reflects every write before its reader asked";

/// A part of the protocol that a model can be without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    /// A local entry is served only under the tag's version.
    Validation,
    /// A reader joins the next check, not the running one.
    NextCheck,
}

/// The model.
#[derive(Debug, Clone)]
struct Local {
    protocol: Protocol,
    /// At most two.
    readers: usize,
    without: Option<Protection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    shared: protocol::State,
    arriving: Option<Entry>,
    kept: Option<Entry>,
    check: Check,
    readers: [Reader; 2],
    /// A reader received a local entry without a write that it must reflect.
    stale: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Check {
    None,
    Sent,
    Read(Option<Version>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reader {
    Idle,
    /// Waits for the running check, with the writes that its result must reflect.
    Joined(Writes),
    /// Waits for the next check.
    Waiting(Writes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Shared(protocol::Action),
    Fetch,
    Keep,
    Evict,
    Ask(usize),
    ReadVersion,
    Respond,
}

impl Local {
    fn has(&self, protection: Protection) -> bool {
        self.without != Some(protection)
    }
}

impl State {
    fn serve(&mut self, entry: Entry, must: Writes) {
        self.stale |= must & !entry.list != 0;
    }
}

impl Model for Local {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            shared: protocol::State::new(),
            arriving: None,
            kept: None,
            check: Check::None,
            readers: [Reader::Idle; 2],
            stale: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut shared = Vec::new();
        self.protocol.actions(&state.shared, &mut shared);
        actions.extend(shared.into_iter().map(Action::Shared));
        if state.arriving.is_some() {
            actions.push(Action::Keep);
        } else if state.shared.tags[0].lookup().is_some() {
            actions.push(Action::Fetch);
        }
        if state.kept.is_some() {
            actions.push(Action::Evict);
            let idle = |i: &usize| state.readers[*i] == Reader::Idle;
            actions.extend((0..self.readers).filter(idle).map(Action::Ask));
        }
        match state.check {
            Check::None => {}
            Check::Sent => actions.push(Action::ReadVersion),
            Check::Read(_) => actions.push(Action::Respond),
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Shared(action) => {
                state.shared = self.protocol.step(&before.shared, action)?;
                // The entry that the loader filled is inserted.
                if let protocol::Action::Fill(_) = action
                    && state.shared.tags[0].entry != before.shared.tags[0].entry
                {
                    state.arriving = state.shared.tags[0].entry;
                }
            }
            Action::Fetch => state.arriving = before.shared.tags[0].entry,
            Action::Keep => state.kept = state.arriving.take(),
            Action::Evict => state.kept = None,
            Action::Ask(i) => {
                let must = if self.protocol.loses_records {
                    before.shared.acknowledged
                } else {
                    before.shared.committed
                };
                if !self.has(Protection::Validation) {
                    state.serve(before.kept?, must);
                } else if before.check == Check::None {
                    state.check = Check::Sent;
                    state.readers[i] = Reader::Joined(must);
                } else if self.has(Protection::NextCheck) {
                    state.readers[i] = Reader::Waiting(must);
                } else {
                    state.readers[i] = Reader::Joined(must);
                }
            }
            Action::ReadVersion => {
                let version = state.shared.check();
                state.check = Check::Read(version);
            }
            Action::Respond => {
                let Check::Read(version) = before.check else {
                    return None;
                };
                if before.kept.map(|entry| entry.version) != version {
                    state.kept = None;
                }
                state.check = Check::None;
                for i in 0..self.readers {
                    match before.readers[i] {
                        Reader::Idle => {}
                        Reader::Joined(must) => {
                            state.readers[i] = Reader::Idle;
                            if let Some(entry) = state.kept {
                                state.serve(entry, must);
                            }
                        }
                        Reader::Waiting(must) => {
                            state.readers[i] = Reader::Joined(must);
                            state.check = Check::Sent;
                        }
                    }
                }
            }
        }
        let held = [&mut state.arriving, &mut state.kept].into_iter().flatten();
        let held = held.map(|entry| &mut entry.version);
        let read = match &mut state.check {
            Check::Read(version) => version.as_mut(),
            Check::None | Check::Sent => None,
        };
        renumber(state.shared.versions().chain(held).chain(read));
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(REFLECTS, |_, state: &State| !state.stale),
            Property::sometimes("the process has the entry", |_, state: &State| {
                let current = state.kept.map(|entry| entry.version);
                state.check == Check::Read(current) && current.is_some()
            }),
        ]
    }
}

fn local(writes: usize, readers: usize, loses_records: bool, without: Option<Protection>) -> Local {
    Local {
        protocol: protocol::on_one_tag(writes, 1, loses_records, None),
        readers,
        without,
    }
}

#[test]
fn a_write_and_two_readers_if_anything_may_be_lost() {
    verify(&local(1, 2, true, None), 42_845);
}

#[test]
fn a_write_and_two_readers_if_no_record_is_lost() {
    verify(&local(1, 2, false, None), 56_283);
}

#[test]
fn two_writes_and_a_reader_if_anything_may_be_lost() {
    verify(&local(2, 1, true, None), 402_270);
}

#[test]
fn without_validation_a_replica_serves_what_another_has_changed() {
    refute(
        &local(1, 1, true, Some(Protection::Validation)),
        REFLECTS,
        10,
    );
}

#[test]
fn with_a_running_check_a_response_is_older_than_its_request() {
    refute(
        &local(1, 2, true, Some(Protection::NextCheck)),
        REFLECTS,
        13,
    );
}
