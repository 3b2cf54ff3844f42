//! The engine that replicas share: tags and entries in Redis, with a cache of entries in the
//! process in front of it.
//!
//! All that belongs to a tag `T` lies on one slot of a Redis Cluster, so that a step is atomic:
//!
//! | key | type | what |
//! | --- | --- | --- |
//! | `<prefix>{T}:version` | string | the tag's version; absent while the tag is closed |
//! | `<prefix>{T}:writers` | sorted set | writes in flight, by deadline on the server's own clock |
//! | `<prefix>{T}:keys` | set | the index: the entries that were filled under the tag |
//! | `<prefix>{T}:<schema>:<key>` | string | an entry: version, time of the fill, answer |
//! | `<prefix>{T}:dropped:<random>` | set | what is left of `keys` after `close`, until reclaimed |
//!
//! Every key has a time to live, which a fill renews for all that leads to its entry; reading
//! renews nothing, because an entry that is read often is read from the process. The server may
//! lose any of them at any moment:
//!
//! - without `version` the tag is closed, until a reader sets a fresh one; older entries carry an
//!   older version and are dead, whatever else is lost;
//! - without `writers` a reader may open a tag before a write commits, and what it fills then dies
//!   at the write's `reopen`, before the acknowledgement;
//! - without `keys` or `dropped` entries aren't found by `close`: they are dead without their
//!   version, and take memory until they expire;
//! - without an entry there is a miss.
//!
//! A command that timed out may still be executed, and later than its caller thinks. That is
//! harmless for each: a late `close` keeps the tag closed until the write's deadline; a late `open`
//! sets a version that nobody has read the database under yet; a late `fill` compares versions
//! first; a late `reopen` drops a version, and a note that says no more than that the write may be
//! in flight, which it isn't.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    mem,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use fred::{
    clients::WithOptions,
    interfaces::{ClientLike as _, EventInterface as _, KeysInterface as _, LuaInterface as _},
    prelude::{
        Builder, Client, Config, Error as FredError, ErrorKind, FromValue, Key as RedisKey,
        Options, ReconnectPolicy, Value,
    },
    types::{config::ReconnectError, scripts::Script},
};
use futures_util::{
    FutureExt as _, Stream, StreamExt as _,
    future::{Either, try_join_all},
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Cache, CacheError, Explanation, Held, Key, Lookup, Stats, Tag, Tier, Version, WRITE_DEADLINE,
    WriteId,
    local::{Entries, Entry},
    stats::Counters,
};
use crate::controls::{Control, without};

/// How long a command may take. Reading the database instead is better than waiting longer.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a connection may take to be made, and to be set up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait before connecting again, at first and at most, in milliseconds.
const RECONNECT_AFTER_MS: (u32, u32) = (50, 1_000);

/// How long to wait before the client is started again after it ended or hung.
const RESTART_AFTER: Duration = Duration::from_millis(200);

/// How many commands may be under way at once.
const MAX_IN_FLIGHT: usize = 4_096;

/// How many tags one round trip of `close` or `reopen` takes. With more, a write of very many
/// locations would keep the server from everybody else.
const TAGS_PER_ROUND_TRIP: usize = 512;

/// How many entries of a tag `close` itself drops.
const DROP_AT_ONCE: i64 = 1_000;

/// How many entries a step of the background drops. Few, because the server does nothing else
/// meanwhile: the memory of a large server is slow to walk.
const RECLAIM_AT_ONCE: i64 = 250;

/// How many detached indexes may wait to be reclaimed. Beyond it they wait for their time to live.
const MAX_RECLAIMS: usize = 1_024;

/// How many writes may wait for their `reopen` to be tried again, and how long between two tries.
const MAX_REOPENS: usize = 1_024;
const REOPEN_AFTER: Duration = Duration::from_millis(200);

/// How many checks of versions one round trip takes.
const CHECKS_AT_ONCE: usize = 1_024;

/// How many members of an index a fill looks at in a round, and in how many rounds at most. The
/// next round comes only if a fifth of the sample was dead.
///
/// A fill adds at most one member, so in a steady state dead members are less than a quarter of an
/// index; after a burst of fills has expired, the fills that follow drop up to a hundred each until
/// that holds again.
const CLEAN: (u8, u8) = (5, 20);

/// How often local entries are checked for having outlived their time.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How many keys one step of a scan looks at.
const SCAN_COUNT: u32 = 1_000;

/// How long a scan may take from one matching key to the next.
const SCAN_TIMEOUT: Duration = Duration::from_secs(10);

/// The bytes before the answer in an entry: its version, and when it was filled in milliseconds of
/// the Unix epoch, which is for people alone.
const HEADER_BYTES: u8 = 24;

/// The longest time to live, about a century.
const MAX_MS: i64 = 100 * 365 * 24 * 3_600 * 1_000;

const SCHEMES: [&str; 6] = [
    "redis",
    "rediss",
    "redis-sentinel",
    "rediss-sentinel",
    "redis-cluster",
    "rediss-cluster",
];

/// The oldest major version of Redis whose scripts can say that they may run without free memory.
const OLDEST: u64 = 7;

/// How to use a Redis server, a Sentinel set or a Cluster. Redis 7.0 or later.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://[[user]:password@]host[:port][/database]`; with TLS `rediss://`; or
    /// `redis-sentinel://host:port?sentinelServiceName=NAME`, or `redis-cluster://host:port`, where
    /// `node=host:port` in the query names further nodes.
    pub url: String,
    /// What every key begins with, so that several services can share a server. No braces.
    pub prefix: String,
    /// How many bytes the entries in the process may take.
    pub max_local_bytes: u64,
    /// How long an entry is kept by Redis after it was filled, and in the process after it was last
    /// read.
    pub ttl: Duration,
}

/// The configuration is wrong. Never shows the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisConfigError {
    /// The URL isn't one.
    #[error(
        "the Redis URL is invalid: {0}; give redis://[[user]:password@]host[:port][/database], or \
         the same with rediss, redis-sentinel (and ?sentinelServiceName=NAME) or redis-cluster"
    )]
    Url(String),
    /// The prefix has a brace, which would move keys to other slots.
    #[error("the Redis key prefix {0:?} has a brace: choose one without")]
    Prefix(String),
}

/// The engine that replicas share. Dropping it ends its connections and background work.
#[derive(Debug)]
pub struct RedisCache {
    redis: Arc<Redis>,
    local: Arc<Entries>,
    checks: mpsc::Sender<Check>,
    reclaims: mpsc::Sender<Reclaim>,
    reopens: mpsc::Sender<Reopen>,
    _tasks: JoinSet<()>,
}

/// A request to read a tag's version, after it was made.
struct Check {
    tag: Tag,
    answer: oneshot::Sender<Result<Option<Version>, CacheError>>,
}

/// A detached index whose entries are to be dropped.
struct Reclaim {
    tag: Tag,
    dropped: RedisKey,
}

/// Tags of a write that is over, whose `reopen` the server didn't confirm.
struct Reopen {
    tags: BTreeSet<Tag>,
    write: WriteId,
    since: Instant,
}

impl RedisCache {
    /// Connects, and keeps connecting for as long as it isn't dropped: a server that is away for
    /// the moment is no error. Must be called within a tokio runtime.
    pub async fn connect(config: &RedisConfig) -> Result<Self, RedisConfigError> {
        let redis = Arc::new(Redis::new(config)?);
        let local = Arc::new(Entries::new(config.max_local_bytes, config.ttl));
        let (checks, asked) = mpsc::channel(MAX_IN_FLIGHT);
        let (reclaims, detached) = mpsc::channel(MAX_RECLAIMS);
        let (reopens, unconfirmed) = mpsc::channel(MAX_REOPENS);
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_connected(Arc::clone(&redis)));
        tasks.spawn(read_versions(Arc::clone(&redis), asked));
        tasks.spawn(reclaim(Arc::clone(&redis), detached));
        tasks.spawn(reopen_late(Arc::clone(&redis), unconfirmed));
        tasks.spawn(sweep(Arc::clone(&local)));
        // A service that starts with its cache connected answers its first calls faster.
        let _ = tokio::time::timeout(CONNECT_TIMEOUT, redis.client().wait_for_connect()).await;
        Ok(Self {
            redis,
            local,
            checks,
            reclaims,
            reopens,
            _tasks: tasks,
        })
    }

    /// A tag's version, read after this was called. Callers who wait at the same time share a read.
    async fn version(&self, tag: &Tag) -> Result<Option<Version>, CacheError> {
        let (answer, version) = oneshot::channel();
        let check = Check {
            tag: tag.clone(),
            answer,
        };
        self.checks
            .try_send(check)
            .map_err(|_| CacheError("too many checks of versions are waiting".to_owned()))?;
        version.await.unwrap_or_else(|_| {
            Err(CacheError(
                "the check of a version was abandoned".to_owned(),
            ))
        })
    }

    async fn look_up(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        if let Some(held) = self.local.peek(key) {
            if without(Control::LocalWithoutValidation)
                && let Some(answer) = self.local.get(key, held.version)
            {
                return Ok(Lookup::Hit(answer, Tier::Local));
            }
            let Some(current) = self.version(tag).await? else {
                return Ok(Lookup::Miss(None));
            };
            if let Some(answer) = self.local.get(key, current) {
                return Ok(Lookup::Hit(answer, Tier::Local));
            }
            self.local.remove(key, held.version);
        }
        let (current, entry) = self.redis.lookup(tag, key).await?;
        let Some(version) = current else {
            return Ok(Lookup::Miss(None));
        };
        match entry.as_deref().and_then(parse_entry) {
            Some((filled_under, _, answer)) if filled_under == version => {
                // A copy, because a slice would keep the whole read buffer alive.
                let answer = Bytes::copy_from_slice(answer);
                self.keep(tag, key, version, answer.clone());
                Ok(Lookup::Hit(answer, Tier::Redis))
            }
            _ => Ok(Lookup::Miss(Some(version))),
        }
    }

    fn keep(&self, tag: &Tag, key: &Key, version: Version, answer: Bytes) {
        let entry = Entry {
            tag: tag.clone(),
            version,
            answer,
        };
        self.local.insert(*key, entry);
    }

    /// Closes tags, for a write or for good, and returns how many entries their indexes held.
    async fn drop_tags(&self, tags: &[&Tag], write: Option<WriteId>) -> Result<u64, CacheError> {
        let mut count = 0;
        for tags in tags.chunks(TAGS_PER_ROUND_TRIP) {
            let calls: Vec<_> = tags
                .iter()
                .map(|tag| self.redis.close_call(tag, write))
                .collect();
            let replies: Vec<(u64, bool)> = self
                .redis
                .run_all(&self.redis.scripts.close, calls.iter().cloned())
                .await?;
            self.redis.counters.invalidations.add(tags.len());
            for ((tag, call), (entries, detached)) in tags.iter().zip(calls).zip(replies) {
                count += entries;
                if detached && let Some(dropped) = call.keys.into_iter().next_back() {
                    // What doesn't fit the queue takes memory until its time to live has passed.
                    let _ = self.reclaims.try_send(Reclaim {
                        tag: (*tag).clone(),
                        dropped,
                    });
                }
            }
        }
        Ok(count)
    }

    fn counted<T>(&self, result: Result<T, CacheError>) -> Result<T, CacheError> {
        if result.is_err() {
            self.redis.counters.errors.add(1);
        }
        result
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        self.counted(self.look_up(tag, key).await)
    }

    async fn open(&self, tag: &Tag) -> Result<Option<Version>, CacheError> {
        self.counted(self.redis.open(tag).await)
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        answer: Bytes,
    ) -> Result<bool, CacheError> {
        let filled = self.redis.fill(tag, key, version, &answer).await;
        let stored = self.counted(filled)?;
        self.redis.counters.filled(stored);
        if stored {
            self.keep(tag, key, version, answer);
        }
        Ok(stored)
    }

    async fn close(&self, tags: &BTreeSet<Tag>, write: WriteId) -> Result<(), CacheError> {
        let tags: Vec<_> = tags.iter().collect();
        let closed = self.drop_tags(&tags, Some(write)).await;
        self.counted(closed).map(|_| ())
    }

    async fn reopen(&self, tags: &BTreeSet<Tag>, write: WriteId) -> Result<(), CacheError> {
        let reopened = self.redis.reopen(tags, write).await;
        if reopened.is_err() {
            // What doesn't fit the queue stays closed until the deadline.
            let _ = self.reopens.try_send(Reopen {
                tags: tags.clone(),
                write,
                since: Instant::now(),
            });
        }
        self.counted(reopened)
    }

    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError> {
        let dropped = self.drop_tags(&[tag], None).await;
        self.counted(dropped)
    }

    async fn invalidate_all(&self) -> Result<u64, CacheError> {
        let mut keys = self.redis.scan(&Names::all("version", &self.redis.prefix));
        let mut tags = BTreeSet::new();
        while let Some(key) = self.counted(next_key(&mut keys).await)? {
            if let Some(tag) = Names::tag_of(&key, &self.redis.prefix) {
                tags.insert(tag);
            }
        }
        let tags: Vec<_> = tags.iter().collect();
        let dropped = self.drop_tags(&tags, None).await;
        self.counted(dropped)
    }

    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError> {
        let (current, writers, redis) = self.counted(self.redis.explain(tag, key).await)?;
        Ok(Explanation {
            current,
            writers,
            local: self.local.peek(key),
            redis,
        })
    }

    fn stats(&self) -> Stats {
        self.redis.counters.snapshot(self.local.size())
    }
}

/// The server, as the protocol sees it: each method is one round trip.
#[derive(Debug)]
struct Redis {
    /// Replaced when it hangs.
    client: RwLock<WithOptions<Client>>,
    scripts: Scripts,
    prefix: String,
    /// What sets the entries of this release's response schema apart from another's: two releases
    /// side by side share tags and versions, and never read each other's bytes.
    schema: String,
    ttl_ms: i64,
    in_flight: Semaphore,
    /// How many replies have come.
    replies: AtomicU64,
    /// Told when commands time out while no reply comes at all.
    stuck: Notify,
    counters: Counters,
}

#[derive(Debug)]
struct Scripts {
    open: Script,
    fill: Script,
    close: Script,
    reopen: Script,
    reclaim: Script,
    explain: Script,
}

/// A script's keys and arguments.
#[derive(Debug, Clone)]
struct Call {
    keys: Vec<RedisKey>,
    args: Vec<Value>,
}

impl Redis {
    fn new(config: &RedisConfig) -> Result<Self, RedisConfigError> {
        if config.prefix.contains(['{', '}']) {
            return Err(RedisConfigError::Prefix(config.prefix.clone()));
        }
        let mut client = parse_url(&config.url)?;
        // To be away at the start is like being away later.
        client.fail_fast = false;
        let (min_ms, max_ms) = RECONNECT_AFTER_MS;
        let client = Builder::from_config(client)
            .set_policy(ReconnectPolicy::new_exponential(0, min_ms, max_ms, 2))
            .with_performance_config(|performance| {
                performance.default_command_timeout = COMMAND_TIMEOUT;
            })
            .with_connection_config(|connection| {
                connection.connection_timeout = CONNECT_TIMEOUT;
                connection.internal_command_timeout = CONNECT_TIMEOUT;
                connection.max_command_buffer_len = MAX_IN_FLIGHT;
                connection.tcp.nodelay = Some(true);
                // A master that a failover has demoted.
                connection.reconnect_errors = vec![ReconnectError::ReadOnly];
            })
            .build()
            .map_err(|error| RedisConfigError::Url(error.details().to_owned()))?;
        let schema = blake3::hash(crate::proto::DESCRIPTORS).to_hex();
        Ok(Self {
            client: RwLock::new(client.with_options(&fail_fast())),
            scripts: Scripts {
                open: Script::from_lua(include_str!("redis/open.lua")),
                fill: Script::from_lua(include_str!("redis/fill.lua")),
                close: Script::from_lua(include_str!("redis/close.lua")),
                reopen: Script::from_lua(include_str!("redis/reopen.lua")),
                reclaim: Script::from_lua(include_str!("redis/reclaim.lua")),
                explain: Script::from_lua(include_str!("redis/explain.lua")),
            },
            prefix: config.prefix.clone(),
            schema: schema[..8].to_owned(),
            ttl_ms: ms(config.ttl),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            replies: AtomicU64::new(0),
            stuck: Notify::new(),
            counters: Counters::default(),
        })
    }

    fn client(&self) -> WithOptions<Client> {
        let client = self.client.read();
        client.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the client by one that isn't connected. The old one can't be started again: it still
    /// counts the commands that it was dropped with as queued, and never flushes a connection's
    /// buffer as long as commands seem to be queued behind.
    fn replace_client(&self) {
        let fresh = self.client().clone_new().with_options(&fail_fast());
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// The names of a tag's keys. The one place that knows what they begin with.
    fn names(&self, tag: &Tag) -> Names {
        Names(format!("{}{{{tag}}}:", self.prefix))
    }

    /// An entry's key, after what all keys of its tag begin with.
    fn member(&self, key: &Key) -> String {
        format!("{}:{key}", self.schema)
    }

    /// Reads version and entry at one moment: `MGET` is atomic, and cheaper than a script.
    async fn lookup(
        &self,
        tag: &Tag,
        key: &Key,
    ) -> Result<(Option<Version>, Option<Bytes>), CacheError> {
        let names = self.names(tag);
        let keys = vec![names.of("version"), names.of(&self.member(key))];
        self.counters.round_trips.add(1);
        let client = self.client();
        let reply: Vec<Option<Bytes>> =
            self.command(client.mget(keys)).await.map_err(unavailable)?;
        let [version, entry] = <[_; 2]>::try_from(reply)
            .map_err(|_| CacheError("MGET answered another number of values".to_owned()))?;
        Ok((version.as_deref().and_then(Version::from_bytes), entry))
    }

    async fn versions(&self, tags: &[Tag]) -> Result<Vec<Option<Version>>, CacheError> {
        self.counters.round_trips.add(1);
        let keys = tags.iter().map(|tag| self.names(tag).of("version"));
        let client = self.client();
        let reply: Result<Vec<Option<Bytes>>, _> = if client.is_clustered() {
            try_join_all(keys.map(|key| self.command(client.get(key)))).await
        } else {
            self.command(client.mget(keys.collect::<Vec<_>>())).await
        };
        let versions = reply.map_err(unavailable)?;
        Ok(versions
            .iter()
            .map(|version| version.as_deref().and_then(Version::from_bytes))
            .collect())
    }

    async fn open(&self, tag: &Tag) -> Result<Option<Version>, CacheError> {
        let names = self.names(tag);
        let call = Call {
            keys: vec![names.of("version"), names.of("writers")],
            args: vec![
                Value::Bytes(Version::generate().to_bytes().to_vec().into()),
                self.ttl_ms.into(),
            ],
        };
        let version: Option<Bytes> = self.run(&self.scripts.open, call).await?;
        Ok(version.as_deref().and_then(Version::from_bytes))
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        answer: &[u8],
    ) -> Result<bool, CacheError> {
        let mut entry = BytesMut::with_capacity(usize::from(HEADER_BYTES) + answer.len());
        entry.put_slice(&version.to_bytes());
        entry.put_u64(now_ms());
        entry.put_slice(answer);
        let names = self.names(tag);
        let member = self.member(key);
        let call = Call {
            keys: vec![names.of("version"), names.of("keys"), names.of(&member)],
            args: vec![
                Value::Bytes(entry.freeze()),
                member.into(),
                names.0.into(),
                self.ttl_ms.into(),
                i64::from(CLEAN.0).into(),
                i64::from(CLEAN.1).into(),
            ],
        };
        self.run(&self.scripts.fill, call).await
    }

    fn close_call(&self, tag: &Tag, write: Option<WriteId>) -> Call {
        let names = self.names(tag);
        let dropped = format!("dropped:{:016x}", rand::random::<u64>());
        let write = write.map(|WriteId(id)| id.to_string()).unwrap_or_default();
        Call {
            keys: vec![
                names.of("version"),
                names.of("writers"),
                names.of("keys"),
                names.of(&dropped),
            ],
            args: vec![
                write.into(),
                ms(WRITE_DEADLINE).into(),
                names.0.into(),
                DROP_AT_ONCE.into(),
                self.ttl_ms.into(),
            ],
        }
    }

    async fn reopen(&self, tags: &BTreeSet<Tag>, write: WriteId) -> Result<(), CacheError> {
        let tags: Vec<_> = tags.iter().collect();
        for tags in tags.chunks(TAGS_PER_ROUND_TRIP) {
            let calls = tags.iter().map(|tag| self.reopen_call(tag, write));
            let _: Vec<u64> = self.run_all(&self.scripts.reopen, calls).await?;
        }
        Ok(())
    }

    fn reopen_call(&self, tag: &Tag, WriteId(write): WriteId) -> Call {
        let names = self.names(tag);
        Call {
            keys: vec![names.of("version"), names.of("writers")],
            args: vec![write.to_string().into()],
        }
    }

    /// Drops some of a detached index's entries, and returns where to go on.
    async fn reclaim(
        &self,
        Reclaim { tag, dropped }: &Reclaim,
        cursor: String,
    ) -> Result<String, CacheError> {
        let names = self.names(tag);
        let call = Call {
            keys: vec![dropped.clone(), names.of("version")],
            args: vec![cursor.into(), RECLAIM_AT_ONCE.into(), names.0.into()],
        };
        self.run(&self.scripts.reclaim, call).await
    }

    async fn explain(
        &self,
        tag: &Tag,
        key: &Key,
    ) -> Result<(Option<Version>, u64, Option<Held>), CacheError> {
        let names = self.names(tag);
        let call = Call {
            keys: vec![
                names.of("version"),
                names.of("writers"),
                names.of(&self.member(key)),
            ],
            args: vec![i64::from(HEADER_BYTES).into()],
        };
        let (version, writers, header, length): (Option<Bytes>, u64, Bytes, u64) =
            self.run(&self.scripts.explain, call).await?;
        let held = parse_entry(&header).map(|(version, filled_ms, _)| Held {
            version,
            bytes: length.saturating_sub(u64::from(HEADER_BYTES)),
            age: Duration::from_millis(now_ms().saturating_sub(filled_ms)),
        });
        Ok((
            version.as_deref().and_then(Version::from_bytes),
            writers,
            held,
        ))
    }

    /// The keys that match a pattern, on every node.
    fn scan(
        &self,
        pattern: &str,
    ) -> impl Stream<Item = Result<RedisKey, FredError>> + Send + Unpin + use<> {
        let pattern = pattern.to_owned();
        let client = self.client();
        Box::pin(if client.is_clustered() {
            Either::Left(client.scan_cluster_buffered(pattern, Some(SCAN_COUNT), None))
        } else {
            Either::Right(client.scan_buffered(pattern, Some(SCAN_COUNT), None))
        })
    }

    /// Runs a script.
    async fn run<T: FromValue>(&self, script: &Script, call: Call) -> Result<T, CacheError> {
        self.counters.round_trips.add(1);
        self.execute(script, call).await
    }

    /// Runs a script once for each call. They are sent together, without waiting for replies, so
    /// all take one round trip (on a Cluster, one for each node).
    async fn run_all<T: FromValue>(
        &self,
        script: &Script,
        calls: impl IntoIterator<Item = Call>,
    ) -> Result<Vec<T>, CacheError> {
        self.counters.round_trips.add(1);
        try_join_all(calls.into_iter().map(|call| self.execute(script, call))).await
    }

    async fn execute<T: FromValue>(&self, script: &Script, call: Call) -> Result<T, CacheError> {
        let Call { keys, args } = call.clone();
        let client = self.client();
        // fred's options for a command, such as to fail fast, don't reach scripts.
        if !client.is_connected() {
            return Err(CacheError("there is no connection".to_owned()));
        }
        let by_hash = client.evalsha(script.sha1().clone(), keys, args);
        match self.command(by_hash).await {
            // A server that was restarted, or another node, doesn't know the script yet.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.counters.round_trips.add(1);
                let lua = script.lua().cloned().unwrap_or_default();
                self.command(client.eval(lua, call.keys, call.args)).await
            }
            reply => reply,
        }
        .map_err(unavailable)
    }

    /// Waits for a command's reply, and notices when none comes any more.
    async fn command<T>(
        &self,
        reply: impl Future<Output = Result<T, FredError>>,
    ) -> Result<T, FredError> {
        let _permit = self.in_flight.try_acquire().map_err(|_| {
            FredError::new(ErrorKind::Backpressure, "too many commands are under way")
        })?;
        let before = self.replies.load(Ordering::Relaxed);
        let reply = reply.await;
        match &reply {
            Err(error) if *error.kind() == ErrorKind::Timeout => {
                // One node of a Cluster may hang while the others reply.
                if self.client().is_clustered() || self.replies.load(Ordering::Relaxed) == before {
                    self.stuck.notify_one();
                }
            }
            _ => {
                self.replies.fetch_add(1, Ordering::Relaxed);
            }
        }
        reply
    }
}

/// The names of a tag's keys.
struct Names(String);

impl Names {
    fn of(&self, what: &str) -> RedisKey {
        let mut name = String::with_capacity(self.0.len() + what.len());
        name.push_str(&self.0);
        name.push_str(what);
        name.into()
    }

    /// A pattern that matches one kind of key of every tag.
    fn all(what: &str, prefix: &str) -> String {
        let mut pattern = String::new();
        for char in prefix.chars() {
            if matches!(char, '*' | '?' | '[' | ']' | '^' | '\\') {
                pattern.push('\\');
            }
            pattern.push(char);
        }
        let _ = write!(pattern, "{{*}}:{what}");
        pattern
    }

    /// The tag that a key belongs to.
    fn tag_of(key: &RedisKey, prefix: &str) -> Option<Tag> {
        let rest = key.as_str()?.strip_prefix(prefix)?.strip_prefix('{')?;
        rest.split_once('}').map(|(tag, _)| Tag::from_text(tag))
    }
}

/// Keeps the client running. It reconnects by itself, but ends at some errors, and may wait for ever
/// on a server that takes what it is sent and answers nothing: then another takes its place.
async fn keep_connected(redis: Arc<Redis>) {
    let mut away = false;
    loop {
        let client = redis.client();
        let mut errors = client.error_rx();
        let mut connections = client.reconnect_rx();
        let mut router = AbortOnDropHandle::new(client.connect());
        loop {
            tokio::select! {
                ended = &mut router => {
                    tracing::error!(error = ?ended, "the Redis client ended: starting it again");
                    break;
                }
                () = redis.stuck.notified() => {
                    tracing::warn!("Redis doesn't answer: connecting again");
                    break;
                }
                Ok((error, _)) = errors.recv() => {
                    if !mem::replace(&mut away, true) {
                        tracing::warn!(%error, "Redis is away: answering from the database");
                    }
                }
                Ok(server) = connections.recv() => {
                    if mem::take(&mut away) {
                        tracing::info!(%server, "Redis is back");
                    }
                    if client.server_version().is_some_and(|version| version.major < OLDEST) {
                        tracing::error!(%server, "Redis {OLDEST}.0 or later is needed: writes will fail");
                    }
                }
            }
        }
        drop(router);
        redis.replace_client();
        tokio::time::sleep(RESTART_AFTER).await;
        // Whatever has timed out by now was sent to the old connection.
        let _ = redis.stuck.notified().now_or_never();
    }
}

/// Reads versions, one round trip at a time, each for all who asked while the last was under way:
/// so each is answered with what was read after it asked, as by
/// [`NextFlight`](super::NextFlight), but for all tags together.
async fn read_versions(redis: Arc<Redis>, mut asked: mpsc::Receiver<Check>) {
    let mut checks = Vec::new();
    while asked.recv_many(&mut checks, CHECKS_AT_ONCE).await > 0 {
        checks.retain(|check| !check.answer.is_closed());
        if checks.is_empty() {
            continue;
        }
        let mut tags = Vec::new();
        let mut places = HashMap::new();
        for check in &checks {
            places.entry(check.tag.clone()).or_insert_with(|| {
                tags.push(check.tag.clone());
                tags.len() - 1
            });
        }
        let versions = redis.versions(&tags).await;
        for Check { tag, answer } in checks.drain(..) {
            // Who asked may have gone.
            let _ = answer.send(match &versions {
                Ok(versions) => Ok(places.get(&tag).and_then(|&place| *versions.get(place)?)),
                Err(error) => Err(error.clone()),
            });
        }
    }
}

/// Drops the entries of detached indexes, in bounded steps.
async fn reclaim(redis: Arc<Redis>, mut detached: mpsc::Receiver<Reclaim>) {
    /// Where a scan starts, and where it says that it has ended.
    const START: &str = "0";
    while let Some(index) = detached.recv().await {
        let mut cursor = START.to_owned();
        // What an error leaves takes memory until its time to live has passed.
        while let Ok(next) = redis.reclaim(&index, cursor).await
            && next != START
        {
            cursor = next;
        }
    }
}

/// Tries again to reopen what a server that was away still holds closed, for it may carry out a
/// `close` that its caller has given up on. After the deadline the tags are open by themselves.
async fn reopen_late(redis: Arc<Redis>, mut unconfirmed: mpsc::Receiver<Reopen>) {
    while let Some(Reopen { tags, write, since }) = unconfirmed.recv().await {
        while since.elapsed() < WRITE_DEADLINE && redis.reopen(&tags, write).await.is_err() {
            tokio::time::sleep(REOPEN_AFTER).await;
        }
    }
}

async fn sweep(local: Arc<Entries>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        local.sweep();
    }
}

async fn next_key(
    keys: &mut (impl Stream<Item = Result<RedisKey, FredError>> + Unpin),
) -> Result<Option<RedisKey>, CacheError> {
    match tokio::time::timeout(SCAN_TIMEOUT, keys.next()).await {
        Ok(key) => key.transpose().map_err(unavailable),
        Err(_) => Err(CacheError("a scan timed out".to_owned())),
    }
}

fn parse_url(url: &str) -> Result<Config, RedisConfigError> {
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        return Err(RedisConfigError::Url("unknown scheme".to_owned()));
    }
    Config::from_url(url).map_err(|error| {
        let details = error.details();
        // This one repeats a part of the URL.
        RedisConfigError::Url(if details.starts_with("Invalid host:port") {
            "a node isn't host:port".to_owned()
        } else {
            details.to_owned()
        })
    })
}

/// A command fails at once while there is no connection, and isn't sent twice.
fn fail_fast() -> Options {
    Options {
        fail_fast: true,
        ..Options::default()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: FredError) -> CacheError {
    CacheError(error.to_string())
}

/// An entry's version, the time of its fill, and the answer.
fn parse_entry(entry: &[u8]) -> Option<(Version, u64, &[u8])> {
    let (header, answer) = entry.split_at_checked(usize::from(HEADER_BYTES))?;
    let (version, filled_ms) = header.split_at(16);
    Some((
        Version::from_bytes(version)?,
        u64::from_be_bytes(filled_ms.try_into().ok()?),
        answer,
    ))
}

/// Milliseconds, of which Redis takes no fewer than one, and no more than it can add to its clock.
fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).map_or(MAX_MS, |ms| ms.clamp(1, MAX_MS))
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str, prefix: &str) -> String {
        let config = RedisConfig {
            url: url.to_owned(),
            prefix: prefix.to_owned(),
            max_local_bytes: 0,
            ttl: Duration::from_secs(1),
        };
        let error = Redis::new(&config).map(|_| ()).expect_err("it is wrong");
        error.to_string()
    }

    #[tokio::test]
    async fn a_bad_url_is_told_without_its_password() {
        for url in [
            "",
            "user:hunter2@host",
            "http://user:hunter2@host",
            "redis://user:hunter2@",
            "redis://user:hunter2@host:port",
            "redis://user:hunter2@host/database",
            "redis-sentinel://user:hunter2@host",
            "redis-cluster://user:hunter2@host?node=hunter2",
        ] {
            let text = error(url, "");
            assert!(text.starts_with("the Redis URL is invalid: "), "{text}");
            assert!(!text.contains("hunter2"), "{url}: {text}");
        }
    }

    #[tokio::test]
    async fn a_prefix_with_a_brace_is_refused() {
        let text = error("redis://localhost", "a{b");
        assert!(text.contains("\"a{b\" has a brace"), "{text}");
    }

    #[test]
    fn a_pattern_matches_a_prefix_literally() {
        assert_eq!(Names::all("version", "a*[b]"), "a\\*\\[b\\]{*}:version");
        let key = RedisKey::from("a*{*,run%7D,*}:version");
        let tag = Names::tag_of(&key, "a*").expect("a tag's key");
        assert_eq!(tag.as_str(), "*,run%7D,*");
    }
}
