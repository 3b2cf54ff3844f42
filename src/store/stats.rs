//! Statistics of the stores.

use std::sync::Arc;

use sqlx::{Database, Pool};

use crate::telemetry::{Histogram, Span, Timer, call};

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
pub struct Operations {
    /// The name of the database's system.
    system: &'static str,
    durations: [Histogram; Operations::NAMES.len()],
}

/// Measures an operation until it is dropped, and is a span of a sampled call.
pub(super) struct Timed<'a> {
    _timer: Timer<'a>,
    _span: Span,
}

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

    /// The operations of a system, such as `sqlite`.
    pub(super) fn of(system: &'static str) -> Arc<Self> {
        Arc::new(Self {
            system,
            durations: Default::default(),
        })
    }

    /// Measures an operation.
    pub(super) fn time(&self, operation: Operation) -> Timed<'_> {
        let name = Self::NAMES[operation as usize];
        let mut span = call::span(|| format!("{} {name}", self.system));
        span.set("db.system.name", self.system);
        span.set("db.operation.name", name);
        Timed {
            _timer: self.durations[operation as usize].time(),
            _span: span,
        }
    }

    /// The names of the operations, and their durations.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        Self::NAMES.into_iter().zip(&self.durations)
    }
}
