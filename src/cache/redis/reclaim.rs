//! Deleting the entries of large indexes in the background.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::sleep};

use super::steps::{DetachedIndex, Steps};

/// Detached indexes that may be queued. Those beyond it take memory until they expire.
const MAX_QUEUED: usize = 4_096;

/// Failed steps of an index that are retried. After one more it is left to expire.
const MAX_FAILURES: u32 = 20;

/// The delay after a failed step.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// The cursor at which a scan starts, and which it returns at its end.
const START: &str = "0";

pub(super) fn queue() -> (mpsc::Sender<DetachedIndex>, mpsc::Receiver<DetachedIndex>) {
    mpsc::channel(MAX_QUEUED)
}

/// Deletes the entries of detached indexes, in bounded steps.
pub(super) async fn run(steps: Arc<Steps>, mut detached: mpsc::Receiver<DetachedIndex>) {
    while let Some(index) = detached.recv().await {
        let mut cursor = START.to_owned();
        let mut failures = 0..MAX_FAILURES;
        loop {
            match steps.reclaim(&index, &cursor).await {
                Ok(next) if next == START => break,
                Ok(next) => cursor = next,
                Err(_) if failures.next().is_some() => sleep(RETRY_DELAY).await,
                Err(_) => break,
            }
        }
    }
}
