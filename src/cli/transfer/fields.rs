//! The fields of a location by their path, such as `address.locality`.
//!
//! Everything follows from the protobuf descriptor: the names for `--map` and `--set`, the CSV
//! columns, and the conversion of values from and to text. A new field of `Location` needs no change
//! here, unless it needs a rule of its own.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use location_service::proto::LOCATION;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

/// The fields that the service sets. An import ignores them, except the id, which has a field of its
/// own in the request.
const OUTPUT_ONLY: [&str; 3] = ["create_time", "update_time", "etag"];

/// The message of a position. All of its fields must be given together, because an omitted one would
/// read as 0, which is a place on Earth.
const POSITION: &str = "location.v1.LatLng";

/// The package of messages whose JSON form is a scalar, such as `Timestamp`.
const WELL_KNOWN: &str = "google.protobuf";

/// The descriptor of `Location`.
pub fn descriptor() -> &'static MessageDescriptor {
    &LOCATION
}

/// A field of a location that has a value of its own, not only fields; or one entry of a map.
#[derive(Clone, PartialEq)]
pub struct Field {
    /// The messages that contain it, from the outside in.
    parents: Vec<FieldDescriptor>,
    leaf: FieldDescriptor,
    /// The key of the map entry.
    key: Option<String>,
}

impl Field {
    /// The fields of a location, in the order of their declaration. Maps are one field each.
    pub fn all() -> Vec<Self> {
        let mut fields = Vec::new();
        append_leaves(descriptor(), &[], &mut fields);
        fields
    }

    /// The id.
    pub fn is_id(&self) -> bool {
        self.is_at_top("id")
    }

    /// Whether every location must have it.
    pub fn is_required(&self) -> bool {
        self.is_at_top("type") || self.is_at_top("display_name")
    }

    /// Whether the service sets it, and an import ignores it.
    pub fn is_output_only(&self) -> bool {
        OUTPUT_ONLY.iter().any(|name| self.is_at_top(name))
    }

    fn is_at_top(&self, name: &str) -> bool {
        self.parents.is_empty() && self.leaf.name() == name
    }

    /// The path of the position that it is a part of.
    pub fn position(&self) -> Option<String> {
        let parent = self.parents.last()?;
        let is_position =
            matches!(parent.kind(), Kind::Message(message) if message.full_name() == POSITION);
        is_position.then(|| path(&self.parents))
    }

    /// The last component of the path.
    pub fn name(&self) -> &str {
        self.leaf.name()
    }

    /// The type of its values. That of a map is the message of its entries.
    pub fn kind(&self) -> Kind {
        self.leaf.kind()
    }

    /// The enum type of its values.
    pub fn enumeration(&self) -> Option<EnumDescriptor> {
        match self.kind() {
            Kind::Enum(enumeration) => Some(enumeration),
            _ => None,
        }
    }

    /// Sets the field to the value of the text, which isn't empty. The error states the expected
    /// form, as in "must be a whole number".
    pub fn set(&self, location: &mut DynamicMessage, text: &str) -> Result<(), String> {
        let value = self.parse(text)?;
        let mut message = location;
        for parent in &self.parents {
            message = message
                .get_field_mut(parent)
                .as_message_mut()
                .expect("the kind of a parent is a message");
        }
        match (message.get_field_mut(&self.leaf), value) {
            (Value::Map(entries), Value::Map(new)) => entries.extend(new),
            (field, value) => *field = value,
        }
        Ok(())
    }

    fn parse(&self, text: &str) -> Result<Value, String> {
        let kind = self.kind();
        if let Kind::Message(entry) = &kind
            && entry.is_map_entry()
        {
            let kind = entry.map_entry_value_field().kind();
            let texts: BTreeMap<String, String> = match &self.key {
                Some(key) => [(key.clone(), text.to_owned())].into(),
                None => serde_json::from_str(text).map_err(
                    |_| "must be a JSON object of strings, such as {\"colour\":\"red\"}",
                )?,
            };
            let entries: Result<HashMap<_, _>, String> = texts
                .into_iter()
                .map(|(key, text)| Ok((MapKey::String(key), parse_value(&kind, &text)?)))
                .collect();
            return entries.map(Value::Map);
        }
        if self.leaf.is_list() {
            // An export writes a JSON array. Plain text is a list of one element.
            let texts: Vec<String> = if text.starts_with('[') {
                serde_json::from_str(text)
                    .map_err(|_| "must be plain text or a JSON array of strings")?
            } else {
                vec![text.to_owned()]
            };
            let values: Result<Vec<_>, String> =
                texts.iter().map(|text| parse_value(&kind, text)).collect();
            return values.map(Value::List);
        }
        parse_value(&kind, text)
    }

    /// The value of the field as text that [`Field::set`] parses. Empty if it isn't set.
    pub fn get(&self, location: &DynamicMessage) -> String {
        self.get_below(location, &self.parents)
    }

    fn get_below(&self, message: &DynamicMessage, parents: &[FieldDescriptor]) -> String {
        if let [parent, rest @ ..] = parents {
            return match &*message.get_field(parent) {
                Value::Message(child) if message.has_field(parent) => self.get_below(child, rest),
                _ => String::new(),
            };
        }
        if self.leaf.supports_presence() && !message.has_field(&self.leaf) {
            return String::new();
        }
        let kind = self.kind();
        match &*message.get_field(&self.leaf) {
            Value::Map(entries) => {
                let kind = match &kind {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    kind => kind.clone(),
                };
                if let Some(key) = &self.key {
                    return entries
                        .get(&MapKey::String(key.clone()))
                        .map_or_else(String::new, |value| format_value(&kind, value));
                }
                let texts: BTreeMap<_, _> = entries
                    .iter()
                    .filter_map(|(key, value)| Some((key.as_str()?, format_value(&kind, value))))
                    .collect();
                to_json_unless(texts.is_empty(), &texts)
            }
            Value::List(values) => {
                let texts: Vec<_> = values
                    .iter()
                    .map(|value| format_value(&kind, value))
                    .collect();
                to_json_unless(texts.is_empty(), &texts)
            }
            value => format_value(&kind, value),
        }
    }
}

/// The CSV column of a field (`--map`).
#[derive(Debug, Clone)]
pub struct Mapping {
    pub field: Field,
    pub column: String,
}

/// The value of a field in every row (`--set`).
#[derive(Debug, Clone)]
pub struct Constant {
    pub field: Field,
    pub value: String,
}

/// Sets fields to the values of the arguments.
pub fn set_constants(location: &mut DynamicMessage, constants: &[Constant]) -> Result<(), String> {
    constants.iter().try_for_each(|Constant { field, value }| {
        field
            .set(location, value)
            .map_err(|error| format!("{field} {error}"))
    })
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for parent in &self.parents {
            write!(f, "{}.", parent.name())?;
        }
        f.write_str(self.leaf.name())?;
        match &self.key {
            Some(key) => write!(f, ".{key}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Field {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        let fields = Field::all();
        for field in &fields {
            let name = field.to_string();
            let Some(rest) = path.strip_prefix(&name) else {
                continue;
            };
            if rest.is_empty() {
                return Ok(field.clone());
            }
            let key = rest.strip_prefix('.').filter(|key| !key.is_empty());
            if let Some(key) = key.filter(|_| field.leaf.is_map()) {
                return Ok(Self {
                    key: Some(key.to_owned()),
                    ..field.clone()
                });
            }
        }
        let mut names = Vec::new();
        for field in fields.iter().filter(|field| !field.is_output_only()) {
            names.push(field.to_string());
            if field.leaf.is_map() {
                names.push(format!("{field}.KEY"));
            }
        }
        Err(format!(
            "`{path}` isn't a field of a location: use {}",
            names.join(", ")
        ))
    }
}

fn append_leaves(
    message: &MessageDescriptor,
    parents: &[FieldDescriptor],
    fields: &mut Vec<Field>,
) {
    for leaf in message.fields() {
        match leaf.kind() {
            Kind::Message(child)
                if leaf.supports_presence() && child.package_name() != WELL_KNOWN =>
            {
                let parents = [parents, &[leaf]].concat();
                append_leaves(&child, &parents, fields);
            }
            _ => fields.push(Field {
                parents: parents.to_vec(),
                leaf,
                key: None,
            }),
        }
    }
}

fn path(fields: &[FieldDescriptor]) -> String {
    let names: Vec<_> = fields.iter().map(FieldDescriptor::name).collect();
    names.join(".")
}

fn parse_value(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Double => parse_number(text, Value::F64),
        Kind::Float => parse_number(text, Value::F32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => parse_integer(text, Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => parse_integer(text, Value::I64),
        Kind::Uint32 | Kind::Fixed32 => parse_integer(text, Value::U32),
        Kind::Uint64 | Kind::Fixed64 => parse_integer(text, Value::U64),
        Kind::Bool => parse_as(text, "true or false", Value::Bool),
        Kind::Enum(enumeration) => parse_enum(enumeration, text).map(Value::EnumNumber),
        Kind::Bytes => BASE64_STANDARD
            .decode(text)
            .map(|bytes| Value::Bytes(bytes.into()))
            .map_err(|_| "must be base64".to_owned()),
        Kind::Message(message) => {
            // The JSON form of a well-known type is a scalar, whose quotes are omitted.
            let json: serde_json::Value =
                serde_json::from_str(text).unwrap_or_else(|_| text.into());
            DynamicMessage::deserialize(message.clone(), json)
                .map(Value::Message)
                .map_err(|_| format!("must be a {} in JSON, is `{text}`", message.name()))
        }
    }
}

fn parse_number<T: FromStr>(text: &str, value: fn(T) -> Value) -> Result<Value, String> {
    parse_as(text, "a number such as 48.85341", value)
}

fn parse_integer<T: FromStr>(text: &str, value: fn(T) -> Value) -> Result<Value, String> {
    parse_as(text, "a whole number", value)
}

fn parse_as<T: FromStr>(
    text: &str,
    expected: &str,
    value: fn(T) -> Value,
) -> Result<Value, String> {
    text.trim()
        .parse()
        .map(value)
        .map_err(|_| format!("must be {expected}, is `{text}`"))
}

/// Parses the name of an enum value, such as `storage`, `STORAGE` or `LOCATION_TYPE_STORAGE`. The
/// unspecified value isn't one.
pub fn parse_enum(enumeration: &EnumDescriptor, text: &str) -> Result<i32, String> {
    let prefix = enum_prefix(enumeration);
    let wanted = text.trim().to_ascii_uppercase();
    let wanted = wanted.strip_prefix(&prefix).unwrap_or(&wanted);
    let mut names = Vec::new();
    for value in enumeration.values().filter(|value| value.number() != 0) {
        let name = value.name().strip_prefix(&prefix).unwrap_or(value.name());
        if name == wanted {
            return Ok(value.number());
        }
        names.push(name.to_ascii_lowercase());
    }
    Err(format!("must be {}, is `{text}`", names.join(" or ")))
}

/// The prefix of the values of an enum: `LOCATION_TYPE_` for `LocationType`.
fn enum_prefix(enumeration: &EnumDescriptor) -> String {
    let mut prefix = String::new();
    for char in enumeration.name().chars() {
        if char.is_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.extend(char.to_uppercase());
    }
    prefix.push('_');
    prefix
}

fn format_value(kind: &Kind, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::I32(number) => number.to_string(),
        Value::I64(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::F32(number) => number.to_string(),
        Value::F64(number) => number.to_string(),
        Value::Bytes(bytes) => BASE64_STANDARD.encode(bytes),
        Value::EnumNumber(number) => match kind {
            Kind::Enum(enumeration) => enumeration
                .get_value(*number)
                .map_or_else(|| number.to_string(), |value| value.name().to_owned()),
            _ => number.to_string(),
        },
        Value::Message(message) => match serde_json::to_value(message) {
            Ok(serde_json::Value::String(text)) => text,
            Ok(json) => json.to_string(),
            Err(_) => String::new(),
        },
        // Neither nests in a list or a map.
        Value::List(_) | Value::Map(_) => String::new(),
    }
}

fn to_json_unless(is_empty: bool, value: &impl serde::Serialize) -> String {
    if is_empty {
        return String::new();
    }
    serde_json::to_string(value).unwrap_or_default()
}
