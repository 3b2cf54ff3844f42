//! What happened: every call, by whom, on which replica, when it began and ended, and what it was
//! answered; and every fault. One event is one line of JSON.
//!
//! The order of events is part of it: that a write begins is recorded before it is sent, so whoever
//! sees its effect is recorded later.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    str::FromStr,
    time::Instant,
};

use location_service::proto::location::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// Microseconds since the checker started, on its monotonic clock.
pub type Micros = u64;

/// How many events may wait to be judged. Then clients wait too.
const MAX_WAITING: usize = 4_096;

/// How much of an etag is kept: enough to tell two states of one location apart.
const ETAG_CHARS: usize = 8;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A write is about to be sent; or sent again, if its outcome is in doubt.
    Write(Write),
    /// A write was answered, or given up.
    Written(Written),
    /// A read has ended.
    Read(Read),
    /// A fault begins, ends, or is overcome.
    Fault(Fault),
}

/// A write is about to be sent.
///
/// The client that creates a location does all of its writes, one after the other. While one is in
/// doubt, only those follow that settle the order: conditional ones, if the one in doubt was
/// conditional on an etag too, and otherwise deletions alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// When.
    pub at: Micros,
    /// By which client.
    pub client: u16,
    /// To which replica.
    pub replica: usize,
    /// The location, and the number of the write among its writes: 0 creates it.
    pub label: Label,
    /// What it does, for people.
    pub what: String,
    /// What the location is after it; `None`: not there.
    pub leaves: Option<Content>,
}

/// A write was answered, or given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// When.
    pub at: Micros,
    /// When it was sent.
    pub begun: Micros,
    /// By which client.
    pub client: u16,
    /// By which replica.
    pub replica: usize,
    /// Which write.
    pub label: Label,
    /// How.
    pub outcome: Outcome,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done. The etag, if it left anything.
    Acknowledged(Option<String>),
    /// It was not done, and never will be. The error.
    Failed(String),
    /// Nobody knows. The error.
    InDoubt(String),
}

/// A read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// By which client.
    pub client: u16,
    /// On which replica.
    pub replica: usize,
    /// The only owner whose locations the caller may see; `None` for an admin.
    pub scope: Option<String>,
    /// What was asked.
    pub ask: Ask,
    /// The calls, one for each page.
    pub pages: Vec<Page>,
}

/// What a read asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Locations.
    List(Question),
    /// One location.
    Get(Name),
    /// A summary for each type and run.
    Reports(Question),
}

/// What a list or a report is of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The type, or any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The production run, or any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The owner that the request names; the caller's scope, if any, comes on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whether it is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// The client that writes it, by way of a query for its part of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<u16>,
    /// `order_by`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub order: String,
    /// `page_size`.
    #[serde(default)]
    pub page_size: i32,
}

/// One call of a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// When it was sent.
    pub start: Micros,
    /// When it was answered.
    pub end: Micros,
    /// What `cache-status` said.
    pub cache: String,
    /// The answer.
    pub answer: Answer,
}

/// What a read was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Locations, and whether no page follows.
    Locations(Vec<Item>, bool),
    /// `NOT_FOUND`.
    Missing,
    /// Reports.
    Reports(Vec<Row>),
    /// `PERMISSION_DENIED`.
    Refused,
    /// Something that no request of ours can be answered with.
    Absurd(String),
    /// Any other error.
    Failed(String),
}

/// A location as it was shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Whose state it is.
    pub label: Label,
    /// Its fields, as text.
    pub text: String,
    /// Its etag.
    pub etag: String,
}

/// A report as it was shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The type.
    pub kind: Kind,
    /// The production run.
    pub run: String,
    /// How many locations, how many of them active, and the sum of their capacities.
    pub sums: [i64; 3],
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When.
    pub at: Micros,
    /// How many came before it.
    pub number: u64,
    /// Its kind.
    pub kind: String,
    /// What is done to whom.
    pub what: String,
    /// How it stands.
    pub phase: Phase,
}

/// How a fault stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It strikes now.
    Begins,
    /// Everything runs again.
    Ends,
    /// Every replica has acknowledged a write and answered from the cache, both asked after the end.
    Overcome,
    /// That took too long.
    Lasting,
}

/// A location's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `LOCATION_TYPE_DELIVERY`.
    Delivery,
    /// `LOCATION_TYPE_STORAGE`.
    Storage,
}

/// What the checker writes into a location. Its display name repeats it, so that each answer shows
/// whether it is of one piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The type.
    pub kind: Kind,
    /// The owner.
    pub owner: String,
    /// The production run, which may be empty.
    pub run: String,
    /// Whether it is in use.
    pub active: bool,
    /// The capacity.
    pub capacity: i64,
}

/// A location: `c3.17` is the 17th of client 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The client that writes it.
    pub client: u16,
    /// Which of that client's.
    pub serial: u32,
}

/// A state of a location: `c3.17.2` is the one that its third write left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label {
    /// The location.
    pub name: Name,
    /// The write.
    pub version: u32,
}

impl Content {
    /// The display name of a location in this state: all of it, as text.
    pub fn text(&self, label: Label) -> String {
        let Self {
            kind,
            owner,
            run,
            active,
            capacity,
        } = self;
        let state = if *active { "active" } else { "inactive" };
        let run = if run.is_empty() { "-" } else { run };
        format!("{label} {kind} {owner} {run} {state} {capacity}")
    }

    /// What a location's fields say.
    pub fn of(location: &v1::Location) -> Option<Self> {
        Some(Self {
            kind: Kind::of(location.r#type())?,
            owner: location.owner_id.clone(),
            run: location.production_run_id.clone(),
            active: location.state() == v1::LocationState::Active,
            capacity: location.capacity,
        })
    }
}

impl Item {
    /// A location as it is shown; `None` if the checker didn't write it.
    pub fn of(location: &v1::Location) -> Option<Self> {
        let label = location.display_name.split(' ').next()?.parse().ok()?;
        Some(Self {
            label,
            // The fields, and not the name, which then has to say the same.
            text: Content::of(location)?.text(label),
            etag: short_etag(&location.etag),
        })
    }
}

/// The first characters of an etag, without its quote.
pub fn short_etag(etag: &str) -> String {
    let etag = etag.trim_matches('"');
    etag.chars().take(ETAG_CHARS).collect()
}

impl Question {
    /// Whether a location in this state is among the answers.
    pub fn matches(&self, name: Name, content: &Content) -> bool {
        self.kind.is_none_or(|kind| kind == content.kind)
            && self.run.as_ref().is_none_or(|run| *run == content.run)
            && self
                .owner
                .as_ref()
                .is_none_or(|owner| *owner == content.owner)
            && self.active.is_none_or(|active| active == content.active)
            && self.client.is_none_or(|client| client == name.client)
    }
}

impl Kind {
    /// As the contract says it.
    pub fn proto(self) -> v1::LocationType {
        match self {
            Self::Delivery => v1::LocationType::Delivery,
            Self::Storage => v1::LocationType::Storage,
        }
    }

    /// From what the contract says.
    pub fn of(proto: v1::LocationType) -> Option<Self> {
        match proto {
            v1::LocationType::Delivery => Some(Self::Delivery),
            v1::LocationType::Storage => Some(Self::Storage),
            v1::LocationType::Unspecified => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivery => "delivery",
            Self::Storage => "storage",
        })
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.kind.map(|kind| format!("type {kind}")));
        parts.extend(self.run.as_ref().map(|run| match run.as_str() {
            "" => "no run".to_owned(),
            run => format!("run {run}"),
        }));
        parts.extend(self.owner.as_ref().map(|owner| format!("owner {owner}")));
        parts.extend(
            self.active
                .map(|active| (if active { "active" } else { "inactive" }).to_owned()),
        );
        parts.extend(
            self.client
                .map(|client| format!("query {:?}", query(client))),
        );
        if !self.order.is_empty() {
            parts.push(format!("by {}", self.order));
        }
        if self.page_size != 0 {
            parts.push(format!("pages of {}", self.page_size));
        }
        if parts.is_empty() {
            parts.push("everything".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

/// The text that the names of a client's locations have, and no others'.
pub fn query(client: u16) -> String {
    format!("c{client}.")
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}.{}", self.client, self.serial)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.version)
    }
}

/// The text isn't like `c3.17` or `c3.17.2`.
#[derive(Debug)]
pub struct NotALabel;

impl fmt::Display for NotALabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a name like c3.17, or a label like c3.17.2")
    }
}

impl FromStr for Name {
    type Err = NotALabel;

    fn from_str(text: &str) -> Result<Self, NotALabel> {
        let (client, serial) = text
            .strip_prefix('c')
            .and_then(|text| text.split_once('.'))
            .ok_or(NotALabel)?;
        Ok(Self {
            client: client.parse().map_err(|_| NotALabel)?,
            serial: serial.parse().map_err(|_| NotALabel)?,
        })
    }
}

impl FromStr for Label {
    type Err = NotALabel;

    fn from_str(text: &str) -> Result<Self, NotALabel> {
        let (name, version) = text.rsplit_once('.').ok_or(NotALabel)?;
        Ok(Self {
            name: name.parse()?,
            version: version.parse().map_err(|_| NotALabel)?,
        })
    }
}

/// Names and labels are text in JSON too.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(Name);
as_text!(Label);

/// Takes down what happens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    started: Instant,
    events: mpsc::Sender<Event>,
}

impl Recorder {
    /// A recorder, and what it records.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (events, recorded) = mpsc::channel(MAX_WAITING);
        let started = Instant::now();
        (Self { started, events }, recorded)
    }

    /// The time.
    pub fn now(&self) -> Micros {
        Micros::try_from(self.started.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    /// Records an event. What is caused by it is recorded later.
    pub async fn record(&self, event: Event) {
        // Nobody listens any more only when the run is over.
        let _ = self.events.send(event).await;
    }
}

/// A history that is written as it happens.
#[derive(Debug)]
pub struct Writer(BufWriter<File>);

impl Writer {
    /// A new file, or an old one emptied.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(BufWriter::new(File::create(path)?)))
    }

    /// Adds an event.
    pub fn add(&mut self, event: &Event) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, event)?;
        self.0.write_all(b"\n")
    }

    /// Makes sure that all is written.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The events of a recorded history, one after the other.
pub fn read(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Event>>> {
    let lines = BufReader::new(File::open(path)?).lines();
    Ok(lines.enumerate().map(|(index, line)| {
        serde_json::from_str(&line?).map_err(|error| {
            let text = format!("line {} isn't an event: {error}", index + 1);
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_as_it_is_written() {
        let name = Name {
            client: 3,
            serial: 17,
        };
        let label = Label { name, version: 2 };
        assert_eq!(label.to_string(), "c3.17.2");
        assert_eq!("c3.17.2".parse::<Label>().ok(), Some(label));
        for text in ["", "c3", "c3.17", "3.17.2", "c3.17.x", "c3.17.2.1"] {
            assert!(text.parse::<Label>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_location_is_told_by_its_fields_and_not_by_its_name() {
        let mut location = v1::Location {
            display_name: "c3.17.2 storage ann r1 active 5".to_owned(),
            r#type: v1::LocationType::Storage.into(),
            owner_id: "ann".to_owned(),
            production_run_id: "r1".to_owned(),
            state: v1::LocationState::Active.into(),
            capacity: 5,
            etag: "\"0123456789abcdef\"".to_owned(),
            ..v1::Location::default()
        };
        let item = Item::of(&location).expect("ours");
        assert_eq!(item.text, location.display_name);
        assert_eq!(item.etag, "01234567");
        location.production_run_id = "r2".to_owned();
        let item = Item::of(&location).expect("ours");
        assert_eq!(item.text, "c3.17.2 storage ann r2 active 5");
    }

    #[test]
    fn an_event_is_read_as_it_is_written() {
        let label = "c3.17.2".parse().expect("a label");
        let event = Event::Written(Written {
            at: 5,
            begun: 3,
            client: 3,
            replica: 1,
            label,
            outcome: Outcome::Acknowledged(Some("01234567".to_owned())),
        });
        let line = serde_json::to_string(&event).expect("JSON");
        assert!(line.contains(r#""label":"c3.17.2""#), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).expect("ours"), event);
    }
}
