//! [`Store`] over a pool of connections.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{Database, Executor, FromRow, IntoArguments, Pool, QueryBuilder};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    super::{
        Operations, PoolStats, QUERY_TIMEOUT, Store, StoreError, StoreResult, StoreStats,
        Transaction, sqlite::OpenFile, stats::Operation, wal::Wal,
    },
    Dialect,
    connection::ConnectionGuard,
    driver::{Driver, probe_statement},
    query::{
        StatementExt as _, Value, count_statement, get_statement, list_statement, report_statement,
    },
    rows::{ImageRow, LocationRow, RecordRow, ReportRow, TaggedImageRow},
    transaction::SqlTransaction,
};
use crate::model::{
    Cursor, ListQuery, Location, LocationId, Micros, OrderField, OwnerId, Page, Report,
    ReportCursor, ReportQuery, SortValue,
};

/// A store over a database. The pools of reads and writes may be the same one.
#[derive(Debug)]
pub(in crate::store) struct SqlStore<DB: Database> {
    pub(in crate::store) read_pool: Pool<DB>,
    pub(in crate::store) write_pool: Pool<DB>,
    /// One connection for [`Store::ping`], which mustn't wait for calls.
    pub(in crate::store) ping_pool: Pool<DB>,
    pub(in crate::store) operations: Arc<Operations>,
    /// SQLite's file.
    pub(in crate::store) file: Option<Arc<OpenFile>>,
    /// SQLite's write-ahead log.
    pub(in crate::store) wal: Option<Arc<Wal>>,
}

impl<DB: Dialect> SqlStore<DB> {
    async fn reader(&self) -> StoreResult<ConnectionGuard<DB>> {
        let wal = match &self.wal {
            Some(wal) => Some(wal.read().await),
            None => None,
        };
        let mut reader = self.acquire(&self.read_pool).await?;
        reader.wal = wal;
        Ok(reader)
    }

    async fn writer(&self) -> StoreResult<ConnectionGuard<DB>> {
        // Before the wait as well: the log of a file that is gone isn't truncated.
        self.check_file()?;
        let wal = match &self.wal {
            Some(wal) => Some(wal.write().await?),
            None => None,
        };
        let mut writer = self.acquire(&self.write_pool).await?;
        writer.wal = wal;
        Ok(writer)
    }

    /// Runs a read, and begins it again when the write-ahead log interrupts it.
    async fn read<T, F>(&self, read: impl Fn() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        let Some(wal) = &self.wal else {
            return read().await;
        };
        loop {
            tokio::select! {
                result = read() => return result,
                () = wal.interrupted() => {}
            }
        }
    }

    /// Waits for a connection to the file that is open.
    async fn acquire(&self, pool: &Pool<DB>) -> StoreResult<ConnectionGuard<DB>> {
        self.check_file()?;
        let acquired = ConnectionGuard::acquire(pool).await;
        if acquired.is_err() {
            // New connections may lead to another file since then.
            self.check_file()?;
        }
        acquired
    }

    fn check_file(&self) -> StoreResult<()> {
        let checked = self.file.as_ref().map_or(Ok(()), |file| file.check());
        checked.map_err(StoreError::unavailable)
    }
}

/// The rows of a page, with one more than its limit if others follow.
struct ListRows {
    items: Vec<Location>,
    /// Whether rows were left out to bound the size of the page.
    cut: bool,
    total: Option<i64>,
}

impl<DB: Dialect> ConnectionGuard<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    LocationRow: for<'r> FromRow<'r, DB::Row>,
    (i64,): for<'r> FromRow<'r, DB::Row>,
{
    /// Reads a page, and its total in the same snapshot.
    async fn list_rows(
        &mut self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> StoreResult<ListRows> {
        // Plans that depend on the labels' frequencies aren't kept.
        let keep_prepared = query.labels.is_empty();
        let driver = match probe_statement(query) {
            Some(mut probe) => match self.rows(&mut probe).await?.first() {
                Some((probe,)) => Driver::from_probe(query, *probe),
                None => Driver::preset(query),
            },
            None => Driver::preset(query),
        };
        let list = || list_statement(query, after, driver);
        if !query.count {
            let (items, cut) = self.page(&mut list(), keep_prepared).await?;
            return Ok(ListRows {
                items,
                cut,
                total: None,
            });
        }
        self.in_transaction = true;
        self.run(DB::BEGIN_SNAPSHOT).await?;
        let rows = async {
            let (items, cut) = self.page(&mut list(), keep_prepared).await?;
            let totals = self.rows(&mut count_statement(query, driver)).await?;
            Ok(ListRows {
                items,
                cut,
                total: totals.first().map(|(total,)| *total),
            })
        };
        let rows = rows.await;
        // Also before another attempt. After another error the connection is closed.
        if matches!(rows, Ok(_) | Err(StoreError::Conflict(_))) {
            self.run("ROLLBACK").await?;
            self.in_transaction = false;
        }
        rows
    }
}

impl<DB: Dialect> SqlStore<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    LocationRow: for<'r> FromRow<'r, DB::Row>,
    ReportRow: for<'r> FromRow<'r, DB::Row>,
    (i64,): for<'r> FromRow<'r, DB::Row>,
{
    async fn read_list(
        &self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> StoreResult<Page<Location, Cursor>> {
        let mut reader = self.reader().await?;
        let rows = async {
            match reader.list_rows(query, after).await {
                // The plan was stale: see `ConnectionGuard::checked`.
                Err(StoreError::Conflict(_)) => reader.list_rows(query, after).await,
                rows => rows,
            }
        };
        let ListRows {
            mut items,
            cut,
            total,
        } = if query.text.is_empty() {
            rows.await?
        } else {
            timeout(QUERY_TIMEOUT, rows)
                .await
                .unwrap_or(Err(StoreError::TooSlow(QUERY_TIMEOUT)))?
        };
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let more = cut || items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|last| Cursor {
            value: match query.order.field {
                OrderField::CreateTime => SortValue::Number(last.create_time.0),
                OrderField::UpdateTime => SortValue::Number(last.update_time.0),
                OrderField::DisplayName => {
                    SortValue::Text(last.details.display_name.as_str().to_owned())
                }
                OrderField::Capacity => SortValue::Number(last.details.capacity.get()),
            },
            id: last.id,
        });
        Ok(Page { items, next, total })
    }

    async fn read_reports(
        &self,
        query: &ReportQuery,
        after: Option<&ReportCursor>,
    ) -> StoreResult<Page<Report, ReportCursor>> {
        let mut reader = self.reader().await?;
        let rows: Vec<ReportRow> = match reader.rows(&mut report_statement(query, after)).await {
            Err(StoreError::Conflict(_)) => {
                reader.rows(&mut report_statement(query, after)).await?
            }
            rows => rows?,
        };
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        let items: Vec<Report> = rows
            .into_iter()
            .take(limit)
            .map(Report::try_from)
            .collect::<StoreResult<_>>()?;
        let next = items
            .last()
            .filter(|_| more)
            .map(|last| (last.kind, last.run.clone()));
        Ok(Page {
            items,
            next,
            total: None,
        })
    }
}

#[async_trait]
impl<DB: Dialect> Store for SqlStore<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    LocationRow: for<'r> FromRow<'r, DB::Row>,
    ReportRow: for<'r> FromRow<'r, DB::Row>,
    RecordRow: for<'r> FromRow<'r, DB::Row>,
    ImageRow: for<'r> FromRow<'r, DB::Row>,
    TaggedImageRow: for<'r> FromRow<'r, DB::Row>,
    (Uuid,): for<'r> FromRow<'r, DB::Row>,
    (i64,): for<'r> FromRow<'r, DB::Row>,
    (Vec<u8>,): for<'r> FromRow<'r, DB::Row>,
{
    async fn list(
        &self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> StoreResult<Page<Location, Cursor>> {
        let _timer = self.operations.time(Operation::List);
        self.read(|| self.read_list(query, after)).await
    }

    async fn get(&self, ids: &[LocationId], owner: Option<&OwnerId>) -> StoreResult<Vec<Location>> {
        let _timer = self.operations.time(Operation::Get);
        let mut reader = self.reader().await?;
        let rows: Vec<LocationRow> = match reader.rows(&mut get_statement(ids, owner)).await {
            Err(StoreError::Conflict(_)) => reader.rows(&mut get_statement(ids, owner)).await?,
            rows => rows?,
        };
        Ok(rows.into_iter().map(|row| row.location).collect())
    }

    async fn reports(
        &self,
        query: &ReportQuery,
        after: Option<&ReportCursor>,
    ) -> StoreResult<Page<Report, ReportCursor>> {
        let _timer = self.operations.time(Operation::Reports);
        self.read(|| self.read_reports(query, after)).await
    }

    async fn begin(&self) -> StoreResult<Box<dyn Transaction>> {
        let _timer = self.operations.time(Operation::Begin);
        let mut writer = self.writer().await?;
        writer.in_transaction = true;
        writer.run(DB::BEGIN).await?;
        Ok(Box::new(SqlTransaction {
            connection: writer,
            operations: Arc::clone(&self.operations),
        }))
    }

    async fn delete_previous_images(
        &self,
        ids: &[LocationId],
        recorded: Micros,
    ) -> StoreResult<()> {
        let _timer = self.operations.time(Operation::PreviousImages);
        let mut statement = QueryBuilder::new("DELETE FROM former_images WHERE noted_time = ");
        statement
            .value(Value::Int(recorded.0))
            .push(" AND ")
            .id_in(ids);
        self.writer().await?.execute(&mut statement).await
    }

    async fn purge_expired(&self, age: Duration) -> StoreResult<()> {
        let _timer = self.operations.time(Operation::Purge);
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        for (table, key, time) in [
            ("create_requests", "caller, request_id", "create_time"),
            ("former_images", "id", "noted_time"),
        ] {
            loop {
                // In small batches, so that other writers aren't blocked.
                let mut statement = QueryBuilder::new(format!(
                    "DELETE FROM {table} WHERE ({key}) IN \
                     (SELECT {key} FROM {table} WHERE {time} < "
                ));
                statement
                    .value(Value::Now)
                    .push(" - ")
                    .value(Value::Int(age))
                    .push(format_args!(" LIMIT 500) RETURNING {time}"));
                let deleted: Vec<(i64,)> = self.writer().await?.rows(&mut statement).await?;
                if deleted.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn page_token_key(&self) -> StoreResult<[u8; 32]> {
        let mut statement =
            QueryBuilder::new("SELECT value FROM secrets WHERE name = 'page_token_key'");
        let rows: Vec<(Vec<u8>,)> = self.reader().await?.rows(&mut statement).await?;
        rows.into_iter()
            .next()
            .and_then(|(key,)| key.try_into().ok())
            .ok_or_else(|| StoreError::corrupt("the database has no page_token_key of 32 bytes"))
    }

    async fn ping(&self) -> StoreResult<()> {
        let _timer = self.operations.time(Operation::Ping);
        let mut statement = QueryBuilder::new("SELECT id FROM locations LIMIT 1");
        let mut connection = self.acquire(&self.ping_pool).await?;
        let _: Vec<(Uuid,)> = connection.rows(&mut statement).await?;
        Ok(())
    }

    async fn close(&self) {
        self.ping_pool.close().await;
        self.read_pool.close().await;
        self.write_pool.close().await;
        if let Some(file) = &self.file {
            file.unlock();
        }
    }

    fn stats(&self) -> StoreStats {
        let mut pools = vec![PoolStats::of("ping", &self.ping_pool)];
        if self.file.is_some() {
            pools.push(PoolStats::of("reads", &self.read_pool));
            pools.push(PoolStats::of("writes", &self.write_pool));
        } else {
            pools.push(PoolStats::of("calls", &self.read_pool));
        }
        StoreStats {
            pools,
            operations: Arc::clone(&self.operations),
        }
    }
}
