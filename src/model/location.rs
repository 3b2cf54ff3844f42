//! Locations, and changes to them.

use std::collections::BTreeMap;

use super::{
    AddressText, Description, DisplayName, Etag, LabelKey, LabelValue, LocationId, OwnerId,
    PostalCode, ProductionRunId, RegionCode,
};

/// The maximum number of labels of a location.
pub const MAX_LABELS: usize = 64;

/// The maximum number of lines of an address.
pub const MAX_ADDRESS_LINES: usize = 10;

/// The purpose of a location. The discriminants are the numbers in the proto and in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocationType {
    /// Takes deliveries.
    Delivery = 1,
    /// Stores goods.
    Storage = 2,
}

impl LocationType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::Delivery, Self::Storage];

    /// The type with this number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as i64 == number)
    }
}

/// Whether a location is in use. The discriminants are the numbers in the proto and in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocationState {
    /// In use.
    Active = 1,
    /// Not in use.
    Inactive = 2,
}

impl LocationState {
    /// The state with this number.
    pub fn from_number(number: i64) -> Option<Self> {
        [Self::Active, Self::Inactive]
            .into_iter()
            .find(|state| *state as i64 == number)
    }
}

/// A postal address. The default is no address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Address {
    /// The lines above the locality.
    pub lines: Vec<AddressText>,
    /// City or town.
    pub locality: AddressText,
    /// State, province or region.
    pub administrative_area: AddressText,
    /// Postal code.
    pub postal_code: PostalCode,
    /// Country.
    pub region_code: RegionCode,
}

/// A position in WGS 84 degrees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinates {
    latitude: f64,
    longitude: f64,
}

impl Coordinates {
    /// Validates a position. The error has the field and the problem of each coordinate that is out
    /// of range.
    pub fn new(latitude: f64, longitude: f64) -> Result<Self, Vec<(&'static str, String)>> {
        let bad: Vec<_> = [
            ("coordinates.latitude", latitude, 90.0),
            ("coordinates.longitude", longitude, 180.0),
        ]
        .into_iter()
        // NaN isn't in range either.
        .filter(|(_, value, limit)| !(-limit..=*limit).contains(value))
        .map(|(field, value, limit)| {
            let why = format!("must be -{limit} to {limit} degrees, is {value}");
            (field, why)
        })
        .collect();
        if bad.is_empty() {
            Ok(Self {
                latitude,
                longitude,
            })
        } else {
            Err(bad)
        }
    }

    /// Degrees north.
    pub fn latitude(self) -> f64 {
        self.latitude
    }

    /// Degrees east.
    pub fn longitude(self) -> f64 {
        self.longitude
    }
}

/// The capacity of a location, in the caller's unit: 0 or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity(i64);

impl Capacity {
    /// Validates a capacity.
    pub fn new(value: i64) -> Result<Self, String> {
        if value < 0 {
            return Err(format!("must be 0 or more, is {value}"));
        }
        Ok(Self(value))
    }

    /// The capacity as a number.
    pub fn get(self) -> i64 {
        self.0
    }
}

/// Microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i64);

impl Micros {
    /// The current time, by the system's clock.
    pub fn now() -> Self {
        let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }
}

/// The fields of a location that a client sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Details {
    /// The name.
    pub display_name: DisplayName,
    /// The production run.
    pub production_run_id: ProductionRunId,
    /// The postal address.
    pub address: Address,
    /// The position.
    pub coordinates: Option<Coordinates>,
    /// The capacity, in the client's unit.
    pub capacity: Capacity,
    /// The state.
    pub state: LocationState,
    /// Free text.
    pub description: Description,
    /// Key-value pairs.
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

/// A location.
#[derive(Debug, Clone, PartialEq)]
pub struct Location {
    /// The id.
    pub id: LocationId,
    /// The type, which is immutable.
    pub kind: LocationType,
    /// The owner, which only an admin can change.
    pub owner: OwnerId,
    /// The fields that a client sets.
    pub details: Details,
    /// The time of creation.
    pub create_time: Micros,
    /// The time of the last change. Every change increases it.
    pub update_time: Micros,
    /// The entity tag. Every change replaces it.
    pub etag: Etag,
}

impl Location {
    /// The fields that decide which lists contain the location.
    pub fn image(&self) -> Image {
        Image {
            id: self.id,
            kind: self.kind,
            run: self.details.production_run_id.clone(),
            owner: self.owner.clone(),
        }
    }
}

/// A before- or after-image: the fields that decide which cached lists contain a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The id.
    pub id: LocationId,
    /// The type.
    pub kind: LocationType,
    /// The run.
    pub run: ProductionRunId,
    /// The owner.
    pub owner: OwnerId,
}

/// A location to create.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLocation {
    /// The id, if the client chose it.
    pub id: Option<LocationId>,
    /// The type.
    pub kind: LocationType,
    /// The owner.
    pub owner: OwnerId,
    /// The fields that a client sets.
    pub details: Details,
}
