//! Cached answers in the process, bounded by bytes.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, sync::Cache};

use super::{EntryInfo, Tag, Version, key::Digest};

/// What an entry takes beyond its answer and its tag: its own fields, its place in the map, and
/// its key in the tag's index.
const ENTRY_OVERHEAD_BYTES: u64 = 256;

/// The map is split so that threads rarely meet, but into parts that hold the largest answers.
const MIN_SHARD_BYTES: u64 = 8 << 20;

/// A cached answer.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Only if its engine keeps an index of what was filled under a tag.
    pub(super) tag: Option<Tag>,
    /// The tag's version from before the database was read.
    pub(super) version: Version,
    pub(super) answer: Bytes,
}

/// Cached answers by key, within a bound of bytes. What is asked for least is evicted first.
#[derive(Debug)]
pub(super) struct Entries {
    cache: Cache<Digest, Arc<Slot>, ByBytes, DefaultHashBuilder, Evictions>,
    ttl: Duration,
    started: Instant,
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// When it was filled and last read, in seconds since `Entries::started`.
    filled_at: u32,
    read_at: AtomicU32,
}

impl Entries {
    /// Entries that take at most `max_bytes`, each at most `ttl` after it was last read.
    pub(super) fn new(max_bytes: u64, ttl: Duration) -> Self {
        let shards = usize::try_from(max_bytes / MIN_SHARD_BYTES).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(usize::try_from(max_bytes / 4096).unwrap_or(usize::MAX))
            .weight_capacity(max_bytes)
            .shards(shards.clamp(1, 64))
            .build()
            .unwrap_or_else(|_| unreachable!("both capacities are given"));
        Self {
            cache: Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), Evictions),
            ttl,
            started: Instant::now(),
        }
    }

    /// The answer under a key, if it was filled under this version of its tag.
    pub(super) fn get(&self, key: &Digest, version: Version) -> Option<Bytes> {
        let slot = self.cache.get(key)?;
        if slot.entry.version != version {
            return None;
        }
        let now = self.now_secs();
        // A store on every hit would move the cache line between cores.
        if slot.read_at.load(Ordering::Relaxed) != now {
            slot.read_at.store(now, Ordering::Relaxed);
        }
        Some(slot.entry.answer.clone())
    }

    /// What is held under a key, without counting as a read.
    pub(super) fn peek(&self, key: &Digest) -> Option<EntryInfo> {
        let slot = self.cache.peek(key)?;
        Some(EntryInfo {
            version: slot.entry.version,
            bytes: slot.entry.answer.len() as u64,
            age: Duration::from_secs(u64::from(self.now_secs().saturating_sub(slot.filled_at))),
        })
    }

    /// How many entries there are, and how many bytes they take.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.cache.len() as u64, self.cache.weight())
    }

    /// Stores an entry, in place of the key's last one, and returns what had to go for it, which
    /// may be the entry itself.
    pub(super) fn insert(&self, key: Digest, entry: Entry) -> Vec<(Digest, Entry)> {
        let now = self.now_secs();
        let slot = Arc::new(Slot {
            entry,
            filled_at: now,
            read_at: AtomicU32::new(now),
        });
        let mut evicted = Vec::new();
        self.cache
            .insert_with_lifecycle(key, Arc::clone(&slot), &mut evicted);
        evicted
            .into_iter()
            // The map calls what was replaced evicted too.
            .filter(|(gone, old)| *gone != key || Arc::ptr_eq(old, &slot))
            .map(|(key, slot)| (key, slot.entry.clone()))
            .collect()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Drops a key's entry, if it was filled under this version.
    pub(super) fn remove(&self, key: &Digest, version: Version) {
        self.cache
            .remove_if(key, |slot| slot.entry.version == version);
    }

    /// Drops what nobody has read for the time to live, and returns it.
    pub(super) fn sweep(&self) -> Vec<(Digest, Entry)> {
        let ttl = u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX);
        let oldest = self.now_secs().saturating_sub(ttl);
        let dropped = RefCell::new(Vec::new());
        self.cache.retain(|key, slot| {
            let keep = slot.read_at.load(Ordering::Relaxed) >= oldest;
            if !keep {
                dropped.borrow_mut().push((*key, slot.entry.clone()));
            }
            keep
        });
        dropped.into_inner()
    }

    fn now_secs(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Digest, Arc<Slot>> for ByBytes {
    fn weight(&self, _: &Digest, slot: &Arc<Slot>) -> u64 {
        let Entry { tag, answer, .. } = &slot.entry;
        let tag = tag.as_ref().map_or(0, |tag| tag.as_str().len());
        (answer.len() + tag) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Hands evicted entries back to who inserted.
#[derive(Debug, Clone)]
struct Evictions;

impl Lifecycle<Digest, Arc<Slot>> for Evictions {
    type RequestState = Vec<(Digest, Arc<Slot>)>;

    fn on_evict(&self, evicted: &mut Self::RequestState, key: Digest, slot: Arc<Slot>) {
        evicted.push((key, slot));
    }
}
