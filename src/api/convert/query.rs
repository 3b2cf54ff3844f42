//! Requests to read, and requests to the cache.

use std::collections::{BTreeMap, HashMap};

use super::{MAX_BATCH, check_batch, optional, predicate};
use crate::{
    cache::Tag,
    error::{Error, Result, Violations},
    model::{
        LabelKey, LabelValue, ListQuery, Location, LocationId, MAX_LABELS, Order, OrderField,
        OwnerId, Principal, ReportQuery, Text, fold_case,
    },
    proto::{MAX_RESPONSE_BYTES, convert::location_state, item_bytes, location::v1},
};

const DEFAULT_PAGE_SIZE: u32 = 50;

const MAX_PAGE_SIZE: u32 = 1_000;

/// Text to find in display names.
type QueryText = Text<0, 256>;

/// The path of the list in a request to explain it.
pub const EXPLAINED: &str = "request.";

/// A page of a list.
pub struct Paged<Query> {
    pub query: Query,
    /// The token of the page, not verified yet; empty for the first page.
    pub page_token: String,
}

/// A list to explain.
pub struct ExplainList {
    /// The caller that the list is explained for.
    pub subject: Principal,
    pub list: Paged<ListQuery>,
}

pub fn list(request: v1::ListLocationsRequest) -> Result<Paged<ListQuery>> {
    let mut violations = Violations::default();
    let predicate = predicate(
        request.r#type,
        request.production_run_id,
        request.owner_id,
        &mut violations,
    );
    let state = optional(request.state != 0, || {
        violations.check("state", location_state(request.state))
    });
    let text = violations.check("query", QueryText::parse(request.query));
    let labels = labels(request.labels, &mut violations);
    let order = violations.check("order_by", parse_order(&request.order_by));
    let limit = violations.check("page_size", parse_page_size(request.page_size));
    let skip = violations.check("skip", parse_count(request.skip));
    let query = (|| {
        Some(ListQuery {
            predicate: predicate?,
            state: state?,
            text: fold_case(text?.as_str()),
            labels,
            order: order?,
            limit: limit?,
            skip: skip?,
            count: request.include_total_size,
        })
    })();
    Ok(Paged {
        query: violations.finish(query)?,
        page_token: request.page_token,
    })
}

/// Parses the labels of a filter. Those that are invalid are left out.
fn labels(
    labels: BTreeMap<String, String>,
    violations: &mut Violations,
) -> BTreeMap<LabelKey, LabelValue> {
    if labels.len() > MAX_LABELS {
        let count = labels.len();
        violations.add(
            "labels",
            format!("must have at most {MAX_LABELS} labels, has {count}"),
        );
        return BTreeMap::new();
    }
    let parse = |(key, value): (String, String)| {
        let shown: String = key.chars().take(LabelKey::MAX).collect();
        let parsed = LabelKey::parse(key).map_err(|violation| format!("key {shown:?} {violation}"));
        let key = violations.check("labels", parsed);
        let value = violations.check(format!("labels.{shown}"), LabelValue::parse(value));
        key.zip(value)
    };
    labels.into_iter().filter_map(parse).collect()
}

pub fn reports(request: v1::ListLocationReportsRequest) -> Result<Paged<ReportQuery>> {
    let mut violations = Violations::default();
    let predicate = predicate(
        request.r#type,
        request.production_run_id,
        request.owner_id,
        &mut violations,
    );
    let limit = violations.check("page_size", parse_page_size(request.page_size));
    let query = predicate
        .zip(limit)
        .map(|(predicate, limit)| ReportQuery { predicate, limit });
    Ok(Paged {
        query: violations.finish(query)?,
        page_token: request.page_token,
    })
}

pub fn get(request: &v1::GetLocationRequest) -> Result<LocationId> {
    LocationId::parse(&request.id).map_err(|violation| Error::invalid("id", violation))
}

pub fn batch_get(request: &v1::BatchGetLocationsRequest) -> Result<Vec<LocationId>> {
    let mut violations = Violations::default();
    check_batch("ids", request.ids.len(), &mut violations);
    let ids = request.ids.iter().take(MAX_BATCH).enumerate();
    let ids = ids
        .filter_map(|(index, id)| violations.check(format!("ids[{index}]"), LocationId::parse(id)))
        .collect();
    violations.finish(Some(ids))
}

/// Returns the locations in the order of the ids.
pub fn batch_get_response(
    ids: &[LocationId],
    found: &HashMap<LocationId, Location>,
) -> Result<v1::BatchGetLocationsResponse> {
    let locations: Vec<v1::Location> = ids.iter().map(|id| found[id].clone().into()).collect();
    let bytes: usize = locations.iter().map(item_bytes).sum();
    if bytes > MAX_RESPONSE_BYTES {
        return Err(Error::invalid(
            "ids",
            format!(
                "name locations of {bytes} bytes, over the limit of {MAX_RESPONSE_BYTES} for a \
                 response: request fewer"
            ),
        ));
    }
    Ok(v1::BatchGetLocationsResponse { locations })
}

pub fn explain_list(request: v1::ExplainListRequest) -> Result<ExplainList> {
    let Some(listed) = request.request else {
        return Err(Error::invalid("request", "is required"));
    };
    let admin = request.subject.is_empty();
    let subject = if admin {
        // All admins see the same list, so any name will do.
        OwnerId::from_trusted("admin".to_owned())
    } else {
        OwnerId::parse(request.subject).map_err(|violation| Error::invalid("subject", violation))?
    };
    Ok(ExplainList {
        subject: Principal { subject, admin },
        list: list(listed).map_err(|error| error.within(EXPLAINED))?,
    })
}

/// Returns the tag to invalidate; `None` for all tags.
pub fn invalidate(request: v1::InvalidateRequest) -> Result<Option<Tag>> {
    let by_predicate =
        request.r#type != 0 || request.production_run_id.is_some() || !request.owner_id.is_empty();
    let by_location = !request.location_id.is_empty();
    if usize::from(by_predicate) + usize::from(by_location) + usize::from(request.everything) > 1 {
        return Err(Error::invalid(
            if request.everything {
                "everything"
            } else {
                "location_id"
            },
            "must not be set together with other fields",
        ));
    }
    if request.everything {
        return Ok(None);
    }
    if by_location {
        return LocationId::parse(&request.location_id)
            .map(|id| Some(Tag::of_location(id)))
            .map_err(|violation| Error::invalid("location_id", violation));
    }
    let mut violations = Violations::default();
    let predicate = predicate(
        request.r#type,
        request.production_run_id,
        request.owner_id,
        &mut violations,
    );
    let tag = predicate.map(|predicate| Tag::of_predicate(&predicate));
    violations.finish(tag).map(Some)
}

fn parse_count(value: i32) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("must be 0 or more, is {value}"))
}

fn parse_page_size(value: i32) -> Result<u32, String> {
    Ok(match parse_count(value)? {
        0 => DEFAULT_PAGE_SIZE,
        size => size.min(MAX_PAGE_SIZE),
    })
}

/// Parses a field name with an optional ` desc` (AIP-132). Redundant spaces are insignificant.
fn parse_order(text: &str) -> Result<Order, &'static str> {
    if text.split_whitespace().any(|word| word == "collate") {
        // The order of a collation changes with its version, and page tokens and indexes rely on it.
        return Err(
            "must be create_time, update_time, display_name or capacity, optionally followed by \
             ` desc`: names are ordered by code point, there is no collation",
        );
    }
    let mut words = text.split_whitespace();
    let field = match words.next() {
        None => return Ok(Order::default()),
        Some(name) => OrderField::ALL
            .into_iter()
            .find(|field| field.name() == name),
    };
    let descending = match words.next() {
        None => Some(false),
        Some("desc") => Some(true),
        Some(_) => None,
    };
    match (field, descending, words.next()) {
        (Some(field), Some(descending), None) => Ok(Order { field, descending }),
        _ => Err(
            "must be create_time, update_time, display_name or capacity, optionally followed by \
             ` desc`",
        ),
    }
}
