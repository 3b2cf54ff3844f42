//! `location-service import`: creates locations from the rows of a file.
//!
//! A thread reads the file ([`reader`]) and passes batches of rows through a bounded channel. The
//! main task keeps several calls in flight ([`send`]) and counts their results. The service creates
//! a batch as a whole or not at all, so a row that it refuses is written to the rejects file
//! ([`rejects`]) and the rest of the batch is sent again. Every call may be repeated: the id of a
//! row, or its request id, keeps it from being created twice.

mod reader;
mod rejects;
mod send;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, thread, time::Duration};

use clap::Args;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use indicatif::HumanCount;
use prost_reflect::DynamicMessage;
use tokio::sync::mpsc;

use self::{
    reader::{Batch, Input, Rows},
    rejects::Rejects,
    send::Outcome,
};
use super::{
    EXIT_INTERRUPTED, Format, Interrupts, STANDARD_STREAM, TransferError,
    client::{Client, ConnectionArgs},
    fields::{self, Constant, Field, Mapping},
    progress::{Progress, describe_rate},
};

/// The capacity of the channel between the reader and the calls, in batches.
const CHANNEL_BATCHES: usize = 2;

/// Options of `import`.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
An import that runs again completes the first one and creates nothing twice: a row whose id already \
exists is counted and left unchanged. Rows without an id are recognised by line and content, for 24 \
hours.

Examples:
  location-service import depots.ndjson
  zcat cities.csv.gz | location-service import - --format csv \\
      --set type=storage --map capacity=population --id-from geoname_id")]
pub struct ImportArgs {
    /// File to read; - for stdin
    #[arg(value_name = "FILE", default_value = STANDARD_STREAM)]
    file: PathBuf,

    /// Format of the file [default: by its extension]
    #[arg(long)]
    format: Option<Format>,

    /// Reads a field from a CSV column. Fields are paths such as display_name, address.region_code
    /// or labels.KEY. A column with the name of a field needs no mapping. Repeatable
    #[arg(long, value_name = "FIELD=COLUMN", value_parser = parse_mapping)]
    map: Vec<Mapping>,

    /// Sets a field of every row, and overrides the file. Repeatable
    #[arg(long, value_name = "FIELD=VALUE", value_parser = parse_constant)]
    set: Vec<Constant>,

    /// Derives ids from a CSV column, or from a key of NDJSON rows: each is the UUIDv5 of the value
    /// in the namespace 2687012b-4479-55e8-ac73-e435775c7324. Without it, the column or key `id` is
    /// the id
    #[arg(long, value_name = "COLUMN")]
    id_from: Option<String>,

    /// Maximum number of rows per call
    #[arg(long, value_name = "ROWS", default_value_t = 500,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch_size: u16,

    /// Maximum number of calls in flight
    #[arg(long, value_name = "CALLS", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    in_flight: u16,

    /// File for rejected rows, each with its line and the reason. Created only if a row is rejected
    /// [default: FILE.rejects.csv or FILE.rejects.ndjson]
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,

    #[command(flatten)]
    connection: ConnectionArgs,
}

fn parse_assignment(text: &str) -> Result<(Field, &str), String> {
    let (field, value) = text.split_once('=').ok_or("has no `=`")?;
    let field: Field = field.parse()?;
    if field.is_output_only() {
        return Err(format!("{field} is set by the service"));
    }
    Ok((field, value))
}

fn parse_mapping(text: &str) -> Result<Mapping, String> {
    let (field, column) = parse_assignment(text)?;
    let column = column.to_owned();
    Ok(Mapping { field, column })
}

fn parse_constant(text: &str) -> Result<Constant, String> {
    let (field, value) = parse_assignment(text)?;
    if field.is_id() {
        return Err("an id belongs to one location: use --id-from, or an id column".to_owned());
    }
    field
        .set(
            &mut DynamicMessage::new(fields::descriptor().clone()),
            value,
        )
        .map_err(|error| format!("{field} {error}"))?;
    let value = value.to_owned();
    Ok(Constant { field, value })
}

/// The result of an import.
#[derive(Debug)]
pub struct ImportSummary {
    created: u64,
    /// The number of created rows that have no id. Up to 24 hours ago, an earlier run may have
    /// created them.
    without_id: u64,
    /// The number of rows whose id already existed.
    existing: u64,
    rejected: u64,
    /// The path of the rejects file.
    rejects: PathBuf,
    elapsed: Duration,
    is_interrupted: bool,
    /// The error that ended the import early.
    failure: Option<TransferError>,
}

impl ImportSummary {
    /// The exit code of the process: 0 if every row exists now, 130 after an interrupt, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        if self.is_interrupted {
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
            describe_rate(self.created + self.existing + self.rejected, self.elapsed),
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
            ", {} already existed, {} rejected",
            HumanCount(self.existing),
            HumanCount(self.rejected),
        )?;
        if self.rejected > 0 {
            write!(f, " (see {})", self.rejects.display())?;
        }
        if let Some(failure) = &self.failure {
            write!(f, "\nended early: {failure}")?;
        } else if self.is_interrupted {
            write!(f, "\ninterrupted")?;
        } else {
            return Ok(());
        }
        write!(
            f,
            "\nto complete the import, run the same command again: it creates nothing twice"
        )
    }
}

/// Imports a file and shows the progress on stderr. After SIGINT or SIGTERM it ends when the calls
/// in flight have completed, after a second signal at once.
///
/// # Errors
/// Failures before the first row is sent. Later ones are in the summary.
pub async fn import(args: ImportArgs) -> Result<ImportSummary, TransferError> {
    let input = Input::open(&args)?;
    let size = input.size;
    let rows = Rows::new(input, &args)?;
    let rejects = Rejects::new(&args, rows.header.clone())?;
    let client = Client::connect(&args.connection).await?;
    let interrupts = Interrupts::listen()?;

    let (sender, batches) = mpsc::channel(CHANNEL_BATCHES);
    let batch_size = usize::from(args.batch_size);
    // A thread of its own: the runtime would wait for a read of stdin, which may never end.
    let reader = thread::Builder::new()
        .name("import-reader".to_owned())
        .spawn(move || reader::read_batches(rows, batch_size, &sender))
        .map_err(|cause| TransferError::Internal(format!("cannot start a thread: {cause}")))?;

    let mut run = Run {
        progress: Progress::start(size),
        rejects,
        created: 0,
        without_id: 0,
        existing: 0,
        is_interrupted: false,
        failure: None,
    };
    run.send_all(&client, batches, usize::from(args.in_flight), interrupts)
        .await;
    // After an early end, the reader may still be blocked in a read. Otherwise it has ended, and a
    // panic in it must not look like the end of the file.
    let is_complete = !run.is_interrupted && run.failure.is_none();
    if is_complete && reader.join().is_err() {
        run.failure = Some(TransferError::Internal("the reader panicked".to_owned()));
    }
    Ok(run.finish())
}

type BatchReceiver = mpsc::Receiver<Result<Batch, TransferError>>;

/// A running import.
struct Run {
    progress: Progress,
    rejects: Rejects,
    created: u64,
    without_id: u64,
    existing: u64,
    is_interrupted: bool,
    failure: Option<TransferError>,
}

impl Run {
    async fn send_all(
        &mut self,
        client: &Client,
        batches: BatchReceiver,
        in_flight: usize,
        mut interrupts: Interrupts,
    ) {
        let mut batches = Some(batches);
        let mut sending = FuturesUnordered::new();
        while batches.is_some() || !sending.is_empty() {
            tokio::select! {
                batch = receive(&mut batches), if batches.is_some() && sending.len() < in_flight => {
                    match batch {
                        Some(Ok(batch)) => sending.push(send::create(client, batch)),
                        Some(Err(error)) => {
                            self.failure.get_or_insert(error);
                            batches = None;
                        }
                        None => batches = None,
                    }
                }
                Some(outcome) = sending.next() => {
                    self.count(outcome);
                    if self.failure.is_some() {
                        batches = None;
                    }
                }
                () = interrupts.next() => {
                    if self.is_interrupted {
                        return;
                    }
                    self.is_interrupted = true;
                    batches = None;
                    self.progress.note("interrupted: waiting for the calls in flight");
                }
            }
        }
    }

    fn count(&mut self, outcome: Outcome) {
        let rejected = outcome.rejects.len() as u64;
        self.created += outcome.created;
        self.without_id += outcome.without_id;
        self.existing += outcome.existing;
        let written = self.rejects.write(&outcome.rejects);
        self.progress
            .advance(outcome.created + outcome.existing + rejected, outcome.bytes);
        if let Some(error) = outcome.failure.or(written.err()) {
            self.failure.get_or_insert(error);
        }
    }

    fn finish(self) -> ImportSummary {
        ImportSummary {
            created: self.created,
            without_id: self.without_id,
            existing: self.existing,
            rejected: self.rejects.count,
            rejects: self.rejects.path,
            elapsed: self.progress.finish(),
            is_interrupted: self.is_interrupted,
            failure: self.failure,
        }
    }
}

async fn receive(batches: &mut Option<BatchReceiver>) -> Option<Result<Batch, TransferError>> {
    batches.as_mut()?.recv().await
}
