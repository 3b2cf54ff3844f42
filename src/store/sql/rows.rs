//! Rows, and the values that they hold.

use std::{collections::BTreeMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use sqlx::{ColumnIndex, Decode, FromRow, Row};
use uuid::Uuid;

use super::{
    super::{IdempotencyRecord, StoreError},
    query::Value,
};
use crate::model::{
    Address, Capacity, Coordinates, Details, Etag, Image, LabelKey, LabelValue, Location,
    LocationId, LocationState, LocationType, Micros, RegionCode, Report, Text, fold_case,
};

/// Stands for negative zero in a column that doesn't keep its sign. No coordinate is infinite.
pub(super) const NEGATIVE_ZERO: f64 = f64::NEG_INFINITY;

/// A column of the table `locations`.
pub(super) struct Column {
    pub(super) name: &'static str,
    /// The value that is stored for a location.
    pub(super) value: fn(&Location) -> Value,
    /// Whether [`LocationRow`] reads it.
    pub(super) read: bool,
}

/// A column that [`LocationRow`] reads.
const fn column(name: &'static str, value: fn(&Location) -> Value) -> Column {
    Column {
        name,
        value,
        read: true,
    }
}

/// The columns of the table `locations`, which every statement follows. The first one is the key,
/// and those that are read come before those that aren't.
pub(super) const LOCATION_COLUMNS: &[Column] = &[
    column("id", |l| l.id.into()),
    column("type", |l| Value::Int(l.kind as i64)),
    column("display_name", |l| l.details.display_name.as_str().into()),
    column("production_run_id", |l| {
        l.details.production_run_id.as_str().into()
    }),
    column("owner_id", |l| l.owner.as_str().into()),
    column("address_lines", |l| {
        let lines: Vec<_> = l.details.address.lines.iter().map(Text::as_str).collect();
        Value::Text(serde_json::Value::from(lines).to_string())
    }),
    column("locality", |l| l.details.address.locality.as_str().into()),
    column("administrative_area", |l| {
        l.details.address.administrative_area.as_str().into()
    }),
    column("postal_code", |l| {
        l.details.address.postal_code.as_str().into()
    }),
    column("region_code", |l| {
        l.details.address.region_code.as_str().into()
    }),
    column("latitude", |l| {
        Value::Real(l.details.coordinates.map(Coordinates::latitude))
    }),
    column("longitude", |l| {
        Value::Real(l.details.coordinates.map(Coordinates::longitude))
    }),
    column("capacity", |l| Value::Int(l.details.capacity.get())),
    column("state", |l| Value::Int(l.details.state as i64)),
    column("description", |l| l.details.description.as_str().into()),
    column("labels", |l| {
        let labels = l.details.labels.iter();
        let labels: serde_json::Map<_, _> = labels
            .map(|(key, value)| (key.as_str().to_owned(), value.as_str().into()))
            .collect();
        Value::Text(serde_json::Value::from(labels).to_string())
    }),
    column("create_time", |l| Value::Int(l.create_time.0)),
    column("update_time", |l| Value::Int(l.update_time.0)),
    column("etag", |l| l.etag.as_str().into()),
    Column {
        name: "display_name_lower",
        value: |l| Value::Text(fold_case(l.details.display_name.as_str())),
        read: false,
    },
];

/// The index of a column in a row. An unknown name doesn't compile in a `const` block.
const fn index(name: &str) -> usize {
    const fn equal(a: &[u8], b: &[u8]) -> bool {
        let mut at = 0;
        while at < a.len() && at < b.len() && a[at] == b[at] {
            at += 1;
        }
        at == a.len() && at == b.len()
    }
    let mut at = 0;
    while !equal(LOCATION_COLUMNS[at].name.as_bytes(), name.as_bytes()) {
        at += 1;
    }
    assert!(LOCATION_COLUMNS[at].read, "the column isn't read");
    at
}

/// A location as it is stored.
pub(in crate::store) struct LocationRow {
    pub(super) location: Location,
    /// Approximate size in a response.
    pub(super) bytes: usize,
}

/// Reads columns by index, without checking their types, which the schema determines, and without
/// copying the text that is parsed. Checks and copies take a fifth of the time of a list.
impl<'r, R: Row> FromRow<'r, R> for LocationRow
where
    usize: ColumnIndex<R>,
    Uuid: Decode<'r, R::Database>,
    i64: Decode<'r, R::Database>,
    String: Decode<'r, R::Database>,
    &'r str: Decode<'r, R::Database>,
    Option<f64>: Decode<'r, R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        /// The size of the fields that aren't text.
        const OTHER_FIELDS: usize = 256;
        let id: Uuid = row.try_get_unchecked(const { index("id") })?;
        let corrupt =
            |column: &str| sqlx::Error::Decode(format!("location {id}: bad {column}").into());
        let number = |column: usize| row.try_get_unchecked::<i64, _>(column);
        let degrees = |column: usize| -> sqlx::Result<Option<f64>> {
            let degrees: Option<f64> = row.try_get_unchecked(column)?;
            Ok(degrees.map(|degrees| {
                if degrees == NEGATIVE_ZERO {
                    -0.0
                } else {
                    degrees
                }
            }))
        };
        let mut bytes = OTHER_FIELDS;
        let mut text = |column: usize| -> sqlx::Result<String> {
            let text: String = row.try_get_unchecked(column)?;
            bytes += text.len();
            Ok(text)
        };
        let lines_json: &str = row.try_get_unchecked(const { index("address_lines") })?;
        let labels_json: &str = row.try_get_unchecked(const { index("labels") })?;
        let lines: Vec<String> = match lines_json {
            "[]" => Vec::new(),
            json => serde_json::from_str(json).map_err(|_| corrupt("address_lines"))?,
        };
        let StoredLabels(labels) = match labels_json {
            "{}" => StoredLabels::default(),
            json => serde_json::from_str(json).map_err(|_| corrupt("labels"))?,
        };
        let coordinates = match (
            degrees(const { index("latitude") })?,
            degrees(const { index("longitude") })?,
        ) {
            (Some(latitude), Some(longitude)) => {
                Some(Coordinates::new(latitude, longitude).map_err(|_| corrupt("coordinates"))?)
            }
            _ => None,
        };
        let location = Location {
            id: LocationId(id),
            kind: LocationType::from_number(number(const { index("type") })?)
                .ok_or_else(|| corrupt("type"))?,
            owner: Text::from_trusted(text(const { index("owner_id") })?),
            details: Details {
                display_name: Text::from_trusted(text(const { index("display_name") })?),
                production_run_id: Text::from_trusted(text(const { index("production_run_id") })?),
                address: Address {
                    lines: lines.into_iter().map(Text::from_trusted).collect(),
                    locality: Text::from_trusted(text(const { index("locality") })?),
                    administrative_area: Text::from_trusted(text(
                        const { index("administrative_area") },
                    )?),
                    postal_code: Text::from_trusted(text(const { index("postal_code") })?),
                    region_code: RegionCode::from_trusted(text(const { index("region_code") })?),
                },
                coordinates,
                capacity: Capacity::new(number(const { index("capacity") })?)
                    .map_err(|_| corrupt("capacity"))?,
                state: LocationState::from_number(number(const { index("state") })?)
                    .ok_or_else(|| corrupt("state"))?,
                description: Text::from_trusted(text(const { index("description") })?),
                labels,
            },
            create_time: Micros(number(const { index("create_time") })?),
            update_time: Micros(number(const { index("update_time") })?),
            etag: Etag::from_trusted(text(const { index("etag") })?),
        };
        // A label takes a few bytes more in a response than in JSON.
        bytes += lines_json.len() + 2 * labels_json.len();
        Ok(Self { location, bytes })
    }
}

/// Labels that were valid when they were stored.
#[derive(Default)]
struct StoredLabels(BTreeMap<LabelKey, LabelValue>);

impl<'de> Deserialize<'de> for StoredLabels {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for StoredLabels {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object whose values are text")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut labels: A) -> Result<Self, A::Error> {
        while let Some((key, value)) = labels.next_entry()? {
            self.0
                .insert(LabelKey::from_trusted(key), Text::from_trusted(value));
        }
        Ok(self)
    }
}

/// A report as the database computes it.
#[derive(FromRow)]
pub(in crate::store) struct ReportRow {
    r#type: i64,
    production_run_id: String,
    locations: i64,
    active: i64,
    capacity_high: i64,
    capacity_low: i64,
    regions: i64,
    latest_update: i64,
}

impl TryFrom<ReportRow> for Report {
    type Error = StoreError;

    fn try_from(row: ReportRow) -> Result<Self, StoreError> {
        let capacity = (i128::from(row.capacity_high) << 32) + i128::from(row.capacity_low);
        Ok(Self {
            kind: LocationType::from_number(row.r#type)
                .ok_or_else(|| StoreError::corrupt("a report has an unknown type"))?,
            run: Text::from_trusted(row.production_run_id),
            locations: row.locations,
            active: row.active,
            capacity: i64::try_from(capacity).unwrap_or(i64::MAX),
            regions: row.regions,
            latest_update: Micros(row.latest_update),
        })
    }
}

/// A row of `former_images`.
#[derive(FromRow)]
pub(super) struct ImageRow {
    id: Uuid,
    r#type: i64,
    production_run_id: String,
    owner_id: String,
}

impl TryFrom<ImageRow> for Image {
    type Error = StoreError;

    fn try_from(row: ImageRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: LocationId(row.id),
            kind: LocationType::from_number(row.r#type)
                .ok_or_else(|| StoreError::corrupt("an image has an unknown type"))?,
            run: Text::from_trusted(row.production_run_id),
            owner: Text::from_trusted(row.owner_id),
        })
    }
}

/// The image of a row of `locations`, and its etag.
#[derive(FromRow)]
pub(super) struct TaggedImageRow {
    #[sqlx(flatten)]
    image: ImageRow,
    etag: String,
}

impl TryFrom<TaggedImageRow> for (Image, Etag) {
    type Error = StoreError;

    fn try_from(row: TaggedImageRow) -> Result<Self, StoreError> {
        Ok((row.image.try_into()?, Etag::from_trusted(row.etag)))
    }
}

/// A row of `create_requests`.
#[derive(FromRow)]
pub(super) struct RecordRow {
    request_id: Uuid,
    fingerprint: Vec<u8>,
    #[sqlx(rename = "answer")]
    location: Vec<u8>,
}

impl TryFrom<RecordRow> for IdempotencyRecord {
    type Error = StoreError;

    fn try_from(row: RecordRow) -> Result<Self, StoreError> {
        Ok(Self {
            request_id: row.request_id,
            fingerprint: row
                .fingerprint
                .try_into()
                .map_err(|_| StoreError::corrupt("a fingerprint isn't 32 bytes long"))?,
            location: row.location,
        })
    }
}
