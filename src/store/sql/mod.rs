//! The SQL that both dialects share, and the store over either of them.

mod connection;
mod driver;
mod query;
mod refold;
mod rows;
mod store;
mod transaction;

pub(super) use self::{
    connection::{ConnectionGuard, TIMEOUT},
    query::Bind,
    refold::refold_names,
    store::SqlStore,
};
#[cfg(test)]
pub(super) use self::{
    driver::Driver,
    query::{list_statement, report_statement},
};

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Database, database::HasStatementCache};

use super::StoreError;
use crate::model::Epoch;

/// The differences between the databases.
#[async_trait]
pub(super) trait Dialect: Database + HasStatementCache + Bind {
    /// Begins a transaction that will write.
    const BEGIN: &'static str;

    /// Begins a transaction whose statements read one snapshot.
    const BEGIN_SNAPSHOT: &'static str;

    /// The suffix of a SELECT that locks the rows it returns.
    const FOR_UPDATE: &'static str;

    /// Whether the database knows by its statistics which of several filters is the most selective.
    const HAS_STATISTICS: bool;

    /// The function that returns the position of a text in another one, or 0. Unlike LIKE, both take
    /// nearly linear time for names of up to [`DisplayName`](crate::model::DisplayName)'s length: they
    /// compare text as bytes, and don't go back.
    const POSITION: &'static str;

    /// The SQL expression for the current time of the database, in microseconds since the Unix epoch.
    const NOW: &'static str;

    /// Whether a column of doubles keeps the sign of zero.
    const KEEPS_NEGATIVE_ZERO: bool;

    /// Timeout of a commit, after which its outcome is unknown. `None` waits for the outcome.
    const COMMIT_TIMEOUT: Option<Duration>;

    /// Whether a connection is ready again after an interrupted statement, without waiting for a server.
    const SURVIVES_INTERRUPT: bool;

    /// Interrupts the query of its connection when it is dropped.
    type Interrupt: Send;

    /// The statements that commit a write, in one message, provided that `epoch` is the cache's
    /// current one.
    fn commit(epoch: Option<Epoch>) -> String;

    /// Returns a guard that interrupts the connection's query when it is dropped.
    async fn interruptible(connection: &mut Self::Connection) -> sqlx::Result<Self::Interrupt>;

    /// Whether a prepared statement failed because the schema has changed since it was prepared.
    fn is_stale_plan(error: &sqlx::Error) -> bool;

    /// Maps an error of the driver.
    fn map_error(error: sqlx::Error) -> StoreError;

    /// Maps an error of a commit: to [`StoreError::OutcomeUnknown`], unless the error shows that
    /// nothing was written.
    fn map_commit_error(error: sqlx::Error) -> StoreError;
}
