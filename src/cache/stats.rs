//! Counts of a cache.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start, and the size of the entries in the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Responses stored.
    pub fills: u64,
    /// Responses not stored, because their tag's version had changed or because they don't fit.
    pub rejected_fills: u64,
    /// Tags closed by writes, or dropped by [`Cache::invalidate`](super::Cache::invalidate).
    pub invalidations: u64,
    /// Steps that failed.
    pub errors: u64,
    /// Round trips to the cache server.
    pub round_trips: u64,
    /// Entries in the process.
    pub local_entries: u64,
    /// Bytes of the entries in the process.
    pub local_bytes: u64,
}

/// The running counts behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) fills: Counter,
    pub(super) rejected_fills: Counter,
    pub(super) invalidations: Counter,
    pub(super) errors: Counter,
    pub(super) round_trips: Counter,
}

/// A monotonic count.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn filled(&self, stored: bool) {
        if stored {
            self.fills.add(1);
        } else {
            self.rejected_fills.add(1);
        }
    }

    pub(super) fn snapshot(&self, (local_entries, local_bytes): (u64, u64)) -> Stats {
        Stats {
            fills: self.fills.get(),
            rejected_fills: self.rejected_fills.get(),
            invalidations: self.invalidations.get(),
            errors: self.errors.get(),
            round_trips: self.round_trips.get(),
            local_entries,
            local_bytes,
        }
    }
}
