//! Statements with their values.

use sqlx::{Database, Encode, QueryBuilder, Type};
use uuid::Uuid;

use super::{
    Dialect,
    rows::{LOCATION_COLUMNS, NEGATIVE_ZERO},
};
use crate::model::{
    Cursor, ListQuery, LocationId, Order, OrderField, OwnerId, Predicate, ReportCursor,
    ReportQuery, SortValue,
};

/// The value of a column.
#[derive(Debug)]
pub(in crate::store) enum Value {
    Int(i64),
    Real(Option<f64>),
    Text(String),
    Bytes(Vec<u8>),
    Id(Uuid),
    /// The current time of the database.
    Now,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<LocationId> for Value {
    fn from(LocationId(id): LocationId) -> Self {
        Self::Id(id)
    }
}

/// A database whose driver encodes every [`Value`].
pub(in crate::store) trait Bind: Database {
    /// Appends a placeholder, and binds the value to it.
    fn bind(statement: &mut QueryBuilder<Self>, value: Value);
}

impl<DB: Database> Bind for DB
where
    for<'q> i64: Encode<'q, DB> + Type<DB>,
    for<'q> Option<f64>: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
    for<'q> Vec<u8>: Encode<'q, DB> + Type<DB>,
    for<'q> Uuid: Encode<'q, DB> + Type<DB>,
{
    fn bind(statement: &mut QueryBuilder<DB>, value: Value) {
        match value {
            Value::Int(value) => statement.push_bind(value),
            Value::Real(value) => statement.push_bind(value),
            Value::Text(value) => statement.push_bind(value),
            Value::Bytes(value) => statement.push_bind(value),
            Value::Id(value) => statement.push_bind(value),
            Value::Now => unreachable!("an expression of the dialect"),
        };
    }
}

/// The pieces that the statements of this module are composed of.
pub(super) trait StatementExt {
    /// Appends a value.
    fn value(&mut self, value: impl Into<Value>) -> &mut Self;

    /// Appends values separated by commas.
    fn values(&mut self, values: impl IntoIterator<Item = Value>) -> &mut Self;

    /// Appends the condition that the id is one of these.
    fn id_in(&mut self, ids: &[LocationId]) -> &mut Self;

    /// Appends rows separated by commas, each in parentheses: `(a, b), (c, d)`.
    fn tuples<T>(&mut self, tuples: impl IntoIterator<Item = T>) -> &mut Self
    where
        T: IntoIterator<Item = Value>;

    /// Appends the names of the columns of a location that are read, separated by commas.
    fn read_columns(&mut self) -> &mut Self;

    /// Appends a condition on the owner, if there is one.
    fn owned_by(&mut self, owner: Option<&OwnerId>) -> &mut Self;

    /// Appends a WHERE clause for the predicate. `type_column` is the expression for the type.
    fn filter(&mut self, predicate: &Predicate, type_column: &str) -> &mut Self;

    /// Appends the FROM and WHERE clauses of a list.
    fn list_source(&mut self, query: &ListQuery) -> &mut Self;
}

impl<DB: Dialect> StatementExt for QueryBuilder<DB> {
    fn value(&mut self, value: impl Into<Value>) -> &mut Self {
        match value.into() {
            Value::Now => self.push(DB::NOW),
            Value::Real(Some(real))
                if real == 0.0 && real.is_sign_negative() && !DB::KEEPS_NEGATIVE_ZERO =>
            {
                DB::bind(self, Value::Real(Some(NEGATIVE_ZERO)));
                self
            }
            value => {
                DB::bind(self, value);
                self
            }
        }
    }

    fn values(&mut self, values: impl IntoIterator<Item = Value>) -> &mut Self {
        for (index, value) in values.into_iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " }).value(value);
        }
        self
    }

    fn id_in(&mut self, ids: &[LocationId]) -> &mut Self {
        self.push("id IN (")
            .values(ids.iter().map(|id| (*id).into()))
            .push(")")
    }

    fn tuples<T>(&mut self, tuples: impl IntoIterator<Item = T>) -> &mut Self
    where
        T: IntoIterator<Item = Value>,
    {
        for (index, tuple) in tuples.into_iter().enumerate() {
            self.push(if index == 0 { "(" } else { ", (" })
                .values(tuple)
                .push(")");
        }
        self
    }

    fn read_columns(&mut self) -> &mut Self {
        for (index, column) in LOCATION_COLUMNS.iter().filter(|c| c.read).enumerate() {
            self.push(if index == 0 { "" } else { ", " })
                .push(column.name);
        }
        self
    }

    fn owned_by(&mut self, owner: Option<&OwnerId>) -> &mut Self {
        if let Some(owner) = owner {
            self.push(" AND owner_id = ").value(owner.as_str());
        }
        self
    }

    fn filter(&mut self, predicate: &Predicate, type_column: &str) -> &mut Self {
        let Predicate { kind, run, owner } = predicate;
        self.push(" WHERE 1 = 1");
        if let Some(kind) = kind {
            self.push(format_args!(" AND {type_column} = "))
                .value(Value::Int(*kind as i64));
        }
        if let Some(run) = run {
            self.push(" AND production_run_id = ").value(run.as_str());
        }
        self.owned_by(owner.as_ref())
    }

    fn list_source(&mut self, query: &ListQuery) -> &mut Self {
        let Predicate { run, owner, .. } = &query.predicate;
        let mut labels = query.labels.iter();
        let driver = driving_label(query).and_then(|_| labels.next());
        if driver.is_some() {
            // SQLite reads the tables of a CROSS JOIN in this order; PostgreSQL chooses.
            self.push(" FROM location_labels CROSS JOIN locations");
        } else {
            self.push(" FROM locations");
        }
        // SQLite has no statistics, and would prefer the index on the type to the ones on the run
        // and the owner, which are far more selective. A unary plus disables a column's index.
        let type_column = if run.is_some() || owner.is_some() {
            "+type"
        } else {
            "type"
        };
        self.filter(&query.predicate, type_column);
        if let Some(label) = driver {
            self.push(" AND id = location_id AND create_time = location_create_time");
            self.push(" AND label_key = ").value(label.0.as_str());
            self.push(" AND label_value = ").value(label.1.as_str());
        }
        for (key, value) in labels {
            self.push(
                " AND EXISTS (SELECT 1 FROM location_labels AS other \
                 WHERE other.location_id = id AND other.location_create_time = create_time \
                 AND other.label_key = ",
            );
            self.value(key.as_str()).push(" AND other.label_value = ");
            self.value(value.as_str()).push(")");
        }
        if let Some(state) = query.state {
            self.push(" AND state = ").value(Value::Int(state as i64));
        }
        if !query.text.is_empty() {
            self.push(format_args!(" AND {}(display_name_lower, ", DB::POSITION))
                .value(query.text.as_str())
                .push(") > 0");
        }
        self
    }
}

/// The columns of the index on labels that locations are ordered by, if a list is read from it: the
/// indexes on the run and on the owner are more selective.
fn driving_label(query: &ListQuery) -> Option<(&'static str, &'static str)> {
    let Predicate { run, owner, .. } = &query.predicate;
    let driven = !query.labels.is_empty() && run.is_none() && owner.is_none();
    driven.then_some(("location_create_time", "location_id"))
}

fn order_column(field: OrderField) -> &'static str {
    match field {
        OrderField::CreateTime => "create_time",
        OrderField::UpdateTime => "update_time",
        OrderField::DisplayName => "display_name",
        OrderField::Capacity => "capacity",
    }
}

/// The number of locations on all pages of a list.
pub(super) fn count_statement<DB: Dialect>(query: &ListQuery) -> QueryBuilder<DB> {
    let mut statement = QueryBuilder::new("SELECT count(*)");
    statement.list_source(query);
    statement
}

/// The SELECT of a page of locations. It returns one row more than the page's limit, which shows
/// whether another page follows.
pub(in crate::store) fn list_statement<DB: Dialect>(
    query: &ListQuery,
    after: Option<&Cursor>,
) -> QueryBuilder<DB> {
    let Order { field, descending } = query.order;
    let (column, id_column) = match driving_label(query) {
        Some(columns) if field == OrderField::CreateTime => columns,
        _ => (order_column(field), "id"),
    };
    let (compare, direction) = if descending {
        ("<", " DESC")
    } else {
        (">", "")
    };
    let mut statement = QueryBuilder::new("SELECT ");
    statement.read_columns().list_source(query);
    if let Some(Cursor { value, id }) = after {
        let value = match value {
            SortValue::Number(number) => Value::Int(*number),
            SortValue::Text(text) => Value::Text(text.clone()),
        };
        statement
            .push(format_args!(" AND ({column}, {id_column}) {compare} "))
            .tuples([[value, (*id).into()]]);
    }
    statement
        .push(format_args!(
            " ORDER BY {column}{direction}, {id_column}{direction} LIMIT "
        ))
        .value(Value::Int(i64::from(query.limit) + 1))
        .push(" OFFSET ")
        .value(Value::Int(i64::from(query.skip)));
    statement
}

/// The SELECT of locations by id, of this owner if there is one.
pub(super) fn get_statement<DB: Dialect>(
    ids: &[LocationId],
    owner: Option<&OwnerId>,
) -> QueryBuilder<DB> {
    let mut statement = QueryBuilder::new("SELECT ");
    statement
        .read_columns()
        .push(" FROM locations WHERE ")
        .id_in(ids)
        .owned_by(owner);
    statement
}

/// The SELECT of a page of reports, with one row more than the page's limit.
///
/// It sums the halves of the capacities, because their sum may exceed 64 bits.
pub(in crate::store) fn report_statement<DB: Dialect>(
    query: &ReportQuery,
    after: Option<&ReportCursor>,
) -> QueryBuilder<DB> {
    let mut statement = QueryBuilder::new(
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
        statement
            .push(" AND (type, production_run_id) > ")
            .tuples([[Value::Int(*kind as i64), run.as_str().into()]]);
    }
    statement
        .push(" GROUP BY type, production_run_id ORDER BY type, production_run_id LIMIT ")
        .value(Value::Int(i64::from(query.limit) + 1));
    statement
}
