//! The figures of a run: counts, durations, errors and violations, in bounded memory.

mod histogram;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use serde_json::{Value, json};

use self::histogram::Histogram;
use crate::{
    history::{Event, Fault, Micros, Operation, Outcome, Phase, Read, Reply, Written},
    judge::{Anomaly, Violation},
};

/// Maximum number of different errors that are counted.
const MAX_ERRORS: usize = 40;

/// The figures of a run.
#[derive(Debug, Default)]
pub struct Figures {
    /// The time of the last event.
    until: Micros,
    acknowledged: u64,
    failed: u64,
    in_doubt: u64,
    write_latency: Histogram,
    read_latency: Histogram,
    judged: BTreeMap<&'static str, u64>,
    /// Calls by the value of `cache-status`.
    cache: BTreeMap<String, u64>,
    reads_failed: u64,
    /// Reads while the database lost writes, or of a replica that reached an old primary.
    not_judged: u64,
    errors: BTreeMap<String, u64>,
    /// The time of the last acknowledgement of a write.
    last_acknowledged: Micros,
    faults: BTreeMap<String, FaultFigures>,
    /// The current fault, until the service has recovered from it.
    current: Option<Current>,
    /// The figures of the time without a fault.
    no_fault: FaultFigures,
    violations: BTreeMap<Anomaly, u64>,
}

/// The effects of a kind of fault.
#[derive(Debug, Default)]
struct FaultFigures {
    count: u64,
    unrecovered: u64,
    /// The time from the start until the first acknowledgement of a write sent after it.
    first_write: Extremes,
    /// The time between two acknowledgements of writes.
    gap: Extremes,
    /// The time from the end until every replica has acknowledged a write and had a hit.
    recovered: Extremes,
    writes: Tally,
    reads: Tally,
}

/// Counts of calls by success.
#[derive(Debug, Default)]
struct Tally {
    ok: u64,
    failed: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.ok, self.ok + self.failed))
    }
}

/// The shortest and the longest of some durations.
#[derive(Debug, Default, Clone, Copy)]
struct Extremes(Option<(Micros, Micros)>);

impl Extremes {
    fn add(&mut self, time: Micros) {
        let (least, most) = self.0.unwrap_or((time, time));
        self.0 = Some((least.min(time), most.max(time)));
    }

    fn json(self) -> Value {
        self.0.map_or(
            Value::Null,
            |(least, most)| json!({ "least_ms": ms(least), "most_ms": ms(most) }),
        )
    }
}

impl fmt::Display for Extremes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.pad("-"),
            Some((least, most)) if least == most => f.pad(&format!("{:.0}", ms(least))),
            Some((least, most)) => f.pad(&format!("{:.0}-{:.0}", ms(least), ms(most))),
        }
    }
}

#[derive(Debug)]
struct Current {
    fault: Fault,
    ended: Option<Micros>,
    first_write: bool,
}

impl Figures {
    /// Counts the next event. `judged` is false for a read that can't be judged.
    pub fn observe(&mut self, event: &Event, judged: bool) {
        match event {
            Event::Write(write) => self.until = self.until.max(write.at),
            Event::Written(written) => self.written(written),
            Event::Read(read) if judged => self.read(read),
            Event::Read(_) => self.not_judged += 1,
            Event::Fault(fault) => self.fault(fault),
            Event::Loss(_) | Event::Apart(_) | Event::Databases(_) => {}
        }
    }

    /// Counts a violation.
    pub fn count(&mut self, violation: &Violation) {
        *self.violations.entry(violation.anomaly).or_default() += 1;
    }

    /// The number of violations of a kind.
    pub fn violations(&self, anomaly: Anomaly) -> u64 {
        self.violations.get(&anomaly).copied().unwrap_or_default()
    }

    /// The number of acknowledged writes.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The number of judged reads.
    pub fn judged(&self) -> u64 {
        self.judged.values().sum()
    }

    /// Whether some writes were acknowledged and some reads judged.
    pub fn are_any(&self) -> bool {
        self.acknowledged() > 0 && self.judged() > 0
    }

    fn current(&mut self) -> &mut FaultFigures {
        match &self.current {
            Some(current) => self.faults.entry(current.fault.kind.clone()).or_default(),
            None => &mut self.no_fault,
        }
    }

    fn written(&mut self, written: &Written) {
        self.until = self.until.max(written.at);
        match &written.outcome {
            Outcome::Acknowledged(_) => {
                self.acknowledged += 1;
                self.write_latency.add(written.at - written.begun);
                let gap = written.at.saturating_sub(self.last_acknowledged);
                self.last_acknowledged = self.last_acknowledged.max(written.at);
                self.current().gap.add(gap);
                self.current().writes.ok += 1;
                if let Some(current) = &mut self.current
                    && !current.first_write
                    && written.begun > current.fault.at
                {
                    current.first_write = true;
                    let since = written.at - current.fault.at;
                    self.current().first_write.add(since);
                }
            }
            Outcome::Failed(error) => {
                self.failed += 1;
                self.error("write", error);
                self.current().writes.failed += 1;
            }
            Outcome::InDoubt(error) => {
                self.in_doubt += 1;
                self.error("write in doubt", error);
                self.current().writes.failed += 1;
            }
        }
    }

    fn read(&mut self, read: &Read) {
        for page in &read.pages {
            self.until = self.until.max(page.end);
            if let Reply::Failed(error) = &page.reply {
                self.reads_failed += 1;
                self.error("read", error);
                self.current().reads.failed += 1;
                return;
            }
            self.read_latency.add(page.end - page.start);
            let status = page
                .cache
                .trim_start_matches("location-service; ")
                .to_owned();
            *self.cache.entry(status).or_default() += 1;
        }
        let kind = match (&read.operation, read.pages.len()) {
            (Operation::List(_), 1) => "lists",
            (Operation::List(_), _) => "lists of several pages",
            (Operation::Get(_), _) => "gets",
            (Operation::Reports(_), _) => "reports",
        };
        *self.judged.entry(kind).or_default() += 1;
        self.current().reads.ok += 1;
    }

    fn fault(&mut self, fault: &Fault) {
        self.until = self.until.max(fault.at);
        match fault.phase {
            Phase::Begins => {
                self.current = Some(Current {
                    fault: fault.clone(),
                    ended: None,
                    first_write: false,
                });
                self.current().count += 1;
            }
            Phase::Ends => {
                if let Some(current) = &mut self.current {
                    current.ended = Some(fault.at);
                }
            }
            Phase::Recovered | Phase::Unrecovered => {
                let gap = fault.at.saturating_sub(self.last_acknowledged);
                let ended = self.current.as_ref().and_then(|current| current.ended);
                let figures = self.current();
                figures.gap.add(gap);
                if fault.phase == Phase::Unrecovered {
                    figures.unrecovered += 1;
                } else if let Some(ended) = ended {
                    figures.recovered.add(fault.at - ended);
                }
                self.current = None;
            }
        }
    }

    fn error(&mut self, call: &str, error: &str) {
        let text = format!("{call}: {error}");
        if self.errors.len() < MAX_ERRORS || self.errors.contains_key(&text) {
            *self.errors.entry(text).or_default() += 1;
        }
    }

    fn hits(&self) -> u64 {
        let hits = self
            .cache
            .iter()
            .filter(|(status, _)| status.starts_with("hit"));
        hits.map(|(_, count)| count).sum()
    }

    /// The figures as JSON.
    pub fn json(&self) -> Value {
        let (acknowledged, judged) = (self.acknowledged(), self.judged());
        let faults = self
            .faults
            .iter()
            .map(|(kind, it)| (kind.clone(), it.json()));
        let violations = Anomaly::ALL.map(|anomaly| {
            let (word, _) = anomaly.describe();
            (word.to_owned(), self.violations(anomaly).into())
        });
        json!({
            "seconds": ms(self.until) / 1_000.0,
            "writes": {
                "acknowledged": acknowledged,
                "failed": self.failed,
                "in_doubt": self.in_doubt,
                "latency": self.write_latency.json(),
            },
            "reads": {
                "judged": judged,
                "by_method": self.judged,
                "calls_by_cache_status": self.cache,
                "hits": self.hits(),
                "failed": self.reads_failed,
                "not_judged": self.not_judged,
                "latency": self.read_latency.json(),
            },
            "errors": self.errors,
            "no_fault": self.no_fault.json(),
            "faults": faults.collect::<serde_json::Map<_, _>>(),
            "violations": violations.into_iter().collect::<serde_json::Map<_, Value>>(),
        })
    }
}

impl FaultFigures {
    fn json(&self) -> Value {
        json!({
            "count": self.count,
            "unrecovered": self.unrecovered,
            "first_acknowledged_write": self.first_write.json(),
            "longest_gap_without_acknowledged_write_ms": self.gap.0.map(|(_, most)| ms(most)),
            "recovery": self.recovered.json(),
            "writes": { "acknowledged": self.writes.ok, "failed": self.writes.failed },
            "reads": { "ok": self.reads.ok, "failed": self.reads.failed },
        })
    }

    fn row(&self, text: &mut String, name: &str) {
        let gap = self.gap.0.map_or(0.0, |(_, most)| ms(most));
        let _ = writeln!(
            text,
            "  {name:<16}{:>6}{:>14}{gap:>10.0}{:>14}{:>16}{:>16}",
            self.count, self.first_write, self.recovered, self.writes, self.reads,
        );
        if self.unrecovered > 0 {
            let _ = writeln!(
                text,
                "  {name:<16} not recovered in time: {}",
                self.unrecovered
            );
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (acknowledged, judged) = (self.acknowledged(), self.judged());
        let calls: u64 = self.cache.values().sum();
        let mut text = String::new();
        let seconds = ms(self.until) / 1_000.0;
        let _ = writeln!(text, "{seconds:.1} s");
        let _ = writeln!(
            text,
            "writes: {acknowledged} acknowledged, {} failed, {} in doubt; {}",
            self.failed, self.in_doubt, self.write_latency
        );
        let _ = writeln!(
            text,
            "reads: {judged} judged, {} failed, {} not judged; {}",
            self.reads_failed, self.not_judged, self.read_latency
        );
        for (method, count) in &self.judged {
            let _ = writeln!(text, "  {count:>10}  {method}");
        }
        let _ = writeln!(
            text,
            "calls by cache-status ({calls}, of which {} hits)",
            self.hits()
        );
        for (status, count) in &self.cache {
            let _ = writeln!(text, "  {count:>10}  {status}");
        }
        if !self.errors.is_empty() {
            let _ = writeln!(text, "errors");
        }
        for (error, count) in &self.errors {
            let _ = writeln!(text, "  {count:>10}  {error}");
        }
        if !self.faults.is_empty() {
            let _ = writeln!(
                text,
                "  {:<16}{:>6}{:>14}{:>10}{:>14}{:>16}{:>16}",
                "fault", "count", "1st write ms", "gap ms", "recovery ms", "writes ok", "reads ok"
            );
            self.no_fault.row(&mut text, "(none)");
            for (kind, figures) in &self.faults {
                figures.row(&mut text, kind);
            }
        }
        for anomaly in Anomaly::ALL {
            let (word, meaning) = anomaly.describe();
            let _ = writeln!(text, "{word}: {} ({meaning})", self.violations(anomaly));
        }
        f.write_str(text.trim_end())
    }
}

#[expect(clippy::cast_precision_loss, reason = "printed to a tenth")]
fn ms(time: Micros) -> f64 {
    time as f64 / 1_000.0
}
