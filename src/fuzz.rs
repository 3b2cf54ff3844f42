//! Fuzzing: valid inputs with a few changes. A failing input is reduced to a small one.
//!
//! Each target checks some inputs in a test run, and new ones for `FUZZ_SECONDS` if that is set.

use std::{
    env,
    time::{Duration, Instant},
};

use proptest::{
    collection::vec,
    prelude::{ProptestConfig, Strategy, any},
    sample::{Index, select},
    test_runner::TestRunner,
};

/// Inputs between two checks of the time.
const CASES: u32 = 1_000;

/// Maximum length of a changed input, give or take parts of other inputs.
const MAX_BYTES: usize = 64 << 10;

/// Bytes that end or nest something: in protobuf, UTF-8, CSV, JSON or base64.
const SPECIAL: &[u8] = b"\0\x01\n\r\t \"',;.:=-_{}[]\\/@*\x7f\x80\xc3\xe2\xef\xff";

/// Calls `check` with inputs. A panic is a failure.
pub fn fuzz<T: std::fmt::Debug>(inputs: impl Strategy<Value = T>, check: impl Fn(T)) {
    let seconds = env::var("FUZZ_SECONDS").map_or(0, |seconds| {
        seconds.parse().expect("FUZZ_SECONDS is a number")
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        let mut runner = TestRunner::new(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(CASES)
        });
        let result = runner.run(&inputs, |input| {
            check(input);
            Ok(())
        });
        if let Err(failure) = result {
            panic!("{failure}");
        }
        if Instant::now() >= until {
            return;
        }
    }
}

/// Inputs from a corpus of valid ones, each with up to seven changes.
pub fn mutated(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (
        0_u8..9,
        any::<Index>(),
        any::<Index>(),
        any::<u8>(),
        select(corpus.clone()),
    );
    (select(corpus), vec(change, 0..8)).prop_map(|(mut input, changes)| {
        for (kind, from, to, byte, other) in changes {
            mutate(&mut input, kind, (from, to), byte, &other);
        }
        input
    })
}

/// Makes one change of this kind, which may take a part of another input.
fn mutate(input: &mut Vec<u8>, kind: u8, (from, to): (Index, Index), byte: u8, other: &[u8]) {
    let range = |length: usize| {
        let (from, to) = (from.index(length + 1), to.index(length + 1));
        from.min(to)..from.max(to)
    };
    let part = range(input.len());
    match kind {
        0..=2 => {
            if let Some(changed) = input.get_mut(part.start) {
                *changed = match kind {
                    0 => *changed ^ 1 << (byte % 8),
                    1 => byte,
                    _ => SPECIAL[usize::from(byte) % SPECIAL.len()],
                };
            }
        }
        3 => drop(input.drain(part)),
        4 => input.truncate(part.start),
        // Once more, or up to 1,024 times.
        5 | 6 => {
            let times = if kind == 5 { 1 } else { 1 << (byte % 11) };
            let repeated = input[part.clone()].repeat(times);
            if input.len() + repeated.len() <= MAX_BYTES {
                drop(input.splice(part.end..part.end, repeated));
            }
        }
        7 => drop(input.splice(part.start.., other[range(other.len())].iter().copied())),
        _ => {
            if input.len() <= MAX_BYTES {
                drop(input.splice(part.clone(), other[range(other.len())].iter().copied()));
            }
        }
    }
}
