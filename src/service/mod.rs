//! The use cases: authorization, reads through the cache, and writes that close, commit and reopen.
//!
//! | module | |
//! | --- | --- |
//! | `read` | lists, gets and reports, from the cache or the database |
//! | `call` | writes as callers request them, and their results |
//! | `write` | the protocol around a write: close the tags, commit, reopen them |
//! | `apply` | the statements of a write within its transaction |
//! | `shares` | fair shares of the database among callers |
//! | `admin` | inspecting and invalidating the cache |
//! | `stats` | counts for metrics and statistics |
//! | `error` | errors of the layers below → errors of the domain |

mod admin;
mod apply;
mod call;
mod error;
mod read;
mod shares;
mod stats;
mod write;

use std::sync::Arc;

use tokio_util::task::TaskTracker;

pub use self::{
    admin::{CacheAdmin, ListExplanation},
    call::{
        Creation, Deletion, Edit, Edited, Generated, Idempotency, Update, Write, WriteCall, Written,
    },
    read::{CacheMode, CachedResponse, FwdReason, Source},
    shares::Concurrency,
    stats::{ReadMethod, ReadStats, Stats},
};
use self::{shares::Shares, stats::ReadCounters};
use crate::{
    cache::{Cache, Key, NextFlight},
    coordination::Coordinator,
    error::Result,
    model::OwnerId,
    page_token::PageTokens,
    store::Store,
};

/// The use cases over a store and a cache. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    store: Arc<dyn Store>,
    cache: Arc<dyn Cache>,
    /// Set if replicas share the cache.
    coordinator: Option<Arc<Coordinator>>,
    page_tokens: PageTokens,
    /// By caller, so that no caller's read waits for another's turn.
    flights: Arc<NextFlight<(Key, CacheMode, OwnerId), Result<CachedResponse>>>,
    shares: Arc<Shares>,
    counters: Arc<ReadCounters>,
    writes: TaskTracker,
}

impl Service {
    /// Creates the service; `coordinator` is required if replicas share the cache. The concurrency is
    /// the store's. One caller gets at most `max_calls_per_caller` of its reads, and as many of its
    /// writes, at once; by default a quarter.
    pub async fn new(
        store: Arc<dyn Store>,
        cache: Arc<dyn Cache>,
        coordinator: Option<Arc<Coordinator>>,
        concurrency: Concurrency,
        max_calls_per_caller: Option<usize>,
    ) -> Result<Self> {
        let page_tokens = PageTokens::new(store.page_token_key().await?);
        Ok(Self {
            store,
            cache,
            coordinator,
            page_tokens,
            flights: Arc::default(),
            shares: Shares::new(concurrency, max_calls_per_caller),
            counters: Arc::default(),
            writes: TaskTracker::new(),
        })
    }

    /// Waits for the writes in flight. Writes that begin later fail with
    /// [`Error::Stopping`](crate::error::Error::Stopping).
    pub async fn finish_writes(&self) {
        self.writes.close();
        self.writes.wait().await;
    }
}
