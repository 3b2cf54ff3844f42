//! The choice of the index that a list is read from.
//!
//! SQLite has no statistics of values, and PostgreSQL none of labels that are good enough, so the rows of
//! competing filters are counted first, up to a limit: a page of a list with labels, or in another
//! order than that of creation, costs about the same whether its filters match five rows of a million
//! or all of them. Where several filters each match many rows and hardly any together, or the rows of
//! a label are far from the beginning of another order, all of them are read.

use sqlx::QueryBuilder;

use super::{
    Dialect,
    query::{Prefixes, StatementExt as _},
};
use crate::model::{ListQuery, OrderField, Predicate};

/// The index that a list is read from; the rows must match the other filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Driver {
    /// The one on the columns of the predicate, or else the one of the order.
    Predicate,
    /// The one on labels, for the list's label at this index.
    Label(usize),
    /// The one of the order. PostgreSQL chooses between this and [`Driver::Predicate`] itself.
    Order,
}

/// Maximum number of rows that are counted per filter. Sorting so many takes some 50 ms. If more rows of
/// a million match, evenly distributed, a page of 50 is found among the first 10,000 in the list's order.
const PROBE_LIMIT: i64 = 5_000;

impl Driver {
    /// The driver of a database with statistics, or of a list whose filters don't compete.
    pub(in crate::store) fn preset(query: &ListQuery) -> Self {
        if query.labels.is_empty() || is_selective(&query.predicate) {
            Self::Predicate
        } else {
            Self::Label(0)
        }
    }

    /// The driver of a list, by the result of its [`probe_statement`].
    pub(super) fn from_probe(query: &ListQuery, probe: i64) -> Self {
        let (count, filter) = (probe / MAX_FILTERS, probe % MAX_FILTERS);
        if count >= PROBE_LIMIT {
            // The indexes on filters are in the order of creation.
            return match query.order.field {
                OrderField::CreateTime => Self::preset(query),
                _ => Self::Order,
            };
        }
        usize::try_from(filter - 1).map_or(Self::Predicate, Self::Label)
    }
}

/// An upper bound of the filters of a list that have an index: the predicate, and the labels.
const MAX_FILTERS: i64 = 256;

/// Whether the predicate has an index of its own that is usually selective.
pub(super) fn is_selective(predicate: &Predicate) -> bool {
    predicate.run.is_some() || predicate.owner.is_some()
}

/// The SELECT that finds the most selective filter of a list: its count, up to the limit, times
/// [`MAX_FILTERS`], and its index, which is 0 for the predicate. `None` if no filters compete with each
/// other or with the order.
pub(super) fn probe_statement<DB: Dialect>(query: &ListQuery) -> Option<QueryBuilder<DB>> {
    let is_selective = is_selective(&query.predicate);
    let filters = query.labels.len() + usize::from(is_selective);
    let is_sorted = filters == 1 && query.order.field == OrderField::CreateTime;
    let knows = DB::HAS_STATISTICS && query.labels.is_empty();
    if knows || filters == 0 || is_sorted {
        return None;
    }
    let mut statement = QueryBuilder::new("SELECT min(probe) FROM (");
    let mut union = "";
    let mut count = |statement: &mut QueryBuilder<DB>, filter: usize| {
        statement.push(format_args!(
            "{union}SELECT count(*) * {MAX_FILTERS} + {filter} AS probe FROM (SELECT 1 FROM "
        ));
        union = " UNION ALL ";
    };
    // The order makes the database read the index only.
    let limit = format!("create_time LIMIT {PROBE_LIMIT}) AS counted");
    if is_selective {
        count(&mut statement, 0);
        let predicate = Predicate {
            kind: None,
            ..query.predicate.clone()
        };
        statement
            .push("locations")
            .filter(&predicate, Prefixes::default())
            .push(" ORDER BY ")
            .push(&limit);
    }
    for (index, label) in query.labels.iter().enumerate() {
        count(&mut statement, index + 1);
        statement
            .push("location_labels WHERE ")
            .has_label(label)
            .push(" ORDER BY location_")
            .push(&limit);
    }
    statement.push(") AS probes");
    Some(statement)
}
