//! The contract, on every pair of engines.

use std::collections::HashMap;

use location_service::proto::location::v1::{self, location_service_client::LocationServiceClient};
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::harness::{Client, TestApp, cache_status, create, storage, token, with};

mod bulk;
mod cache;
mod calls;
mod errors;
mod labels;
mod lists;
mod paging;
mod persistence;
mod protocol;
mod reports;
mod request_ids;
mod scope;
mod snapshots;
mod updates;
mod validation;
mod writes;

/// Whether the response came from the cache, from any tier.
fn is_hit<T>(response: &Response<T>) -> bool {
    cache_status(response).starts_with("location-service; hit")
}

/// The fields that a `BadRequest` names, in alphabetical order.
fn bad_fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(
        ["INVALID_FIELD", "PAGE_TOKEN_INVALID"].contains(&reason(status).as_str()),
        "{status:?}"
    );
    let details = status.get_details_bad_request().expect("a BadRequest");
    for violation in &details.field_violations {
        assert!(!violation.description.is_empty(), "{violation:?}");
    }
    let fields = details.field_violations.into_iter();
    let mut fields: Vec<_> = fields.map(|violation| violation.field).collect();
    fields.sort();
    fields
}

/// The stable reason of an error.
fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.domain, "location.v1");
    info.reason
}

/// A client without a token.
fn anonymous(app: &TestApp) -> LocationServiceClient<Channel> {
    LocationServiceClient::new(app.channel.clone())
}

/// A request with an admin's token, for a client that sends none by itself.
fn authorized<T>(message: T) -> Request<T> {
    let bearer = format!("Bearer {}", token("root", true));
    with(message, "authorization", &bearer)
}

fn get(id: &str) -> v1::GetLocationRequest {
    v1::GetLocationRequest { id: id.to_owned() }
}

fn delete(id: &str) -> v1::DeleteLocationRequest {
    v1::DeleteLocationRequest {
        id: id.to_owned(),
        ..v1::DeleteLocationRequest::default()
    }
}

fn update(location: v1::Location, paths: &[&str]) -> v1::UpdateLocationRequest {
    v1::UpdateLocationRequest {
        location: Some(location),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
        }),
        ..v1::UpdateLocationRequest::default()
    }
}

/// The metadata of an error's `ErrorInfo`.
fn metadata(status: &Status) -> HashMap<String, String> {
    let info = status.get_details_error_info().expect("an ErrorInfo");
    info.metadata
}

fn batch(
    requests: impl IntoIterator<Item = v1::CreateLocationRequest>,
) -> v1::BatchCreateLocationsRequest {
    v1::BatchCreateLocationsRequest {
        requests: requests.into_iter().collect(),
    }
}

fn uuid(number: u128) -> String {
    uuid::Uuid::from_u128(number).to_string()
}

async fn created(client: &mut Client, location: v1::Location) -> v1::Location {
    let response = client.create_location(create(location)).await;
    response.expect("created").into_inner()
}

async fn read(client: &mut Client, id: &str) -> v1::Location {
    let response = client.get_location(get(id)).await;
    response.expect("it exists").into_inner()
}

/// The number of locations.
async fn count(app: &TestApp) -> i32 {
    let request = v1::ListLocationsRequest {
        page_size: 1,
        include_total_size: true,
        ..v1::ListLocationsRequest::default()
    };
    let response = app.admin().list_locations(request).await;
    response.expect("counted").into_inner().total_size
}

/// A location with every field set that a client may set.
fn full() -> v1::Location {
    v1::Location {
        r#type: v1::LocationType::Delivery.into(),
        owner_id: "ann".to_owned(),
        address: Some(v1::Address {
            address_lines: vec!["12 Quai d'Austerlitz".to_owned(), "Bât. B".to_owned()],
            locality: "Paris".to_owned(),
            administrative_area: "Île-de-France".to_owned(),
            postal_code: "75013".to_owned(),
            region_code: "FR".to_owned(),
        }),
        coordinates: Some(v1::LatLng {
            latitude: 48.841_7,
            longitude: 2.365_6,
        }),
        capacity: 12,
        state: v1::LocationState::Inactive.into(),
        description: "By the river.\n\"Ring\" twice; \\ 🚚".to_owned(),
        labels: [("colour", "grün"), ("a.b/c", ""), ("k-1_x", "\u{1}\"")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..storage("Dock 7", "Europe/Paris")
    }
}
