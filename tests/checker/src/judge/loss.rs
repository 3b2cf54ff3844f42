//! Databases that lose acknowledged writes, and replicas that reach an old primary.

use std::collections::HashMap;

use super::{Judge, RETENTION, text::Span};
use crate::history::{Apart, Loss, Micros, Name, Read};

impl Judge {
    pub(super) fn loss(&mut self, loss: &Loss) {
        self.advance(loss.at);
        let Some(left) = &loss.left else {
            self.losing_since = Some(loss.at);
            return;
        };
        let begun = self.losing_since.take().unwrap_or(loss.at);
        self.lost_until = Some(loss.at);
        let left: HashMap<Name, u32> = left.iter().map(|it| (it.name, it.version)).collect();
        // The deletion of some may be lost.
        for name in left.keys() {
            if let Some(register) = self.dead.remove(name) {
                self.living.entry(*name).or_insert(register);
            }
        }
        self.deaths.retain(|(_, name)| !left.contains_key(name));
        for (name, register) in &mut self.living {
            register.lose(left.get(name).copied(), begun, loss.at);
        }
        let names: Vec<_> = self.living.keys().copied().collect();
        for name in names {
            self.retire(name, loss.at);
        }
    }

    pub(super) fn apart(&mut self, apart: &Apart) {
        self.advance(apart.at);
        for (_, until) in self.apart.values_mut() {
            until.get_or_insert(apart.at);
        }
        let since = |replica: &usize| (*replica, (apart.at, None));
        self.apart.extend(apart.replicas.iter().map(since));
    }

    /// Whether a replica reached an old primary at some time in between.
    pub(super) fn is_apart(&self, replica: usize, start: Micros, end: Micros) -> bool {
        let apart = self.apart.get(&replica);
        apart
            .is_some_and(|(since, until)| end >= *since && until.is_none_or(|until| start <= until))
    }

    /// Whether a read can be judged: no loss and no old primary affects it, and it isn't longer than the
    /// retention.
    pub(super) fn is_judged(&self, read: &Read) -> bool {
        let Some(Span { start, end }) = read.span() else {
            return false;
        };
        let is_lossy = self.losing_since.is_some_and(|since| end >= since)
            || self.lost_until.is_some_and(|until| start <= until);
        !is_lossy && !self.is_apart(read.replica, start, end) && end - start <= RETENTION
    }
}
