//! The comparison of rows with the locations in the service.

use std::{fmt, sync::LazyLock};

use location_service::proto::location::v1::{Location, UpdateLocationRequest};
use prost_reflect::Kind;
use prost_types::FieldMask;

use super::{TransferError, csv::to_dynamic, fields::Field, row::Given};

/// The number of characters of a value that are shown.
const MAX_SHOWN_CHARS: usize = 40;

/// A field that a row has and that isn't the same in the service.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub field: Field,
    here: String,
    there: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |text: &str| {
            let mut shown: String = text.escape_debug().take(MAX_SHOWN_CHARS).collect();
            if text.escape_debug().nth(MAX_SHOWN_CHARS).is_some() {
                shown.push_str("...");
            }
            if shown.is_empty() {
                "nothing".to_owned()
            } else {
                format!("`{shown}`")
            }
        };
        write!(
            f,
            "{} is {} in the file and {} in the service",
            self.field,
            show(&self.here),
            show(&self.there)
        )
    }
}

/// The fields of a row that aren't the same in the service.
pub fn differences(
    row: &Location,
    given: &Given,
    there: &Location,
) -> Result<Vec<Difference>, TransferError> {
    static FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
        let fields = Field::all().into_iter();
        fields
            .filter(|field| !field.is_output_only() && !field.is_id())
            .collect()
    });
    if is_same(row, there) {
        return Ok(Vec::new());
    }
    let (here, there) = (to_dynamic(row)?, to_dynamic(there)?);
    let given = FIELDS
        .iter()
        .filter(|field| given.has(field))
        .chain(given.entries());
    Ok(given
        .map(|field| Difference {
            field: field.clone(),
            here: field.get(&here),
            there: field.get(&there),
        })
        .filter(|difference| !difference.is_equal())
        .collect())
}

impl Difference {
    fn is_equal(&self) -> bool {
        let number = |text: &str| text.parse::<f64>().ok();
        self.here == self.there
            || (self.field.kind() == Kind::Double
                && number(&self.here).is_some_and(|here| Some(here) == number(&self.there)))
    }
}

/// Whether all fields that a client sets are equal: the common case, checked without the descriptors of
/// the fields.
fn is_same(row: &Location, there: &Location) -> bool {
    let mut expected = Location {
        id: there.id.clone(),
        create_time: there.create_time,
        update_time: there.update_time,
        etag: there.etag.clone(),
        ..row.clone()
    };
    if expected.owner_id.is_empty() {
        expected.owner_id.clone_from(&there.owner_id);
    }
    if expected.state == 0 {
        expected.state = there.state;
    }
    expected == *there
}

/// The update that removes the differences, unless the location changes before it.
pub fn update(
    row: &Location,
    given: &Given,
    there: &Location,
    differences: &[Difference],
    validate_only: bool,
) -> UpdateLocationRequest {
    let mut location = row.clone();
    location.id.clone_from(&there.id);
    location.etag.clone_from(&there.etag);
    if !given.entries().is_empty() {
        // The entries that the row doesn't have stay.
        location.labels.clone_from(&there.labels);
        for entry in given.entries() {
            let key = entry.key().unwrap_or_default();
            match row.labels.get(key) {
                Some(value) => location.labels.insert(key.to_owned(), value.clone()),
                None => location.labels.remove(key),
            };
        }
    }
    let mut paths: Vec<String> = differences
        .iter()
        .map(|difference| {
            let field = &difference.field;
            field.position().unwrap_or_else(|| match field.key() {
                Some(_) => "labels".to_owned(),
                None => field.to_string(),
            })
        })
        .collect();
    paths.dedup();
    UpdateLocationRequest {
        location: Some(location),
        update_mask: Some(FieldMask { paths }),
        validate_only,
        ..UpdateLocationRequest::default()
    }
}
