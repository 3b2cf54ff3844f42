//! Judges a history, event by event and in bounded memory.
//!
//! Each location is a register whose writes are known in their order, because a single client does all
//! of them, one after another. A response narrows down the state at the time of its call: a list that
//! shows `c3.17.2` shows that the third write was the last one, and a list of run r1 without c3.17 shows
//! that the location was in another run or didn't exist. A response is right if each location that it
//! covers is explained by a state that the location can have had between the call's start and end:
//!
//! - the state after the last write that was acknowledged before the call started;
//! - the state after a later write that was sent before the call ended. A write with an unknown outcome
//!   may take effect at any time until a later one is acknowledged, or never.
//!
//! A database that loses acknowledged writes begins a new history, with the state that it has then. Reads
//! and writes meanwhile prove nothing.
//!
//! All times are of one clock, and the judge knows a write before it is sent, so a violation never
//! depends on delays.

mod anomaly;
mod bounds;
mod loss;
mod register;
mod text;

use std::collections::{HashMap, HashSet, VecDeque};

pub use self::anomaly::{Anomaly, Finding, Violation};
use self::{
    anomaly::{Verdict, Wrong},
    register::{Entry, Proof, Register},
    text::Span,
};
use crate::history::{
    Event, Fault, Item, Label, Micros, Name, Operation, Outcome, Page, Phase, Query, Read, Reply,
    Write, Written,
};

/// How long past states and deleted locations are kept. Longer reads are not judged.
const RETENTION: Micros = 120_000_000;

/// The known states of all locations that a response can still show.
#[derive(Debug, Default)]
pub struct Judge {
    /// Locations that exist, or may exist.
    living: HashMap<Name, Register>,
    /// Locations deleted within the retention.
    dead: HashMap<Name, Register>,
    /// The dead locations with the time of their deletion, in that order.
    deaths: VecDeque<(Micros, Name)>,
    /// The number of the last location of each client.
    latest: HashMap<u16, u32>,
    now: Micros,
    /// The current fault, until the service has recovered from it.
    fault: Option<Fault>,
    /// When the database began to lose writes, until it has lost them.
    losing_since: Option<Micros>,
    /// The end of the last loss.
    lost_until: Option<Micros>,
    /// The replicas that have reached an old primary, each with the time of the start and of the end, if any.
    apart: HashMap<usize, (Micros, Option<Micros>)>,
}

impl Judge {
    /// Records the next event and judges it.
    pub fn observe(&mut self, event: &Event) -> Finding {
        let judged = match event {
            Event::Write(write) => {
                self.begin(write);
                Ok(())
            }
            Event::Written(written) => self.end(written),
            Event::Read(read) => self.read(read),
            Event::Fault(fault) => {
                self.fault = match fault.phase {
                    Phase::Begins | Phase::Ends => Some(fault.clone()),
                    Phase::Recovered | Phase::Unrecovered => None,
                };
                Ok(())
            }
            Event::Loss(loss) => {
                self.loss(loss);
                Ok(())
            }
            Event::Apart(apart) => {
                self.apart(apart);
                Ok(())
            }
            Event::Databases(_) => Ok(()),
        };
        match (judged, event) {
            (Err(wrong), _) => Finding::Wrong(self.violation(*wrong)),
            (Ok(()), Event::Read(read)) if !self.is_judged(read) => Finding::NotJudged,
            (Ok(()), _) => Finding::Right,
        }
    }

    fn violation(&self, wrong: Wrong) -> Violation {
        let Wrong {
            anomaly,
            name,
            mut lines,
        } = wrong;
        lines.extend(self.fault.as_ref().map(Fault::line));
        let (word, meaning) = anomaly.describe();
        let text = format!("{word}: {name}: {meaning}\n{}", lines.join("\n"));
        Violation { anomaly, text }
    }

    /// The number of locations kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.living.len() + self.dead.len()
    }

    fn begin(&mut self, write: &Write) {
        self.advance(write.at);
        let Label { name, version } = write.label;
        if version == 0 {
            self.latest.insert(name.client, name.serial);
        }
        let register = self.living.entry(name).or_default();
        if let Some(entry) = register.entry_mut(version) {
            entry.retry();
            return;
        }
        register.0.push_back(Entry::new(write));
        register.prune(self.now);
    }

    fn end(&mut self, written: &Written) -> Verdict {
        self.advance(written.at);
        let Label { name, version } = written.label;
        let is_apart = self.is_apart(written.replica, written.begun, written.at);
        let is_losing = self.losing_since.is_some();
        let register = self.living.get_mut(&name);
        let Some(entry) = register.and_then(|register| register.entry_mut(version)) else {
            return Ok(());
        };
        entry.uncertain |= is_apart;
        entry.ended = Some((written.at, written.outcome.clone()));
        let mut judged = Ok(());
        match &written.outcome {
            Outcome::Acknowledged(_) if entry.uncertain => {}
            Outcome::Acknowledged(etag) => {
                entry.acknowledged.get_or_insert(written.at);
                // While writes are being lost, an earlier attempt may be lost, and this one take effect.
                if !is_losing && entry.etag.is_some() && entry.etag != *etag {
                    judged = Err(Anomaly::Invented);
                }
                entry.etag.clone_from(etag);
            }
            // An earlier attempt may have taken effect, or may still do so.
            Outcome::Failed(_) if entry.attempts > 1 => {}
            Outcome::Failed(_) => {
                entry.failed = true;
                if entry.seen.is_some() {
                    judged = Err(Anomaly::Undone);
                }
            }
            Outcome::InDoubt(_) => {}
        }
        let judged = judged.or_else(|anomaly| {
            let mut lines = vec![entry.line()];
            lines.extend(entry.seen.as_ref().map(|seen| seen.line.clone()));
            Wrong::new(anomaly, name, lines)
        });
        self.retire(name, written.at);
        judged
    }

    /// Moves a location that doesn't exist any more to the dead ones.
    fn retire(&mut self, name: Name, at: Micros) {
        if let Some(register) = self.living.get(&name)
            && register.is_over()
            && let Some(register) = self.living.remove(&name)
        {
            self.dead.insert(name, register);
            self.deaths.push_back((at, name));
        }
    }

    fn read(&mut self, read: &Read) -> Verdict {
        let Some(span) = read.span() else {
            return Ok(());
        };
        self.advance(span.end);
        if !self.is_judged(read) {
            return Ok(());
        }
        match &read.operation {
            Operation::List(query) => self.list(read, span, query),
            Operation::Get(name) => self.get(read, *name),
            Operation::Reports(query) => self.reports(read, query),
        }
    }

    fn list(&mut self, read: &Read, span: Span, query: &Query) -> Verdict {
        let query = &read.scoped(query)?;
        let mut shown = HashSet::new();
        for page in &read.pages {
            let Reply::Locations { items, .. } = &page.reply else {
                read.unexpected(page)?;
                return Ok(());
            };
            for item in items {
                self.shown(read, page, Some(query), item)?;
                if !shown.insert(item.label.name) {
                    // A location that has moved meanwhile may be on a second page.
                    self.twice(read, span, page, item)?;
                }
            }
        }
        let last = read.pages.last();
        let complete =
            last.is_some_and(|page| matches!(page.reply, Reply::Locations { last: true, .. }));
        if !complete {
            return Ok(());
        }
        for (name, register) in &mut self.living {
            if !shown.contains(name) {
                register.lacking(*name, read, span, query)?;
            }
        }
        // Locations deleted since the read began.
        let died = self.deaths.iter().rev();
        for (_, name) in died.take_while(|(at, _)| *at >= span.start) {
            if !shown.contains(name)
                && let Some(register) = self.dead.get_mut(name)
            {
                register.lacking(*name, read, span, query)?;
            }
        }
        Ok(())
    }

    /// Judges a location in a response.
    fn shown(&mut self, read: &Read, page: &Page, query: Option<&Query>, item: &Item) -> Verdict {
        let Label { name, version } = item.label;
        let span = page.span();
        let line = || read.line(span, Some(page), &format!("shows {}", item.label));
        let Some(register) = self
            .living
            .get_mut(&name)
            .or_else(|| self.dead.get_mut(&name))
        else {
            let known = self.latest.get(&name.client);
            let gone = known.is_some_and(|latest| name.serial <= *latest);
            let lines = if gone {
                vec![
                    format!(
                        "  {name} was deleted over {} s before",
                        RETENTION / 1_000_000
                    ),
                    line(),
                ]
            } else {
                vec![format!("  {name} was never written"), line()]
            };
            let anomaly = if gone {
                Anomaly::Stale
            } else {
                Anomaly::Invented
            };
            return Wrong::new(anomaly, name, lines);
        };
        let Some(entry) = register.entry_mut(version) else {
            let anomaly = if register
                .0
                .back()
                .is_some_and(|last| last.write.label.version < version)
            {
                Anomaly::Invented
            } else {
                Anomaly::Stale
            };
            let lines = register.evidence(span, Proof::Acknowledgement, None, line());
            return Wrong::new(anomaly, name, lines);
        };
        if entry.failed {
            let lines = vec![entry.line(), line()];
            return Wrong::new(Anomaly::Undone, name, lines);
        }
        if entry.lost {
            let lines = vec![entry.line(), line()];
            return Wrong::new(Anomaly::Lost, name, lines);
        }
        let Some(content) = &entry.write.leaves else {
            let lines = vec![entry.line(), line()];
            return Wrong::new(Anomaly::Invented, name, lines);
        };
        let etag = entry.etag.get_or_insert_with(|| item.etag.clone()).clone();
        if entry.text != item.text || etag != item.etag {
            let lines = vec![
                entry.line(),
                line(),
                format!("  expected \"{}\" with etag {etag}", entry.text),
                format!("  found    \"{}\" with etag {}", item.text, item.etag),
            ];
            return Wrong::new(Anomaly::Invented, name, lines);
        }
        if read
            .scope
            .as_ref()
            .is_some_and(|scope| *scope != content.owner)
        {
            return Wrong::new(Anomaly::Exposed, name, vec![entry.line(), line()]);
        }
        if query.is_some_and(|query| !query.matches(name, content)) {
            return Wrong::new(Anomaly::Invented, name, vec![entry.line(), line()]);
        }
        let explained = register.explain(span, line, |state| state.version() == Some(version));
        if let Err(anomaly) = explained {
            let lines = register.evidence(span, anomaly.proof(), Some(version), line());
            return Wrong::new(anomaly, name, lines);
        }
        Ok(())
    }

    /// Judges a location that a list contains twice.
    fn twice(&self, read: &Read, span: Span, page: &Page, item: &Item) -> Verdict {
        let name = item.label.name;
        let register = self.living.get(&name).or_else(|| self.dead.get(&name));
        let states = register.map_or(0, |register| {
            register.states(span, Proof::Acknowledgement).count()
        });
        let Reply::Locations { items, .. } = &page.reply else {
            return Ok(());
        };
        let here = items.iter().filter(|other| other.label.name == name);
        if states > 1 && here.count() == 1 {
            return Ok(());
        }
        let line = read.line(page.span(), Some(page), &format!("shows {name} again"));
        Wrong::new(Anomaly::Invented, name, vec![line])
    }

    fn get(&mut self, read: &Read, name: Name) -> Verdict {
        let Some(page) = read.pages.first() else {
            return Ok(());
        };
        match &page.reply {
            Reply::Locations { items, .. } => {
                for item in items {
                    self.shown(read, page, None, item)?;
                    if item.label.name != name {
                        let line = read.line(page.span(), Some(page), "shows another");
                        return Wrong::new(Anomaly::Invented, name, vec![line]);
                    }
                }
                Ok(())
            }
            Reply::Missing => {
                let Some(register) = self.living.get_mut(&name) else {
                    return Ok(());
                };
                let owner = register
                    .0
                    .iter()
                    .find_map(|entry| entry.write.leaves.as_ref());
                let hidden = read
                    .scope
                    .as_ref()
                    .is_some_and(|scope| owner.is_some_and(|content| content.owner != *scope));
                if hidden {
                    return Ok(());
                }
                let span = page.span();
                let line = || read.line(span, Some(page), "finds nothing");
                register
                    .explain(span, line, |state| state.content().is_none())
                    .or_else(|anomaly| {
                        let lines = register.evidence(span, anomaly.proof(), None, line());
                        Wrong::new(anomaly, name, lines)
                    })
            }
            _ => read.unexpected(page),
        }
    }

    /// Advances the time, and drops locations past the retention.
    fn advance(&mut self, now: Micros) {
        self.now = self.now.max(now);
        while let Some((at, name)) = self.deaths.front()
            && at + RETENTION < self.now
        {
            self.dead.remove(name);
            self.deaths.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
