//! The steps of the protocol, each a script over the keys of a tag.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fred::prelude::{Key as RedisKey, Value};
use futures_util::StreamExt as _;

use super::{
    batch::{BatchedRead, Wanted},
    client::{Call, RedisClient},
    entry::{HEADER_BYTES, Schema, StoredEntry, header, now_ms},
    epoch::{ActiveEpoch, EpochState, Lease},
    keys::KeyKind,
};
use crate::{
    cache::{CacheError, EntryInfo, Key, Tag, Version, WRITE_DEADLINE, WriteId},
    failpoints::{Failpoint, is_enabled},
};

/// How long a `close` or `reopen` waits for permits for all its tags. Less than the database lets a
/// transaction stay idle.
pub(super) const WRITE_WAIT: Duration = Duration::from_secs(3);

/// Tags that one round trip of `close` or `reopen` takes. More would block other clients for too long.
pub(super) const TAGS_PER_ROUND_TRIP: usize = 512;

/// Entries that `close` itself deletes in one script. Few, because the deletion of one takes as long as
/// all other commands for a tag, and a write waits for it.
const DELETED_AT_ONCE: i64 = 100;

/// Entries that a background step deletes. Few, because Redis is single-threaded, and the memory of a
/// large server is slow to walk.
const RECLAIMED_AT_ONCE: i64 = 250;

/// Time to live of a version under which nothing is filled.
const UNFILLED_TTL: Duration = Duration::from_mins(1);

/// Minimum time to live of the writers of a tag. Much longer than [`WRITE_DEADLINE`], which is in the
/// scores: a server that evicts the keys closest to expiry evicts them last.
const WRITERS_TTL: Duration = Duration::from_hours(24);

/// Reads per script.
pub(super) const READS_PER_SCRIPT: usize = 512;

/// Entries per script: Redis is single-threaded, so a large reply blocks every other client.
const ENTRIES_PER_SCRIPT: usize = 32;

/// Members of an index that a fill samples in a round. Another round follows only if at least a fifth of
/// the sample was dead.
///
/// A fill adds at most one member, so in a steady state dead members are less than a quarter of an
/// index; after a burst of fills has expired, each of the fills that follow removes up to a hundred
/// until that holds again.
const SAMPLE: i64 = 5;

/// Maximum number of rounds.
const SAMPLE_ROUNDS: i64 = 20;

/// The longest time to live, about a century.
const MAX_MS: i64 = 100 * 365 * 24 * 3_600 * 1_000;

/// The steps. All but `close`, `reopen` and `reclaim` need the lease.
#[derive(Debug)]
pub(super) struct Steps {
    client: Arc<RedisClient>,
    lease: Arc<Lease>,
    schema: Schema,
    ttl: Duration,
}

/// An index that a `close` has detached, with entries to delete.
pub(super) struct DetachedIndex {
    pub(super) epoch: Arc<EpochState>,
    tag: Tag,
    index: RedisKey,
}

/// The result of closing tags.
#[derive(Default)]
pub(super) struct Closed {
    /// The number of entries that their indexes held.
    pub(super) entries: u64,
    pub(super) detached: Vec<DetachedIndex>,
}

/// The server's state of a tag and a key.
pub(super) struct ServerState {
    pub(super) version: Option<Version>,
    pub(super) writers: u64,
    pub(super) entry: Option<EntryInfo>,
}

impl Steps {
    pub(super) fn new(client: Arc<RedisClient>, lease: Arc<Lease>, ttl: Duration) -> Self {
        Self {
            client,
            lease,
            schema: Schema::current(),
            ttl,
        }
    }

    /// Reads tags and entries in one round trip, and opens the tags without a version. Those without a key
    /// must come first in `wanted`. Each has a result of its own: a node of a Cluster may be down.
    pub(super) async fn lookup(
        &self,
        wanted: &[Wanted],
    ) -> Result<Vec<Result<BatchedRead, CacheError>>, CacheError> {
        let epoch = self.lease.current()?;
        let active = epoch.active()?;
        let (versions_at_once, entries_at_once) = if self.client.is_clustered() {
            (1, 1)
        } else {
            (READS_PER_SCRIPT, ENTRIES_PER_SCRIPT)
        };
        let (versions, entries) = wanted.split_at(wanted.partition_point(|(_, key)| key.is_none()));
        let chunks = versions
            .chunks(versions_at_once)
            .chain(entries.chunks(entries_at_once));
        // Each script has a fresh version of its own: two of one round trip that shared it could set it
        // twice, with a whole write in between.
        let shared = is_enabled(Failpoint::SharedVersion).then(Version::generate);
        let fresh = || shared.unwrap_or_else(Version::generate);
        let chunks: Vec<_> = chunks.map(|chunk| (chunk, fresh())).collect();
        let calls = chunks
            .iter()
            .map(|(chunk, fresh)| self.lookup_call(active, chunk, *fresh))
            .collect();
        let replies = self
            .client
            .run_each::<Vec<Option<Bytes>>>(&active.scripts.lookup, calls)
            .await?;
        let mut found = Vec::with_capacity(wanted.len());
        for ((chunk, fresh), reply) in chunks.into_iter().zip(replies) {
            let mut values = reply.map(Vec::into_iter);
            found.extend(chunk.iter().map(|(_, key)| {
                let values = values.as_mut().map_err(|error| error.clone())?;
                let version = values.next().flatten();
                let version = version.as_deref().and_then(Version::from_bytes);
                Ok(BatchedRead {
                    version,
                    opened: version == Some(fresh),
                    entry: key.and_then(|_| values.next().flatten()),
                })
            }));
        }
        Ok(found)
    }

    fn lookup_call(&self, active: &ActiveEpoch, chunk: &[Wanted], fresh: Version) -> Call {
        let mut keys = Vec::with_capacity(3 * chunk.len());
        let mut writers = Vec::with_capacity(chunk.len());
        for (tag, key) in chunk {
            let names = active.namespace.keys(tag.as_str());
            keys.push(names.of(KeyKind::Version));
            keys.extend(key.map(|key| names.entry(&self.schema.member(&key))));
            writers.push(names.of(KeyKind::Writers));
        }
        let values = keys.len() / chunk.len().max(1);
        keys.append(&mut writers);
        Call {
            keys,
            args: vec![
                Value::Bytes(fresh.to_bytes().to_vec().into()),
                ms(self.ttl.min(UNFILLED_TTL)).into(),
                i64::try_from(values).unwrap_or(i64::MAX).into(),
            ],
        }
    }

    pub(super) async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        body: Bytes,
    ) -> Result<bool, CacheError> {
        let epoch = self.lease.current()?;
        let active = epoch.active()?;
        let names = active.namespace.keys(tag.as_str());
        let member = self.schema.member(key);
        let call = Call {
            keys: vec![
                names.of(KeyKind::Version),
                names.of(KeyKind::Index),
                names.entry(&member),
            ],
            args: vec![
                Value::Bytes(header(version)),
                Value::Bytes(body),
                member.into(),
                names.prefix().into(),
                ms(self.ttl).into(),
                SAMPLE.into(),
                SAMPLE_ROUNDS.into(),
            ],
        };
        self.client.run(&active.scripts.fill, call).await
    }

    /// Closes tags for a write; without one, only drops their versions and entries.
    pub(super) async fn close(
        &self,
        epoch: &Arc<EpochState>,
        tags: &[&Tag],
        write: Option<WriteId>,
        permits_until: Instant,
    ) -> Result<Closed, CacheError> {
        let active = epoch.active()?;
        let write = write.map(|WriteId(id)| id.to_string()).unwrap_or_default();
        let args = [
            write.into(),
            ms(WRITE_DEADLINE).into(),
            ms(WRITERS_TTL.max(self.ttl.saturating_mul(2))).into(),
            DELETED_AT_ONCE.into(),
            ms(self.ttl).into(),
        ];
        let dropped = KeyKind::Dropped(rand::random());
        let kinds = [KeyKind::Version, KeyKind::Writers, KeyKind::Index, dropped];
        let calls = self.calls(active, tags, &kinds, &args);
        let held: Vec<Vec<i64>> = self
            .client
            .run_all(&active.scripts.close, calls, permits_until)
            .await?;
        let mut closed = Closed::default();
        for (tag, held) in tags.iter().zip(held.concat()) {
            closed.entries += held.unsigned_abs();
            if held < 0 {
                closed.detached.push(DetachedIndex {
                    epoch: Arc::clone(epoch),
                    tag: (*tag).clone(),
                    index: active.namespace.keys(tag.as_str()).of(dropped),
                });
            }
        }
        Ok(closed)
    }

    pub(super) async fn reopen(
        &self,
        active: &ActiveEpoch,
        tags: &BTreeSet<Tag>,
        WriteId(write): WriteId,
    ) -> Result<(), CacheError> {
        let deadline = Instant::now() + WRITE_WAIT;
        let args = [write.to_string().into()];
        let kinds = [KeyKind::Version, KeyKind::Writers];
        let tags: Vec<_> = tags.iter().collect();
        for tags in tags.chunks(TAGS_PER_ROUND_TRIP) {
            let calls = self.calls(active, tags, &kinds, &args);
            let _: Vec<()> = self
                .client
                .run_all(&active.scripts.reopen, calls, deadline)
                .await?;
        }
        Ok(())
    }

    /// The calls of a script on these kinds of keys of tags: in a Cluster one for each tag, because the
    /// tags lie on different slots, otherwise one for all.
    fn calls(
        &self,
        active: &ActiveEpoch,
        tags: &[&Tag],
        kinds: &[KeyKind],
        args: &[Value],
    ) -> Vec<Call> {
        let at_once = if self.client.is_clustered() {
            1
        } else {
            tags.len().max(1)
        };
        let call = |tags: &[&Tag]| {
            let names = tags.iter().map(|tag| active.namespace.keys(tag.as_str()));
            let names: Vec<_> = names.collect();
            Call {
                keys: kinds
                    .iter()
                    .flat_map(|kind| names.iter().map(|names| names.of(*kind)))
                    .collect(),
                args: args.to_vec(),
            }
        };
        tags.chunks(at_once).map(call).collect()
    }

    /// Deletes some of a detached index's entries, and returns the next cursor.
    pub(super) async fn reclaim(
        &self,
        detached: &DetachedIndex,
        cursor: &str,
    ) -> Result<String, CacheError> {
        let active = detached.epoch.active()?;
        let names = active.namespace.keys(detached.tag.as_str());
        let call = Call {
            keys: vec![detached.index.clone(), names.of(KeyKind::Version)],
            args: vec![
                cursor.into(),
                RECLAIMED_AT_ONCE.into(),
                names.prefix().into(),
            ],
        };
        self.client.run(&active.scripts.reclaim, call).await
    }

    pub(super) async fn explain(&self, tag: &Tag, key: &Key) -> Result<ServerState, CacheError> {
        let epoch = self.lease.current()?;
        let active = epoch.active()?;
        let names = active.namespace.keys(tag.as_str());
        let member = self.schema.member(key);
        let call = Call {
            keys: vec![
                names.of(KeyKind::Version),
                names.of(KeyKind::Writers),
                names.entry(&member),
            ],
            args: vec![i64::from(HEADER_BYTES).into()],
        };
        let (version, writers, header, length): (Option<Bytes>, u64, Bytes, u64) =
            self.client.run(&active.scripts.explain, call).await?;
        Ok(ServerState {
            version: version.as_deref().and_then(Version::from_bytes),
            writers,
            entry: StoredEntry::parse(&header).map(|entry| EntryInfo {
                version: entry.version,
                bytes: length.saturating_sub(u64::from(HEADER_BYTES)),
                age: Duration::from_millis(now_ms().saturating_sub(entry.filled_ms)),
            }),
        })
    }

    /// The tags that are open.
    pub(super) async fn open_tags(
        &self,
        active: &ActiveEpoch,
    ) -> Result<BTreeSet<Tag>, CacheError> {
        let mut keys = self.client.scan(active.namespace.version_pattern());
        let mut tags = BTreeSet::new();
        while let Some(key) = keys.next().await {
            tags.extend(active.namespace.tag_of(&key?));
        }
        Ok(tags)
    }
}

/// Milliseconds, at least one, and no more than Redis can add to its clock.
fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).map_or(MAX_MS, |ms| ms.clamp(1, MAX_MS))
}
