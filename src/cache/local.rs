//! Cached responses in the process, bounded by bytes.

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

use super::{Encoding, EntryInfo, Tag, Version, key::Digest};

/// The size of an entry without its response and its tag: its fields, its slot in the map, its key in
/// the tag's index.
const ENTRY_OVERHEAD_BYTES: u64 = 256;

/// Minimum size of a shard of the map. The largest responses fit in it.
const MIN_SHARD_BYTES: u64 = 8 << 20;

/// A cached response.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Only if the engine keeps an index of a tag's entries.
    pub(super) tag: Option<Tag>,
    /// The tag's version from before the database was read.
    pub(super) version: Version,
    pub(super) body: Bytes,
}

/// Cached responses by key, within a bound of bytes. The least read are evicted first.
#[derive(Debug)]
pub(super) struct Entries {
    cache: Cache<Digest, Arc<Slot>, ByBytes, DefaultHashBuilder, Evictions>,
    ttl: Duration,
    started: Instant,
}

#[derive(Debug)]
struct Slot {
    entry: Entry,
    /// Its compressed forms, by encoding.
    compressed: [Option<Bytes>; 2],
    /// The time of the fill, in seconds since `Entries::started`.
    filled_at: u32,
    /// The time of the last read, in the same unit.
    read_at: AtomicU32,
}

impl Entries {
    /// An empty cache of at most `max_bytes`. An entry expires `ttl` after it was last read.
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

    /// The response under a key, if it was filled under this version of its tag.
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
        Some(slot.entry.body.clone())
    }

    /// The entry under a key, without counting as a read.
    pub(super) fn peek(&self, key: &Digest) -> Option<EntryInfo> {
        let slot = self.cache.peek(key)?;
        Some(EntryInfo {
            version: slot.entry.version,
            bytes: slot.entry.body.len() as u64,
            age: Duration::from_secs(u64::from(self.now_secs().saturating_sub(slot.filled_at))),
        })
    }

    /// The number of entries and their bytes.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.cache.len() as u64, self.cache.weight())
    }

    /// Stores an entry in place of the key's previous one, and returns the entries that were evicted for
    /// it, which may include itself.
    pub(super) fn insert(&self, key: Digest, entry: Entry) -> Vec<(Digest, Entry)> {
        let now = self.now_secs();
        let slot = Arc::new(Slot {
            entry,
            compressed: [None, None],
            filled_at: now,
            read_at: AtomicU32::new(now),
        });
        let mut evicted = Vec::new();
        self.cache
            .insert_with_lifecycle(key, Arc::clone(&slot), &mut evicted);
        without_replaced(evicted, key, &slot)
    }

    /// The compressed form of a response, if it is `body` itself that is stored under the key.
    pub(super) fn compressed(
        &self,
        key: &Digest,
        body: &Bytes,
        encoding: Encoding,
    ) -> Option<Bytes> {
        let slot = self.cache.get(key)?;
        if !slot.holds(body) {
            return None;
        }
        slot.compressed[encoding as usize].clone()
    }

    /// Keeps the compressed form of a response, if it is `body` itself that is stored under the key.
    /// Returns the entries that were evicted for it, as [`Entries::insert`] does.
    pub(super) fn keep_compressed(
        &self,
        key: Digest,
        body: &Bytes,
        encoding: Encoding,
        compressed: Bytes,
    ) -> Vec<(Digest, Entry)> {
        let Some(old) = self.cache.peek(&key).filter(|slot| slot.holds(body)) else {
            return Vec::new();
        };
        let mut forms = old.compressed.clone();
        forms[encoding as usize] = Some(compressed);
        let slot = Arc::new(Slot {
            entry: old.entry.clone(),
            compressed: forms,
            filled_at: old.filled_at,
            read_at: AtomicU32::new(self.now_secs()),
        });
        let mut evicted = Vec::new();
        let replaced =
            self.cache
                .replace_with_lifecycle(key, Arc::clone(&slot), true, &mut evicted);
        // An error means that the entry is gone.
        let _ = replaced;
        without_replaced(evicted, key, &slot)
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

    /// Drops the entries that weren't read within the time to live, and returns them.
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

impl Slot {
    /// Whether the response is in the memory of `body`. The bytes are immutable, and both hold it.
    fn holds(&self, body: &Bytes) -> bool {
        let own = &self.entry.body;
        own.as_ptr() == body.as_ptr() && own.len() == body.len()
    }
}

/// The evicted entries. The map reports the entry that `slot` has replaced under `key` as evicted too.
fn without_replaced(
    evicted: Vec<(Digest, Arc<Slot>)>,
    key: Digest,
    slot: &Arc<Slot>,
) -> Vec<(Digest, Entry)> {
    evicted
        .into_iter()
        .filter(|(gone, old)| *gone != key || Arc::ptr_eq(old, slot))
        .map(|(key, slot)| (key, slot.entry.clone()))
        .collect()
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Digest, Arc<Slot>> for ByBytes {
    fn weight(&self, _: &Digest, slot: &Arc<Slot>) -> u64 {
        let Entry { tag, body, .. } = &slot.entry;
        let tag = tag.as_ref().map_or(0, |tag| tag.as_str().len());
        let compressed: usize = slot.compressed.iter().flatten().map(Bytes::len).sum();
        (body.len() + compressed + tag) as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Returns evicted entries to the caller of `insert`.
#[derive(Debug, Clone)]
struct Evictions;

impl Lifecycle<Digest, Arc<Slot>> for Evictions {
    type RequestState = Vec<(Digest, Arc<Slot>)>;

    fn on_evict(&self, evicted: &mut Self::RequestState, key: Digest, slot: Arc<Slot>) {
        evicted.push((key, slot));
    }
}
