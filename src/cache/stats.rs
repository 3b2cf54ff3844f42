//! Counts of a cache.

use super::CacheError;
use crate::telemetry::Counter;

/// The state of a cache, its counts since the start, and the size of the entries in the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Whether responses are served from the cache.
    pub active: bool,
    /// The epoch of the shared cache; 0 without one.
    pub epoch: u64,
    /// Responses stored.
    pub fills: u64,
    /// Responses not stored, because their tag's version had changed or because they don't fit.
    pub rejected_fills: u64,
    /// Tags closed by writes, or dropped by [`Cache::invalidate`](super::Cache::invalidate).
    pub invalidations: u64,
    /// Steps that failed.
    pub errors: u64,
    /// Steps that failed, by the kind of their errors: [`CacheError::KINDS`].
    pub errors_by_kind: [u64; CacheError::KINDS.len()],
    /// Round trips to the cache server.
    pub round_trips: u64,
    /// Entries in the process.
    pub local_entries: u64,
    /// Bytes of the entries in the process.
    pub local_bytes: u64,
}

impl Stats {
    /// The number of steps that failed by the kind of their errors.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CacheError::KINDS.into_iter().zip(self.errors_by_kind)
    }
}

/// The running counts behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) fills: Counter,
    pub(super) rejected_fills: Counter,
    pub(super) invalidations: Counter,
    errors: [Counter; CacheError::KINDS.len()],
    pub(super) round_trips: Counter,
}

impl Counters {
    pub(super) fn filled(&self, stored: bool) {
        if stored {
            self.fills.add(1);
        } else {
            self.rejected_fills.add(1);
        }
    }

    pub(super) fn failed(&self, error: &CacheError) {
        self.errors[error.kind()].add(1);
    }

    /// The counts, without the state.
    pub(super) fn snapshot(&self, (local_entries, local_bytes): (u64, u64)) -> Stats {
        let errors_by_kind = self.errors.each_ref().map(Counter::get);
        Stats {
            fills: self.fills.get(),
            rejected_fills: self.rejected_fills.get(),
            invalidations: self.invalidations.get(),
            errors: errors_by_kind.iter().sum(),
            errors_by_kind,
            round_trips: self.round_trips.get(),
            local_entries,
            local_bytes,
            ..Stats::default()
        }
    }
}
