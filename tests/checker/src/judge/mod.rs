//! Judges a history, event by event and in bounded memory.
//!
//! Each location is a register whose writes are known in their order, because one client does them
//! all, one after the other. At any moment it is in one of the states that they left. An answer
//! narrows down which: a list that shows `c3.17.2` says that the third write was the last one then,
//! and a list of run r1 that lacks c3.17 says that it was in another run, or wasn't there. An answer
//! is right if, for each location that it is about, some state explains it that the location may
//! have had between the call's begin and its end:
//!
//! - the state that the last write left that was acknowledged before the call began;
//! - any that a later write left or may leave, if it was sent before the call ended. A write whose
//!   outcome is in doubt may take effect at any time until a later one is acknowledged, or never.
//!
//! All times are of one clock, and a write is known to the judge before it is sent, so nothing here
//! depends on how fast anything is: what is reported is wrong, whatever the delays were.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt,
};

use crate::history::{
    Answer, Ask, Content, Event, Fault, Item, Kind, Label, Micros, Name, Outcome, Page, Phase,
    Question, Read, Write, Written,
};

/// How long what is over is remembered. No read takes longer.
const MEMORY: Micros = 120_000_000;

/// How many writes of a location are remembered at least, to tell whose state an old answer shows.
const WRITES_KEPT: usize = 8;

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// It is from before a write that was acknowledged before the read began.
    Stale,
    /// It is from before what another read had shown before this one began: linearizability.
    Unseen,
    /// It shows a write that was said to have changed nothing.
    Undone,
    /// It shows a caller what they may not see.
    Exposed,
    /// It shows what nobody wrote, or doesn't fit the question.
    Invented,
}

impl Anomaly {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Stale,
        Self::Unseen,
        Self::Undone,
        Self::Exposed,
        Self::Invented,
    ];

    /// In a word, and what that means.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Stale => (
                "stale",
                "the answer is from before a write that was acknowledged before the read began",
            ),
            Self::Unseen => (
                "unseen",
                "the answer is from before what another read had shown before this one began",
            ),
            Self::Undone => (
                "undone",
                "the answer shows a write that was said to have changed nothing",
            ),
            Self::Exposed => ("exposed", "the answer shows what its caller may not see"),
            Self::Invented => (
                "invented",
                "the answer shows what nobody wrote, or doesn't fit the question",
            ),
        }
    }
}

/// A wrong answer.
#[derive(Debug)]
pub struct Violation {
    /// What is wrong.
    pub anomaly: Anomaly,
    /// The shortest piece of history that shows it, for people.
    pub text: String,
}

/// What is known of all locations that some answer may still be about.
#[derive(Debug, Default)]
pub struct Judge {
    /// The locations that exist, or may.
    living: HashMap<Name, Register>,
    /// Those that don't any more, for a while.
    dead: HashMap<Name, Register>,
    /// When each of them died, in this order.
    deaths: VecDeque<(Micros, Name)>,
    /// The last location of each client.
    latest: HashMap<u16, u32>,
    now: Micros,
    /// The fault that strikes now.
    fault: Option<Fault>,
}

/// The writes of a location that may still matter, in their order.
#[derive(Debug, Default)]
struct Register(VecDeque<Entry>);

/// A write.
#[derive(Debug)]
struct Entry {
    write: Write,
    /// The location as text after it.
    text: String,
    /// How often it was sent.
    attempts: u32,
    /// When and how its last attempt ended.
    ended: Option<(Micros, Outcome)>,
    acknowledged: Option<Micros>,
    /// It was never done.
    failed: bool,
    /// The first read that showed it, or something later.
    seen: Option<Sighting>,
    /// The etag that it left.
    etag: Option<String>,
}

/// An answer that shows that a write was done.
#[derive(Debug, Clone)]
struct Sighting {
    end: Micros,
    line: String,
}

/// What makes sure that a write is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Acknowledgement,
    /// That, or an answer that shows it.
    Sight,
}

/// A call's time.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: Micros,
    end: Micros,
}

/// What a register may have been: what an entry left, or, before the first one, nothing.
#[derive(Debug, Clone, Copy)]
struct State<'a>(Option<(usize, &'a Entry)>);

impl<'a> State<'a> {
    fn content(self) -> Option<&'a Content> {
        self.0.and_then(|(_, entry)| entry.write.leaves.as_ref())
    }

    fn version(self) -> Option<u32> {
        self.0.map(|(_, entry)| entry.write.label.version)
    }
}

impl Entry {
    fn settled(&self, proof: Proof) -> Option<Micros> {
        match (proof, self.acknowledged, &self.seen) {
            (Proof::Sight, Some(at), Some(seen)) => Some(at.min(seen.end)),
            (Proof::Sight, None, Some(seen)) => Some(seen.end),
            (_, at, _) => at,
        }
    }
}

impl Register {
    /// What it may have been at some moment of a span, the newest first.
    fn states(&self, span: Span, proof: Proof) -> impl Iterator<Item = State<'_>> {
        let mut settled = false;
        let entries = self.0.iter().enumerate().rev();
        let written = entries
            .filter(move |(_, entry)| !entry.failed && entry.write.at <= span.end)
            .map(|(index, entry)| State(Some((index, entry))));
        written
            .chain(std::iter::once(State(None)))
            .take_while(move |state| {
                let before = settled;
                settled = state
                    .0
                    .and_then(|(_, entry)| entry.settled(proof))
                    .is_some_and(|at| at <= span.start)
                    || settled;
                !before
            })
    }

    /// Whether some state explains an answer. What is explained by later states alone shows that it
    /// is later.
    fn explain(
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
            && entry.settled(Proof::Sight).is_none_or(|at| at > span.end)
        {
            entry.seen = Some(Sighting {
                end: span.end,
                line: sighting(),
            });
        }
        if linear { Ok(()) } else { Err(Anomaly::Unseen) }
    }

    /// Judges a complete list that lacks this location.
    fn lacking(&mut self, name: Name, read: &Read, span: Span, question: &Question) -> Verdict {
        let matches = |state: State<'_>| {
            let content = state.content();
            content.is_some_and(|content| question.matches(name, content))
        };
        let line = || read.line(span, None, &format!("lacks {name}"));
        let judged = if read.pages.len() == 1 {
            self.explain(span, line, |state| !matches(state))
        } else {
            // If it has changed, it may have moved to a page that had been read before.
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

    fn entry(&self, version: u32) -> Option<&Entry> {
        let first = self.0.front()?.write.label.version;
        let index = usize::try_from(version.checked_sub(first)?).ok()?;
        self.0.get(index)
    }

    fn entry_mut(&mut self, version: u32) -> Option<&mut Entry> {
        let first = self.0.front()?.write.label.version;
        let index = usize::try_from(version.checked_sub(first)?).ok()?;
        self.0.get_mut(index)
    }

    /// What it was last known to be when a read began.
    fn last_settled(&self, before: Micros, proof: Proof) -> Option<&Entry> {
        let settled = |entry: &&Entry| entry.settled(proof).is_some_and(|at| at <= before);
        self.0.iter().rev().find(settled)
    }

    /// Forgets writes that no read can be about any more.
    fn forget(&mut self, now: Micros) {
        let over = |entry: &Entry| {
            let at = entry.acknowledged;
            at.is_some_and(|at| at + MEMORY < now)
        };
        while self.0.len() > WRITES_KEPT && self.0.get(1).is_some_and(over) {
            self.0.pop_front();
        }
    }
}

impl Judge {
    /// Takes the next event into account, and judges it.
    pub fn hear(&mut self, event: &Event) -> Option<Violation> {
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
                    Phase::Overcome | Phase::Lasting => None,
                };
                Ok(())
            }
        };
        judged.err().map(|wrong| {
            let Wrong {
                anomaly,
                name,
                mut lines,
            } = *wrong;
            lines.extend(self.fault.as_ref().map(Fault::line));
            let (word, meaning) = anomaly.describe();
            let text = format!("{word}: {name}: {meaning}\n{}", lines.join("\n"));
            Violation { anomaly, text }
        })
    }

    /// How many locations are remembered.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.living.len() + self.dead.len()
    }

    fn begin(&mut self, write: &Write) {
        self.pass(write.at);
        let Label { name, version } = write.label;
        if version == 0 {
            self.latest.insert(name.client, name.serial);
        }
        let register = self.living.entry(name).or_default();
        if let Some(entry) = register.entry_mut(version) {
            entry.attempts += 1;
            entry.ended = None;
            return;
        }
        let text = write.leaves.as_ref();
        register.0.push_back(Entry {
            text: text.map_or_else(String::new, |content| content.text(write.label)),
            write: write.clone(),
            attempts: 1,
            ended: None,
            acknowledged: None,
            failed: false,
            seen: None,
            etag: None,
        });
        register.forget(self.now);
    }

    fn end(&mut self, written: &Written) -> Verdict {
        self.pass(written.at);
        let Label { name, version } = written.label;
        let register = self.living.get_mut(&name);
        let Some(entry) = register.and_then(|register| register.entry_mut(version)) else {
            return Ok(());
        };
        entry.ended = Some((written.at, written.outcome.clone()));
        let mut judged = Ok(());
        match &written.outcome {
            Outcome::Acknowledged(etag) => {
                entry.acknowledged.get_or_insert(written.at);
                if entry.etag.is_some() && entry.etag != *etag {
                    judged = Err(Anomaly::Invented);
                }
                entry.etag.clone_from(etag);
            }
            // An earlier attempt may have been done, or may be yet.
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
        let over = entry.acknowledged.is_some() && entry.write.leaves.is_none()
            || entry.failed && version == 0;
        if over && let Some(register) = self.living.remove(&name) {
            self.dead.insert(name, register);
            self.deaths.push_back((written.at, name));
        }
        judged
    }

    fn read(&mut self, read: &Read) -> Verdict {
        let Some(span) = read.span() else {
            return Ok(());
        };
        self.pass(span.end);
        if span.end - span.start > MEMORY {
            return Ok(());
        }
        match &read.ask {
            Ask::List(question) => self.list(read, span, question),
            Ask::Get(name) => self.get(read, *name),
            Ask::Reports(question) => self.reports(read, question),
        }
    }

    fn list(&mut self, read: &Read, span: Span, question: &Question) -> Verdict {
        let question = &read.scoped(question)?;
        let mut shown = HashSet::new();
        for page in &read.pages {
            let Answer::Locations(items, _) = &page.answer else {
                read.unexpected(page)?;
                return Ok(());
            };
            for item in items {
                self.shown(read, page, Some(question), item)?;
                if !shown.insert(item.label.name) {
                    // On another page it may be again, if it has moved meanwhile.
                    self.twice(read, span, page, item)?;
                }
            }
        }
        let last = read.pages.last();
        let complete = last.is_some_and(|page| matches!(page.answer, Answer::Locations(_, true)));
        if !complete {
            return Ok(());
        }
        for (name, register) in &mut self.living {
            if !shown.contains(name) {
                register.lacking(*name, read, span, question)?;
            }
        }
        // Those that have died since the read began.
        let died = self.deaths.iter().rev();
        for (_, name) in died.take_while(|(at, _)| *at >= span.start) {
            if !shown.contains(name)
                && let Some(register) = self.dead.get_mut(name)
            {
                register.lacking(*name, read, span, question)?;
            }
        }
        Ok(())
    }

    /// Judges a location that an answer shows.
    fn shown(
        &mut self,
        read: &Read,
        page: &Page,
        question: Option<&Question>,
        item: &Item,
    ) -> Verdict {
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
                    format!("  {name} was deleted over {} s before", MEMORY / 1_000_000),
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
        if question.is_some_and(|question| !question.matches(name, content)) {
            return Wrong::new(Anomaly::Invented, name, vec![entry.line(), line()]);
        }
        let explained = register.explain(span, line, |state| state.version() == Some(version));
        if let Err(anomaly) = explained {
            let lines = register.evidence(span, anomaly.proof(), Some(version), line());
            return Wrong::new(anomaly, name, lines);
        }
        Ok(())
    }

    /// Judges a location that a list shows twice.
    fn twice(&self, read: &Read, span: Span, page: &Page, item: &Item) -> Verdict {
        let name = item.label.name;
        let register = self.living.get(&name).or_else(|| self.dead.get(&name));
        let states = register.map_or(0, |register| {
            register.states(span, Proof::Acknowledgement).count()
        });
        let Answer::Locations(items, _) = &page.answer else {
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
        match &page.answer {
            Answer::Locations(items, _) => {
                for item in items {
                    self.shown(read, page, None, item)?;
                    if item.label.name != name {
                        let line = read.line(page.span(), Some(page), "shows another");
                        return Wrong::new(Anomaly::Invented, name, vec![line]);
                    }
                }
                Ok(())
            }
            Answer::Missing => {
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

    /// Each report has to lie between what is there for sure and what may be.
    fn reports(&self, read: &Read, question: &Question) -> Verdict {
        let question = &read.scoped(question)?;
        let Some(page) = read.pages.first() else {
            return Ok(());
        };
        let Answer::Reports(rows) = &page.answer else {
            return read.unexpected(page);
        };
        let span = page.span();
        let recent = self.deaths.iter().rev();
        let recent = recent.take_while(|(at, _)| *at >= span.start);
        let dead = recent.filter_map(|(_, name)| self.dead.get_key_value(name));
        let mut bounds: BTreeMap<(Kind, &str), Bounds<'_>> = BTreeMap::new();
        for (name, register) in self.living.iter().chain(dead) {
            let states: Vec<_> = register
                .states(span, Proof::Acknowledgement)
                .map(|state| {
                    state
                        .content()
                        .filter(|content| question.matches(*name, content))
                })
                .collect();
            for content in states.iter().flatten() {
                let group = (content.kind, content.run.as_str());
                let bounds = bounds.entry(group).or_default();
                bounds.add(*name, register, group, &states);
            }
        }
        for row in rows {
            let group = (row.kind, row.run.as_str());
            let bounds = bounds.remove(&group).unwrap_or_default();
            bounds.check(read, page, group, row.sums)?;
        }
        for (group, bounds) in bounds {
            bounds.check(read, page, group, [0; 3])?;
        }
        Ok(())
    }

    /// Time passes, and what is long over is forgotten.
    fn pass(&mut self, now: Micros) {
        self.now = self.now.max(now);
        while let Some((at, name)) = self.deaths.front()
            && at + MEMORY < self.now
        {
            self.dead.remove(name);
            self.deaths.pop_front();
        }
    }
}

impl Fault {
    /// The fault in a line.
    fn line(&self) -> String {
        let Self {
            number, what, at, ..
        } = self;
        let since = match self.phase {
            Phase::Begins => "since",
            _ => "over since",
        };
        format!("  fault {number}: {what}, {since} {}", seconds(*at))
    }
}

/// How much a report may say, at least and at most.
#[derive(Debug, Default)]
struct Bounds<'a> {
    least: [i64; 3],
    most: [i64; 3],
    /// Who counts, each once.
    counted: HashMap<Name, &'a Register>,
}

impl<'a> Bounds<'a> {
    fn add(
        &mut self,
        name: Name,
        register: &'a Register,
        group: (Kind, &str),
        states: &[Option<&Content>],
    ) {
        if self.counted.insert(name, register).is_some() {
            return;
        }
        let sums = states.iter().map(|content| {
            let content = content.filter(|it| (it.kind, it.run.as_str()) == group);
            content.map_or([0; 3], |it| [1, i64::from(it.active), it.capacity])
        });
        for index in 0..3 {
            let values = sums.clone().map(|sums| sums[index]);
            self.least[index] += values.clone().min().unwrap_or_default();
            self.most[index] += values.max().unwrap_or_default();
        }
    }

    fn check(&self, read: &Read, page: &Page, group: (Kind, &str), sums: [i64; 3]) -> Verdict {
        let within =
            (0..3).all(|index| (self.least[index]..=self.most[index]).contains(&sums[index]));
        if within {
            return Ok(());
        }
        let (kind, run) = group;
        let span = page.span();
        // The likeliest to be missed: the last that was written before.
        let last = self.counted.iter().filter_map(|(name, register)| {
            let entry = register.last_settled(span.start, Proof::Acknowledgement)?;
            Some((entry.acknowledged, *name, entry))
        });
        let last = last.max_by_key(|(at, ..)| *at);
        let mut lines: Vec<String> = last.iter().map(|(.., entry)| entry.line()).collect();
        let what = format!(
            "reports locations, active, capacity = {sums:?} for {kind}, run {run:?}; \
             it must be {:?} to {:?}",
            self.least, self.most
        );
        lines.push(read.line(span, Some(page), &what));
        let name = last.map_or(
            Name {
                client: 0,
                serial: 0,
            },
            |(_, name, _)| name,
        );
        Wrong::new(Anomaly::Stale, name, lines)
    }
}

type Verdict = Result<(), Box<Wrong>>;

/// What is wrong with an answer, and about which location.
#[derive(Debug)]
struct Wrong {
    anomaly: Anomaly,
    name: Name,
    lines: Vec<String>,
}

impl Wrong {
    fn new(anomaly: Anomaly, name: Name, lines: Vec<String>) -> Verdict {
        Err(Box::new(Self {
            anomaly,
            name,
            lines,
        }))
    }
}

impl Anomaly {
    /// What would have had to be absent for the answer to be right.
    fn proof(self) -> Proof {
        match self {
            Self::Unseen => Proof::Sight,
            _ => Proof::Acknowledgement,
        }
    }
}

impl Page {
    fn span(&self) -> Span {
        Span {
            start: self.start,
            end: self.end,
        }
    }
}

impl Read {
    fn span(&self) -> Option<Span> {
        Some(Span {
            start: self.pages.first()?.start,
            end: self.pages.last()?.end,
        })
    }

    /// The question with the caller's scope in it, which may not be about somebody else.
    fn scoped(&self, question: &Question) -> Result<Question, Box<Wrong>> {
        let Some(scope) = &self.scope else {
            return Ok(question.clone());
        };
        let page = self.pages.first();
        let foreign = question.owner.as_ref().is_some_and(|owner| owner != scope);
        if foreign
            && let Some(page) = page
            && !matches!(page.answer, Answer::Refused | Answer::Failed(_))
        {
            let line = self.line(page.span(), Some(page), "is answered");
            let name = Name {
                client: self.client,
                serial: 0,
            };
            Wrong::new(Anomaly::Exposed, name, vec![line])?;
        }
        Ok(Question {
            owner: question.owner.clone().or_else(|| Some(scope.clone())),
            ..question.clone()
        })
    }

    /// Judges an answer of another kind than was asked for. Errors are right: they say nothing.
    fn unexpected(&self, page: &Page) -> Verdict {
        let foreign = match &self.ask {
            Ask::List(question) | Ask::Reports(question) => {
                question.owner.is_some() && question.owner != self.scope && self.scope.is_some()
            }
            Ask::Get(_) => false,
        };
        match &page.answer {
            Answer::Failed(_) => Ok(()),
            Answer::Refused if foreign => Ok(()),
            answer => {
                let line = self.line(page.span(), Some(page), &format!("answers {answer:?}"));
                let name = Name {
                    client: self.client,
                    serial: 0,
                };
                Wrong::new(Anomaly::Invented, name, vec![line])
            }
        }
    }

    /// The read, or one call of it, in a line.
    fn line(&self, span: Span, page: Option<&Page>, what: &str) -> String {
        let asked = match &self.ask {
            Ask::List(question) => format!("list of {question}"),
            Ask::Reports(question) => format!("report of {question}"),
            Ask::Get(name) => format!("get {name}"),
        };
        let caller = self.scope.as_deref().unwrap_or("an admin");
        let cache: Vec<_> = match page {
            Some(page) => vec![page.cache.as_str()],
            None => self.pages.iter().map(|page| page.cache.as_str()).collect(),
        };
        format!(
            "  {span}  client {} ({caller}) <- replica {}  {asked}: {what} [{}]",
            self.client,
            self.replica,
            cache.join(" | ")
        )
    }
}

impl Entry {
    /// The write in a line.
    fn line(&self) -> String {
        let Write {
            at,
            client,
            replica,
            label,
            what,
            ..
        } = &self.write;
        let (end, outcome) = match &self.ended {
            None => ("...".to_owned(), "under way".to_owned()),
            Some((end, Outcome::Acknowledged(_))) => (seconds(*end), "acknowledged".to_owned()),
            Some((end, Outcome::Failed(error))) => (seconds(*end), format!("failed, {error}")),
            Some((end, Outcome::InDoubt(error))) => (seconds(*end), format!("in doubt, {error}")),
        };
        let again = match self.attempts {
            1 => String::new(),
            attempts => format!(" in {attempts} attempts"),
        };
        format!(
            "  {} to {end}  client {client} -> replica {replica}  {label} {what}: {outcome}{again}",
            seconds(*at)
        )
    }
}

impl Register {
    /// What an answer should have reflected, and what it reflects.
    fn evidence(&self, span: Span, proof: Proof, shows: Option<u32>, read: String) -> Vec<String> {
        let last = self.last_settled(span.start, proof);
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
        if let Some(at) = last.and_then(|last| last.settled(proof)) {
            lines.push(format!("  which began {} µs later", span.start - at));
        }
        lines
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", seconds(self.start), seconds(self.end))
    }
}

/// A time in seconds.
pub fn seconds(at: Micros) -> String {
    format!("{}.{:06}", at / 1_000_000, at % 1_000_000)
}

#[cfg(test)]
mod tests;
