//! Locations as rows of CSV.

use std::borrow::Cow;

use location_service::proto::location::v1::Location;
use prost_reflect::DynamicMessage;

use super::{
    TransferError,
    fields::{self, Field, Mapping, MappingSource},
    import::records::Record,
    names::normalize,
    row::{Parsed, RowBuilder, RowRules},
};

/// The first columns of a file of rejected rows: the line of the row in the original file, and why
/// it was rejected.
pub const REJECT_COLUMNS: [&str; 2] = ["reject_line", "reject_reason"];

/// The number of columns of an earlier file of rejected rows that a header begins with.
pub fn reject_columns(header: &[String]) -> usize {
    if header.starts_with(&REJECT_COLUMNS.map(str::to_owned)) {
        REJECT_COLUMNS.len()
    } else {
        0
    }
}

/// Appends a row, quoted where it is needed.
pub fn append_row<'a>(cells: impl IntoIterator<Item = &'a str>, delimiter: u8, out: &mut Vec<u8>) {
    let mut is_first = true;
    for cell in cells {
        if !is_first {
            out.push(delimiter);
        }
        let needs_quotes = cell
            .bytes()
            .any(|byte| byte == delimiter || matches!(byte, b'"' | b'\r' | b'\n'))
            || cell.starts_with(char::is_whitespace)
            || cell.ends_with(char::is_whitespace);
        if needs_quotes {
            out.push(b'"');
            out.extend(cell.replace('"', "\"\"").bytes());
            out.push(b'"');
        } else {
            out.extend(cell.bytes());
        }
        is_first = false;
    }
    out.push(b'\n');
}

/// The columns of a CSV file by the field that they hold.
#[derive(Debug)]
pub struct Columns {
    fields: Vec<Column<Field>>,
    /// The values of `--map` that are text, each after the number of mapped columns before it.
    texts: Vec<(usize, Field, String)>,
    /// The column that ids are derived from.
    id_from: Option<Column<String>>,
    /// The number of columns of an earlier file of rejected rows, which come first.
    pub skipped: usize,
    /// The column with the original lines of rejected rows.
    original_line: Option<usize>,
    /// The number of columns.
    width: usize,
    /// The number of columns up to the last one with a name. A row may lack the others.
    named: usize,
    /// Whether quoted cells keep the white space around their text, as in an export.
    is_exact: bool,
    rules: RowRules,
}

#[derive(Debug)]
struct Column<T> {
    index: usize,
    holds: T,
}

impl Columns {
    /// Matches the arguments with the header. A column with the name of a field holds that field,
    /// unless `map` or a constant provides it.
    pub fn new(
        header: &[String],
        map: &[Mapping],
        rules: RowRules,
        id_from: Option<&str>,
    ) -> Result<Self, TransferError> {
        let columns = Self::match_header(header, map, rules, id_from)?;
        columns.check_required(header)?;
        Ok(columns)
    }

    fn match_header(
        header: &[String],
        map: &[Mapping],
        rules: RowRules,
        id_from: Option<&str>,
    ) -> Result<Self, TransferError> {
        let mut fields: Vec<Column<Field>> = Vec::new();
        let mut texts = Vec::new();
        for Mapping { field, source } in map {
            let flag = format!("--map {field}=");
            match source {
                MappingSource::Column(column) => fields.push(Column {
                    index: find(header, column, &flag)?,
                    holds: field.clone(),
                }),
                MappingSource::Text(text) => {
                    texts.push((fields.len(), field.clone(), text.clone()));
                }
            }
        }
        let id_from = id_from
            .map(|column| {
                Ok(Column {
                    index: find(header, column, "--id-from ")?,
                    holds: column.to_owned(),
                })
            })
            .transpose()?;
        for (index, name) in header.iter().enumerate() {
            let Some(field) = Field::by_name(name) else {
                continue;
            };
            let is_given = (field.is_id() && id_from.is_some())
                || map.iter().any(|mapping| mapping.field == field)
                || rules.is_constant(&field);
            if is_given || field.is_output_only() {
                continue;
            }
            if let Some(other) = fields.iter().find(|column| column.holds == field) {
                return Err(TransferError::Usage(format!(
                    "the columns `{}` and `{name}` both hold {field}: choose one of them with \
                     --map {field}=COLUMN, or rename one",
                    header[other.index]
                )));
            }
            fields.push(Column {
                index,
                holds: field,
            });
        }
        Ok(Self {
            skipped: reject_columns(header),
            original_line: header
                .iter()
                .position(|name| name == REJECT_COLUMNS[0] && header.len() > 1),
            fields,
            texts,
            id_from,
            width: header.len(),
            named: header
                .iter()
                .rposition(|name| !name.trim().is_empty())
                .map_or(0, |last| last + 1),
            is_exact: header.iter().any(|name| name == "etag"),
            rules,
        })
    }

    /// Matches only the column of the ids.
    pub fn of_ids(
        header: &[String],
        rules: RowRules,
        id_from: Option<&str>,
    ) -> Result<Self, TransferError> {
        let mut columns = Self::match_header(header, &[], rules, id_from)?;
        columns.fields.retain(|column| column.holds.is_id());
        if columns.fields.is_empty() && columns.id_from.is_none() {
            return Err(TransferError::Usage(format!(
                "the file has no column `id`: name the column of the keys with --id-from; it has {}",
                header.join(", ")
            )));
        }
        Ok(columns)
    }

    fn check_required(&self, header: &[String]) -> Result<(), TransferError> {
        for required in Field::all().iter().filter(|field| field.is_required()) {
            let is_given = self.fields.iter().any(|column| column.holds == *required)
                || self.texts.iter().any(|(_, field, _)| field == required)
                || self.rules.is_constant(required);
            if !is_given {
                let suggestion = header
                    .iter()
                    .find(|name| {
                        Field::suggest(name).is_some_and(|name| name == required.to_string())
                    })
                    .map(|name| format!("did you mean --map {required}={}? ", shell_word(name)))
                    .unwrap_or_default();
                return Err(TransferError::Usage(format!(
                    "every location needs a {required}: {suggestion}name its column with --map \
                     {required}=COLUMN or set it with --set {required}=VALUE; the file has the \
                     columns {}",
                    header.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// The columns that aren't imported, each with the field that it may be meant for.
    pub fn unused(&self, header: &[String]) -> Vec<String> {
        let is_used = |index| {
            self.id_from
                .as_ref()
                .is_some_and(|column| column.index == index)
                || self.fields.iter().any(|column| column.index == index)
        };
        let is_known = |name: &str| {
            name.trim().is_empty()
                || REJECT_COLUMNS.contains(&name)
                || Field::by_name(name).is_some_and(|field| field.is_output_only())
        };
        header
            .iter()
            .enumerate()
            .filter(|(index, name)| !is_used(*index) && !is_known(name))
            .map(|(_, name)| match Field::suggest(name) {
                Some(field) if !self.holds(&field) => {
                    format!("{name} (did you mean --map {field}={}?)", shell_word(name))
                }
                _ => name.clone(),
            })
            .collect()
    }

    fn holds(&self, path: &str) -> bool {
        let is_path = |field: &Field| field.to_string() == path;
        self.fields.iter().any(|column| is_path(&column.holds))
            || self.texts.iter().any(|(_, field, _)| is_path(field))
            || self
                .rules
                .constants
                .iter()
                .any(|constant| is_path(&constant.field))
    }

    /// Whether a row is complete: the header's last columns may have no name, and a row may end in
    /// more delimiters.
    pub fn fits(&self, record: &Record) -> bool {
        record.len() >= self.named && is_blank_from(record, self.width)
    }

    /// Whether a row of so many cells is complete.
    pub fn is_width(&self, count: usize) -> bool {
        (self.named..=self.width).contains(&count)
    }

    /// Whether all cells are empty, apart from those that tell why the row was rejected.
    pub fn is_blank(&self, record: &Record) -> bool {
        is_blank_from(record, self.skipped)
    }

    /// Parses a row. An empty cell leaves its field unset.
    pub fn parse(&self, record: &Record) -> Result<Parsed, String> {
        if !self.fits(record) {
            let count = record.len().saturating_sub(self.skipped);
            return Err(format!(
                "has {count} {}, the header has {}",
                if count == 1 { "field" } else { "fields" },
                self.named.saturating_sub(self.skipped)
            ));
        }
        let mut row = RowBuilder::new(&self.rules);
        let mut texts = self.texts.iter().peekable();
        for (order, Column { index, holds }) in self.fields.iter().enumerate() {
            while let Some((_, field, text)) = texts.next_if(|(before, ..)| *before <= order) {
                row.text(field, text)?;
            }
            let cell = cell(record, *index).map_err(|error| format!("{holds} {error}"))?;
            let is_exact = self.is_exact && record.is_quoted(*index);
            let text = if is_exact { &*cell } else { cell.trim() };
            if text.trim().is_empty() && (!is_exact || text.is_empty()) {
                row.give(holds);
            } else {
                row.text(holds, text)?;
            }
        }
        for (_, field, text) in texts {
            row.text(field, text)?;
        }
        let id = match &self.id_from {
            None => None,
            Some(Column { index, holds }) => {
                let value = cell(record, *index).map_err(|error| format!("{holds} {error}"))?;
                let value = value.trim();
                if value.is_empty() {
                    return Err(format!("{holds} is empty, so no id can be derived from it"));
                }
                Some(value.to_owned())
            }
        };
        let mut parsed = row.finish(id.as_deref())?;
        if let Some(index) = self.original_line {
            let line = cell(record, index)?;
            parsed.original_line = line.trim().parse().ok();
        }
        Ok(parsed)
    }
}

fn is_blank_from(record: &Record, first: usize) -> bool {
    (first..record.len()).all(|index| record.bytes(index).trim_ascii().is_empty())
}

fn cell(record: &Record, index: usize) -> Result<Cow<'_, str>, String> {
    if index >= record.len() {
        return Ok(Cow::Borrowed(""));
    }
    record.text(index).ok_or_else(|| {
        "isn't UTF-8: if the file is from a spreadsheet, try --encoding windows-1252".to_owned()
    })
}

fn find(header: &[String], column: &str, flag: &str) -> Result<usize, TransferError> {
    let matching = |is_same: &dyn Fn(&str) -> bool| -> Vec<usize> {
        let named = header.iter().enumerate();
        named
            .filter(|(_, name)| is_same(name))
            .map(|(index, _)| index)
            .collect()
    };
    let mut matches = matching(&|name| name == column);
    if matches.is_empty() {
        let wanted = normalize(column);
        matches = matching(&|name| normalize(name) == wanted);
    }
    match matches[..] {
        [index] => Ok(index),
        [] => {
            let near = header
                .iter()
                .map(|name| {
                    (
                        strsim::damerau_levenshtein(&normalize(name), &normalize(column)),
                        name,
                    )
                })
                .filter(|(distance, _)| *distance <= column.len() / 3)
                .min()
                .map(|(_, name)| format!("did you mean `{name}`? "))
                .unwrap_or_default();
            Err(TransferError::Usage(format!(
                "{flag}{column}: the file has no such column; {near}it has {}",
                header.join(", ")
            )))
        }
        _ => Err(TransferError::Usage(format!(
            "{flag}{column}: the file has several columns of that name"
        ))),
    }
}

/// A name as one word of a command line.
fn shell_word(name: &str) -> String {
    if name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', "'\\''"))
    }
}

/// A location as a message.
pub fn to_dynamic(location: &Location) -> Result<DynamicMessage, TransferError> {
    let mut message = DynamicMessage::new(fields::descriptor().clone());
    message
        .transcode_from(location)
        .map_err(|error| TransferError::Internal(error.to_string()))?;
    Ok(message)
}
