//! Builds the location of a row from the values of its fields.

use location_service::proto::location::v1::{Location, LocationState};
use prost::Message as _;
use prost_reflect::Value;
use uuid::Uuid;

use super::{
    TransferError,
    fields::{Constant, Field},
    ids,
    numbers::NumberStyle,
};

/// The longest value of a field, in bytes. The limits of the service are lower.
const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// The fields that a row has, with or without a value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    /// A bit set of the fields, by their [`Field::index`].
    fields: u64,
    /// The entries of maps whose other entries the row doesn't have.
    entries: Vec<Field>,
}

impl Given {
    /// Whether the row has the whole field.
    pub fn has(&self, field: &Field) -> bool {
        self.fields & (1 << field.index()) != 0
    }

    /// The entries of maps that aren't given as a whole.
    pub fn entries(&self) -> &[Field] {
        &self.entries
    }

    /// Adds a field. Returns whether it's new.
    fn add(&mut self, field: &Field) -> bool {
        if field.key().is_some() {
            let is_new = !self.entries.contains(field);
            if is_new {
                self.entries.push(field.clone());
            }
            return is_new;
        }
        let is_new = !self.has(field);
        self.fields |= 1 << field.index();
        is_new
    }

    fn remove(&mut self, field: &Field) {
        self.fields &= !(1 << field.index());
    }
}

/// A row that was parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub location: Location,
    pub given: Given,
    /// For a row of a file of rejected rows: its line in the original file.
    pub original_line: Option<u64>,
}

/// The options that apply to every row.
#[derive(Debug, Clone)]
pub struct RowRules {
    pub constants: Vec<Constant>,
    pub style: NumberStyle,
    /// The namespace of derived ids.
    pub namespace: Uuid,
    /// The values of the constants.
    values: Vec<Value>,
    positions: Vec<Position>,
    all: Vec<Field>,
}

/// A position and its coordinates, all of which must be given together.
#[derive(Debug, Clone)]
struct Position {
    path: String,
    coordinates: Vec<Field>,
}

impl RowRules {
    pub fn new(
        constants: Vec<Constant>,
        style: NumberStyle,
        namespace: Uuid,
    ) -> Result<Self, TransferError> {
        let values = constants.iter().map(|Constant { field, value }| {
            field.parse(value, style).map_err(|error| {
                TransferError::Usage(format!("--set {field}={value}: {field} {error}"))
            })
        });
        Ok(Self {
            values: values.collect::<Result<_, _>>()?,
            constants,
            style,
            namespace,
            positions: positions(),
            all: Field::all(),
        })
    }

    /// Whether `--set` provides the field.
    pub fn is_constant(&self, field: &Field) -> bool {
        self.constants
            .iter()
            .any(|constant| constant.field == *field)
    }
}

/// A row in the making.
pub struct RowBuilder<'a> {
    rules: &'a RowRules,
    given: Given,
    /// The fields that have a value.
    set: Given,
    values: Vec<FieldValue>,
}

/// The value of a field, or of an entry of a map.
struct FieldValue {
    /// The index of the field.
    index: usize,
    key: Option<String>,
    value: Value,
}

impl<'a> RowBuilder<'a> {
    pub fn new(rules: &'a RowRules) -> Self {
        Self {
            rules,
            given: Given::default(),
            set: Given::default(),
            values: Vec::with_capacity(rules.all.len()),
        }
    }

    pub fn style(&self) -> NumberStyle {
        self.rules.style
    }

    /// Notes that the row has the field, perhaps without a value.
    pub fn give(&mut self, field: &Field) {
        self.given.add(field);
    }

    /// Sets a field to the value of the text. Only lists may be set more than once.
    pub fn text(&mut self, field: &Field, text: &str) -> Result<(), String> {
        if text.len() > MAX_VALUE_BYTES {
            return Err(format!("{field} is longer than {MAX_VALUE_BYTES} bytes"));
        }
        let value = field.parse(text, self.rules.style);
        self.value(field, value.map_err(|error| format!("{field} {error}"))?)
    }

    /// Sets a field to a value. Only lists may be set more than once.
    pub fn value(&mut self, field: &Field, value: Value) -> Result<(), String> {
        self.given.add(field);
        if !self.set.add(field) && !field.is_list() {
            return Err(format!("{field} is given twice"));
        }
        if let Value::Map(entries) = &value {
            let others = self.values.iter().filter_map(|other| match &other.value {
                Value::Map(others) if other.index == field.index() => Some(others),
                _ => None,
            });
            for other in others {
                if let Some(key) = entries.keys().find(|key| other.contains_key(key)) {
                    let key = key.as_str().unwrap_or_default();
                    return Err(format!("{field} has the key `{key}` twice"));
                }
            }
        }
        self.values.push(FieldValue {
            index: field.index(),
            key: field.key().map(str::to_owned),
            value,
        });
        Ok(())
    }

    /// Whether a constant replaces a value.
    fn is_replaced(&self, value: &FieldValue) -> bool {
        self.rules.constants.iter().any(|Constant { field, .. }| {
            field.index() == value.index
                && field
                    .key()
                    .is_none_or(|key| value.key.as_deref() == Some(key))
        })
    }

    /// Completes the row with the constants and the id.
    pub fn finish(mut self, id: Option<&str>) -> Result<Parsed, String> {
        let mut encoded = Vec::with_capacity(256);
        for value in &self.values {
            if !self.is_replaced(value) {
                self.rules.all[value.index].encode(&value.value, &mut encoded);
            }
        }
        // The last one of equal keys of a map counts.
        for (Constant { field, .. }, value) in self.rules.constants.iter().zip(&self.rules.values) {
            field.encode(value, &mut encoded);
            self.given.add(field);
            self.set.add(field);
        }
        for Position { path, coordinates } in &self.rules.positions {
            let count = coordinates.iter().filter(|part| self.set.has(part)).count();
            if count != 0 && count != coordinates.len() {
                let names: Vec<_> = coordinates.iter().map(Field::name).collect();
                return Err(format!(
                    "{path} needs both {}, or neither",
                    names.join(" and ")
                ));
            }
        }
        let mut location = Location::decode(&*encoded).map_err(|error| error.to_string())?;
        for field in &self.rules.all {
            // A location without a state becomes active; one without an owner belongs to its creator.
            if field.is_state() && self.given.has(field) && location.state == 0 {
                location.state = LocationState::Active.into();
            } else if field.is_owner() && location.owner_id.is_empty() {
                self.given.remove(field);
            }
        }
        if let Some(value) = id {
            location.id = ids::derive_id(self.rules.namespace, value);
        } else if !location.id.is_empty() {
            location.id = ids::parse_id(&location.id)?;
        }
        Ok(Parsed {
            location,
            given: self.given,
            original_line: None,
        })
    }
}

/// The positions in a location.
fn positions() -> Vec<Position> {
    let mut positions: Vec<Position> = Vec::new();
    for field in Field::all() {
        let Some(path) = field.position() else {
            continue;
        };
        match positions.iter_mut().find(|position| position.path == path) {
            Some(position) => position.coordinates.push(field),
            None => positions.push(Position {
                path,
                coordinates: vec![field],
            }),
        }
    }
    positions
}
