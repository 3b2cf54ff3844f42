//! Reads a file of locations in batches of rows.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use ::csv::ByteRecord;
use location_service::proto::location::v1::{CreateLocationRequest, Location};
use prost::Message as _;
use tokio::sync::mpsc;

use super::ImportArgs;
use crate::cli::transfer::{
    Compression, Format, STANDARD_STREAM, TransferError, csv, fields::Constant, ids::creation, json,
};

/// The longest row, in bytes: about ten times the largest location that the service accepts.
pub(super) const MAX_ROW_BYTES: usize = 1024 * 1024;

/// The size at which a batch is complete, in bytes, whatever its number of rows. The service limits
/// requests to 3.5 MiB.
const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A row as it is in the file.
#[derive(Debug, Clone)]
pub enum Raw {
    Record(ByteRecord),
    Line(Vec<u8>),
}

impl Raw {
    fn len(&self) -> usize {
        match self {
            Self::Record(record) => record.as_slice().len(),
            Self::Line(line) => line.len(),
        }
    }
}

/// A row that was read.
struct ParsedRow {
    /// The first line of the row, counted from 1.
    line: u64,
    raw: Raw,
    /// The location, or why the row is rejected.
    location: Result<Location, String>,
}

/// A row to create.
#[derive(Debug)]
pub struct Row {
    pub line: u64,
    pub raw: Raw,
    pub request: CreateLocationRequest,
}

impl Row {
    pub fn has_id(&self) -> bool {
        !self.request.location_id.is_empty()
    }

    pub fn reject(self, reason: String) -> Reject {
        Reject {
            line: self.line,
            reason,
            raw: self.raw,
        }
    }
}

/// A rejected row.
#[derive(Debug)]
pub struct Reject {
    pub line: u64,
    pub reason: String,
    pub raw: Raw,
}

/// The rows of a part of the file: those to create together, and those that are rejected already.
#[derive(Debug, Default)]
pub struct Batch {
    pub rows: Vec<Row>,
    pub rejects: Vec<Reject>,
    /// The size of the part.
    pub bytes: u64,
}

/// Sends batches until the end of the file, or until the receiver is dropped.
pub fn read_batches(
    mut rows: Rows,
    batch_size: usize,
    sender: &mpsc::Sender<Result<Batch, TransferError>>,
) {
    loop {
        let batch = rows.next_batch(batch_size);
        let is_last = match &batch {
            Ok(batch) if batch.rows.is_empty() && batch.rejects.is_empty() => return,
            Ok(_) => false,
            Err(_) => true,
        };
        if sender.blocking_send(batch).is_err() || is_last {
            return;
        }
    }
}

/// An open file, or stdin.
pub struct Input {
    /// The size of a regular file, in bytes.
    pub size: Option<u64>,
    file: File,
    path: PathBuf,
    format: Format,
}

impl Input {
    pub fn open(args: &ImportArgs) -> Result<Self, TransferError> {
        let path = &args.file;
        if let Some(compression) = Compression::of(path) {
            return Err(TransferError::Usage(format!(
                "{0} is compressed: run {1} {0} | location-service import - --format csv",
                path.display(),
                compression.decompress
            )));
        }
        let format = args.format.or_else(|| Format::guess(path)).ok_or_else(|| {
            TransferError::Usage("set the format: --format csv or --format ndjson".to_owned())
        })?;
        if format == Format::Ndjson && !args.map.is_empty() {
            return Err(TransferError::Usage(
                "--map names CSV columns, but the format is NDJSON".to_owned(),
            ));
        }
        let read_error = |cause| TransferError::Read {
            path: path.clone(),
            cause,
        };
        let file = if path == Path::new(STANDARD_STREAM) {
            io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(path)
        }
        .map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if metadata.is_dir() {
            return Err(read_error(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self {
            size: metadata.is_file().then_some(metadata.len()),
            file,
            path: path.clone(),
            format,
        })
    }
}

/// The rows of the input.
pub struct Rows {
    /// The header of a CSV file.
    pub header: Option<ByteRecord>,
    source: Source,
    path: PathBuf,
    constants: Vec<Constant>,
    id_from: Option<String>,
    /// The end of the last batch, in bytes.
    position: u64,
}

#[allow(clippy::large_enum_variant, reason = "there is only one value")]
enum Source {
    Csv {
        reader: ::csv::Reader<Lines<File>>,
        columns: csv::Columns,
    },
    Ndjson {
        reader: BufReader<File>,
        line: u64,
        position: u64,
    },
}

impl Rows {
    /// Reads and checks the header of a CSV file.
    pub fn new(input: Input, args: &ImportArgs) -> Result<Self, TransferError> {
        let mut csv_header = None;
        let source = match input.format {
            Format::Csv => {
                let mut reader = ::csv::ReaderBuilder::new()
                    // The number of fields is checked for each row: one bad row doesn't end the
                    // import.
                    .flexible(true)
                    .from_reader(Lines::new(input.file));
                let header: Vec<_> = reader
                    .headers()
                    .map_err(|error| read_error(&input.path, error, 1))?
                    .iter()
                    .map(str::to_owned)
                    .collect();
                csv_header = Some(ByteRecord::from(header.clone()));
                let id_from = args.id_from.as_deref();
                let columns = csv::Columns::new(&header, &args.map, &args.set, id_from)?;
                let unused = columns.unused(&header);
                if !unused.is_empty() {
                    eprintln!("columns that aren't imported: {}", unused.join(", "));
                }
                Source::Csv { reader, columns }
            }
            Format::Ndjson => Source::Ndjson {
                reader: BufReader::new(input.file),
                line: 0,
                position: 0,
            },
        };
        Ok(Self {
            header: csv_header,
            source,
            path: input.path,
            constants: args.set.clone(),
            id_from: args.id_from.clone(),
            position: 0,
        })
    }

    /// The next rows, up to `batch_size`. Empty at the end.
    pub fn next_batch(&mut self, batch_size: usize) -> Result<Batch, TransferError> {
        let mut batch = Batch::default();
        let mut lines_by_id = HashMap::new();
        let mut size = 0;
        while batch.rows.len() + batch.rejects.len() < batch_size && size < MAX_BATCH_BYTES {
            let Some(ParsedRow {
                line,
                raw,
                location,
            }) = self.next_row()?
            else {
                break;
            };
            size += raw.len();
            let request = location.map(|location| creation(location, line));
            match request {
                Ok(request) => {
                    size += request.encoded_len();
                    let row = Row { line, raw, request };
                    let id = row.request.location_id.to_ascii_lowercase();
                    if let Some(first) = lines_by_id.get(&id).filter(|_| !id.is_empty()) {
                        let reason = format!("has the same id {id} as line {first}");
                        batch.rejects.push(row.reject(reason));
                    } else {
                        lines_by_id.insert(id, line);
                        batch.rows.push(row);
                    }
                }
                Err(reason) => batch.rejects.push(Reject { line, reason, raw }),
            }
        }
        let position = match &self.source {
            Source::Csv { reader, .. } => reader.position().byte(),
            Source::Ndjson { position, .. } => *position,
        };
        batch.bytes = position - self.position;
        self.position = position;
        Ok(batch)
    }

    /// The next row. `None` at the end.
    fn next_row(&mut self) -> Result<Option<ParsedRow>, TransferError> {
        match &mut self.source {
            Source::Csv { reader, columns } => {
                let mut record = ByteRecord::new();
                reader.get_mut().left = MAX_ROW_BYTES;
                let first_line = reader.get_ref().line + 1;
                if !reader
                    .read_byte_record(&mut record)
                    .map_err(|error| read_error(&self.path, error, first_line))?
                {
                    return Ok(None);
                }
                let breaks = record.as_slice().split(|byte| *byte == b'\n').count() - 1;
                Ok(Some(ParsedRow {
                    line: reader.get_ref().line - breaks as u64,
                    location: columns.parse(&record),
                    raw: Raw::Record(record),
                }))
            }
            Source::Ndjson {
                reader,
                line,
                position,
            } => loop {
                let Some(mut raw) =
                    read_line(reader, position).map_err(|cause| TransferError::Read {
                        path: self.path.clone(),
                        cause,
                    })?
                else {
                    return Ok(None);
                };
                *line += 1;
                if *line == 1 && raw.starts_with(BYTE_ORDER_MARK) {
                    raw.drain(..BYTE_ORDER_MARK.len());
                }
                if raw.trim_ascii().is_empty() {
                    continue;
                }
                let location = if raw.len() > MAX_ROW_BYTES {
                    Err(format!("is longer than {MAX_ROW_BYTES} bytes"))
                } else {
                    std::str::from_utf8(&raw)
                        .map_err(|_| "isn't UTF-8".to_owned())
                        .and_then(|text| {
                            json::parse(text.trim(), &self.constants, self.id_from.as_deref())
                        })
                };
                return Ok(Some(ParsedRow {
                    line: *line,
                    raw: Raw::Line(raw),
                    location,
                }));
            },
        }
    }
}

/// Reads the next line without its end, truncated to one byte more than [`MAX_ROW_BYTES`]. Advances
/// `position` by the whole line.
fn read_line(reader: &mut BufReader<File>, position: &mut u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = MAX_ROW_BYTES as u64 + 1;
    *position += reader.take(limit).read_until(b'\n', &mut line)? as u64;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else {
        *position += reader.skip_until(b'\n')? as u64;
    }
    Ok(Some(line))
}

fn read_error(path: &Path, error: ::csv::Error, line: u64) -> TransferError {
    let cause = match error.into_kind() {
        ::csv::ErrorKind::Io(cause) => cause,
        ::csv::ErrorKind::Utf8 { err, .. } => io::Error::new(io::ErrorKind::InvalidData, err),
        other => io::Error::other(format!("{other:?}")),
    };
    TransferError::Read {
        path: path.to_owned(),
        cause: io::Error::new(cause.kind(), format!("line {line}: {cause}")),
    }
}

/// Passes a file to the CSV reader line by line, and fails after `left` bytes.
///
/// The line numbers of the CSV reader itself are off in files with `\r\n`, and it would read
/// everything after an unclosed quote as one field.
struct Lines<R> {
    inner: BufReader<R>,
    left: usize,
    /// The line that was passed last, counted from 1.
    line: u64,
    is_at_line_start: bool,
}

impl<R: Read> Lines<R> {
    fn new(inner: R) -> Self {
        Self {
            inner: BufReader::new(inner),
            left: MAX_ROW_BYTES,
            line: 0,
            is_at_line_start: true,
        }
    }
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the row has more than {MAX_ROW_BYTES} bytes: is a quote not closed?"),
            ));
        }
        let available = self.inner.fill_buf()?;
        let line = available.split_inclusive(|byte| *byte == b'\n').next();
        let Some(line) = line else {
            return Ok(0);
        };
        let count = line.len().min(buffer.len());
        buffer[..count].copy_from_slice(&line[..count]);
        self.line += u64::from(self.is_at_line_start);
        self.is_at_line_start = line[..count].ends_with(b"\n");
        self.inner.consume(count);
        self.left = self.left.saturating_sub(count);
        Ok(count)
    }
}
