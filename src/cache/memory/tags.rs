//! The tags that the engine knows, and their indexes.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    iter, mem,
};

use crate::cache::{Tag, Version, WriteId, key::Digest, local::Entry};

/// Maximum number of tags that are kept without an entry. Beyond it the oldest are forgotten, which only
/// rejects the fills of reads in progress.
pub(super) const MAX_BARE_TAGS: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Tags {
    /// Tags that have an entry or a write in flight, and some that have neither.
    states: HashMap<Tag, TagState>,
    /// Tags in the order in which they may have become bare, each with the mark it got then.
    bare: VecDeque<(Tag, u64)>,
    last_mark: u64,
}

#[derive(Debug, Default)]
pub(super) struct TagState {
    pub(super) version: Option<Version>,
    /// Writes in flight. Each stays until it reopens its tags, which it does when the database has
    /// given the result of its commit: until then the commit may become visible.
    writers: Vec<WriteId>,
    /// The index: the keys of the entries that were filled under `version`.
    pub(super) keys: Keys,
    /// The tag's last mark in `Tags::bare`.
    mark: u64,
}

/// A set of keys. Most tags are those of single locations and have one key, which needs no allocation.
#[derive(Debug, Default)]
pub(super) enum Keys {
    #[default]
    None,
    One(Digest),
    Many(HashSet<Digest>),
}

/// The entries that an invalidation leaves without their tag's version.
pub(super) struct DeadEntries {
    pub(super) version: Version,
    pub(super) keys: Keys,
}

impl Tags {
    /// The tag's version. Sets a fresh one if there is none, unless a write is in flight: then `None`.
    pub(super) fn open(&mut self, tag: &Tag) -> Option<Version> {
        if let Some(state) = self.states.get_mut(tag) {
            if state.version.is_some() {
                return state.version;
            }
            if !state.writers.is_empty() {
                return None;
            }
        }
        let version = Version::generate();
        let state = self.states.entry(tag.clone()).or_default();
        state.version = Some(version);
        self.mark_bare(tag);
        Some(version)
    }

    /// Adds a key to the tag's index, if the tag has this version. Returns the index's copy of the tag,
    /// which all entries share.
    pub(super) fn index(&mut self, tag: &Tag, key: Digest, version: Version) -> Option<Tag> {
        let (tag, _) = self
            .states
            .get_key_value(tag)
            .filter(|(_, state)| state.version == Some(version))?;
        let tag = tag.clone();
        self.states.get_mut(&tag)?.keys.insert(key);
        Some(tag)
    }

    /// Removes an evicted or expired entry from its tag's index.
    pub(super) fn forget(&mut self, key: &Digest, entry: &Entry) {
        if let Some(tag) = &entry.tag {
            self.unindex(tag, key, entry.version);
        }
    }

    pub(super) fn unindex(&mut self, tag: &Tag, key: &Digest, version: Version) {
        let Some(state) = self.states.get_mut(tag) else {
            return;
        };
        if state.version == Some(version) {
            state.keys.remove(key);
            if state.is_bare() {
                self.states.remove(tag);
            }
        }
    }

    /// Adds a write in flight, and drops the tag's version.
    pub(super) fn close(&mut self, tag: &Tag, write: WriteId) -> Option<DeadEntries> {
        let state = self.states.entry(tag.clone()).or_default();
        state.writers.push(write);
        let dead = state.invalidate();
        self.mark_bare(tag);
        dead
    }

    /// Removes a write in flight, and drops the tag's version.
    pub(super) fn reopen(&mut self, tag: &Tag, write: WriteId) -> Option<DeadEntries> {
        let state = self.states.get_mut(tag)?;
        state.writers.retain(|id| *id != write);
        self.invalidate(tag)
    }

    /// Drops the tag's version, and the tag itself if nothing else is left of it.
    pub(super) fn invalidate(&mut self, tag: &Tag) -> Option<DeadEntries> {
        let state = self.states.get_mut(tag)?;
        let dead = state.invalidate();
        if state.is_bare() {
            self.states.remove(tag);
        }
        dead
    }

    pub(super) fn invalidate_all(&mut self) -> Vec<DeadEntries> {
        let all: Vec<_> = self.states.keys().cloned().collect();
        all.iter().filter_map(|tag| self.invalidate(tag)).collect()
    }

    /// The tag's version, and the number of writes in flight.
    pub(super) fn state(&self, tag: &Tag) -> (Option<Version>, u64) {
        self.states.get(tag).map_or((None, 0), |state| {
            (state.version, state.writers.len() as u64)
        })
    }

    /// Marks a tag that may be bare, and forgets the oldest such tag if there are too many.
    fn mark_bare(&mut self, tag: &Tag) {
        self.last_mark += 1;
        if let Some(state) = self.states.get_mut(tag) {
            state.mark = self.last_mark;
        }
        self.bare.push_back((tag.clone(), self.last_mark));
        if self.bare.len() <= MAX_BARE_TAGS {
            return;
        }
        let Some((oldest, mark)) = self.bare.pop_front() else {
            return;
        };
        let Some(state) = self.states.get(&oldest).filter(|state| state.mark == mark) else {
            // It was used since, or is already forgotten.
            return;
        };
        if state.is_bare() {
            self.states.remove(&oldest);
        } else if !state.writers.is_empty() {
            self.bare.push_back((oldest, mark));
        }
    }

    #[cfg(test)]
    pub(super) fn states(&self) -> &HashMap<Tag, TagState> {
        &self.states
    }
}

impl TagState {
    fn is_bare(&self) -> bool {
        self.keys.len() == 0 && self.writers.is_empty()
    }

    fn invalidate(&mut self) -> Option<DeadEntries> {
        let version = self.version.take()?;
        let keys = mem::take(&mut self.keys);
        Some(DeadEntries { version, keys })
    }
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(keys) => keys.len(),
        }
    }

    fn insert(&mut self, key: Digest) {
        match self {
            Self::None => *self = Self::One(key),
            Self::One(first) if *first == key => {}
            Self::One(first) => *self = Self::Many(HashSet::from([*first, key])),
            Self::Many(keys) => {
                keys.insert(key);
            }
        }
    }

    fn remove(&mut self, key: &Digest) {
        match self {
            Self::One(only) if only == key => *self = Self::None,
            Self::None | Self::One(_) => {}
            Self::Many(keys) => {
                keys.remove(key);
            }
        }
    }

    pub(super) fn for_each(self, act: impl FnMut(Digest)) {
        match self {
            Self::None => {}
            Self::One(key) => iter::once(key).for_each(act),
            Self::Many(keys) => keys.into_iter().for_each(act),
        }
    }
}
