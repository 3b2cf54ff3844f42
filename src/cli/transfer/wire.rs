//! Values as Protocol Buffers encode them.
//!
//! A row is encoded field by field and decoded as a location. Unlike a [`prost_reflect`] message, this
//! keeps negative zero, and costs a fraction of the time.

use prost::encoding::{
    bool, bytes, double, fixed32, fixed64, float, int32, int64, message, sfixed32, sfixed64,
    sint32, sint64, string, uint32, uint64,
};
use prost_reflect::{FieldDescriptor, Kind, MapKey, Value};

/// Appends a field with its value. `parents` are the messages that contain it, from the outside in.
pub fn append(
    parents: &[FieldDescriptor],
    field: &FieldDescriptor,
    value: &Value,
    out: &mut Vec<u8>,
) {
    if let [parent, rest @ ..] = parents {
        // The parts of a message are merged when they are decoded.
        let mut inner = Vec::new();
        append(rest, field, value, &mut inner);
        bytes::encode(parent.number(), &inner, out);
        return;
    }
    let (tag, kind) = (field.number(), field.kind());
    match value {
        Value::List(values) => {
            for value in values {
                append_single(tag, &kind, value, out);
            }
        }
        Value::Map(entries) => {
            let Kind::Message(entry) = kind else {
                return;
            };
            let value_field = entry.map_entry_value_field();
            for (key, value) in entries {
                let mut inner = Vec::new();
                if let MapKey::String(key) = key {
                    string::encode(entry.map_entry_key_field().number(), key, &mut inner);
                }
                append(&[], &value_field, value, &mut inner);
                bytes::encode(tag, &inner, out);
            }
        }
        value => append_single(tag, &kind, value, out),
    }
}

fn append_single(tag: u32, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match (value, kind) {
        (Value::String(text), _) => string::encode(tag, text, out),
        (Value::Bytes(value), _) => bytes::encode(tag, value, out),
        (Value::Message(value), _) => message::encode(tag, value, out),
        (Value::Bool(value), _) => bool::encode(tag, value, out),
        (Value::F32(number), _) => float::encode(tag, number, out),
        (Value::F64(number), _) => double::encode(tag, number, out),
        (Value::I32(number), Kind::Sint32) => sint32::encode(tag, number, out),
        (Value::I32(number), Kind::Sfixed32) => sfixed32::encode(tag, number, out),
        (Value::I32(number) | Value::EnumNumber(number), _) => int32::encode(tag, number, out),
        (Value::I64(number), Kind::Sint64) => sint64::encode(tag, number, out),
        (Value::I64(number), Kind::Sfixed64) => sfixed64::encode(tag, number, out),
        (Value::I64(number), _) => int64::encode(tag, number, out),
        (Value::U32(number), Kind::Fixed32) => fixed32::encode(tag, number, out),
        (Value::U32(number), _) => uint32::encode(tag, number, out),
        (Value::U64(number), Kind::Fixed64) => fixed64::encode(tag, number, out),
        (Value::U64(number), _) => uint64::encode(tag, number, out),
        // Neither nests.
        (Value::List(_) | Value::Map(_), _) => {}
    }
}
