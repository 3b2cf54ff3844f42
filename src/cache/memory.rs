//! The engine for one process: tags and entries in memory.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    iter, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::model::Epoch;

use super::{
    Cache, CacheError, Explanation, Key, Lookup, Stats, Tag, Tier, Version, WRITE_DEADLINE,
    WriteId,
    key::Digest,
    local::{Entries, Entry},
    stats::Counters,
};

/// How many entries `close` drops before it returns; the rest is dropped in the background.
const DROP_AT_ONCE: usize = 1_000;

/// How many tags may be known without an entry. Beyond it the oldest are forgotten, which costs
/// speed only.
const MAX_BARE_TAGS: usize = 16_384;

/// How often entries are checked for having outlived their time.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The in-process engine. Its bound of bytes covers the answers with all that indexes them.
#[derive(Debug)]
pub struct MemoryCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tags: Mutex<Tags>,
    entries: Entries,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Tags {
    /// Tags that have an entry or a write in flight, and some that have neither.
    states: HashMap<Tag, TagState>,
    /// Tags in the order in which they may have become bare, each with its note.
    bare: VecDeque<(Tag, u64)>,
    /// How many notes there have been.
    notes: u64,
}

#[derive(Debug, Default)]
struct TagState {
    version: Option<Version>,
    /// Writes in flight, each with the moment after which it is dead.
    writers: Vec<(WriteId, Instant)>,
    /// The index: the keys of the entries that were filled under `version`.
    keys: Keys,
    /// The last note that it may be bare.
    note: u64,
}

/// A set of keys, which takes little memory for one, as most tags have: that of a location.
#[derive(Debug, Default)]
enum Keys {
    #[default]
    None,
    One(Digest),
    Many(HashSet<Digest>),
}

impl MemoryCache {
    /// A cache that takes at most `max_bytes`, and keeps an entry for `ttl` after it was last read.
    /// Must be called within a tokio runtime.
    pub fn new(max_bytes: u64, ttl: Duration) -> Self {
        let shared = Arc::new(Shared {
            tags: Mutex::default(),
            entries: Entries::new(max_bytes, ttl),
            counters: Counters::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&shared)));
        Self(shared)
    }
}

/// Drops entries that have outlived their time, for as long as the cache is there.
async fn sweep(cache: Weak<Shared>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        let Some(cache) = cache.upgrade() else {
            return;
        };
        let dropped = cache.entries.sweep();
        let mut tags = cache.tags();
        for (key, entry) in dropped {
            tags.forget(&key, &entry);
        }
    }
}

impl Shared {
    fn tags(&self) -> MutexGuard<'_, Tags> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, tag: &Tag, key: &Digest, version: Version, answer: Bytes) -> bool {
        let mut tags = self.tags();
        let tag = match tags.states.get_key_value(tag) {
            // All entries share the index's copy of the text.
            Some((tag, state)) if state.version == Some(version) => tag.clone(),
            _ => return false,
        };
        let state = tags.states.entry(tag.clone()).or_default();
        state.keys.insert(*key);
        let entry = Entry {
            tag: Some(tag.clone()),
            version,
            answer,
        };
        for (evicted, entry) in self.entries.insert(*key, entry) {
            // Under the key itself it is the entry before, or this one, which didn't fit.
            if evicted != *key {
                tags.forget(&evicted, &entry);
            }
        }
        let held = self.entries.peek(key);
        let stored = held.is_some_and(|held| held.version == version);
        if !stored {
            tags.unindex(&tag, key, version);
        }
        stored
    }
}

impl Tags {
    /// The tag's version. Sets a fresh one if there is none, unless a write is in flight: then `None`.
    fn open(&mut self, tag: &Tag) -> Option<Version> {
        if let Some(state) = self.states.get_mut(tag) {
            if state.version.is_some() {
                return state.version;
            }
            state.expire_writes();
            if !state.writers.is_empty() {
                return None;
            }
        }
        let version = Version::generate();
        let state = self.states.entry(tag.clone()).or_default();
        state.version = Some(version);
        self.bound(tag);
        Some(version)
    }

    /// Takes an entry that is gone out of its tag's index.
    fn forget(&mut self, key: &Digest, entry: &Entry) {
        if let Some(tag) = &entry.tag {
            self.unindex(tag, key, entry.version);
        }
    }

    fn unindex(&mut self, tag: &Tag, key: &Digest, version: Version) {
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

    /// Drops a tag's version, and the tag itself if nothing else is left of it.
    fn invalidate(&mut self, tag: &Tag) -> Option<(Version, Keys)> {
        let state = self.states.get_mut(tag)?;
        let dead = state.invalidate();
        if state.is_bare() {
            self.states.remove(tag);
        }
        dead
    }

    /// Notes that a tag may be bare, and forgets the oldest such one if there are too many.
    fn bound(&mut self, tag: &Tag) {
        self.notes += 1;
        if let Some(state) = self.states.get_mut(tag) {
            state.note = self.notes;
        }
        self.bare.push_back((tag.clone(), self.notes));
        if self.bare.len() <= MAX_BARE_TAGS {
            return;
        }
        let Some((oldest, note)) = self.bare.pop_front() else {
            return;
        };
        let Some(state) = self
            .states
            .get_mut(&oldest)
            .filter(|state| state.note == note)
        else {
            // It has been used since, or is forgotten.
            return;
        };
        state.expire_writes();
        if state.is_bare() {
            self.states.remove(&oldest);
        } else if !state.writers.is_empty() {
            self.bare.push_back((oldest, note));
        }
    }
}

impl Keys {
    fn len(&self) -> usize {
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

    fn for_each(self, act: impl FnMut(Digest)) {
        match self {
            Self::None => {}
            Self::One(key) => iter::once(key).for_each(act),
            Self::Many(keys) => keys.into_iter().for_each(act),
        }
    }
}

impl TagState {
    fn is_bare(&self) -> bool {
        self.keys.len() == 0 && self.writers.is_empty()
    }

    fn expire_writes(&mut self) {
        let now = Instant::now();
        self.writers.retain(|(_, deadline)| *deadline > now);
    }

    /// Drops the version; the entries under it are dead from here on.
    fn invalidate(&mut self) -> Option<(Version, Keys)> {
        let version = self.version.take()?;
        Some((version, mem::take(&mut self.keys)))
    }
}

#[async_trait]
impl Cache for MemoryCache {
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        let Some(version) = self.0.tags().open(tag) else {
            return Ok(Lookup::Closed);
        };
        Ok(match self.0.entries.get(key.digest(), version) {
            Some(body) => Lookup::Hit {
                body,
                tier: Tier::Local,
                version,
            },
            None => Lookup::Miss(version),
        })
    }

    fn peek_local(&self, key: &Key, version: Version) -> Option<Bytes> {
        self.0.entries.get(key.digest(), version)
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        answer: Bytes,
    ) -> Result<bool, CacheError> {
        let stored = self.0.fill(tag, key.digest(), version, answer);
        self.0.counters.filled(stored);
        Ok(stored)
    }

    async fn close(
        &self,
        touched: &BTreeSet<Tag>,
        write: WriteId,
        _: Option<Epoch>,
    ) -> Result<(), CacheError> {
        self.0.counters.invalidations.add(touched.len());
        let deadline = Instant::now() + WRITE_DEADLINE;
        let mut dead = Vec::new();
        {
            let mut tags = self.0.tags();
            for tag in touched {
                let state = tags.states.entry(tag.clone()).or_default();
                state.writers.push((write, deadline));
                dead.extend(state.invalidate());
                tags.bound(tag);
            }
        }
        drop_entries(&self.0, dead);
        Ok(())
    }

    async fn reopen(
        &self,
        touched: &BTreeSet<Tag>,
        write: WriteId,
        _: Option<Epoch>,
    ) -> Result<(), CacheError> {
        let mut dead = Vec::new();
        {
            let mut tags = self.0.tags();
            for tag in touched {
                if let Some(state) = tags.states.get_mut(tag) {
                    state.writers.retain(|(id, _)| *id != write);
                    dead.extend(tags.invalidate(tag));
                }
            }
        }
        drop_entries(&self.0, dead);
        Ok(())
    }

    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError> {
        self.0.counters.invalidations.add(1);
        let dead = self.0.tags().invalidate(tag);
        Ok(drop_entries(&self.0, dead.into_iter().collect()))
    }

    async fn invalidate_all(&self) -> Result<u64, CacheError> {
        let dead: Vec<_> = {
            let mut tags = self.0.tags();
            let all: Vec<_> = tags.states.keys().cloned().collect();
            all.iter().filter_map(|tag| tags.invalidate(tag)).collect()
        };
        self.0.counters.invalidations.add(dead.len());
        Ok(drop_entries(&self.0, dead))
    }

    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError> {
        let (current, writers) = match self.0.tags().states.get_mut(tag) {
            Some(state) => {
                state.expire_writes();
                (state.version, state.writers.len() as u64)
            }
            None => (None, 0),
        };
        Ok(Explanation {
            current,
            writers,
            local: self.0.entries.peek(key.digest()),
            redis: None,
        })
    }

    fn stats(&self) -> Stats {
        self.0.counters.snapshot(self.0.entries.size())
    }
}

/// Frees entries that no version leads to any more: some now, many in the background, so that the
/// time to invalidate doesn't grow with their number. Returns how many that is.
fn drop_entries(cache: &Arc<Shared>, dead: Vec<(Version, Keys)>) -> u64 {
    let drop_all = |cache: &Shared, dead: Vec<(Version, Keys)>| {
        for (version, keys) in dead {
            keys.for_each(|key| cache.entries.remove(&key, version));
        }
    };
    let count: usize = dead.iter().map(|(_, keys)| keys.len()).sum();
    if count <= DROP_AT_ONCE {
        drop_all(cache, dead);
    } else {
        let cache = Arc::clone(cache);
        tokio::task::spawn_blocking(move || drop_all(&cache, dead));
    }
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LocationId, Predicate};

    fn cache(max_bytes: u64) -> MemoryCache {
        MemoryCache::new(max_bytes, Duration::from_mins(5))
    }

    fn key(number: usize) -> Key {
        Key::new("List", None, &number.to_string())
    }

    async fn fill(cache: &MemoryCache, tag: &Tag, key: &Key, bytes: usize) -> bool {
        let version = open(cache, tag).expect("no write is in flight");
        let answer = Bytes::from(vec![0; bytes]);
        cache
            .fill(tag, key, version, answer)
            .await
            .expect("in memory")
    }

    fn open(cache: &MemoryCache, tag: &Tag) -> Option<Version> {
        cache.0.tags().open(tag)
    }

    async fn is_hit(cache: &MemoryCache, tag: &Tag, key: &Key) -> bool {
        matches!(cache.lookup(tag, key).await, Ok(Lookup::Hit { .. }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_never_reports_back_keeps_its_tags_closed_until_its_deadline() {
        let cache = cache(1 << 20);
        let tag = Tag::of_predicate(&Predicate::default());
        let tags = BTreeSet::from([tag.clone()]);
        cache
            .close(&tags, WriteId::generate(), None)
            .await
            .expect("in memory");
        tokio::time::advance(WRITE_DEADLINE.saturating_sub(Duration::from_millis(1))).await;
        let found = cache.lookup(&tag, &key(0)).await;
        assert_eq!(found, Ok(Lookup::Closed));
        tokio::time::advance(Duration::from_millis(2)).await;
        let found = cache.lookup(&tag, &key(0)).await;
        assert!(matches!(found, Ok(Lookup::Miss(_))), "{found:?}");
    }

    #[tokio::test]
    async fn a_lost_version_never_comes_back() {
        let cache = cache(1 << 20);
        let tag = Tag::of_predicate(&Predicate::default());
        let tags = BTreeSet::from([tag.clone()]);
        let before = open(&cache, &tag).expect("open");
        let write = WriteId::generate();
        cache.close(&tags, write, None).await.expect("in memory");
        let late = cache.fill(&tag, &key(0), before, Bytes::new()).await;
        assert!(!late.expect("in memory"), "filled while closed");
        cache.reopen(&tags, write, None).await.expect("in memory");
        let late = cache.fill(&tag, &key(0), before, Bytes::new()).await;
        assert!(!late.expect("in memory"), "filled with an old version");
        let after = open(&cache, &tag).expect("open");
        assert_ne!(before, after);
    }

    #[tokio::test]
    async fn an_entry_that_is_filled_again_stays_indexed() {
        let cache = cache(1 << 20);
        let tag = Tag::of_predicate(&Predicate::default());
        assert!(fill(&cache, &tag, &key(0), 10).await);
        assert!(fill(&cache, &tag, &key(0), 20).await);
        assert!(is_hit(&cache, &tag, &key(0)).await);
        assert_eq!(cache.0.tags().states[&tag].keys.len(), 1);
        assert!(!fill(&cache, &tag, &key(0), 2 << 20).await, "too large");
    }

    #[tokio::test]
    async fn a_tag_is_forgotten_by_its_last_use_and_not_by_an_earlier_one() {
        let cache = cache(1 << 20);
        let tag = Tag::of_predicate(&Predicate::default());
        let others = (1..MAX_BARE_TAGS).map(|_| Tag::of_location(LocationId::generate()));
        open(&cache, &tag);
        cache.invalidate(&tag).await.expect("in memory");
        for other in others {
            open(&cache, &other);
        }
        let version = open(&cache, &tag).expect("open");
        let answer = Bytes::from_static(b"answer");
        let filled = cache.fill(&tag, &key(0), version, answer).await;
        assert!(filled.expect("in memory"));
    }

    #[tokio::test]
    async fn entries_and_what_indexes_them_stay_within_the_bound() {
        let max_bytes = 1 << 20;
        let cache = cache(max_bytes);
        let tag = Tag::of_predicate(&Predicate::default());
        for number in 0..10_000 {
            assert!(fill(&cache, &tag, &key(number), 1_000).await);
        }
        let held = cache.0.tags().states[&tag].keys.len();
        assert!(
            (100..=usize::try_from(max_bytes / 1_000).expect("small")).contains(&held),
            "{held}"
        );
        let hits = (0..10_000).filter(|number| {
            let Some(version) = cache.0.tags().states[&tag].version else {
                return false;
            };
            cache
                .0
                .entries
                .get(key(*number).digest(), version)
                .is_some()
        });
        assert_eq!(hits.count(), held, "the index holds just the entries");
        assert!(
            !fill(&cache, &tag, &key(0), 2 << 20).await,
            "larger than all"
        );
    }

    #[tokio::test]
    async fn an_entry_that_is_filled_again_is_replaced() {
        let cache = cache(1 << 20);
        let tag = Tag::of_predicate(&Predicate::default());
        for bytes in [1_000, 10] {
            assert!(fill(&cache, &tag, &key(0), bytes).await);
            assert!(is_hit(&cache, &tag, &key(0)).await);
        }
        assert!(!fill(&cache, &tag, &key(0), 2 << 20).await);
        assert!(cache.0.tags().states.is_empty(), "the index is clean");
        assert!(!is_hit(&cache, &tag, &key(0)).await);
    }

    #[tokio::test]
    async fn tags_without_entries_are_forgotten() {
        let cache = cache(1 << 20);
        for _ in 0..2 * MAX_BARE_TAGS {
            let tag = Tag::of_location(LocationId::generate());
            open(&cache, &tag);
        }
        assert_eq!(cache.0.tags().states.len(), MAX_BARE_TAGS);
    }

    #[tokio::test]
    async fn a_tag_with_very_many_entries_closes_at_once() {
        let cache = cache(64 << 20);
        let tag = Tag::of_predicate(&Predicate::default());
        for number in 0..20_000 {
            assert!(fill(&cache, &tag, &key(number), 1).await);
        }
        let tags = BTreeSet::from([tag.clone()]);
        cache
            .close(&tags, WriteId::generate(), None)
            .await
            .expect("in memory");
        for number in [0, 10_000, 19_999] {
            assert!(!is_hit(&cache, &tag, &key(number)).await);
        }
        while !cache.0.entries.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
