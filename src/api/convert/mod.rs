//! Requests → queries and writes. Every violation of a request is collected, not only the first.

mod query;
mod update_mask;
mod write;

pub use self::{
    query::{
        EXPLAINED, ExplainList, Paged, batch_get, batch_get_response, explain_list, get,
        invalidate, list, reports,
    },
    write::{batch_create, batch_delete, batch_update, create, delete, update, written},
};
use super::codec::MAX_BATCH;
use crate::{
    error::Violations,
    model::{OwnerId, Predicate, ProductionRunId},
    proto::convert::location_type,
};

fn check_batch(field: &str, count: usize, violations: &mut Violations) {
    if count == 0 || count > MAX_BATCH {
        violations.add(
            field,
            format!("must have 1 to {MAX_BATCH} items, has {count}"),
        );
    }
}

/// Parses the filters that lists, reports and invalidations have in common.
fn predicate(
    kind: i32,
    run: Option<String>,
    owner: String,
    violations: &mut Violations,
) -> Option<Predicate> {
    let kind = optional(kind != 0, || violations.check("type", location_type(kind)));
    let run = optional(run.is_some(), || {
        violations.check(
            "production_run_id",
            ProductionRunId::parse(run.unwrap_or_default()),
        )
    });
    let owner = optional(!owner.is_empty(), || {
        violations.check("owner_id", OwnerId::parse(owner))
    });
    Some(Predicate {
        kind: kind?,
        run: run?,
        owner: owner?,
    })
}

/// Parses a field that may be unset. `Some(None)` stands for an unset field, `None` for an invalid
/// one.
fn optional<T>(is_set: bool, parse: impl FnOnce() -> Option<T>) -> Option<Option<T>> {
    if is_set {
        parse().map(Some)
    } else {
        Some(None)
    }
}
