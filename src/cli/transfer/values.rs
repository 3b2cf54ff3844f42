//! The values of fields as text and as JSON.

use std::{collections::BTreeMap, str::FromStr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use prost_reflect::{DynamicMessage, EnumDescriptor, Kind, Value};

use super::numbers::{NumberStyle, write_real};

/// Parses a value of a kind. Text is taken as it is; everything else may have white space around it.
pub fn parse(kind: &Kind, text: &str, style: NumberStyle) -> Result<Value, String> {
    match kind {
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Double => real(text, style).map(Value::F64),
        #[allow(clippy::cast_possible_truncation, reason = "the field is a float")]
        Kind::Float => real(text, style).map(|number| Value::F32(number as f32)),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => integer(text, style, Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => integer(text, style, Value::I64),
        Kind::Uint32 | Kind::Fixed32 => integer(text, style, Value::U32),
        Kind::Uint64 | Kind::Fixed64 => integer(text, style, Value::U64),
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

fn real(text: &str, style: NumberStyle) -> Result<f64, String> {
    style.real(text.trim()).ok_or_else(|| {
        let hint = if text.contains(',') && !style.decimal_comma {
            ": for decimal commas use --decimal-comma"
        } else {
            ""
        };
        format!("must be a number such as 48.85341, is `{text}`{hint}")
    })
}

fn integer<T: TryFrom<i64>>(
    text: &str,
    style: NumberStyle,
    value: fn(T) -> Value,
) -> Result<Value, String> {
    style
        .integer(text.trim())
        .and_then(|number| T::try_from(number).ok())
        .map(value)
        .ok_or_else(|| format!("must be a whole number, is `{text}`"))
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
        if name == wanted || value.number().to_string() == wanted {
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

/// A value as text that [`parse`] accepts.
pub fn format(kind: &Kind, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::I32(number) => number.to_string(),
        Value::I64(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::F32(number) => number.to_string(),
        Value::F64(number) => {
            let mut text = String::new();
            write_real(*number, &mut text);
            text
        }
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

/// A value in the JSON form of protobuf.
pub fn to_json(kind: &Kind, value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::I32(number) => number.to_string(),
        Value::U32(number) => number.to_string(),
        Value::F32(number) => number.to_string(),
        Value::F64(_) => format(kind, value),
        Value::Message(message) => serde_json::to_string(message).unwrap_or_default(),
        Value::List(values) => {
            let texts: Vec<_> = values.iter().map(|value| to_json(kind, value)).collect();
            format!("[{}]", texts.join(","))
        }
        Value::Map(entries) => {
            let kind = match kind {
                Kind::Message(entry) => entry.map_entry_value_field().kind(),
                kind => kind.clone(),
            };
            let texts: BTreeMap<_, _> = entries
                .iter()
                .filter_map(|(key, value)| Some((key.as_str()?, to_json(&kind, value))))
                .collect();
            let texts: Vec<_> = texts
                .into_iter()
                .map(|(key, value)| format!("{}:{value}", quote(key)))
                .collect();
            format!("{{{}}}", texts.join(","))
        }
        // 64-bit integers are strings too: JavaScript would round them.
        value => quote(&format(kind, value)),
    }
}

/// Text as a JSON string.
pub fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}
