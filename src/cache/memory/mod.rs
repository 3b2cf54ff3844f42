//! The engine for one process: tags and entries in memory.

mod tags;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use self::tags::{DeadEntries, Tags};
use super::{
    Cache, CacheError, Encoding, Explanation, Key, Lookup, Stats, Tag, Tier, Version, WriteId,
    key::Digest,
    local::{Entries, Entry},
    stats::Counters,
};
use crate::model::Epoch;

/// Maximum number of entries that an invalidation drops before it returns. More are dropped in the
/// background.
const DROP_AT_ONCE: usize = 1_000;

/// How often expired entries are dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The in-process engine. Its bound of bytes covers the responses and their indexes.
#[derive(Debug)]
pub struct MemoryCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tags: Mutex<Tags>,
    entries: Entries,
    counters: Counters,
}

impl MemoryCache {
    /// A cache of at most `max_bytes`, which keeps an entry for `ttl` after it was last read. Must be
    /// called within a tokio runtime.
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

/// Drops expired entries until the cache is dropped.
async fn sweep(cache: Weak<Shared>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        let Some(cache) = cache.upgrade() else {
            return;
        };
        let dropped = cache.entries.sweep();
        let mut tags = cache.tags.lock();
        for (key, entry) in dropped {
            tags.forget(&key, &entry);
        }
    }
}

impl Shared {
    fn fill(&self, tag: &Tag, key: &Digest, version: Version, body: Bytes) -> bool {
        let mut tags = self.tags.lock();
        let Some(tag) = tags.index(tag, *key, version) else {
            return false;
        };
        let entry = Entry {
            tag: Some(tag.clone()),
            version,
            body,
        };
        for (evicted, entry) in self.entries.insert(*key, entry) {
            // Under the key itself it is this entry, which didn't fit: it is unindexed below.
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

#[async_trait]
impl Cache for MemoryCache {
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        let Some(version) = self.0.tags.lock().open(tag) else {
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
        body: Bytes,
    ) -> Result<bool, CacheError> {
        let stored = self.0.fill(tag, key.digest(), version, body);
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
        let dead = {
            let mut tags = self.0.tags.lock();
            let dead = touched.iter().filter_map(|tag| tags.close(tag, write));
            dead.collect()
        };
        drop_entries(&self.0, dead);
        Ok(())
    }

    async fn reopen(
        &self,
        touched: &BTreeSet<Tag>,
        write: WriteId,
        _: Option<Epoch>,
    ) -> Result<(), CacheError> {
        let dead = {
            let mut tags = self.0.tags.lock();
            let dead = touched.iter().filter_map(|tag| tags.reopen(tag, write));
            dead.collect()
        };
        drop_entries(&self.0, dead);
        Ok(())
    }

    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError> {
        self.0.counters.invalidations.add(1);
        let dead = self.0.tags.lock().invalidate(tag);
        Ok(drop_entries(&self.0, dead.into_iter().collect()))
    }

    async fn invalidate_all(&self) -> Result<u64, CacheError> {
        let dead = self.0.tags.lock().invalidate_all();
        self.0.counters.invalidations.add(dead.len());
        Ok(drop_entries(&self.0, dead))
    }

    fn peek_compressed(&self, key: &Key, body: &Bytes, encoding: Encoding) -> Option<Bytes> {
        self.0.entries.compressed(key.digest(), body, encoding)
    }

    fn keep_compressed(&self, key: &Key, body: &Bytes, encoding: Encoding, compressed: Bytes) {
        let mut tags = self.0.tags.lock();
        let entries = &self.0.entries;
        for (key, entry) in entries.keep_compressed(*key.digest(), body, encoding, compressed) {
            tags.forget(&key, &entry);
        }
    }

    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError> {
        let (current, writers) = self.0.tags.lock().state(tag);
        Ok(Explanation {
            current,
            writers,
            local: self.0.entries.peek(key.digest()),
            redis: None,
        })
    }

    fn stats(&self) -> Stats {
        Stats {
            active: true,
            ..self.0.counters.snapshot(self.0.entries.size())
        }
    }
}

/// Frees dead entries: a few now, many in the background, so that the time to invalidate doesn't grow
/// with their number. Returns their number.
fn drop_entries(cache: &Arc<Shared>, dead: Vec<DeadEntries>) -> u64 {
    let drop_all = |cache: &Shared, dead: Vec<DeadEntries>| {
        for DeadEntries { version, keys } in dead {
            keys.for_each(|key| cache.entries.remove(&key, version));
        }
    };
    let count: usize = dead.iter().map(|dead| dead.keys.len()).sum();
    if count <= DROP_AT_ONCE {
        drop_all(cache, dead);
    } else {
        let cache = Arc::clone(cache);
        tokio::task::spawn_blocking(move || drop_all(&cache, dead));
    }
    count as u64
}
