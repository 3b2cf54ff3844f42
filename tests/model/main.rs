//! Models of the consistency protocol. stateright visits every state of each.
//!
//! | model | contents | main property |
//! | --- | --- | --- |
//! | [`protocol`] | tags on one cache server, which loses anything at any moment; writers that crash and pause, retries, moves | a hit reflects every acknowledged write; while no record of a write in flight is lost it agrees with the database; a closed tag opens again |
//! | [`flight`] | readers that share their reads of the database | a response is no older than its request |
//! | [`local`] | the cache in the process, over `protocol` | a local hit reflects every write before its reader asked |
//! | [`lease`] | how long a replica may serve and a write waits, in ticks of a clock | no replica serves from an epoch when the first write after it begins |
//! | [`epoch`] | cache servers that restart with old data, lag, are promoted, or still respond | a hit reflects every write before its reader asked; writes and hits go on |
//! | [`database`] | commits that become visible late, an older copy, a standby, two primaries | a hit reflects exactly the commits of its replica's database |
//!
//! Each begins with its state, actions and bounds. Most runs are unbounded in length: states that differ
//! only in the numbers of versions are merged, so a model is finite although reads, fills and faults
//! go on without end.
//!
//! There are two kinds of tests. `verify` visits every state within the bounds, requires that every
//! property holds, and compares the number of states, so that a model that is changed by accident
//! fails. `refute` removes one protection, and requires a shortest run of a given length that breaks
//! a property, so that a protection that isn't needed, or a property that can't be broken, fails.
//! To print the runs:
//!
//! ```sh
//! cargo test --test model -- --nocapture --test-threads 1
//! ```
//!
//! The 1.9 million states take half a minute on two cores. They are identified by hashes of 64 bits: the
//! probability that a million states have two equal ones is one in 37 million.

mod database;
mod epoch;
mod flight;
mod lease;
mod local;
mod protocol;
mod tag;

use std::{fmt::Debug, hash::Hash};

use stateright::{Checker as _, Model};

/// More steps than any counterexample has.
const MAX_STEPS: usize = 24;

/// A model that can be searched more than once.
trait Searched:
    Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq>
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
}

impl<M> Searched for M where
    M: Model<
            State: Clone + Debug + Hash + PartialEq + Send + Sync,
            Action: Clone + Debug + PartialEq,
        > + Clone
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// Checks every property in every state, and the number of states.
#[track_caller]
fn verify(model: &impl Searched, states: usize) {
    let checker = model.clone().checker().spawn_bfs().join();
    assert!(checker.is_done(), "not every state was visited");
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), states, "states of {model:?}");
}

/// Checks that the shortest run that breaks a property has this number of steps.
#[track_caller]
fn refute<M: Searched>(model: &M, property: &'static str, steps: usize) {
    // A search reports the last counterexample that it finds, so search depth by depth, from one where
    // there must be none.
    let shortest = (steps - 1..MAX_STEPS).find_map(|steps| {
        // Depths count states from one, and exclude the last.
        let checker = model.clone().checker().target_max_depth(steps + 1);
        checker.spawn_bfs().join().discovery(property)
    });
    let Some(path) = shortest else {
        panic!("\"{property}\" holds for {MAX_STEPS} steps of {model:?}");
    };
    let actions = path.into_actions();
    println!("not \"{property}\" with {model:?}:\n    {actions:?}");
    assert_eq!(actions.len(), steps, "steps to break \"{property}\"");
}
