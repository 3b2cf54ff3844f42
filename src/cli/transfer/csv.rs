//! Locations as rows of CSV.

use csv::{ByteRecord, Writer};
use location_service::proto::location::v1::Location;
use prost_reflect::DynamicMessage;

use super::{
    TransferError,
    fields::{self, Constant, Field, Mapping},
    ids::derive_id,
};

/// Writes locations with one column for each field.
pub struct Encoder {
    fields: Vec<Field>,
}

impl Encoder {
    pub fn new() -> Self {
        Self {
            fields: Field::all(),
        }
    }

    /// Appends the header row.
    pub fn write_header(&self, out: &mut Vec<u8>) -> Result<(), TransferError> {
        append_record(self.fields.iter().map(ToString::to_string), out)
    }

    /// Appends the row of a location.
    pub fn write(&self, location: &DynamicMessage, out: &mut Vec<u8>) -> Result<(), TransferError> {
        append_record(self.fields.iter().map(|field| field.get(location)), out)
    }
}

fn append_record(
    cells: impl Iterator<Item = String>,
    out: &mut Vec<u8>,
) -> Result<(), TransferError> {
    let mut writer = Writer::from_writer(out);
    writer
        .write_record(cells.map(String::into_bytes))
        .and_then(|()| Ok(writer.flush()?))
        .map_err(|error| TransferError::Internal(error.to_string()))
}

/// The columns of a CSV file by the field that they hold.
#[derive(Debug)]
pub struct Columns {
    fields: Vec<Column<Field>>,
    /// The column that ids are derived from.
    id_from: Option<Column<String>>,
    constants: Vec<Constant>,
    positions: Vec<Position>,
    /// The number of columns.
    width: usize,
}

#[derive(Debug)]
struct Column<T> {
    index: usize,
    holds: T,
}

/// A position and its coordinates, all of which must be given together.
#[derive(Debug)]
struct Position {
    path: String,
    coordinates: Vec<Field>,
}

impl Columns {
    /// Matches the arguments with the header. A column with the name of a field holds that field,
    /// unless `map` or `constants` provide it.
    pub fn new(
        header: &[String],
        map: &[Mapping],
        constants: &[Constant],
        id_from: Option<&str>,
    ) -> Result<Self, TransferError> {
        let mut fields = Vec::new();
        for Mapping { field, column } in map {
            fields.push(Column {
                index: find(header, column, &format!("--map {field}="))?,
                holds: field.clone(),
            });
        }
        let id_from = id_from
            .map(|column| {
                Ok(Column {
                    index: find(header, column, "--id-from")?,
                    holds: column.to_owned(),
                })
            })
            .transpose()?;
        for name in header {
            let Ok(field) = name.parse::<Field>() else {
                continue;
            };
            let is_given = (field.is_id() && id_from.is_some())
                || map.iter().any(|mapping| mapping.field == field)
                || constants.iter().any(|constant| constant.field == field);
            if !is_given {
                fields.push(Column {
                    index: find(header, name, "column")?,
                    holds: field,
                });
            }
        }
        for required in Field::all().iter().filter(|field| field.is_required()) {
            let is_given = fields.iter().any(|column| column.holds == *required)
                || constants.iter().any(|constant| constant.field == *required);
            if !is_given {
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
            positions: positions(),
            width: header.len(),
        })
    }

    /// The names of the columns that aren't imported.
    pub fn unused<'a>(&self, header: &'a [String]) -> Vec<&'a str> {
        let is_used = |index| {
            self.id_from
                .as_ref()
                .is_some_and(|column| column.index == index)
                || self.fields.iter().any(|column| column.index == index)
        };
        header
            .iter()
            .enumerate()
            .filter(|(index, _)| !is_used(*index))
            .map(|(_, name)| name.as_str())
            .collect()
    }

    /// Parses a row. An empty cell leaves its field unset.
    pub fn parse(&self, record: &ByteRecord) -> Result<Location, String> {
        if record.len() != self.width {
            return Err(format!(
                "has {} fields, the header has {}",
                record.len(),
                self.width
            ));
        }
        let mut location = DynamicMessage::new(fields::descriptor().clone());
        let mut given = Vec::new();
        for Column { index, holds } in &self.fields {
            let text = cell(record, *index).map_err(|error| format!("{holds} {error}"))?;
            if text.is_empty() || holds.is_output_only() {
                continue;
            }
            holds
                .set(&mut location, text)
                .map_err(|error| format!("{holds} {error}"))?;
            given.push(holds);
        }
        fields::set_constants(&mut location, &self.constants)?;
        given.extend(self.constants.iter().map(|constant| &constant.field));
        for Position { path, coordinates } in &self.positions {
            let count = coordinates
                .iter()
                .filter(|part| given.contains(part))
                .count();
            if count != 0 && count != coordinates.len() {
                let names: Vec<_> = coordinates.iter().map(Field::name).collect();
                return Err(format!(
                    "{path} needs both {}, or neither",
                    names.join(" and ")
                ));
            }
        }
        let mut location: Location = location.transcode_to().map_err(|error| error.to_string())?;
        if let Some(Column { index, holds }) = &self.id_from {
            let value = cell(record, *index).map_err(|error| format!("{holds} {error}"))?;
            if value.is_empty() {
                return Err(format!("{holds} is empty, so no id can be derived from it"));
            }
            location.id = derive_id(value);
        }
        Ok(location)
    }
}

fn find(header: &[String], column: &str, flag: &str) -> Result<usize, TransferError> {
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
}

fn cell(record: &ByteRecord, index: usize) -> Result<&str, String> {
    std::str::from_utf8(record.get(index).unwrap_or_default()).map_err(|_| "isn't UTF-8".to_owned())
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
