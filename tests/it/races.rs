//! The races of the protocol, each held at the moment that matters. A test of what a protection is
//! for also runs without it, and must then see the anomaly: a check that can't fail proves nothing.

use std::sync::{Arc, atomic::Ordering};

use location_service::proto::location::v1;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};

use crate::{
    gates::{GatedStore, Gates, Uncontrolled, Without},
    harness::{Client, TestApp, cache_status, create, eventually, names, of_run, storage},
};

/// A service that can be held, and a client.
async fn gated(without: Without) -> (TestApp, Arc<Gates>, Client) {
    let gates = Arc::<Gates>::default();
    let app = TestApp::spawn_with(|store, cache| {
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

/// What `cache-status` says of a list, without `location-service; `.
async fn status(client: &Client, run: &str) -> String {
    let list = start_list(client, run)
        .await
        .expect("no panic")
        .expect("listed");
    let status = cache_status(&list).split_once("; ").expect("a parameter").1;
    status.to_owned()
}

/// A list that reads the database, then is held while a location is created, and only then fills
/// the cache; and what the next list says.
async fn fill_races_a_write(without: Without) -> Vec<String> {
    let (app, gates, client) = gated(without).await;
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

#[tokio::test]
async fn a_fill_that_a_write_overtook_is_refused() {
    assert_eq!(fill_races_a_write(Without::Nothing).await, ["new"]);
    assert!(
        fill_races_a_write(Without::VersionCheck).await.is_empty(),
        "control"
    );
}

/// A commit that fails after `close`, and whether the list that it closed is cached again.
async fn a_write_fails_after_close(without: Without) -> String {
    let (app, gates, client) = gated(without).await;
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

#[tokio::test]
async fn a_write_that_fails_after_close_opens_its_tags_again() {
    let status = a_write_fails_after_close(Without::Nothing).await;
    assert_eq!(status, "hit; detail=local");
    let status = a_write_fails_after_close(Without::Reopen).await;
    assert_eq!(status, "fwd=bypass; detail=write-in-flight", "control");
}

#[tokio::test]
async fn a_caller_who_leaves_after_close_doesnt_stop_the_write() {
    let (app, gates, client) = gated(Without::Nothing).await;
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
        status(&client, "run").await == "hit; detail=local"
    })
    .await;
    app.stop().await;
}

/// A writer that dies after its commit; what the database has and what a list says then.
async fn a_writer_dies_before_reopen(without: Without) -> (Vec<String>, Vec<String>) {
    let (app, gates, client) = gated(without).await;
    list(&client, "run").await;
    gates.die_before_reopen.store(true, Ordering::SeqCst);
    let died = start_create(&client, "new", "run").await.expect("no panic");
    assert_eq!(died.expect_err("it died").code(), Code::Internal);
    let cached = list(&client, "run").await;
    let mut past = Request::new(of_run("run"));
    past.metadata_mut()
        .insert("cache-control", "no-cache".parse().expect("ASCII"));
    let stored = client.clone().list_locations(past).await.expect("listed");
    let stored = names(&stored).into_iter().map(str::to_owned).collect();
    app.stop().await;
    (stored, cached)
}

#[tokio::test]
async fn a_writer_that_dies_between_commit_and_reopen_leaves_nothing_stale() {
    let (stored, cached) = a_writer_dies_before_reopen(Without::Nothing).await;
    assert_eq!(stored, ["new"]);
    assert_eq!(cached, stored);
    let (stored, cached) = a_writer_dies_before_reopen(Without::Close).await;
    assert_eq!(stored, ["new"]);
    assert!(cached.is_empty(), "control");
}

#[tokio::test]
async fn a_writer_that_dies_between_close_and_commit_leaves_its_tags_closed() {
    let (app, gates, client) = gated(Without::Nothing).await;
    created(&client, "old", "run").await;
    list(&client, "run").await;
    gates.die_before_commit.store(true, Ordering::SeqCst);
    let died = start_create(&client, "never", "run")
        .await
        .expect("no panic");
    assert_eq!(died.expect_err("it died").code(), Code::Internal);
    assert_eq!(list(&client, "run").await, ["old"]);
    // Nobody can tell whether it is still to commit: the deadline settles it, which the unit tests
    // of the engine show.
    assert_eq!(
        status(&client, "run").await,
        "fwd=bypass; detail=write-in-flight"
    );
    app.stop().await;
}

/// Two writers on one tag. The first is held between its commit and `reopen`, the second is
/// acknowledged meanwhile; what a list says, after another reader has seen the first one's write.
async fn two_writers(without: Without) -> (Vec<String>, Vec<String>) {
    let (app, gates, client) = gated(without).await;
    gates.closed.arm();
    gates.committed.arm();
    let first = start_create(&client, "first", "run");
    gates.closed.held().await;
    // The tag is closed, and a reader comes.
    assert!(list(&client, "run").await.is_empty());
    gates.closed.release();
    gates.committed.held().await;
    let mut past = Request::new(of_run("run"));
    past.metadata_mut()
        .insert("cache-control", "no-cache".parse().expect("ASCII"));
    let mut elsewhere = of_run("run");
    elsewhere.page_size = 7;
    let seen = client
        .clone()
        .list_locations(elsewhere)
        .await
        .expect("listed");
    let seen = names(&seen).into_iter().map(str::to_owned).collect();
    let then = list(&client, "run").await;
    gates.committed.release();
    first.await.expect("no panic").expect("created");
    assert_eq!(list(&client, "run").await, ["first"], "acknowledged");
    app.stop().await;
    (seen, then)
}

#[tokio::test]
async fn what_a_reader_has_seen_is_seen_by_later_ones() {
    let (seen, then) = two_writers(Without::Nothing).await;
    assert_eq!(seen, ["first"]);
    assert_eq!(then, seen);
    let (seen, then) = two_writers(Without::Writers).await;
    assert_eq!(seen, ["first"]);
    assert!(then.is_empty(), "control");
}
