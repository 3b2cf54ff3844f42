//! The history of a run: every call with its client, replica, start, end and response; and every fault.
//! One event is one line of JSON.
//!
//! The order of events is significant: the start of a write is recorded before it is sent, so a
//! response that shows the write is recorded later.

mod content;
mod label;
mod query;
mod recorder;

use serde::{Deserialize, Serialize};

pub use self::{
    content::{Content, Item, Kind, short_etag},
    label::{Label, Name},
    query::{Query, search_text},
    recorder::{Recorder, Writer, read},
};

/// Microseconds since the checker started, on its monotonic clock.
pub type Micros = u64;

/// An event of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A write is about to be sent, or retried after an unknown outcome.
    Write(Write),
    /// A write has ended.
    Written(Written),
    /// A read has ended.
    Read(Read),
    /// A fault begins, ends, or has no effect any more.
    Fault(Fault),
    /// The database is about to lose writes, or has lost them.
    Loss(Loss),
    /// Some replicas reach an old primary from now on.
    Apart(Apart),
    /// The run has several databases. The first event, if there is more than one.
    Databases(usize),
}

/// A write is about to be sent.
///
/// The client that creates a location does all of its writes, one after another. While the outcome of
/// one is unknown, only writes follow that fix the order: conditional writes if that one was
/// conditional on an etag, otherwise only deletions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The time of the event.
    pub at: Micros,
    /// The client that sends it.
    pub client: u16,
    /// The replica that it is sent to.
    pub replica: usize,
    /// The location, and the number of the write among its writes: 0 creates it.
    pub label: Label,
    /// The write, for violation reports.
    pub description: String,
    /// The location after the write; `None` if the write deletes it.
    pub leaves: Option<Content>,
}

/// A write has ended: with a response, an error, or the client's deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The time of the event.
    pub at: Micros,
    /// The time at which it was sent.
    pub begun: Micros,
    /// The client that sent it.
    pub client: u16,
    /// The replica that it was sent to.
    pub replica: usize,
    /// The location and the write.
    pub label: Label,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect. The new etag, unless it deleted the location.
    Acknowledged(Option<String>),
    /// It never takes effect. The error.
    Failed(String),
    /// It may or may not take effect. The error.
    InDoubt(String),
}

/// A read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// The client.
    pub client: u16,
    /// The replica.
    pub replica: usize,
    /// The only owner whose locations the caller may see; `None` for an admin.
    pub scope: Option<String>,
    /// The method and its arguments.
    pub operation: Operation,
    /// The calls, one for each page.
    pub pages: Vec<Page>,
}

/// The method and arguments of a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `ListLocations`.
    List(Query),
    /// `GetLocation`.
    Get(Name),
    /// `ListLocationReports`.
    Reports(Query),
}

/// One call of a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The time at which it was sent.
    pub start: Micros,
    /// The time at which it ended.
    pub end: Micros,
    /// The value of `cache-status`.
    pub cache: String,
    /// The response.
    pub reply: Reply,
}

/// The response to a read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Locations.
    Locations {
        /// The locations in their order.
        items: Vec<Item>,
        /// Whether no page follows.
        last: bool,
    },
    /// `NOT_FOUND`.
    Missing,
    /// Reports.
    Reports(Vec<Row>),
    /// `PERMISSION_DENIED`.
    Refused,
    /// A response that doesn't fit the request.
    Invalid(String),
    /// Any other error.
    Failed(String),
}

/// A report in a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The type.
    pub kind: Kind,
    /// The production run.
    pub run: String,
    /// The number of locations, the number of active ones, and the sum of their capacities.
    pub sums: [i64; 3],
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The time of the event.
    pub at: Micros,
    /// The number of the fault, from zero.
    pub number: u64,
    /// Its kind.
    pub kind: String,
    /// The fault and its target, for reports.
    pub description: String,
    /// The phase that begins.
    pub phase: Phase,
}

/// A loss of acknowledged writes: a restored dump, or a promoted standby that lacks some.
///
/// Nothing is known about reads and writes between its two events. The second one comes no sooner than a
/// lease after the loss, because a replica doesn't notice it before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The time of the event.
    pub at: Micros,
    /// The states of all locations after the loss, as read from the database; `None` if it begins.
    pub left: Option<Vec<Label>>,
}

/// Replicas that reach another server than the rest: an old primary, which knows nothing of its
/// successor. Their responses aren't judged, and writes that they acknowledge are in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apart {
    /// The time of the event.
    pub at: Micros,
    /// The replicas; none if all reach the same server again.
    pub replicas: Vec<usize>,
}

/// A phase of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The fault is injected.
    Begins,
    /// Every process runs again, and every link carries.
    Ends,
    /// Every replica has acknowledged a write and had a hit, both of calls that began after the end.
    Recovered,
    /// The replicas have not recovered in time.
    Unrecovered,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_deserializes_its_own_line() {
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
