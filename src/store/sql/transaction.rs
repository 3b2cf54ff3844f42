//! [`Transaction`] over a connection.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use sqlx::{Executor, FromRow, IntoArguments, QueryBuilder};
use uuid::Uuid;

use super::{
    super::{
        IdempotencyRecord, Operations, StoreError, StoreResult, Transaction, stats::Operation,
    },
    Dialect,
    connection::{ConnectionGuard, TIMEOUT},
    query::{StatementExt as _, Value},
    rows::{Column, ImageRow, LOCATION_COLUMNS, LocationRow, RecordRow, TaggedImageRow},
};
use crate::model::{Epoch, Etag, Image, Location, LocationId, Micros, OwnerId};

/// The INSERT of locations, without an ON CONFLICT clause.
fn insert_statement<DB: Dialect>(locations: &[Location]) -> QueryBuilder<DB> {
    let mut statement = QueryBuilder::new("INSERT INTO locations (");
    for (index, column) in LOCATION_COLUMNS.iter().enumerate() {
        statement
            .push(if index == 0 { "" } else { ", " })
            .push(column.name);
    }
    statement
        .push(") VALUES ")
        .tuples(locations.iter().map(|location| {
            LOCATION_COLUMNS
                .iter()
                .map(|column| (column.value)(location))
        }));
    statement
}

/// A connection on which a transaction has begun.
pub(super) struct SqlTransaction<DB: Dialect> {
    pub(super) connection: ConnectionGuard<DB>,
    pub(super) operations: Arc<Operations>,
}

#[async_trait]
impl<DB: Dialect> Transaction for SqlTransaction<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    LocationRow: for<'r> FromRow<'r, DB::Row>,
    RecordRow: for<'r> FromRow<'r, DB::Row>,
    ImageRow: for<'r> FromRow<'r, DB::Row>,
    TaggedImageRow: for<'r> FromRow<'r, DB::Row>,
    (Uuid,): for<'r> FromRow<'r, DB::Row>,
    (i64,): for<'r> FromRow<'r, DB::Row>,
{
    async fn lock(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Location>> {
        let _timer = self.operations.time(Operation::Lock);
        let mut statement = QueryBuilder::new("SELECT ");
        statement.read_columns().lock_source(ids);
        let rows: Vec<LocationRow> = self.connection.rows(&mut statement).await?;
        Ok(rows.into_iter().map(|row| row.location).collect())
    }

    async fn lock_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<(Image, Etag)>> {
        let _timer = self.operations.time(Operation::Lock);
        let mut statement = QueryBuilder::new("SELECT id, type, production_run_id, owner_id, etag");
        statement.lock_source(ids);
        let rows: Vec<TaggedImageRow> = self.connection.rows(&mut statement).await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    async fn insert(&mut self, locations: &[Location]) -> StoreResult<()> {
        let _timer = self.operations.time(Operation::Insert);
        let mut statement = insert_statement::<DB>(locations);
        statement.push(" ON CONFLICT (id) DO NOTHING RETURNING id");
        let rows: Vec<(Uuid,)> = self.connection.rows(&mut statement).await?;
        if rows.len() == locations.len() {
            return Ok(());
        }
        let mut inserted: HashSet<Uuid> = rows.into_iter().map(|(id,)| id).collect();
        // The first of two locations with the same id was inserted: it doesn't collide.
        let indexes: Vec<usize> = (0..locations.len())
            .filter(|index| !inserted.remove(&locations[*index].id.0))
            .collect();
        let first = *indexes.first().unwrap_or(&0);
        Err(StoreError::AlreadyExists {
            id: locations[first].id,
            indexes,
        })
    }

    async fn update(&mut self, locations: &[Location]) -> StoreResult<()> {
        let _timer = self.operations.time(Operation::Update);
        // All of them exist: one statement replaces any number.
        let mut statement = insert_statement::<DB>(locations);
        statement.push(" ON CONFLICT (id) DO UPDATE SET ");
        for (index, Column { name, .. }) in LOCATION_COLUMNS.iter().skip(1).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            statement.push(format_args!("{separator}{name} = excluded.{name}"));
        }
        self.connection.execute(&mut statement).await
    }

    async fn delete(&mut self, ids: &[LocationId]) -> StoreResult<()> {
        let _timer = self.operations.time(Operation::Delete);
        let mut statement = QueryBuilder::new("DELETE FROM locations WHERE ");
        statement.id_in(ids);
        self.connection.execute(&mut statement).await
    }

    async fn take_previous_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Image>> {
        let _timer = self.operations.time(Operation::PreviousImages);
        let mut statement = QueryBuilder::new("DELETE FROM former_images WHERE ");
        statement
            .id_in(ids)
            .push(" RETURNING id, type, production_run_id, owner_id");
        let rows: Vec<ImageRow> = self.connection.rows(&mut statement).await?;
        rows.into_iter().map(Image::try_from).collect()
    }

    async fn record_previous_images(&mut self, images: &[Image]) -> StoreResult<Micros> {
        let _timer = self.operations.time(Operation::PreviousImages);
        let mut statement = QueryBuilder::new(
            "INSERT INTO former_images (id, type, production_run_id, owner_id, noted_time) VALUES ",
        );
        statement
            .tuples(images.iter().map(|image| {
                [
                    image.id.into(),
                    Value::Int(image.kind as i64),
                    image.run.as_str().into(),
                    image.owner.as_str().into(),
                    Value::Now,
                ]
            }))
            .push(
                " ON CONFLICT (id) DO UPDATE SET type = excluded.type, \
                 production_run_id = excluded.production_run_id, owner_id = excluded.owner_id, \
                 noted_time = excluded.noted_time RETURNING noted_time",
            );
        let rows: Vec<(i64,)> = self.connection.rows(&mut statement).await?;
        rows.first()
            .map(|(recorded,)| Micros(*recorded))
            .ok_or_else(|| StoreError::corrupt("a row wasn't recorded"))
    }

    async fn find_idempotency_records(
        &mut self,
        caller: &OwnerId,
        ids: &[Uuid],
    ) -> StoreResult<Vec<IdempotencyRecord>> {
        let _timer = self.operations.time(Operation::RequestIds);
        let mut statement = QueryBuilder::new(
            "SELECT request_id, fingerprint, answer FROM create_requests WHERE caller = ",
        );
        statement
            .value(caller.as_str())
            .push(" AND request_id IN (")
            .values(ids.iter().copied().map(Value::Id))
            .push(")");
        let rows: Vec<RecordRow> = self.connection.rows(&mut statement).await?;
        rows.into_iter().map(IdempotencyRecord::try_from).collect()
    }

    async fn save_idempotency_records(
        &mut self,
        caller: &OwnerId,
        records: &[IdempotencyRecord],
    ) -> StoreResult<bool> {
        let _timer = self.operations.time(Operation::RequestIds);
        let mut statement = QueryBuilder::new(
            "INSERT INTO create_requests \
             (caller, request_id, fingerprint, answer, create_time) VALUES ",
        );
        statement
            .tuples(records.iter().map(|record| {
                [
                    caller.as_str().into(),
                    Value::Id(record.request_id),
                    Value::Bytes(record.fingerprint.to_vec()),
                    Value::Bytes(record.location.clone()),
                    Value::Now,
                ]
            }))
            .push(" ON CONFLICT (caller, request_id) DO NOTHING RETURNING request_id");
        let rows: Vec<(Uuid,)> = self.connection.rows(&mut statement).await?;
        Ok(rows.len() == records.len())
    }

    async fn commit(mut self: Box<Self>, epoch: Option<Epoch>) -> StoreResult<()> {
        let _timer = self.operations.time(Operation::Commit);
        match self
            .connection
            .command(DB::commit(epoch), DB::COMMIT_TIMEOUT)
            .await
        {
            Ok(Ok(())) => {
                self.connection.in_transaction = false;
                Ok(())
            }
            Ok(Err(error)) => Err(DB::map_commit_error(error)),
            Err(StoreError::Unavailable(elapsed)) => Err(StoreError::OutcomeUnknown(elapsed)),
            Err(error) => Err(error),
        }
    }

    async fn rollback(mut self: Box<Self>) {
        let _timer = self.operations.time(Operation::Rollback);
        // After an error the connection is closed, which rolls back too.
        if let Ok(Ok(())) = self
            .connection
            .command("ROLLBACK".to_owned(), TIMEOUT)
            .await
        {
            self.connection.in_transaction = false;
        }
    }
}
