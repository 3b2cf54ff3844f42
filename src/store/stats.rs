//! What the stores count.

use std::sync::Arc;

use sqlx::{Database, Pool};

use crate::telemetry::{Histogram, Timer};

/// The state of a store's connections, and the durations of its operations.
#[derive(Debug, Clone, Default)]
pub struct StoreStats {
    /// The pools of connections.
    pub pools: Vec<PoolStats>,
    /// The durations of the operations.
    pub operations: Arc<Operations>,
}

/// The connections of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// The name of the pool.
    pub name: &'static str,
    /// Connections in use.
    pub used: usize,
    /// Open connections that aren't in use.
    pub idle: usize,
}

impl PoolStats {
    /// The connections of a pool with this name.
    pub(super) fn of<DB: Database>(name: &'static str, pool: &Pool<DB>) -> Self {
        let (open, idle) = (pool.size() as usize, pool.num_idle());
        Self {
            name,
            used: open.saturating_sub(idle),
            idle,
        }
    }
}

/// An operation on a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    List,
    Get,
    Reports,
    Begin,
    Lock,
    Insert,
    Update,
    Delete,
    PreviousImages,
    RequestIds,
    Commit,
    Rollback,
    Ping,
    Purge,
}

/// The durations of operations, each with the wait for a connection.
#[derive(Debug, Default)]
pub struct Operations([Histogram; Operations::NAMES.len()]);

impl Operations {
    const NAMES: [&str; 14] = [
        "list",
        "get",
        "reports",
        "begin",
        "lock",
        "insert",
        "update",
        "delete",
        "previous_images",
        "request_ids",
        "commit",
        "rollback",
        "ping",
        "purge",
    ];

    /// Measures an operation until the timer is dropped.
    pub(super) fn time(&self, operation: Operation) -> Timer<'_> {
        self.0[operation as usize].time()
    }

    /// The names of the operations, and their durations.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        Self::NAMES.into_iter().zip(&self.0)
    }
}
