//! The Redis engine against real servers: the protocol, round trips, failures, limits and TLS.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use location_service::{
    cache::{
        Cache as _, CacheError, Key, LEASE, Lookup, RedisCache, RedisConfig, Tag, Tier, Version,
        WriteId,
    },
    config::{ClientCertificate, TlsFiles},
    model::{CacheEpoch, CacheServer, Epoch, Predicate, ProductionRunId},
};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{harness::eventually, redis_proxy::RedisProxy};
use servers::{
    certificates::Authority,
    redis::{RedisCluster, RedisSentinels, RedisServer},
    until,
};

/// The epoch that tests begin with.
pub const EPOCH: Option<Epoch> = Some(Epoch(1));
const NEXT_EPOCH: Option<Epoch> = Some(Epoch(2));

/// The prefix of keys in `EPOCH`.
const BASE: &str = "loc:00000000000000000000000000000001:";

const TTL: Duration = Duration::from_mins(5);

fn config(url: &str) -> RedisConfig {
    RedisConfig {
        url: url.to_owned(),
        tls: TlsFiles::default(),
        prefix: "loc:".to_owned(),
        max_local_bytes: 8 << 20,
        ttl: TTL,
    }
}

async fn connect(url: &str) -> RedisCache {
    connect_with(url, |_| {}).await
}

/// Connects the engine, and enters `EPOCH`.
pub async fn connect_with(url: &str, change: impl FnOnce(&mut RedisConfig)) -> RedisCache {
    let mut config = config(url);
    change(&mut config);
    let cache = RedisCache::connect(&config).await.expect("a good URL");
    // A server that is away has no scripts yet.
    let _ = enter(&cache, 1).await;
    cache
}

/// Enters the epoch with this number, which is also the server's name in it.
pub async fn enter(cache: &RedisCache, number: i64) -> Result<(), CacheError> {
    let name = Uuid::from_u128(number.unsigned_abs().into());
    let installed = cache.install_scripts(name).await;
    renew_lease(cache, number, installed.as_ref().ok().cloned());
    installed.map(|_| ())
}

/// Gives the cache the row of this epoch, and a lease that outlasts the test. Without a server the cache
/// is suspended.
pub fn renew_lease(cache: &RedisCache, number: i64, server: Option<CacheServer>) {
    let row = CacheEpoch {
        epoch: Epoch(number),
        server,
        may_activate: false,
    };
    cache.renew_lease(&row, Instant::now() + Duration::from_hours(1));
}

pub fn tag(run: &str) -> Tag {
    Tag::of_predicate(&Predicate {
        run: Some(ProductionRunId::parse(run.to_owned()).expect("a short name")),
        ..Predicate::default()
    })
}

pub fn key(number: u64) -> Key {
    Key::new("ListLocations", None, &number)
}

fn set(tags: &[&Tag]) -> BTreeSet<Tag> {
    tags.iter().map(|&tag| tag.clone()).collect()
}

async fn open(cache: &RedisCache, tag: &Tag) -> Version {
    let version = version(cache, tag).await;
    version.expect("no write is in flight")
}

/// The version that a tag has, or is opened with; `None` if it is closed.
async fn version(cache: &RedisCache, tag: &Tag) -> Option<Version> {
    match cache.lookup(tag, &unfilled()).await.expect("Redis replies") {
        Lookup::Hit { version, .. } | Lookup::Miss(version) => Some(version),
        Lookup::Closed => None,
    }
}

/// A key that no test fills.
fn unfilled() -> Key {
    Key::new("ListLocations", None, &u64::MAX)
}

pub async fn fill(cache: &RedisCache, tag: &Tag, key: &Key, response: &'static str) {
    let version = open(cache, tag).await;
    let stored = cache.fill(tag, key, version, response.into()).await;
    assert!(stored.expect("Redis responds"), "nothing has changed");
}

pub async fn hit(cache: &RedisCache, tag: &Tag, key: &Key) -> Option<(Bytes, Tier)> {
    match cache.lookup(tag, key).await.expect("Redis responds") {
        Lookup::Hit { body, tier, .. } => Some((body, tier)),
        Lookup::Miss(_) | Lookup::Closed => None,
    }
}

pub async fn write(cache: &RedisCache, tags: &[&Tag]) {
    write_in(EPOCH, cache, tags).await;
}

async fn write_in(epoch: Option<Epoch>, cache: &RedisCache, tags: &[&Tag]) {
    let (tags, write) = (set(tags), WriteId::generate());
    let closed = cache.close(&tags, write, epoch).await;
    closed.expect("Redis responds");
    let reopened = cache.reopen(&tags, write, epoch).await;
    reopened.expect("Redis responds");
}

/// Polls until the cache has entered `NEXT_EPOCH` and a lookup succeeds.
async fn recovered(cache: &RedisCache, tag: &Tag) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while enter(cache, 2).await.is_err() || cache.lookup(tag, &unfilled()).await.is_err() {
        assert!(Instant::now() < deadline, "it recovers by itself");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn replicas_share_entries_and_versions() {
    let server = RedisServer::start();
    let (a, b) = (connect(&server.url()).await, connect(&server.url()).await);
    let (run, other) = (tag("run-1"), tag("run-2"));
    let Ok(Lookup::Miss(opened)) = a.lookup(&run, &key(1)).await else {
        panic!("a lookup opens the tag");
    };
    assert_eq!(open(&b, &run).await, opened);
    fill(&a, &run, &key(1), "old").await;
    fill(&a, &other, &key(2), "other").await;
    assert_eq!(
        hit(&a, &run, &key(1)).await,
        Some(("old".into(), Tier::Local))
    );
    assert_eq!(
        hit(&b, &run, &key(1)).await,
        Some(("old".into(), Tier::Redis))
    );
    assert_eq!(
        hit(&b, &run, &key(1)).await,
        Some(("old".into(), Tier::Local))
    );

    let writing = WriteId::generate();
    b.close(&set(&[&run]), writing, EPOCH)
        .await
        .expect("Redis responds");
    for cache in [&a, &b] {
        assert_eq!(cache.lookup(&run, &key(1)).await, Ok(Lookup::Closed));
        assert_eq!(version(cache, &run).await, None);
    }
    b.reopen(&set(&[&run]), writing, EPOCH)
        .await
        .expect("Redis responds");
    assert_eq!(hit(&a, &run, &key(1)).await, None);
    fill(&b, &run, &key(1), "new").await;
    assert_eq!(
        hit(&a, &run, &key(1)).await,
        Some(("new".into(), Tier::Redis))
    );
    assert_eq!(
        hit(&a, &other, &key(2)).await,
        Some(("other".into(), Tier::Local))
    );
}

#[tokio::test]
async fn a_fill_that_raced_a_write_is_rejected() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    let before = open(&cache, &run).await;
    let writing = WriteId::generate();
    cache
        .close(&set(&[&run]), writing, EPOCH)
        .await
        .expect("closed");
    assert!(
        !cache
            .fill(&run, &key(1), before, "old".into())
            .await
            .expect("rejected")
    );
    cache
        .reopen(&set(&[&run]), writing, EPOCH)
        .await
        .expect("reopened");
    assert!(
        !cache
            .fill(&run, &key(1), before, "old".into())
            .await
            .expect("rejected")
    );
    let after = open(&cache, &run).await;
    assert!(
        !cache
            .fill(&run, &key(1), before, "old".into())
            .await
            .expect("rejected")
    );
    assert!(
        cache
            .fill(&run, &key(1), after, "new".into())
            .await
            .expect("stored")
    );
    assert_eq!(cache.stats().rejected_fills, 3);
}

/// A version check and a read of an entry are two scripts of one round trip. A whole write runs between
/// them, after the other replica has filled under the version that the first has set.
#[tokio::test]
async fn two_scripts_of_a_round_trip_set_different_versions() {
    let server = RedisServer::start();
    let proxy = RedisProxy::to(server.port).await;
    let (a, b) = (connect(&proxy.url()).await, connect(&server.url()).await);
    let run = tag("run-1");
    let is_open = || !server.keys("loc:*:version").is_empty();
    // The next lookup of this entry checks the version only.
    fill(&a, &run, &key(1), "older").await;
    write(&b, &[&run]).await;
    proxy.path.hold_after(1);
    let reads = async {
        let keys = [key(1), key(2)];
        // The second may time out. It is executed nevertheless.
        let _ = tokio::join!(a.lookup(&run, &keys[0]), a.lookup(&run, &keys[1]));
    };
    let meanwhile = async {
        proxy.path.held.held().await;
        eventually("the first script has opened the tag", async || is_open()).await;
        fill(&b, &run, &key(1), "old").await;
        assert!(hit(&b, &run, &key(1)).await.is_some(), "the process has it");
        write(&b, &[&run]).await;
        proxy.path.held.release();
        eventually("the second script has opened the tag", async || is_open()).await;
    };
    tokio::join!(reads, meanwhile);
    assert_eq!(hit(&b, &run, &key(1)).await, None, "from before the write");
}

#[cfg(debug_assertions)]
#[test]
fn a_version_that_two_scripts_share_is_detected() {
    let unprotected = Command::new(std::env::current_exe().expect("a path"))
        .args([
            "--exact",
            "redis::two_scripts_of_a_round_trip_set_different_versions",
        ])
        .env("LOCATION_SERVICE_FAILPOINT", "shared-version")
        .output()
        .expect("it starts");
    let output = [unprotected.stdout, unprotected.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(output.contains("from before the write"), "{output}");
}

#[tokio::test]
async fn no_script_is_sent_twice() {
    let server = RedisServer::start();
    let proxy = RedisProxy::to(server.port).await;
    let cache = connect(&proxy.url()).await;
    let run = tag("run-1");
    for _ in 0..3 {
        proxy.path.cut.store(true, Ordering::SeqCst);
        let lost = cache.lookup(&run, &key(1)).await;
        assert!(lost.is_err(), "its reply is lost: {lost:?}");
        eventually("it is connected again", async || {
            cache.lookup(&run, &key(1)).await.is_ok()
        })
        .await;
    }
    let scripts = proxy.path.scripts.lock();
    let distinct: BTreeSet<_> = scripts.iter().collect();
    assert!(scripts.len() >= 6);
    assert_eq!(distinct.len(), scripts.len(), "each has its own version");
}

#[tokio::test]
async fn two_writes_keep_a_tag_closed_until_both_are_done() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    let (first, second) = (WriteId::generate(), WriteId::generate());
    cache
        .close(&set(&[&run]), first, EPOCH)
        .await
        .expect("closed");
    cache
        .close(&set(&[&run]), second, EPOCH)
        .await
        .expect("closed");
    cache
        .reopen(&set(&[&run]), first, EPOCH)
        .await
        .expect("reopened");
    assert_eq!(version(&cache, &run).await, None);
    cache
        .reopen(&set(&[&run]), second, EPOCH)
        .await
        .expect("reopened");
    assert!(version(&cache, &run).await.is_some());
}

#[tokio::test]
async fn a_dead_writer_keeps_its_tags_closed_until_its_deadline() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    cache
        .close(&set(&[&run]), WriteId::generate(), EPOCH)
        .await
        .expect("closed");
    assert_eq!(version(&cache, &run).await, None);
    let writers = &format!("{BASE}{{*,run-1,*}}:writers");
    let writer = server.command(&["--raw", "ZRANGE", writers, "0", "-1"]);
    // As if the deadline had passed.
    server.command(&["ZADD", writers, "1", &writer]);
    assert!(version(&cache, &run).await.is_some());
}

/// Deletes every set of keys at every point of a write, while readers run, and reads after it.
#[tokio::test]
async fn no_lost_key_makes_a_response_stale() {
    let server = RedisServer::start();
    let (a, b) = (connect(&server.url()).await, connect(&server.url()).await);
    let kinds = ["version", "writers", "keys", "entry"];
    for lost in 0..1_u32 << kinds.len() {
        for point in 0..4 {
            let name = format!("run-{lost}-{point}");
            let (run, key) = (tag(&name), key(1));
            let base = format!("{BASE}{{*,{name},*}}:");
            let mut database = "old";
            for cache in [&a, &b] {
                assert_eq!(read_through(cache, &run, &key, database).await, "old");
            }
            assert!(hit(&b, &run, &key).await.is_some(), "it is cached");
            let (mut late_fills, writing) = (Vec::new(), WriteId::generate());
            for step in 0..4 {
                match step {
                    1 => a
                        .close(&set(&[&run]), writing, EPOCH)
                        .await
                        .expect("closed"),
                    2 => database = "new",
                    3 => a
                        .reopen(&set(&[&run]), writing, EPOCH)
                        .await
                        .expect("reopened"),
                    _ => {}
                }
                if step == point {
                    let mut delete = vec!["DEL".to_owned()];
                    for (i, kind) in kinds.iter().enumerate() {
                        if lost & 1 << i == 0 {
                            continue;
                        }
                        match *kind {
                            "entry" => delete.extend(server.keys(&format!("{base}????????:*"))),
                            kind => delete.push(format!("{base}{kind}")),
                        }
                    }
                    if delete.len() > 1 {
                        let delete: Vec<_> = delete.iter().map(String::as_str).collect();
                        server.command(&delete);
                    }
                }
                if let Some(version) = version(&b, &run).await {
                    late_fills.push((version, database));
                }
                if step < 3 {
                    for cache in [&a, &b] {
                        read_through(cache, &run, &key, database).await;
                    }
                }
            }
            // Readers that read the database before the commit, and fill only now.
            for (version, response) in late_fills {
                let _ = b.fill(&run, &key, version, response.into()).await;
            }
            for cache in [&a, &b] {
                let response = read_through(cache, &run, &key, database).await;
                assert_eq!(response, "new", "lost {lost:04b} at {point}");
            }
        }
    }
}

async fn read_through(cache: &RedisCache, tag: &Tag, key: &Key, database: &'static str) -> Bytes {
    if let Some((response, _)) = hit(cache, tag, key).await {
        return response;
    }
    if let Some(version) = version(cache, tag).await {
        cache
            .fill(tag, key, version, database.into())
            .await
            .expect("Redis responds");
    }
    database.into()
}

/// Two replicas read and write while the server is flushed again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_read_whatever_is_flushed() {
    const WRITES: u64 = 300;
    let server = RedisServer::start();
    let caches = [connect(&server.url()).await, connect(&server.url()).await].map(Arc::new);
    let (database, acknowledged) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (run, key) = (tag("run-1"), key(1));
    let mut readers = JoinSet::new();
    for i in 0..8 {
        let (cache, run) = (Arc::clone(&caches[i % 2]), run.clone());
        let (database, acknowledged) = (Arc::clone(&database), Arc::clone(&acknowledged));
        readers.spawn(async move {
            let mut hits = 0;
            loop {
                let expected = acknowledged.load(Ordering::SeqCst);
                let response = if let Some((response, _)) = hit(&cache, &run, &key).await {
                    hits += 1;
                    let response = std::str::from_utf8(&response).expect("digits");
                    response.parse().expect("a number")
                } else {
                    let version = version(&cache, &run).await;
                    let response = database.load(Ordering::SeqCst);
                    if let Some(version) = version {
                        let bytes = response.to_string().into();
                        let filled = cache.fill(&run, &key, version, bytes).await;
                        filled.expect("Redis responds");
                    }
                    response
                };
                assert!(response >= expected, "read {response} after {expected}");
                if expected == WRITES {
                    return hits;
                }
            }
        });
    }
    for i in 1..=WRITES {
        let (cache, writing) = (&caches[usize::from(i % 3 == 0)], WriteId::generate());
        cache
            .close(&set(&[&run]), writing, EPOCH)
            .await
            .expect("closed");
        if i % 7 == 0 {
            server.command(&["FLUSHALL"]);
        }
        database.store(i, Ordering::SeqCst);
        cache
            .reopen(&set(&[&run]), writing, EPOCH)
            .await
            .expect("reopened");
        acknowledged.store(i, Ordering::SeqCst);
        // Lets the readers fill and hit before the next write.
        let _ = hit(cache, &run, &key).await;
    }
    let hits: usize = readers.join_all().await.into_iter().sum();
    assert!(hits > 100, "the cache was used: {hits}");
}

#[tokio::test]
async fn without_room_in_the_process_redis_serves_hits() {
    let server = RedisServer::start();
    let cache = connect_with(&server.url(), |config| config.max_local_bytes = 0).await;
    fill(&cache, &tag("run-1"), &key(1), "entry").await;
    for _ in 0..2 {
        let found = hit(&cache, &tag("run-1"), &key(1)).await;
        assert_eq!(found, Some(("entry".into(), Tier::Redis)));
    }
}

#[tokio::test]
async fn each_step_is_one_round_trip() {
    let server = RedisServer::start();
    let (a, b) = (connect(&server.url()).await, connect(&server.url()).await);
    let run = tag("run-1");
    fill(&a, &run, &key(1), "entry").await;
    write(&a, &[&run]).await;
    fill(&a, &run, &key(1), "entry").await;

    let commands = |server: &RedisServer| -> Vec<(String, u64)> {
        ["evalsha", "eval", "get"]
            .iter()
            .map(|&name| (name.to_owned(), server.calls(name)))
            .filter(|(_, calls)| *calls > 0)
            .collect()
    };
    server.command(&["CONFIG", "RESETSTAT"]);
    assert_eq!(
        hit(&b, &run, &key(1)).await.map(|(_, tier)| tier),
        Some(Tier::Redis)
    );
    assert_eq!(
        commands(&server),
        [("evalsha".to_owned(), 1)],
        "a hit that L1 doesn't hold"
    );
    assert_eq!(b.stats().round_trips, 1);

    let tags: BTreeSet<_> = (0..17).map(|i| tag(&format!("touched-{i}"))).collect();
    let before = a.stats().round_trips;
    let writing = WriteId::generate();
    a.close(&tags, writing, EPOCH).await.expect("closed");
    a.reopen(&tags, writing, EPOCH).await.expect("reopened");
    assert_eq!(a.stats().round_trips - before, 2, "a write");
    assert_eq!(server.calls("evalsha"), 1 + 2);
}

#[tokio::test]
async fn a_thousand_hits_share_a_version_read() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    for i in 0..10 {
        fill(&cache, &tag(&format!("run-{i}")), &key(i), "entry").await;
    }
    server.command(&["CONFIG", "RESETSTAT"]);
    // On one thread all calls are sent before the first response.
    let lookups = (0..1_000).map(|i| {
        let cache = &cache;
        async move { hit(cache, &tag(&format!("run-{}", i % 10)), &key(i % 10)).await }
    });
    for found in futures_util::future::join_all(lookups).await {
        assert_eq!(found, Some(("entry".into(), Tier::Local)));
    }
    let reads = server.calls("mget");
    assert!((1..=2).contains(&reads), "{reads} version reads");
}

#[tokio::test]
async fn every_key_has_a_time_to_live() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let (run, other) = (tag("run-1"), tag("run-2"));
    fill(&cache, &run, &key(1), "entry").await;
    cache
        .close(&set(&[&other]), WriteId::generate(), EPOCH)
        .await
        .expect("closed");
    let keys = server.keys("*");
    assert_eq!(
        keys.len(),
        4,
        "version, keys and entry, and the writers: {keys:?}"
    );
    for key in keys {
        let ttl: u64 = server.command(&["TTL", &key]).parse().expect("it has one");
        // With the policy `volatile-ttl` the writers are evicted last.
        let expected = if key.ends_with(":writers") {
            86_000..=86_400
        } else {
            20..=300
        };
        assert!(expected.contains(&ttl), "{key}: {ttl}");
    }
}

#[tokio::test]
async fn a_server_restarted_empty_is_used_again() {
    let mut server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    fill(&cache, &run, &key(1), "old").await;
    cache.check().await.expect("it knows its name");
    server.restart();
    eventually("it isn't what it was", || async {
        let failed = cache.check().await.err();
        failed.is_some_and(|error| {
            let text = error.to_string();
            text.contains("isn't the server that the epoch began with")
        })
    })
    .await;
    recovered(&cache, &tag("another")).await;
    assert_eq!(
        hit(&cache, &run, &key(1)).await,
        None,
        "without a version nothing is current"
    );
    fill(&cache, &run, &key(1), "new").await;
    write_in(NEXT_EPOCH, &cache, &[&run]).await;
    assert_eq!(hit(&cache, &run, &key(1)).await, None);
}

#[tokio::test]
async fn nothing_is_served_without_a_lease() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    let version = open(&cache, &run).await;
    fill(&cache, &run, &key(1), "entry").await;
    let refused = async || {
        let lookup = cache.lookup(&run, &key(1)).await.map(|_| ());
        let fill = cache.fill(&run, &key(2), version, "late".into()).await;
        let explain = cache.explain(&run, &key(1)).await.map(|_| ());
        [
            lookup,
            fill.map(|_| ()),
            explain,
            cache.invalidate(&run).await.map(|_| ()),
        ]
        .iter()
        .all(Result::is_err)
    };
    let row = CacheEpoch {
        epoch: Epoch(1),
        server: cache.install_scripts(Uuid::from_u128(1)).await.ok(),
        may_activate: false,
    };
    cache.renew_lease(
        &row,
        Instant::now()
            .checked_sub(LEASE)
            .expect("it runs for longer"),
    );
    assert!(refused().await, "the lease is over");
    // A write needs none: its commit is guarded.
    let (tags, writing) = (set(&[&run]), WriteId::generate());
    cache.close(&tags, writing, EPOCH).await.expect("closed");
    cache.reopen(&tags, writing, EPOCH).await.expect("reopened");
    renew_lease(&cache, 2, None);
    assert!(refused().await, "suspended");
    let suspended = Some(Epoch(2));
    let late = cache.close(&tags, writing, EPOCH).await;
    assert!(late.is_err(), "it began in the epoch before");
    cache
        .close(&tags, writing, suspended)
        .await
        .expect("nothing to do");
    cache
        .reopen(&tags, writing, suspended)
        .await
        .expect("nothing to do");
    let old = cache.reopen(&tags, writing, EPOCH).await;
    assert!(old.is_err(), "it can't tell whether it was reopened");
    enter(&cache, 3).await.expect("Redis responds");
    assert_eq!(hit(&cache, &run, &key(1)).await, None, "another name space");
}

#[tokio::test]
async fn a_snapshot_of_an_earlier_time_is_of_another_server() {
    let mut server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    fill(&cache, &run, &key(1), "old").await;
    server.command(&["SAVE"]);
    write(&cache, &[&run]).await;
    server.restart();
    assert!(
        !server.keys("loc:*:version").is_empty(),
        "the old version is back"
    );
    eventually("it is connected", || async {
        let failed = cache.lookup(&run, &key(1)).await.err();
        failed.is_some_and(|error| error.to_string().contains("NOSCRIPT"))
    })
    .await;
    let closed = cache.close(&set(&[&run]), WriteId::generate(), EPOCH).await;
    assert!(closed.is_err(), "closing returns an error");
    cache.check().await.expect_err("the check fails too");
}

/// A replica that has the data of a moment ago, and a master that is made a replica.
#[tokio::test]
async fn neither_a_promoted_nor_a_demoted_server_serves() {
    let (old, new) = (RedisServer::start(), RedisServer::start());
    let (a, b) = (connect(&old.url()).await, connect(&old.url()).await);
    let run = tag("run-1");
    fill(&a, &run, &key(1), "old").await;
    let port = old.port.to_string();
    new.command(&["REPLICAOF", "127.0.0.1", &port]);
    until("it has the entries", || {
        !new.keys("loc:*:version").is_empty()
    });
    new.command(&["REPLICAOF", "NO", "ONE"]);
    let promoted = RedisCache::connect(&RedisConfig {
        url: new.url(),
        tls: TlsFiles::default(),
        prefix: "loc:".to_owned(),
        max_local_bytes: 0,
        ttl: TTL,
    })
    .await
    .expect("a good URL");
    let server = a
        .install_scripts(Uuid::from_u128(1))
        .await
        .expect("Redis responds");
    renew_lease(&promoted, 1, Some(server));
    let found = promoted.lookup(&run, &key(1)).await;
    assert!(found.is_err(), "it missed what came since: {found:?}");
    promoted
        .check()
        .await
        .expect_err("it doesn't know its name");

    assert_eq!(
        hit(&b, &run, &key(1)).await.map(|(_, tier)| tier),
        Some(Tier::Redis)
    );
    let port = new.port.to_string();
    old.command(&["REPLICAOF", "127.0.0.1", &port]);
    for cache in [&a, &b] {
        let found = cache.lookup(&run, &key(1)).await;
        assert!(found.is_err(), "it may take another's data: {found:?}");
        cache.check().await.expect_err("it isn't a master");
        let named = cache.install_scripts(Uuid::from_u128(2)).await;
        named.expect_err("only a master gets a name");
    }
}

/// It never restarted, and still has its scripts, but its data is the other server's.
#[tokio::test]
async fn a_master_that_was_a_replica_for_a_moment_is_another_server() {
    let (server, other) = (RedisServer::start(), RedisServer::start());
    let cache = connect(&server.url()).await;
    fill(&cache, &tag("run-1"), &key(1), "old").await;
    cache.check().await.expect("it is what it was");
    let port = other.port.to_string();
    server.command(&["REPLICAOF", "127.0.0.1", &port]);
    until("it has the other's data", || server.keys("*").is_empty());
    server.command(&["REPLICAOF", "NO", "ONE"]);
    eventually("it isn't what it was", || async {
        let failed = cache.check().await.err();
        failed.is_some_and(|error| error.to_string().contains("its data isn't"))
    })
    .await;
}

#[tokio::test]
async fn a_burst_of_writes_waits_for_room() {
    let server = RedisServer::start();
    let cache = Arc::new(connect(&server.url()).await);
    let tags: BTreeSet<_> = (0..600).map(|i| tag(&format!("run-{i}"))).collect();
    let tags = Arc::new(tags);
    let mut tasks = JoinSet::new();
    for writer in 0..24 {
        let (cache, tags) = (Arc::clone(&cache), Arc::clone(&tags));
        tasks.spawn(async move {
            let write = WriteId::generate();
            if writer % 8 == 7 {
                // Its caller leaves in the middle.
                let leave = Duration::from_millis(writer);
                let left = tokio::time::timeout(leave, cache.close(&tags, write, EPOCH)).await;
                return left.unwrap_or(Ok(()));
            }
            cache.close(&tags, write, EPOCH).await?;
            cache.reopen(&tags, write, EPOCH).await
        });
    }
    for i in 0..600 {
        let cache = Arc::clone(&cache);
        tasks.spawn(async move {
            // A read waits for permits for a shorter time, and falls back to the database.
            let _ = cache.lookup(&tag("else"), &key(i)).await;
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("no write is refused");
    }
    let after = tag("after");
    fill(&cache, &after, &key(1), "entry").await;
    assert!(hit(&cache, &after, &key(1)).await.is_some());
}

#[tokio::test]
async fn a_server_that_hangs_in_a_burst_is_used_again() {
    let server = RedisServer::start();
    let cache = Arc::new(connect(&server.url()).await);
    let tags: BTreeSet<_> = (0..600).map(|i| tag(&format!("run-{i}"))).collect();
    let tags = Arc::new(tags);
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let (cache, tags) = (Arc::clone(&cache), Arc::clone(&tags));
        tasks.spawn(async move {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(4) {
                let started = Instant::now();
                let _ = cache.close(&tags, WriteId::generate(), EPOCH).await;
                assert!(
                    started.elapsed() < Duration::from_secs(6),
                    "every wait ends"
                );
                tokio::task::yield_now().await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.suspend();
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.resume();
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    recovered(&cache, &tag("after")).await;
    fill(&cache, &tag("after"), &key(1), "entry").await;
    assert!(hit(&cache, &tag("after"), &key(1)).await.is_some());
}

#[tokio::test]
async fn a_server_that_hangs_costs_half_a_second_and_no_more() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    fill(&cache, &run, &key(1), "entry").await;
    server.suspend();
    let suspended = Instant::now();
    let failed = cache.lookup(&run, &key(1)).await;
    assert!(matches!(failed, Err(CacheError::Timeout)), "{failed:?}");
    assert!(suspended.elapsed() < Duration::from_secs(1));
    let mut fast = 0;
    while suspended.elapsed() < Duration::from_secs(3) {
        let started = Instant::now();
        assert!(
            cache
                .close(&set(&[&run]), WriteId::generate(), EPOCH)
                .await
                .is_err()
        );
        assert!(started.elapsed() < Duration::from_secs(1));
        fast += usize::from(started.elapsed() < Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        fast > 20,
        "while it connects again it fails at once: {fast}"
    );
    server.resume();
    recovered(&cache, &tag("another")).await;
    assert!(cache.stats().errors > 20);
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_used_when_it_comes() {
    let mut server = RedisServer::start();
    server.kill();
    let started = Instant::now();
    let cache = connect(&server.url()).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(cache.lookup(&tag("run-1"), &key(1)).await.is_err());
    server.restart();
    recovered(&cache, &tag("run-1")).await;
    fill(&cache, &tag("run-1"), &key(1), "entry").await;
}

#[tokio::test]
async fn credentials_and_database_come_from_the_url() {
    let server = RedisServer::start();
    server.command(&["CONFIG", "SET", "requirepass", "se/cret"]);
    let url = format!("redis://:se%2Fcret@127.0.0.1:{}/3", server.port);
    let cache = connect(&url).await;
    fill(&cache, &tag("run-1"), &key(1), "entry").await;
    let keys = server.command(&["-a", "se/cret", "--no-auth-warning", "-n", "3", "DBSIZE"]);
    assert_eq!(keys, "3");
}

#[tokio::test]
async fn closing_very_many_entries_takes_as_long_as_closing_a_thousand() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let runs = |count: usize, runs: usize| -> Vec<_> {
        let runs = (0..runs).map(|i| tag(&format!("{count}-{i}")));
        runs.inspect(|run| populate(&server, run, count)).collect()
    };
    let (small, large) = (runs(1_000, 9), runs(300_000, 3));
    let times = async |runs: Vec<Tag>| {
        let mut times = Vec::new();
        for run in &runs {
            times.push(time_to_close(&cache, run).await);
        }
        times.sort_unstable();
        times
    };
    let (small, large) = (times(small).await[4], times(large).await[0]);
    // A step of the background task may come before either.
    let step = Duration::from_millis(5);
    assert!(
        large <= 2 * small.max(step),
        "{large:?} for 300,000, {small:?} for a thousand"
    );

    let deadline = Instant::now() + Duration::from_mins(1);
    // The twelve `writers` keys are left, or have expired meanwhile.
    let left = || server.command(&["DBSIZE"]).parse::<u32>();
    while left().expect("a number") > 12 {
        assert!(
            Instant::now() < deadline,
            "the background drops the entries"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Puts entries under a tag, as fills would, but faster.
fn populate(server: &RedisServer, tag: &Tag, count: usize) {
    server.populate(&format!("{BASE}{{{tag}}}:"), count);
}

async fn time_to_close(cache: &RedisCache, tag: &Tag) -> Duration {
    let (tags, started) = (set(&[tag]), Instant::now());
    cache
        .close(&tags, WriteId::generate(), EPOCH)
        .await
        .expect("closed");
    started.elapsed()
}

#[tokio::test]
async fn what_was_filled_again_survives_the_background() {
    let server = RedisServer::start();
    let cache = connect(&server.url()).await;
    let run = tag("run-1");
    populate(&server, &run, 50_000);
    let version = open(&cache, &run).await;
    for i in 0..200 {
        assert!(
            cache
                .fill(&run, &key(i), version, "old".into())
                .await
                .expect("stored")
        );
    }
    write(&cache, &[&run]).await;
    let version = open(&cache, &run).await;
    for i in 0..200 {
        assert!(
            cache
                .fill(&run, &key(i), version, "new".into())
                .await
                .expect("stored")
        );
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.keys("*:dropped:*").is_empty() {
        assert!(
            Instant::now() < deadline,
            "the background drops the entries"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(
        server.command(&["DBSIZE"]),
        "202",
        "the version, the index, and what is current"
    );
}

#[tokio::test]
async fn an_index_that_is_never_closed_keeps_few_expired_members() {
    let server = RedisServer::start();
    let short = connect_with(&server.url(), |config| {
        config.ttl = Duration::from_millis(500);
    })
    .await;
    let long = connect(&server.url()).await;
    let run = tag("run-1");
    let version = open(&long, &run).await;
    for i in 0..2_000 {
        assert!(
            short
                .fill(&run, &key(i), version, "entry".into())
                .await
                .expect("stored")
        );
        if i % 100 == 0 {
            // Keeps index and version alive.
            assert!(
                long.fill(&run, &key(10_000), version, "entry".into())
                    .await
                    .expect("stored")
            );
        }
    }
    assert!(
        long.fill(&run, &key(10_000), version, "entry".into())
            .await
            .expect("stored")
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.keys("loc:*:ListLocations:*").len() > 1 {
        assert!(Instant::now() < deadline, "the short-lived entries expire");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for i in 0..400 {
        assert!(
            long.fill(&run, &key(20_000 + i), version, "entry".into())
                .await
                .expect("stored")
        );
    }
    let members: usize = server
        .command(&["SCARD", &format!("{BASE}{{*,run-1,*}}:keys")])
        .parse()
        .expect("a number");
    let dead = members - 401;
    assert!(dead * 4 <= members, "{dead} of {members} members are dead");
}

#[tokio::test]
async fn a_full_server_still_lets_writes_invalidate() {
    let server =
        RedisServer::start_with(&["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]);
    let (cache, run) = (connect(&server.url()).await, tag("run-1"));
    let version = open(&cache, &run).await;
    let big = Bytes::from(vec![b'x'; 64 << 10]);
    let mut filled = 0;
    while cache
        .fill(&run, &key(filled), version, big.clone())
        .await
        .is_ok()
    {
        filled += 1;
        assert!(filled < 1_000, "it has room for 4 MiB");
    }
    server.command(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let (tags, writing) = (set(&[&run]), WriteId::generate());
    cache
        .close(&tags, writing, EPOCH)
        .await
        .expect("closed though nothing fits");
    cache
        .reopen(&tags, writing, EPOCH)
        .await
        .expect("reopened though nothing fits");
    assert_eq!(hit(&cache, &run, &key(0)).await, None);
}

#[tokio::test]
async fn eviction_costs_speed_only() {
    let server =
        RedisServer::start_with(&["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru"]);
    let caches = [connect(&server.url()).await, connect(&server.url()).await];
    let run = tag("run-1");
    let (mut filler, mut hits) = (0, 0);
    for round in 0..200_u64 {
        let text: &'static str = if round % 2 == 0 { "even" } else { "odd" };
        // Entries of other tags, whose fills evict the oldest keys.
        for _ in 0..20 {
            filler += 1;
            let other = tag(&format!("filler-{filler}"));
            let found = caches[0].lookup(&other, &unfilled()).await;
            if let Ok(Lookup::Miss(version)) = found {
                let big = Bytes::from(vec![b'x'; 16 << 10]);
                let _ = caches[0].fill(&other, &key(filler), version, big).await;
            }
        }
        write(&caches[usize::from(round % 3 == 0)], &[&run]).await;
        for cache in &caches {
            assert_eq!(read_through(cache, &run, &key(1), text).await, text);
        }
        hits += usize::from(hit(&caches[1], &run, &key(1)).await.is_some());
    }
    assert!(hits > 100, "{hits} hits");
    let evicted = server.command(&["INFO", "stats"]);
    assert!(
        !evicted.contains("evicted_keys:0\r\n"),
        "something was evicted"
    );
}

#[tokio::test]
async fn an_admin_can_explain_and_invalidate() {
    let server = RedisServer::start();
    let (a, b) = (connect(&server.url()).await, connect(&server.url()).await);
    let (run, other) = (tag("run-1"), tag("run-2"));
    for i in 0..3 {
        fill(&a, &run, &key(i), "entry").await;
    }
    fill(&a, &other, &key(7), "entry").await;

    let explained = b.explain(&run, &key(1)).await.expect("Redis responds");
    let held = explained.redis.expect("it is stored");
    assert_eq!((held.bytes, Some(held.version)), (5, explained.current));
    assert!(held.age < Duration::from_secs(10));
    assert_eq!((explained.writers, explained.local), (0, None));
    let explained = a.explain(&run, &key(1)).await.expect("Redis responds");
    assert_eq!(explained.local.map(|held| held.version), explained.current);

    assert_eq!(b.invalidate(&run).await.expect("Redis responds"), 3);
    assert_eq!(hit(&a, &run, &key(1)).await, None);
    assert!(version(&a, &run).await.is_some(), "no write is in flight");
    assert_eq!(
        hit(&a, &other, &key(7)).await,
        Some(("entry".into(), Tier::Local))
    );

    let foreign = connect_with(&server.url(), |config| config.prefix = "lo*".to_owned()).await;
    fill(&foreign, &run, &key(1), "entry").await;
    assert_eq!(foreign.invalidate_all().await.expect("Redis responds"), 1);
    assert_eq!(
        hit(&a, &other, &key(7)).await,
        Some(("entry".into(), Tier::Local))
    );
    assert_eq!(b.invalidate_all().await.expect("Redis responds"), 1);
    assert_eq!(hit(&a, &other, &key(7)).await, None);

    a.close(&set(&[&run]), WriteId::generate(), EPOCH)
        .await
        .expect("closed");
    let explained = a.explain(&run, &key(1)).await.expect("Redis responds");
    assert_eq!(
        (explained.writers, explained.current, explained.redis),
        (1, None, None)
    );
    assert_eq!(a.stats().fills, 4);
}

#[tokio::test]
async fn a_cluster_keeps_each_tag_on_one_slot() {
    let cluster = RedisCluster::start();
    let (a, b) = (connect(&cluster.url()).await, connect(&cluster.url()).await);
    let hostile = tag("}{*:a b,");
    let tags: Vec<_> = (0..600).map(|i| tag(&format!("run-{i}"))).collect();
    fill(&a, &hostile, &key(0), "hostile").await;
    for (i, tag) in (1..).zip(&tags) {
        fill(&a, tag, &key(i), "entry").await;
    }
    let mut names = String::new();
    for node in &cluster.nodes {
        let keys = node.keys("*");
        assert!(keys.len() > 300, "the tags are spread");
        for key in keys {
            let _ = writeln!(names, "{key}");
            assert!(!key.contains([' ', '\n']), "{key:?}");
            assert_eq!(key.matches(['{', '}']).count(), 2, "{key:?}");
        }
    }
    assert_eq!(names.lines().count(), 3 * 601);
    let node = &cluster.nodes[0];
    let slots: BTreeSet<_> = names
        .lines()
        .filter(|name| name.starts_with(&format!("{BASE}{{*,%7D%7B%2A%3Aa%20b%2C,*}}:")))
        .map(|name| node.command(&["CLUSTER", "KEYSLOT", name]))
        .collect();
    assert_eq!(slots.len(), 1, "one slot: {slots:?}");

    let lookups = (1..).zip(&tags).map(|(i, tag)| {
        let a = &a;
        async move { hit(a, tag, &key(i)).await }
    });
    for found in futures_util::future::join_all(lookups).await {
        assert_eq!(found, Some(("entry".into(), Tier::Local)));
    }
    let all: Vec<_> = tags.iter().collect();
    write(&b, &all).await;
    for (i, tag) in (1..).zip(&tags) {
        assert_eq!(hit(&a, tag, &key(i)).await, None);
    }
    assert_eq!(
        hit(&a, &hostile, &key(0)).await,
        Some(("hostile".into(), Tier::Local))
    );
    assert_eq!(
        hit(&b, &hostile, &key(0)).await,
        Some(("hostile".into(), Tier::Redis))
    );
    assert_eq!(b.invalidate_all().await.expect("every node responds"), 1);
    assert_eq!(hit(&a, &hostile, &key(0)).await, None);
}

#[tokio::test]
async fn a_cluster_works_again_after_a_node_hung() {
    let cluster = RedisCluster::start();
    let cache = connect(&cluster.url()).await;
    let tags: Vec<_> = (0..30).map(|i| tag(&format!("run-{i}"))).collect();
    let all: Vec<_> = tags.iter().collect();
    write(&cache, &all).await;
    cluster.nodes[1].suspend();
    let started = Instant::now();
    assert!(
        cache
            .close(&set(&all), WriteId::generate(), EPOCH)
            .await
            .is_err()
    );
    assert!(started.elapsed() < Duration::from_secs(4));
    cluster.nodes[1].resume();
    for tag in &tags {
        recovered(&cache, tag).await;
    }
    write_in(NEXT_EPOCH, &cache, &all).await;
}

#[tokio::test]
async fn a_failover_is_followed() {
    let mut set_of = RedisSentinels::start();
    let cache = connect(&set_of.url()).await;
    fill(&cache, &tag("run-1"), &key(1), "entry").await;
    set_of.master.kill();
    recovered(&cache, &tag("run-2")).await;
    fill(&cache, &tag("run-3"), &key(1), "entry").await;
    assert!(set_of.replica.keys("loc:*2:{*,run-3,*}:*").len() == 3);
}

/// The URL that this test, started again as a process of its own, is to connect to.
const TLS_URL: &str = "TEST_TLS_URL";

/// `rediss://` trusts what the system trusts, or the file that `SSL_CERT_FILE` names.
#[tokio::test]
async fn tls_is_verified() {
    if let Ok(url) = std::env::var(TLS_URL) {
        let cache = connect(&url).await;
        fill(&cache, &tag("run-1"), &key(1), "entry").await;
        return;
    }
    let (server, authority) = RedisServer::start_tls();
    let child = || {
        let mut child = Command::new(std::env::current_exe().expect("a path"));
        child
            .args(["--exact", "redis::tls_is_verified"])
            .env(TLS_URL, format!("rediss://localhost:{}", server.tls_port));
        child
    };
    let trusting = child().env("SSL_CERT_FILE", &authority).output();
    let trusting = trusting.expect("it starts");
    assert!(trusting.status.success(), "{trusting:?}");
    assert_eq!(server.keys("*").len(), 3);

    server.command(&["FLUSHALL"]);
    let wary = child().output().expect("it starts");
    assert!(!wary.status.success(), "{wary:?}");
    assert_eq!(server.keys("*").len(), 0);
}

/// With files of the authorities and of a client certificate, for a server that requires one.
#[tokio::test]
async fn a_client_certificate_is_presented() {
    let (server, authorities) = RedisServer::start_tls();
    assert_eq!(
        server.command(&["CONFIG", "SET", "tls-auth-clients", "yes"]),
        "OK"
    );
    let url = format!("rediss://localhost:{}", server.tls_port);
    let anonymous = TlsFiles {
        authorities: Some(authorities.clone()),
        client: None,
    };
    let known = TlsFiles {
        client: Some(ClientCertificate {
            certificate: server.file("tls.crt"),
            key: server.file("tls.key"),
        }),
        ..anonymous.clone()
    };
    for (tls, is_accepted) in [(anonymous.clone(), false), (known, true)] {
        let cache = connect_with(&url, |config| config.tls = tls).await;
        renew_lease(&cache, 0, None);
        assert_eq!(cache.check().await.is_ok(), is_accepted);
    }

    let refused = async |url: &str, tls: TlsFiles| {
        let mut config = config(url);
        config.tls = tls;
        let refused = RedisCache::connect(&config).await.map(drop);
        refused.expect_err("it is refused").to_string()
    };
    let error = refused(&server.url(), anonymous.clone()).await;
    assert!(error.contains("give a rediss://"), "{error}");
    let other = Authority::new("other").issue("localhost");
    fs::write(server.file("other.key"), other.key).expect("a file");
    let with_key = |key: &str| TlsFiles {
        client: Some(ClientCertificate {
            certificate: server.file("tls.crt"),
            key: server.file(key),
        }),
        ..anonymous.clone()
    };
    for (key, problem) in [
        ("other.key", "other.key can't be used"),
        ("tls.crt", "it has no private key in PEM"),
        ("missing", "No such file"),
    ] {
        let error = refused(&url, with_key(key)).await;
        assert!(error.contains(problem), "{key}: {error}");
    }
}
