//! Calls and faults: their time, the caller's scope, and their text in violations.

use std::fmt;

use super::anomaly::{Anomaly, Verdict, Wrong};
use crate::history::{Fault, Micros, Name, Operation, Page, Phase, Query, Read, Reply};

/// The time between the start and the end of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: Micros,
    pub(super) end: Micros,
}

impl Page {
    pub(super) fn span(&self) -> Span {
        Span {
            start: self.start,
            end: self.end,
        }
    }
}

impl Read {
    pub(super) fn span(&self) -> Option<Span> {
        Some(Span {
            start: self.pages.first()?.start,
            end: self.pages.last()?.end,
        })
    }

    /// The query restricted to the caller's scope. A query for another owner must be refused.
    pub(super) fn scoped(&self, query: &Query) -> Result<Query, Box<Wrong>> {
        let Some(scope) = &self.scope else {
            return Ok(query.clone());
        };
        let page = self.pages.first();
        let foreign = query.owner.as_ref().is_some_and(|owner| owner != scope);
        if foreign
            && let Some(page) = page
            && !matches!(page.reply, Reply::Refused | Reply::Failed(_))
        {
            let line = self.line(page.span(), Some(page), "is not refused");
            let name = Name {
                client: self.client,
                serial: 0,
            };
            Wrong::new(Anomaly::Exposed, name, vec![line])?;
        }
        Ok(Query {
            owner: query.owner.clone().or_else(|| Some(scope.clone())),
            ..query.clone()
        })
    }

    /// Judges a response of an unexpected kind. An error is right, because it shows no state.
    pub(super) fn unexpected(&self, page: &Page) -> Verdict {
        let foreign = match &self.operation {
            Operation::List(query) | Operation::Reports(query) => {
                query.owner.is_some() && query.owner != self.scope && self.scope.is_some()
            }
            Operation::Get(_) => false,
        };
        match &page.reply {
            Reply::Failed(_) => Ok(()),
            Reply::Refused if foreign => Ok(()),
            reply => {
                let line = self.line(page.span(), Some(page), &format!("returns {reply:?}"));
                let name = Name {
                    client: self.client,
                    serial: 0,
                };
                Wrong::new(Anomaly::Invented, name, vec![line])
            }
        }
    }

    /// The read, or one of its calls, as a line of text.
    pub(super) fn line(&self, span: Span, page: Option<&Page>, what: &str) -> String {
        let call = match &self.operation {
            Operation::List(query) => format!("list of {query}"),
            Operation::Reports(query) => format!("report of {query}"),
            Operation::Get(name) => format!("get {name}"),
        };
        let caller = self.scope.as_deref().unwrap_or("an admin");
        let cache: Vec<_> = match page {
            Some(page) => vec![page.cache.as_str()],
            None => self.pages.iter().map(|page| page.cache.as_str()).collect(),
        };
        format!(
            "  {span}  client {} ({caller}) <- replica {}  {call}: {what} [{}]",
            self.client,
            self.replica,
            cache.join(" | ")
        )
    }
}

impl Fault {
    /// The fault as a line of text.
    pub(super) fn line(&self) -> String {
        let Self {
            number,
            description,
            at,
            ..
        } = self;
        let since = match self.phase {
            Phase::Begins => "since",
            _ => "over since",
        };
        format!("  fault {number}: {description}, {since} {}", seconds(*at))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", seconds(self.start), seconds(self.end))
    }
}

/// A time in seconds, as text.
pub fn seconds(at: Micros) -> String {
    format!("{}.{:06}", at / 1_000_000, at % 1_000_000)
}
