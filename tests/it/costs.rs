//! The cost of calls on PostgreSQL and Redis: their round trips, commands and statements, not their
//! times.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use location_service::{
    cache::{Cache, CacheError, Explanation, Key, Lookup, Stats, Tag, Version, WriteId},
    model::{Epoch, Predicate, ProductionRunId},
    proto::location::v1,
    store::Store,
};
use tempfile::TempDir;
use tokio::sync::Barrier;
use tonic::{Response, Status};

use crate::{
    gates::{GatedStore, Gates},
    harness::{Client, TestApp, cache_status, create, of_run, shared_config, storage, with},
    redis::{EPOCH, connect_with},
};
use servers::{postgres::Postgres, redis::RedisServer};

/// The number of concurrent callers.
const CALLERS: usize = 1_000;

/// Fewer than the 256 concurrent streams that the service allows on a connection.
const CALLERS_PER_CONNECTION: usize = 200;

/// The service, with servers of its own whose statements and commands are counted.
struct Counted {
    app: TestApp,
    redis: RedisServer,
    postgres: Postgres,
}

impl Counted {
    async fn spawn() -> Self {
        Self::spawn_with(|store, cache| (store, cache)).await
    }

    async fn spawn_with(
        wrap: impl FnOnce(Arc<dyn Store>, Arc<dyn Cache>) -> (Arc<dyn Store>, Arc<dyn Cache>),
    ) -> Self {
        let redis = RedisServer::start();
        let postgres = Postgres::start_with(|_| "log_statement = all".to_owned());
        let dir = TempDir::new().expect("a temporary folder");
        let database = postgres.database().await;
        let config = shared_config(database, redis.url(), "test:".to_owned(), &dir);
        Self {
            app: TestApp::spawn_config(config, dir.into(), wrap).await,
            redis,
            postgres,
        }
    }

    /// The database's statements since its start, without those of background tasks.
    fn statements(&self) -> Vec<String> {
        let log = fs::read_to_string(self.postgres.log()).expect("a log");
        log.lines()
            .filter_map(|line| {
                let (_, rest) = line.split_once(" LOG:  ")?;
                let (kind, statement) = rest.split_once(": ")?;
                (kind == "statement" || kind.starts_with("execute")).then(|| statement.to_owned())
            })
            .filter(|statement| !BACKGROUND.iter().any(|own| statement.starts_with(own)))
            .collect()
    }

    async fn stats(app: &TestApp) -> v1::GetStatsResponse {
        let stats = app.cache_admin().get_stats(v1::GetStatsRequest {}).await;
        stats.expect("counted").into_inner()
    }

    async fn stop(self) {
        self.app.stop().await;
    }
}

/// The beginnings of the statements that background tasks and new connections run.
const BACKGROUND: [&str; 5] = [
    "SELECT pg_advisory_xact_lock(",
    "SELECT id FROM locations LIMIT 1",
    "SELECT epoch, incarnation, ",
    // These two once for each connection.
    "SELECT database_identity(), ",
    "SELECT pg_advisory_lock_shared(",
];

async fn list(client: &mut Client) -> String {
    let list = client.list_locations(of_run("run")).await.expect("listed");
    cache_status(&list).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_that_the_process_doesnt_hold_is_one_round_trip() {
    let counted = Counted::spawn().await;
    list(&mut counted.app.admin()).await;
    let replica = counted.app.replica().await;
    let mut client = replica.admin();
    let statements = counted.statements().len();
    counted.redis.command(&["CONFIG", "RESETSTAT"]);
    assert_eq!(
        list(&mut client).await,
        "location-service; hit; detail=redis"
    );
    assert_eq!(
        counted.redis.all_calls(),
        [("evalsha".to_owned(), 1), ("mget".to_owned(), 1)]
    );
    assert_eq!(Counted::stats(&replica).await.round_trip_count, 1);
    assert_eq!(counted.statements()[statements..], [] as [&str; 0]);

    assert_eq!(
        list(&mut client).await,
        "location-service; hit; detail=local"
    );
    assert_eq!(
        counted.redis.all_calls(),
        [("evalsha".to_owned(), 2), ("mget".to_owned(), 2)]
    );
    assert_eq!(Counted::stats(&replica).await.round_trip_count, 2);
    assert_eq!(counted.statements()[statements..], [] as [&str; 0]);
    replica.stop().await;
    counted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_two_round_trips_and_one_statement() {
    let counted = Counted::spawn().await;
    let mut client = counted.app.admin();
    // The last request's entry was invalidated by a write, and is still in the local cache.
    for page_size in [1, 2, 2] {
        let before = Counted::stats(&counted.app).await.round_trip_count;
        let statements = counted.statements().len();
        counted.redis.command(&["CONFIG", "RESETSTAT"]);
        let request = v1::ListLocationsRequest {
            page_size,
            ..of_run("run")
        };
        let list = client.list_locations(request).await.expect("listed");
        assert_eq!(
            cache_status(&list),
            "location-service; fwd=miss; stored",
            "page size {page_size}"
        );
        let after = Counted::stats(&counted.app).await.round_trip_count;
        assert_eq!(after - before, 2, "lookup, fill");
        assert_eq!(counted.redis.calls("evalsha"), 2);
        assert_eq!(counted.statements().len() - statements, 1);
        let created = client.create_location(create(storage("new", "run"))).await;
        created.expect("created");
    }
    counted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_cache_read_is_two_round_trips_and_one_statement() {
    let counted = Counted::spawn().await;
    let mut client = counted.app.admin();
    // First the tag has no version; then it is open, and the entry is in the local cache.
    for _ in 0..2 {
        let before = Counted::stats(&counted.app).await.round_trip_count;
        let statements = counted.statements().len();
        let request = with(of_run("run"), "cache-control", "no-cache");
        let list = client.list_locations(request).await.expect("listed");
        assert_eq!(cache_status(&list), "location-service; fwd=request; stored",);
        let after = Counted::stats(&counted.app).await.round_trip_count;
        assert_eq!(after - before, 2, "lookup, fill");
        assert_eq!(counted.statements().len() - statements, 1);
    }
    counted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_during_a_write_is_one_round_trip_and_one_statement() {
    let gates = Arc::<Gates>::default();
    let counted = Counted::spawn_with(|inner, cache| {
        let gates = Arc::clone(&gates);
        (Arc::new(GatedStore { inner, gates }), cache)
    })
    .await;
    let mut client = counted.app.admin();
    gates.closed.arm();
    let writer = tokio::spawn({
        let mut client = client.clone();
        async move { client.create_location(create(storage("new", "run"))).await }
    });
    gates.closed.held().await;
    let before = Counted::stats(&counted.app).await.round_trip_count;
    let statements = counted.statements().len();
    assert_eq!(
        list(&mut client).await,
        "location-service; fwd=bypass; detail=write-in-flight"
    );
    let after = Counted::stats(&counted.app).await.round_trip_count;
    assert_eq!(after - before, 1, "lookup");
    assert_eq!(counted.statements().len() - statements, 1);
    gates.closed.release();
    writer.await.expect("no panic").expect("created");
    counted.stop().await;
}

/// Lookups of many entries that the local cache doesn't hold: those that wait together share a
/// command.
#[tokio::test]
async fn a_hundred_hits_on_entries_that_the_process_doesnt_hold_share_commands() {
    const ENTRIES: u64 = 100;
    let server = RedisServer::start();
    let cache = connect_with(&server.url(), |config| config.max_local_bytes = 0).await;
    let entries: Vec<_> = (0..ENTRIES)
        .map(|number| {
            let tag = Tag::of_predicate(&Predicate {
                run: ProductionRunId::parse(format!("run-{}", number % 10)).ok(),
                ..Predicate::default()
            });
            (tag, Key::new("ListLocations", None, &number), number)
        })
        .collect();
    for (tag, key, number) in &entries {
        let Ok(Lookup::Miss(version)) = cache.lookup(tag, key).await else {
            panic!("nothing is filled yet");
        };
        let response = Bytes::from(number.to_string());
        let filled = cache.fill(tag, key, version, response).await;
        assert!(filled.expect("Redis responds"));
    }
    server.command(&["CONFIG", "RESETSTAT"]);
    // Each entry twice.
    let lookups = entries.iter().chain(&entries).map(|(tag, key, number)| {
        let lookup = cache.lookup(tag, key);
        async move {
            match lookup.await.expect("Redis responds") {
                Lookup::Hit { body, .. } => assert_eq!(body, number.to_string()),
                missed => panic!("{number}: {missed:?}"),
            }
        }
    });
    join_all(lookups).await;
    let commands = server.calls("evalsha");
    assert!(
        (4..=8).contains(&commands),
        "{commands} for {ENTRIES} entries"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_two_round_trips_and_one_transaction() {
    let counted = Counted::spawn().await;
    let mut client = counted.app.admin();
    // The scripts are known to the server from the second time on.
    for name in ["first", "second"] {
        let before = Counted::stats(&counted.app).await.round_trip_count;
        let statements = counted.statements().len();
        counted.redis.command(&["CONFIG", "RESETSTAT"]);
        client
            .create_location(create(storage(name, "run")))
            .await
            .expect("created");
        if name == "first" {
            continue;
        }
        let after = Counted::stats(&counted.app).await.round_trip_count;
        assert_eq!(after - before, 2, "close, reopen");
        let scripts = counted.redis.calls("evalsha");
        assert_eq!(scripts, 2, "nine tags are closed together, and reopened");
        assert_eq!(counted.redis.calls("eval"), 0);
        let executed = counted.statements().split_off(statements);
        let first_words: Vec<_> = executed
            .iter()
            .filter_map(|statement| statement.split_whitespace().next())
            .collect();
        // The commit is one message, `SELECT check_commit(…); COMMIT`.
        assert_eq!(first_words, ["BEGIN", "INSERT", "SELECT"], "{executed:?}");
    }
    counted.stop().await;
}

/// Holds the lookups until all callers have reached theirs, so that they run concurrently.
struct AllAtOnce {
    inner: Arc<dyn Cache>,
    armed: AtomicUsize,
    all: Barrier,
}

impl AllAtOnce {
    /// The next lookups are held.
    fn arm(&self) {
        self.armed.store(CALLERS, Ordering::SeqCst);
    }
}

#[async_trait]
impl Cache for AllAtOnce {
    async fn lookup(&self, tag: &Tag, key: &Key) -> Result<Lookup, CacheError> {
        let one_less = |armed: usize| armed.checked_sub(1);
        let (set, fetch) = (Ordering::SeqCst, Ordering::SeqCst);
        if self.armed.fetch_update(set, fetch, one_less).is_ok() {
            self.all.wait().await;
        }
        self.inner.lookup(tag, key).await
    }

    fn peek_local(&self, key: &Key, version: Version) -> Option<Bytes> {
        self.inner.peek_local(key, version)
    }

    async fn fill(
        &self,
        tag: &Tag,
        key: &Key,
        version: Version,
        response: Bytes,
    ) -> Result<bool, CacheError> {
        self.inner.fill(tag, key, version, response).await
    }

    async fn close(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        self.inner.close(tags, write, epoch).await
    }

    async fn reopen(
        &self,
        tags: &BTreeSet<Tag>,
        write: WriteId,
        epoch: Option<Epoch>,
    ) -> Result<(), CacheError> {
        self.inner.reopen(tags, write, epoch).await
    }

    async fn invalidate(&self, tag: &Tag) -> Result<u64, CacheError> {
        self.inner.invalidate(tag).await
    }

    async fn invalidate_all(&self) -> Result<u64, CacheError> {
        self.inner.invalidate_all().await
    }

    async fn explain(&self, tag: &Tag, key: &Key) -> Result<Explanation, CacheError> {
        self.inner.explain(tag, key).await
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

async fn all_at_once() -> (Counted, Arc<AllAtOnce>) {
    let mut at_once = None;
    let counted = Counted::spawn_with(|store, inner| {
        let cache = Arc::new(AllAtOnce {
            inner,
            armed: AtomicUsize::new(0),
            all: Barrier::new(CALLERS),
        });
        at_once = Some(Arc::clone(&cache));
        (store, cache)
    })
    .await;
    (counted, at_once.expect("it was wrapped"))
}

/// Calls a method for each caller, all at once.
async fn call_all<F>(
    app: &TestApp,
    call: impl Fn(Client) -> F,
) -> Vec<Result<Response<v1::ListLocationsResponse>, Status>>
where
    F: Future<Output = Result<Response<v1::ListLocationsResponse>, Status>>,
{
    let mut calls = Vec::new();
    for _ in 0..CALLERS / CALLERS_PER_CONNECTION {
        let client = app.admin_on_new_connection().await;
        calls.extend((0..CALLERS_PER_CONNECTION).map(|_| call(client.clone())));
    }
    join_all(calls).await
}

// One thread, so that all callers that are released together have sent their calls before the first
// response.
#[tokio::test]
async fn a_thousand_hits_on_one_entry_share_a_handful_of_version_reads() {
    let (counted, at_once) = all_at_once().await;
    list(&mut counted.app.admin()).await;
    let statements = counted.statements().len();
    let before = Counted::stats(&counted.app).await.round_trip_count;
    counted.redis.command(&["CONFIG", "RESETSTAT"]);
    at_once.arm();
    let lists = call_all(&counted.app, |mut client| async move {
        client.list_locations(of_run("run")).await
    });
    for list in lists.await {
        let list = list.expect("listed");
        assert_eq!(cache_status(&list), "location-service; hit; detail=local");
    }
    let reads = counted.redis.calls("mget");
    assert!((1..=5).contains(&reads), "{reads} version reads");
    assert_eq!(
        counted.redis.all_calls(),
        [("evalsha".to_owned(), reads), ("mget".to_owned(), reads)]
    );
    let after = Counted::stats(&counted.app).await.round_trip_count;
    assert_eq!(u64::try_from(after - before), Ok(reads));
    assert_eq!(counted.statements()[statements..], [] as [&str; 0]);
    counted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_of_a_thousand_callers_is_at_most_two_queries_on_a_replica() {
    let (counted, at_once) = all_at_once().await;
    let statements = counted.statements().len();
    at_once.arm();
    let lists = call_all(&counted.app, |mut client| async move {
        client.list_locations(of_run("run")).await
    });
    for list in lists.await {
        list.expect("listed");
    }
    let executed = counted.statements().split_off(statements);
    assert!((1..=2).contains(&executed.len()), "{executed:?}");
    let stats = Counted::stats(&counted.app).await;
    assert_eq!(stats.error_count, 0);
    let reads: i64 = stats.tiers[1].hit_count + stats.tiers[1].miss_count;
    let callers = i64::try_from(CALLERS).expect("small");
    assert_eq!(stats.tiers[0].hit_count + reads, callers);
    counted.stop().await;
}

/// An hour's traffic in 15 seconds: many pages of many lists with a short time to live, and few writes.
#[tokio::test(flavor = "multi_thread")]
async fn traffic_leaves_few_index_members_without_their_entries() {
    const TTL: Duration = Duration::from_secs(1);
    const TRAFFIC: Duration = Duration::from_secs(15);
    const TAGS: u64 = 20;
    let server = RedisServer::start();
    let url = server.url();
    let cache = connect_with(&url, |config| {
        config.max_local_bytes = 0;
        config.ttl = TTL;
    });
    let cache = Arc::new(cache.await);
    let requests = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let readers = (0..8).map(|_| {
        let (cache, requests) = (Arc::clone(&cache), Arc::clone(&requests));
        tokio::spawn(async move {
            // If the machine stalls, more entries expire than are filled. The fills that follow drop
            // their members.
            let mut rest = 0..100;
            while started.elapsed() < TRAFFIC || rest.next().is_some() {
                let number = requests.fetch_add(1, Ordering::Relaxed);
                let tag = Tag::of_predicate(&Predicate {
                    run: ProductionRunId::parse(format!("run-{}", number % TAGS)).ok(),
                    ..Predicate::default()
                });
                if number % 1_000 == 999 {
                    let (tags, write) = (BTreeSet::from([tag.clone()]), WriteId::generate());
                    let closed = cache.close(&tags, write, EPOCH).await;
                    closed.expect("closed");
                    let reopened = cache.reopen(&tags, write, EPOCH).await;
                    reopened.expect("reopened");
                }
                // Some pages come again while they are cached; most don't.
                let page = if number % 4 == 0 {
                    number % 400
                } else {
                    number
                };
                let key = Key::new("ListLocations", None, &page);
                let found = cache.lookup(&tag, &key).await.expect("Redis responds");
                if let Lookup::Miss(version) = found {
                    let response = Bytes::from_static(b"entry");
                    let filled = cache.fill(&tag, &key, version, response).await;
                    filled.expect("Redis responds");
                }
            }
        })
    });
    for reader in join_all(readers).await {
        reader.expect("no panic");
    }
    let (members, dead) = server.index_members();
    let fills = cache.stats().fills;
    assert!(
        members > 0 && fills > 2 * members,
        "most of {fills} entries are gone, and {members} are indexed"
    );
    assert!(dead * 4 <= members, "{dead} of {members} members are dead");
}
