//! Conversions from the model to proto messages.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::Timestamp;

use super::location::v1;
use crate::model::{Address, Coordinates, LabelKey, LabelValue, Location, Micros, Report, Text};

/// A page of a list.
pub fn list_response(
    locations: Vec<Location>,
    next: Option<String>,
    total: Option<i64>,
) -> v1::ListLocationsResponse {
    v1::ListLocationsResponse {
        locations: locations.into_iter().map(Into::into).collect(),
        next_page_token: next.unwrap_or_default(),
        total_size: total.map_or(0, |total| i32::try_from(total).unwrap_or(i32::MAX)),
    }
}

/// A page of reports.
pub fn reports_response(
    reports: Vec<Report>,
    next: Option<String>,
) -> v1::ListLocationReportsResponse {
    v1::ListLocationReportsResponse {
        reports: reports.into_iter().map(Into::into).collect(),
        next_page_token: next.unwrap_or_default(),
    }
}

/// Serializes a location as a `location.v1.Location`, for [`decode_location`](super::decode_location).
pub fn encode_location(location: &Location) -> Vec<u8> {
    v1::Location::from(location.clone()).encode_to_vec()
}

/// The size of a location in a response.
pub fn item_bytes(location: &v1::Location) -> usize {
    /// Upper bound of the tag and the length that precede an item.
    const OVERHEAD_BYTES: usize = 5;
    location.encoded_len() + OVERHEAD_BYTES
}

impl From<Location> for v1::Location {
    fn from(location: Location) -> Self {
        let details = location.details;
        Self {
            id: location.id.to_string(),
            r#type: location.kind as i32,
            display_name: details.display_name.into_string(),
            production_run_id: details.production_run_id.into_string(),
            owner_id: location.owner.into_string(),
            address: (details.address != Address::default()).then(|| details.address.into()),
            coordinates: details.coordinates.map(Into::into),
            capacity: details.capacity.get(),
            state: details.state as i32,
            description: details.description.into_string(),
            labels: labels(details.labels),
            create_time: Some(location.create_time.into()),
            update_time: Some(location.update_time.into()),
            etag: location.etag.to_string(),
        }
    }
}

/// Inserts one by one, because `collect` would sort the keys again.
pub(super) fn labels(labels: BTreeMap<LabelKey, LabelValue>) -> BTreeMap<String, String> {
    let mut strings = BTreeMap::new();
    for (key, value) in labels {
        strings.insert(key.into_string(), value.into_string());
    }
    strings
}

impl From<Address> for v1::Address {
    fn from(address: Address) -> Self {
        Self {
            address_lines: address.lines.into_iter().map(Text::into_string).collect(),
            locality: address.locality.into_string(),
            administrative_area: address.administrative_area.into_string(),
            postal_code: address.postal_code.into_string(),
            region_code: address.region_code.as_str().to_owned(),
        }
    }
}

impl From<Coordinates> for v1::LatLng {
    fn from(coordinates: Coordinates) -> Self {
        Self {
            latitude: coordinates.latitude(),
            longitude: coordinates.longitude(),
        }
    }
}

impl From<Report> for v1::LocationReport {
    fn from(report: Report) -> Self {
        Self {
            r#type: report.kind as i32,
            production_run_id: report.run.into_string(),
            location_count: report.locations,
            active_count: report.active,
            total_capacity: report.capacity,
            region_count: report.regions,
            latest_update_time: Some(report.latest_update.into()),
        }
    }
}

impl From<Micros> for Timestamp {
    fn from(time: Micros) -> Self {
        const PER_SECOND: i64 = 1_000_000;
        Self {
            seconds: time.0.div_euclid(PER_SECOND),
            nanos: i32::try_from(time.0.rem_euclid(PER_SECOND) * 1_000)
                .unwrap_or_else(|_| unreachable!("less than a second")),
        }
    }
}
