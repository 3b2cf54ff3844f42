//! The SQL that both dialects take, and the store over any of them.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::{self, Write as _},
    fs::File,
};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use sqlx::{
    AssertSqlSafe, ColumnIndex, Database, Decode, Encode, Executor, FromRow, IntoArguments, Pool,
    Row, Type, database::HasStatementCache, pool::PoolConnection, query::QueryAs,
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    IdempotencyRecord, MAX_PAGE_BYTES, REPLY_MARGIN, STATEMENT_TIMEOUT, Store, StoreError,
    StoreResult, Transaction,
};
use crate::model::{
    Address, Capacity, Coordinates, Cursor, Details, Epoch, Etag, Image, LabelKey, LabelValue,
    ListQuery, Location, LocationId, LocationState, LocationType, Micros, Order, OrderField,
    OwnerId, Page, Predicate, RegionCode, Report, ReportCursor, ReportQuery, SortValue, Text,
    fold_case,
};

/// The columns that are read.
const COLUMNS: &str = "id, type, display_name, production_run_id, owner_id, address_lines, locality, \
    administrative_area, postal_code, region_code, latitude, longitude, capacity, state, \
    description, labels, create_time, update_time, etag";

/// The column that is only looked in.
const LOOKED_IN: &str = ", display_name_lower";

/// A row's worth of values, and some.
const MAX_KEPT_VALUES: usize = 32;

/// What differs between the databases.
#[async_trait]
pub(super) trait Dialect: Database + HasStatementCache {
    /// Begins a transaction that will write.
    const BEGIN: &'static str;

    /// Ends a SELECT whose rows are to be locked.
    const FOR_UPDATE: &'static str;

    /// Stops the connection's query when it is dropped.
    type Interrupt: Send;

    /// Ends a transaction that has written, in one message, if this is the cache's epoch.
    fn commit(epoch: Option<Epoch>) -> String;

    /// Makes the queries of a connection end when the guard is dropped.
    async fn interruptible(connection: &mut Self::Connection) -> sqlx::Result<Self::Interrupt>;

    /// Says what an error of the driver means.
    fn map_error(error: sqlx::Error) -> StoreError;

    /// Says what an error of a commit means: `StoreError::OutcomeUnknown` unless it is sure that nothing
    /// was written.
    fn map_commit_error(error: sqlx::Error) -> StoreError;

    /// A statement with its placeholders `$1`, `$2`, ... written as the database likes them.
    fn placeholders(sql: String) -> String {
        sql
    }

    /// Binds values.
    fn arguments(values: Vec<Value>) -> Self::Arguments;
}

/// A value to bind.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(i64),
    Real(Option<f64>),
    Text(String),
    Bytes(Vec<u8>),
    Id(Uuid),
}

/// Binds values, for [`Dialect::arguments`].
pub(super) fn bind<DB: Database>(values: Vec<Value>) -> DB::Arguments
where
    for<'q> i64: Encode<'q, DB> + Type<DB>,
    for<'q> Option<f64>: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> Vec<u8>: Encode<'q, DB> + Type<DB>,
    for<'q> Uuid: Encode<'q, DB> + Type<DB>,
{
    use sqlx::Arguments as _;
    let mut arguments = DB::Arguments::default();
    for value in values {
        let added = match value {
            Value::Int(value) => arguments.add(value),
            Value::Real(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
            Value::Id(value) => arguments.add(value),
        };
        added.unwrap_or_else(|_| unreachable!("plain values always encode"));
    }
    arguments
}

/// A statement under construction: text with `$1`, `$2`, ..., each once and in this order, and the
/// values that they stand for.
#[derive(Debug, Default)]
pub(super) struct Statement {
    pub(super) sql: String,
    values: Vec<Value>,
}

impl Statement {
    fn new(sql: &str) -> Self {
        Self {
            sql: sql.to_owned(),
            values: Vec::new(),
        }
    }

    fn push(&mut self, sql: &str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    fn bind(&mut self, value: Value) -> &mut Self {
        self.values.push(value);
        let _ = write!(self.sql, "${}", self.values.len());
        self
    }

    /// `prefix` between the values, which stand in parentheses: `(a, b), (c, d)`.
    fn tuples(&mut self, tuples: impl IntoIterator<Item = Vec<Value>>) -> &mut Self {
        for (index, tuple) in tuples.into_iter().enumerate() {
            self.push(if index == 0 { "(" } else { ", (" });
            self.list(tuple).push(")");
        }
        self
    }

    /// Long statements that hardly come twice aren't worth keeping prepared.
    fn keep_prepared(&self) -> bool {
        self.values.len() <= MAX_KEPT_VALUES
    }

    /// The statement as a query for rows.
    fn query<DB: Dialect, T>(self) -> QueryAs<'static, DB, T, DB::Arguments>
    where
        T: for<'r> FromRow<'r, DB::Row>,
        DB::Arguments: IntoArguments<DB>,
    {
        let keep_prepared = self.keep_prepared();
        sqlx::query_as_with(
            AssertSqlSafe(DB::placeholders(self.sql)),
            DB::arguments(self.values),
        )
        .persistent(keep_prepared)
    }

    fn list(&mut self, values: impl IntoIterator<Item = Value>) -> &mut Self {
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.push(", ");
            }
            self.bind(value);
        }
        self
    }

    /// A WHERE clause of the conditions that a request states, of which this column is the type.
    fn filter(&mut self, predicate: &Predicate, type_column: &str) -> &mut Self {
        let Predicate { kind, run, owner } = predicate;
        self.push(" WHERE 1 = 1");
        if let Some(kind) = kind {
            let condition = format!(" AND {type_column} = ");
            self.push(&condition).bind(Value::Int(*kind as i64));
        }
        if let Some(run) = run {
            self.push(" AND production_run_id = ")
                .bind(Value::Text(run.as_str().to_owned()));
        }
        if let Some(owner) = owner {
            self.push(" AND owner_id = ")
                .bind(Value::Text(owner.as_str().to_owned()));
        }
        self
    }

    fn filter_list(&mut self, query: &ListQuery) -> &mut Self {
        let Predicate { run, owner, .. } = &query.predicate;
        // Half of all locations have a type, and SQLite, which keeps no statistics, would walk them as
        // readily as those of the run. A plus keeps a column from its index.
        let type_column = if run.is_some() || owner.is_some() {
            "+type"
        } else {
            "type"
        };
        self.filter(&query.predicate, type_column);
        if let Some(state) = query.state {
            self.push(" AND state = ").bind(Value::Int(state as i64));
        }
        if !query.text.is_empty() {
            self.push(" AND display_name_lower LIKE ")
                .bind(Value::Text(like_pattern(&query.text)))
                .push(" ESCAPE '\\'");
        }
        self
    }
}

/// A pattern that matches this text anywhere.
fn like_pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for char in text.chars() {
        if matches!(char, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern.push('%');
    pattern
}

pub(super) fn list_statement(query: &ListQuery, after: Option<&Cursor>) -> Statement {
    let Order { field, descending } = query.order;
    let column = match field {
        OrderField::CreateTime => "create_time",
        OrderField::UpdateTime => "update_time",
        OrderField::DisplayName => "display_name",
        OrderField::Capacity => "capacity",
    };
    let (compare, direction) = if descending {
        ("<", " DESC")
    } else {
        (">", "")
    };
    let mut statement = Statement::new("SELECT ");
    statement
        .push(COLUMNS)
        .push(" FROM locations")
        .filter_list(query);
    if let Some(Cursor { value, id }) = after {
        let _ = write!(statement.sql, " AND ({column}, id) {compare} (");
        let value = match value {
            SortValue::Number(number) => Value::Int(*number),
            SortValue::Text(text) => Value::Text(text.clone()),
        };
        statement.list([value, Value::Id(id.0)]).push(")");
    }
    let _ = write!(
        statement.sql,
        " ORDER BY {column}{direction}, id{direction} LIMIT "
    );
    // One more than asked tells whether another page follows.
    statement
        .bind(Value::Int(i64::from(query.limit) + 1))
        .push(" OFFSET ")
        .bind(Value::Int(i64::from(query.skip)));
    statement
}

/// Capacities are summed in halves, because their sum may exceed 64 bits.
pub(super) fn report_statement(query: &ReportQuery, after: Option<&ReportCursor>) -> Statement {
    let mut statement = Statement::new(
        "SELECT type, production_run_id, count(*) AS locations, \
         CAST(sum(CASE WHEN state = 1 THEN 1 ELSE 0 END) AS BIGINT) AS active, \
         CAST(sum(capacity >> 32) AS BIGINT) AS capacity_high, \
         CAST(sum(capacity & 4294967295) AS BIGINT) AS capacity_low, \
         count(DISTINCT nullif(region_code, '')) AS regions, \
         max(update_time) AS latest_update \
         FROM locations",
    );
    statement.filter(&query.predicate, "type");
    if let Some((kind, run)) = after {
        statement.push(" AND (type, production_run_id) > (").list([
            Value::Int(*kind as i64),
            Value::Text(run.as_str().to_owned()),
        ]);
        statement.push(")");
    }
    statement
        .push(" GROUP BY type, production_run_id ORDER BY type, production_run_id LIMIT ")
        .bind(Value::Int(i64::from(query.limit) + 1));
    statement
}

struct LocationRow {
    location: Location,
    /// About what the location takes in an answer.
    bytes: usize,
}

/// By place in [`COLUMNS`], without asking for each value what type its column has, which the schema
/// says, and without a copy of what is parsed: that is a fifth of a list that isn't cached.
impl<'r, R: Row> FromRow<'r, R> for LocationRow
where
    usize: ColumnIndex<R>,
    Uuid: Decode<'r, R::Database>,
    i64: Decode<'r, R::Database>,
    String: Decode<'r, R::Database>,
    &'r str: Decode<'r, R::Database>,
    Option<f64>: Decode<'r, R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        const NUMBERS: usize = 256;
        let id: Uuid = row.try_get_unchecked(0)?;
        let corrupt =
            |column: &str| sqlx::Error::Decode(format!("location {id}: bad {column}").into());
        let number = |column: usize| row.try_get_unchecked::<i64, _>(column);
        let mut bytes = NUMBERS;
        let mut text = |column: usize| -> sqlx::Result<String> {
            let text: String = row.try_get_unchecked(column)?;
            bytes += text.len();
            Ok(text)
        };
        let display_name = Text::from_trusted(text(2)?);
        let production_run_id = Text::from_trusted(text(3)?);
        let owner = Text::from_trusted(text(4)?);
        let locality = Text::from_trusted(text(6)?);
        let administrative_area = Text::from_trusted(text(7)?);
        let postal_code = Text::from_trusted(text(8)?);
        let region_code = RegionCode::from_trusted(text(9)?);
        let description = Text::from_trusted(text(14)?);
        let etag = Etag::from_trusted(text(18)?);
        let (lines_json, labels_json): (&str, &str) =
            (row.try_get_unchecked(5)?, row.try_get_unchecked(15)?);
        // A label takes a few bytes more in an answer than in JSON.
        bytes += lines_json.len() + 2 * labels_json.len();
        let lines: Vec<String> = match lines_json {
            "[]" => Vec::new(),
            json => serde_json::from_str(json).map_err(|_| corrupt("address_lines"))?,
        };
        let StoredLabels(labels) = match labels_json {
            "{}" => StoredLabels::default(),
            json => serde_json::from_str(json).map_err(|_| corrupt("labels"))?,
        };
        let coordinates = match (row.try_get_unchecked(10)?, row.try_get_unchecked(11)?) {
            (Some(latitude), Some(longitude)) => {
                Some(Coordinates::new(latitude, longitude).map_err(|_| corrupt("coordinates"))?)
            }
            _ => None,
        };
        let location = Location {
            id: LocationId(id),
            kind: LocationType::from_number(number(1)?).ok_or_else(|| corrupt("type"))?,
            owner,
            details: Details {
                display_name,
                production_run_id,
                address: Address {
                    lines: lines.into_iter().map(Text::from_trusted).collect(),
                    locality,
                    administrative_area,
                    postal_code,
                    region_code,
                },
                coordinates,
                capacity: Capacity::new(number(12)?).map_err(|_| corrupt("capacity"))?,
                state: LocationState::from_number(number(13)?).ok_or_else(|| corrupt("state"))?,
                description,
                labels,
            },
            create_time: Micros(number(16)?),
            update_time: Micros(number(17)?),
            etag,
        };
        Ok(Self { location, bytes })
    }
}

/// Labels as they are stored, which are valid.
#[derive(Default)]
struct StoredLabels(BTreeMap<LabelKey, LabelValue>);

impl<'de> Deserialize<'de> for StoredLabels {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for StoredLabels {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut labels: A) -> Result<Self, A::Error> {
        while let Some((key, value)) = labels.next_entry()? {
            self.0
                .insert(Text::from_trusted(key), Text::from_trusted(value));
        }
        Ok(self)
    }
}

/// A location's values, in the order of [`COLUMNS`] and [`LOOKED_IN`].
fn location_values(location: &Location) -> Vec<Value> {
    let Details {
        display_name,
        production_run_id,
        address,
        coordinates,
        capacity,
        state,
        description,
        labels,
    } = &location.details;
    let text = |text: &str| Value::Text(text.to_owned());
    let lines: Vec<_> = address.lines.iter().map(Text::as_str).collect();
    let labels: serde_json::Map<_, _> = labels
        .iter()
        .map(|(key, value)| (key.as_str().to_owned(), value.as_str().into()))
        .collect();
    vec![
        Value::Id(location.id.0),
        Value::Int(location.kind as i64),
        text(display_name.as_str()),
        text(production_run_id.as_str()),
        text(location.owner.as_str()),
        Value::Text(serde_json::Value::from(lines).to_string()),
        text(address.locality.as_str()),
        text(address.administrative_area.as_str()),
        text(address.postal_code.as_str()),
        text(address.region_code.as_str()),
        Value::Real(coordinates.map(Coordinates::latitude)),
        Value::Real(coordinates.map(Coordinates::longitude)),
        Value::Int(capacity.get()),
        Value::Int(*state as i64),
        text(description.as_str()),
        Value::Text(serde_json::Value::from(labels).to_string()),
        Value::Int(location.create_time.0),
        Value::Int(location.update_time.0),
        text(location.etag.as_str()),
        Value::Text(fold_case(display_name.as_str())),
    ]
}

#[derive(FromRow)]
struct ReportRow {
    r#type: i64,
    production_run_id: String,
    locations: i64,
    active: i64,
    capacity_high: i64,
    capacity_low: i64,
    regions: i64,
    latest_update: i64,
}

impl TryFrom<ReportRow> for Report {
    type Error = StoreError;

    fn try_from(row: ReportRow) -> StoreResult<Self> {
        let capacity = (i128::from(row.capacity_high) << 32) + i128::from(row.capacity_low);
        Ok(Self {
            kind: LocationType::from_number(row.r#type)
                .ok_or_else(|| StoreError::corrupt("a report's type is unknown"))?,
            run: Text::from_trusted(row.production_run_id),
            locations: row.locations,
            active: row.active,
            capacity: i64::try_from(capacity).unwrap_or(i64::MAX),
            regions: row.regions,
            latest_update: Micros(row.latest_update),
        })
    }
}

#[derive(FromRow)]
struct ImageRow {
    id: Uuid,
    r#type: i64,
    production_run_id: String,
    owner_id: String,
}

impl TryFrom<ImageRow> for Image {
    type Error = StoreError;

    fn try_from(row: ImageRow) -> StoreResult<Self> {
        Ok(Self {
            id: LocationId(row.id),
            kind: LocationType::from_number(row.r#type)
                .ok_or_else(|| StoreError::corrupt("a former image's type is unknown"))?,
            run: Text::from_trusted(row.production_run_id),
            owner: Text::from_trusted(row.owner_id),
        })
    }
}

#[derive(FromRow)]
struct AnswerRow {
    request_id: Uuid,
    fingerprint: Vec<u8>,
    answer: Vec<u8>,
}

/// A store over a database: reads from one pool, writes through another, which may be the same.
#[derive(Debug)]
pub(super) struct SqlStore<DB: Database> {
    pub(super) readers: Pool<DB>,
    pub(super) writers: Pool<DB>,
    /// One connection to ask whether the database records, however busy the others are.
    pub(super) prober: Pool<DB>,
    /// A locked file to keep open for as long as the pools are.
    pub(super) lock: Option<File>,
}

impl<DB: Dialect> SqlStore<DB> {
    async fn reader(&self) -> StoreResult<ConnectionGuard<DB>> {
        ConnectionGuard::from(&self.readers).await
    }

    async fn writer(&self) -> StoreResult<ConnectionGuard<DB>> {
        ConnectionGuard::from(&self.writers).await
    }
}

/// A connection on loan from a pool. When it is dropped in the middle of something, its query is
/// stopped, and it is closed, which undoes its transaction, rather than given back.
struct ConnectionGuard<DB: Dialect> {
    // Dropped before the connection, which waits for its query's end.
    _interrupt: DB::Interrupt,
    connection: PoolConnection<DB>,
    busy: bool,
    in_transaction: bool,
}

impl<DB: Dialect> Drop for ConnectionGuard<DB> {
    fn drop(&mut self) {
        if self.busy || self.in_transaction {
            self.connection.close_on_drop();
        }
    }
}

impl<DB: Dialect> ConnectionGuard<DB> {
    async fn from(pool: &Pool<DB>) -> StoreResult<Self> {
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
    async fn rows<T>(&mut self, statement: Statement) -> StoreResult<Vec<T>>
    where
        T: for<'r> FromRow<'r, DB::Row> + Send + Unpin,
    {
        let rows = statement.query::<DB, T>().fetch_all(&mut *self.connection);
        in_time(&mut self.busy, rows).await?.map_err(DB::map_error)
    }

    /// The rows as locations, until `MAX_PAGE_BYTES`, and whether that cut them short.
    async fn locations(&mut self, statement: Statement) -> StoreResult<(Vec<Location>, bool)>
    where
        LocationRow: for<'r> FromRow<'r, DB::Row>,
    {
        let mut rows = statement
            .query::<DB, LocationRow>()
            .fetch(&mut *self.connection);
        in_time(&mut self.busy, async move {
            let mut kept = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.try_next().await? {
                bytes += row.bytes;
                if bytes > MAX_PAGE_BYTES && !kept.is_empty() {
                    return Ok((kept, true));
                }
                kept.push(row.location);
            }
            Ok((kept, false))
        })
        .await?
        .map_err(DB::map_error)
    }

    async fn execute(&mut self, statement: Statement) -> StoreResult<()> {
        let keep_prepared = statement.keep_prepared();
        let Statement { sql, values } = statement;
        let done = sqlx::query_with(AssertSqlSafe(DB::placeholders(sql)), DB::arguments(values))
            .persistent(keep_prepared)
            .execute(&mut *self.connection);
        in_time(&mut self.busy, done)
            .await?
            .map_err(DB::map_error)?;
        Ok(())
    }

    /// Runs a command that has no values.
    async fn command(&mut self, sql: String) -> StoreResult<sqlx::Result<()>> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *self.connection);
        Ok(in_time(&mut self.busy, done).await?.map(|_| ()))
    }
}

/// Waits for a statement as long as one may take. `busy` stays set if it hasn't ended.
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

#[async_trait]
impl<DB: Dialect> Store for SqlStore<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    LocationRow: for<'r> FromRow<'r, DB::Row>,
    ReportRow: for<'r> FromRow<'r, DB::Row>,
    AnswerRow: for<'r> FromRow<'r, DB::Row>,
    ImageRow: for<'r> FromRow<'r, DB::Row>,
    (Uuid,): for<'r> FromRow<'r, DB::Row>,
    (i64,): for<'r> FromRow<'r, DB::Row>,
    (Vec<u8>,): for<'r> FromRow<'r, DB::Row>,
{
    async fn list(
        &self,
        query: &ListQuery,
        after: Option<&Cursor>,
    ) -> StoreResult<Page<Location, Cursor>> {
        let mut reader = self.reader().await?;
        let (mut items, cut) = reader.locations(list_statement(query, after)).await?;
        let total = if query.count {
            let mut statement = Statement::new("SELECT count(*) FROM locations");
            statement.filter_list(query);
            reader.rows(statement).await?.first().map(|(total,)| *total)
        } else {
            None
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

    async fn get(&self, ids: &[LocationId], owner: Option<&OwnerId>) -> StoreResult<Vec<Location>> {
        let mut statement = Statement::new("SELECT ");
        statement
            .push(COLUMNS)
            .push(" FROM locations WHERE id IN (")
            .list(ids.iter().map(|id| Value::Id(id.0)))
            .push(")");
        if let Some(owner) = owner {
            statement
                .push(" AND owner_id = ")
                .bind(Value::Text(owner.as_str().to_owned()));
        }
        let rows = self.reader().await?.rows::<LocationRow>(statement).await?;
        Ok(rows.into_iter().map(|row| row.location).collect())
    }

    async fn reports(
        &self,
        query: &ReportQuery,
        after: Option<&ReportCursor>,
    ) -> StoreResult<Page<Report, ReportCursor>> {
        let statement = report_statement(query, after);
        let rows = self.reader().await?.rows::<ReportRow>(statement).await?;
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

    async fn begin(&self) -> StoreResult<Box<dyn Transaction>> {
        let mut writer = self.writer().await?;
        writer.in_transaction = true;
        writer
            .command(DB::BEGIN.to_owned())
            .await?
            .map_err(DB::map_error)?;
        Ok(Box::new(SqlTransaction(writer)))
    }

    async fn delete_previous_image(&self, id: LocationId, noted: Micros) -> StoreResult<()> {
        let mut statement = Statement::new("DELETE FROM former_images WHERE id = ");
        statement
            .bind(Value::Id(id.0))
            .push(" AND noted_time = ")
            .bind(Value::Int(noted.0));
        self.writer().await?.execute(statement).await
    }

    async fn purge_expired(&self, before: Micros) -> StoreResult<()> {
        for (table, key, time) in [
            ("create_requests", "caller, request_id", "create_time"),
            ("former_images", "id", "noted_time"),
        ] {
            loop {
                // A few at a time, for others write too.
                let mut statement = Statement::new(&format!(
                    "DELETE FROM {table} WHERE ({key}) IN \
                     (SELECT {key} FROM {table} WHERE {time} < "
                ));
                statement
                    .bind(Value::Int(before.0))
                    .push(&format!(" LIMIT 500) RETURNING {time} AS forgotten"));
                let forgotten: Vec<(i64,)> = self.writer().await?.rows(statement).await?;
                if forgotten.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn page_token_key(&self) -> StoreResult<[u8; 32]> {
        let statement = Statement::new("SELECT value FROM secrets WHERE name = 'page_token_key'");
        let rows: Vec<(Vec<u8>,)> = self.reader().await?.rows(statement).await?;
        rows.into_iter()
            .next()
            .and_then(|(key,)| key.try_into().ok())
            .ok_or_else(|| StoreError::corrupt("the database has no page_token_key of 32 bytes"))
    }

    async fn ping(&self) -> StoreResult<()> {
        let statement = Statement::new("SELECT id FROM locations LIMIT 1");
        let mut prober = ConnectionGuard::from(&self.prober).await?;
        let _: Vec<(Uuid,)> = prober.rows(statement).await?;
        Ok(())
    }

    async fn close(&self) {
        self.prober.close().await;
        self.readers.close().await;
        self.writers.close().await;
        if let Some(lock) = &self.lock {
            // It ends with the file anyway, when the store is dropped.
            let _ = lock.unlock();
        }
    }
}

struct SqlTransaction<DB: Dialect>(ConnectionGuard<DB>);

#[async_trait]
impl<DB: Dialect> Transaction for SqlTransaction<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    LocationRow: for<'r> FromRow<'r, DB::Row>,
    AnswerRow: for<'r> FromRow<'r, DB::Row>,
    ImageRow: for<'r> FromRow<'r, DB::Row>,
    (Uuid,): for<'r> FromRow<'r, DB::Row>,
{
    async fn lock(&mut self, id: LocationId) -> StoreResult<Option<Location>> {
        let mut statement = Statement::new("SELECT ");
        statement
            .push(COLUMNS)
            .push(" FROM locations WHERE id = ")
            .bind(Value::Id(id.0))
            .push(DB::FOR_UPDATE);
        let rows = self.0.rows::<LocationRow>(statement).await?;
        Ok(rows.into_iter().next().map(|row| row.location))
    }

    async fn insert(&mut self, locations: &[Location]) -> StoreResult<()> {
        let mut statement = Statement::new("INSERT INTO locations (");
        statement
            .push(COLUMNS)
            .push(LOOKED_IN)
            .push(") VALUES ")
            .tuples(locations.iter().map(location_values))
            .push(" ON CONFLICT (id) DO NOTHING RETURNING id");
        let rows: Vec<(Uuid,)> = self.0.rows(statement).await?;
        if rows.len() == locations.len() {
            return Ok(());
        }
        let mut inserted: HashSet<Uuid> = rows.into_iter().map(|(id,)| id).collect();
        // An id that comes twice was inserted once: its first one is no collision.
        let indexes: Vec<usize> = (0..locations.len())
            .filter(|index| !inserted.remove(&locations[*index].id.0))
            .collect();
        let first = *indexes.first().unwrap_or(&0);
        Err(StoreError::AlreadyExists {
            id: locations[first].id,
            indexes,
        })
    }

    async fn update(&mut self, location: &Location) -> StoreResult<()> {
        let mut statement = Statement::new("UPDATE locations SET ");
        let id = Value::Id(location.id.0);
        for (index, (column, value)) in [COLUMNS, LOOKED_IN]
            .concat()
            .split(", ")
            .zip(location_values(location))
            .skip(1)
            .enumerate()
        {
            statement.push(if index == 0 { "" } else { ", " });
            statement.push(column).push(" = ").bind(value);
        }
        statement.push(" WHERE id = ").bind(id);
        self.0.execute(statement).await
    }

    async fn delete(&mut self, id: LocationId) -> StoreResult<()> {
        let mut statement = Statement::new("DELETE FROM locations WHERE id = ");
        statement.bind(Value::Id(id.0));
        self.0.execute(statement).await
    }

    async fn take_previous_images(&mut self, ids: &[LocationId]) -> StoreResult<Vec<Image>> {
        let mut statement = Statement::new("DELETE FROM former_images WHERE id IN (");
        statement
            .list(ids.iter().map(|id| Value::Id(id.0)))
            .push(") RETURNING id, type, production_run_id, owner_id");
        let rows = self.0.rows::<ImageRow>(statement).await?;
        rows.into_iter().map(Image::try_from).collect()
    }

    async fn record_previous_image(&mut self, former: &Image, now: Micros) -> StoreResult<()> {
        let Image {
            id,
            kind,
            run,
            owner,
        } = former;
        let mut statement = Statement::new(
            "INSERT INTO former_images (id, type, production_run_id, owner_id, noted_time) \
             VALUES ",
        );
        statement
            .tuples([vec![
                Value::Id(id.0),
                Value::Int(*kind as i64),
                Value::Text(run.as_str().to_owned()),
                Value::Text(owner.as_str().to_owned()),
                Value::Int(now.0),
            ]])
            .push(
                " ON CONFLICT (id) DO UPDATE SET type = excluded.type, \
                 production_run_id = excluded.production_run_id, owner_id = excluded.owner_id, \
                 noted_time = excluded.noted_time",
            );
        self.0.execute(statement).await
    }

    async fn find_idempotency_records(
        &mut self,
        caller: &OwnerId,
        ids: &[Uuid],
    ) -> StoreResult<Vec<IdempotencyRecord>> {
        let mut statement = Statement::new(
            "SELECT request_id, fingerprint, answer FROM create_requests WHERE caller = ",
        );
        statement
            .bind(Value::Text(caller.as_str().to_owned()))
            .push(" AND request_id IN (")
            .list(ids.iter().copied().map(Value::Id))
            .push(")");
        let rows = self.0.rows::<AnswerRow>(statement).await?;
        rows.into_iter()
            .map(|row| {
                Ok(IdempotencyRecord {
                    request_id: row.request_id,
                    fingerprint: row
                        .fingerprint
                        .try_into()
                        .map_err(|_| StoreError::corrupt("a fingerprint hasn't 32 bytes"))?,
                    location: row.answer,
                })
            })
            .collect()
    }

    async fn save_idempotency_records(
        &mut self,
        caller: &OwnerId,
        records: &[IdempotencyRecord],
        now: Micros,
    ) -> StoreResult<bool> {
        let mut statement = Statement::new(
            "INSERT INTO create_requests \
             (caller, request_id, fingerprint, answer, create_time) VALUES ",
        );
        statement
            .tuples(records.iter().map(|answer| {
                vec![
                    Value::Text(caller.as_str().to_owned()),
                    Value::Id(answer.request_id),
                    Value::Bytes(answer.fingerprint.to_vec()),
                    Value::Bytes(answer.location.clone()),
                    Value::Int(now.0),
                ]
            }))
            .push(" ON CONFLICT (caller, request_id) DO NOTHING RETURNING request_id");
        let rows: Vec<(Uuid,)> = self.0.rows(statement).await?;
        Ok(rows.len() == records.len())
    }

    async fn commit(mut self: Box<Self>, epoch: Option<Epoch>) -> StoreResult<()> {
        match self.0.command(DB::commit(epoch)).await {
            Ok(Ok(())) => {
                self.0.in_transaction = false;
                Ok(())
            }
            Ok(Err(error)) => Err(DB::map_commit_error(error)),
            Err(StoreError::Unavailable(late)) => Err(StoreError::OutcomeUnknown(late)),
            Err(error) => Err(error),
        }
    }

    async fn rollback(mut self: Box<Self>) {
        // A connection that can't roll back is closed, which undoes the write too.
        if let Ok(Ok(())) = self.0.command("ROLLBACK".to_owned()).await {
            self.0.in_transaction = false;
        }
    }
}
