//! The purge of expired records from the database.

use std::{sync::Arc, time::Duration};

use crate::store::Store;

/// The lifetime of idempotency records, and of previous images: a creation can be retried for this
/// long.
const IDEMPOTENCY_TTL: Duration = Duration::from_hours(24);

/// The time between two purges.
const PURGE_INTERVAL: Duration = Duration::from_mins(10);

/// Purges expired idempotency records and previous images every [`PURGE_INTERVAL`].
pub async fn purge_loop(store: Arc<dyn Store>) {
    let mut ticks = tokio::time::interval(PURGE_INTERVAL);
    // The first tick is immediate. It is skipped, so that a purge doesn't compete with the first calls
    // after a start.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = store.purge_expired(IDEMPOTENCY_TTL).await {
            tracing::warn!(%error, "failed to purge expired records");
        }
    }
}
