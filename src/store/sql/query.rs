//! Statements with their values.

use sqlx::{Database, Encode, QueryBuilder, Type};
use uuid::Uuid;

use super::{
    Dialect,
    driver::{Driver, is_selective},
    rows::{LOCATION_COLUMNS, NEGATIVE_ZERO},
};
use crate::model::{
    Cursor, LabelKey, LabelValue, ListQuery, LocationId, Order, OrderField, OwnerId, Predicate,
    ReportCursor, ReportQuery, SortValue,
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

    /// Appends the FROM and later clauses of a SELECT that locks these locations.
    fn lock_source(&mut self, ids: &[LocationId]) -> &mut Self;

    /// Appends rows separated by commas, each in parentheses: `(a, b), (c, d)`.
    fn tuples<T>(&mut self, tuples: impl IntoIterator<Item = T>) -> &mut Self
    where
        T: IntoIterator<Item = Value>;

    /// Appends the names of the columns of a location that are read, separated by commas.
    fn read_columns(&mut self) -> &mut Self;

    /// Appends a condition on the owner, if there is one.
    fn owned_by(&mut self, owner: Option<&OwnerId>) -> &mut Self;

    /// Appends the condition that a row of `location_labels` has this label.
    fn has_label(&mut self, label: (&LabelKey, &LabelValue)) -> &mut Self;

    /// Appends a WHERE clause for the predicate. Each column follows its prefix: a unary plus disables
    /// its indexes in SQLite.
    fn filter(&mut self, predicate: &Predicate, prefixes: Prefixes) -> &mut Self;

    /// Appends the FROM and WHERE clauses of a list. `label_exists` begins the condition on each label
    /// that doesn't drive the list.
    fn list_source(
        &mut self,
        query: &ListQuery,
        driver: Driver,
        label_exists: &'static str,
    ) -> &mut Self;
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

    fn lock_source(&mut self, ids: &[LocationId]) -> &mut Self {
        self.push(" FROM locations WHERE ")
            .id_in(ids)
            // In one order, so that two batches don't deadlock.
            .push(" ORDER BY id")
            .push(DB::FOR_UPDATE)
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

    fn has_label(&mut self, (key, value): (&LabelKey, &LabelValue)) -> &mut Self {
        self.push("label_key = ").value(key.as_str());
        self.push(" AND label_value = ").value(value.as_str())
    }

    fn filter(&mut self, predicate: &Predicate, prefixes: Prefixes) -> &mut Self {
        let Predicate { kind, run, owner } = predicate;
        self.push(" WHERE 1 = 1");
        if let Some(kind) = kind {
            self.push(format_args!(" AND {}type = ", prefixes.kind))
                .value(Value::Int(*kind as i64));
        }
        if let Some(run) = run {
            self.push(format_args!(" AND {}production_run_id = ", prefixes.others))
                .value(run.as_str());
        }
        if let Some(owner) = owner {
            self.push(format_args!(" AND {}owner_id = ", prefixes.others))
                .value(owner.as_str());
        }
        self
    }

    fn list_source(
        &mut self,
        query: &ListQuery,
        driver: Driver,
        label_exists: &'static str,
    ) -> &mut Self {
        let driving_label = match driver {
            Driver::Label(index) => query.labels.iter().nth(index),
            Driver::Predicate | Driver::Order => None,
        };
        if driving_label.is_some() {
            // SQLite reads the tables of a CROSS JOIN in this order; PostgreSQL does because the list is
            // in the order of the index, or the label is rare.
            self.push(" FROM location_labels CROSS JOIN locations");
        } else {
            self.push(" FROM locations");
        }
        // SQLite would prefer the index on the type to the ones on the run and the owner, which are far
        // more selective.
        let is_selective = is_selective(&query.predicate);
        self.filter(
            &query.predicate,
            match driver {
                Driver::Order if !DB::HAS_STATISTICS => Prefixes {
                    kind: "+",
                    others: "+",
                },
                _ if is_selective => Prefixes {
                    kind: "+",
                    others: "",
                },
                _ => Prefixes::default(),
            },
        );
        if let Some(label) = driving_label {
            // `create_time = location_create_time` holds too, and is left out: PostgreSQL assumes that
            // conditions are independent, would underestimate the join, and read and sort all of it.
            self.push(" AND id = location_id AND ").has_label(label);
        }
        for label in &query.labels {
            if driving_label == Some(label) {
                continue;
            }
            self.push(format_args!(
                " AND {label_exists} FROM location_labels AS other \
                 WHERE other.location_id = id AND other.location_create_time = create_time AND "
            ))
            .has_label(label)
            .push(")");
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

/// The prefixes of columns in the WHERE clause of a predicate.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Prefixes {
    kind: &'static str,
    /// Of the run and the owner.
    others: &'static str,
}

/// Begins the condition on a label where all rows are read: PostgreSQL may join.
const EXISTS: &str = "EXISTS (SELECT true";

/// Begins the condition on a label where a page is read: PostgreSQL looks up each row, and doesn't join.
const LOOKED_UP: &str = "(SELECT true";

/// The number of locations on all pages of a list.
pub(super) fn count_statement<DB: Dialect>(query: &ListQuery, driver: Driver) -> QueryBuilder<DB> {
    // All rows are read, so the order doesn't matter.
    let driver = match driver {
        Driver::Order => Driver::preset(query),
        driver => driver,
    };
    let mut statement = QueryBuilder::new("SELECT count(*)");
    statement.list_source(query, driver, EXISTS);
    statement
}

/// The SELECT of a page of locations. It returns one row more than the page's limit, which shows
/// whether another page follows.
pub(in crate::store) fn list_statement<DB: Dialect>(
    query: &ListQuery,
    after: Option<&Cursor>,
    driver: Driver,
) -> QueryBuilder<DB> {
    let Order { field, descending } = query.order;
    let (column, id_column) = match (driver, field) {
        // The index on labels has this order.
        (Driver::Label(_), OrderField::CreateTime) => ("location_create_time", "location_id"),
        _ => (field.name(), "id"),
    };
    let (compare, direction) = if descending {
        ("<", " DESC")
    } else {
        (">", "")
    };
    let mut statement = QueryBuilder::new("SELECT ");
    statement
        .read_columns()
        .list_source(query, driver, LOOKED_UP);
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
    statement.filter(&query.predicate, Prefixes::default());
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
