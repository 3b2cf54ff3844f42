//! Conversions from proto messages to the model, which collect all violations of a message, and from
//! the model to messages.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::Timestamp;

use super::location::v1;
use crate::{
    error::{Error, Result, Violations},
    model::{
        Address, AddressText, Capacity, Coordinates, Details, Etag, LabelKey, LabelValue, Location,
        LocationId, LocationState, LocationType, MAX_ADDRESS_LINES, MAX_LABELS, Micros, RegionCode,
        Report, Text,
    },
};

/// Converts the fields of a `Location`, and collects their violations.
///
/// Conversions always return a value; it is valid unless there are violations.
pub struct Fields<'a> {
    /// The path of the location in the request.
    path: &'a str,
    /// The paths in the location that are checked; `None` for all. Texts in other fields are trusted.
    mask: Option<&'a [String]>,
    violations: &'a mut Violations,
}

impl<'a> Fields<'a> {
    /// Checks every field.
    pub fn all(path: &'a str, violations: &'a mut Violations) -> Self {
        Self {
            path,
            mask: None,
            violations,
        }
    }

    /// Checks the fields that `mask` names, the fields within those, and the fields that contain them.
    pub fn masked(path: &'a str, mask: &'a [String], violations: &'a mut Violations) -> Self {
        Self {
            path,
            mask: Some(mask),
            violations,
        }
    }

    /// Whether a field is checked.
    fn checks(&self, field: &str) -> bool {
        let lies_in = |field: &str, path: &str| {
            field
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.mask.is_none_or(|mask| {
            mask.iter()
                .any(|path| lies_in(field, path) || lies_in(path, field))
        })
    }

    fn add(&mut self, field: &str, description: impl Into<String>) {
        let field = format!("{}.{field}", self.path);
        self.violations.add(field, description);
    }

    /// Returns the value, or the default and the violation.
    fn or_default<T: Default>(&mut self, field: &str, parsed: Result<T, String>) -> T {
        parsed.unwrap_or_else(|violation| {
            self.add(field, violation);
            T::default()
        })
    }

    fn text<const MIN: usize, const MAX: usize, const NAME: bool>(
        &mut self,
        field: &str,
        value: String,
    ) -> Text<MIN, MAX, NAME> {
        if !self.checks(field) {
            return Text::from_trusted(value);
        }
        Text::parse(value).unwrap_or_else(|violation| {
            self.add(field, violation);
            Text::from_trusted(String::new())
        })
    }

    /// Converts the fields that a client sets.
    pub fn details(&mut self, location: v1::Location) -> Details {
        Details {
            display_name: self.text("display_name", location.display_name),
            production_run_id: self.text("production_run_id", location.production_run_id),
            address: self.address(location.address.unwrap_or_default()),
            coordinates: self.coordinates(location.coordinates),
            capacity: self.or_default("capacity", Capacity::new(location.capacity)),
            state: self.state(location.state),
            description: self.text("description", location.description),
            labels: self.labels(location.labels),
        }
    }

    fn address(&mut self, address: v1::Address) -> Address {
        Address {
            lines: self.address_lines(address.address_lines),
            locality: self.text("address.locality", address.locality),
            administrative_area: self
                .text("address.administrative_area", address.administrative_area),
            postal_code: self.text("address.postal_code", address.postal_code),
            region_code: self.region_code(address.region_code),
        }
    }

    fn address_lines(&mut self, lines: Vec<String>) -> Vec<AddressText> {
        const FIELD: &str = "address.address_lines";
        if !self.checks(FIELD) {
            return lines.into_iter().map(Text::from_trusted).collect();
        }
        let count = lines.len();
        if count > MAX_ADDRESS_LINES {
            let violation = format!("must have at most {MAX_ADDRESS_LINES} lines, has {count}");
            self.add(FIELD, violation);
            return Vec::new();
        }
        let mut parsed = Vec::with_capacity(count);
        for (index, line) in lines.into_iter().enumerate() {
            match Text::parse(line) {
                Ok(line) => parsed.push(line),
                Err(violation) => self.add(&format!("{FIELD}[{index}]"), violation),
            }
        }
        parsed
    }

    fn region_code(&mut self, code: String) -> RegionCode {
        const FIELD: &str = "address.region_code";
        if self.checks(FIELD) {
            self.or_default(FIELD, RegionCode::parse(&code))
        } else {
            RegionCode::from_trusted(code)
        }
    }

    fn coordinates(&mut self, position: Option<v1::LatLng>) -> Option<Coordinates> {
        let position = position?;
        Coordinates::new(position.latitude, position.longitude)
            .map_err(|violations| {
                for (field, violation) in violations {
                    self.add(field, violation);
                }
            })
            .ok()
    }

    fn state(&mut self, number: i32) -> LocationState {
        if number == 0 {
            return LocationState::Active;
        }
        location_state(number).unwrap_or_else(|violation| {
            self.add("state", violation);
            LocationState::Active
        })
    }

    fn labels(&mut self, labels: BTreeMap<String, String>) -> BTreeMap<LabelKey, LabelValue> {
        let count = labels.len();
        if count > MAX_LABELS && self.checks("labels") {
            self.add(
                "labels",
                format!("must have at most {MAX_LABELS} labels, has {count}"),
            );
            return BTreeMap::new();
        }
        labels
            .into_iter()
            .filter_map(|(key, value)| self.label(key, value))
            .collect()
    }

    fn label(&mut self, key: String, value: String) -> Option<(LabelKey, LabelValue)> {
        let shown: String = key.chars().take(LabelKey::MAX).collect();
        let field = format!("labels.{shown}");
        if !self.checks(&format!("labels.{key}")) {
            return Some((LabelKey::from_trusted(key), Text::from_trusted(value)));
        }
        let key = LabelKey::parse(key)
            .map_err(|violation| self.add("labels", format!("key {shown:?} {violation}")));
        let value = Text::parse(value).map_err(|violation| self.add(&field, violation));
        key.ok().zip(value.ok())
    }
}

/// Parses the number of a type.
pub fn location_type(number: i32) -> Result<LocationType, &'static str> {
    LocationType::from_number(number.into())
        .ok_or("must be LOCATION_TYPE_DELIVERY (1) or LOCATION_TYPE_STORAGE (2)")
}

/// Parses the number of a state.
pub fn location_state(number: i32) -> Result<LocationState, &'static str> {
    LocationState::from_number(number.into())
        .ok_or("must be LOCATION_STATE_ACTIVE (1) or LOCATION_STATE_INACTIVE (2)")
}

/// Decodes a location that [`encode_location`] made.
pub fn decode_location(bytes: &[u8]) -> Result<Location> {
    let location = v1::Location::decode(bytes).map_err(Error::internal)?;
    let corrupt =
        |violation: &str| Error::internal(format!("corrupt stored location: {violation}"));
    let mut violations = Violations::default();
    let decoded = Location {
        id: LocationId::parse(&location.id).map_err(|violation| corrupt(&violation))?,
        kind: location_type(location.r#type).map_err(corrupt)?,
        owner: Text::from_trusted(location.owner_id.clone()),
        create_time: location.create_time.unwrap_or_default().into(),
        update_time: location.update_time.unwrap_or_default().into(),
        etag: Etag::parse(&location.etag),
        details: Fields::masked("location", &[], &mut violations).details(location),
    };
    violations
        .finish(Some(decoded))
        .map_err(|error| corrupt(&error.to_string()))
}

impl From<Timestamp> for Micros {
    fn from(time: Timestamp) -> Self {
        Self(time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000)
    }
}

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

/// Serializes a location as a `location.v1.Location`, for [`decode_location`].
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
