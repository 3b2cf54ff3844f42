//! The code generated from `proto/`: messages, client stubs and server traits, and the descriptor
//! set that server reflection answers from.

use std::collections::BTreeMap;

use location::v1;
use prost_types::Timestamp;

use crate::model::{Address, Coordinates, Details, Location, Micros, Report, Text};

/// The serialized `FileDescriptorSet` of [`location::v1`] and all that it imports.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// `google.protobuf.Empty`.
pub type Empty = ();

/// Package `location`.
pub mod location {
    /// Package `location.v1`: the contract. A Rust client is
    /// [`LocationServiceClient`](v1::location_service_client::LocationServiceClient).
    #[allow(missing_docs, clippy::pedantic, reason = "generated code")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/location.v1.rs"));
        include!(concat!(env!("OUT_DIR"), "/location.v1.LocationService.rs"));
        include!(concat!(env!("OUT_DIR"), "/location.v1.CacheService.rs"));
    }
}

impl From<Location> for v1::Location {
    fn from(location: Location) -> Self {
        let Location {
            id,
            kind,
            owner,
            details,
            create_time,
            update_time,
            etag,
        } = location;
        let Details {
            display_name,
            production_run_id,
            address,
            coordinates,
            capacity,
            state,
            description,
            labels,
        } = details;
        // One by one: to collect them would first sort what is sorted.
        let mut texts = BTreeMap::new();
        for (key, value) in labels {
            texts.insert(key.into_string(), value.into_string());
        }
        Self {
            id: id.to_string(),
            r#type: kind as i32,
            display_name: display_name.into_string(),
            production_run_id: production_run_id.into_string(),
            owner_id: owner.into_string(),
            address: (address != Address::default()).then(|| address.into()),
            coordinates: coordinates.map(Into::into),
            capacity: capacity.get(),
            state: state as i32,
            description: description.into_string(),
            labels: texts,
            create_time: Some(create_time.into()),
            update_time: Some(update_time.into()),
            etag: etag.to_string(),
        }
    }
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
