//! Limits of concurrent use.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::error::{Error, Result};

/// A limit of concurrent use, which is logged when it is first reached.
pub struct Limit {
    name: &'static str,
    /// The number of permits in total.
    pub max: usize,
    /// The free permits.
    pub permits: Arc<Semaphore>,
    reached: AtomicBool,
}

impl Limit {
    /// A limit with a name, in errors and in the log.
    pub fn new(name: &'static str, max: usize) -> Self {
        Self {
            name,
            max,
            permits: Arc::new(Semaphore::new(max)),
            reached: AtomicBool::new(false),
        }
    }

    /// Takes `count` permits at once, or refuses the call.
    pub fn take(&self, count: usize) -> Result<OwnedSemaphorePermit> {
        u32::try_from(count)
            .ok()
            .and_then(|count| {
                let permits = Arc::clone(&self.permits);
                permits.try_acquire_many_owned(count).ok()
            })
            .ok_or_else(|| self.refusal())
    }

    /// Takes a permit at once, or refuses the call.
    pub fn take_one(&self) -> Result<SemaphorePermit<'_>> {
        self.permits.try_acquire().map_err(|_| self.refusal())
    }

    /// Refuses a call that exceeds the limit of all.
    pub fn refusal(&self) -> Error {
        self.log_once();
        Error::Overloaded {
            limit: self.name,
            value: self.max,
        }
    }

    /// Refuses a call that exceeds the limit of its caller.
    pub fn caller_refusal(&self) -> Error {
        self.log_once();
        Error::CallerLimit {
            limit: self.name,
            value: self.max,
        }
    }

    fn log_once(&self) {
        if !self.reached.swap(true, Ordering::Relaxed) {
            tracing::warn!(limit = self.name, max = self.max, "a limit was reached");
        }
    }

    /// Waits for a permit.
    pub async fn wait(&self) -> Result<SemaphorePermit<'_>> {
        self.permits.acquire().await.map_err(Error::internal)
    }
}
