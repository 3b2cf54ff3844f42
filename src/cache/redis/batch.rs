//! Reads that share a round trip.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::yield_now,
};

use super::steps::{READS_PER_SCRIPT, Steps};
use crate::cache::{CacheError, Key, Tag, Version};

/// Queued reads.
const MAX_QUEUED: usize = 4_096;

/// The target of a read: a tag's version, and the entry under a key, if one is given.
pub(super) type Wanted = (Tag, Option<Key>);

/// The result of a read.
#[derive(Debug, Clone)]
pub(super) struct BatchedRead {
    /// `None` if the tag is closed.
    pub(super) version: Option<Version>,
    /// Whether the script of this read opened the tag, so that no entry has its version yet.
    pub(super) opened: bool,
    pub(super) entry: Option<Bytes>,
}

struct Request {
    wanted: Wanted,
    reply: oneshot::Sender<Result<BatchedRead, CacheError>>,
}

/// The queue of reads.
#[derive(Debug)]
pub(super) struct ReadQueue(mpsc::Sender<Request>);

/// The other end of the queue.
pub(super) struct ReadBatches(mpsc::Receiver<Request>);

pub(super) fn queue() -> (ReadQueue, ReadBatches) {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED);
    (ReadQueue(sender), ReadBatches(receiver))
}

impl ReadQueue {
    /// Reads in the next round trip, which starts after the call.
    pub(super) async fn read(
        &self,
        tag: &Tag,
        key: Option<&Key>,
    ) -> Result<BatchedRead, CacheError> {
        let (reply, read) = oneshot::channel();
        let wanted = (tag.clone(), key.copied());
        self.0
            .try_send(Request { wanted, reply })
            .map_err(|error| match error {
                TrySendError::Full(_) => CacheError::QueueFull,
                TrySendError::Closed(_) => CacheError::ShuttingDown,
            })?;
        read.await.unwrap_or(Err(CacheError::ShuttingDown))
    }
}

impl ReadBatches {
    /// Runs one round trip at a time, each for the reads that were queued during the last one. So no
    /// result is older than its request, as with [`NextFlight`](crate::cache::NextFlight), here for all
    /// tags and keys together. Equal requests share a read.
    pub(super) async fn run(mut self, steps: Arc<Steps>) {
        let mut requests = Vec::new();
        let mut many = false;
        while let Some(request) = self.0.recv().await {
            requests.push(request);
            if many {
                // Lets callers that are about to queue a read do so: under load that saves most round
                // trips.
                yield_now().await;
            }
            while requests.len() < READS_PER_SCRIPT
                && let Ok(request) = self.0.try_recv()
            {
                requests.push(request);
            }
            many = requests.len() > 1;
            let mut waiting: HashMap<Wanted, Vec<_>> = HashMap::new();
            for Request { wanted, reply } in requests.drain(..) {
                if !reply.is_closed() {
                    waiting.entry(wanted).or_default().push(reply);
                }
            }
            let mut waiting: Vec<_> = waiting.into_iter().collect();
            waiting.sort_unstable_by_key(|((_, key), _)| key.is_some());
            let (wanted, replies): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            if wanted.is_empty() {
                continue;
            }
            let found = match steps.lookup(&wanted).await {
                Ok(found) => found,
                Err(error) => vec![Err(error); wanted.len()],
            };
            for (replies, found) in replies.into_iter().zip(found) {
                for reply in replies {
                    // The caller may have left.
                    let _ = reply.send(found.clone());
                }
            }
        }
    }
}
