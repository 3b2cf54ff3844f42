//! The ways in which a response can be wrong.

use super::register::Proof;
use crate::history::Name;

/// A way in which a response is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// It is older than a write that was acknowledged before the read began.
    Stale,
    /// It is older than the response to a read that ended before this one began, so reads are not
    /// linearizable.
    Unseen,
    /// It shows a write that was reported to have changed nothing.
    Undone,
    /// It shows a write that the database has lost.
    Lost,
    /// It shows a location that the caller may not see.
    Exposed,
    /// It shows a state that was never written, or doesn't match the request.
    Invented,
}

impl Anomaly {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Stale,
        Self::Unseen,
        Self::Undone,
        Self::Lost,
        Self::Exposed,
        Self::Invented,
    ];

    /// The name of the anomaly, and its meaning.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Stale => (
                "stale",
                "the response is older than a write that was acknowledged before the read began",
            ),
            Self::Unseen => (
                "unseen",
                "the response is older than the response to an earlier read",
            ),
            Self::Undone => (
                "undone",
                "the response shows a write that was reported to have changed nothing",
            ),
            Self::Lost => (
                "lost",
                "the response shows a write that the database had lost before the read began",
            ),
            Self::Exposed => (
                "exposed",
                "the response shows a location that the caller may not see",
            ),
            Self::Invented => (
                "invented",
                "the response shows a state that was never written, or doesn't match the request",
            ),
        }
    }
}

/// A wrong response.
#[derive(Debug)]
pub struct Violation {
    /// The kind.
    pub anomaly: Anomaly,
    /// The events that prove it, as text.
    pub text: String,
}

/// The judgement on an event.
#[derive(Debug)]
pub enum Finding {
    /// It is right.
    Right,
    /// A read that can't be judged.
    NotJudged,
    /// It is wrong.
    Wrong(Violation),
}

pub(super) type Verdict = Result<(), Box<Wrong>>;

/// An anomaly of a location, and the events that prove it.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) anomaly: Anomaly,
    pub(super) name: Name,
    pub(super) lines: Vec<String>,
}

impl Wrong {
    pub(super) fn new(anomaly: Anomaly, name: Name, lines: Vec<String>) -> Verdict {
        Err(Box::new(Self {
            anomaly,
            name,
            lines,
        }))
    }
}

impl Anomaly {
    /// The kind of evidence that makes the response wrong.
    pub(super) fn proof(self) -> Proof {
        match self {
            Self::Unseen => Proof::Sight,
            _ => Proof::Acknowledgement,
        }
    }
}
