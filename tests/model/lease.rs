//! The timing of a lease: why no replica serves from an epoch any more when the first write begins in
//! the suspension after it. With ticks of a clock; `epoch` has this as one step, `Settle`.
//!
//! **State.** The time; when the row was stamped with its suspension, and since when others can read
//! that; the read of the row that a replica waits for, if any, and until when it may serve; when a
//! writer learned of the suspension, and whether its write has begun.
//!
//! **Actions.** The clock ticks. A replica asks for the row, the database responds, the response
//! arrives, each as late as it likes. The suspension is stamped, and commits. The writer learns of
//! it, waits, and begins.
//!
//! A stamp is older than what it stamps: others can read the suspension only after its transaction
//! has had its locks, and committed. So the wait counts from when the writer has learned of it.
//!
//! **Bounds.** A lease of three ticks, twelve ticks in all, one replica that serves and one that
//! writes. Their clocks run at one speed.

use stateright::{Model, Property};

use crate::{refute, verify};

const LEASE: u8 = 3;
const END: u8 = 12;

const NOT_SERVED: &str = "no replica serves from the epoch before when a write has begun";

/// What can be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protection {
    /// A replica serves for no longer than a lease after its last read of the row.
    Lease,
    /// The lease counts from when the read was sent.
    FromAsked,
    /// A write waits for a lease before it begins.
    Wait,
    /// The wait counts from when the writer has learned of the suspension, not from its stamp.
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
    /// Until when the replica may serve.
    until: u8,
    /// From when the writer waits.
    waits_from: Option<u8>,
    begun: bool,
}

/// A read of the row by the replica that serves, sent at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Renewal {
    None,
    Asked(u8),
    /// And the row said active.
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
fn without_an_end_of_the_lease_a_replica_serves_on() {
    refute(
        &Timing {
            without: Some(Protection::Lease),
        },
        NOT_SERVED,
        10,
    );
}

#[test]
fn without_counting_from_when_it_asked_a_lease_ends_too_late() {
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
fn with_a_wait_from_the_stamp_a_lease_is_renewed_before_the_suspension_commits() {
    refute(
        &Timing {
            without: Some(Protection::FromSight),
        },
        NOT_SERVED,
        10,
    );
}
