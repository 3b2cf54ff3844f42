//! The consistency protocol as models, whose every state stateright visits.
//!
//! | model | of what | what is found |
//! | --- | --- | --- |
//! | [`protocol`] | tags on one cache server, which loses anything at any moment; writers that crash and pause, retries, moves | a hit reflects what was acknowledged; while no note is lost it agrees with the database; a closed tag opens again |
//! | [`flight`] | readers that share their reads of the database | a response is from after its reader asked |
//! | [`local`] | the cache in the process, over `protocol` | a local hit reflects what was written before its reader asked |
//! | [`lease`] | how long a replica may serve, and how long a write waits, in ticks of a clock | no replica serves any more when the first write begins |
//! | [`epoch`] | leaving a cache server and coming back: servers that restart with old data, lag, are promoted, or still respond | a hit reflects what was written before its reader asked; writes and the cache go on |
//!
//! Each begins with its state, actions and bounds. Most runs have no bound on how long they are: what
//! is the same but for the numbers of versions is one state, so a model is finite although reads,
//! fills and faults go on without end.
//!
//! Each has tests of two kinds. `verify` visits every state within the bounds, finds every property
//! kept, and finds as many states as it says: a model that changes by accident, or comes to nothing,
//! fails. `refute` takes one protection out, and finds the shortest run that breaks a property, of as
//! many steps as it says: a protection that isn't needed, or a property that can't be broken, fails.
//! The runs are printed:
//!
//! ```sh
//! cargo test --test model -- --nocapture --test-threads 1
//! ```
//!
//! All in all 1.6 million states are visited, in half a minute on two cores. They are told apart by
//! a hash of 64 bits: that two of a million have the same has a chance of one in 30 million.

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

/// Finds every property kept in every state, of which there are so many.
#[track_caller]
fn verify(model: &impl Searched, states: usize) {
    let checker = model.clone().checker().spawn_bfs().join();
    assert!(checker.is_done(), "not every state was visited");
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), states, "states of {model:?}");
}

/// Finds a property broken after so many steps, and not after fewer.
#[track_caller]
fn refute<M: Searched>(model: &M, property: &'static str, steps: usize) {
    // The search reports the last of the counterexamples that it comes across, hence depth by depth.
    let shortest = (steps..MAX_STEPS).find_map(|steps| {
        // Depths count states, from one, and the last isn't looked at.
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
