//! PostgreSQL and Redis servers of a test, on free ports and in temporary folders. They end with the
//! process that started them, even if it is killed.

#![allow(
    clippy::missing_panics_doc,
    reason = "every function panics when a server fails, which fails the test"
)]

use rustix::process::{self, Pid, Signal};

pub mod certificates;
pub mod pgbouncer;
pub mod postgres;
pub mod redis;
pub mod supervised;

/// Sends a signal, such as `TERM`, `KILL`, `STOP` or `CONT`, to each process. Returns `false` if all
/// of them have ended.
pub fn signal<'a>(name: &str, pids: impl IntoIterator<Item = &'a str>) -> bool {
    let signal = match name {
        "CONT" => Signal::CONT,
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "TERM" => Signal::TERM,
        _ => panic!("unknown signal: {name}"),
    };
    let sent = pids
        .into_iter()
        .map(|id| process::kill_process(pid(id), signal).is_ok());
    sent.fold(false, |any, sent| any | sent)
}

/// Whether a process exists.
pub fn is_alive(id: &str) -> bool {
    process::test_kill_process(pid(id)).is_ok()
}

fn pid(id: &str) -> Pid {
    let id = id.parse().ok().and_then(Pid::from_raw);
    id.expect("a process id")
}
