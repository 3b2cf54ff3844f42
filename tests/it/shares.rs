//! Fair shares of the database among callers, and refusals under load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use location_service::config::DatabaseUrl;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    gates::{GatedStore, Gates},
    harness::{self, Client, Pair, TestApp, cache_status, config_on, create, of_run, storage},
};

/// The maximum number of reads, and of writes, of one caller that run or wait.
const MAX_CALLS_OF_CALLER: usize = 1_024;

/// The service with the default shares, on a store with gates.
async fn spawn(pair: Pair) -> (TestApp, Arc<Gates>) {
    let gates = Arc::new(Gates::default());
    let dir = TempDir::new().expect("a temporary folder");
    let mut config = config_on(pair, &dir).await;
    config.server.max_calls_per_caller = None;
    let wrapped = Arc::clone(&gates);
    let app = TestApp::spawn_config(config, dir.into(), |store, cache| {
        let store = GatedStore {
            inner: store,
            gates: wrapped,
        };
        (Arc::new(store), cache)
    })
    .await;
    (app, gates)
}

/// Checks that a call was refused as the contract says.
fn assert_refused(status: &Status, reason: &str, limit: &str, value: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_error_info().expect("it has ErrorInfo");
    assert_eq!(info.reason, reason, "{status:?}");
    assert_eq!(info.metadata["limit"], limit, "{status:?}");
    assert_eq!(info.metadata["value"], value, "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    assert_eq!(pushback.expect("a pushback"), "1000", "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_thousands_of_writes_delays_neither_hits_nor_other_writes() {
    let (app, gates) = spawn(Pair::Embedded).await;
    let (mut ann, mut bob) = (app.user("ann"), app.user_on_new_connection("bob").await);
    bob.list_locations(of_run("")).await.expect("a miss");

    gates.begun.arm();
    let first = tokio::spawn(async move { ann.create_location(create(storage("a", ""))).await });
    gates.begun.held().await;
    let (done, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut flood = Vec::new();
    for _ in 0..5 {
        let client = app.user_on_new_connection("ann").await;
        flood.extend((0..220).map(|_| {
            let (mut client, done) = (client.clone(), Arc::clone(&done));
            let refused = Arc::clone(&refused);
            tokio::spawn(async move {
                let created = client.create_location(create(storage("a", ""))).await;
                if let Err(status) = created {
                    let limit = "writes of a caller in progress";
                    assert_refused(&status, "CALLER_LIMIT", limit, "1024");
                    refused.fetch_add(1, Ordering::SeqCst);
                }
                done.fetch_add(1, Ordering::SeqCst);
            })
        }));
    }
    let excess = flood.len() + 1 - MAX_CALLS_OF_CALLER;
    harness::eventually("the excess is refused", || async {
        refused.load(Ordering::SeqCst) == excess
    })
    .await;

    let started = Instant::now();
    let hit = bob.list_locations(of_run("")).await.expect("a hit");
    assert!(cache_status(&hit).contains("hit"));
    let miss = bob.list_locations(of_run("other")).await.expect("a miss");
    assert!(cache_status(&miss).contains("fwd=miss"));
    assert!(started.elapsed() < Duration::from_secs(2));
    let before = done.load(Ordering::SeqCst);
    let mut write = Box::pin(bob.create_location(create(storage("b", ""))));
    // Wait until it is in the queue.
    assert!(
        tokio::time::timeout(Duration::from_millis(300), &mut write)
            .await
            .is_err(),
        "the only place is taken"
    );
    gates.begun.release();
    write.await.expect("created");
    let others = done.load(Ordering::SeqCst) - before;
    assert!(others < 100, "{others} writes of another caller came first");
    first.await.expect("no panic").expect("created");
    for call in flood {
        call.abort();
        if let Err(error) = call.await {
            assert!(error.is_cancelled(), "{error}");
        }
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_not_an_unavailable_database() {
    let (app, gates) = spawn(Pair::Embedded).await;
    let (mut ann, bob) = (app.user("ann"), app.user("bob"));
    gates.begun.arm();
    let holder = {
        let mut ann = ann.clone();
        tokio::spawn(async move { ann.create_location(create(storage("a", ""))).await })
    };
    gates.begun.held().await;
    let write = |mut client: Client| async move {
        let created = client.create_location(create(storage("b", ""))).await;
        created.expect_err("no place is free")
    };
    // A deadline that ends first has its own code.
    let mut request = Request::new(create(storage("c", "")));
    request.set_timeout(Duration::from_millis(200));
    let late = ann.create_location(request).await.expect_err("too late");
    assert!(
        matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{late:?}"
    );
    let (own, other) = tokio::join!(write(ann), write(bob));
    assert_refused(
        &own,
        "CALLER_LIMIT",
        "writes of a caller that use the database",
        "1",
    );
    assert_refused(&other, "OVERLOADED", "writes at once", "1");
    gates.begun.release();
    holder.await.expect("no panic").expect("created");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_reads_the_database_with_its_share_of_the_connections() {
    // A quarter of 4 connections, and of 8 for reads.
    for (pair, share) in [(Pair::Redis, 1), (Pair::Embedded, 2)] {
        let (app, gates) = spawn(pair).await;
        let calls = (0..60).map(|number| {
            let mut client = app.user("ann");
            async move {
                let run = number.to_string();
                client.list_locations(of_run(&run)).await.expect("a list");
            }
        });
        join_all(calls).await;
        let at_once = gates.lists_at_once.load(Ordering::SeqCst);
        assert!((1..=share).contains(&at_once), "{pair:?}: {at_once}");
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_with_a_query_has_a_time_limit() {
    let (app, _) = spawn(Pair::Redis).await;
    let DatabaseUrl::Postgres(url) = &app.config.database.url else {
        panic!("a pair with PostgreSQL");
    };
    let mut locker = PgConnection::connect(url).await.expect("a connection");
    let lock = "BEGIN; LOCK TABLE locations IN ACCESS EXCLUSIVE MODE";
    locker.execute(sqlx::raw_sql(lock)).await.expect("a lock");
    let mut request = of_run("run");
    request.query = "quay".to_owned();
    let started = Instant::now();
    let list = app.user("ann").list_locations(request).await;
    let elapsed = started.elapsed();
    let status = list.expect_err("too slow");
    let limit = "milliseconds of a list with query";
    assert_refused(&status, "OVERLOADED", limit, "2000");
    assert!(status.message().contains("narrow it"), "{status:?}");
    let expected = Duration::from_secs(2)..Duration::from_secs(4);
    assert!(expected.contains(&elapsed), "{elapsed:?}");
    locker.close().await.expect("closed");
    app.stop().await;
}
