//! `location-service import`: brings the locations of a file into the service.
//!
//! A thread reads the file ([`reader`]) and passes batches of rows through a bounded channel. The
//! main task keeps several calls in flight ([`send`]) and counts the results of the rows, in the order
//! of the file. Every row has an id: its own, one that is derived from a key, or one that is derived
//! from its line and its content. So a row is created once, however often it is sent; if its location
//! exists, the two are compared. The service creates a batch as a whole or not at all, so a row that
//! it refuses is written to the rejects file ([`rejects`]) and the rest of the batch is sent again.

mod args;
mod delete;
mod dialect;
#[cfg(test)]
mod fuzz;
mod input;
mod json_rows;
mod reader;
pub mod records;
mod refusals;
mod rejects;
mod rows;
mod seen;
mod send;
mod summary;
#[cfg(test)]
mod tests;
mod update;

use std::{
    io::{self, Write as _},
    thread,
};

use futures_util::{StreamExt as _, stream::FuturesOrdered};
use tokio::{runtime::Handle, sync::mpsc};

pub use self::{
    args::{FileArgs, ImportArgs, Purpose},
    summary::ImportSummary,
};
use self::{
    input::Input,
    reader::Rows,
    rejects::Rejects,
    rows::Batch,
    send::{Fate, Outcome, Sender},
    summary::Counts,
};
use super::{
    Interrupts, STANDARD_STREAM, TransferError,
    client::Client,
    fields::Field,
    ignore_broken_pipe,
    progress::{self, Progress},
};

/// The capacity of the channel between the reader and the calls, in batches.
const CHANNEL_BATCHES: usize = 1;

/// The number of differing rows that are shown without `--verbose`.
const MAX_SHOWN: u64 = 10;

/// Imports a file and shows the progress on stderr. After SIGINT or SIGTERM it ends when the calls
/// in flight have completed, after a second signal at once.
///
/// # Errors
/// Failures before the first row is sent. Later ones are in the summary.
pub async fn import(args: ImportArgs) -> Result<ImportSummary, TransferError> {
    args.check()?;
    let input = Input::open(&args)?;
    let size = input.size;
    let rows = Rows::new(input, &args)?;
    if !rows.unused.is_empty() {
        progress::note(&format!(
            "columns that aren't imported: {}",
            rows.unused.join(", ")
        ));
    }
    let client = Client::connect(&args.options.connection).await?;
    let interrupts = Interrupts::listen()?;
    let rejects = Rejects::new(&args, rows.header.clone(), rows.encoding)?;

    let (sender, batches) = mpsc::channel(CHANNEL_BATCHES);
    let batch_size = usize::from(args.options.batch_size);
    let runtime = Handle::current();
    // A thread of its own: the runtime would wait for a read of stdin, which may never end.
    let reader = thread::Builder::new()
        .name("import-reader".to_owned())
        .spawn(move || reader::read_batches(rows, batch_size, &runtime, &sender))
        .map_err(|cause| TransferError::Internal(format!("cannot start a thread: {cause}")))?;

    let mut run = Run {
        progress: Progress::start(size),
        rejects,
        counts: Counts::default(),
        fates: Vec::new(),
        is_verbose: args.options.verbose,
        shown: 0,
        is_interrupted: false,
        failure: None,
    };
    let send = Sender::new(&client, &args);
    run.send_all(
        &send,
        batches,
        usize::from(args.options.in_flight),
        interrupts,
    )
    .await;
    // The rows of a part that was interrupted.
    run.count();
    // After an early end, the reader may still be blocked in a read. Otherwise it has ended, and a
    // panic in it must not look like the end of the file.
    if !run.is_interrupted && run.failure.is_none() {
        match reader.join() {
            Ok(rows) => run.note_skipped(&rows),
            Err(_) => {
                run.failure = Some(TransferError::Internal("the reader panicked".to_owned()));
            }
        }
    }
    Ok(run.finish(&args))
}

type BatchReceiver = mpsc::Receiver<Result<Batch, TransferError>>;

/// A running import.
struct Run {
    progress: Progress,
    rejects: Rejects,
    counts: Counts,
    /// The rows of the current part of the file that are done.
    fates: Vec<(u64, Fate)>,
    is_verbose: bool,
    /// The number of differing rows that were shown.
    shown: u64,
    is_interrupted: bool,
    failure: Option<TransferError>,
}

impl Run {
    async fn send_all(
        &mut self,
        sender: &Sender<'_>,
        batches: BatchReceiver,
        in_flight: usize,
        mut interrupts: Interrupts,
    ) {
        let mut batches = Some(batches);
        let mut sending = FuturesOrdered::new();
        while batches.is_some() || !sending.is_empty() {
            tokio::select! {
                batch = receive(&mut batches), if batches.is_some() && sending.len() < in_flight => {
                    match batch {
                        Some(Ok(batch)) => {
                            let ends_part = batch.ends_part;
                            sending.push_back(async move { (sender.send(batch).await, ends_part) });
                        }
                        Some(Err(error)) => {
                            self.failure.get_or_insert(error);
                            batches = None;
                        }
                        None => batches = None,
                    }
                }
                Some((outcome, ends_part)) = sending.next() => {
                    self.add(outcome);
                    if ends_part {
                        self.count();
                    }
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

    fn add(&mut self, outcome: Outcome) {
        let rows = outcome.fates.len() as u64;
        self.progress.advance(rows, outcome.bytes);
        self.fates.extend(outcome.fates);
        if let Some(error) = outcome.failure {
            self.failure.get_or_insert(error);
        }
    }

    /// Counts the rows of a part of the file, and writes the rejected ones, in the order of their lines.
    fn count(&mut self) {
        let mut fates = std::mem::take(&mut self.fates);
        // The sort is stable: rows of one line stay in their order.
        fates.sort_by_key(|(line, _)| *line);
        for (line, fate) in fates {
            if let Err(error) = self.count_row(line, &fate) {
                self.failure.get_or_insert(error);
            }
        }
        if let Err(error) = self.rejects.flush() {
            self.failure.get_or_insert(error);
        }
    }

    fn count_row(&mut self, line: u64, fate: &Fate) -> Result<(), TransferError> {
        self.counts.add(fate);
        if self.is_verbose {
            let text = format!("line {line}: {fate}\n");
            let written = io::stdout().lock().write_all(text.as_bytes());
            ignore_broken_pipe(written).map_err(|cause| TransferError::Write {
                path: STANDARD_STREAM.into(),
                cause,
            })?;
        }
        match fate {
            Fate::Rejected(reject) => self.rejects.write(reject)?,
            Fate::Different(_) if !self.is_verbose => {
                self.shown += 1;
                if self.shown <= MAX_SHOWN {
                    self.progress.note(&format!("line {line}: {fate}"));
                } else if self.shown == MAX_SHOWN + 1 {
                    self.progress
                        .note("more rows are different: --verbose shows all");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn note_skipped(&self, rows: &Rows) {
        if rows.blank > 0 {
            self.progress
                .note(&format!("{} blank rows were skipped", rows.blank));
        }
        let ignored = rows.ignored_keys();
        if !ignored.is_empty() {
            let ignored: Vec<_> = ignored
                .into_iter()
                .map(|key| match Field::suggest(&key) {
                    Some(field) => format!("{key} (did you mean --map {field}={key}?)"),
                    None => key,
                })
                .collect();
            self.progress.note(&format!(
                "keys that weren't imported: {}",
                ignored.join(", ")
            ));
        }
    }

    fn finish(self, args: &ImportArgs) -> ImportSummary {
        ImportSummary {
            counts: self.counts,
            purpose: args.purpose,
            is_dry_run: args.options.dry_run,
            // An incomplete rejects file isn't named.
            rejects: (self.rejects.count == self.counts.rejected).then_some(self.rejects.path),
            elapsed: self.progress.finish(),
            is_interrupted: self.is_interrupted,
            failure: self.failure,
        }
    }
}

async fn receive(batches: &mut Option<BatchReceiver>) -> Option<Result<Batch, TransferError>> {
    batches.as_mut()?.recv().await
}
