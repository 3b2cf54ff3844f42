//! The engine that replicas share: tags and entries in Redis, with a cache of entries in the
//! process in front of it.
//!
//! All that belongs to a tag `T` lies on one slot of a Redis Cluster, so that a step is atomic:
//!
//! | key | type | what |
//! | --- | --- | --- |
//! | `<prefix><epoch>:{T}:version` | string | the tag's version; absent while the tag is closed |
//! | `<prefix><epoch>:{T}:writers` | sorted set | writes in flight, by deadline on the server's own clock |
//! | `<prefix><epoch>:{T}:keys` | set | the index: the entries that were filled under the tag |
//! | `<prefix><epoch>:{T}:<schema>:<key>` | string | an entry: version, time of the fill, answer |
//! | `<prefix><epoch>:{T}:dropped:<random>` | set | what is left of `keys` after `close`, until reclaimed |
//!
//! Each step is a script that carries the name which the epoch gave to the server's processes, so that
//! only a process that was told the name knows it: Redis 7 keeps scripts in memory alone, and doesn't
//! replicate them. A replica refuses them all, because none declares that it doesn't write. See
//! [`epoch`](crate::coordination).
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
//! harmless for each: a late `close` keeps the tag closed until the write's deadline, in an epoch that
//! is over; a late `open` sets a version that nobody has read the database under yet; a late `fill`
//! compares versions first; a late `reopen` drops a version, and a note that says no more than that
//! the write may be in flight, which it isn't.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    iter, mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use fred::{
    clients::WithOptions,
    interfaces::{ClientLike as _, ClusterInterface as _, EventInterface as _, LuaInterface as _},
    prelude::{
        Builder, Client, Config, Error as FredError, ErrorKind, FromValue, Key as RedisKey,
        Options, ReconnectPolicy, Value,
    },
    types::{
        ClusterHash, CustomCommand,
        config::{ReconnectError, Server},
        scripts::Script,
    },
};
use futures_util::{
    FutureExt as _, Stream, StreamExt as _,
    future::{BoxFuture, Either, join_all, try_join_all},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, mpsc, oneshot},
    task::{JoinSet, yield_now},
    time::{sleep, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{
    Cache, CacheError, EntryInfo, Explanation, Key, LEASE, Lookup, Stats, Tag, Tier, Version,
    WRITE_DEADLINE, WriteId,
    local::{Entries, Entry},
    stats::Counters,
};
use crate::{
    controls::{Control, without},
    model::{CacheEpoch, CacheServer, Epoch},
};

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a read waits for room and the reply. Reading the database instead is better than waiting
/// longer.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a connection may take to be made, and to be set up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait before connecting again, at first and at most, in milliseconds.
const RECONNECT_AFTER_MS: (u32, u32) = (50, 1_000);

/// How long to wait before the client is started again after it ended or hung.
const RESTART_AFTER: Duration = Duration::from_millis(200);

/// On how many tags commands may be under way at once: so few that the last is answered long before
/// its time-out.
const MAX_IN_FLIGHT: usize = 1_024;

/// How many keys a command may have on a tag.
const KEYS_PER_TAG: usize = 4;

/// How long a `close` or `reopen` waits for room for all its tags. Less than the database lets a
/// transaction stand still.
const WRITE_WAIT: Duration = Duration::from_secs(3);

/// How many tags one round trip of `close` or `reopen` takes. With more, a write of very many
/// locations would keep the server from everybody else.
const TAGS_PER_ROUND_TRIP: usize = 512;

/// How many entries `close` itself drops in a script. Few, because each takes as long as all else
/// that it does on a tag, and somebody waits for it.
const DROP_AT_ONCE: i64 = 100;

/// How many entries a step of the background drops. Few, because the server does nothing else
/// meanwhile: the memory of a large server is slow to walk.
const RECLAIM_AT_ONCE: i64 = 250;

/// How often a step of the background may fail for an index, and how long it waits then.
const RECLAIM_TRIES: u32 = 20;
const RECLAIM_AFTER: Duration = Duration::from_millis(250);

/// How many detached indexes may wait to be reclaimed. Beyond it they wait for their time to live.
const MAX_RECLAIMS: usize = 4_096;

/// How long a version lives under which nothing is filled.
const UNFILLED_TTL: Duration = Duration::from_mins(1);

/// How many reads wait at most, how many one round trip takes, and how many entries one command:
/// the server does nothing else while it writes them out.
const MAX_READS: usize = 4_096;
const READS_AT_ONCE: usize = 512;
const ENTRIES_AT_ONCE: usize = 32;

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

/// Changes whenever entries become other bytes for the same response: now they are gRPC frames.
const ENTRY_FORMAT: &[u8] = b"frame";

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
    reads: mpsc::Sender<Read>,
    reclaims: mpsc::Sender<Reclaim>,
    _tasks: JoinSet<()>,
}

/// What is read at one moment: a tag's version, and the entry under a key, if one is given.
type Wanted = (Tag, Option<Key>);

/// A request to read something, after it was made.
struct Read {
    wanted: Wanted,
    answer: oneshot::Sender<Result<Found, CacheError>>,
}

/// What was read.
#[derive(Clone)]
struct Found {
    lookup: Lookup,
    /// Whether the tag was opened by this, so that nothing is filled under its version.
    opened: bool,
}

/// A detached index whose entries are to be dropped.
struct Reclaim {
    period: Arc<EpochState>,
    tag: Tag,
    dropped: RedisKey,
}

impl RedisCache {
    /// Connects, and keeps connecting for as long as it isn't dropped: a server that is away for
    /// the moment is no error. Must be called within a tokio runtime.
    pub async fn connect(config: &RedisConfig) -> Result<Self, RedisConfigError> {
        let redis = Arc::new(Redis::new(config)?);
        let local = Arc::new(Entries::new(config.max_local_bytes, config.ttl));
        let (reads, asked) = mpsc::channel(MAX_READS);
        let (reclaims, detached) = mpsc::channel(MAX_RECLAIMS);
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_connected(Arc::clone(&redis)));
        tasks.spawn(read_together(Arc::clone(&redis), Arc::clone(&local), asked));
        tasks.spawn(reclaim(Arc::clone(&redis), detached));
        tasks.spawn(sweep(Arc::clone(&local)));
        // A service that starts with its cache connected answers its first calls faster.
        let _ = timeout(CONNECT_TIMEOUT, redis.client().wait_for_connect()).await;
        Ok(Self {
            redis,
            local,
            reads,
            reclaims,
            _tasks: tasks,
        })
    }

    /// Takes what the database said of the cache when it was asked at this time. Nothing is served
    /// before the first, nor later than [`LEASE`] after the last.
    pub fn renew_lease(&self, row: &CacheEpoch, asked: Instant) {
        let mut lease = self.redis.lease();
        let same = lease.as_ref().filter(|lease| lease.period.is(row));
        let period = match same {
            Some(lease) => Arc::clone(&lease.period),
            None => Arc::new(EpochState::new(&self.redis.prefix, row)),
        };
        *lease = Some(Lease {
            period,
            until: asked + LEASE,
        });
    }

    /// Whether every master answers; and if the cache is in use, whether each knows its name, and
    /// has had no other data since it was told.
    pub async fn check(&self) -> Result<(), CacheError> {
        self.redis.connected()?;
        let period = self.redis.period()?;
        let client = self.redis.client();
        let checked = check_masters(&client, period.scripts.as_ref()).await;
        if checked.is_err() && client.is_clustered() {
            // Another node may be the master by now.
            let _ = timeout(READ_TIMEOUT, client.sync_cluster()).await;
        }
        let histories = checked.map_err(unavailable)?;
        match &period.server {
            Some(server) if server.histories != histories => {
                let why = "its data isn't the data that the epoch began with";
                Err(CacheError::WrongServer(why.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Gives every master a name: loads the scripts that carry it.
    pub async fn install_scripts(&self, name: Uuid) -> Result<CacheServer, CacheError> {
        self.redis.connected()?;
        let client = self.redis.client();
        if client.is_clustered() {
            let synced = timeout(CONNECT_TIMEOUT, client.sync_cluster()).await;
            synced
                .map_err(|_| CacheError::Timeout)?
                .map_err(unavailable)?;
        }
        let scripts = Scripts::new(name);
        for node in masters(&client) {
            let node = client.with_options(&at(node));
            let loads = scripts.all().map(|script| {
                let lua = script.lua().cloned().unwrap_or_default();
                command::<Value>(&node, "SCRIPT", vec!["LOAD".into(), lua.into()])
            });
            try_join_all(loads).await.map_err(unavailable)?;
        }
        let histories = check_masters(&client, Some(&scripts)).await;
        Ok(CacheServer {
            name,
            histories: histories.map_err(unavailable)?,
        })
    }

    /// What is wanted, read after this was called; without a key never a hit. Callers who wait at the
    /// same time share a round trip.
    async fn read(&self, tag: &Tag, key: Option<&Key>) -> Result<Found, CacheError> {
        let (answer, read) = oneshot::channel();
        let wanted = (tag.clone(), key.copied());
        self.reads
            .try_send(Read { wanted, answer })
            .map_err(|_| CacheError::QueueFull)?;
        read.await.unwrap_or_else(|_| Err(CacheError::ShuttingDown))
    }

    async fn look_up(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        if let Some(held) = self.local.peek(key.digest()) {
            if without(Control::LocalWithoutValidation)
                && let Some(body) = self.local.get(key.digest(), held.version)
            {
                return Ok(Lookup::Hit {
                    body,
                    tier: Tier::Local,
                    version: held.version,
                });
            }
            let found = self.read(tag, None).await?;
            let Found {
                lookup: Lookup::Miss(version),
                opened: false,
            } = found
            else {
                return Ok(found.lookup);
            };
            if let Some(body) = self.local.get(key.digest(), version) {
                return Ok(Lookup::Hit {
                    body,
                    tier: Tier::Local,
                    version,
                });
            }
            self.local.remove(key.digest(), held.version);
        }
        Ok(self.read(tag, Some(key)).await?.lookup)
    }

    /// Closes tags, for a write or for good, and returns how many entries their indexes held.
    async fn drop_tags(
        &self,
        period: &Arc<EpochState>,
        tags: &[&Tag],
        write: Option<WriteId>,
    ) -> Result<u64, CacheError> {
        let until = Instant::now() + WRITE_WAIT;
        let mut count = 0;
        for tags in tags.chunks(TAGS_PER_ROUND_TRIP) {
            let dropped = format!("dropped:{:016x}", rand::random::<u64>());
            let closed = self
                .redis
                .close(period, tags, write, &dropped, until)
                .await?;
            self.redis.counters.invalidations.add(tags.len());
            for (tag, held) in tags.iter().zip(closed) {
                count += held.unsigned_abs();
                if held < 0 {
                    // What doesn't fit the queue takes memory until its time to live has passed.
                    let _ = self.reclaims.try_send(Reclaim {
                        period: Arc::clone(period),
                        tag: (*tag).clone(),
                        dropped: period.names(tag).of(&dropped),
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

    fn peek_local(&self, key: &Key, version: Version) -> Option<Bytes> {
        self.local.get(key.digest(), version)
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        answer: Bytes,
    ) -> Result<bool, CacheError> {
        let filled = self.redis.fill(tag, key, version, answer.clone()).await;
        let stored = self.counted(filled)?;
        self.redis.counters.filled(stored);
        if stored {
            keep(&self.local, key, version, answer);
        }
        Ok(stored)
    }

    async fn close(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        let period = self.redis.period_of(epoch)?;
        if period.scripts.is_some() {
            let tags: Vec<_> = tags.iter().collect();
            let closed = self.drop_tags(&period, &tags, Some(write)).await;
            self.counted(closed)?;
        }
        Ok(())
    }

    async fn reopen(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        let period = self.redis.period_of(epoch)?;
        if period.scripts.is_none() {
            return Ok(());
        }
        let mut reopened = self.redis.reopen(&period, tags, write).await;
        if reopened.is_err() {
            // To suspend the cache instead would take longer.
            reopened = self.redis.reopen(&period, tags, write).await;
        }
        self.counted(reopened)
    }

    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError> {
        let period = self.redis.leased()?;
        let dropped = self.drop_tags(&period, &[tag], None).await;
        self.counted(dropped)
    }

    async fn invalidate_all(&self) -> Result<u64, CacheError> {
        let period = self.redis.leased()?;
        let mut keys = self.redis.scan(&TagKeys::all("version", &period.base));
        let mut tags = BTreeSet::new();
        while let Some(key) = self.counted(next_key(&mut keys).await)? {
            if let Some(tag) = TagKeys::tag_of(&key, &period.base) {
                tags.insert(tag);
            }
        }
        let tags: Vec<_> = tags.iter().collect();
        let dropped = self.drop_tags(&period, &tags, None).await;
        self.counted(dropped)
    }

    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError> {
        let (current, writers, redis) = self.counted(self.redis.explain(tag, key).await)?;
        Ok(Explanation {
            current,
            writers,
            local: self.local.peek(key.digest()),
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
    client: RwLock<Client>,
    /// What the database last said. None until it has.
    lease: Mutex<Option<Lease>>,
    prefix: String,
    /// What sets the entries of this release's response schema apart from another's: two releases
    /// side by side share tags and versions, and never read each other's bytes.
    schema: String,
    ttl_ms: i64,
    room: Arc<Semaphore>,
    /// How many replies have come.
    replies: Arc<AtomicU64>,
    /// Told when commands time out while no reply comes at all.
    stuck: Arc<Notify>,
    counters: Counters,
}

/// For how long the cache is known to be used, or not used, as it is now.
#[derive(Debug)]
struct Lease {
    period: Arc<EpochState>,
    until: Instant,
}

/// An epoch, as this engine works in it.
#[derive(Debug)]
struct EpochState {
    epoch: Epoch,
    server: Option<CacheServer>,
    /// What every key begins with.
    base: String,
    /// None while the cache is suspended.
    scripts: Option<Scripts>,
}

impl EpochState {
    fn new(prefix: &str, row: &CacheEpoch) -> Self {
        // Without epochs all share one name space.
        let number = if without(Control::NoEpoch) {
            0
        } else {
            row.epoch.0
        };
        Self {
            epoch: row.epoch,
            server: row.server.clone(),
            base: format!("{prefix}{number}:"),
            scripts: row.server.as_ref().map(|server| Scripts::new(server.name)),
        }
    }

    fn is(&self, row: &CacheEpoch) -> bool {
        self.epoch == row.epoch && self.server == row.server
    }

    fn scripts(&self) -> Result<&Scripts, CacheError> {
        self.scripts.as_ref().ok_or(CacheError::Suspended)
    }

    /// The names of a tag's keys.
    fn names(&self, tag: &Tag) -> TagKeys {
        TagKeys(format!("{}{{{tag}}}:", self.base))
    }
}

/// The scripts of an epoch.
#[derive(Debug)]
struct Scripts {
    lookup: Script,
    fill: Script,
    close: Script,
    reopen: Script,
    reclaim: Script,
    explain: Script,
}

impl Scripts {
    /// The scripts that carry a name of the server's processes.
    fn new(server: Uuid) -> Self {
        let named = |lua: &str| Script::from_lua(format!("{lua}-- {server}\n"));
        Self {
            lookup: named(include_str!("lua/lookup.lua")),
            fill: named(include_str!("lua/fill.lua")),
            close: named(include_str!("lua/close.lua")),
            reopen: named(include_str!("lua/reopen.lua")),
            reclaim: named(include_str!("lua/reclaim.lua")),
            explain: named(include_str!("lua/explain.lua")),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Script> {
        [
            &self.lookup,
            &self.fill,
            &self.close,
            &self.reopen,
            &self.reclaim,
            &self.explain,
        ]
        .into_iter()
    }
}

/// A script's keys and arguments.
#[derive(Debug, Clone)]
struct Call {
    keys: Vec<RedisKey>,
    args: Vec<Value>,
}

impl Call {
    /// How much it takes of the room for commands.
    fn shares(&self) -> u32 {
        u32::try_from(self.keys.len().div_ceil(KEYS_PER_TAG)).unwrap_or(u32::MAX)
    }
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
                // There is no more than the room for commands, and no command is sent twice.
                connection.max_command_buffer_len = 2 * MAX_IN_FLIGHT;
                connection.max_command_attempts = 1;
                connection.tcp.nodelay = Some(true);
                // A master that a failover has demoted.
                connection.reconnect_errors = vec![ReconnectError::ReadOnly];
            })
            .build()
            .map_err(|error| RedisConfigError::Url(error.details().to_owned()))?;
        let mut schema = blake3::Hasher::new();
        schema
            .update(crate::proto::DESCRIPTORS)
            .update(ENTRY_FORMAT);
        let schema = schema.finalize().to_hex();
        Ok(Self {
            client: RwLock::new(client),
            lease: Mutex::new(None),
            prefix: config.prefix.clone(),
            schema: schema[..8].to_owned(),
            ttl_ms: ms(config.ttl),
            room: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            replies: Arc::default(),
            stuck: Arc::default(),
            counters: Counters::default(),
        })
    }

    fn client(&self) -> Client {
        let client = self.client.read();
        client.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the client by one that isn't connected. The old one can't be started again: it still
    /// counts the commands that it was dropped with as queued, and never flushes a connection's
    /// buffer as long as commands seem to be queued behind.
    fn replace_client(&self) {
        let fresh = self.client().clone_new();
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    fn lease(&self) -> MutexGuard<'_, Option<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch that is known, current or not.
    fn period(&self) -> Result<Arc<EpochState>, CacheError> {
        let lease = self.lease();
        let lease = lease.as_ref().ok_or(CacheError::NoLease)?;
        Ok(Arc::clone(&lease.period))
    }

    /// The epoch that is known, if it is still this one.
    fn period_of(&self, epoch: Option<Epoch>) -> Result<Arc<EpochState>, CacheError> {
        let period = self.period()?;
        if epoch == Some(period.epoch) {
            Ok(period)
        } else {
            Err(CacheError::EpochChanged)
        }
    }

    /// The epoch in which the cache may be used now.
    fn leased(&self) -> Result<Arc<EpochState>, CacheError> {
        let lease = self.lease();
        let lease = lease.as_ref().ok_or(CacheError::NoLease)?;
        if lease.until <= Instant::now() {
            return Err(CacheError::NoLease);
        }
        lease.period.scripts()?;
        Ok(Arc::clone(&lease.period))
    }

    fn connected(&self) -> Result<(), CacheError> {
        if self.client().is_connected() {
            return Ok(());
        }
        Err(CacheError::Disconnected)
    }

    /// An entry's key, after what all keys of its tag begin with.
    fn member(&self, key: &Key) -> String {
        format!("{}:{key}", self.schema)
    }

    /// What opening tags takes: a fresh version and its time to live.
    fn to_open(&self, fresh: Version) -> Vec<Value> {
        vec![
            Value::Bytes(fresh.to_bytes().to_vec().into()),
            self.ttl_ms.min(ms(UNFILLED_TTL)).into(),
        ]
    }

    /// Reads what is wanted, of which entries come last, and opens the tags that have no version,
    /// unless a write is in flight, all with the fresh one. Each has an error of its own: a Cluster's
    /// node may be away.
    async fn lookup(
        &self,
        wanted: &[Wanted],
        fresh: Version,
    ) -> Result<Vec<Result<(Option<Version>, Option<Bytes>), CacheError>>, CacheError> {
        let period = self.leased()?;
        let (versions_at_once, entries_at_once) = if self.client().is_clustered() {
            (1, 1)
        } else {
            (READS_AT_ONCE, ENTRIES_AT_ONCE)
        };
        let (versions, entries) = wanted.split_at(wanted.partition_point(|(_, key)| key.is_none()));
        let chunks: Vec<_> = versions
            .chunks(versions_at_once)
            .chain(entries.chunks(entries_at_once))
            .collect();
        let call = |chunk: &&[Wanted]| {
            let mut keys = Vec::with_capacity(2 * chunk.len());
            for (tag, key) in *chunk {
                let names = period.names(tag);
                keys.push(names.of("version"));
                keys.extend(key.map(|key| names.of(&self.member(&key))));
            }
            let keys_of_each = keys.len() / chunk.len();
            let mut args = self.to_open(fresh);
            args.push(i64::try_from(keys_of_each).unwrap_or(i64::MAX).into());
            Call { keys, args }
        };
        let calls = chunks.iter().map(call).collect();
        let replies = self.read(&period.scripts()?.lookup, calls).await?;
        let mut found = Vec::with_capacity(wanted.len());
        for (chunk, reply) in chunks.into_iter().zip(replies) {
            let mut values = reply.map(Vec::<Option<Bytes>>::into_iter);
            found.extend(chunk.iter().map(|(_, key)| {
                let values = values.as_mut().map_err(|error| error.clone())?;
                let version = values.next().flatten();
                let entry = key.and_then(|_| values.next().flatten());
                Ok((version.as_deref().and_then(Version::from_bytes), entry))
            }));
        }
        Ok(found)
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        answer: Bytes,
    ) -> Result<bool, CacheError> {
        let period = self.leased()?;
        let header = [&version.to_bytes()[..], &now_ms().to_be_bytes()].concat();
        let names = period.names(tag);
        let member = self.member(key);
        let call = Call {
            keys: vec![names.of("version"), names.of("keys"), names.of(&member)],
            args: vec![
                Value::Bytes(header.into()),
                Value::Bytes(answer),
                member.into(),
                names.0.into(),
                self.ttl_ms.into(),
                i64::from(CLEAN.0).into(),
                i64::from(CLEAN.1).into(),
            ],
        };
        self.run(&period.scripts()?.fill, call).await
    }

    /// Closes tags in one round trip. Returns for each how many entries its index held; below zero if
    /// they were detached, under a name that ends with `dropped`.
    async fn close(
        &self,
        period: &EpochState,
        tags: &[&Tag],
        write: Option<WriteId>,
        dropped: &str,
        until: Instant,
    ) -> Result<Vec<i64>, CacheError> {
        let args = vec![
            write
                .map(|WriteId(id)| id.to_string())
                .unwrap_or_default()
                .into(),
            ms(WRITE_DEADLINE).into(),
            DROP_AT_ONCE.into(),
            self.ttl_ms.into(),
        ];
        let kinds = &["version", "writers", "keys", dropped];
        let calls = self.calls(period, tags, kinds, &args);
        let closed: Vec<Vec<_>> = self.run_all(&period.scripts()?.close, calls, until).await?;
        Ok(closed.concat())
    }

    async fn reopen(
        &self,
        period: &EpochState,
        tags: &BTreeSet<Tag>,
        WriteId(write): WriteId,
    ) -> Result<(), CacheError> {
        let script = &period.scripts()?.reopen;
        let until = Instant::now() + WRITE_WAIT;
        let args = vec![write.to_string().into()];
        let tags: Vec<_> = tags.iter().collect();
        for tags in tags.chunks(TAGS_PER_ROUND_TRIP) {
            let calls = self.calls(period, tags, &["version", "writers"], &args);
            let _: Vec<()> = self.run_all(script, calls, until).await?;
        }
        Ok(())
    }

    /// The calls of a script that works on these keys of tags: in a Cluster one for each tag, because
    /// their keys lie on different slots, otherwise one for all.
    fn calls(
        &self,
        period: &EpochState,
        tags: &[&Tag],
        kinds: &[&str],
        args: &[Value],
    ) -> Vec<Call> {
        let at_once = if self.client().is_clustered() {
            1
        } else {
            tags.len().max(1)
        };
        tags.chunks(at_once)
            .map(|tags| {
                let names: Vec<_> = tags.iter().map(|tag| period.names(tag)).collect();
                let of = |kind| names.iter().map(move |names| names.of(kind));
                Call {
                    keys: kinds.iter().copied().flat_map(of).collect(),
                    args: args.to_vec(),
                }
            })
            .collect()
    }

    /// Drops some of a detached index's entries, and returns where to go on.
    async fn reclaim(
        &self,
        Reclaim {
            period,
            tag,
            dropped,
        }: &Reclaim,
        cursor: String,
    ) -> Result<String, CacheError> {
        let names = period.names(tag);
        let call = Call {
            keys: vec![dropped.clone(), names.of("version")],
            args: vec![cursor.into(), RECLAIM_AT_ONCE.into(), names.0.into()],
        };
        self.run(&period.scripts()?.reclaim, call).await
    }

    async fn explain(
        &self,
        tag: &Tag,
        key: &Key,
    ) -> Result<(Option<Version>, u64, Option<EntryInfo>), CacheError> {
        let period = self.leased()?;
        let names = period.names(tag);
        let call = Call {
            keys: vec![
                names.of("version"),
                names.of("writers"),
                names.of(&self.member(key)),
            ],
            args: vec![i64::from(HEADER_BYTES).into()],
        };
        let (version, writers, header, length): (Option<Bytes>, u64, Bytes, u64) =
            self.run(&period.scripts()?.explain, call).await?;
        let held = parse_entry(&header).map(|(version, filled_ms, _)| EntryInfo {
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
    async fn run<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        call: Call,
    ) -> Result<T, CacheError> {
        let replies = self.read(script, vec![call]).await?;
        replies
            .into_iter()
            .next()
            .unwrap_or_else(|| Err(CacheError::ShuttingDown))
    }

    /// Runs a script once for each call, for somebody who has better to do than to wait for long.
    async fn read<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        calls: Vec<Call>,
    ) -> Result<Vec<Result<T, CacheError>>, CacheError> {
        let before = self.replies.load(Ordering::Relaxed);
        let until = Instant::now() + READ_TIMEOUT;
        let replies = self.send(script, calls, until);
        if let Ok(replies) = timeout_at(until.into(), replies).await {
            return replies;
        }
        if self.replies.load(Ordering::Relaxed) == before {
            self.stuck.notify_one();
        }
        Err(CacheError::Timeout)
    }

    /// Runs a script once for each call.
    async fn run_all<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        calls: Vec<Call>,
        room_until: Instant,
    ) -> Result<Vec<T>, CacheError> {
        self.send(script, calls, room_until)
            .await?
            .into_iter()
            .collect()
    }

    /// Runs a script once for each call, as soon as there is room for them all. They are sent
    /// together, without waiting for replies, so all take one round trip (on a Cluster, one for
    /// each node).
    async fn send<T: FromValue + Send + 'static>(
        &self,
        script: &Script,
        calls: Vec<Call>,
        room_until: Instant,
    ) -> Result<Vec<Result<T, CacheError>>, CacheError> {
        self.connected()?;
        let shares = calls.iter().map(Call::shares).sum();
        let room = timeout_at(
            room_until.into(),
            Arc::clone(&self.room).acquire_many_owned(shares),
        )
        .await
        .map_err(|_| CacheError::QueueFull)?
        .map_err(|_| CacheError::ShuttingDown)?;
        self.counters.round_trips.add(1);
        let client = self.client();
        let (replies, stuck) = (Arc::clone(&self.replies), Arc::clone(&self.stuck));
        let hash = script.sha1().clone();
        let commands = async move {
            let before = replies.load(Ordering::Relaxed);
            let commands = calls.into_iter().map(|call| {
                let command = client.evalsha(hash.clone(), call.keys, call.args);
                let replies = &replies;
                async move {
                    let reply: Result<T, FredError> = command.await;
                    if !is_timeout(&reply) {
                        replies.fetch_add(1, Ordering::Relaxed);
                    }
                    reply
                }
            });
            let answers = join_all(commands).await;
            // One node of a Cluster may hang while the others reply.
            if answers.iter().any(is_timeout)
                && (client.is_clustered() || replies.load(Ordering::Relaxed) == before)
            {
                stuck.notify_one();
            }
            drop(room);
            answers
                .into_iter()
                .map(|reply| reply.map_err(unavailable))
                .collect()
        };
        // It goes on if the caller leaves: fred still has the commands, and they take their room.
        Ok(Finished(Some(commands.boxed())).await)
    }
}

/// Work that goes on by itself if whoever waits for it leaves. To spawn it at once would cost each
/// command two turns of the scheduler.
struct Finished<T: Send + 'static>(Option<BoxFuture<'static, T>>);

impl<T: Send + 'static> Future for Finished<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(mut work) = self.0.take() else {
            unreachable!("it isn't polled after its end");
        };
        let polled = work.poll_unpin(context);
        if polled.is_pending() {
            self.0 = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Finished<T> {
    fn drop(&mut self) {
        if let (Some(rest), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(rest);
        }
    }
}

/// The names of a tag's keys.
struct TagKeys(String);

impl TagKeys {
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
        sleep(RESTART_AFTER).await;
        // Whatever has timed out by now was sent to the old connection.
        let _ = redis.stuck.notified().now_or_never();
    }
}

/// Reads what is wanted, one round trip at a time, each for all who asked while the last was under
/// way: so each is answered with what was read after it asked, as by
/// [`NextFlight`](super::NextFlight), but for all tags and keys together, and what several want is
/// read once.
async fn read_together(redis: Arc<Redis>, local: Arc<Entries>, mut asked: mpsc::Receiver<Read>) {
    let mut reads = Vec::new();
    let mut many = false;
    while let Some(read) = asked.recv().await {
        reads.push(read);
        if many {
            // Whoever else is about to ask comes along: under load that saves most round trips.
            yield_now().await;
        }
        while reads.len() < READS_AT_ONCE
            && let Ok(read) = asked.try_recv()
        {
            reads.push(read);
        }
        many = reads.len() > 1;
        let mut waiting: HashMap<Wanted, Vec<_>> = HashMap::new();
        for Read { wanted, answer } in reads.drain(..) {
            if !answer.is_closed() {
                waiting.entry(wanted).or_default().push(answer);
            }
        }
        let mut waiting: Vec<_> = waiting.into_iter().collect();
        waiting.sort_unstable_by_key(|((_, key), _)| key.is_some());
        let (wanted, answers): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        if wanted.is_empty() {
            continue;
        }
        let fresh = Version::generate();
        let found = match redis.lookup(&wanted, fresh).await {
            Ok(found) => found,
            Err(error) => vec![Err(error); wanted.len()],
        };
        for ((wanted, answers), found) in wanted.into_iter().zip(answers).zip(found) {
            let found = found.map(|(version, entry)| Found {
                lookup: judge(&local, wanted, version, entry.as_deref()),
                opened: version == Some(fresh),
            });
            for answer in answers {
                // Who asked may have gone.
                let _ = answer.send(found.clone());
            }
        }
    }
}

/// What was read of a tag and a key, as a lookup. A current entry is kept in the process.
fn judge(
    local: &Entries,
    (_, key): Wanted,
    version: Option<Version>,
    entry: Option<&[u8]>,
) -> Lookup {
    let Some(version) = version else {
        return Lookup::Closed;
    };
    let entry = entry.and_then(parse_entry);
    if let (Some(key), Some((filled_under, _, body))) = (key, entry)
        && filled_under == version
    {
        // A copy, because a slice would keep the whole read buffer alive.
        let body = Bytes::copy_from_slice(body);
        keep(local, &key, version, body.clone());
        return Lookup::Hit {
            body,
            tier: Tier::Redis,
            version,
        };
    }
    Lookup::Miss(version)
}

fn keep(local: &Entries, key: &Key, version: Version, answer: Bytes) {
    let entry = Entry {
        tag: None,
        version,
        answer,
    };
    local.insert(*key.digest(), entry);
}

/// Drops the entries of detached indexes, in bounded steps.
async fn reclaim(redis: Arc<Redis>, mut detached: mpsc::Receiver<Reclaim>) {
    /// Where a scan starts, and where it says that it has ended.
    const START: &str = "0";
    while let Some(index) = detached.recv().await {
        let mut cursor = START.to_owned();
        // What is left when it has failed too often takes memory until its time to live has passed.
        let mut tries = 0..RECLAIM_TRIES;
        loop {
            match redis.reclaim(&index, cursor.clone()).await {
                Ok(next) if next == START => break,
                Ok(next) => cursor = next,
                Err(_) if tries.next().is_some() => sleep(RECLAIM_AFTER).await,
                Err(_) => break,
            }
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
    match timeout(SCAN_TIMEOUT, keys.next()).await {
        Ok(key) => key.transpose().map_err(unavailable),
        Err(_) => Err(CacheError::Timeout),
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

/// The nodes that are to be asked one by one: the masters of a Cluster, after what the client knows.
/// None is the one that the client is connected to.
fn masters(client: &Client) -> Vec<Option<Server>> {
    match client.cached_cluster_state() {
        Some(state) if client.is_clustered() => {
            state.unique_primary_nodes().into_iter().map(Some).collect()
        }
        _ => vec![None],
    }
}

/// Checks that all nodes are masters and know these scripts; answers the replication ids of their
/// data, in an order of their own.
async fn check_masters(client: &Client, scripts: Option<&Scripts>) -> Result<String, FredError> {
    let nodes = masters(client).into_iter();
    let checks = nodes.map(|node| check_master(client.with_options(&at(node)), scripts));
    let mut histories = try_join_all(checks).await?;
    histories.sort_unstable();
    Ok(histories.join(","))
}

async fn check_master(
    node: WithOptions<Client>,
    scripts: Option<&Scripts>,
) -> Result<String, FredError> {
    let info: String = command(&node, "INFO", vec!["replication".into()]).await?;
    let field = |name| info.lines().find_map(|line| line.strip_prefix(name));
    if field("role:") != Some("master") {
        return Err(FredError::new(ErrorKind::Routing, "it isn't a master"));
    }
    if let Some(scripts) = scripts {
        let hashes = scripts.all().map(|script| script.sha1().clone().into());
        let arguments = iter::once("EXISTS".into()).chain(hashes).collect();
        let known: Vec<bool> = command(&node, "SCRIPT", arguments).await?;
        if known.contains(&false) {
            let why = "it isn't the server that the epoch began with";
            return Err(FredError::new(ErrorKind::NotFound, why));
        }
    }
    Ok(field("master_replid:").unwrap_or_default().to_owned())
}

/// Runs a command on one node. fred's own methods for scripts choose one by themselves.
async fn command<T: FromValue>(
    node: &WithOptions<Client>,
    name: &'static str,
    arguments: Vec<Value>,
) -> Result<T, FredError> {
    let name = CustomCommand::new_static(name, ClusterHash::Random, false);
    node.custom(name, arguments).await
}

/// For a command to a certain node, which fails at once while there is no connection.
fn at(node: Option<Server>) -> Options {
    Options {
        cluster_node: node,
        fail_fast: true,
        timeout: Some(READ_TIMEOUT),
        ..Options::default()
    }
}

fn is_timeout<T>(reply: &Result<T, FredError>) -> bool {
    matches!(reply, Err(error) if *error.kind() == ErrorKind::Timeout)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unavailable(error: FredError) -> CacheError {
    match error.kind() {
        ErrorKind::Timeout => CacheError::Timeout,
        ErrorKind::Canceled | ErrorKind::IO => CacheError::Disconnected,
        ErrorKind::Routing | ErrorKind::NotFound => {
            CacheError::WrongServer(error.details().to_owned())
        }
        _ => CacheError::Server(error.to_string()),
    }
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
        assert_eq!(TagKeys::all("version", "a*[b]"), "a\\*\\[b\\]{*}:version");
        let key = RedisKey::from("a*{*,run%7D,*}:version");
        let tag = TagKeys::tag_of(&key, "a*").expect("a tag's key");
        assert_eq!(tag.as_str(), "*,run%7D,*");
    }
}
