//! The file of rejected rows.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use csv::ByteRecord;

use super::{
    ImportArgs,
    reader::{Raw, Reject},
};
use crate::cli::transfer::{Format, STANDARD_STREAM, TransferError};

/// The file of rejected rows. CSV rows keep their columns, after `reject_line` and `reject_reason`,
/// so that the corrected file can be imported with the same arguments.
pub struct Rejects {
    pub path: PathBuf,
    /// The number of rejected rows.
    pub count: u64,
    /// The header of the imported CSV file.
    header: Option<ByteRecord>,
    file: Option<BufWriter<File>>,
}

/// A line of a rejects file in NDJSON.
#[derive(serde::Serialize)]
struct RejectedLine<'a> {
    line: u64,
    reason: &'a str,
    row: &'a str,
}

impl Rejects {
    /// Creates the file with the first rejected row. `header` is that of a CSV file.
    pub fn new(args: &ImportArgs, header: Option<ByteRecord>) -> Result<Self, TransferError> {
        let path = args.rejects.clone().unwrap_or_else(|| {
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
        let is_input = fs::canonicalize(&path)
            .is_ok_and(|path| fs::canonicalize(&args.file).is_ok_and(|input| input == path));
        if is_input {
            return Err(TransferError::Usage(format!(
                "--rejects {} is the file to import: use another file",
                path.display()
            )));
        }
        Ok(Self {
            path,
            count: 0,
            header,
            file: None,
        })
    }

    /// Writes rows and flushes them, so that the summary never counts a row that isn't in the file.
    pub fn write(&mut self, rejects: &[Reject]) -> Result<(), TransferError> {
        if rejects.is_empty() {
            return Ok(());
        }
        self.try_write(rejects)
            .map_err(|cause| TransferError::Write {
                path: self.path.clone(),
                cause,
            })?;
        self.count += rejects.len() as u64;
        Ok(())
    }

    fn try_write(&mut self, rejects: &[Reject]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut file = BufWriter::new(File::create(&self.path)?);
                if let Some(header) = &self.header {
                    write_record(&mut file, "reject_line", "reject_reason", header)?;
                }
                none.insert(file)
            }
        };
        for Reject { line, reason, raw } in rejects {
            match raw {
                Raw::Record(record) => write_record(file, &line.to_string(), reason, record)?,
                Raw::Line(bytes) => {
                    let rejected = RejectedLine {
                        line: *line,
                        reason,
                        row: &String::from_utf8_lossy(bytes),
                    };
                    serde_json::to_writer(&mut *file, &rejected)?;
                    file.write_all(b"\n")?;
                }
            }
        }
        file.flush()
    }
}

fn write_record(
    file: &mut impl io::Write,
    line: &str,
    reason: &str,
    record: &ByteRecord,
) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(file);
    writer.write_record(
        [line.as_bytes(), reason.as_bytes()]
            .into_iter()
            .chain(record),
    )?;
    writer.flush()
}
