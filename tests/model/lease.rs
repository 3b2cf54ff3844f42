//! The timing of a lease: when the first write begins in a suspension, no replica serves from the epoch
//! before it. Time passes in ticks of a clock; `epoch` has this as one step, `PassLease`.
//!
//! **State.** The time; the time stamp of the suspension, and whether it is committed; the poll that a
//! replica waits for, if any, and the end of its lease; when a writer read the suspension, and
//! whether its write has begun.
//!
//! **Actions.** The clock ticks. A replica sends a poll, the database reads the row, the reply arrives,
//! each after any delay. The suspension is stamped, and commits. The writer reads it, waits, and
//! begins.
//!
//! A transaction commits later than its time stamp, and other replicas can read the suspension only
//! then. So the wait counts from when the writer has read it.
//!
//! **Bounds.** A lease of three ticks, twelve ticks in all, one replica that serves and one that
//! writes. Their clocks run at one speed.

use stateright::{Model, Property};

use crate::{refute, verify};

const LEASE: u8 = 3;
const END: u8 = 12;

const NOT_SERVED: &str = "no replica serves from the epoch before when a write has begun";

/// A part of the protocol that a model can be without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    /// A replica serves for a lease at most after its last poll.
    Lease,
    /// The lease counts from when the poll was sent.
    FromAsked,
    /// A write waits for a lease before it begins.
    Wait,
    /// The wait counts from when the writer read the suspension, not from its time stamp.
    FromSight,
}

/// The model.
#[derive(Debug, Clone)]
struct Timing {
    without: Option<Protection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    now: u8,
    stamped: Option<u8>,
    suspended: bool,
    renewal: Renewal,
    /// The end of the lease.
    until: u8,
    /// The beginning of the wait.
    waits_from: Option<u8>,
    begun: bool,
}

/// A read of the row by the replica that serves, sent at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Renewal {
    None,
    Asked(u8),
    /// The row said active; the reply is on its way.
    Active(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Tick,
    Ask,
    ReadRow,
    Renew,
    Stamp,
    Suspend,
    Learn,
    Begin,
}

impl Timing {
    fn has(&self, protection: Protection) -> bool {
        self.without != Some(protection)
    }
}

impl Model for Timing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            stamped: None,
            suspended: false,
            renewal: Renewal::None,
            until: 0,
            waits_from: None,
            begun: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < END {
            actions.push(Action::Tick);
        }
        actions.push(match state.renewal {
            Renewal::None => Action::Ask,
            Renewal::Asked(_) => Action::ReadRow,
            Renewal::Active(_) => Action::Renew,
        });
        if state.stamped.is_none() {
            actions.push(Action::Stamp);
        } else if !state.suspended {
            actions.push(Action::Suspend);
        } else if state.waits_from.is_none() {
            actions.push(Action::Learn);
        }
        if let Some(from) = state.waits_from
            && !state.begun
            && (state.now - from >= LEASE || !self.has(Protection::Wait))
        {
            actions.push(Action::Begin);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Tick => state.now += 1,
            Action::Ask => state.renewal = Renewal::Asked(before.now),
            Action::ReadRow => {
                let Renewal::Asked(asked) = before.renewal else {
                    return None;
                };
                state.renewal = if before.suspended {
                    Renewal::None
                } else {
                    Renewal::Active(asked)
                };
            }
            Action::Renew => {
                let Renewal::Active(asked) = before.renewal else {
                    return None;
                };
                let from = if self.has(Protection::FromAsked) {
                    asked
                } else {
                    before.now
                };
                let lease = if self.has(Protection::Lease) {
                    LEASE
                } else {
                    END
                };
                state.until = from + lease;
                state.renewal = Renewal::None;
            }
            Action::Stamp => state.stamped = Some(before.now),
            Action::Suspend => state.suspended = true,
            Action::Learn => {
                state.waits_from = if self.has(Protection::FromSight) {
                    Some(before.now)
                } else {
                    before.stamped
                };
            }
            Action::Begin => state.begun = true,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_SERVED, |_, state: &State| {
                !state.begun || state.until <= state.now
            }),
            Property::sometimes("a lease is renewed", |_, state: &State| state.until > LEASE),
            Property::sometimes("a write begins", |_, state: &State| state.begun),
        ]
    }
}

#[test]
fn a_lease_of_three_ticks() {
    verify(&Timing { without: None }, 92_952);
}

#[test]
fn without_an_end_of_the_lease_a_replica_goes_on_serving() {
    refute(
        &Timing {
            without: Some(Protection::Lease),
        },
        NOT_SERVED,
        10,
    );
}

#[test]
fn a_lease_that_counts_from_the_reply_ends_too_late() {
    refute(
        &Timing {
            without: Some(Protection::FromAsked),
        },
        NOT_SERVED,
        10,
    );
}

#[test]
fn without_the_wait_a_write_begins_within_a_lease() {
    refute(
        &Timing {
            without: Some(Protection::Wait),
        },
        NOT_SERVED,
        7,
    );
}

#[test]
fn with_a_wait_from_the_time_stamp_a_lease_is_renewed_before_the_suspension_commits() {
    refute(
        &Timing {
            without: Some(Protection::FromSight),
        },
        NOT_SERVED,
        10,
    );
}
