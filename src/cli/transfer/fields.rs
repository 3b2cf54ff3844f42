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

use location_service::proto::LOCATION;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

use super::{json_text, numbers::NumberStyle, values, wire};

/// The fields that the service sets and an import ignores. The id isn't one of them: it has a field of
/// its own in the request.
const OUTPUT_ONLY: [&str; 3] = ["create_time", "update_time", "etag"];

/// The message of a position. All of its fields must be given together, because an omitted one would
/// read as 0, which is a place on Earth.
const POSITION: &str = "location.v1.LatLng";

/// The name of the field with a country.
const REGION_CODE: &str = "region_code";

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
    /// The index in [`Field::all`].
    index: usize,
}

impl Field {
    /// The fields of a location, in the order of their declaration. Maps are one field each.
    pub fn all() -> Vec<Self> {
        let mut fields = Vec::new();
        append_leaves(descriptor(), &[], &mut fields);
        fields
    }

    /// Whether it is the id.
    pub fn is_id(&self) -> bool {
        self.is_at_top("id")
    }

    /// Whether it is the state.
    pub fn is_state(&self) -> bool {
        self.is_at_top("state")
    }

    /// Whether it is the owner.
    pub fn is_owner(&self) -> bool {
        self.is_at_top("owner_id")
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

    /// Whether it holds several values, so that several columns can provide them.
    pub fn is_list(&self) -> bool {
        self.leaf.is_list()
    }

    /// Whether it is a whole map.
    pub fn is_map(&self) -> bool {
        self.leaf.is_map() && self.key.is_none()
    }

    /// The entry of the map with this key.
    pub fn entry(&self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self.clone()
        }
    }

    /// The key of the map entry that it stands for.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The index in [`Field::all`]. That of a map entry is its map's.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Appends the field with its value, as Protocol Buffers encode it.
    pub fn encode(&self, value: &Value, out: &mut Vec<u8>) {
        wire::append(&self.parents, &self.leaf, value, out);
    }

    /// Parses text, which isn't empty. The error states the expected form, as in "must be a whole
    /// number".
    pub fn parse(&self, text: &str, style: NumberStyle) -> Result<Value, String> {
        if self.leaf.is_map() {
            let entries: Vec<(String, String)> = match &self.key {
                Some(key) => vec![(key.clone(), text.to_owned())],
                None => json_text::string_members(text)
                    .ok_or("must be a JSON object of strings, such as {\"colour\":\"red\"}")?,
            };
            return self.parse_entries(entries, style);
        }
        if self.leaf.is_list() {
            // An export writes a JSON array. Plain text is a list of one element.
            let texts = if text.starts_with('[') {
                json_text::strings(text).ok_or("must be plain text or a JSON array of strings")?
            } else {
                vec![text.to_owned()]
            };
            return self.parse_list(&texts, style);
        }
        if self.name() == REGION_CODE {
            return Ok(Value::String(region_code(text)));
        }
        values::parse(&self.kind(), text, style)
    }

    /// Parses the entries of a map.
    pub fn parse_entries(
        &self,
        entries: Vec<(String, String)>,
        style: NumberStyle,
    ) -> Result<Value, String> {
        let kind = self.element_kind();
        let mut map = HashMap::with_capacity(entries.len());
        for (key, text) in entries {
            let value = values::parse(&kind, &text, style)?;
            if map.insert(MapKey::String(key.clone()), value).is_some() {
                return Err(format!("has the key `{key}` twice"));
            }
        }
        Ok(Value::Map(map))
    }

    /// Parses the elements of a list.
    pub fn parse_list(&self, texts: &[String], style: NumberStyle) -> Result<Value, String> {
        let kind = self.kind();
        texts
            .iter()
            .map(|text| values::parse(&kind, text, style))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::List)
    }

    /// The kind of the values of a map, otherwise the kind of the field.
    fn element_kind(&self) -> Kind {
        match self.kind() {
            Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
            kind => kind,
        }
    }

    /// The value of the field as text that [`Field::parse`] accepts. Empty if it isn't set.
    pub fn get(&self, location: &DynamicMessage) -> String {
        self.with_value(location, |value| {
            value.map_or_else(String::new, |value| self.format(value))
        })
    }

    /// The value of the field as JSON, `null` if it has none.
    pub fn get_json(&self, location: &DynamicMessage) -> String {
        self.with_value(location, |value| match value {
            None => "null".to_owned(),
            Some(value) => values::to_json(&self.kind(), value),
        })
    }

    /// Whether the message that contains it is set.
    pub fn is_parent_set(&self, location: &DynamicMessage) -> bool {
        // Locations nest one level of messages.
        self.parents
            .first()
            .is_none_or(|parent| location.has_field(parent))
    }

    /// Calls a function with the value, or with `None` if a message that contains it isn't set.
    fn with_value<T>(
        &self,
        location: &DynamicMessage,
        then: impl FnOnce(Option<&Value>) -> T,
    ) -> T {
        fn descend<T>(
            message: &DynamicMessage,
            parents: &[FieldDescriptor],
            leaf: &FieldDescriptor,
            then: impl FnOnce(Option<&Value>) -> T,
        ) -> T {
            let [parent, rest @ ..] = parents else {
                return if leaf.supports_presence() && !message.has_field(leaf) {
                    then(None)
                } else {
                    then(Some(&message.get_field(leaf)))
                };
            };
            match &*message.get_field(parent) {
                Value::Message(child) if message.has_field(parent) => {
                    descend(child, rest, leaf, then)
                }
                _ => then(None),
            }
        }
        descend(location, &self.parents, &self.leaf, then)
    }

    fn format(&self, value: &Value) -> String {
        let kind = self.element_kind();
        match value {
            Value::Map(entries) => {
                if let Some(key) = &self.key {
                    return entries
                        .get(&MapKey::String(key.clone()))
                        .map_or_else(String::new, |value| values::format(&kind, value));
                }
                let texts: BTreeMap<_, _> = entries
                    .iter()
                    .filter_map(|(key, value)| Some((key.as_str()?, values::format(&kind, value))))
                    .collect();
                to_json_unless(texts.is_empty(), &texts)
            }
            Value::List(elements) => {
                let texts: Vec<_> = elements
                    .iter()
                    .map(|value| values::format(&kind, value))
                    .collect();
                to_json_unless(texts.is_empty(), &texts)
            }
            value => values::format(&kind, value),
        }
    }

    /// The name of the field in JSON, below its parents.
    pub fn json_name(&self) -> &str {
        self.leaf.json_name()
    }

    /// The JSON names of the messages that contain it.
    pub fn json_parents(&self) -> impl Iterator<Item = &str> {
        self.parents.iter().map(FieldDescriptor::json_name)
    }
}

/// A region code in upper case. `UK` is often written for `GB`.
fn region_code(text: &str) -> String {
    let code = text.trim().to_ascii_uppercase();
    if code == "UK" { "GB".to_owned() } else { code }
}

/// The source of a field (`--map`).
#[derive(Debug, Clone)]
pub struct Mapping {
    pub field: Field,
    pub source: MappingSource,
}

/// Where the value of a mapped field comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingSource {
    /// A CSV column, or the path of a key in JSON.
    Column(String),
    /// The same text in every row.
    Text(String),
}

/// The value of a field in every row (`--set`).
#[derive(Debug, Clone)]
pub struct Constant {
    pub field: Field,
    pub value: String,
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
        if let Some(field) = Self::by_name(path) {
            return Ok(field);
        }
        let fields = Field::all();
        let mut names = Vec::new();
        for field in fields.iter().filter(|field| !field.is_output_only()) {
            names.push(field.to_string());
            if field.leaf.is_map() {
                names.push(format!("{field}.KEY"));
            }
        }
        let suggestion = Self::suggest(path)
            .map(|name| format!("did you mean `{name}`? "))
            .unwrap_or_default();
        Err(format!(
            "`{path}` isn't a field of a location: {suggestion}use {}",
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
                index: fields.len(),
            }),
        }
    }
}

fn path(fields: &[FieldDescriptor]) -> String {
    let names: Vec<_> = fields.iter().map(FieldDescriptor::name).collect();
    names.join(".")
}

fn to_json_unless(is_empty: bool, value: &impl serde::Serialize) -> String {
    if is_empty {
        return String::new();
    }
    serde_json::to_string(value).unwrap_or_default()
}
