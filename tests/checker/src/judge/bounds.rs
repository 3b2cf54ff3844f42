//! The totals that a report can have.

use std::collections::{BTreeMap, HashMap};

use super::{
    Judge,
    anomaly::{Anomaly, Verdict, Wrong},
    register::{Proof, Register},
};
use crate::history::{Content, Kind, Name, Page, Query, Read, Reply};

impl Judge {
    /// Judges reports: each total must lie between the sum of the smallest and the sum of the largest
    /// possible contributions.
    pub(super) fn reports(&self, read: &Read, query: &Query) -> Verdict {
        let query = &read.scoped(query)?;
        let Some(page) = read.pages.first() else {
            return Ok(());
        };
        let Reply::Reports(rows) = &page.reply else {
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
                        .filter(|content| query.matches(*name, content))
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
}

/// The smallest and largest possible totals of a report.
#[derive(Debug, Default)]
pub(super) struct Bounds<'a> {
    least: [i64; 3],
    most: [i64; 3],
    /// The locations that contribute.
    counted: HashMap<Name, &'a Register>,
}

impl<'a> Bounds<'a> {
    pub(super) fn add(
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

    pub(super) fn check(
        &self,
        read: &Read,
        page: &Page,
        group: (Kind, &str),
        sums: [i64; 3],
    ) -> Verdict {
        let within =
            (0..3).all(|index| (self.least[index]..=self.most[index]).contains(&sums[index]));
        if within {
            return Ok(());
        }
        let (kind, run) = group;
        let span = page.span();
        // The most probable cause: the last write before the read.
        let last = self.counted.iter().filter_map(|(name, register)| {
            let entry = register.last_known(span.start, Proof::Acknowledgement)?;
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
