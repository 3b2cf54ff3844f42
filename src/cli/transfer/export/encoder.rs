//! Locations as the rows of a file.

use location_service::proto::location::v1::Location;
use prost_reflect::Kind;

use super::Form;
use crate::cli::transfer::{
    Format, TransferError,
    csv::{append_row, to_dynamic},
    fields::Field,
    json,
};

/// Encodes locations in a format.
pub struct Encoder {
    form: Form,
    fields: Vec<Field>,
    has_mark: bool,
    escapes_formulas: bool,
    formulas: u64,
}

impl Encoder {
    /// Encodes the given fields, or all of them.
    pub fn new(form: Form, columns: Vec<Field>, has_mark: bool, escapes_formulas: bool) -> Self {
        let mut fields = if columns.is_empty() {
            Field::all()
        } else {
            columns
        };
        if form.format == Format::Ndjson {
            // The fields of a message stand together.
            fields.sort_by_key(Field::index);
            fields.dedup();
        }
        Self {
            form,
            fields,
            has_mark,
            escapes_formulas,
            formulas: 0,
        }
    }

    /// The number of cells that spreadsheets run as formulas, and that weren't escaped.
    pub fn formulas(&self) -> u64 {
        self.formulas
    }

    /// The start of a file.
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.form.format == Format::Csv {
            if self.has_mark {
                out.extend("\u{feff}".bytes());
            }
            let names: Vec<_> = self.fields.iter().map(ToString::to_string).collect();
            append_row(
                names.iter().map(String::as_str),
                self.form.delimiter,
                &mut out,
            );
        }
        out
    }

    /// Appends a row.
    pub fn append(&mut self, location: &Location, out: &mut Vec<u8>) -> Result<(), TransferError> {
        let message = to_dynamic(location)?;
        if self.form.format == Format::Ndjson {
            json::write(&message, &self.fields, out);
            return Ok(());
        }
        let mut cells: Vec<_> = self
            .fields
            .iter()
            .map(|field| field.get(&message))
            .collect();
        for (cell, field) in cells.iter_mut().zip(&self.fields) {
            let is_text = matches!(field.kind(), Kind::String | Kind::Message(_));
            if is_text && cell.starts_with(['=', '+', '-', '@', '\t', '\r']) {
                if self.escapes_formulas {
                    cell.insert(0, '\'');
                } else {
                    self.formulas += 1;
                }
            }
        }
        append_row(cells.iter().map(String::as_str), self.form.delimiter, out);
        Ok(())
    }
}
