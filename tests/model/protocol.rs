//! The tag protocol on one cache server, which may lose anything.
//!
//! **State.** The tags on the server; the database, as the set of committed writes; which writes
//! were acknowledged, and which are past their deadline; the step of each writer and of each loader.
//!
//! **Actions.** A writer begins, closes, commits, reopens and acknowledges. It may undo its write or
//! crash before any of these; the `close` of a writer that has ended is then executed later or never. A
//! loader looks up its key, which opens the tag, reads the database, and fills. It may end before any of
//! these, because its lookup was a hit or its caller has left. A `no-cache` read is a loader that fills
//! under the version of a hit. A loader whose tag is closed only reads the database, which changes no
//! state. Any number of other steps may come between two steps, so pauses need no action. A deadline
//! passes at any moment after its record was made; there is no other clock. The server loses a
//! version, an entry, or all records of writes in flight of a tag; a flush loses one after the other.
//!
//! **Readers** have no state. In every state the result of a lookup is compared with all writes that are
//! acknowledged, which include those acknowledged before the reader asked. A miss is read from the
//! database, which is current. `flight` and `local` have readers that wait.
//!
//! **Bounds.** Two writes and two loaders, or three writes and a loader; one tag or two, each with
//! one key. Any number of reads, fills, losses, and openings of a tag.

use stateright::{Model, Property};

use crate::{
    refute,
    tag::{Entry, FRESH, Tag, Version, Writes, renumber},
    verify,
};

/// Holds whatever the server loses.
const REFLECTS: &str = "a hit reflects every acknowledged write";
/// Holds if no record of a write in flight is lost. A `no-cache` read sees every committed write, so this
/// property makes lists linearizable.
const AGREES: &str = "a hit agrees with the database";
/// Holds for loaders that go on after all deadlines have passed.
const RECOVERS: &str = "a closed tag opens again, and serves";

/// A part of the protocol that a model can be without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// `fill` compares the version from before the read with the tag's.
    VersionCheck,
    /// `close` comes before the commit.
    Close,
    /// `close` records the write as in flight.
    Record,
    /// A record of a write in flight has a deadline.
    RecordDeadline,
    /// The database refuses a write that is past its deadline.
    WriteDeadline,
    /// `reopen` comes before the acknowledgement.
    Reopen,
    /// A write also closes the tags of the write before it on its row.
    FormerTags,
    /// A fresh version is drawn for one execution of one script. Without it a lookup that opens its
    /// tag is executed again, any time later, with the same fresh version: as by two scripts of one
    /// round trip that share it, or by a client that sends a command twice.
    DrawnOnce,
}

/// A write.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    /// The tags of its own images: the bit `1 << i` for tag `i`. A retry has none of its own.
    pub tags: u8,
    /// The write before it on the same row, which its acknowledgement includes.
    pub after: Option<usize>,
}

/// The model.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// At most three.
    pub writes: Vec<Write>,
    /// The tag of each loader's key; `None` for no loader.
    pub loaders: [Option<usize>; 2],
    /// Whether the server may lose records of writes in flight.
    pub loses_records: bool,
    /// The missing protection.
    pub without: Option<Protection>,
}

const MAX_WRITES: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub tags: [Tag; 2],
    pub committed: Writes,
    pub acknowledged: Writes,
    overdue: Writes,
    writers: [Writer; MAX_WRITES],
    loaders: [Loader; 2],
    /// A lookup's second execution on its way to the first tag, with the fresh version that the first
    /// has set. Only without [`Protection::DrawnOnce`].
    resent: Option<Version>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    Began(Touched),
    /// Ended, with its `close` not executed yet.
    Left(Touched),
    Closed(Touched),
    Committed(Touched),
    Reopened(Touched),
    /// Acknowledged, undone or crashed.
    Over,
}

/// The tags of a write and of those before it on its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Touched {
    tags: u8,
    writes: Writes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Loader {
    Idle,
    LookedUp(Version),
    Read(Entry),
}

/// Numbers are the writer, the loader or the tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Begin(usize),
    Close(usize),
    Commit(usize),
    Undo(usize),
    Reopen(usize),
    Acknowledge(usize),
    Crash(usize),
    PassDeadline(usize),
    Lookup(usize),
    Read(usize),
    Fill(usize),
    Leave(usize),
    LookupAgain,
    LoseVersion(usize),
    LoseRecords(usize),
    LoseEntry(usize),
}

impl Protocol {
    fn has(&self, protection: Protection) -> bool {
        self.without != Some(protection)
    }

    /// Whether every hit would reflect these writes, as far as they change its list.
    fn hits_reflect(&self, state: &State, writes: Writes) -> bool {
        (0..).zip(&state.tags).all(|(index, tag)| {
            let touching = (0..).zip(&self.writes).map(|(write, Write { tags, .. })| {
                let touches = tags >> index & 1;
                touches << write
            });
            let touching: Writes = touching.sum();
            tag.lookup()
                .is_none_or(|list| writes & touching & !list == 0)
        })
    }

    /// The tags that a write closes if it begins now, and the writes that it acknowledges. Of the committed
    /// writes before it on its row, it closes only the tags of the last one, which did the same before its
    /// commit.
    fn touched(&self, state: &State, write: usize) -> Touched {
        let Write {
            mut tags,
            mut after,
        } = self.writes[write];
        let mut writes = 1 << write;
        while let Some(former) = after {
            if state.committed & 1 << former != 0 {
                let is_last = writes == 1 << write;
                if is_last && self.has(Protection::FormerTags) {
                    tags |= self.writes[former].tags;
                }
                writes |= 1 << former;
            }
            after = self.writes[former].after;
        }
        Touched { tags, writes }
    }

    /// The next state, before its versions are numbered. `None` if the action is impossible or changes nothing.
    pub fn step(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Begin(i)
            | Action::Close(i)
            | Action::Commit(i)
            | Action::Undo(i)
            | Action::Reopen(i)
            | Action::Acknowledge(i)
            | Action::Crash(i) => self.write(&mut state, i, action)?,
            Action::PassDeadline(i) => state.overdue |= 1 << i,
            Action::Lookup(i) | Action::Read(i) | Action::Fill(i) | Action::Leave(i) => {
                self.load(&mut state, i, action)?;
            }
            Action::LookupAgain => {
                let version = state.resent.take()?;
                state.tags[0].open(version, state.overdue);
            }
            Action::LoseVersion(i) => state.tags[i].version = None,
            Action::LoseRecords(i) => state.tags[i].writers = 0,
            Action::LoseEntry(i) => state.tags[i].entry = None,
        }
        state.tags.iter_mut().for_each(Tag::forget_dead_entry);
        Some(state)
    }

    fn write(&self, state: &mut State, i: usize, action: Action) -> Option<()> {
        let is_timeout = state.overdue & 1 << i != 0;
        state.writers[i] = match (action, state.writers[i]) {
            (Action::Begin(_), Writer::Idle) => Writer::Began(self.touched(state, i)),
            (Action::Close(_), Writer::Began(touched)) => {
                self.close(state, i, touched);
                Writer::Closed(touched)
            }
            (Action::Close(_), Writer::Left(touched)) => {
                self.close(state, i, touched);
                Writer::Over
            }
            (Action::Commit(_), Writer::Closed(_))
                if is_timeout && self.has(Protection::WriteDeadline) =>
            {
                Writer::Over
            }
            (Action::Commit(_), Writer::Closed(touched)) => {
                state.committed |= 1 << i;
                Writer::Committed(touched)
            }
            (Action::Undo(_), Writer::Closed(touched)) => {
                state.tags_of(touched).for_each(|tag| tag.reopen(i));
                Writer::Over
            }
            (Action::Reopen(_), Writer::Committed(touched)) => {
                state.tags_of(touched).for_each(|tag| tag.reopen(i));
                Writer::Reopened(touched)
            }
            (Action::Acknowledge(_), Writer::Committed(touched) | Writer::Reopened(touched)) => {
                state.acknowledged |= touched.writes;
                Writer::Over
            }
            (Action::Crash(_), Writer::Began(touched)) => Writer::Left(touched),
            (Action::Crash(_), _) => Writer::Over,
            _ => return None,
        };
        Some(())
    }

    fn close(&self, state: &mut State, write: usize, touched: Touched) {
        for tag in state.tags_of(touched) {
            if self.has(Protection::Close) {
                tag.close(write);
            }
            if !self.has(Protection::Record) {
                tag.writers = 0;
            }
        }
    }

    fn load(&self, state: &mut State, i: usize, action: Action) -> Option<()> {
        let tag = &mut state.tags[self.loaders[i]?];
        state.loaders[i] = match (action, state.loaders[i]) {
            (Action::Lookup(_), Loader::Idle) => {
                let overdue = if self.has(Protection::RecordDeadline) {
                    state.overdue
                } else {
                    0
                };
                let was_open = tag.version.is_some();
                let version = tag.open(FRESH, overdue)?;
                if !was_open && !self.has(Protection::DrawnOnce) {
                    state.resent = Some(version);
                }
                Loader::LookedUp(version)
            }
            (Action::Leave(_), Loader::LookedUp(_) | Loader::Read(_)) => Loader::Idle,
            (Action::Read(_), Loader::LookedUp(version)) => {
                let list = state.committed;
                Loader::Read(Entry { version, list })
            }
            (Action::Fill(_), Loader::Read(mut entry)) => {
                if !self.has(Protection::VersionCheck) {
                    entry.version = tag.version?;
                }
                tag.fill(entry);
                Loader::Idle
            }
            _ => return None,
        };
        Some(())
    }

    fn recovers(&self, state: &State) -> bool {
        let mut state = state.clone();
        let deadlines = (0..MAX_WRITES).map(Action::PassDeadline);
        // The first round ends the steps that the loaders have begun.
        let loads = [0, 1, 0, 1].map(|i| [Action::Lookup(i), Action::Read(i), Action::Fill(i)]);
        for action in deadlines.chain(loads.into_iter().flatten()) {
            state = self.step(&state, action).unwrap_or(state);
        }
        let mut served = self.loaders.iter().flatten().map(|&tag| &state.tags[tag]);
        served.all(|tag| tag.lookup() == Some(state.committed))
    }
}

impl State {
    /// Reads the version of the first tag as a lookup does, which opens the tag.
    pub fn check(&mut self) -> Option<Version> {
        self.tags[0].open(FRESH, self.overdue)
    }

    pub fn new() -> Self {
        Self {
            tags: Default::default(),
            committed: 0,
            acknowledged: 0,
            overdue: 0,
            writers: [Writer::Idle; MAX_WRITES],
            loaders: [Loader::Idle; 2],
            resent: None,
        }
    }

    fn tags_of(&mut self, touched: Touched) -> impl Iterator<Item = &mut Tag> {
        let tags = (0..).zip(&mut self.tags);
        tags.filter_map(move |(i, tag)| (touched.tags & 1 << i != 0).then_some(tag))
    }

    /// The versions in the state.
    pub fn versions(&mut self) -> impl Iterator<Item = &mut Version> {
        let held = self.loaders.iter_mut().filter_map(|loader| match loader {
            Loader::Idle => None,
            Loader::LookedUp(version) => Some(version),
            Loader::Read(entry) => Some(&mut entry.version),
        });
        let held = held.chain(&mut self.resent);
        self.tags.iter_mut().flat_map(Tag::versions).chain(held)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (i, write) in self.writes.iter().enumerate() {
            let holds_row = |i: usize| {
                let writer = &state.writers[i];
                matches!(writer, Writer::Idle | Writer::Began(_) | Writer::Closed(_))
            };
            match state.writers[i] {
                Writer::Idle if write.after.is_some_and(holds_row) => {}
                Writer::Idle => actions.push(Action::Begin(i)),
                Writer::Began(_) => actions.extend([Action::Close(i), Action::Crash(i)]),
                Writer::Left(_) => actions.push(Action::Close(i)),
                Writer::Closed(_) => {
                    actions.extend([Action::Commit(i), Action::Undo(i), Action::Crash(i)]);
                }
                Writer::Committed(_) if self.has(Protection::Reopen) => {
                    actions.extend([Action::Reopen(i), Action::Crash(i)]);
                }
                Writer::Committed(_) | Writer::Reopened(_) => {
                    actions.extend([Action::Acknowledge(i), Action::Crash(i)]);
                }
                Writer::Over => {}
            }
            let has_record = state.tags.iter().any(|tag| tag.writers & 1 << i != 0);
            if has_record && state.overdue & 1 << i == 0 {
                actions.push(Action::PassDeadline(i));
            }
        }
        for (i, loader) in state.loaders.iter().enumerate() {
            let next = match loader {
                Loader::Idle => [Some(Action::Lookup(i)), None],
                Loader::LookedUp(_) => [Some(Action::Read(i)), Some(Action::Leave(i))],
                Loader::Read(_) => [Some(Action::Fill(i)), Some(Action::Leave(i))],
            };
            actions.extend(next.into_iter().flatten());
        }
        if state.resent.is_some() {
            actions.push(Action::LookupAgain);
        }
        for (i, tag) in state.tags.iter().enumerate() {
            if tag.version.is_some() {
                actions.push(Action::LoseVersion(i));
            }
            if tag.entry.is_some() {
                actions.push(Action::LoseEntry(i));
            }
            if tag.writers != 0 && self.loses_records {
                actions.push(Action::LoseRecords(i));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = self.step(before, action)?;
        renumber(state.versions());
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(REFLECTS, |model: &Self, state: &State| {
                model.hits_reflect(state, state.acknowledged)
            }),
            Property::always(RECOVERS, Self::recovers),
            Property::sometimes(
                "all is acknowledged and served",
                |model: &Self, state: &State| {
                    let all: Writes = (1 << model.writes.len()) - 1;
                    state.acknowledged == all && state.tags[0].lookup() == Some(all)
                },
            ),
        ];
        if !self.loses_records {
            properties.push(Property::always(AGREES, |model, state| {
                model.hits_reflect(state, state.committed)
            }));
        }
        properties
    }
}

/// Writes on rows of their own, and loaders of one key, all with one tag.
pub fn on_one_tag(
    writes: usize,
    loaders: usize,
    loses_records: bool,
    without: Option<Protection>,
) -> Protocol {
    let write = Write {
        tags: 0b01,
        after: None,
    };
    Protocol {
        writes: vec![write; writes],
        loaders: [0, 1].map(|i| (i < loaders).then_some(0)),
        loses_records,
        without,
    }
}

/// Successive writes on one row, and a loader of the first tag.
fn on_one_row(tags: &[u8], without: Option<Protection>) -> Protocol {
    let mut writes = Vec::new();
    for &tags in tags {
        let after = writes.len().checked_sub(1);
        writes.push(Write { tags, after });
    }
    Protocol {
        writes,
        loaders: [Some(0), None],
        loses_records: true,
        without,
    }
}

#[test]
fn two_writes_and_two_loaders_if_anything_may_be_lost() {
    verify(&on_one_tag(2, 2, true, None), 33_743);
}

#[test]
fn two_writes_and_two_loaders_if_no_record_is_lost() {
    verify(&on_one_tag(2, 2, false, None), 23_013);
}

#[test]
fn three_writes_if_anything_may_be_lost() {
    verify(&on_one_tag(3, 1, true, None), 94_777);
}

#[test]
fn three_writes_if_no_record_is_lost() {
    verify(&on_one_tag(3, 1, false, None), 61_495);
}

#[test]
fn a_retry_and_a_move_with_what_follows_it() {
    let none = 0b00;
    verify(&on_one_row(&[0b01, none], None), 2381);
    verify(&on_one_row(&[0b11, 0b10], None), 6539);
    verify(&on_one_row(&[0b11, 0b10, 0b10], None), 133_427);
}

#[test]
fn without_the_version_check_a_fill_brings_back_what_it_read_before_the_commit() {
    refute(
        &on_one_tag(1, 2, false, Some(Protection::VersionCheck)),
        REFLECTS,
        9,
    );
}

#[test]
fn without_close_before_the_commit_a_write_appears_and_disappears() {
    refute(&on_one_tag(1, 2, false, Some(Protection::Close)), AGREES, 6);
}

#[test]
fn without_the_record_of_the_write_a_reader_opens_the_tag_before_the_commit() {
    refute(
        &on_one_tag(1, 2, false, Some(Protection::Record)),
        AGREES,
        6,
    );
}

#[test]
fn without_the_deadline_of_the_record_a_dead_writer_closes_its_tags_for_good() {
    refute(
        &on_one_tag(1, 2, false, Some(Protection::RecordDeadline)),
        RECOVERS,
        2,
    );
}

#[test]
fn without_the_deadline_of_the_write_it_commits_after_its_tags_were_opened() {
    refute(
        &on_one_tag(1, 2, false, Some(Protection::WriteDeadline)),
        AGREES,
        7,
    );
}

#[test]
fn without_reopen_before_the_acknowledgement_a_lost_record_is_seen() {
    refute(
        &on_one_tag(1, 2, true, Some(Protection::Reopen)),
        REFLECTS,
        8,
    );
}

#[test]
fn without_the_tags_of_the_first_call_a_retry_acknowledges_what_is_not_seen() {
    refute(
        &on_one_row(&[0b01, 0], Some(Protection::FormerTags)),
        REFLECTS,
        12,
    );
}

#[test]
fn without_the_tags_of_a_move_an_update_acknowledges_what_the_old_run_does_not_show() {
    refute(
        &on_one_row(&[0b11, 0b10], Some(Protection::FormerTags)),
        REFLECTS,
        12,
    );
}

#[test]
fn with_a_fresh_version_that_is_set_twice_a_whole_write_in_between_is_not_seen() {
    refute(
        &on_one_tag(1, 1, false, Some(Protection::DrawnOnce)),
        REFLECTS,
        9,
    );
}
