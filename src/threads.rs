//! The priority of threads.

use rustix::process::setpriority_process;

/// A third of the weight of a thread with the ordinary priority: see nice(1).
const NICE: i32 = 5;

/// Lowers the priority of this thread, which computes for long, so that it doesn't delay those that serve
/// cached responses.
pub fn lower_priority() {
    // Linux has priorities of threads. Without permission it stays as it is.
    let _ = setpriority_process(None, NICE);
}
