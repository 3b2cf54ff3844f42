//! Locations as rows of CSV and NDJSON, and back, without loss.

use std::{collections::BTreeMap, fmt, str::FromStr};

use csv::ByteRecord;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;
use uuid::Uuid;

use super::TransferError;
use crate::proto::{
    self,
    location::v1::{CreateLocationRequest, Location, LocationState, LocationType},
};

/// The namespace of the version 5 UUIDs that `--id-from` and request ids are: itself that of
/// `import.location.v1` in the DNS namespace. Another one would create everything once more.
const ID_NAMESPACE: Uuid = Uuid::from_u128(0x2687_012b_4479_55e8_ac73_e435_775c_7324);

/// A path to a field of a location, which is also the name of its CSV column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Type,
    DisplayName,
    ProductionRunId,
    OwnerId,
    AddressLines,
    Locality,
    AdministrativeArea,
    PostalCode,
    RegionCode,
    Latitude,
    Longitude,
    Capacity,
    State,
    Description,
    Labels,
    Label(String),
    CreateTime,
    UpdateTime,
    Etag,
}

impl Field {
    /// Every field but the single labels: the columns of an export, in their order.
    pub(super) const COLUMNS: [Self; 19] = [
        Self::Id,
        Self::Type,
        Self::DisplayName,
        Self::ProductionRunId,
        Self::OwnerId,
        Self::AddressLines,
        Self::Locality,
        Self::AdministrativeArea,
        Self::PostalCode,
        Self::RegionCode,
        Self::Latitude,
        Self::Longitude,
        Self::Capacity,
        Self::State,
        Self::Description,
        Self::Labels,
        Self::CreateTime,
        Self::UpdateTime,
        Self::Etag,
    ];

    fn path(&self) -> &str {
        match self {
            Self::Id => "id",
            Self::Type => "type",
            Self::DisplayName => "display_name",
            Self::ProductionRunId => "production_run_id",
            Self::OwnerId => "owner_id",
            Self::AddressLines => "address.address_lines",
            Self::Locality => "address.locality",
            Self::AdministrativeArea => "address.administrative_area",
            Self::PostalCode => "address.postal_code",
            Self::RegionCode => "address.region_code",
            Self::Latitude => "coordinates.latitude",
            Self::Longitude => "coordinates.longitude",
            Self::Capacity => "capacity",
            Self::State => "state",
            Self::Description => "description",
            Self::Labels => "labels",
            Self::Label(_) => "labels.KEY",
            Self::CreateTime => "create_time",
            Self::UpdateTime => "update_time",
            Self::Etag => "etag",
        }
    }

    /// Whether the service decides it: an import passes over it.
    pub(super) fn is_output_only(&self) -> bool {
        matches!(self, Self::CreateTime | Self::UpdateTime | Self::Etag)
    }

    /// Sets the field to what the text, which isn't empty, stands for. The error says what the text
    /// should be.
    pub(super) fn set(&self, location: &mut Location, text: &str) -> Result<(), String> {
        match self {
            Self::Id => text.clone_into(&mut location.id),
            Self::Type => location.r#type = parse_type(text)?.into(),
            Self::DisplayName => text.clone_into(&mut location.display_name),
            Self::ProductionRunId => text.clone_into(&mut location.production_run_id),
            Self::OwnerId => text.clone_into(&mut location.owner_id),
            Self::AddressLines => {
                // A street of its own column is one line; an export writes a JSON array.
                let lines = if text.starts_with('[') {
                    serde_json::from_str(text)
                        .map_err(|_| "must be plain text or a JSON array of strings")?
                } else {
                    vec![text.to_owned()]
                };
                location.address.get_or_insert_default().address_lines = lines;
            }
            Self::Locality => {
                text.clone_into(&mut location.address.get_or_insert_default().locality);
            }
            Self::AdministrativeArea => {
                let address = location.address.get_or_insert_default();
                text.clone_into(&mut address.administrative_area);
            }
            Self::PostalCode => {
                text.clone_into(&mut location.address.get_or_insert_default().postal_code);
            }
            Self::RegionCode => {
                text.clone_into(&mut location.address.get_or_insert_default().region_code);
            }
            Self::Latitude => {
                location.coordinates.get_or_insert_default().latitude = parse_degrees(text)?;
            }
            Self::Longitude => {
                location.coordinates.get_or_insert_default().longitude = parse_degrees(text)?;
            }
            Self::Capacity => {
                location.capacity = text
                    .trim()
                    .parse()
                    .map_err(|_| format!("must be a whole number, is `{text}`"))?;
            }
            Self::State => location.state = parse_state(text)?.into(),
            Self::Description => text.clone_into(&mut location.description),
            Self::Labels => {
                let labels: BTreeMap<String, String> = serde_json::from_str(text).map_err(
                    |_| "must be a JSON object of strings, such as {\"colour\":\"red\"}",
                )?;
                location.labels.extend(labels);
            }
            Self::Label(key) => {
                location.labels.insert(key.clone(), text.to_owned());
            }
            Self::CreateTime | Self::UpdateTime | Self::Etag => {}
        }
        Ok(())
    }

    /// The field as [`Field::set`] reads it; empty where it isn't set.
    pub(super) fn get(&self, location: &Location) -> Result<String, serde_json::Error> {
        let address = location.address.as_ref();
        let coordinates = location.coordinates.as_ref();
        Ok(match self {
            Self::Id => location.id.clone(),
            Self::Type => LocationType::try_from(location.r#type).map_or_else(
                |unknown| unknown.0.to_string(),
                |kind| kind.as_str_name().to_owned(),
            ),
            Self::DisplayName => location.display_name.clone(),
            Self::ProductionRunId => location.production_run_id.clone(),
            Self::OwnerId => location.owner_id.clone(),
            Self::AddressLines => match address {
                Some(address) if !address.address_lines.is_empty() => {
                    serde_json::to_string(&address.address_lines)?
                }
                _ => String::new(),
            },
            Self::Locality => address.map_or_else(String::new, |at| at.locality.clone()),
            Self::AdministrativeArea => {
                address.map_or_else(String::new, |at| at.administrative_area.clone())
            }
            Self::PostalCode => address.map_or_else(String::new, |at| at.postal_code.clone()),
            Self::RegionCode => address.map_or_else(String::new, |at| at.region_code.clone()),
            Self::Latitude => coordinates.map_or_else(String::new, |at| at.latitude.to_string()),
            Self::Longitude => coordinates.map_or_else(String::new, |at| at.longitude.to_string()),
            Self::Capacity => location.capacity.to_string(),
            Self::State => LocationState::try_from(location.state).map_or_else(
                |unknown| unknown.0.to_string(),
                |state| state.as_str_name().to_owned(),
            ),
            Self::Description => location.description.clone(),
            Self::Labels if location.labels.is_empty() => String::new(),
            Self::Labels => serde_json::to_string(&location.labels)?,
            Self::Label(key) => location.labels.get(key).cloned().unwrap_or_default(),
            Self::CreateTime => describe_time(location.create_time),
            Self::UpdateTime => describe_time(location.update_time),
            Self::Etag => location.etag.clone(),
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(f, "labels.{key}"),
            field => f.write_str(field.path()),
        }
    }
}

impl FromStr for Field {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        if let Some(key) = path.strip_prefix("labels.").filter(|key| !key.is_empty()) {
            return Ok(Self::Label(key.to_owned()));
        }
        Self::COLUMNS
            .into_iter()
            .find(|field| field.path() == path)
            .ok_or_else(|| {
                let paths: Vec<_> = Self::COLUMNS
                    .iter()
                    .filter(|field| !field.is_output_only())
                    .map(Self::path)
                    .collect();
                format!(
                    "`{path}` isn't a field of a location: use {} or labels.KEY",
                    paths.join(", ")
                )
            })
    }
}

fn describe_time(time: Option<prost_types::Timestamp>) -> String {
    time.map_or_else(String::new, |time| time.to_string())
}

fn parse_degrees(text: &str) -> Result<f64, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("must be a number of degrees such as 48.85341, is `{text}`"))
}

/// Reads `storage`, `STORAGE` or `LOCATION_TYPE_STORAGE`.
pub(super) fn parse_type(text: &str) -> Result<LocationType, String> {
    parse_enum(text, "LOCATION_TYPE_", LocationType::from_str_name)
        .filter(|kind| *kind != LocationType::Unspecified)
        .ok_or_else(|| format!("must be delivery or storage, is `{text}`"))
}

/// Reads `active`, `ACTIVE` or `LOCATION_STATE_ACTIVE`.
fn parse_state(text: &str) -> Result<LocationState, String> {
    parse_enum(text, "LOCATION_STATE_", LocationState::from_str_name)
        .filter(|state| *state != LocationState::Unspecified)
        .ok_or_else(|| format!("must be active or inactive, is `{text}`"))
}

fn parse_enum<E>(text: &str, prefix: &str, named: impl Fn(&str) -> Option<E>) -> Option<E> {
    let name = text.trim().to_ascii_uppercase();
    named(&name).or_else(|| named(&format!("{prefix}{name}")))
}

/// Turns a row's location into what creates it.
///
/// A row with an id is the same location however often it is sent. A row without one gets a request
/// id from its line and its content, so that sending it again answers the first result.
pub(super) fn creation(mut location: Location, line: u64) -> CreateLocationRequest {
    location.create_time = None;
    location.update_time = None;
    location.etag.clear();
    let location_id = std::mem::take(&mut location.id);
    let request_id = if location_id.is_empty() {
        let mut content = line.to_be_bytes().to_vec();
        content.extend(location.encode_to_vec());
        Uuid::new_v5(&ID_NAMESPACE, &content).to_string()
    } else {
        String::new()
    };
    CreateLocationRequest {
        location: Some(location),
        location_id,
        request_id,
        validate_only: false,
    }
}

/// The id of the location that a value of the `--id-from` column stands for.
fn derived_id(value: &str) -> String {
    Uuid::new_v5(&ID_NAMESPACE, value.as_bytes()).to_string()
}

/// Which column of a CSV file gives which field, checked against the header.
#[derive(Debug)]
pub(super) struct CsvColumns {
    fields: Vec<(Field, usize)>,
    id_from: Option<(usize, String)>,
    constants: Vec<(Field, String)>,
    width: usize,
}

impl CsvColumns {
    /// Matches the arguments with the header. Columns that are named like a field give that field,
    /// unless `map` or `constants` give it.
    pub(super) fn new(
        header: &[String],
        map: &[(Field, String)],
        constants: &[(Field, String)],
        id_from: Option<&str>,
    ) -> Result<Self, TransferError> {
        let find = |column: &str, flag: &str| {
            let mut matches = header
                .iter()
                .enumerate()
                .filter(|(_, name)| *name == column);
            match (matches.next(), matches.next()) {
                (Some((index, _)), None) => Ok(index),
                (Some(_), Some(_)) => Err(TransferError::Usage(format!(
                    "{flag} {column}: the file has several columns of that name"
                ))),
                (None, _) => Err(TransferError::Usage(format!(
                    "{flag} {column}: the file has no such column; it has {}",
                    header.join(", ")
                ))),
            }
        };
        let mut fields = Vec::new();
        for (field, column) in map {
            fields.push((field.clone(), find(column, &format!("--map {field}="))?));
        }
        let id_from = id_from
            .map(|column| Ok((find(column, "--id-from")?, column.to_owned())))
            .transpose()?;
        for name in header {
            let Ok(field) = name.parse::<Field>() else {
                continue;
            };
            let given = (field == Field::Id && id_from.is_some())
                || map
                    .iter()
                    .chain(constants)
                    .any(|(other, _)| *other == field);
            if !given {
                fields.push((field, find(name, "column")?));
            }
        }
        for required in [Field::Type, Field::DisplayName] {
            let given = fields.iter().any(|(field, _)| *field == required)
                || constants.iter().any(|(field, _)| *field == required);
            if !given {
                return Err(TransferError::Usage(format!(
                    "every location needs a {required}: name its column with --map \
                     {required}=COLUMN or set it with --set {required}=VALUE; the file has the \
                     columns {}",
                    header.join(", ")
                )));
            }
        }
        Ok(Self {
            fields,
            id_from,
            constants: constants.to_vec(),
            width: header.len(),
        })
    }

    /// The columns that give nothing.
    pub(super) fn unused<'a>(&self, header: &'a [String]) -> Vec<&'a str> {
        let id_from = self.id_from.as_ref().map(|(index, _)| *index);
        header
            .iter()
            .enumerate()
            .filter(|(index, _)| {
                id_from != Some(*index) && self.fields.iter().all(|(_, used)| used != index)
            })
            .map(|(_, name)| name.as_str())
            .collect()
    }

    /// Reads a row. An empty cell leaves its field as it is: unset.
    pub(super) fn parse(&self, record: &ByteRecord) -> Result<Location, String> {
        if record.len() != self.width {
            return Err(format!(
                "has {} fields, the header has {}",
                record.len(),
                self.width
            ));
        }
        let cell = |index: usize| {
            std::str::from_utf8(record.get(index).unwrap_or_default())
                .map_err(|_| "isn't UTF-8".to_owned())
        };
        let mut location = Location::default();
        let (mut latitude, mut longitude) = (false, false);
        for (field, index) in &self.fields {
            let text = cell(*index).map_err(|error| format!("{field} {error}"))?;
            if text.is_empty() {
                continue;
            }
            field
                .set(&mut location, text)
                .map_err(|error| format!("{field} {error}"))?;
            latitude |= *field == Field::Latitude;
            longitude |= *field == Field::Longitude;
        }
        set_constants(&mut location, &self.constants)?;
        let is_constant = |field| {
            self.constants
                .iter()
                .any(|(constant, _)| *constant == field)
        };
        latitude |= is_constant(Field::Latitude);
        longitude |= is_constant(Field::Longitude);
        if latitude != longitude {
            return Err("coordinates needs both latitude and longitude, or neither".to_owned());
        }
        if let Some((index, column)) = &self.id_from {
            let value = cell(*index).map_err(|error| format!("{column} {error}"))?;
            if value.is_empty() {
                return Err(format!(
                    "{column} is empty, so that no id can be made from it"
                ));
            }
            location.id = derived_id(value);
        }
        Ok(location)
    }
}

fn set_constants(location: &mut Location, constants: &[(Field, String)]) -> Result<(), String> {
    constants.iter().try_for_each(|(field, value)| {
        field
            .set(location, value)
            .map_err(|error| format!("{field} {error}"))
    })
}

/// Locations in protobuf's JSON form.
#[derive(Debug, Clone)]
pub(super) struct Json {
    descriptor: MessageDescriptor,
}

impl Json {
    /// Finds the descriptor of `Location`.
    pub(super) fn new() -> Result<Self, TransferError> {
        DescriptorPool::decode(proto::DESCRIPTORS)
            .ok()
            .and_then(|pool| pool.get_message_by_name("location.v1.Location"))
            .map(|descriptor| Self { descriptor })
            .ok_or_else(|| {
                TransferError::Internal("the build lacks the descriptor of Location".to_owned())
            })
    }

    /// Reads a line. Fields that a location doesn't have are an error, but for the one that the id
    /// is made from.
    pub(super) fn parse(
        &self,
        line: &str,
        constants: &[(Field, String)],
        id_from: Option<&str>,
    ) -> Result<Location, String> {
        let mut location = if let Some(key) = id_from {
            let mut row: BTreeMap<String, Value> =
                serde_json::from_str(line).map_err(|error| describe_json_error(&error))?;
            let value = match row.get(key) {
                Some(Value::String(value)) if !value.is_empty() => value.clone(),
                Some(Value::Number(value)) => value.to_string(),
                _ => {
                    return Err(format!(
                        "{key} is no text and no number, so that no id can be made from it"
                    ));
                }
            };
            let is_field = self.descriptor.get_field_by_json_name(key).is_some()
                || self.descriptor.get_field_by_name(key).is_some();
            if !is_field {
                row.remove(key);
            }
            let mut location = self.decode(Value::from_iter(row))?;
            location.id = derived_id(&value);
            location
        } else {
            let mut deserializer = serde_json::Deserializer::from_str(line);
            let location = self.decode(&mut deserializer)?;
            deserializer
                .end()
                .map_err(|error| describe_json_error(&error))?;
            location
        };
        set_constants(&mut location, constants)?;
        Ok(location)
    }

    fn decode<'de, D>(&self, deserializer: D) -> Result<Location, String>
    where
        D: serde::Deserializer<'de, Error = serde_json::Error>,
    {
        DynamicMessage::deserialize(self.descriptor.clone(), deserializer)
            .map_err(|error| describe_json_error(&error))?
            .transcode_to()
            .map_err(|error| error.to_string())
    }

    /// Appends the location as one line.
    pub(super) fn write(
        &self,
        location: &Location,
        out: &mut Vec<u8>,
    ) -> Result<(), TransferError> {
        let mut message = DynamicMessage::new(self.descriptor.clone());
        message
            .transcode_from(location)
            .map_err(|error| TransferError::Internal(error.to_string()))?;
        serde_json::to_writer(&mut *out, &message)
            .map_err(|error| TransferError::Internal(error.to_string()))?;
        out.push(b'\n');
        Ok(())
    }
}

/// The rest of a line is the only line that the parser knows of.
fn describe_json_error(error: &serde_json::Error) -> String {
    error
        .to_string()
        .replace(" at line 1 column ", " at column ")
        .replace(" at line 0 column 0", "")
}

/// Reads ranges such as `0-11,17` of numbers under `limit`. `None` if it is anything else.
pub(super) fn parse_ranges(text: &str, limit: usize) -> Option<Vec<usize>> {
    let mut indexes = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= limit {
            return None;
        }
        indexes.extend(first..=last);
    }
    Some(indexes)
}

#[cfg(test)]
pub(super) mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::proto::location::v1::{Address, LatLng};

    /// A location that sets every field, to what is hard to carry.
    pub(in super::super) fn full() -> Location {
        Location {
            id: "0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70".to_owned(),
            r#type: LocationType::Storage.into(),
            display_name: " \"Łódź\", the\r\n‘old’ depot\t🏭 ".to_owned(),
            production_run_id: "Europe/Warsaw, 2".to_owned(),
            owner_id: "auth0|5f7c; \"x\"".to_owned(),
            address: Some(Address {
                address_lines: vec![
                    "[3] \"A\", B".to_owned(),
                    String::new(),
                    "ul.\nX".to_owned(),
                ],
                locality: "Łódź".to_owned(),
                administrative_area: "05".to_owned(),
                postal_code: "00-950".to_owned(),
                region_code: "PL".to_owned(),
            }),
            coordinates: Some(LatLng {
                latitude: 51.759_048_123_456_789,
                longitude: -0.1,
            }),
            capacity: i64::MAX,
            state: LocationState::Inactive.into(),
            description: "=1+1\n\n\"\"".to_owned(),
            labels: [("a.b", "c=d"), ("naïve", ""), ("\"", "\n")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            create_time: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 123_456_000,
            }),
            update_time: Some(Timestamp {
                seconds: 1_700_000_001,
                nanos: 0,
            }),
            etag: "\"0af1\"".to_owned(),
        }
    }

    fn names(header: &[&str]) -> Vec<String> {
        header.iter().map(|name| (*name).to_owned()).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(Field, String)> {
        pairs
            .iter()
            .map(|(field, value)| (field.parse().unwrap(), (*value).to_owned()))
            .collect()
    }

    fn columns(header: &[&str], map: &[(&str, &str)], constants: &[(&str, &str)]) -> CsvColumns {
        CsvColumns::new(&names(header), &pairs(map), &pairs(constants), None).unwrap()
    }

    fn usage_error(header: &[&str], map: &[(&str, &str)], id_from: Option<&str>) -> String {
        CsvColumns::new(&names(header), &pairs(map), &[], id_from)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn csv_keeps_every_field() {
        for location in [
            full(),
            Location {
                capacity: 0,
                ..Location::default()
            },
        ] {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer
                .write_record(Field::COLUMNS.map(|field| field.to_string()))
                .unwrap();
            let cells: Vec<_> = Field::COLUMNS
                .iter()
                .map(|field| field.get(&location).unwrap())
                .collect();
            writer.write_record(cells).unwrap();
            let bytes = writer.into_inner().unwrap();

            let mut reader = csv::Reader::from_reader(bytes.as_slice());
            let header: Vec<_> = reader
                .headers()
                .unwrap()
                .iter()
                .map(str::to_owned)
                .collect();
            let columns = CsvColumns::new(&header, &[], &[], None).unwrap();
            assert!(columns.unused(&header).is_empty());
            let row = reader.byte_records().next().unwrap().unwrap();
            if location.r#type == 0 {
                assert!(columns.parse(&row).unwrap_err().starts_with("type must be"));
                continue;
            }
            let expected = Location {
                create_time: None,
                update_time: None,
                etag: String::new(),
                ..location
            };
            assert_eq!(columns.parse(&row).unwrap(), expected);
        }
    }

    #[test]
    fn ndjson_keeps_every_field() {
        let json = Json::new().unwrap();
        let mut line = Vec::new();
        json.write(&full(), &mut line).unwrap();
        let text = std::str::from_utf8(&line).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.contains(r#""createTime":"2023-11-14T22:13:20.123456Z""#),
            "{text}"
        );
        assert!(
            text.contains(r#""capacity":"9223372036854775807""#),
            "{text}"
        );
        assert_eq!(json.parse(text, &[], None).unwrap(), full());
    }

    #[test]
    fn ndjson_takes_both_spellings_and_refuses_what_it_does_not_know() {
        let json = Json::new().unwrap();
        let parse = |line| json.parse(line, &[], None);
        let expected = Location {
            display_name: "A".to_owned(),
            capacity: 5,
            ..Location::default()
        };
        assert_eq!(
            parse(r#"{"displayName":"A","capacity":5}"#).unwrap(),
            expected
        );
        assert_eq!(
            parse(r#"{"display_name":"A","capacity":"5"}"#).unwrap(),
            expected
        );

        for (line, reason) in [
            (r#"{"colour":1}"#, "colour"),
            (r#"{"type":"LOCATION_TYPE_SHED"}"#, "LOCATION_TYPE_SHED"),
            (r#"{"displayName":"A"} {}"#, "trailing characters at column"),
            (r#"{"displayName""#, "EOF"),
            ("[]", "invalid type"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(
                error.contains(reason) && !error.contains("line 1"),
                "{error}"
            );
        }
    }

    #[test]
    fn ndjson_makes_ids_of_any_key() {
        let json = Json::new().unwrap();
        let parse = |line, key| json.parse(line, &pairs(&[("type", "storage")]), Some(key));
        let by_number = parse(r#"{"code":12,"displayName":"A"}"#, "code").unwrap();
        let by_text = parse(r#"{"code":"12","displayName":"A"}"#, "code").unwrap();
        assert_eq!(by_number, by_text);
        assert_eq!(by_number.id, derived_id("12"));
        assert_eq!(by_number.r#type, i32::from(LocationType::Storage));
        let by_field = parse(r#"{"displayName":"A"}"#, "displayName").unwrap();
        assert_eq!(
            (by_field.id, by_field.display_name),
            (derived_id("A"), "A".to_owned())
        );
        assert!(
            parse(r#"{"displayName":"A"}"#, "code")
                .unwrap_err()
                .starts_with("code is")
        );
    }

    #[test]
    fn columns_map_themselves_unless_they_are_mapped() {
        let columns = columns(
            &[
                "display_name",
                "population",
                "zone",
                "capacity",
                "lat",
                "lon",
                "labels.colour",
                "x",
            ],
            &[
                ("capacity", "population"),
                ("production_run_id", "zone"),
                ("coordinates.latitude", "lat"),
                ("coordinates.longitude", "lon"),
                ("description", "zone"),
            ],
            &[("type", "Storage"), ("labels.origin", "a=b")],
        );
        let location = columns
            .parse(&ByteRecord::from(vec![
                "Paris",
                "7",
                "Europe/Paris",
                "9",
                "48.8",
                "2.3",
                "red",
                "?",
            ]))
            .unwrap();
        let expected = Location {
            r#type: LocationType::Storage.into(),
            display_name: "Paris".to_owned(),
            production_run_id: "Europe/Paris".to_owned(),
            capacity: 7,
            description: "Europe/Paris".to_owned(),
            coordinates: Some(LatLng {
                latitude: 48.8,
                longitude: 2.3,
            }),
            labels: [("colour", "red"), ("origin", "a=b")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Location::default()
        };
        assert_eq!(location, expected);
    }

    #[test]
    fn bad_rows_say_which_field_and_why() {
        let columns = columns(
            &[
                "display_name",
                "type",
                "capacity",
                "coordinates.latitude",
                "coordinates.longitude",
                "address.address_lines",
            ],
            &[],
            &[],
        );
        let parse = |cells: [&str; 6]| columns.parse(&ByteRecord::from(cells.to_vec()));
        assert_eq!(
            parse(["A", "LOCATION_TYPE_DELIVERY", "", "", "", "1 Main St"])
                .unwrap()
                .address
                .unwrap()
                .address_lines,
            ["1 Main St"]
        );
        for (cells, reason) in [
            (
                ["A", "shed", "", "", "", ""],
                "type must be delivery or storage, is `shed`",
            ),
            (["A", "unspecified", "", "", "", ""], "type must be"),
            (
                ["A", "storage", "1.5", "", "", ""],
                "capacity must be a whole number, is `1.5`",
            ),
            (
                ["A", "storage", "", "48,8", "2.3", ""],
                "coordinates.latitude must be a number",
            ),
            (
                ["A", "storage", "", "48.8", "", ""],
                "coordinates needs both",
            ),
            (
                ["A", "storage", "", "", "", "[1]"],
                "address.address_lines must be plain text or",
            ),
        ] {
            let error = parse(cells).unwrap_err();
            assert!(error.starts_with(reason), "{error}");
        }
        assert_eq!(
            columns.parse(&ByteRecord::from(vec!["A"])).unwrap_err(),
            "has 1 fields, the header has 6"
        );
        let not_utf8: &[u8] = b"\xff";
        let record: ByteRecord = [not_utf8, b"storage", b"", b"", b"", b""]
            .into_iter()
            .collect();
        assert_eq!(
            columns.parse(&record).unwrap_err(),
            "display_name isn't UTF-8"
        );
    }

    #[test]
    fn arguments_that_do_not_fit_the_file_name_its_columns() {
        let header = ["display_name", "type", "a", "a"];
        let error = usage_error(&header, &[("capacity", "b")], None);
        assert!(
            error.contains("no such column; it has display_name, type, a, a"),
            "{error}"
        );
        let error = usage_error(&header, &[("capacity", "a")], None);
        assert!(error.contains("several columns"), "{error}");
        assert!(usage_error(&header, &[], Some("b")).contains("--id-from b"));
        let error = usage_error(&["display_name"], &[], None);
        assert!(error.contains("--set type=VALUE"), "{error}");
        let error = "adress.locality".parse::<Field>().unwrap_err();
        assert!(error.contains("address.locality"), "{error}");
    }

    #[test]
    fn ids_come_from_the_value_alone() {
        let columns = CsvColumns::new(
            &names(&["id", "key", "display_name"]),
            &[],
            &pairs(&[("type", "storage")]),
            Some("key"),
        )
        .unwrap();
        let id = |cells: [&str; 3]| {
            columns
                .parse(&ByteRecord::from(cells.to_vec()))
                .map(|at| at.id)
        };
        assert_eq!(id(["1", "12", "A"]), id(["2", "12", "B"]));
        assert_ne!(id(["1", "12", "A"]), id(["1", "13", "A"]));
        // Written down: ids of earlier imports depend on it.
        assert_eq!(
            id(["", "12", "A"]).unwrap(),
            "bfb79d32-a3d1-5d99-91a9-8c2595f00e1a"
        );
        assert!(id(["1", "", "A"]).unwrap_err().starts_with("key is empty"));
    }

    #[test]
    fn only_rows_without_an_id_get_a_request_id_from_line_and_content() {
        let with_id = creation(full(), 2);
        assert_eq!(with_id.location_id, full().id);
        assert_eq!(with_id.request_id, "");
        let location = with_id.location.unwrap();
        assert_eq!((location.id.as_str(), location.etag.as_str()), ("", ""));
        assert_eq!((location.create_time, location.update_time), (None, None));

        let request_id = |name: &str, line| {
            let location = Location {
                display_name: name.to_owned(),
                ..Location::default()
            };
            creation(location, line).request_id
        };
        assert_eq!(request_id("A", 2), request_id("A", 2));
        assert_ne!(request_id("A", 2), request_id("A", 3));
        assert_ne!(request_id("A", 2), request_id("B", 2));
    }

    #[test]
    fn ranges_are_read_within_their_limit() {
        assert_eq!(parse_ranges("0-2,5", 6).unwrap(), [0, 1, 2, 5]);
        assert_eq!(parse_ranges("0", 1).unwrap(), [0]);
        for bad in [
            "",
            "a",
            "3-2",
            "0-6",
            "6",
            "1,",
            "-1",
            "0-18446744073709551615",
        ] {
            assert_eq!(parse_ranges(bad, 6), None, "{bad}");
        }
    }
}
