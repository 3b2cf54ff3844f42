//! Counts for metrics and statistics.

use super::{
    Service,
    read::{CachedResponse, FwdReason, Source},
};
use crate::{
    cache::{self, Tier},
    error::Result,
    store::StoreStats,
    telemetry::Counter,
};

/// The counts since the start, and the current state.
#[derive(Debug, Clone)]
pub struct Stats {
    /// The cache.
    pub cache: cache::Stats,
    /// The cached reads.
    pub reads: ReadStats,
    /// The database, with all pools of connections.
    pub store: StoreStats,
    /// Calls that wait for their turn to use the database.
    pub waiting: usize,
}

impl Service {
    /// The counts since the start, and the current state.
    pub fn stats(&self) -> Stats {
        let mut store = self.store.stats();
        store
            .pools
            .extend(self.coordinator.as_ref().map(|it| it.pool()));
        Stats {
            cache: self.cache.stats(),
            reads: self.counters.snapshot(),
            store,
            waiting: self.shares.waiting(),
        }
    }
}

/// The methods whose responses are cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMethod {
    /// `ListLocations`.
    List,
    /// `GetLocation`.
    Get,
    /// `ListLocationReports`.
    Reports,
}

impl ReadMethod {
    /// The names of the methods.
    pub const NAMES: [&str; 3] = ["ListLocations", "GetLocation", "ListLocationReports"];
}

/// The number of cached reads since the start, by method and result. Each read is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadStats([[u64; ReadStats::RESULTS.len()]; ReadMethod::NAMES.len()]);

impl ReadStats {
    /// The names of the results.
    pub const RESULTS: [&str; 6] = [
        "hit_local",
        "hit_redis",
        "miss",
        "write_in_flight",
        "no_cache",
        "unavailable",
    ];

    /// The index of a read's result in [`RESULTS`](Self::RESULTS). A read that failed is a miss.
    fn result(read: &Result<CachedResponse>) -> usize {
        match read.as_ref().map(|response| response.source) {
            Ok(Source::Cache(Tier::Local)) => 0,
            Ok(Source::Cache(Tier::Redis)) => 1,
            Err(_) => 2,
            Ok(Source::Database { reason, .. }) => match reason {
                FwdReason::Miss => 2,
                FwdReason::Closed => 3,
                FwdReason::Request => 4,
                FwdReason::Unavailable => 5,
            },
        }
    }

    /// The counts with the names of the method and of the result.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let methods = ReadMethod::NAMES.into_iter().zip(self.0);
        methods.flat_map(|(method, counts)| {
            let results = Self::RESULTS.into_iter().zip(counts);
            results.map(move |(result, count)| (method, result, count))
        })
    }

    fn of_results(&self, results: &[usize]) -> u64 {
        let counts = self.0.iter();
        counts
            .flat_map(|counts| results.iter().map(|result| counts[*result]))
            .sum()
    }

    /// Hits in the process.
    pub fn local_hits(&self) -> u64 {
        self.of_results(&[0])
    }

    /// Hits in Redis.
    pub fn redis_hits(&self) -> u64 {
        self.of_results(&[1])
    }

    /// Reads of the database because the cache had no current entry, and failed reads.
    pub fn misses(&self) -> u64 {
        self.of_results(&[2])
    }

    /// Reads of the database because a write was in flight, the caller requested it, or the cache
    /// was unavailable.
    pub fn bypasses(&self) -> u64 {
        self.of_results(&[3, 4, 5])
    }
}

/// The running counts behind [`ReadStats`].
#[derive(Debug, Default)]
pub(super) struct ReadCounters([[Counter; ReadStats::RESULTS.len()]; ReadMethod::NAMES.len()]);

impl ReadCounters {
    pub(super) fn count(&self, method: ReadMethod, read: &Result<CachedResponse>) {
        self.0[method as usize][ReadStats::result(read)].add(1);
    }

    fn snapshot(&self) -> ReadStats {
        ReadStats(
            self.0
                .each_ref()
                .map(|counts| counts.each_ref().map(Counter::get)),
        )
    }
}
