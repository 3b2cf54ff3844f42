//! The priority of threads.

use rustix::process::setpriority_process;

/// A third of the weight of a thread with the ordinary priority: see sched(7).
const NICE: i32 = 5;

/// Lowers the priority of this thread, whose work takes long, so that it doesn't delay the threads that
/// serve cached responses.
pub fn lower_priority() {
    // On Linux the nice value is the thread's, not the process's. An error means that it is higher
    // already.
    let _ = setpriority_process(None, NICE);
}
