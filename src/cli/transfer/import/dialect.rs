//! The header of a CSV file, and the delimiter that it shows.

use std::io::{self, Read};

use super::{ImportArgs, records::Records};
use crate::cli::transfer::{
    csv::reject_columns,
    fields::{Field, MappingSource},
    names::normalize,
};

/// The delimiters that are guessed.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The header row.
#[derive(Debug, Clone)]
pub struct Header {
    pub names: Vec<String>,
    /// The row as it is in the file, without the columns of an earlier file of rejected rows.
    pub raw: Vec<u8>,
    pub delimiter: u8,
    /// A line before it, such as `sep=;`.
    pub separator_line: Option<Vec<u8>>,
}

/// The names that a header may have.
pub struct Known {
    columns: Vec<String>,
}

impl Known {
    pub fn new(args: &ImportArgs) -> Self {
        let mapped = args.map.iter().filter_map(|mapping| match &mapping.source {
            MappingSource::Column(column) => Some(normalize(column)),
            MappingSource::Text(_) => None,
        });
        Self {
            columns: mapped
                .chain(args.options.id_from.as_deref().map(normalize))
                .collect(),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.columns.contains(&normalize(name)) || Field::by_name(name).is_some()
    }
}

/// Reads the header, and sets the delimiter of the records: the given one, that of a line `sep=`, or
/// the one that finds the most known names in the header.
pub fn read_header<R: Read>(
    records: &mut Records<R>,
    given: Option<u8>,
    known: &Known,
) -> io::Result<Header> {
    let mut separator_line = None;
    let mut delimiter = given;
    loop {
        let Some(line) = records.peek_line()?.map(<[u8]>::to_vec) else {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file has no header",
            ));
        };
        if let Some(separator) = separator(&line).filter(|_| separator_line.is_none()) {
            delimiter = delimiter.or(Some(separator));
            separator_line = Some(line);
        } else if !line
            .iter()
            .all(|byte| byte.is_ascii_whitespace() || DELIMITERS.contains(byte))
        {
            let delimiter = match delimiter {
                Some(delimiter) => delimiter,
                None => guess(records, known)?,
            };
            records.set_delimiter(delimiter);
            break;
        }
        records.skip_line()?;
    }
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let record = records
        .next_record()?
        .ok_or_else(|| invalid("the file has no header".to_owned()))?;
    if let Some(problem) = &record.problem {
        return Err(invalid(format!(
            "the header, line {}, {problem}",
            record.line
        )));
    }
    let names: Option<Vec<String>> = (0..record.len())
        .map(|index| Some(record.text(index)?.trim().to_owned()))
        .collect();
    let names = names.ok_or_else(|| {
        invalid(
            "the header isn't UTF-8: set --encoding, such as UTF-16LE or windows-1252".to_owned(),
        )
    })?;
    if names.iter().any(|name| name.contains('\0')) {
        return Err(invalid(
            "the header has NUL characters: set --encoding UTF-16LE or UTF-16BE".to_owned(),
        ));
    }
    let skipped = reject_columns(&names);
    Ok(Header {
        raw: record.raw_from(skipped).to_vec(),
        names,
        delimiter: records.delimiter(),
        separator_line,
    })
}

/// The delimiter of a line such as `sep=;`, which spreadsheets read.
fn separator(line: &[u8]) -> Option<u8> {
    let line = line.strip_prefix(b"\"").unwrap_or(line);
    let line = line.strip_suffix(b"\"").unwrap_or(line);
    let (name, separator) = line.split_at_checked(4)?;
    match separator {
        [separator] if name.eq_ignore_ascii_case(b"sep=") => Some(*separator),
        _ => None,
    }
}

/// The delimiter with which the header is well formed and has the most known names, and then the most
/// names.
fn guess<R: Read>(records: &mut Records<R>, known: &Known) -> io::Result<u8> {
    let mut best = (DELIMITERS[0], (0, 0));
    for delimiter in DELIMITERS {
        let Some(record) = records.peek_record(delimiter)? else {
            continue;
        };
        let names = (0..record.len()).filter_map(|index| record.text(index));
        let found = names.filter(|name| known.has(name)).count();
        // The first of equals.
        if (found, record.len()) > best.1 {
            best = (delimiter, (found, record.len()));
        }
    }
    Ok(best.0)
}
