//! A connection that is safe to drop at any time.

use futures_util::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, Executor, FromRow, IntoArguments, Pool, QueryBuilder, pool::PoolConnection,
};
use tokio::time::timeout;

use super::{
    super::{MAX_PAGE_BYTES, REPLY_MARGIN, STATEMENT_TIMEOUT, StoreError, StoreResult},
    Dialect,
    rows::LocationRow,
};
use crate::model::Location;

/// Longer statements aren't kept prepared: they are batches, each of which is unlikely to recur.
const MAX_PREPARED_BYTES: usize = 640;

/// A connection from a pool. If it is dropped during a statement or a transaction, the statement is
/// interrupted, and the connection is closed, which rolls the transaction back.
pub(super) struct ConnectionGuard<DB: Dialect> {
    // Dropped before the connection, whose drop waits for the end of its statement.
    _interrupt: DB::Interrupt,
    connection: PoolConnection<DB>,
    /// Whether a statement hasn't ended.
    busy: bool,
    pub(super) in_transaction: bool,
}

impl<DB: Dialect> Drop for ConnectionGuard<DB> {
    fn drop(&mut self) {
        if self.busy || self.in_transaction {
            self.connection.close_on_drop();
        }
    }
}

impl<DB: Dialect> ConnectionGuard<DB> {
    pub(super) async fn acquire(pool: &Pool<DB>) -> StoreResult<Self> {
        let mut connection = pool.acquire().await.map_err(DB::map_error)?;
        let interrupt = DB::interruptible(&mut connection)
            .await
            .map_err(DB::map_error)?;
        Ok(Self {
            _interrupt: interrupt,
            connection,
            busy: false,
            in_transaction: false,
        })
    }
}

impl<DB: Dialect> ConnectionGuard<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
{
    /// Runs a statement, and returns its rows.
    pub(super) async fn rows<T>(&mut self, statement: &mut QueryBuilder<DB>) -> StoreResult<Vec<T>>
    where
        T: for<'r> FromRow<'r, DB::Row> + Send + Unpin,
    {
        let keep_prepared = keep_prepared(statement);
        let rows = statement
            .build_query_as()
            .persistent(keep_prepared)
            .fetch_all(&mut *self.connection);
        in_time(&mut self.busy, rows).await?.map_err(DB::map_error)
    }

    /// Runs a SELECT of locations. Returns those that fit in [`MAX_PAGE_BYTES`], and whether more
    /// rows followed.
    pub(super) async fn page(
        &mut self,
        statement: &mut QueryBuilder<DB>,
    ) -> StoreResult<(Vec<Location>, bool)>
    where
        LocationRow: for<'r> FromRow<'r, DB::Row>,
    {
        let keep_prepared = keep_prepared(statement);
        let mut rows = statement
            .build_query_as::<LocationRow>()
            .persistent(keep_prepared)
            .fetch(&mut *self.connection);
        in_time(&mut self.busy, async move {
            let mut page = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.try_next().await? {
                bytes += row.bytes;
                if bytes > MAX_PAGE_BYTES && !page.is_empty() {
                    return Ok((page, true));
                }
                page.push(row.location);
            }
            Ok((page, false))
        })
        .await?
        .map_err(DB::map_error)
    }

    /// Runs a statement that returns no rows.
    pub(super) async fn execute(&mut self, statement: &mut QueryBuilder<DB>) -> StoreResult<()> {
        let keep_prepared = keep_prepared(statement);
        let done = statement
            .build()
            .persistent(keep_prepared)
            .execute(&mut *self.connection);
        in_time(&mut self.busy, done)
            .await?
            .map_err(DB::map_error)?;
        Ok(())
    }

    /// Runs statements without values, in one message. The outer error is a time-out.
    pub(super) async fn command(&mut self, sql: String) -> StoreResult<sqlx::Result<()>> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.connection);
        Ok(in_time(&mut self.busy, done).await?.map(|_| ()))
    }
}

fn keep_prepared<DB: Dialect>(statement: &QueryBuilder<DB>) -> bool {
    statement.sql().as_str().len() <= MAX_PREPARED_BYTES
}

/// Waits for a statement until its time-out, after which `busy` stays set.
async fn in_time<T>(
    busy: &mut bool,
    statement: impl Future<Output = sqlx::Result<T>>,
) -> StoreResult<sqlx::Result<T>> {
    *busy = true;
    let outcome = timeout(STATEMENT_TIMEOUT + REPLY_MARGIN, statement)
        .await
        .map_err(StoreError::unavailable)?;
    *busy = false;
    Ok(outcome)
}
