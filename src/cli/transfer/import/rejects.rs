//! The file of rejected rows.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{ImportArgs, dialect::Header, input::TextEncoding, rows::Reject};
use crate::cli::transfer::{
    Format, STANDARD_STREAM, TransferError,
    csv::{REJECT_COLUMNS, append_row},
    json::REJECT_ROW,
    json_text, values,
};

/// The file of rejected rows, in the format, the dialect and the encoding of the input, so that the
/// corrected file can be imported with the same arguments. CSV rows are as they were, after
/// `reject_line` and `reject_reason`; JSON rows have these as keys.
pub struct Rejects {
    pub path: PathBuf,
    /// The number of rejected rows.
    pub count: u64,
    /// The header of the imported CSV file.
    header: Option<Header>,
    encoding: TextEncoding,
    file: Option<BufWriter<File>>,
}

impl Rejects {
    /// Checks the path, and removes the file of an earlier run. The file is created with the first
    /// rejected row. `header` is that of a CSV file.
    pub fn new(
        args: &ImportArgs,
        header: Option<Header>,
        encoding: TextEncoding,
    ) -> Result<Self, TransferError> {
        let path = args.options.rejects.clone().unwrap_or_else(|| {
            let mut name = if args.file == Path::new(STANDARD_STREAM) {
                "import".into()
            } else {
                args.file.clone().into_os_string()
            };
            name.push(".rejects.");
            name.push(match header {
                Some(_) => Format::Csv.extension(),
                None => Format::Ndjson.extension(),
            });
            name.into()
        });
        if is_input(&path, &args.file) {
            return Err(TransferError::Usage(format!(
                "--rejects {} is the file that is read: use another file",
                path.display()
            )));
        }
        if let Some(folder) = path.parent()
            && !folder.as_os_str().is_empty()
            && !folder.is_dir()
        {
            return Err(TransferError::Usage(format!(
                "--rejects {}: the folder {} doesn't exist",
                path.display(),
                folder.display()
            )));
        }
        let is_stale = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if is_stale {
            fs::remove_file(&path).map_err(|cause| TransferError::Write {
                path: path.clone(),
                cause,
            })?;
        }
        Ok(Self {
            path,
            count: 0,
            header,
            encoding,
            file: None,
        })
    }

    /// Writes a row. [`Rejects::flush`] completes it.
    pub fn write(&mut self, reject: &Reject) -> Result<(), TransferError> {
        let written = self.try_write(reject);
        self.check(written)?;
        self.count += 1;
        Ok(())
    }

    /// Flushes the rows, so that the summary never counts a row that isn't in the file.
    pub fn flush(&mut self) -> Result<(), TransferError> {
        let flushed = self.file.as_mut().map_or(Ok(()), io::Write::flush);
        self.check(flushed)
    }

    fn check(&self, result: io::Result<()>) -> Result<(), TransferError> {
        result.map_err(|cause| TransferError::Write {
            path: self.path.clone(),
            cause,
        })
    }

    fn try_write(&mut self, reject: &Reject) -> io::Result<()> {
        let encoding = self.encoding;
        let delimiter = self.header.as_ref().map_or(b',', |header| header.delimiter);
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut file = BufWriter::new(File::create(&self.path)?);
                file.write_all(&encoding.mark())?;
                if let Some(header) = &self.header {
                    if let Some(line) = &header.separator_line {
                        write_encoded(&mut file, encoding, line)?;
                        write_encoded(&mut file, encoding, b"\n")?;
                    }
                    let [line, reason] = REJECT_COLUMNS;
                    write_record(&mut file, encoding, delimiter, [line, reason], &header.raw)?;
                }
                none.insert(file)
            }
        };
        if self.header.is_some() {
            let line = reject.line.to_string();
            let first = [&*line, &reject.reason];
            write_record(file, encoding, delimiter, first, &reject.raw)
        } else {
            let raw = String::from_utf8_lossy(&reject.raw);
            write_json(file, encoding, reject.line, &reject.reason, &raw)
        }
    }
}

/// Whether a path leads to the input file, perhaps by another name.
fn is_input(path: &Path, input: &Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    let input = if input == Path::new(STANDARD_STREAM) {
        fs::metadata("/dev/stdin")
    } else {
        fs::metadata(input)
    };
    input.is_ok_and(|input| {
        metadata.is_file() && (input.dev(), input.ino()) == (metadata.dev(), metadata.ino())
    })
}

fn write_record(
    file: &mut impl io::Write,
    encoding: TextEncoding,
    delimiter: u8,
    first: [&str; 2],
    raw: &[u8],
) -> io::Result<()> {
    let mut cells = Vec::new();
    append_row(first, delimiter, &mut cells);
    cells.pop();
    cells.push(delimiter);
    write_encoded(file, encoding, &cells)?;
    write_encoded(file, encoding, raw)?;
    write_encoded(file, encoding, b"\n")
}

fn write_encoded(file: &mut impl io::Write, encoding: TextEncoding, text: &[u8]) -> io::Result<()> {
    if encoding.is_utf8() {
        return file.write_all(text);
    }
    file.write_all(&encoding.encode(&String::from_utf8_lossy(text)))
}

/// Writes a rejected JSON row as one line: with two more keys if it is an object, otherwise as text
/// in one.
fn write_json(
    file: &mut impl io::Write,
    encoding: TextEncoding,
    line: u64,
    reason: &str,
    row: &str,
) -> io::Result<()> {
    let mut write = |text: &str| write_encoded(file, encoding, text.as_bytes());
    let [line_key, reason_key] = REJECT_COLUMNS;
    let reason = values::quote(reason);
    write(&format!(
        "{{\"{line_key}\":{line},\"{reason_key}\":{reason}"
    ))?;
    let row = row.trim();
    let members = json_text::check(row)
        .ok()
        .and_then(|()| json_text::members(row));
    match members {
        None => write(&format!(",\"{REJECT_ROW}\":{}", values::quote(row)))?,
        Some(members) => {
            let added = |key: &str| REJECT_COLUMNS.contains(&key);
            for (key, value) in members.iter().filter(|(key, _)| !added(key)) {
                write(&format!(",{}:", values::quote(key)))?;
                // Line breaks between the parts of a value aren't a part of it.
                if value.contains(['\n', '\r']) {
                    write(&value.replace(['\n', '\r'], " "))?;
                } else {
                    write(value)?;
                }
            }
        }
    }
    write("}\n")
}
