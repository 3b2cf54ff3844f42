//! The purge of expired records from the database.

use std::{sync::Arc, time::Duration};

use crate::store::Store;

/// The lifetime of idempotency records: a creation can be retried for this long.
const IDEMPOTENCY_TTL: Duration = Duration::from_hours(24);

/// The time between two purges.
const PURGE_INTERVAL: Duration = Duration::from_mins(10);

/// Purges expired idempotency records and previous images again and again.
pub async fn purge_loop(store: Arc<dyn Store>) {
    let mut ticks = tokio::time::interval(PURGE_INTERVAL);
    // The first tick is immediate. Skipped, so that a start doesn't compete with the first calls.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = store.purge_expired(IDEMPOTENCY_TTL).await {
            tracing::warn!(%error, "failed to purge expired records");
        }
    }
}
