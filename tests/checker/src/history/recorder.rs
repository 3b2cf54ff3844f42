//! Recording a history, writing it to a file, and reading it back.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    time::Instant,
};

use tokio::sync::mpsc;

use super::{Event, Micros};

/// Maximum number of events waiting to be judged; at the limit, clients wait too.
const MAX_WAITING: usize = 4_096;

/// Records events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    started: Instant,
    events: mpsc::Sender<Event>,
}

impl Recorder {
    /// A recorder, and the receiver of its events.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (events, recorded) = mpsc::channel(MAX_WAITING);
        let started = Instant::now();
        (Self { started, events }, recorded)
    }

    /// The current time.
    pub fn now(&self) -> Micros {
        Micros::try_from(self.started.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    /// Records an event. Its effects must be recorded after this returns.
    pub async fn record(&self, event: Event) {
        // Fails only after the run has ended.
        let _ = self.events.send(event).await;
    }
}

/// Writes a history to a file, event by event.
#[derive(Debug)]
pub struct Writer(BufWriter<File>);

impl Writer {
    /// Creates the file, or truncates an existing one.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(BufWriter::new(File::create(path)?)))
    }

    /// Adds an event.
    pub fn add(&mut self, event: &Event) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, event)?;
        self.0.write_all(b"\n")
    }

    /// Flushes the file.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The events of a recorded history, in order.
pub fn read(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Event>>> {
    let lines = BufReader::new(File::open(path)?).lines();
    Ok(lines.enumerate().map(|(index, line)| {
        serde_json::from_str(&line?).map_err(|error| {
            let text = format!("line {} isn't an event: {error}", index + 1);
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }))
}
