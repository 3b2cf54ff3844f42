//! Whatever the cache server loses, and whichever process dies or stalls: no read is stale after an
//! acknowledged write. Each fault strikes at a chosen moment, or all the time under load.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use location_service::{cache::LEASE, config::DatabaseUrl, proto::location::v1};
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tonic::{Code, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    gates::{GatedStore, Gates, Uncontrolled, Without},
    harness::{Client, TestApp, cache_status, create, eventually, names, of_run, storage},
    process::{Home, Process},
    proxy::Proxy,
    watch::Watch,
};
use servers::{
    postgres::{Postgres, execute, number},
    redis::RedisServer,
};

const CLOSED: &str = "location-service; fwd=bypass; detail=write-in-flight";
const AWAY: &str = "location-service; fwd=bypass; detail=cache-unavailable";
const A_FEW_SECONDS: Duration = Duration::from_secs(6);

const LOCAL: &str = "location-service; hit; detail=local";

/// Two replicas on a PostgreSQL database and a Redis of the test's own; `a` can be held.
struct Replicas {
    a: TestApp,
    b: TestApp,
    gates: Arc<Gates>,
}

impl Replicas {
    async fn start(redis: &RedisServer) -> Self {
        Self::without(redis, Without::Nothing).await
    }

    async fn without(redis: &RedisServer, without: Without) -> Self {
        let database = Postgres::shared().database().await;
        let b = TestApp::spawn_at(database, redis.url()).await;
        let gates = Arc::<Gates>::default();
        gates
            .unguarded
            .store(without == Without::Guard, Ordering::SeqCst);
        let a = b
            .replica_with(|inner, cache| {
                let gates = Arc::clone(&gates);
                let cache = Uncontrolled {
                    inner: cache,
                    without,
                };
                (Arc::new(GatedStore { inner, gates }), Arc::new(cache))
            })
            .await;
        Self { a, b, gates }
    }

    async fn stop(self) {
        self.a.stop().await;
        self.b.stop().await;
    }
}

type Writing = JoinHandle<Result<Response<v1::Location>, Status>>;

fn start_create(client: &Client, name: &str) -> Writing {
    start(client, create(storage(name, "run")))
}

fn start(client: &Client, request: v1::CreateLocationRequest) -> Writing {
    let mut client = client.clone();
    tokio::spawn(async move { client.create_location(request).await })
}

async fn created(client: &Client, name: &str) {
    let created = start_create(client, name).await.expect("no panic");
    created.expect("created");
}

/// A run's locations by name, the newest first, and the list's cache status.
async fn list(client: &Client, run: &str) -> (Vec<String>, String) {
    let list = client.clone().list_locations(of_run(run)).await;
    let list = list.expect("no fault of the cache fails a read");
    let names = names(&list).into_iter().map(str::to_owned).collect();
    (names, cache_status(&list).to_owned())
}

/// Lists the run until the replica itself holds the list.
async fn held(client: &Client, run: &str) -> Vec<String> {
    eventually("the list is cached", || async {
        list(client, run).await.1 == LOCAL
    })
    .await;
    list(client, run).await.0
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// How Redis loses data.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Flush,
    Restart,
    /// Only the records of writes in flight, as by an eviction.
    Writers,
}

impl Loss {
    fn strike(self, redis: &mut RedisServer) {
        match self {
            Self::Flush => {
                redis.command(&["FLUSHALL"]);
            }
            Self::Restart => redis.restart(),
            Self::Writers => {
                let keys = redis.keys("*:writers");
                let keys: Vec<_> = keys.iter().map(String::as_str).collect();
                assert!(!keys.is_empty(), "a write is in flight");
                redis.command(&[&["DEL"], &keys[..]].concat());
            }
        }
    }
}

/// Redis loses data between a write's `close` and its commit, and a reader then caches the old list.
/// Returns the list of the reader's replica after the acknowledgement.
async fn lost_before_commit(loss: Loss, without: Without) -> Vec<String> {
    let mut redis = RedisServer::start();
    let replicas = Replicas::without(&redis, without).await;
    let_stand_still(&replicas.a).await;
    let (writer, reader) = (replicas.a.admin(), replicas.b.admin());
    created(&reader, "old").await;
    assert_eq!(held(&reader, "run").await, ["old"]);
    replicas.gates.closed.arm();
    let writing = start_create(&writer, "new");
    replicas.gates.closed.held().await;
    assert_eq!(list(&reader, "run").await, (owned(&["old"]), CLOSED.into()));
    loss.strike(&mut redis);
    assert_eq!(held(&reader, "run").await, ["old"]);
    // Waits until the writer's replica is connected again, too.
    held(&writer, "other").await;
    replicas.gates.closed.release();
    writing.await.expect("no panic").expect("acknowledged");
    let after = list(&reader, "run").await.0;
    assert_eq!(list(&writer, "run").await.0, after);
    replicas.stop().await;
    after
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_between_close_and_commit_makes_nothing_stale() {
    for (loss, protection) in [
        (Loss::Flush, Without::Reopen),
        (Loss::Writers, Without::Reopen),
        // The restarted server begins a new epoch, in which nothing is closed.
        (Loss::Restart, Without::Guard),
    ] {
        let lists = Box::pin(lost_before_commit(loss, Without::Nothing)).await;
        assert_eq!(lists, ["new", "old"], "{loss:?}");
        let lists = Box::pin(lost_before_commit(loss, protection)).await;
        assert_eq!(lists, ["old"], "{loss:?}, control");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_between_commit_and_reopen_makes_nothing_stale() {
    for loss in [Loss::Flush, Loss::Restart, Loss::Writers] {
        let mut redis = RedisServer::start();
        let replicas = Replicas::start(&redis).await;
        let (writer, reader) = (replicas.a.admin(), replicas.b.admin());
        held(&reader, "run").await;
        replicas.gates.committed.arm();
        let writing = start_create(&writer, "new");
        replicas.gates.committed.held().await;
        loss.strike(&mut redis);
        assert_eq!(held(&reader, "run").await, ["new"], "{loss:?}");
        held(&writer, "other").await;
        replicas.gates.committed.release();
        writing.await.expect("no panic").expect("acknowledged");
        assert_eq!(list(&reader, "run").await.0, ["new"], "{loss:?}");
        replicas.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flushes_in_the_middle_of_load_make_nothing_stale() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let watch = Watch::start(&[replicas.a.admin(), replicas.b.admin()]);
    for _ in 0..50 {
        watch.steps(1).await;
        redis.command(&["FLUSHALL"]);
    }
    watch.hits(1).await;
    assert_eq!(watch.finish().await, [""; 0]);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_in_the_middle_of_load_make_nothing_stale() {
    let mut redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let watch = Watch::start(&[replicas.a.admin(), replicas.b.admin()]);
    for _ in 0..2 {
        watch.steps(4).await;
        redis.restart();
        // Both replicas connect again.
        watch.steps(4).await;
        watch.hits(1).await;
    }
    assert_eq!(watch.finish().await, [""; 0]);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_evicts_all_the_time_makes_nothing_stale() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let clients = [replicas.a.admin(), replicas.b.admin()];
    created(&clients[0], "a first script, a first list").await;
    held(&clients[1], "run").await;
    let memory = redis.command(&["INFO", "memory"]);
    let used = memory
        .lines()
        .find_map(|line| line.trim().strip_prefix("used_memory:"))
        .and_then(|bytes| bytes.parse::<u64>().ok())
        .expect("a number");
    let watch = Watch::start(&clients);
    watch.steps(2).await;
    // 0 to 48 KiB more than was used before the load, in turns, so that each round evicts other keys.
    let mut lost_versions = 0;
    for round in 0..40_u64 {
        let policy = ["allkeys-lru", "allkeys-random"][usize::from(round % 8 >= 4)];
        redis.command(&["CONFIG", "SET", "maxmemory-policy", policy]);
        let room = used + (round % 4) * (16 << 10);
        let before = redis.keys("*:version").len();
        redis.command(&["CONFIG", "SET", "maxmemory", &room.to_string()]);
        lost_versions += before.saturating_sub(redis.keys("*:version").len());
        watch.steps(1).await;
    }
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    watch.hits(1).await;
    assert_eq!(watch.finish().await, [""; 0]);
    let stats = redis.command(&["INFO", "stats"]);
    let evicted = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("evicted_keys:"))
        .and_then(|keys| keys.parse::<u64>().ok())
        .expect("a number");
    assert!(evicted > 100, "{evicted} keys were evicted");
    assert!(lost_versions > 0, "versions were among them");
    replicas.stop().await;
}

/// Expects a call to be refused with a time to retry after.
fn refused<T>(outcome: Result<T, Status>, reason: &str) {
    let Err(status) = outcome else {
        panic!("it isn't refused")
    };
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    let info = status.get_details_error_info().expect("a reason");
    assert_eq!(info.reason, reason);
}

fn database(app: &TestApp) -> &str {
    let DatabaseUrl::Postgres(url) = &app.config.database.url else {
        unreachable!("replicas share a PostgreSQL")
    };
    url
}

async fn rows(app: &TestApp) -> i64 {
    number(database(app), "SELECT count(*) FROM locations").await
}

/// Disables the time limit of idle transactions for writes, so that a test can hold them for longer.
async fn let_stand_still(app: &TestApp) {
    execute(
        database(app),
        "CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             PERFORM set_config('idle_in_transaction_session_timeout', '0', true);
             RETURN NEW;
         END $$;
         CREATE TRIGGER stand_still BEFORE INSERT ON locations
         FOR EACH ROW EXECUTE FUNCTION stand_still()",
    )
    .await;
}

/// The number of the cache's epoch.
async fn epoch(app: &TestApp) -> i64 {
    number(database(app), "SELECT epoch FROM cache_epoch").await
}

/// While Redis is suspended, one read of a replica is running, and many calls wait for the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_redis_costs_speed_only() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let (a, b) = (replicas.a.admin(), replicas.b.admin());
    created(&a, "old").await;
    for client in [&a, &b] {
        held(client, "run").await;
        held(client, "unwritten").await;
    }
    redis.suspend();
    let suspended = Instant::now();
    replicas.gates.list_read.arm();
    let listing = || {
        let client = a.clone();
        tokio::spawn(async move { list(&client, "run").await })
    };
    let first = listing();
    replicas.gates.list_read.held().await;
    let others: Vec<_> = (0..100).map(|_| listing()).collect();
    replicas.gates.list_read.release();
    for reader in others.into_iter().chain([first]) {
        let listed = reader.await.expect("no panic");
        assert_eq!(listed, (owned(&["old"]), AWAY.into()));
    }
    assert_eq!(replicas.gates.lists_at_once.load(Ordering::SeqCst), 1);
    created(&b, "new").await;
    for client in [&a, &b] {
        assert_eq!(
            list(client, "run").await,
            (owned(&["new", "old"]), AWAY.into())
        );
    }
    sleep_until(suspended + Duration::from_secs(3)).await;
    redis.resume();
    let resumed = Instant::now();
    for client in [&a, &b] {
        assert_eq!(held(client, "run").await, ["new", "old"]);
        held(client, "unwritten").await;
    }
    assert!(resumed.elapsed() < A_FEW_SECONDS);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_on_while_redis_is_away() {
    let mut redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let clients = [replicas.a.admin(), replicas.b.admin()];
    for client in &clients {
        held(client, "run").await;
    }
    redis.kill();
    let killed = Instant::now();
    created(&clients[0], "0").await;
    // A lease, and the time until the failure is noticed.
    assert!(killed.elapsed() < Duration::from_secs(3));
    let mut expected = vec!["0".to_owned()];
    let began = Instant::now();
    for (number, writer) in (1..20).zip(clients.iter().cycle()) {
        let name = number.to_string();
        created(writer, &name).await;
        expected.insert(0, name);
        for reader in &clients {
            assert_eq!(list(reader, "run").await, (expected.clone(), AWAY.into()));
        }
    }
    assert!(began.elapsed() < Duration::from_secs(5), "nothing waits");
    redis.restart();
    let back = Instant::now();
    for client in &clients {
        assert_eq!(held(client, "run").await, expected);
    }
    assert!(back.elapsed() < A_FEW_SECONDS);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_with_old_data_serves_none_of_it() {
    let mut redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let (a, b) = (replicas.a.admin(), replicas.b.admin());
    created(&a, "old").await;
    held(&b, "run").await;
    redis.command(&["SAVE"]);
    let entries = redis.keys("*ListLocations*");
    assert!(!entries.is_empty(), "the old list is in the snapshot");
    created(&a, "new").await;
    let before = epoch(&replicas.a).await;
    redis.restart();
    assert_eq!(redis.keys("*ListLocations*"), entries);
    for client in [&a, &b] {
        assert_eq!(list(client, "run").await.0, ["new", "old"]);
    }
    for client in [&a, &b] {
        assert_eq!(held(client, "run").await, ["new", "old"]);
    }
    assert!(epoch(&replicas.a).await > before);
    replicas.stop().await;
}

/// A replica that can't reach Redis suspends the cache for all, until it reaches Redis again.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_cut_off_from_redis_leaves_nothing_stale() {
    let redis = RedisServer::start();
    let connected = TestApp::spawn_at(Postgres::shared().database().await, redis.url()).await;
    let (proxy, url) = Proxy::to(&format!("{}/0", redis.url())).await;
    let mut config = connected.config.clone();
    config.redis.as_mut().expect("it has a Redis").url = url;
    let dir = Arc::new(TempDir::new().expect("a temporary folder"));
    let apart = TestApp::spawn_config(config, dir, |store, cache| (store, cache)).await;
    let (writer, reader) = (apart.admin(), connected.admin());
    created(&writer, "old").await;
    assert_eq!(held(&reader, "run").await, ["old"]);
    assert_eq!(held(&writer, "run").await, ["old"]);
    drop(proxy);
    created(&writer, "new").await;
    assert_eq!(list(&reader, "run").await.0, ["new", "old"]);
    assert_eq!(list(&writer, "run").await.0, ["new", "old"]);
    // The cache stays suspended meanwhile: it isn't activated and suspended in turns.
    let suspended = epoch(&connected).await;
    for number in 0..10 {
        created(&writer, &number.to_string()).await;
        sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(epoch(&connected).await, suspended);
    apart.stop().await;
    assert_eq!(held(&reader, "run").await.len(), 12);
    connected.stop().await;
}

/// A replica that reaches Redis may serve the old list until its lease ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_began_before_a_suspension_waits_for_it_too() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let writer = replicas.a.admin();
    held(&writer, "run").await;
    replicas.gates.begun.arm();
    // A creation with a request id closes its tags only after its statements.
    let writing = start(
        &writer,
        v1::CreateLocationRequest {
            request_id: Uuid::new_v4().to_string(),
            ..create(storage("new", "run"))
        },
    );
    replicas.gates.begun.held().await;
    let suspended = Instant::now();
    execute(
        database(&replicas.a),
        "UPDATE cache_epoch SET epoch = epoch + 1, state = 'suspended', incarnation = NULL,
             replication_ids = NULL, changed_at = clock_timestamp(), away_at = clock_timestamp(),
             written_by = pg_current_xact_id()",
    )
    .await;
    eventually("the writer's replica knows", || async {
        list(&writer, "run").await.1 == AWAY
    })
    .await;
    replicas.gates.begun.release();
    writing.await.expect("no panic").expect("acknowledged");
    assert!(suspended.elapsed() >= LEASE, "{:?}", suspended.elapsed());
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_reopen_is_lost_is_acknowledged_when_no_replica_serves_the_old_list() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let (writer, reader) = (replicas.a.admin(), replicas.b.admin());
    held(&reader, "run").await;
    replicas.gates.closed.arm();
    replicas.gates.committed.arm();
    let writing = start_create(&writer, "new");
    // The record of the write in flight is lost, and the reader caches the old list.
    replicas.gates.closed.held().await;
    redis.command(&["FLUSHALL"]);
    assert!(held(&reader, "run").await.is_empty());
    replicas.gates.closed.release();
    replicas.gates.committed.held().await;
    assert!(list(&reader, "run").await.0.is_empty(), "not acknowledged");
    redis.suspend();
    replicas.gates.committed.release();
    writing.await.expect("no panic").expect("acknowledged");
    assert_eq!(list(&reader, "run").await.0, ["new"]);
    redis.resume();
    assert_eq!(held(&reader, "run").await, ["new"]);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspensions_in_the_middle_of_load_make_nothing_stale() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let watch = Watch::start(&[replicas.a.admin(), replicas.b.admin()]);
    watch.steps(4).await;
    redis.suspend();
    sleep(Duration::from_secs(3)).await;
    redis.resume();
    watch.steps(20).await;
    assert_eq!(watch.finish().await, [""; 0]);
    replicas.stop().await;
}

async fn health(app: &TestApp) -> ServingStatus {
    let request = HealthCheckRequest::default();
    let health = HealthClient::new(app.channel.clone()).check(request).await;
    health.expect("it responds").into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_down_at_the_start_is_used_when_it_comes() {
    let mut redis = RedisServer::start();
    redis.kill();
    let replicas = Replicas::start(&redis).await;
    let (a, b) = (replicas.a.admin(), replicas.b.admin());
    assert_eq!(list(&b, "run").await, (Vec::new(), AWAY.into()));
    created(&a, "first").await;
    assert_eq!(list(&b, "run").await, (owned(&["first"]), AWAY.into()));
    eventually("it serves without", || async {
        health(&replicas.b).await == ServingStatus::Serving
    })
    .await;
    redis.restart();
    for client in [&a, &b] {
        assert_eq!(held(client, "run").await, ["first"]);
    }
    created(&a, "new").await;
    assert_eq!(list(&b, "run").await.0, ["new", "first"]);
    replicas.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_stopped_is_reported_and_used_again() {
    let (postgres, redis) = (Postgres::start(), RedisServer::start());
    let app = TestApp::spawn_at(postgres.database().await, redis.url()).await;
    let client = app.admin();
    created(&client, "old").await;
    held(&client, "run").await;
    let is = async |status| {
        eventually("its health is reported", || async {
            health(&app).await == status
        })
        .await;
    };
    is(ServingStatus::Serving).await;
    postgres.stop();
    refused(
        start_create(&client, "never").await.expect("no panic"),
        "DATABASE_UNAVAILABLE",
    );
    let uncached = client.clone().list_locations(of_run("other")).await;
    refused(uncached, "DATABASE_UNAVAILABLE");
    // Without the database no replica knows how long the cache is active.
    eventually("the lease runs out", || async {
        client.clone().list_locations(of_run("run")).await.is_err()
    })
    .await;
    let cached = client.clone().list_locations(of_run("run")).await;
    refused(cached, "DATABASE_UNAVAILABLE");
    is(ServingStatus::NotServing).await;
    postgres.start_again();
    is(ServingStatus::Serving).await;
    created(&client, "new").await;
    assert_eq!(list(&client, "run").await.0, ["new", "old"]);
    app.stop().await;
}

/// Two replicas: a process that the test kills or suspends, whose commits a proxy can hold, and one that
/// stays.
struct Victim {
    redis: RedisServer,
    proxy: Proxy,
    process: Process,
    client: Client,
    stays: TestApp,
    reader: Client,
    _home: Home,
}

impl Victim {
    /// Starts both replicas. Both have the list of the run, with the location `old`, in their local caches.
    async fn start() -> Self {
        let redis = RedisServer::start();
        let database = Postgres::shared().database().await;
        let stays = TestApp::spawn_at(database.clone(), redis.url()).await;
        let (proxy, url) = Proxy::to(&database).await;
        let home = Home::new();
        let mut command = home.command_on(&url, &redis.url());
        command.args(["--redis-key-prefix", "test:"]);
        let process = home.run(command).await.expect("it starts");
        let client = process.admin().await;
        let reader = stays.admin();
        created(&client, "old").await;
        assert_eq!(held(&reader, "run").await, ["old"]);
        assert_eq!(held(&client, "run").await, ["old"]);
        Self {
            redis,
            proxy,
            process,
            client,
            stays,
            reader,
            _home: home,
        }
    }

    /// The number of keys that record writes in flight on the run: 0 or 1.
    fn writes_in_flight(&self) -> usize {
        let keys = self.redis.keys("*{\\*,run,\\*}:writers");
        keys.len()
    }

    async fn lists(&self) -> (Vec<String>, String) {
        list(&self.reader, "run").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_between_close_and_commit_leaves_nothing_stale() {
    let victim = Victim::start().await;
    victim.proxy.holds.commit.arm();
    let writing = start_create(&victim.client, "new");
    victim.proxy.holds.commit.held().await;
    victim.process.signal("KILL");
    writing.await.expect("no panic").expect_err("it died");
    // The tags stay closed: the commit may still become visible.
    assert_eq!(victim.lists().await, (owned(&["old"]), CLOSED.into()));
    assert_eq!(victim.writes_in_flight(), 1);
    // It does become visible.
    victim.proxy.holds.commit.release();
    eventually("it is committed", || async {
        rows(&victim.stays).await == 2
    })
    .await;
    assert_eq!(
        victim.lists().await,
        (owned(&["new", "old"]), CLOSED.into())
    );
    // The other replica still writes and reads, also on the same tags.
    created(&victim.reader, "newer").await;
    assert_eq!(victim.lists().await.0, ["newer", "new", "old"]);
    held(&victim.reader, "other").await;
    victim.stays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_whose_commit_never_arrives_leaves_nothing_stale() {
    let victim = Victim::start().await;
    victim.proxy.holds.commit.arm();
    let writing = start_create(&victim.client, "never");
    victim.proxy.holds.commit.held().await;
    victim.process.signal("KILL");
    writing.await.expect("no panic").expect_err("it died");
    drop(victim.proxy);
    assert_eq!(
        list(&victim.reader, "run").await,
        (owned(&["old"]), CLOSED.into())
    );
    created(&victim.reader, "new").await;
    assert_eq!(list(&victim.reader, "run").await.0, ["new", "old"]);
    victim.stays.stop().await;
}

/// A replica is killed between a commit and its `reopen`, and the call is retried on the other one. If
/// `lost`, Redis loses the record of the write between its `close` and commit, and the other replica
/// caches the old list.
async fn killed_before_reopen(lost: bool) {
    let victim = Victim::start().await;
    let request = v1::CreateLocationRequest {
        request_id: Uuid::new_v4().to_string(),
        ..create(storage("new", "run"))
    };
    victim.proxy.holds.commit.arm();
    victim.proxy.holds.reply.arm();
    let writing = start(&victim.client, request.clone());
    victim.proxy.holds.commit.held().await;
    if lost {
        victim.redis.command(&["FLUSHALL"]);
        assert_eq!(held(&victim.reader, "run").await, ["old"]);
    }
    victim.proxy.holds.commit.release();
    victim.proxy.holds.reply.held().await;
    victim.process.signal("KILL");
    writing.await.expect("no panic").expect_err("it died");
    if !lost {
        assert_eq!(
            victim.lists().await,
            (owned(&["new", "old"]), CLOSED.into())
        );
    }
    let retried = start(&victim.reader, request).await.expect("no panic");
    retried.expect("the first call's result");
    assert_eq!(victim.lists().await.0, ["new", "old"]);
    assert_eq!(rows(&victim.stays).await, 2);
    victim.stays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_between_commit_and_reopen_leaves_nothing_stale() {
    Box::pin(killed_before_reopen(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_replica_had_committed_is_seen_once_a_retry_acknowledges_it() {
    Box::pin(killed_before_reopen(true)).await;
}

/// Takes as long as the deadline: half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_suspended_past_its_deadline_leaves_nothing_stale() {
    const DEADLINE: Duration = Duration::from_secs(31);
    let victim = Victim::start().await;
    let_stand_still(&victim.stays).await;
    victim.proxy.holds.commit.arm();
    let writing = start_create(&victim.client, "late");
    victim.proxy.holds.commit.held().await;
    let writer = number(
        database(&victim.stays),
        "SELECT pid::bigint FROM pg_stat_activity \
         WHERE datname = current_database() AND state = 'idle in transaction'",
    )
    .await;
    victim.process.signal("STOP");
    let closed = Instant::now();
    assert_eq!(victim.lists().await, (owned(&["old"]), CLOSED.into()));
    tokio::time::timeout(DEADLINE, async {
        while victim.lists().await.1 == CLOSED {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the tags open at the deadline");
    assert!(closed.elapsed() > Duration::from_secs(29), "and not before");
    assert_eq!(held(&victim.reader, "run").await, ["old"]);
    // The commit arrives only now, and is refused.
    victim.proxy.holds.commit.release();
    victim.process.signal("CONT");
    let outcome = writing.await.expect("no panic");
    outcome.expect_err("it took too long");
    eventually("the commit is refused", || async {
        let log = fs::read_to_string(Postgres::shared().log()).expect("a log");
        log.contains(&format!(
            "[{writer}] ERROR:  the write is too old to be committed"
        ))
    })
    .await;
    assert_eq!(rows(&victim.stays).await, 1);
    for client in [&victim.reader, &victim.client] {
        assert_eq!(list(client, "run").await.0, ["old"]);
    }
    created(&victim.reader, "new").await;
    for client in [&victim.reader, &victim.client] {
        assert_eq!(list(client, "run").await.0, ["new", "old"]);
    }
    victim.stays.stop().await;
}

/// A write that builds on an unacknowledged one acknowledges that one too. Redis loses the record of the
/// first, so a reader caches the old list meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_delete_closes_what_the_first_has_left() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let (mut first, mut second) = (replicas.a.admin(), replicas.b.admin());
    let location = first.create_location(create(storage("x", "run"))).await;
    held(&second, "run").await;
    replicas.gates.closed.arm();
    replicas.gates.committed.arm();
    let delete = v1::DeleteLocationRequest {
        id: location.expect("created").into_inner().id,
        allow_missing: true,
        ..v1::DeleteLocationRequest::default()
    };
    let request = delete.clone();
    let writer = tokio::spawn(async move { first.delete_location(request).await });
    replicas.gates.closed.held().await;
    redis.command(&["FLUSHALL"]);
    held(&second, "run").await;
    replicas.gates.closed.release();
    replicas.gates.committed.held().await;
    second.delete_location(delete).await.expect("acknowledged");
    let (after, status) = list(&second, "run").await;
    assert!(after.is_empty(), "stale: {after:?}, {status}");
    replicas.gates.committed.release();
    writer.await.expect("no panic").expect("deleted");
}

/// As with a delete, except that the row no longer has the run that the location was in.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_closes_what_the_move_before_it_has_left() {
    let redis = RedisServer::start();
    let replicas = Replicas::start(&redis).await;
    let (mut first, mut second) = (replicas.a.admin(), replicas.b.admin());
    let location = first.create_location(create(storage("x", "run"))).await;
    let id = location.expect("created").into_inner().id;
    let change = |name: &str, run: &str| v1::UpdateLocationRequest {
        location: Some(v1::Location {
            id: id.clone(),
            display_name: name.to_owned(),
            production_run_id: run.to_owned(),
            ..v1::Location::default()
        }),
        ..v1::UpdateLocationRequest::default()
    };
    held(&second, "run").await;
    replicas.gates.closed.arm();
    replicas.gates.committed.arm();
    let moving = change("", "there");
    let writer = tokio::spawn(async move { first.update_location(moving).await });
    replicas.gates.closed.held().await;
    redis.command(&["FLUSHALL"]);
    held(&second, "run").await;
    replicas.gates.closed.release();
    replicas.gates.committed.held().await;
    let renaming = second.update_location(change("y", "")).await;
    renaming.expect("acknowledged");
    let (after, status) = list(&second, "run").await;
    assert!(after.is_empty(), "stale: {after:?}, {status}");
    replicas.gates.committed.release();
    writer.await.expect("no panic").expect("moved");
    // Once it has reopened its tags, later writes needn't close them.
    held(&second, "run").await;
    let renaming = second.update_location(change("z", "")).await;
    renaming.expect("acknowledged");
    assert_eq!(list(&second, "run").await.1, LOCAL);
}
