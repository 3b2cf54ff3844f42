//! Reads a file of locations in batches of rows.

use std::{
    io::Read,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prost::Message as _;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use super::{
    ImportArgs, Purpose,
    dialect::{self, Header},
    input::{Input, TextEncoding},
    json_rows::JsonRows,
    records::Records,
    rows::{Batch, Derived, Part, Reject, Row},
    seen::Seen,
};
use crate::cli::transfer::{Format, TransferError, csv, ids::row_id, json, row::Parsed};

/// The longest row, in bytes, with the columns that aren't imported.
pub const MAX_ROW_BYTES: usize = 20 * 1024 * 1024;

/// The largest location, in bytes: the service limits requests to 3.5 MiB.
const MAX_LOCATION_BYTES: usize = 3 * 1024 * 1024;

/// The size at which a part of the file is complete, in bytes, whatever its number of rows.
const MAX_PART_BYTES: usize = 2 * 1024 * 1024;

/// The number of batches whose rows are sorted by id together. A batch of neighbours changes a fraction
/// of the pages of the database's indexes that as many random ids change.
const BATCHES_SORTED: usize = 4;

/// Maximum number of bytes of rows that are read and not done yet. They take several times as much
/// memory. A single row may have more.
const MAX_BYTES_IN_FLIGHT: usize = 4 * 1024 * 1024;

/// Sends batches until the end of the file, or until the receiver is dropped. Returns `rows`, which has
/// the number of blank rows and the ignored keys.
pub fn read_batches(
    mut rows: Rows,
    batch_size: usize,
    runtime: &Handle,
    sender: &mpsc::Sender<Result<Batch, TransferError>>,
) -> Rows {
    let memory = Arc::new(Semaphore::new(MAX_BYTES_IN_FLIGHT));
    loop {
        let part = match rows.next_part(BATCHES_SORTED * batch_size) {
            Ok(part) if part.is_empty() => return rows,
            Ok(part) => part,
            Err(error) => {
                // The receiver is gone if the import has ended early.
                let _ = sender.blocking_send(Err(error));
                return rows;
            }
        };
        let accepted = part.rows.iter().map(|row| &row.raw);
        let size: usize = accepted
            .chain(part.rejects.iter().map(|reject| &reject.raw))
            .map(Vec::len)
            .sum();
        let permit = acquire(runtime, &memory, size).map(Arc::new);
        for mut batch in part.into_batches(batch_size) {
            batch.memory.clone_from(&permit);
            if sender.blocking_send(Ok(batch)).is_err() {
                return rows;
            }
        }
        drop(permit);
        if size >= MAX_BYTES_IN_FLIGHT / 2 {
            // Wait until it is done, before the next part is read: two of this size don't fit.
            drop(acquire(runtime, &memory, MAX_BYTES_IN_FLIGHT));
        }
    }
}

fn acquire(runtime: &Handle, memory: &Arc<Semaphore>, size: usize) -> Option<OwnedSemaphorePermit> {
    let size = u32::try_from(size.min(MAX_BYTES_IN_FLIGHT)).ok()?;
    runtime
        .block_on(Arc::clone(memory).acquire_many_owned(size))
        .ok()
}

/// The rows of the input.
pub struct Rows {
    /// The header of a CSV file.
    pub header: Option<Header>,
    /// The columns that aren't imported.
    pub unused: Vec<String>,
    pub encoding: TextEncoding,
    source: Source,
    path: PathBuf,
    namespace: uuid::Uuid,
    purpose: Purpose,
    seen: Seen,
    /// The bytes of the file that were read.
    read: Arc<AtomicU64>,
    /// The bytes that earlier parts reported.
    counted: u64,
    /// Rows without any text, which are skipped.
    pub blank: u64,
    /// An error that ends the file, after the rows before it.
    failure: Option<TransferError>,
}

type Text = Box<dyn Read + Send>;

#[allow(clippy::large_enum_variant, reason = "there is only one value")]
enum Source {
    Csv {
        records: Records<Text>,
        columns: csv::Columns,
    },
    Json {
        rows: JsonRows<Text>,
        keys: json::Keys,
    },
}

/// A row that was read.
struct ReadRow {
    line: u64,
    raw: Vec<u8>,
    /// The parsed row, or why it is rejected.
    parsed: Result<Parsed, String>,
}

impl Rows {
    /// Reads and checks the header of a CSV file.
    pub fn new(input: Input, args: &ImportArgs) -> Result<Self, TransferError> {
        let rules = args.rules()?;
        let id_from = args.options.id_from.as_deref();
        let mut header = None;
        let mut unused = Vec::new();
        let source = match input.format {
            Format::Csv => {
                let mut records = Records::new(input.text);
                let delimiter = args.options.delimiter.or(input.delimiter);
                let known = dialect::Known::new(args);
                let found =
                    dialect::read_header(&mut records, delimiter, &known).map_err(|cause| {
                        TransferError::Read {
                            path: input.path.clone(),
                            cause,
                        }
                    })?;
                let columns = match args.purpose {
                    Purpose::Import => csv::Columns::new(&found.names, &args.map, rules, id_from)?,
                    Purpose::Delete => csv::Columns::of_ids(&found.names, rules, id_from)?,
                };
                if args.purpose == Purpose::Import {
                    unused = columns.unused(&found.names);
                }
                header = Some(found);
                Source::Csv { records, columns }
            }
            Format::Ndjson => Source::Json {
                rows: JsonRows::new(input.text),
                keys: match args.purpose {
                    Purpose::Import => json::Keys::new(&args.map, rules, id_from),
                    Purpose::Delete => json::Keys::of_ids(rules, id_from),
                },
            },
        };
        Ok(Self {
            header,
            unused,
            encoding: input.encoding,
            source,
            path: input.path,
            namespace: args.namespace(),
            purpose: args.purpose,
            seen: Seen::default(),
            read: input.read,
            counted: 0,
            blank: 0,
            failure: None,
        })
    }

    /// The keys of a JSON file that weren't imported.
    pub fn ignored_keys(&self) -> Vec<String> {
        match &self.source {
            Source::Csv { .. } => Vec::new(),
            Source::Json { keys, .. } => keys.ignored.iter().cloned().collect(),
        }
    }

    /// The next rows, up to `max_rows`. Empty at the end.
    pub fn next_part(&mut self, max_rows: usize) -> Result<Part, TransferError> {
        let mut part = Part::default();
        let mut size = 0;
        while self.failure.is_none()
            && part.rows.len() + part.rejects.len() < max_rows
            && size < MAX_PART_BYTES
        {
            match self.next_row() {
                Ok(Some(row)) => match self.add(row, &mut part) {
                    Ok(added) => size += added,
                    Err(error) => self.failure = Some(error),
                },
                Ok(None) => break,
                Err(error) => self.failure = Some(error),
            }
        }
        if part.is_empty()
            && let Some(failure) = self.failure.take()
        {
            return Err(failure);
        }
        let read = self.read.load(Ordering::Relaxed);
        part.bytes = read - self.counted;
        self.counted = read;
        Ok(part)
    }

    /// Adds a row to a part. Returns the size of the row.
    fn add(&mut self, row: ReadRow, part: &mut Part) -> Result<usize, TransferError> {
        let ReadRow { line, raw, parsed } = row;
        let size = raw.len();
        let identified = match parsed {
            Ok(parsed) => self.identify(line, parsed)?,
            Err(reason) => Err(reason),
        };
        let size = match identified {
            Ok((parsed, derived)) => {
                let size = size + parsed.location.encoded_len();
                part.rows.push(Box::new(Row {
                    line,
                    raw,
                    location: parsed.location,
                    given: parsed.given,
                    derived,
                }));
                size
            }
            Err(reason) => {
                part.rejects.push(Reject { line, reason, raw });
                size
            }
        };
        Ok(size)
    }

    /// Gives a row without an id one of its own, and checks that no other row has it.
    fn identify(
        &mut self,
        line: u64,
        mut parsed: Parsed,
    ) -> Result<Result<(Parsed, Option<Derived>), String>, TransferError> {
        let location = &mut parsed.location;
        let size = location.encoded_len();
        if size > MAX_LOCATION_BYTES {
            return Ok(Err(format!(
                "has a location of {size} bytes, over the limit of {MAX_LOCATION_BYTES}"
            )));
        }
        let mut derived = None;
        if location.id.is_empty() && self.purpose == Purpose::Delete {
            let reason = "has no id: set --id-from to the column or key that has one";
            return Ok(Err(reason.to_owned()));
        }
        if location.id.is_empty() {
            let line = parsed.original_line.unwrap_or(line);
            derived = Some(Derived { line, attempt: 0 });
            location.id = row_id(self.namespace, location, line, 0);
            if parsed.original_line.is_none() {
                return Ok(Ok((parsed, derived)));
            }
        }
        let first = self
            .seen
            .add(&location.id, line)
            .map_err(|cause| TransferError::Write {
                path: std::env::temp_dir(),
                cause,
            })?;
        Ok(match first {
            None => Ok((parsed, derived)),
            Some(first) => Err(format!(
                "has the same id {} as line {first}: line {line} is left out",
                location.id
            )),
        })
    }

    /// The next row. `None` at the end.
    fn next_row(&mut self) -> Result<Option<ReadRow>, TransferError> {
        let read_error = |cause| TransferError::Read {
            path: self.path.clone(),
            cause,
        };
        match &mut self.source {
            Source::Csv { records, columns } => loop {
                let Some(mut record) = records.next_record().map_err(read_error)? else {
                    return Ok(None);
                };
                if record.problem.is_none() && columns.is_blank(&record) {
                    self.blank += 1;
                    continue;
                }
                if record.problem.is_none() && record.is_multiline() && !columns.fits(&record) {
                    // A quoted cell may contain the next row.
                    let second = record.raw.split(|byte| matches!(byte, b'\n' | b'\r'));
                    let second = second.skip(1).find(|line| !line.is_empty());
                    let is_row = second
                        .and_then(|line| records.count_cells(line))
                        .is_some_and(|count| columns.is_width(count));
                    if is_row {
                        records.split_last(&mut record).map_err(read_error)?;
                        record.problem =
                            Some("has a quote that is closed in another row".to_owned());
                    }
                }
                let parsed = match &record.problem {
                    Some(problem) => Err(problem.clone()),
                    None => columns.parse(&record),
                };
                return Ok(Some(ReadRow {
                    line: record.line,
                    parsed,
                    raw: record.into_raw(columns.skipped),
                }));
            },
            Source::Json { rows, keys } => {
                let Some(row) = rows.next_row().map_err(read_error)? else {
                    return Ok(None);
                };
                let parsed = match row.problem {
                    Some(problem) => Err(problem),
                    None => std::str::from_utf8(&row.raw)
                        .map_err(|_| "isn't UTF-8: set --encoding".to_owned())
                        .and_then(|text| keys.parse(text.trim())),
                };
                Ok(Some(ReadRow {
                    line: row.line,
                    raw: row.raw,
                    parsed,
                }))
            }
        }
    }
}
