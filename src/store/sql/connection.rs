//! A connection that is safe to drop at any time.

use std::{sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor, FromRow, IntoArguments, Pool, QueryBuilder,
    pool::PoolConnection,
};
use tokio::time::timeout;

use super::{
    super::{MAX_PAGE_BYTES, REPLY_MARGIN, STATEMENT_TIMEOUT, StoreError, StoreResult, wal},
    Dialect,
    rows::LocationRow,
};
use crate::model::Location;

/// The timeout of most statements.
pub(in crate::store) const TIMEOUT: Option<Duration> = Some(STATEMENT_TIMEOUT);

/// Longer statements aren't kept prepared: they are batches, each of which is unlikely to recur.
const MAX_PREPARED_BYTES: usize = 640;

/// A connection from a pool. If it is dropped during a statement or a transaction, the statement is
/// interrupted, and the connection is closed, which rolls the transaction back; one that is ready again
/// after an interrupted statement is kept.
pub(in crate::store) struct ConnectionGuard<DB: Dialect> {
    // Dropped before the connection, whose drop waits for the end of its statement.
    _interrupt: DB::Interrupt,
    connection: PoolConnection<DB>,
    /// Whether a statement hasn't ended.
    busy: bool,
    pub(super) in_transaction: bool,
    /// The use of SQLite's write-ahead log, which ends with the guard.
    pub(super) wal: Option<wal::Use>,
}

impl<DB: Dialect> Drop for ConnectionGuard<DB> {
    fn drop(&mut self) {
        if self.in_transaction || (self.busy && !DB::SURVIVES_INTERRUPT) {
            self.connection.close_on_drop();
        }
    }
}

impl<DB: Dialect> ConnectionGuard<DB> {
    pub(in crate::store) async fn acquire(pool: &Pool<DB>) -> StoreResult<Self> {
        let mut connection = pool.acquire().await.map_err(DB::map_error)?;
        let interrupt = DB::interruptible(&mut connection)
            .await
            .map_err(DB::map_error)?;
        Ok(Self {
            _interrupt: interrupt,
            connection,
            busy: false,
            in_transaction: false,
            wal: None,
        })
    }
}

impl<DB: Dialect> ConnectionGuard<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
{
    /// Runs a statement, and returns its rows.
    pub(in crate::store) async fn rows<T>(
        &mut self,
        statement: &mut QueryBuilder<DB>,
    ) -> StoreResult<Vec<T>>
    where
        T: for<'r> FromRow<'r, DB::Row> + Send + Unpin,
    {
        let keep_prepared = is_short(statement);
        let rows = statement
            .build_query_as()
            .persistent(keep_prepared)
            .fetch_all(&mut *self.connection);
        let rows = in_time(&mut self.busy, TIMEOUT, rows).await?;
        self.checked(rows).await
    }

    /// Runs a SELECT of locations. Returns those that fit in [`MAX_PAGE_BYTES`], and whether more
    /// rows followed. `keep_prepared` is whether its plan suits other values.
    pub(super) async fn page(
        &mut self,
        statement: &mut QueryBuilder<DB>,
        keep_prepared: bool,
    ) -> StoreResult<(Vec<Location>, bool)>
    where
        LocationRow: for<'r> FromRow<'r, DB::Row>,
    {
        let keep_prepared = keep_prepared && is_short(statement);
        let mut rows = statement
            .build_query_as::<LocationRow>()
            .persistent(keep_prepared)
            .fetch(&mut *self.connection);
        let page = in_time(&mut self.busy, TIMEOUT, async move {
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
        .await?;
        self.checked(page).await
    }

    /// Runs a statement that returns no rows.
    pub(super) async fn execute(&mut self, statement: &mut QueryBuilder<DB>) -> StoreResult<()> {
        let keep_prepared = is_short(statement);
        let done = statement
            .build()
            .persistent(keep_prepared)
            .execute(&mut *self.connection);
        let done = in_time(&mut self.busy, TIMEOUT, done).await?;
        self.checked(done).await?;
        Ok(())
    }

    /// Maps the error of a statement. If its plan was stale, forgets all prepared statements of this
    /// connection, so that another attempt succeeds, and returns [`StoreError::Conflict`].
    async fn checked<T>(&mut self, result: sqlx::Result<T>) -> StoreResult<T> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !DB::is_stale_plan(&error) {
            return Err(DB::map_error(error));
        }
        let cleared = self.connection.clear_cached_statements();
        in_time(&mut self.busy, TIMEOUT, cleared)
            .await?
            .map_err(DB::map_error)?;
        Err(StoreError::Conflict(Arc::new(error)))
    }

    /// Runs a statement without values.
    pub(super) async fn run(&mut self, sql: &str) -> StoreResult<()> {
        self.command(sql.to_owned(), TIMEOUT)
            .await?
            .map_err(DB::map_error)
    }

    /// Runs statements without values, in one message. The outer error is a timeout.
    pub(in crate::store) async fn command(
        &mut self,
        sql: String,
        time_limit: Option<Duration>,
    ) -> StoreResult<sqlx::Result<()>> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.connection);
        let done = in_time(&mut self.busy, time_limit, done).await?;
        Ok(done.map(|_| ()))
    }
}

fn is_short<DB: Dialect>(statement: &QueryBuilder<DB>) -> bool {
    statement.sql().as_str().len() <= MAX_PREPARED_BYTES
}

/// Waits for a statement until its timeout, after which `busy` stays set.
async fn in_time<T>(
    busy: &mut bool,
    time_limit: Option<Duration>,
    statement: impl Future<Output = sqlx::Result<T>>,
) -> StoreResult<sqlx::Result<T>> {
    *busy = true;
    let outcome = match time_limit {
        Some(limit) => timeout(limit + REPLY_MARGIN, statement)
            .await
            .map_err(StoreError::unavailable)?,
        None => statement.await,
    };
    *busy = false;
    Ok(outcome)
}
