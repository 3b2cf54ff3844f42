//! Locations as lines of NDJSON, in the JSON form of protobuf.

use std::collections::BTreeMap;

use location_service::proto::location::v1::Location;
use prost_reflect::DynamicMessage;
use serde_json::Value;

use super::{
    TransferError,
    fields::{self, Constant},
    ids::derive_id,
};

/// Parses a line. Keys that aren't fields of a location are refused, except `id_from`, the key that
/// the id is derived from.
pub fn parse(
    line: &str,
    constants: &[Constant],
    id_from: Option<&str>,
) -> Result<Location, String> {
    let mut id = None;
    let mut message = if let Some(key) = id_from {
        let mut row: BTreeMap<String, Value> =
            serde_json::from_str(line).map_err(|error| describe(&error))?;
        let value = match row.get(key) {
            Some(Value::String(value)) if !value.is_empty() => value.clone(),
            Some(Value::Number(value)) => value.to_string(),
            _ => {
                return Err(format!(
                    "{key} is neither text nor a number, so no id can be derived from it"
                ));
            }
        };
        id = Some(derive_id(&value));
        let descriptor = fields::descriptor();
        let is_field = descriptor.get_field_by_json_name(key).is_some()
            || descriptor.get_field_by_name(key).is_some();
        if !is_field {
            row.remove(key);
        }
        decode(Value::from_iter(row))?
    } else {
        let mut deserializer = serde_json::Deserializer::from_str(line);
        let message = decode(&mut deserializer)?;
        deserializer.end().map_err(|error| describe(&error))?;
        message
    };
    fields::set_constants(&mut message, constants)?;
    let mut location: Location = message.transcode_to().map_err(|error| error.to_string())?;
    if let Some(id) = id {
        location.id = id;
    }
    Ok(location)
}

fn decode<'de, D>(deserializer: D) -> Result<DynamicMessage, String>
where
    D: serde::Deserializer<'de, Error = serde_json::Error>,
{
    DynamicMessage::deserialize(fields::descriptor().clone(), deserializer)
        .map_err(|error| describe(&error))
}

/// Appends a location as one line.
pub fn write(location: &DynamicMessage, out: &mut Vec<u8>) -> Result<(), TransferError> {
    serde_json::to_writer(&mut *out, location)
        .map_err(|error| TransferError::Internal(error.to_string()))?;
    out.push(b'\n');
    Ok(())
}

/// The text of the error without its line, which is always the first: the parser sees one line.
fn describe(error: &serde_json::Error) -> String {
    error
        .to_string()
        .replace(" at line 1 column ", " at column ")
        .replace(" at line 0 column 0", "")
}
