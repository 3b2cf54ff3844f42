//! `location-service import`: a file's rows become locations.
//!
//! A thread reads and parses rows into batches, through a channel that holds few of them; this task
//! keeps several calls in flight and tallies their outcomes. A batch is created whole or not at all,
//! so what the service refuses is taken out and the rest is sent again. Every call may be repeated:
//! a row's id, or its request id, keeps it from being created twice.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use csv::ByteRecord;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use indicatif::HumanCount;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{
    Client, ConnectionArgs, EXIT_INTERRUPTED, Format, Interrupts, STANDARD_STREAM, TransferError,
    progress::{Progress, describe_rate},
    rows::{CsvColumns, Field, Json, creation, parse_ranges},
};
use crate::proto::location::v1::{BatchCreateLocationsRequest, CreateLocationRequest, Location};

/// The longest row, in bytes. The largest location that the service takes has about a tenth of it.
const MAX_ROW_BYTES: usize = 1024 * 1024;
/// A batch with this many bytes is sent, however few rows it has: services refuse over 4 MiB.
const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How many batches wait between the reader and the calls.
const WAITING_BATCHES: usize = 2;

/// Creates locations from the rows of a file, through any running service.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Running an import again completes it and creates nothing twice: a row whose id is already there is \
counted and left alone. Rows without an id are recognised by their line and content, for 24 hours.

Examples:
  location-service import depots.ndjson
  zcat cities.csv.gz | location-service import - --format csv \\
      --set type=storage --map capacity=population --id-from geoname_id")]
pub struct ImportArgs {
    /// The file to read; - for standard input
    #[arg(value_name = "FILE", default_value = STANDARD_STREAM)]
    pub file: PathBuf,

    /// What the file holds [default: what its extension says]
    #[arg(long)]
    pub format: Option<Format>,

    /// Takes a field from a CSV column. Fields are paths such as display_name,
    /// address.region_code or labels.KEY. Columns named like a field need none. Repeatable
    #[arg(long, value_name = "FIELD=COLUMN", value_parser = parse_pair)]
    map: Vec<(Field, String)>,

    /// Sets a field of every row, whatever the file says. Repeatable
    #[arg(long, value_name = "FIELD=VALUE", value_parser = parse_constant)]
    set: Vec<(Field, String)>,

    /// Makes ids from a CSV column, or a key of NDJSON rows: the UUIDv5 of the value in the
    /// namespace 2687012b-4479-55e8-ac73-e435775c7324. Without it, an id column or key is the id
    #[arg(long, value_name = "COLUMN")]
    pub id_from: Option<String>,

    /// How many rows a call creates at most
    #[arg(long, value_name = "ROWS", default_value_t = 500,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub batch_size: u16,

    /// How many calls are in flight at once
    #[arg(long, value_name = "CALLS", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub in_flight: u16,

    /// Where rows go that can't be imported, with line and reason. Made only if there are any
    /// [default: FILE.rejects.csv or .ndjson]
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,

    /// Which service to import into.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

fn parse_pair(text: &str) -> Result<(Field, String), String> {
    let (field, value) = text.split_once('=').ok_or("has no `=`")?;
    let field: Field = field.parse()?;
    if field.is_output_only() {
        return Err(format!("{field} is decided by the service"));
    }
    Ok((field, value.to_owned()))
}

fn parse_constant(text: &str) -> Result<(Field, String), String> {
    let (field, value) = parse_pair(text)?;
    if field == Field::Id {
        return Err("an id is one location's: use --id-from, or an id column".to_owned());
    }
    field
        .set(&mut Location::default(), &value)
        .map_err(|error| format!("{field} {error}"))?;
    Ok((field, value))
}

/// What an import did.
#[derive(Debug)]
pub struct ImportSummary {
    /// Rows that became locations.
    pub created: u64,
    /// How many of them have no id: an earlier run, up to 24 hours ago, may have created them.
    pub without_id: u64,
    /// Rows whose id was used already.
    pub already_there: u64,
    /// Rows that can't become locations.
    pub rejected: u64,
    /// Where they are.
    pub rejects: PathBuf,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether someone stopped it before the end.
    pub interrupted: bool,
    /// What stopped it before the end.
    pub failure: Option<TransferError>,
}

impl ImportSummary {
    /// What the process ends with: 0 if every row is there now, 130 when it was stopped, otherwise
    /// 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.interrupted {
            EXIT_INTERRUPTED
        } else {
            u8::from(self.rejected > 0 || self.failure.is_some())
        }
    }
}

impl fmt::Display for ImportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in {:.1?}: {} created",
            describe_rate(
                self.created + self.already_there + self.rejected,
                self.elapsed
            ),
            self.elapsed,
            HumanCount(self.created),
        )?;
        if self.without_id > 0 {
            write!(
                f,
                " ({} without an id, perhaps by an earlier run)",
                HumanCount(self.without_id)
            )?;
        }
        write!(
            f,
            ", {} already there, {} rejected",
            HumanCount(self.already_there),
            HumanCount(self.rejected),
        )?;
        if self.rejected > 0 {
            write!(f, " (see {})", self.rejects.display())?;
        }
        if let Some(failure) = &self.failure {
            write!(f, "\nstopped before the end: {failure}")?;
        } else if self.interrupted {
            write!(f, "\nstopped before the end")?;
        } else {
            return Ok(());
        }
        write!(
            f,
            "\nrunning the same command again completes it and creates nothing twice"
        )
    }
}

/// Imports a file, showing progress on standard error. Stops after what is in flight on SIGINT or
/// SIGTERM, and at once on the second.
///
/// # Errors
/// What is wrong before the first row is sent. What goes wrong later is in the summary.
pub async fn import(args: ImportArgs) -> Result<ImportSummary, TransferError> {
    let input = Input::open(&args)?;
    let size = input.size;
    let rows = Rows::new(input, &args)?;
    let rejects = Rejects::new(&args, rows.header.clone())?;
    let client = Client::connect(&args.connection).await?;
    let interrupts = Interrupts::listen()?;

    let (sender, batches) = mpsc::channel(WAITING_BATCHES);
    let batch_size = usize::from(args.batch_size);
    // Not a task of the runtime, which waits for those: a read of standard input may never end.
    let reader = thread::Builder::new()
        .name("import-reader".to_owned())
        .spawn(move || read_batches(rows, batch_size, &sender))
        .map_err(|cause| TransferError::Internal(format!("cannot start a thread: {cause}")))?;

    let mut run = Run {
        progress: Progress::start(size),
        rejects,
        created: 0,
        without_id: 0,
        already_there: 0,
        interrupted: false,
        failure: None,
    };
    run.send_all(&client, batches, usize::from(args.in_flight), interrupts)
        .await;
    // Otherwise the reader may still wait for input. A panic in it must not pass for the end.
    let is_complete = !run.interrupted && run.failure.is_none();
    if is_complete && reader.join().is_err() {
        run.failure = Some(TransferError::Internal("the reader failed".to_owned()));
    }
    Ok(run.finish())
}

/// An import under way.
struct Run {
    progress: Progress,
    rejects: Rejects,
    created: u64,
    without_id: u64,
    already_there: u64,
    interrupted: bool,
    failure: Option<TransferError>,
}

impl Run {
    async fn send_all(
        &mut self,
        client: &Client,
        batches: mpsc::Receiver<Result<Batch, TransferError>>,
        in_flight: usize,
        mut interrupts: Interrupts,
    ) {
        let mut batches = Some(batches);
        let mut sending = FuturesUnordered::new();
        while batches.is_some() || !sending.is_empty() {
            tokio::select! {
                batch = receive(&mut batches), if batches.is_some() && sending.len() < in_flight => {
                    match batch {
                        Some(Ok(batch)) => sending.push(create(client, batch)),
                        Some(Err(error)) => {
                            self.failure.get_or_insert(error);
                            batches = None;
                        }
                        None => batches = None,
                    }
                }
                Some(outcome) = sending.next() => {
                    if !self.tally(outcome) {
                        batches = None;
                    }
                }
                () = interrupts.next() => {
                    if self.interrupted {
                        return;
                    }
                    self.interrupted = true;
                    batches = None;
                    self.progress.note("stopping once the calls in flight are answered");
                }
            }
        }
    }

    /// Whether to go on.
    fn tally(&mut self, outcome: Outcome) -> bool {
        let rejected = outcome.rejects.len() as u64;
        self.created += outcome.created;
        self.without_id += outcome.without_id;
        self.already_there += outcome.already_there;
        let written = self.rejects.write(&outcome.rejects);
        self.progress.advance(
            outcome.created + outcome.already_there + rejected,
            outcome.bytes,
        );
        if let Some(error) = outcome.failure.or(written.err()) {
            self.failure.get_or_insert(error);
        }
        self.failure.is_none()
    }

    fn finish(self) -> ImportSummary {
        ImportSummary {
            created: self.created,
            without_id: self.without_id,
            already_there: self.already_there,
            rejected: self.rejects.count,
            rejects: self.rejects.path,
            elapsed: self.progress.finish(),
            interrupted: self.interrupted,
            failure: self.failure,
        }
    }
}

async fn receive(
    batches: &mut Option<mpsc::Receiver<Result<Batch, TransferError>>>,
) -> Option<Result<Batch, TransferError>> {
    batches.as_mut()?.recv().await
}

/// A row that parsed.
#[derive(Debug)]
struct Row {
    line: u64,
    raw: Raw,
    request: CreateLocationRequest,
}

impl Row {
    fn has_id(&self) -> bool {
        !self.request.location_id.is_empty()
    }

    fn reject(self, reason: String) -> Reject {
        Reject {
            line: self.line,
            reason,
            raw: self.raw,
        }
    }
}

/// A row as it is in the file.
#[derive(Debug, Clone)]
enum Raw {
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

/// A row's line, counted from 1, and the row, as it is and as what it says or why it says nothing.
type ParsedRow = (u64, Raw, Result<Location, String>);

/// A row that can't become a location.
#[derive(Debug)]
struct Reject {
    line: u64,
    reason: String,
    raw: Raw,
}

/// Rows to create together, and those of the same stretch of the file that didn't parse.
#[derive(Debug, Default)]
struct Batch {
    rows: Vec<Row>,
    rejects: Vec<Reject>,
    /// The size of the stretch.
    bytes: u64,
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Outcome {
    created: u64,
    without_id: u64,
    already_there: u64,
    rejects: Vec<Reject>,
    bytes: u64,
    failure: Option<TransferError>,
}

/// Creates the rows of a batch, but for those that the service refuses.
async fn create(client: &Client, batch: Batch) -> Outcome {
    let mut outcome = Outcome {
        rejects: batch.rejects,
        bytes: batch.bytes,
        ..Outcome::default()
    };
    let mut pending = vec![batch.rows];
    while let Some(rows) = pending.pop() {
        if rows.is_empty() {
            continue;
        }
        let message = BatchCreateLocationsRequest {
            requests: rows.iter().map(|row| row.request.clone()).collect(),
        };
        let answer = client
            .call(message, |mut service, request| async move {
                service.batch_create_locations(request).await
            })
            .await;
        match answer {
            Ok(_) => {
                let without_id = rows.iter().filter(|row| !row.has_id()).count();
                outcome.created += rows.len() as u64;
                outcome.without_id += without_id as u64;
            }
            Err(status) if is_about_rows(status.code()) => {
                sort_out(&status, rows, &mut outcome, &mut pending);
            }
            Err(status) => {
                outcome.failure = Some(TransferError::Call {
                    method: "BatchCreateLocations",
                    status: Box::new(status),
                });
                break;
            }
        }
    }
    outcome
}

/// Whether another batch may do better. `OUT_OF_RANGE` is how tonic calls a message too large.
fn is_about_rows(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange
    )
}

/// Takes the rows that the service refuses out of a batch and leaves the rest in `pending`. Where it
/// names no row, halves of the batch find it. Each step leaves fewer rows together, so it ends.
fn sort_out(
    status: &Status,
    mut rows: Vec<Row>,
    outcome: &mut Outcome,
    pending: &mut Vec<Vec<Row>>,
) {
    let mut refused = refusals(status, rows.len());
    if refused.is_empty() {
        if rows.len() > 1 {
            let half = rows.split_off(rows.len() / 2);
            pending.extend([half, rows]);
            return;
        }
        refused.insert(0, status.message().to_owned());
    }
    let mut rest = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        match refused.remove(&index) {
            None => rest.push(row),
            // A request id that is used with another body isn't a row that is there.
            Some(_) if status.code() == Code::AlreadyExists && row.has_id() => {
                outcome.already_there += 1;
            }
            Some(reason) => outcome.rejects.push(row.reject(reason)),
        }
    }
    pending.push(rest);
}

/// The reasons of those of `count` requests that the status names, by index.
fn refusals(status: &Status, count: usize) -> BTreeMap<usize, String> {
    let mut refusals = BTreeMap::<usize, String>::new();
    if status.code() == Code::AlreadyExists {
        let indexes = status
            .get_details_error_info()
            .and_then(|info| parse_ranges(info.metadata.get("indexes")?, count))
            .unwrap_or_default();
        refusals.extend(
            indexes
                .into_iter()
                .map(|index| (index, status.message().to_owned())),
        );
    }
    for violation in status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default()
    {
        let Some((index, field)) = request_field(&violation.field).filter(|(at, _)| *at < count)
        else {
            continue;
        };
        let reason = format!("{field} {}", violation.description);
        refusals
            .entry(index)
            .and_modify(|reasons| *reasons = format!("{reasons}; {reason}"))
            .or_insert(reason);
    }
    refusals
}

/// `requests[17].location.display_name` as 17 and `display_name`.
fn request_field(path: &str) -> Option<(usize, &str)> {
    let (index, field) = path.strip_prefix("requests[")?.split_once(']')?;
    let field = field.strip_prefix('.').unwrap_or(field);
    let field = match field {
        "location_id" => "id",
        field => field.strip_prefix("location.").unwrap_or(field),
    };
    Some((index.parse().ok()?, field))
}

/// Reads the file to its end, or until nobody takes batches any more.
fn read_batches(
    mut rows: Rows,
    batch_size: usize,
    sender: &mpsc::Sender<Result<Batch, TransferError>>,
) {
    loop {
        let batch = rows.next_batch(batch_size);
        let last = match &batch {
            Ok(batch) if batch.rows.is_empty() && batch.rejects.is_empty() => return,
            Ok(_) => false,
            Err(_) => true,
        };
        if sender.blocking_send(batch).is_err() || last {
            return;
        }
    }
}

/// An open file, or standard input.
struct Input {
    file: File,
    path: PathBuf,
    format: Format,
    /// In bytes, of a regular file.
    size: Option<u64>,
}

impl Input {
    fn open(args: &ImportArgs) -> Result<Self, TransferError> {
        let path = &args.file;
        if path.extension().is_some_and(|extension| extension == "gz") {
            return Err(TransferError::Usage(format!(
                "{0} is compressed: run zcat {0} | location-service import - --format csv",
                path.display()
            )));
        }
        let format = args.format.or_else(|| Format::guess(path)).ok_or_else(|| {
            TransferError::Usage("say what the file holds: --format csv or ndjson".to_owned())
        })?;
        if format == Format::Ndjson && !args.map.is_empty() {
            return Err(TransferError::Usage(
                "--map names CSV columns, but this is NDJSON".to_owned(),
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
            file,
            path: path.clone(),
            format,
            size: metadata.is_file().then_some(metadata.len()),
        })
    }
}

/// The rows of the input, one after another.
struct Rows {
    source: Source,
    path: PathBuf,
    /// Of a CSV file.
    header: Option<ByteRecord>,
    constants: Vec<(Field, String)>,
    id_from: Option<String>,
    /// Where the batch before ended, in bytes.
    position: u64,
}

#[allow(clippy::large_enum_variant, reason = "there is only one")]
enum Source {
    Csv {
        reader: csv::Reader<Lines<File>>,
        columns: CsvColumns,
    },
    Ndjson {
        reader: BufReader<File>,
        json: Json,
        line: u64,
        position: u64,
    },
}

impl Rows {
    /// Reads and checks the header of a CSV file.
    fn new(input: Input, args: &ImportArgs) -> Result<Self, TransferError> {
        let mut csv_header = None;
        let source = match input.format {
            Format::Csv => {
                let mut reader = csv::ReaderBuilder::new()
                    // The number of fields is checked row by row: one bad row is no bad file.
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
                let columns = CsvColumns::new(&header, &args.map, &args.set, id_from)?;
                let unused = columns.unused(&header);
                if !unused.is_empty() {
                    eprintln!("columns that aren't imported: {}", unused.join(", "));
                }
                Source::Csv { reader, columns }
            }
            Format::Ndjson => Source::Ndjson {
                reader: BufReader::new(input.file),
                json: Json::new()?,
                line: 0,
                position: 0,
            },
        };
        Ok(Self {
            source,
            path: input.path,
            header: csv_header,
            constants: args.set.clone(),
            id_from: args.id_from.clone(),
            position: 0,
        })
    }

    /// The next rows, `batch_size` at most; none at the end.
    fn next_batch(&mut self, batch_size: usize) -> Result<Batch, TransferError> {
        let mut batch = Batch::default();
        let mut lines_by_id = HashMap::new();
        let mut size = 0;
        while batch.rows.len() + batch.rejects.len() < batch_size && size < MAX_BATCH_BYTES {
            let Some((line, raw, location)) = self.next_row()? else {
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
                        let reason = format!("id {id} is that of line {first} too");
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

    /// The next row; none at the end.
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
                let line = reader.get_ref().line - breaks as u64;
                let location = columns.parse(&record);
                Ok(Some((line, Raw::Record(record), location)))
            }
            Source::Ndjson {
                reader,
                json,
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
                            json.parse(text.trim(), &self.constants, self.id_from.as_deref())
                        })
                };
                return Ok(Some((*line, Raw::Line(raw), location)));
            },
        }
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The next line without its end, cut off one byte after [`MAX_ROW_BYTES`]. Adds what it passed to
/// `position`.
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

fn read_error(path: &Path, error: csv::Error, line: u64) -> TransferError {
    let cause = match error.into_kind() {
        csv::ErrorKind::Io(cause) => cause,
        csv::ErrorKind::Utf8 { err, .. } => io::Error::new(io::ErrorKind::InvalidData, err),
        other => io::Error::other(format!("{other:?}")),
    };
    TransferError::Read {
        path: path.to_owned(),
        cause: io::Error::new(cause.kind(), format!("line {line}: {cause}")),
    }
}

/// Hands a CSV reader one line at a time, and none after `left` bytes.
///
/// The CSV reader's own line numbers stop short of `\n` in files with `\r\n`, and it would take all
/// that follows a lost quote for one field.
struct Lines<R> {
    inner: BufReader<R>,
    left: usize,
    /// The line that was handed out last, counted from 1.
    line: u64,
    ended: bool,
}

impl<R: Read> Lines<R> {
    fn new(inner: R) -> Self {
        Self {
            inner: BufReader::new(inner),
            left: MAX_ROW_BYTES,
            line: 0,
            ended: true,
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
        self.line += u64::from(self.ended);
        self.ended = line[..count].ends_with(b"\n");
        self.inner.consume(count);
        self.left = self.left.saturating_sub(count);
        Ok(count)
    }
}

/// The file of rows that can't be imported. CSV rows keep their columns, after two of ours, so that
/// a mended file can be imported as the first one was.
struct Rejects {
    path: PathBuf,
    header: Option<ByteRecord>,
    file: Option<BufWriter<File>>,
    count: u64,
}

/// A line of a rejects file in NDJSON.
#[derive(serde::Serialize)]
struct RejectedLine<'a> {
    line: u64,
    reason: &'a str,
    row: &'a str,
}

impl Rejects {
    /// Creates nothing yet. `header` is that of a CSV file.
    fn new(args: &ImportArgs, header: Option<ByteRecord>) -> Result<Self, TransferError> {
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
                "--rejects {} is the file to import: name another",
                path.display()
            )));
        }
        Ok(Self {
            path,
            header,
            file: None,
            count: 0,
        })
    }

    /// Writes them through to the file, so that a summary never counts what isn't there.
    fn write(&mut self, rejects: &[Reject]) -> Result<(), TransferError> {
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

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: ImportArgs,
    }

    fn args(arguments: &[&str]) -> ImportArgs {
        try_args(arguments).unwrap()
    }

    fn try_args(arguments: &[&str]) -> Result<ImportArgs, String> {
        use clap::Parser as _;
        Command::try_parse_from(["import"].iter().chain(arguments))
            .map(|command| command.args)
            .map_err(|error| error.to_string())
    }

    /// The rows of a file, and where it is.
    fn rows(
        name: &str,
        content: &[u8],
        arguments: &[&str],
    ) -> (Rows, ImportArgs, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let args = args(&[&[path.to_str().unwrap()], arguments].concat());
        let rows = Rows::new(Input::open(&args).unwrap(), &args).unwrap();
        (rows, args, dir)
    }

    fn names(batch: &Batch) -> Vec<(u64, &str)> {
        batch
            .rows
            .iter()
            .map(|row| {
                (
                    row.line,
                    row.request.location.as_ref().unwrap().display_name.as_str(),
                )
            })
            .collect()
    }

    fn reasons(rejects: &[Reject]) -> Vec<(u64, &str)> {
        rejects
            .iter()
            .map(|reject| (reject.line, reject.reason.as_str()))
            .collect()
    }

    const STORAGE: [&str; 2] = ["--set", "type=storage"];

    #[test]
    fn csv_is_read_in_batches_with_the_lines_of_the_file() {
        let content = b"\xef\xbb\xbfdisplay_name,capacity\n\"A\nB\",1\n\nC,x\nD\nE,5\nF,6\n";
        let with_crlf = String::from_utf8_lossy(content).replace('\n', "\r\n");
        let mut crlf = rows("b.csv", with_crlf.as_bytes(), &STORAGE).0;
        let lines = |batch: &Batch| batch.rows.iter().map(|row| row.line).collect::<Vec<_>>();
        assert_eq!(lines(&crlf.next_batch(3).unwrap()), [2]);
        assert_eq!(lines(&crlf.next_batch(3).unwrap()), [7, 8]);

        let (mut rows, _, _dir) = rows("a.csv", content, &STORAGE);
        let first = rows.next_batch(3).unwrap();
        assert_eq!(names(&first), [(2, "A\nB")]);
        assert_eq!(
            reasons(&first.rejects),
            [
                (5, "capacity must be a whole number, is `x`"),
                (6, "has 1 fields, the header has 2")
            ]
        );
        let second = rows.next_batch(3).unwrap();
        assert_eq!(names(&second), [(7, "E"), (8, "F")]);
        assert_eq!(first.bytes + second.bytes, content.len() as u64);
        assert!(rows.next_batch(3).unwrap().rows.is_empty());
    }

    #[test]
    fn ndjson_is_read_with_the_lines_of_the_file() {
        let mut content = b"\xef\xbb\xbf{\"displayName\":\"A\"}\r\n\n{\"x\":1}\n\xff\n".to_vec();
        content.extend(vec![b' '; 10]);
        content.extend(vec![b'x'; 3 * MAX_ROW_BYTES]);
        content.extend(b"\n{\"displayName\":\"B\"}");
        let (mut rows, _, _dir) = rows("a.ndjson", &content, &STORAGE);
        let batch = rows.next_batch(10).unwrap();
        assert_eq!(names(&batch), [(1, "A"), (6, "B")]);
        assert_eq!(batch.rejects.len(), 3);
        assert_eq!(batch.rejects[0].line, 3);
        assert_eq!(
            reasons(&batch.rejects[1..]),
            [(4, "isn't UTF-8"), (5, "is longer than 1048576 bytes")]
        );
        assert_eq!(batch.bytes, content.len() as u64);
    }

    #[test]
    fn large_rows_make_small_batches() {
        let content = format!(
            "display_name,description\n{}",
            format!("A,{}\n", "x".repeat(300_000)).repeat(6)
        );
        let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &STORAGE);
        assert_eq!(rows.next_batch(500).unwrap().rows.len(), 4);
        assert_eq!(rows.next_batch(500).unwrap().rows.len(), 2);
    }

    #[test]
    fn a_quote_that_is_not_closed_ends_the_import_with_its_line() {
        let content = format!("display_name\nA\n\"B\n{}", "C\n".repeat(MAX_ROW_BYTES));
        let (mut rows, _, _dir) = rows("a.csv", content.as_bytes(), &STORAGE);
        let error = rows.next_batch(10).unwrap_err().to_string();
        assert!(error.contains("line 3: the row has more than"), "{error}");
    }

    #[test]
    fn a_repeated_id_is_rejected_with_the_line_of_the_first() {
        let content = b"k,display_name\n1,A\n2,B\n1,C\n";
        let (mut rows, _, _dir) = rows(
            "a.csv",
            content,
            &[&STORAGE[..], &["--id-from", "k"]].concat(),
        );
        let batch = rows.next_batch(10).unwrap();
        assert_eq!(names(&batch), [(2, "A"), (3, "B")]);
        assert!(batch.rejects[0].reason.ends_with("is that of line 2 too"));
    }

    #[test]
    fn rejected_csv_rows_can_be_mended_and_imported() {
        let content = b"display_name,capacity\n\"A, \"\"1\"\"\",x\n";
        let (mut rows, args, _dir) = rows("a.csv", content, &STORAGE);
        let header = rows.header.clone();
        let mut rejects = Rejects::new(&args, header).unwrap();
        rejects.write(&[]).unwrap();
        assert!(!rejects.path.exists());
        let batch = rows.next_batch(10).unwrap();
        rejects.write(&batch.rejects).unwrap();
        rejects.write(&batch.rejects).unwrap();
        assert_eq!(rejects.count, 2);

        let line = "2,\"capacity must be a whole number, is `x`\",\"A, \"\"1\"\"\",x\n";
        let text = fs::read_to_string(&rejects.path).unwrap();
        assert_eq!(
            text,
            format!("reject_line,reject_reason,display_name,capacity\n{line}{line}")
        );
        assert!(rejects.path.ends_with("a.csv.rejects.csv"));
    }

    #[test]
    fn rejected_ndjson_rows_are_kept_as_they_are() {
        let (mut rows, args, _dir) = rows("a.ndjson", b"{\"x\": \"\\u00e9\"}\n", &[]);
        let mut rejects = Rejects::new(&args, None).unwrap();
        rejects
            .write(&rows.next_batch(10).unwrap().rejects)
            .unwrap();
        let text = fs::read_to_string(&rejects.path).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["line"], 1);
        assert_eq!(line["row"], "{\"x\": \"\\u00e9\"}");
    }

    #[test]
    fn arguments_are_checked_where_they_are_given() {
        for (arguments, reason) in [
            (["--set", "type=shed"], "type must be delivery or storage"),
            (["--set", "id=1"], "use --id-from"),
            (["--set", "etag=1"], "decided by the service"),
            (["--set", "x=1"], "isn't a field of a location"),
            (["--map", "capacity"], "has no `=`"),
            (["--batch-size", "1001"], "1..=1000"),
            (["--in-flight", "0"], "1..=64"),
        ] {
            let error = try_args(&arguments).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let open = |arguments: &[&str]| Input::open(&args(arguments)).err().unwrap().to_string();
        assert!(open(&["-"]).contains("--format csv or ndjson"));
        assert!(open(&["a.csv.gz"]).contains("zcat a.csv.gz |"));
        assert!(open(&["a.ndjson", "--map", "capacity=x"]).contains("--map names CSV columns"));
        assert!(open(&["/nowhere/a.csv"]).contains("cannot read /nowhere/a.csv: No such file"));
        let (_, args, _dir) = rows("a.ndjson", b"", &[]);
        let onto_itself = ImportArgs {
            rejects: Some(args.file.clone()),
            ..args
        };
        assert!(Rejects::new(&onto_itself, None).is_err());
    }

    fn batch_rows(count: u64) -> Vec<Row> {
        (0..count)
            .map(|line| Row {
                line,
                raw: Raw::Line(Vec::new()),
                request: CreateLocationRequest {
                    location_id: format!("id-{line}"),
                    ..CreateLocationRequest::default()
                },
            })
            .collect()
    }

    fn lines(batches: &[Vec<Row>]) -> Vec<Vec<u64>> {
        batches
            .iter()
            .map(|rows| rows.iter().map(|row| row.line).collect())
            .collect()
    }

    #[test]
    fn rows_that_the_service_finds_bad_are_rejected_with_all_that_is_wrong() {
        let details = ErrorDetails::with_bad_request(vec![
            FieldViolation::new("requests[1].location.display_name", "is required"),
            FieldViolation::new("requests[1].location_id", "must be a UUID"),
            FieldViolation::new("requests[3].location.address.region_code", "must be a code"),
            FieldViolation::new("requests[9].location.capacity", "names no row"),
            FieldViolation::new("requests", "neither"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "bad", details);
        let (mut outcome, mut pending) = (Outcome::default(), Vec::new());
        sort_out(&status, batch_rows(5), &mut outcome, &mut pending);
        assert_eq!(
            reasons(&outcome.rejects),
            [
                (1, "display_name is required; id must be a UUID"),
                (3, "address.region_code must be a code")
            ]
        );
        assert_eq!(lines(&pending), [[0, 2, 4]]);
    }

    #[test]
    fn rows_that_are_there_are_counted_and_the_rest_is_sent_again() {
        let details = ErrorDetails::with_error_info(
            "ALREADY_EXISTS",
            "location.v1",
            [("indexes".to_owned(), "0-1,3".to_owned())],
        );
        let status = Status::with_error_details(Code::AlreadyExists, "used", details);
        let (mut outcome, mut pending) = (Outcome::default(), Vec::new());
        let mut rows = batch_rows(5);
        rows[3].request.location_id.clear();
        sort_out(&status, rows, &mut outcome, &mut pending);
        assert_eq!(outcome.already_there, 2);
        assert_eq!(reasons(&outcome.rejects), [(3, "used")]);
        assert_eq!(lines(&pending), [[2, 4]]);
    }

    #[test]
    fn a_refusal_that_names_no_row_is_narrowed_down_to_it() {
        let status = Status::invalid_argument("something is wrong");
        let (mut outcome, mut pending) = (Outcome::default(), Vec::new());
        sort_out(&status, batch_rows(3), &mut outcome, &mut pending);
        assert_eq!(lines(&pending), [vec![1, 2], vec![0]]);
        let last = pending.pop().unwrap();
        sort_out(&status, last, &mut outcome, &mut pending);
        assert_eq!(reasons(&outcome.rejects), [(0, "something is wrong")]);
    }

    #[test]
    fn a_summary_says_what_became_of_the_rows_and_what_to_do() {
        let mut summary = ImportSummary {
            created: 1234,
            without_id: 0,
            already_there: 5,
            rejected: 0,
            rejects: "x.rejects.csv".into(),
            elapsed: Duration::from_secs(1),
            interrupted: false,
            failure: None,
        };
        assert_eq!(
            summary.to_string(),
            "1,239 rows, 1,239/s in 1.0s: 1,234 created, 5 already there, 0 rejected"
        );
        assert_eq!(summary.exit_code(), 0);
        summary.without_id = 3;
        assert!(
            summary
                .to_string()
                .contains("created (3 without an id, perhaps by an earlier run), 5")
        );
        summary.rejected = 1;
        assert!(
            summary
                .to_string()
                .ends_with("1 rejected (see x.rejects.csv)")
        );
        assert_eq!(summary.exit_code(), 1);
        summary.interrupted = true;
        assert!(
            summary
                .to_string()
                .ends_with("completes it and creates nothing twice")
        );
        assert_eq!(summary.exit_code(), 130);
    }
}
