//! Epochs: how replicas suspend the cache when its server fails or is replaced, and activate it again.
//!
//! **State.** The epoch's row; the writes that are committed, and those that are acknowledged. Two cache
//! servers, each with the names that it was given, and a tag for each active epoch. The epochs on
//! which some replica has a lease, so that the number of replicas doesn't matter. The steps of
//! the writers, of a loader and of a reader.
//!
//! Even epochs are active, odd ones suspended. A server has the name of an epoch if it holds the scripts
//! that were loaded for it.
//!
//! **Actions.** A writer begins in the current epoch, closes, commits, reopens and acknowledges. It may
//! begin again, or wait for the suspension instead of reopening. A loader opens, reads the database and
//! fills. A reader asks a replica that has a lease, and looks up any time later. The cache is
//! suspended at any moment, for a lost server, a step that timed out, or no reason. A lease passes
//! after the suspension, so that no lease on an earlier epoch is left: see [`lease`]. The cache is
//! activated on either server.
//!
//! A server takes the other's data and loses its names: it was restarted from an older snapshot, or
//! is a replica, which lags until it takes the data again. Every step may reach either server,
//! as when one was promoted and the other still responds. A server may be flushed.
//!
//! **Bounds.** One or two writes, a loader and a reader at a time; epochs 0 to 2 or 3. Not repeated from
//! `protocol`: single keys that are lost, and the deadlines of writers that crashed.
//!
//! **Assumed.** Locks of the database are exact, and clocks run at one speed. A server that was
//! demoted isn't promoted again before a check has found it; the last test shows what it would serve.
//!
//! [`lease`]: crate::lease

use stateright::{Model, Property};

use crate::{
    refute,
    tag::{Entry, FRESH, Tag, Version, Writes, renumber},
    verify,
};

/// Every acknowledged write; if no record of a write in flight is lost, every committed one.
const REFLECTS: &str = "a hit reflects every write before its reader asked";
/// Writes go on without the server, and hits resume when it is back.
const RECOVERS: &str = "every write can be acknowledged, and the cache serve it";

/// A part of the protocol that a model can be without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    /// Keys carry the epoch.
    Keys,
    /// A commit is refused if the epoch isn't the one that the write began in.
    Guard,
    /// The epoch can't change between that check and the commit.
    Lock,
    /// A lease ends.
    Lease,
    /// A write closes its tags in the epoch that it began in.
    OneEpoch,
    /// A write begins in a suspension only after a lease.
    WaitToBegin,
    /// A write that couldn't reopen is acknowledged only a lease after the suspension.
    WaitToAcknowledge,
    /// A suspension ends only after a lease.
    WaitToActivate,
    /// A server without the epoch's name runs no step.
    Identity,
    /// A server that takes other data loses its names.
    NamesEnd,
}

/// The model.
#[derive(Debug, Clone)]
struct Coordinator {
    /// The number of writes, at most two.
    writes: usize,
    /// The last epoch, at most 3.
    last_epoch: u8,
    /// Whether servers may be flushed.
    loses_records: bool,
    without: Option<Protection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    epoch: u8,
    /// Whether a lease has passed since the last change of the row.
    lease_passed: bool,
    /// The epochs on which a replica has a lease: the bit `1 << e` for epoch `e`.
    leases: u8,
    committed: Writes,
    acknowledged: Writes,
    servers: [Server; 2],
    writers: [Writer; 2],
    loader: Loader,
    reader: Option<Reader>,
    /// A reader received a list without a write that it must reflect.
    stale: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Server {
    /// The epochs whose names it has: the bit `1 << e` for epoch `e`.
    names: u8,
    /// The tag of epoch `2 * i` at index `i`.
    tags: [Tag; 3],
}

/// A writer's epoch is the one that it began in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Writer {
    Idle,
    Began(u8),
    /// Has closed its tag, or has nothing to close.
    Closed(u8),
    /// Has checked the epoch. Only without [`Protection::Lock`].
    Checked(u8),
    Committed(u8),
    Acknowledged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Loader {
    Idle,
    Opened(u8, Version),
    Read(u8, Entry),
}

/// A reader whose replica held a lease on the epoch when it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    epoch: u8,
    must: Writes,
}

/// Numbers are the writer, and the server that executes the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Begin(usize),
    Close(usize, usize),
    Check(usize),
    Commit(usize),
    Reopen(usize, usize),
    Acknowledge(usize),
    Open(usize),
    Read,
    Fill(usize),
    /// A reader asks a replica with a lease on this epoch.
    Ask(u8),
    LookUp(usize),
    Suspend,
    PassLease,
    Activate(usize),
    /// The server takes the other's data.
    Copy(usize),
    Flush(usize),
}

const fn is_active(epoch: u8) -> bool {
    epoch.is_multiple_of(2)
}

/// The epoch, or the active one before it.
const fn last_active(epoch: u8) -> u8 {
    epoch / 2 * 2
}

impl Coordinator {
    fn has(&self, protection: Protection) -> bool {
        self.without != Some(protection)
    }

    /// The tag of a step in an epoch on a server, or `None` if the server refuses the step.
    fn reach<'a>(&self, state: &'a mut State, server: usize, epoch: u8) -> Option<&'a mut Tag> {
        let Server { names, tags } = &mut state.servers[server];
        let is_known = *names & (1 << epoch) != 0;
        let place = if self.has(Protection::Keys) {
            usize::from(epoch / 2)
        } else {
            0
        };
        (is_known || !self.has(Protection::Identity)).then_some(&mut tags[place])
    }

    /// Whether a write that began in an epoch can be acknowledged without reopening, because no replica
    /// serves from it any more.
    fn is_left(&self, state: &State, epoch: u8) -> bool {
        let suspended = last_active(epoch) + 1;
        // A writer that has closed nothing has waited before.
        let has_waited = state.lease_passed
            || !self.has(Protection::WaitToAcknowledge)
            || !self.has(Protection::OneEpoch) && !is_active(epoch);
        state.epoch > suspended || state.epoch == suspended && has_waited
    }

    /// The next state, before its versions are numbered. `None` if the action is impossible.
    fn step(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Begin(i)
            | Action::Close(i, _)
            | Action::Check(i)
            | Action::Commit(i)
            | Action::Reopen(i, _)
            | Action::Acknowledge(i) => self.write(&mut state, i, action)?,
            Action::Open(_) | Action::Read | Action::Fill(_) => self.load(&mut state, action)?,
            Action::Ask(_) | Action::LookUp(_) => self.read(&mut state, action)?,
            Action::Suspend | Action::PassLease | Action::Activate(_) => {
                self.change_row(&mut state, action)?;
            }
            Action::Copy(server) => {
                let tags = &before.servers[1 - server].tags;
                state.servers[server].tags.clone_from(tags);
                if self.has(Protection::NamesEnd) {
                    state.servers[server].names = 0;
                }
            }
            Action::Flush(server) => state.servers[server].tags = Default::default(),
        }
        Some(state)
    }

    fn write(&self, state: &mut State, i: usize, action: Action) -> Option<()> {
        let current = state.epoch;
        let may_begin = state.lease_passed || !self.has(Protection::WaitToBegin);
        let writer = state.writers[i];
        state.writers[i] = match (action, writer) {
            // An attempt whose epoch is over before it has closed anything begins again.
            (Action::Begin(_), Writer::Began(epoch)) if epoch == current => return None,
            (Action::Begin(_), Writer::Idle | Writer::Began(_)) if is_active(current) => {
                Writer::Began(current)
            }
            (Action::Begin(_), Writer::Idle | Writer::Began(_)) if may_begin => {
                Writer::Closed(current)
            }
            (Action::Close(..), Writer::Began(_))
                if !is_active(current) && !self.has(Protection::OneEpoch) =>
            {
                Writer::Closed(current)
            }
            (Action::Close(_, server), Writer::Began(epoch)) => {
                self.reach(state, server, epoch)?.close(i);
                Writer::Closed(epoch)
            }
            (Action::Check(_) | Action::Commit(_), Writer::Closed(epoch))
                if epoch != current && self.has(Protection::Guard) =>
            {
                Writer::Idle
            }
            (Action::Check(_), Writer::Closed(epoch)) => Writer::Checked(epoch),
            (Action::Commit(_), Writer::Closed(epoch) | Writer::Checked(epoch)) => {
                state.committed |= 1 << i;
                Writer::Committed(epoch)
            }
            (Action::Reopen(_, server), Writer::Committed(epoch)) => {
                self.reach(state, server, epoch)?.reopen(i);
                state.acknowledged |= 1 << i;
                Writer::Acknowledged
            }
            (Action::Acknowledge(_), Writer::Committed(epoch)) if self.is_left(state, epoch) => {
                state.acknowledged |= 1 << i;
                Writer::Acknowledged
            }
            _ => return None,
        };
        Some(())
    }

    fn load(&self, state: &mut State, action: Action) -> Option<()> {
        state.loader = match (action, state.loader) {
            // Opening needs no lease.
            (Action::Open(server), Loader::Idle) => {
                let epoch = last_active(state.epoch);
                Loader::Opened(epoch, self.reach(state, server, epoch)?.open(FRESH, 0)?)
            }
            (Action::Read, Loader::Opened(epoch, version)) => {
                let list = state.committed;
                Loader::Read(epoch, Entry { version, list })
            }
            (Action::Fill(server), Loader::Read(epoch, entry)) => {
                self.reach(state, server, epoch)?.fill(entry);
                Loader::Idle
            }
            _ => return None,
        };
        Some(())
    }

    fn read(&self, state: &mut State, action: Action) -> Option<()> {
        state.reader = match (action, state.reader) {
            (Action::Ask(epoch), None) => {
                let must = if self.loses_records {
                    state.acknowledged
                } else {
                    state.committed
                };
                Some(Reader { epoch, must })
            }
            (Action::LookUp(server), Some(Reader { epoch, must })) => {
                let found = self.reach(state, server, epoch)?.lookup();
                state.stale = found.is_some_and(|list| must & !list != 0);
                None
            }
            _ => return None,
        };
        Some(())
    }

    fn change_row(&self, state: &mut State, action: Action) -> Option<()> {
        let may_end = state.lease_passed || !self.has(Protection::WaitToActivate);
        match action {
            Action::Suspend if is_active(state.epoch) => {
                state.epoch += 1;
                state.lease_passed = false;
            }
            Action::PassLease if !state.lease_passed => {
                state.lease_passed = true;
                if self.has(Protection::Lease) {
                    state.leases &= 1 << state.epoch;
                }
            }
            Action::Activate(server) if !is_active(state.epoch) && may_end => {
                state.epoch += 1;
                state.lease_passed = false;
                state.leases |= 1 << state.epoch;
                state.servers[server].names |= 1 << state.epoch;
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether writes can go on from a state without the servers, and hits then with one of them.
    fn recovers(&self, state: &State) -> bool {
        // Neither a reader nor a loader stops the others.
        if state.reader.is_some() || state.loader != Loader::Idle {
            return true;
        }
        let all = (1 << self.writes) - 1;
        // A write that began in an epoch that is over begins again.
        let write = |i| {
            let attempt = [Action::Begin(i), Action::Commit(i), Action::Acknowledge(i)];
            [Action::Commit(i)].into_iter().chain(attempt)
        };
        let fill = [Action::Open(0), Action::Read, Action::Fill(0)];
        let run = [Action::Suspend, Action::PassLease].into_iter();
        let run = run.chain((0..self.writes).flat_map(write));
        let run = run.chain([Action::Activate(0)]).chain(fill);
        let mut state = state.clone();
        for action in run {
            state = self.step(&state, action).unwrap_or(state);
        }
        let served = self
            .reach(&mut state.clone(), 0, state.epoch)
            .and_then(|tag| tag.lookup());
        state.acknowledged == all && served == Some(all)
    }
}

impl State {
    /// Merges states that differ in nothing that can still be observed.
    fn simplify(&mut self) {
        for tag in self.servers.iter_mut().flat_map(|server| &mut server.tags) {
            tag.forget_dead_entry();
        }
        // The writes are alike.
        if self.writers[1] < self.writers[0] {
            self.writers.swap(0, 1);
            for writes in self.sets() {
                *writes = (*writes & 0b01) << 1 | (*writes & 0b10) >> 1;
            }
        }
        renumber(self.versions());
    }

    /// Drops the state of epochs in which no reader looks up any more.
    fn forget_epochs(&mut self) {
        let read = self.reader.map(|reader| reader.epoch);
        let current = last_active(self.epoch);
        let leases = self.leases;
        let is_over =
            |epoch: u8| leases & 1 << epoch == 0 && read != Some(epoch) && epoch != current;
        for epoch in (0..current).step_by(2).filter(|&epoch| is_over(epoch)) {
            for server in &mut self.servers {
                server.names &= !(1 << epoch);
                server.tags[usize::from(epoch / 2)] = Tag::default();
            }
        }
        if let Loader::Opened(epoch, _) | Loader::Read(epoch, _) = self.loader
            && is_over(epoch)
        {
            self.loader = Loader::Idle;
        }
    }

    /// The sets of writes in the state.
    fn sets(&mut self) -> impl Iterator<Item = &mut Writes> {
        let tags = self.servers.iter_mut().flat_map(|server| &mut server.tags);
        let tags = tags.flat_map(|Tag { writers, entry, .. }| {
            let list = entry.as_mut().map(|entry| &mut entry.list);
            [writers].into_iter().chain(list)
        });
        let held = match &mut self.loader {
            Loader::Idle | Loader::Opened(..) => None,
            Loader::Read(_, entry) => Some(&mut entry.list),
        };
        let must = self.reader.as_mut().map(|reader| &mut reader.must);
        let database = [&mut self.committed, &mut self.acknowledged];
        database.into_iter().chain(tags).chain(held).chain(must)
    }

    /// The versions in the state.
    fn versions(&mut self) -> impl Iterator<Item = &mut Version> {
        let tags = self.servers.iter_mut().flat_map(|server| &mut server.tags);
        let held = match &mut self.loader {
            Loader::Idle => None,
            Loader::Opened(_, version) => Some(version),
            Loader::Read(_, entry) => Some(&mut entry.version),
        };
        tags.flat_map(Tag::versions).chain(held)
    }
}

impl Model for Coordinator {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut servers = [Server::default(), Server::default()];
        servers[0].names = 1 << 0;
        let mut writers = [Writer::Idle; 2];
        writers[self.writes..].fill(Writer::Acknowledged);
        vec![State {
            epoch: 0,
            lease_passed: true,
            leases: 1 << 0,
            committed: 0,
            acknowledged: 0,
            servers,
            writers,
            loader: Loader::Idle,
            reader: None,
            stale: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (i, writer) in state.writers.iter().enumerate().take(self.writes) {
            match writer {
                Writer::Idle => actions.push(Action::Begin(i)),
                Writer::Began(_) => {
                    actions.extend([Action::Begin(i), Action::Close(i, 0), Action::Close(i, 1)]);
                }
                Writer::Closed(_) if !self.has(Protection::Lock) => actions.push(Action::Check(i)),
                Writer::Closed(_) | Writer::Checked(_) => actions.push(Action::Commit(i)),
                Writer::Committed(_) => {
                    let reopen = [Action::Reopen(i, 0), Action::Reopen(i, 1)];
                    actions.extend(reopen.into_iter().chain([Action::Acknowledge(i)]));
                }
                Writer::Acknowledged => {}
            }
        }
        match state.loader {
            Loader::Idle => actions.extend([Action::Open(0), Action::Open(1)]),
            Loader::Opened(..) => actions.push(Action::Read),
            Loader::Read(..) => actions.extend([Action::Fill(0), Action::Fill(1)]),
        }
        match state.reader {
            None => {
                let leased = |epoch: &u8| state.leases & 1 << epoch != 0;
                actions.extend((0..=state.epoch).filter(leased).map(Action::Ask));
            }
            Some(_) => actions.extend([Action::LookUp(0), Action::LookUp(1)]),
        }
        if state.epoch < self.last_epoch {
            actions.extend([Action::Suspend, Action::Activate(0), Action::Activate(1)]);
        }
        actions.extend([Action::PassLease, Action::Copy(0), Action::Copy(1)]);
        if self.loses_records {
            actions.extend([Action::Flush(0), Action::Flush(1)]);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = self.step(before, action)?;
        if self.has(Protection::Keys) {
            state.forget_epochs();
        }
        state.simplify();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(REFLECTS, |_, state: &State| !state.stale),
            Property::always(RECOVERS, Self::recovers),
            Property::sometimes(
                "a write is served by the other server",
                |_, state: &State| {
                    let tag = &state.servers[1].tags[1];
                    state.servers[0].names == 0
                        && state.acknowledged != 0
                        && tag.lookup() == Some(state.acknowledged)
                },
            ),
        ]
    }
}

fn epochs(writes: usize, loses_records: bool) -> Coordinator {
    Coordinator {
        writes,
        last_epoch: 2,
        loses_records,
        without: None,
    }
}

/// The smallest model, without a protection.
fn without(protection: Protection) -> Coordinator {
    Coordinator {
        without: Some(protection),
        ..epochs(1, true)
    }
}

#[test]
fn a_write_in_four_epochs() {
    let model = Coordinator {
        last_epoch: 3,
        ..epochs(1, true)
    };
    verify(&model, 86_502);
}

#[test]
fn two_writes_if_anything_may_be_lost() {
    verify(&epochs(2, true), 475_473);
}

#[test]
fn two_writes_if_no_record_is_lost() {
    verify(&epochs(2, false), 172_176);
}

/// A wait between the commit and the acknowledgement would do too, except that lists wouldn't be
/// linearizable.
#[test]
fn without_the_wait_to_begin_acknowledged_writes_are_seen_and_committed_ones_are_missed() {
    let mut model = without(Protection::WaitToBegin);
    verify(&model, 41_437);
    model.loses_records = false;
    refute(&model, REFLECTS, 8);
}

#[test]
fn without_the_wait_to_acknowledge_a_lost_record_is_seen() {
    refute(&without(Protection::WaitToAcknowledge), REFLECTS, 11);
}

#[test]
fn without_the_wait_to_activate_the_epoch_before_the_last_is_served() {
    refute(&without(Protection::WaitToActivate), REFLECTS, 11);
}

#[test]
fn without_the_epoch_in_keys_a_new_epoch_has_the_entries_of_an_old_one() {
    refute(&without(Protection::Keys), REFLECTS, 11);
}

#[test]
fn without_the_guard_a_write_commits_that_closed_nothing_in_the_epoch() {
    refute(&without(Protection::Guard), REFLECTS, 11);
}

/// The write closes nothing in a suspension that it hasn't waited for.
#[test]
fn without_one_epoch_for_all_of_a_write_it_is_acknowledged_before_leases_have_ended() {
    refute(&without(Protection::OneEpoch), REFLECTS, 10);
}

#[test]
fn without_the_lock_the_epoch_changes_between_the_guard_and_the_commit() {
    refute(&without(Protection::Lock), REFLECTS, 12);
}

#[test]
fn without_an_end_of_the_lease_a_replica_serves_from_before_the_suspension() {
    refute(&without(Protection::Lease), REFLECTS, 10);
}

#[test]
fn without_the_names_of_servers_one_that_missed_a_close_is_used() {
    refute(&without(Protection::Identity), REFLECTS, 9);
}

/// The protocol doesn't guarantee this.
#[test]
fn a_server_that_is_demoted_and_promoted_again_unnoticed_is_used() {
    refute(&without(Protection::NamesEnd), REFLECTS, 11);
}
