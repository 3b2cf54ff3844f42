//! Canonical requests: the one form that all requests with the same response share.
//!
//! Defaults are filled in, limits are clamped, and the caller's scope is written in. The serialized
//! bytes of a canonical request are hashed into the cache key and into page tokens.

use prost::Message;
use uuid::Uuid;

use super::{convert::labels, location::v1};
use crate::model::{
    Etag, ListQuery, Location, LocationId, Micros, NewLocation, Order, Predicate, ProductionRunId,
    ReportQuery, Text,
};

/// The request message of a cached method.
pub trait CachedRequest: Message {
    /// The name of the method.
    const METHOD: &'static str;
}

/// The request message of a paginated method.
pub trait PagedRequest: CachedRequest + Clone {
    /// Sets the page token.
    fn set_page_token(&mut self, token: &str);

    /// The request without the fields that a page token isn't bound to (AIP-158): the page size, the
    /// token itself, the offset and the request for a total.
    #[must_use]
    fn without_page(&self) -> Self;
}

impl CachedRequest for v1::ListLocationsRequest {
    const METHOD: &'static str = "ListLocations";
}

impl CachedRequest for v1::GetLocationRequest {
    const METHOD: &'static str = "GetLocation";
}

impl CachedRequest for v1::ListLocationReportsRequest {
    const METHOD: &'static str = "ListLocationReports";
}

impl PagedRequest for v1::ListLocationsRequest {
    fn set_page_token(&mut self, token: &str) {
        token.clone_into(&mut self.page_token);
    }

    fn without_page(&self) -> Self {
        Self {
            page_size: 0,
            page_token: String::new(),
            skip: 0,
            include_total_size: false,
            ..self.clone()
        }
    }
}

impl PagedRequest for v1::ListLocationReportsRequest {
    fn set_page_token(&mut self, token: &str) {
        token.clone_into(&mut self.page_token);
    }

    fn without_page(&self) -> Self {
        Self {
            page_size: 0,
            page_token: String::new(),
            ..self.clone()
        }
    }
}

impl From<&ListQuery> for v1::ListLocationsRequest {
    fn from(query: &ListQuery) -> Self {
        let Predicate { kind, run, owner } = &query.predicate;
        let Order { field, descending } = query.order;
        let order_by = field.name();
        Self {
            page_size: i32::try_from(query.limit).unwrap_or(i32::MAX),
            page_token: String::new(),
            skip: i32::try_from(query.skip).unwrap_or(i32::MAX),
            r#type: kind.map_or(0, |kind| kind as i32),
            production_run_id: run.clone().map(ProductionRunId::into_string),
            owner_id: owner.clone().map(Text::into_string).unwrap_or_default(),
            state: query.state.map_or(0, |state| state as i32),
            query: query.text.clone(),
            labels: labels(query.labels.clone()),
            order_by: format!("{order_by}{}", if descending { " desc" } else { "" }),
            include_total_size: query.count,
        }
    }
}

/// A location to create and its chosen id in canonical form, to compare requests with the same
/// `request_id`.
pub fn canonical_creation(new: &NewLocation) -> Vec<u8> {
    let NewLocation {
        id,
        kind,
        owner,
        details,
    } = new.clone();
    let location = Location {
        id: id.unwrap_or(LocationId(Uuid::nil())),
        kind,
        owner,
        details,
        create_time: Micros(0),
        update_time: Micros(0),
        etag: Etag::from_trusted(String::new()),
    };
    let request = v1::CreateLocationRequest {
        location: Some(location.into()),
        location_id: id.map(|id| id.to_string()).unwrap_or_default(),
        ..v1::CreateLocationRequest::default()
    };
    request.encode_to_vec()
}

impl From<LocationId> for v1::GetLocationRequest {
    fn from(id: LocationId) -> Self {
        Self { id: id.to_string() }
    }
}

impl From<&ReportQuery> for v1::ListLocationReportsRequest {
    fn from(query: &ReportQuery) -> Self {
        let Predicate { kind, run, owner } = &query.predicate;
        Self {
            r#type: kind.map_or(0, |kind| kind as i32),
            production_run_id: run.clone().map(ProductionRunId::into_string),
            owner_id: owner.clone().map(Text::into_string).unwrap_or_default(),
            page_size: i32::try_from(query.limit).unwrap_or(i32::MAX),
            page_token: String::new(),
        }
    }
}
