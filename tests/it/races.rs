//! The races of the protocol, with one call held at the decisive step. The test of a protection also
//! runs without it (the control), and must then see the anomaly: a check that can't fail proves nothing.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use location_service::proto::location::v1;
use tokio::{task::JoinHandle, time::sleep};
use tonic::{Code, Response, Status};

use crate::{
    gates::{GatedStore, Gates, Uncontrolled, Without},
    harness::{
        Client, Pair, TestApp, cache_status, create, eventually, names, of_run, storage, with,
    },
};

on_every_pair! { pair:
    a_fill_that_a_write_overtook_is_refused
    a_write_that_fails_after_close_opens_its_tags_again
    a_caller_who_leaves_before_the_commit_leaves_no_tags_closed
    a_caller_who_leaves_after_close_doesnt_stop_the_write
    a_writer_that_dies_between_commit_and_reopen_leaves_nothing_stale
    a_writer_that_dies_between_close_and_commit_leaves_its_tags_closed
    what_a_reader_has_seen_is_seen_by_later_ones
    a_tag_stays_closed_until_the_last_of_its_writers_is_done
    a_location_that_moves_is_in_one_run_only
    a_list_after_an_acknowledged_write_joins_no_earlier_read
}

/// A service that can be held, and a client.
async fn gated(pair: Pair, without: Without) -> (TestApp, Arc<Gates>, Client) {
    let gates = Arc::<Gates>::default();
    let app = TestApp::spawn_with(pair, |store, cache| {
        let gates = Arc::clone(&gates);
        (
            Arc::new(GatedStore {
                inner: store,
                gates,
            }),
            Arc::new(Uncontrolled {
                inner: cache,
                without,
            }),
        )
    })
    .await;
    let client = app.admin();
    (app, gates, client)
}

type Listing = JoinHandle<Result<Response<v1::ListLocationsResponse>, Status>>;
type Writing = JoinHandle<Result<Response<v1::Location>, Status>>;

fn start_list(client: &Client, run: &str) -> Listing {
    let (mut client, request) = (client.clone(), of_run(run));
    tokio::spawn(async move { client.list_locations(request).await })
}

fn start_create(client: &Client, name: &str, run: &str) -> Writing {
    let (mut client, request) = (client.clone(), create(storage(name, run)));
    tokio::spawn(async move { client.create_location(request).await })
}

async fn created(client: &Client, name: &str, run: &str) -> v1::Location {
    let created = start_create(client, name, run).await.expect("no panic");
    created.expect("created").into_inner()
}

async fn list(client: &Client, run: &str) -> Vec<String> {
    let list = start_list(client, run).await.expect("no panic");
    names(&list.expect("listed"))
        .into_iter()
        .map(str::to_owned)
        .collect()
}

/// The `cache-status` of a list, without `location-service; ` and `; detail=local`.
async fn status(client: &Client, run: &str) -> String {
    let list = start_list(client, run)
        .await
        .expect("no panic")
        .expect("listed");
    let status = cache_status(&list).split_once("; ").expect("a parameter").1;
    status
        .split("; detail=local")
        .next()
        .expect("one")
        .to_owned()
}

/// Holds a list between its read of the database and its fill while a location is created. Returns the
/// next list.
async fn fill_races_a_write(pair: Pair, without: Without) -> Vec<String> {
    let (app, gates, client) = gated(pair, without).await;
    gates.list_read.arm();
    let reader = start_list(&client, "run");
    gates.list_read.held().await;
    created(&client, "new", "run").await;
    gates.list_read.release();
    let before = reader.await.expect("no panic").expect("listed");
    assert!(names(&before).is_empty(), "it began before the write");
    let after = list(&client, "run").await;
    app.stop().await;
    after
}

async fn a_fill_that_a_write_overtook_is_refused(pair: Pair) {
    assert_eq!(fill_races_a_write(pair, Without::Nothing).await, ["new"]);
    assert!(
        fill_races_a_write(pair, Without::VersionCheck)
            .await
            .is_empty(),
        "control"
    );
}

/// Makes a commit fail after `close`. Returns the cache status of a list that it closed.
async fn a_write_fails_after_close(pair: Pair, without: Without) -> String {
    let (app, gates, client) = gated(pair, without).await;
    created(&client, "old", "run").await;
    list(&client, "run").await;
    gates.fail_commit.store(true, Ordering::SeqCst);
    let failed = start_create(&client, "never", "run")
        .await
        .expect("no panic");
    assert_eq!(failed.expect_err("it fails").code(), Code::Unavailable);
    assert_eq!(list(&client, "run").await, ["old"]);
    let status = status(&client, "run").await;
    app.stop().await;
    status
}

async fn a_write_that_fails_after_close_opens_its_tags_again(pair: Pair) {
    let status = a_write_fails_after_close(pair, Without::Nothing).await;
    assert_eq!(status, "hit");
    let status = a_write_fails_after_close(pair, Without::Reopen).await;
    assert_eq!(status, "fwd=bypass; detail=write-in-flight", "control");
}

/// A creation's tags are closed while it inserts. Returns the list's cache status when its caller has
/// left by then.
async fn a_caller_leaves_before_the_commit(pair: Pair, without: Without) -> String {
    let (app, gates, client) = gated(pair, without).await;
    list(&client, "run").await;
    gates.begun.arm();
    let writer = start_create(&client, "never", "run");
    gates.begun.held().await;
    eventually("the tags are closed", || async {
        status(&client, "run").await == "fwd=bypass; detail=write-in-flight"
    })
    .await;
    writer.abort();
    assert!(writer.await.expect_err("it left").is_cancelled());
    let mut seen = String::new();
    for _ in 0..100 {
        seen = status(&client, "run").await;
        if seen == "hit" {
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert!(list(&client, "run").await.is_empty());
    app.stop().await;
    seen
}

async fn a_caller_who_leaves_before_the_commit_leaves_no_tags_closed(pair: Pair) {
    let status = a_caller_leaves_before_the_commit(pair, Without::Nothing).await;
    assert_eq!(status, "hit");
    let status = a_caller_leaves_before_the_commit(pair, Without::Reopen).await;
    assert_eq!(status, "fwd=bypass; detail=write-in-flight", "control");
}

async fn a_caller_who_leaves_after_close_doesnt_stop_the_write(pair: Pair) {
    let (app, gates, client) = gated(pair, Without::Nothing).await;
    list(&client, "run").await;
    gates.closed.arm();
    let writer = start_create(&client, "new", "run");
    gates.closed.held().await;
    writer.abort();
    assert!(writer.await.expect_err("it left").is_cancelled());
    assert_eq!(
        status(&client, "run").await,
        "fwd=bypass; detail=write-in-flight"
    );
    assert!(
        list(&client, "run").await.is_empty(),
        "nothing is committed"
    );
    gates.closed.release();
    eventually("the write runs to its end", || async {
        list(&client, "run").await == ["new"]
    })
    .await;
    eventually("the tags open again", || async {
        status(&client, "run").await == "hit"
    })
    .await;
    app.stop().await;
}

/// Makes a writer die after its commit. Returns the list in the database, and the list that a read gets.
async fn a_writer_dies_before_reopen(pair: Pair, without: Without) -> (Vec<String>, Vec<String>) {
    let (app, gates, client) = gated(pair, without).await;
    list(&client, "run").await;
    gates.die_before_reopen.store(true, Ordering::SeqCst);
    let died = start_create(&client, "new", "run").await.expect("no panic");
    assert_eq!(died.expect_err("it died").code(), Code::Internal);
    let cached = list(&client, "run").await;
    let stored = list_from_database(&client, "run").await;
    app.stop().await;
    (stored, cached)
}

async fn a_writer_that_dies_between_commit_and_reopen_leaves_nothing_stale(pair: Pair) {
    let (stored, cached) = a_writer_dies_before_reopen(pair, Without::Nothing).await;
    assert_eq!(stored, ["new"]);
    assert_eq!(cached, stored);
    let (stored, cached) = a_writer_dies_before_reopen(pair, Without::Close).await;
    assert_eq!(stored, ["new"]);
    assert!(cached.is_empty(), "control");
}

async fn a_writer_that_dies_between_close_and_commit_leaves_its_tags_closed(pair: Pair) {
    let (app, gates, client) = gated(pair, Without::Nothing).await;
    created(&client, "old", "run").await;
    list(&client, "run").await;
    gates.die_before_commit.store(true, Ordering::SeqCst);
    let died = start_create(&client, "never", "run")
        .await
        .expect("no panic");
    assert_eq!(died.expect_err("it died").code(), Code::Internal);
    assert_eq!(list(&client, "run").await, ["old"]);
    // The commit may still become visible, so the tags stay closed until the deadline, which the
    // engines' unit tests cover.
    assert_eq!(
        status(&client, "run").await,
        "fwd=bypass; detail=write-in-flight"
    );
    app.stop().await;
}

/// Holds a write between its commit and `reopen`. Returns the list of a reader that sees it, and that of
/// a later reader.
async fn a_write_is_seen_before_its_acknowledgement(
    pair: Pair,
    without: Without,
) -> (Vec<String>, Vec<String>) {
    let (app, gates, client) = gated(pair, without).await;
    gates.closed.arm();
    gates.committed.arm();
    let writer = start_create(&client, "new", "run");
    gates.closed.held().await;
    assert!(
        list(&client, "run").await.is_empty(),
        "nothing is committed"
    );
    gates.closed.release();
    gates.committed.held().await;
    let seen = list_from_database(&client, "run").await;
    let then = list(&client, "run").await;
    gates.committed.release();
    writer.await.expect("no panic").expect("created");
    assert_eq!(list(&client, "run").await, ["new"], "acknowledged");
    app.stop().await;
    (seen, then)
}

async fn what_a_reader_has_seen_is_seen_by_later_ones(pair: Pair) {
    let (seen, then) = a_write_is_seen_before_its_acknowledgement(pair, Without::Nothing).await;
    assert_eq!(seen, ["new"]);
    assert_eq!(then, seen);
    let (seen, then) = a_write_is_seen_before_its_acknowledgement(pair, Without::Writers).await;
    assert_eq!(seen, ["new"]);
    assert!(then.is_empty(), "control");
}

/// Acknowledges a second write on a tag while the first is held after its commit. Returns the cache
/// status of a list meanwhile.
async fn two_writers(pair: Pair, without: Without) -> String {
    let (app, gates, client) = gated(pair, without).await;
    gates.committed.arm();
    let first = start_create(&client, "first", "run");
    gates.committed.held().await;
    created(&client, "second", "run").await;
    assert_eq!(list(&client, "run").await, ["second", "first"]);
    let meanwhile = status(&client, "run").await;
    gates.committed.release();
    first.await.expect("no panic").expect("created");
    list(&client, "run").await;
    assert_eq!(status(&client, "run").await, "hit");
    app.stop().await;
    meanwhile
}

async fn a_tag_stays_closed_until_the_last_of_its_writers_is_done(pair: Pair) {
    let status = two_writers(pair, Without::Nothing).await;
    assert_eq!(status, "fwd=bypass; detail=write-in-flight");
    assert_eq!(two_writers(pair, Without::Writers).await, "hit", "control");
}

/// Holds a list of the old run between its read of the database and its fill while a location moves to
/// another run. Returns the lists of both runs after it.
async fn a_location_moves(pair: Pair, without: Without) -> (Vec<String>, Vec<String>) {
    let (app, gates, mut client) = gated(pair, without).await;
    let location = created(&client, "mover", "old").await;
    list(&client, "new").await;
    gates.list_read.arm();
    let reader = start_list(&client, "old");
    gates.list_read.held().await;
    let moved = v1::UpdateLocationRequest {
        location: Some(v1::Location {
            id: location.id,
            production_run_id: "new".to_owned(),
            ..v1::Location::default()
        }),
        ..v1::UpdateLocationRequest::default()
    };
    client.update_location(moved).await.expect("moved");
    gates.list_read.release();
    reader.await.expect("no panic").expect("listed");
    let lists = (list(&client, "old").await, list(&client, "new").await);
    app.stop().await;
    lists
}

async fn a_location_that_moves_is_in_one_run_only(pair: Pair) {
    let (old, new) = a_location_moves(pair, Without::Nothing).await;
    assert!(old.is_empty());
    assert_eq!(new, ["mover"]);
    let (old, new) = a_location_moves(pair, Without::VersionCheck).await;
    assert_eq!(old, ["mover"], "control");
    assert_eq!(new, ["mover"]);
}

/// The unit tests of `NextFlight` show that ordinary single-flight fails this.
async fn a_list_after_an_acknowledged_write_joins_no_earlier_read(pair: Pair) {
    let (app, gates, client) = gated(pair, Without::Nothing).await;
    gates.list_read.arm();
    let early = start_list(&client, "run");
    gates.list_read.held().await;
    created(&client, "new", "run").await;
    let late: Vec<_> = (0..20).map(|_| start_list(&client, "run")).collect();
    gates.list_read.release();
    let early = early.await.expect("no panic").expect("listed");
    assert!(names(&early).is_empty(), "it began before the write");
    for late in late {
        let late = late.await.expect("no panic").expect("listed");
        assert_eq!(names(&late), ["new"]);
    }
    app.stop().await;
}

/// Lists from the database, with another page size so that the cached entry stays as it is.
async fn list_from_database(client: &Client, run: &str) -> Vec<String> {
    let list = v1::ListLocationsRequest {
        page_size: 1_000,
        ..of_run(run)
    };
    let request = with(list, "cache-control", "no-cache");
    let list = client
        .clone()
        .list_locations(request)
        .await
        .expect("listed");
    names(&list).into_iter().map(str::to_owned).collect()
}
