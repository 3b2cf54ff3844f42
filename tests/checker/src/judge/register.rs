//! The states of one location.

use std::collections::VecDeque;

use super::{
    RETENTION,
    anomaly::{Anomaly, Verdict, Wrong},
    text::{Span, seconds},
};
use crate::history::{Content, Micros, Name, Outcome, Query, Read, Write};

/// Minimum number of writes kept for each location, to identify the state that an old response shows.
const WRITES_KEPT: usize = 8;

/// The writes of a location within the retention, in their order.
#[derive(Debug, Default)]
pub(super) struct Register(pub(super) VecDeque<Entry>);

/// A write.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) write: Write,
    /// The display name after it.
    pub(super) text: String,
    /// The number of attempts.
    pub(super) attempts: u32,
    /// The time and outcome of the last attempt.
    pub(super) ended: Option<(Micros, Outcome)>,
    pub(super) acknowledged: Option<Micros>,
    /// Whether it never took effect.
    pub(super) failed: bool,
    /// Whether the database had it and has lost it.
    pub(super) lost: bool,
    /// Whether the database may have lost it, so that its acknowledgement proves nothing.
    pub(super) uncertain: bool,
    /// The first response that showed it or a later write.
    pub(super) seen: Option<Sighting>,
    /// The etag after it.
    pub(super) etag: Option<String>,
}

/// A response that shows that a write took effect.
#[derive(Debug, Clone)]
pub(super) struct Sighting {
    pub(super) end: Micros,
    pub(super) line: String,
}

/// The evidence for the effect of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    Acknowledgement,
    /// An acknowledgement, or a response that shows it.
    Sight,
}

/// A possible state of a register: the one after an entry, or, before the first one, none.
#[derive(Debug, Clone, Copy)]
pub(super) struct State<'a>(Option<(usize, &'a Entry)>);

impl<'a> State<'a> {
    pub(super) fn content(self) -> Option<&'a Content> {
        self.0.and_then(|(_, entry)| entry.write.leaves.as_ref())
    }

    pub(super) fn version(self) -> Option<u32> {
        self.0.map(|(_, entry)| entry.write.label.version)
    }
}

impl Entry {
    /// An entry for a write that is being sent.
    pub(super) fn new(write: &Write) -> Self {
        let text = write.leaves.as_ref();
        Self {
            text: text.map_or_else(String::new, |content| content.text(write.label)),
            write: write.clone(),
            attempts: 1,
            ended: None,
            acknowledged: None,
            failed: false,
            lost: false,
            uncertain: false,
            seen: None,
            etag: None,
        }
    }

    /// The write is sent again.
    pub(super) fn retry(&mut self) {
        self.attempts += 1;
        self.ended = None;
        if self.lost || self.uncertain {
            // It takes effect anew, if it does.
            self.etag = None;
        }
        (self.lost, self.uncertain) = (false, false);
    }

    /// Whether it has no effect.
    pub(super) fn is_void(&self) -> bool {
        self.failed || self.lost
    }

    pub(super) fn known_since(&self, proof: Proof) -> Option<Micros> {
        match (proof, self.acknowledged, &self.seen) {
            (Proof::Sight, Some(at), Some(seen)) => Some(at.min(seen.end)),
            (Proof::Sight, None, Some(seen)) => Some(seen.end),
            (_, at, _) => at,
        }
    }
}

impl Register {
    /// The states that it can have had during a span, latest first.
    pub(super) fn states(&self, span: Span, proof: Proof) -> impl Iterator<Item = State<'_>> {
        let mut known = false;
        let entries = self.0.iter().enumerate().rev();
        let written = entries
            .filter(move |(_, entry)| !entry.is_void() && entry.write.at <= span.end)
            .map(|(index, entry)| State(Some((index, entry))));
        written
            .chain(std::iter::once(State(None)))
            .take_while(move |state| {
                let before = known;
                known = state
                    .0
                    .and_then(|(_, entry)| entry.known_since(proof))
                    .is_some_and(|at| at <= span.start)
                    || known;
                !before
            })
    }

    /// Checks that some state explains a response. If only states after a write do, the response is a
    /// sighting of that write.
    pub(super) fn explain(
        &mut self,
        span: Span,
        sighting: impl Fn() -> String,
        fits: impl Fn(State<'_>) -> bool,
    ) -> Result<(), Anomaly> {
        let explanations = self
            .states(span, Proof::Acknowledgement)
            .filter(|state| fits(*state));
        let oldest = explanations.last().ok_or(Anomaly::Stale)?;
        let index = oldest.0.map(|(index, _)| index);
        let linear = self.states(span, Proof::Sight).any(fits);
        if let Some(entry) = index.and_then(|index| self.0.get_mut(index))
            && entry
                .known_since(Proof::Sight)
                .is_none_or(|at| at > span.end)
        {
            entry.seen = Some(Sighting {
                end: span.end,
                line: sighting(),
            });
        }
        if linear { Ok(()) } else { Err(Anomaly::Unseen) }
    }

    /// Judges a complete list that doesn't contain this location.
    pub(super) fn lacking(
        &mut self,
        name: Name,
        read: &Read,
        span: Span,
        query: &Query,
    ) -> Verdict {
        let matches = |state: State<'_>| {
            let content = state.content();
            content.is_some_and(|content| query.matches(name, content))
        };
        let line = || read.line(span, None, &format!("lacks {name}"));
        let judged = if read.pages.len() == 1 {
            self.explain(span, line, |state| !matches(state))
        } else {
            // A location that has changed may have moved to a page that was read before.
            let mut states = self.states(span, Proof::Acknowledgement);
            match (states.next(), states.next()) {
                (Some(state), None) if matches(state) => Err(Anomaly::Stale),
                _ => Ok(()),
            }
        };
        judged.or_else(|anomaly| {
            let lines = self.evidence(span, anomaly.proof(), None, line());
            Wrong::new(anomaly, name, lines)
        })
    }

    /// Begins anew from the state that the database has at `now`, after it has lost writes since
    /// `begun`: `left` is the last write that it still has, if any.
    pub(super) fn lose(&mut self, left: Option<u32>, begun: Micros, now: Micros) {
        for entry in &mut self.0 {
            let version = entry.write.label.version;
            entry.seen = None;
            if !matches!(entry.ended, Some((_, Outcome::Acknowledged(_)))) {
                // A later attempt may store it with another etag.
                entry.etag = None;
            }
            if left == Some(version) {
                entry.acknowledged = Some(now);
            } else if left.is_none_or(|left| left < version) {
                let outcome = entry.ended.as_ref();
                entry.lost |= outcome.is_some_and(|(at, outcome)| {
                    matches!(outcome, Outcome::Acknowledged(_)) && *at < begun
                });
                entry.acknowledged = None;
                entry.uncertain = true;
            }
        }
    }

    /// Whether the location doesn't exist, and no write of it can take effect any more.
    pub(super) fn is_over(&self) -> bool {
        let is_deletion =
            |entry: &Entry| entry.acknowledged.is_some() && entry.write.leaves.is_none();
        self.0.back().is_some_and(is_deletion) || self.0.iter().all(Entry::is_void)
    }

    pub(super) fn entry(&self, version: u32) -> Option<&Entry> {
        let first = self.0.front()?.write.label.version;
        let index = usize::try_from(version.checked_sub(first)?).ok()?;
        self.0.get(index)
    }

    pub(super) fn entry_mut(&mut self, version: u32) -> Option<&mut Entry> {
        let first = self.0.front()?.write.label.version;
        let index = usize::try_from(version.checked_sub(first)?).ok()?;
        self.0.get_mut(index)
    }

    /// The last write that was known to have taken effect when a read began.
    pub(super) fn last_known(&self, before: Micros, proof: Proof) -> Option<&Entry> {
        let known = |entry: &&Entry| entry.known_since(proof).is_some_and(|at| at <= before);
        self.0.iter().rev().find(known)
    }

    /// Drops writes that no response can show any more.
    pub(super) fn prune(&mut self, now: Micros) {
        let over = |entry: &Entry| {
            let at = entry.acknowledged;
            at.is_some_and(|at| at + RETENTION < now)
        };
        while self.0.len() > WRITES_KEPT && self.0.get(1).is_some_and(over) {
            self.0.pop_front();
        }
    }
}

impl Entry {
    /// The write as a line of text.
    pub(super) fn line(&self) -> String {
        let Write {
            at,
            client,
            replica,
            label,
            description,
            ..
        } = &self.write;
        let (end, outcome) = match &self.ended {
            None => ("...".to_owned(), "in flight".to_owned()),
            Some((end, Outcome::Acknowledged(_))) => (seconds(*end), "acknowledged".to_owned()),
            Some((end, Outcome::Failed(error))) => (seconds(*end), format!("failed, {error}")),
            Some((end, Outcome::InDoubt(error))) => {
                (seconds(*end), format!("outcome unknown, {error}"))
            }
        };
        let again = match self.attempts {
            1 => String::new(),
            attempts => format!(" in {attempts} attempts"),
        };
        format!(
            "  {} to {end}  client {client} -> replica {replica}  {label} {description}: {outcome}{again}",
            seconds(*at)
        )
    }
}

impl Register {
    /// The write that a response shows, the write that it should show, and the read.
    pub(super) fn evidence(
        &self,
        span: Span,
        proof: Proof,
        shows: Option<u32>,
        read: String,
    ) -> Vec<String> {
        let last = self.last_known(span.start, proof);
        let mut lines = Vec::new();
        if let Some(shown) = shows.and_then(|version| self.entry(version)) {
            lines.push(shown.line());
        }
        if let Some(last) = last {
            lines.push(last.line());
            if proof == Proof::Sight {
                lines.extend(last.seen.as_ref().map(|seen| seen.line.clone()));
            }
        }
        lines.push(read);
        if let Some(at) = last.and_then(|last| last.known_since(proof)) {
            lines.push(format!("  which began {} µs later", span.start - at));
        }
        lines
    }
}
