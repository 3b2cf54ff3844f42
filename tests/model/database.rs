//! A database that fails: it commits late, goes back to an older copy, and is replaced by a standby, with
//! replicas on either server.
//!
//! **State.** Two database servers, the second a standby until it is promoted: the committed writes of
//! each, the name that its row gives to the cache, and whether it wrote that row itself. A copy of the
//! first one. A cache server with a tag for each name. Which names replicas have a lease on, by the
//! server that they poll. The states of a writer, of a loader and of a reader.
//!
//! **Actions.** A replica polls either server, which renews its lease, or begins a new name if the
//! server didn't write the row itself. A writer begins, closes, sends its commit, reopens. A commit
//! becomes visible any time after it was sent, also when its writer has given up and its tags
//! were opened at the deadline. A loader opens, reads a database and fills. A reader asks on a
//! lease, and looks up any time later. The first server's data is copied, and restored. The standby
//! replicates, and is promoted, while the first server goes on. A new name may also begin for any other
//! reason. Once a lease has passed since then, the leases on earlier names have ended.
//!
//! **Bounds.** One write, a loader and a reader at a time; three names; one restore.
//!
//! **Assumed.** Bringing a copy back takes longer than a lease. [`epoch`] has suspensions, the guard
//! of a commit, and cache servers that fail.
//!
//! [`epoch`]: crate::epoch

use stateright::{Model, Property};

use crate::{
    refute,
    tag::{Entry, FRESH, Tag, Version, Writes, renumber},
    verify,
};

/// The number of names.
const NAMES: u8 = 3;

const REFLECTS: &str = "a hit reflects the commits that its replica's database had when it asked";
const INVENTS_NOTHING: &str = "a hit reflects no commit that its replica's database lacks";

/// A part of the protocol that a model can be without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    /// There is no lease while a commit is late.
    LateCommit,
    /// A row that was restored begins a new name.
    RestoredRow,
    /// A row that a promoted standby has inherited begins a new name.
    PromotedRow,
    /// A new name was never used before, in no copy of the database.
    RandomName,
    /// A loader reads only the server whose row named the cache.
    TrustedServer,
    /// A standby isn't polled.
    NoStandby,
}

/// How the database fails, apart from late commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A copy of the first server is restored.
    Restore,
    /// The standby lags, and is promoted.
    Failover,
}

/// The model.
#[derive(Debug, Clone)]
struct Databases {
    fault: Fault,
    without: Option<Protection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    servers: [Server; 2],
    /// A copy of the first server's writes and name.
    copy: Option<(Writes, u8)>,
    restored: bool,
    /// The names that were ever used: the bit `1 << n` for name `n`.
    used: u8,
    tags: [Tag; NAMES as usize],
    /// The names with a lease of a replica that polls the server: the bit `1 << n` for name `n`.
    leases: [u8; 2],
    writer: Writer,
    loader: Loader,
    reader: Option<Reader>,
    served: Served,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Server {
    committed: Writes,
    /// The name that the row gives to the cache.
    name: u8,
    row: Row,
    in_recovery: bool,
    /// Whether a lease has passed since the name began, so that the leases on earlier names have ended.
    lease_passed: bool,
}

/// The origin of a server's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Row {
    Own,
    Restored,
    Inherited,
}

/// A writer on a server, in the epoch of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    Began(usize, u8),
    Closed(usize, u8),
    /// The commit was sent, and isn't visible yet.
    Committing(usize, u8),
    /// The commit has been invisible for so long that no replica of its server has a lease.
    Late(usize, u8),
    /// The tags were opened at the deadline.
    GivenUp(usize),
    Committed(u8),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Loader {
    Idle,
    /// With the server that its replica polls, and the name.
    Opened(usize, u8, Version),
    Read(u8, Entry),
}

/// A reader whose replica had a lease when it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    server: usize,
    name: u8,
    committed: Writes,
}

/// The last hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Served {
    Right,
    Stale,
    Invented,
}

/// Numbers are the server and the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Poll(usize),
    PassLease(usize),
    BeginName(usize),
    Begin(usize),
    Close,
    SendCommit,
    BecomeLate,
    GiveUp,
    BecomeVisible,
    Reopen,
    Open(usize, u8),
    Read(usize),
    Fill,
    Ask(usize, u8),
    LookUp,
    Copy,
    Restore,
    Replicate,
    Promote,
}

impl Databases {
    fn has(&self, protection: Protection) -> bool {
        self.without != Some(protection)
    }

    /// Whether a row passes for one that its server wrote itself.
    fn is_own(&self, server: Server) -> bool {
        match server.row {
            Row::Own => true,
            Row::Restored => !self.has(Protection::RestoredRow),
            Row::Inherited => !self.has(Protection::PromotedRow),
        }
    }

    fn is_polled(&self, server: Server) -> bool {
        !server.in_recovery || !self.has(Protection::NoStandby)
    }

    /// Begins a new name on a server, if one is left and no commit holds the row's lock.
    fn begin_name(&self, state: &mut State, s: usize) -> Option<()> {
        if let Writer::Committing(server, _) | Writer::Late(server, _) | Writer::GivenUp(server) =
            state.writer
            && server == s
        {
            return None;
        }
        let name = if self.has(Protection::RandomName) {
            (0..NAMES).find(|name| state.used & 1 << name == 0)?
        } else {
            (state.servers[s].name + 1 < NAMES).then_some(state.servers[s].name + 1)?
        };
        state.used |= 1 << name;
        let server = &mut state.servers[s];
        (server.name, server.row, server.lease_passed) = (name, Row::Own, false);
        Some(())
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Poll(_) | Action::PassLease(_) | Action::BeginName(_) => {
                self.poll(state, action)
            }
            Action::Begin(_)
            | Action::Close
            | Action::SendCommit
            | Action::BecomeLate
            | Action::GiveUp
            | Action::BecomeVisible
            | Action::Reopen => self.write(state, action),
            Action::Open(..) | Action::Read(_) | Action::Fill => self.load(state, action),
            Action::Ask(..) | Action::LookUp => Self::read(state, action),
            Action::Copy | Action::Restore | Action::Replicate | Action::Promote => {
                Self::fail(state, action)
            }
        }
    }

    fn poll(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Poll(s) if self.is_polled(state.servers[s]) => {
                if !self.is_own(state.servers[s]) {
                    return self.begin_name(state, s);
                }
                if let Writer::Late(server, _) | Writer::GivenUp(server) = state.writer
                    && server == s
                    && self.has(Protection::LateCommit)
                {
                    return None;
                }
                state.leases[s] |= 1 << state.servers[s].name;
            }
            Action::PassLease(s) if !state.servers[s].lease_passed => {
                state.servers[s].lease_passed = true;
                state.leases[s] &= 1 << state.servers[s].name;
            }
            Action::BeginName(s)
                if !state.servers[s].in_recovery && self.is_own(state.servers[s]) =>
            {
                return self.begin_name(state, s);
            }
            _ => return None,
        }
        Some(())
    }

    fn write(&self, state: &mut State, action: Action) -> Option<()> {
        state.writer = match (action, state.writer) {
            (Action::Begin(s), Writer::Idle) => {
                let server = state.servers[s];
                let begins = !server.in_recovery && self.is_own(server) && server.lease_passed;
                begins.then_some(Writer::Began(s, server.name))?
            }
            (Action::Close, Writer::Began(s, name)) => {
                state.tags[usize::from(name)].close(0);
                Writer::Closed(s, name)
            }
            (Action::SendCommit, Writer::Closed(s, name)) => {
                let server = state.servers[s];
                if server.name == name && self.is_own(server) {
                    Writer::Committing(s, name)
                } else {
                    Writer::Idle
                }
            }
            (Action::BecomeLate, Writer::Committing(s, name)) => {
                if self.has(Protection::LateCommit) {
                    state.leases[s] = 0;
                }
                Writer::Late(s, name)
            }
            (Action::GiveUp, Writer::Late(s, name)) => {
                state.tags[usize::from(name)].reopen(0);
                Writer::GivenUp(s)
            }
            (Action::BecomeVisible, Writer::Committing(s, name) | Writer::Late(s, name)) => {
                state.servers[s].committed |= 1 << 0;
                Writer::Committed(name)
            }
            (Action::BecomeVisible, Writer::GivenUp(s)) => {
                state.servers[s].committed |= 1 << 0;
                Writer::Done
            }
            (Action::Reopen, Writer::Committed(name)) => {
                state.tags[usize::from(name)].reopen(0);
                Writer::Done
            }
            _ => return None,
        };
        Some(())
    }

    fn load(&self, state: &mut State, action: Action) -> Option<()> {
        state.loader = match (action, state.loader) {
            (Action::Open(s, name), Loader::Idle) if state.leases[s] & 1 << name != 0 => {
                let version = state.tags[usize::from(name)].open(FRESH, 0)?;
                Loader::Opened(s, name, version)
            }
            (Action::Read(from), Loader::Opened(s, name, version)) => {
                let server = state.servers[from];
                let is_trusted = from == s && self.is_polled(server) && self.is_own(server);
                if !is_trusted && self.has(Protection::TrustedServer) {
                    return None;
                }
                let list = server.committed;
                Loader::Read(name, Entry { version, list })
            }
            (Action::Fill, Loader::Read(name, entry)) => {
                state.tags[usize::from(name)].fill(entry);
                Loader::Idle
            }
            _ => return None,
        };
        Some(())
    }

    fn read(state: &mut State, action: Action) -> Option<()> {
        match (action, state.reader) {
            (Action::Ask(server, name), None) if state.leases[server] & 1 << name != 0 => {
                let committed = state.servers[server].committed;
                state.reader = Some(Reader {
                    server,
                    name,
                    committed,
                });
            }
            (Action::LookUp, Some(reader)) => {
                let known = reader.committed | state.servers[reader.server].committed;
                state.served = match state.tags[usize::from(reader.name)].lookup() {
                    Some(list) if reader.committed & !list != 0 => Served::Stale,
                    Some(list) if list & !known != 0 => Served::Invented,
                    _ => Served::Right,
                };
                state.reader = None;
            }
            _ => return None,
        }
        Some(())
    }

    fn fail(state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Copy if state.copy.is_none() && !state.restored => {
                state.copy = Some((state.servers[0].committed, state.servers[0].name));
            }
            Action::Restore => {
                let (committed, name) = state.copy.take()?;
                state.restored = true;
                state.servers[0] = Server {
                    committed,
                    name,
                    row: Row::Restored,
                    in_recovery: false,
                    lease_passed: true,
                };
                state.leases[0] = 0;
                if state.reader.is_some_and(|reader| reader.server == 0) {
                    state.reader = None;
                }
                if let Writer::Committing(0, _) | Writer::Late(0, _) | Writer::GivenUp(0) =
                    state.writer
                {
                    state.writer = Writer::Done;
                }
            }
            Action::Replicate if state.servers[1].in_recovery => {
                let Server {
                    committed, name, ..
                } = state.servers[0];
                let standby = &mut state.servers[1];
                if (standby.committed, standby.name) == (committed, name) {
                    return None;
                }
                (standby.committed, standby.name) = (committed, name);
            }
            Action::Promote if state.servers[1].in_recovery => {
                let standby = &mut state.servers[1];
                standby.in_recovery = false;
                standby.row = Row::Inherited;
                state.leases[1] = 0;
                if state.reader.is_some_and(|reader| reader.server == 1) {
                    state.reader = None;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

impl State {
    /// Drops the tags of names that can't be used any more.
    fn forget_names(&mut self) {
        let [first, second] = self.leases;
        let mut usable = first | second;
        let mut add = |name: u8| usable |= 1 << name;
        for server in &self.servers {
            add(server.name);
        }
        if let Some((_, name)) = self.copy {
            add(name);
        }
        if let Loader::Opened(_, name, _) | Loader::Read(name, _) = self.loader {
            add(name);
        }
        if let Some(reader) = self.reader {
            add(reader.name);
        }
        for name in (0..NAMES).filter(|name| usable & 1 << name == 0) {
            self.tags[usize::from(name)] = Tag::default();
        }
    }

    /// Merges states that differ in nothing that can still be observed.
    fn simplify(&mut self) {
        for tag in &mut self.tags {
            tag.forget_dead_entry();
        }
        let held = match &mut self.loader {
            Loader::Idle => None,
            Loader::Opened(_, _, version) => Some(version),
            Loader::Read(_, entry) => Some(&mut entry.version),
        };
        renumber(self.tags.iter_mut().flat_map(Tag::versions).chain(held));
    }
}

impl Model for Databases {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let primary = Server {
            committed: 0,
            name: 0,
            row: Row::Own,
            in_recovery: false,
            lease_passed: true,
        };
        let standby = Server {
            in_recovery: true,
            ..primary
        };
        vec![State {
            servers: [primary, standby],
            copy: None,
            restored: false,
            used: 1 << 0,
            tags: <[Tag; NAMES as usize]>::default(),
            leases: [0; 2],
            writer: Writer::Idle,
            loader: Loader::Idle,
            reader: None,
            served: Served::Right,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let servers = match self.fault {
            Fault::Restore => 1,
            Fault::Failover => 2,
        };
        for s in 0..servers {
            actions.extend([
                Action::Poll(s),
                Action::PassLease(s),
                Action::BeginName(s),
                Action::Begin(s),
                Action::Read(s),
            ]);
            for name in (0..NAMES).filter(|name| state.leases[s] & 1 << name != 0) {
                actions.extend([Action::Open(s, name), Action::Ask(s, name)]);
            }
        }
        actions.extend([
            Action::Close,
            Action::SendCommit,
            Action::BecomeLate,
            Action::GiveUp,
            Action::BecomeVisible,
            Action::Reopen,
        ]);
        actions.extend([Action::Fill, Action::LookUp]);
        actions.extend(match self.fault {
            Fault::Restore => [Action::Copy, Action::Restore],
            Fault::Failover => [Action::Replicate, Action::Promote],
        });
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        self.step(&mut state, action)?;
        if self.has(Protection::RandomName) {
            state.forget_names();
        }
        state.simplify();
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(REFLECTS, |_, state: &State| state.served != Served::Stale),
            Property::always(INVENTS_NOTHING, |_, state: &State| {
                state.served != Served::Invented
            }),
            Property::sometimes(
                "the database is served from the cache again",
                |_, state: &State| {
                    state.servers.iter().enumerate().any(|(s, server)| {
                        (state.restored || s == 1 && !server.in_recovery)
                            && server.committed != 0
                            && state.leases[s] & 1 << server.name != 0
                            && state.tags[usize::from(server.name)].lookup()
                                == Some(server.committed)
                    })
                },
            ),
        ]
    }
}

/// The model without a protection.
fn without(protection: Protection, fault: Fault) -> Databases {
    Databases {
        fault,
        without: Some(protection),
    }
}

fn with_all(fault: Fault) -> Databases {
    Databases {
        fault,
        without: None,
    }
}

#[test]
fn a_database_that_goes_back_in_time() {
    verify(&with_all(Fault::Restore), 64_294);
}

#[test]
fn a_database_that_fails_over() {
    verify(&with_all(Fault::Failover), 123_111);
}

#[test]
fn without_the_end_of_leases_a_late_commit_is_missing_from_lists() {
    refute(
        &without(Protection::LateCommit, Fault::Restore),
        REFLECTS,
        12,
    );
}

#[test]
fn without_a_new_name_lists_have_what_a_restore_has_lost() {
    refute(
        &without(Protection::RestoredRow, Fault::Restore),
        INVENTS_NOTHING,
        14,
    );
}

#[test]
fn with_numbers_for_names_a_restored_database_counts_to_the_same_name() {
    refute(
        &without(Protection::RandomName, Fault::Restore),
        INVENTS_NOTHING,
        15,
    );
}

#[test]
fn without_a_new_name_a_promoted_standby_shares_lists_with_the_old_primary() {
    refute(
        &without(Protection::PromotedRow, Fault::Failover),
        REFLECTS,
        13,
    );
}

#[test]
fn without_a_trusted_server_a_standby_that_lags_fills_the_cache() {
    refute(
        &without(Protection::TrustedServer, Fault::Failover),
        REFLECTS,
        11,
    );
}

#[test]
fn without_the_refusal_of_standbys_one_that_lags_fills_the_cache() {
    refute(
        &without(Protection::NoStandby, Fault::Failover),
        REFLECTS,
        12,
    );
}
