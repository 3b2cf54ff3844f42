//! The engine that replicas share: tags and entries in Redis, with a cache of entries in the
//! process in front of it.
//!
//! ```text
//! RedisCache       this file: the steps, and the entries in the process
//!   ├─ batch       reads that share a round trip
//!   ├─ reclaim     deletes the entries of large indexes in the background
//!   ├─ masters     is the server usable, and is it the one that the epoch names?
//!   └─ steps       the scripts' calls
//!        ├─ keys, entry    names and bytes in Redis
//!        ├─ epoch          the lease, and the scripts of the epoch
//!        └─ client         connection, timeouts, permits; knows neither tags nor epochs
//! ```
//!
//! All keys of a tag `T` lie on one slot of a Redis Cluster, so that a step is atomic. They begin with
//! the configured prefix and the random name that the epoch gave to the server:
//!
//! | key | type | value |
//! | --- | --- | --- |
//! | `<prefix><name>:{T}:version` | string | the tag's version; absent while the tag is closed |
//! | `<prefix><name>:{T}:writers` | sorted set | writes in flight, by deadline on the server's own clock |
//! | `<prefix><name>:{T}:keys` | set | the index: the entries that were filled under the tag |
//! | `<prefix><name>:{T}:<schema>:<key>` | string | an entry: version, time of the fill, body |
//! | `<prefix><name>:{T}:dropped:<random>` | set | an index that `close` has detached, until it is reclaimed |
//!
//! Each step is a script whose text ends with the name, so only a process that was told the name knows
//! it: Redis 7 keeps scripts in memory only, and doesn't replicate them. A read-only replica of Redis
//! refuses them all, because none has the flag `no-writes`. See [`coordination`](crate::coordination).
//!
//! Scripts declare every key on which correctness depends. The entries that `close`, `fill` and
//! `reclaim` delete are derived from the members of an index: an entry that is missed takes memory
//! until it expires.
//!
//! Every key has a time to live. A fill renews those of its tag's version and index; a read renews none,
//! because an entry that is read often is read from the process. The server may lose any of the keys at
//! any moment:
//!
//! - without `version` the tag is closed, until a reader sets a fresh one; older entries carry an
//!   older version and are dead, whatever else is lost;
//! - without `writers` a reader may open a tag before a write commits, and its fill then dies at the
//!   write's `reopen`, before the acknowledgement;
//! - without `keys` or `dropped` entries aren't found by `close`: they are dead without their
//!   version, and take memory until they expire;
//! - without an entry there is a miss.
//!
//! A command that timed out may still be executed later, at most once. That is harmless for each: a late
//! `close` keeps the tag closed until the write's deadline, in an epoch that is over; a late `lookup`
//! sets a version under which the database hasn't been read; a late `fill` compares versions first; a
//! late `reopen` deletes a version, and removes a write that is no longer in flight.

mod batch;
mod client;
mod config;
mod entry;
mod epoch;
mod keys;
mod masters;
mod reclaim;
mod steps;
mod tls;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet};
use uuid::Uuid;

pub use self::config::{RedisConfig, RedisConfigError};
use self::{
    batch::{BatchedRead, ReadQueue},
    client::RedisClient,
    config::SharedSettings,
    entry::StoredEntry,
    epoch::{EpochState, Lease},
    steps::{DetachedIndex, Steps, TAGS_PER_ROUND_TRIP, WRITE_WAIT},
};
use super::{
    Cache, CacheError, Encoding, Explanation, Key, Lookup, Stats, Tag, Tier, Version, WriteId,
    local::{Entries, Entry},
    stats::Counters,
};
use crate::{
    failpoints::{Failpoint, is_enabled},
    model::{CacheEpoch, CacheServer, Epoch},
    telemetry::{Span, call},
};

/// How often expired entries are dropped from the process.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The engine that replicas share. Dropping it ends its connections and background work.
#[derive(Debug)]
pub struct RedisCache {
    client: Arc<RedisClient>,
    lease: Arc<Lease>,
    steps: Arc<Steps>,
    local: Arc<Entries>,
    reads: ReadQueue,
    reclaims: mpsc::Sender<DetachedIndex>,
    counters: Arc<Counters>,
    settings: SharedSettings,
    _tasks: JoinSet<()>,
}

impl RedisCache {
    /// Connects, and reconnects until it is dropped: a server that can't be reached is no error. Must
    /// be called within a tokio runtime.
    pub async fn connect(config: &RedisConfig) -> Result<Self, RedisConfigError> {
        let settings = SharedSettings::new(config)?;
        let counters = Arc::<Counters>::default();
        let client = Arc::new(RedisClient::new(config, Arc::clone(&counters))?);
        let lease = Arc::new(Lease::new(settings.clone()));
        let steps = Steps::new(Arc::clone(&client), Arc::clone(&lease), config.ttl);
        let steps = Arc::new(steps);
        let local = Arc::new(Entries::new(config.max_local_bytes, config.ttl));
        let (reads, batches) = batch::queue();
        let (reclaims, detached) = reclaim::queue();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&client).keep_connected());
        tasks.spawn(batches.run(Arc::clone(&steps)));
        tasks.spawn(reclaim::run(Arc::clone(&steps), detached));
        tasks.spawn(sweep(Arc::clone(&local)));
        // A service that starts with its cache connected serves its first calls faster.
        client.wait_for_connection().await;
        Ok(Self {
            client,
            lease,
            steps,
            local,
            reads,
            reclaims,
            counters,
            settings,
            _tasks: tasks,
        })
    }

    /// Takes the database's row, which was requested at `asked`. Nothing is served before the first row,
    /// nor later than [`LEASE`](super::LEASE) after the last request.
    pub fn renew_lease(&self, row: &CacheEpoch, asked: Instant) {
        self.lease.renew(row, asked);
    }

    /// A digest of the settings that all replicas on one database must share.
    pub fn settings(&self) -> u64 {
        self.settings.fingerprint()
    }

    /// The error of a replica whose settings differ from those of the others.
    pub fn settings_differ(&self) -> CacheError {
        CacheError::SettingsDiffer(self.settings.to_string())
    }

    /// Checks every master: in an active epoch that it has the epoch's scripts and data, and in a
    /// suspension that it executes every command that the steps need, writes included.
    pub async fn check(&self) -> Result<(), CacheError> {
        let epoch = self.lease.last_known()?;
        masters::check(&self.client, &epoch, &self.settings).await
    }

    /// Gives every master the name of an incarnation: loads the scripts that carry it.
    pub async fn install_scripts(&self, incarnation: Uuid) -> Result<CacheServer, CacheError> {
        masters::install_scripts(&self.client, incarnation, &self.settings).await
    }

    async fn look_up(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        if let Some(held) = self.local.peek(key.digest()) {
            if is_enabled(Failpoint::LocalWithoutValidation)
                && let Some(hit) = self.local_hit(key, held.version)
            {
                return Ok(hit);
            }
            let read = self.reads.read(tag, None).await?;
            let Some(version) = read.version else {
                return Ok(Lookup::Closed);
            };
            if read.opened {
                return Ok(Lookup::Miss(version));
            }
            if let Some(hit) = self.local_hit(key, version) {
                return Ok(hit);
            }
            self.local.remove(key.digest(), held.version);
        }
        let read = self.reads.read(tag, Some(key)).await?;
        Ok(self.shared_lookup(key, &read))
    }

    fn local_hit(&self, key: &Key, version: Version) -> Option<Lookup> {
        Some(Lookup::Hit {
            body: self.local.get(key.digest(), version)?,
            tier: Tier::Local,
            version,
        })
    }

    /// A read of a key's entry as a lookup. A current entry is kept in the process.
    fn shared_lookup(&self, key: &Key, read: &BatchedRead) -> Lookup {
        let Some(version) = read.version else {
            return Lookup::Closed;
        };
        match read.entry.as_deref().and_then(StoredEntry::parse) {
            Some(entry) if entry.version == version => {
                // A copy, because a slice would keep the whole read buffer alive.
                let body = Bytes::copy_from_slice(entry.body);
                self.keep(key, version, body.clone());
                Lookup::Hit {
                    body,
                    tier: Tier::Redis,
                    version,
                }
            }
            _ => Lookup::Miss(version),
        }
    }

    fn keep(&self, key: &Key, version: Version, body: Bytes) {
        let entry = Entry {
            tag: None,
            version,
            body,
        };
        self.local.insert(*key.digest(), entry);
    }

    /// Closes tags for a write; without one, only drops their versions and entries. Returns the number of
    /// entries that their indexes held.
    async fn close_tags(
        &self,
        epoch: &Arc<EpochState>,
        tags: &[&Tag],
        write: Option<WriteId>,
    ) -> Result<u64, CacheError> {
        let mut entries = 0;
        let permits_until = Instant::now() + WRITE_WAIT;
        for tags in tags.chunks(TAGS_PER_ROUND_TRIP) {
            let closed = self.steps.close(epoch, tags, write, permits_until).await?;
            self.counters.invalidations.add(tags.len());
            entries += closed.entries;
            for index in closed.detached {
                // An index that doesn't fit the queue takes memory until it expires.
                let _ = self.reclaims.try_send(index);
            }
        }
        Ok(entries)
    }

    fn counted<T>(&self, result: Result<T, CacheError>) -> Result<T, CacheError> {
        if let Err(error) = &result {
            self.counters.failed(error);
        }
        result
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        let _span = span("lookup");
        self.counted(self.look_up(tag, key).await)
    }

    fn peek_local(&self, key: &Key, version: Version) -> Option<Bytes> {
        self.local.get(key.digest(), version)
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        body: Bytes,
    ) -> Result<bool, CacheError> {
        let _span = span("fill");
        let filled = self.steps.fill(tag, key, version, body.clone()).await;
        let stored = self.counted(filled)?;
        self.counters.filled(stored);
        if stored {
            self.keep(key, version, body);
        }
        Ok(stored)
    }

    async fn close(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        let _span = span("close");
        let Some(epoch) = self.counted(self.lease.of(epoch))? else {
            return Ok(());
        };
        let tags: Vec<_> = tags.iter().collect();
        let closed = self.close_tags(&epoch, &tags, Some(write)).await;
        self.counted(closed).map(|_| ())
    }

    async fn reopen(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        let _span = span("reopen");
        let Some(epoch) = self.counted(self.lease.of(epoch))? else {
            return Ok(());
        };
        let active = epoch.active()?;
        let mut reopened = self.steps.reopen(active, tags, write).await;
        if reopened.is_err() {
            // Suspending the cache instead would take longer. A second `reopen` draws no version.
            reopened = self.steps.reopen(active, tags, write).await;
        }
        self.counted(reopened)
    }

    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError> {
        let epoch = self.lease.current()?;
        let closed = self.close_tags(&epoch, &[tag], None).await;
        self.counted(closed)
    }

    async fn invalidate_all(&self) -> Result<u64, CacheError> {
        let epoch = self.lease.current()?;
        let tags = self.counted(self.steps.open_tags(epoch.active()?).await)?;
        let tags: Vec<_> = tags.iter().collect();
        let mut entries = 0;
        // Each round trip has a time limit of its own: no transaction waits for the last one.
        for tags in tags.chunks(TAGS_PER_ROUND_TRIP) {
            let closed = self.close_tags(&epoch, tags, None).await;
            entries += self.counted(closed)?;
        }
        Ok(entries)
    }

    fn peek_compressed(&self, key: &Key, body: &Bytes, encoding: Encoding) -> Option<Bytes> {
        self.local.compressed(key.digest(), body, encoding)
    }

    fn keep_compressed(&self, key: &Key, body: &Bytes, encoding: Encoding, compressed: Bytes) {
        self.local
            .keep_compressed(*key.digest(), body, encoding, compressed);
    }

    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError> {
        let server = self.counted(self.steps.explain(tag, key).await)?;
        Ok(Explanation {
            current: server.version,
            writers: server.writers,
            local: self.local.peek(key.digest()),
            redis: server.entry,
        })
    }

    fn stats(&self) -> Stats {
        Stats {
            active: self.lease.current().is_ok(),
            epoch: self
                .lease
                .last_known()
                .map_or(0, |state| state.epoch.0.unsigned_abs()),
            ..self.counters.snapshot(self.local.size())
        }
    }
}

/// A step of the current call.
fn span(step: &'static str) -> Span {
    let mut span = call::span(|| format!("redis {step}"));
    span.set("db.system.name", "redis");
    span.set("db.operation.name", step);
    span
}

async fn sweep(local: Arc<Entries>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        local.sweep();
    }
}
