//! Two replicas on one database and one cache: what one acknowledges, the other's next read has.

use std::{collections::BTreeSet, sync::Arc};

use location_service::proto::location::v1;
use tonic::{Code, Response};
use uuid::Uuid;

use crate::{
    gates::{Uncontrolled, Without},
    harness::{Client, Pair, TestApp, cache_status, create, names, of_run, storage},
    watch::Watch,
};

/// Makes a test of each function for each pair of engines that replicas can share.
macro_rules! on_shared_pairs {
    ($($test:ident)*) => {
        on_shared_pairs! { @pair redis Redis $($test)* }
        on_shared_pairs! { @pair cluster Cluster $($test)* }
    };
    (@pair $module:ident $pair:ident $($test:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test(crate::harness::Pair::$pair).await;
                }
            )*
        }
    };
}

on_shared_pairs! {
    a_write_on_one_replica_is_in_the_next_read_of_the_other
    a_write_leaves_the_lists_that_it_cant_change_in_the_other_replica
    page_tokens_work_on_every_replica
    a_request_id_is_known_to_every_replica
    no_list_is_stale_while_both_replicas_write
}

async fn two(pair: Pair) -> (TestApp, TestApp) {
    let a = TestApp::spawn_on(pair).await;
    let b = a.replica().await;
    (a, b)
}

const LOCAL: &str = "location-service; hit; detail=local";

fn of_report() -> v1::ListLocationReportsRequest {
    v1::ListLocationReportsRequest::default()
}

/// The responses of a replica that depend on a location.
#[derive(Debug, PartialEq, Eq)]
struct View {
    here: Vec<String>,
    there: Vec<String>,
    all: Vec<String>,
    by_id: Option<String>,
    reported: i64,
}

impl View {
    /// Reads the view, and returns which of the responses came from the replica's own cache.
    async fn read(client: &Client, id: &str) -> (Self, Vec<bool>) {
        let mut local = Vec::new();
        let mut lists = Vec::new();
        for request in [
            of_run("here"),
            of_run("there"),
            v1::ListLocationsRequest::default(),
        ] {
            let list = client.clone().list_locations(request).await;
            let list = list.expect("listed");
            local.push(cache_status(&list) == LOCAL);
            lists.push(names(&list).into_iter().map(str::to_owned).collect());
        }
        let request = v1::GetLocationRequest { id: id.to_owned() };
        let by_id = match client.clone().get_location(request).await {
            Ok(got) => Some(got),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status:?}");
                None
            }
        };
        // Only existing locations are cached.
        local.push(by_id.as_ref().is_none_or(|got| cache_status(got) == LOCAL));
        let report = client.clone().list_location_reports(of_report()).await;
        let report = report.expect("reported");
        local.push(cache_status(&report) == LOCAL);
        let [here, there, all] = <[_; 3]>::try_from(lists).expect("three");
        let view = Self {
            here,
            there,
            all,
            by_id: by_id.map(|got| got.into_inner().display_name),
            reported: reports_of(&report),
        };
        (view, local)
    }

    /// Reads it until the replica holds all of it itself.
    async fn held(client: &Client, id: &str) -> Self {
        for _ in 0..4 {
            let (view, local) = Self::read(client, id).await;
            if local.iter().all(|&local| local) {
                return view;
            }
        }
        panic!("a view without writes is cached locally after a few reads");
    }
}

fn reports_of(response: &Response<v1::ListLocationReportsResponse>) -> i64 {
    let reports = &response.get_ref().reports;
    reports.iter().map(|report| report.location_count).sum()
}

async fn a_write_on_one_replica_is_in_the_next_read_of_the_other(pair: Pair) {
    let (a, b) = two(pair).await;
    let (mut writer, reader) = (a.admin(), b.admin());
    let id = Uuid::now_v7().to_string();
    let view = |here: &[&str], there: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let all: Vec<String> = owned(&[here, there].concat());
        View {
            here: owned(here),
            there: owned(there),
            by_id: all.first().cloned(),
            reported: i64::try_from(all.len()).expect("few"),
            all,
        }
    };
    // By its tags, each write invalidates every response except the list of a run that it doesn't touch.
    let closes = |here: bool, there: bool| vec![!here, !there, false, false, false];

    assert_eq!(View::held(&reader, &id).await, view(&[], &[]));
    let request = v1::CreateLocationRequest {
        location_id: id.clone(),
        ..create(storage("new", "here"))
    };
    writer.create_location(request).await.expect("created");
    let created = (view(&["new"], &[]), closes(true, false));
    assert_eq!(View::read(&reader, &id).await, created, "create");

    View::held(&reader, &id).await;
    let mut update = v1::UpdateLocationRequest {
        location: Some(v1::Location {
            id: id.clone(),
            display_name: "renamed".to_owned(),
            ..v1::Location::default()
        }),
        ..v1::UpdateLocationRequest::default()
    };
    writer
        .update_location(update.clone())
        .await
        .expect("updated");
    let updated = (view(&["renamed"], &[]), closes(true, false));
    assert_eq!(View::read(&reader, &id).await, updated, "update");

    View::held(&reader, &id).await;
    if let Some(location) = &mut update.location {
        "there".clone_into(&mut location.production_run_id);
    }
    writer.update_location(update).await.expect("moved");
    let moved = (view(&[], &["renamed"]), closes(true, true));
    assert_eq!(View::read(&reader, &id).await, moved, "move");

    View::held(&reader, &id).await;
    let delete = v1::DeleteLocationRequest {
        id: id.clone(),
        ..v1::DeleteLocationRequest::default()
    };
    writer.delete_location(delete).await.expect("deleted");
    let (deleted, local) = View::read(&reader, &id).await;
    assert_eq!(deleted, view(&[], &[]), "delete");
    assert_eq!(local, [true, false, false, true, false], "delete");
    a.stop().await;
    b.stop().await;
}

async fn a_write_leaves_the_lists_that_it_cant_change_in_the_other_replica(pair: Pair) {
    let (a, b) = two(pair).await;
    let reader = b.admin();
    let others = [
        of_run("other"),
        v1::ListLocationsRequest {
            r#type: v1::LocationType::Delivery.into(),
            ..v1::ListLocationsRequest::default()
        },
        v1::ListLocationsRequest {
            owner_id: "another".to_owned(),
            ..v1::ListLocationsRequest::default()
        },
    ];
    let mut statuses = Vec::new();
    for read in 0..3 {
        if read == 2 {
            let created = a
                .admin()
                .create_location(create(storage("new", "run")))
                .await;
            created.expect("created");
        }
        for other in &others {
            let list = reader.clone().list_locations(other.clone()).await;
            statuses.push(cache_status(&list.expect("listed")).to_owned());
        }
    }
    assert_eq!(statuses[3..], [LOCAL; 6], "{statuses:?}");
    a.stop().await;
    b.stop().await;
}

async fn page_tokens_work_on_every_replica(pair: Pair) {
    let (a, b) = two(pair).await;
    for number in 0..5 {
        let location = storage(&format!("location {number}"), "run");
        let created = a.admin().create_location(create(location)).await;
        created.expect("created");
    }
    let mut request = v1::ListLocationsRequest {
        page_size: 2,
        order_by: "display_name".to_owned(),
        ..of_run("run")
    };
    let mut found = Vec::new();
    for mut replica in [a.admin(), b.admin(), a.admin()] {
        let page = replica.list_locations(request.clone()).await;
        let page = page.expect("the other's token is taken");
        found.extend(names(&page).into_iter().map(str::to_owned));
        request.page_token = page.into_inner().next_page_token;
    }
    assert_eq!(request.page_token, "", "the last page");
    let all: Vec<_> = (0..5).map(|number| format!("location {number}")).collect();
    assert_eq!(found, all);
    a.stop().await;
    b.stop().await;
}

async fn a_request_id_is_known_to_every_replica(pair: Pair) {
    let (a, b) = two(pair).await;
    let request = v1::CreateLocationRequest {
        request_id: Uuid::new_v4().to_string(),
        ..create(storage("once", "run"))
    };
    let first = a.admin().create_location(request.clone()).await;
    let retried = b.admin().create_location(request.clone()).await;
    assert_eq!(
        first.expect("created").into_inner(),
        retried.expect("the first result").into_inner()
    );
    // Both at once: one creates, the other waits for it.
    let request = v1::CreateLocationRequest {
        request_id: Uuid::new_v4().to_string(),
        ..request
    };
    let (mut on_a, mut on_b) = (a.admin(), b.admin());
    let (one, other) = tokio::join!(
        on_a.create_location(request.clone()),
        on_b.create_location(request)
    );
    assert_eq!(
        one.expect("created").into_inner(),
        other.expect("created").into_inner()
    );
    for replica in [a.admin(), b.admin()] {
        let list = replica.clone().list_locations(of_run("run")).await;
        assert_eq!(names(&list.expect("listed")), ["once", "once"]);
    }
    a.stop().await;
    b.stop().await;
}

/// Writes and reads on two replicas, and returns the stale lists.
async fn load(pair: Pair, without: Without) -> BTreeSet<String> {
    let a = TestApp::spawn_on(pair).await;
    let b = a
        .replica_with(|store, inner| (store, Arc::new(Uncontrolled { inner, without })))
        .await;
    let watch = Watch::start(&[a.admin(), b.admin()]);
    watch
        .steps(if without == Without::Nothing { 100 } else { 20 })
        .await;
    watch.hits(1).await;
    let stale = watch.finish().await;
    a.stop().await;
    b.stop().await;
    stale.into_iter().collect()
}

async fn no_list_is_stale_while_both_replicas_write(pair: Pair) {
    let none = BTreeSet::new();
    assert_eq!(Box::pin(load(pair, Without::Nothing)).await, none);
    let control = Box::pin(load(pair, Without::Invalidation)).await;
    assert_ne!(control, none, "control");
}
