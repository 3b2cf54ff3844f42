//! `BatchUpdateLocations` and `BatchDeleteLocations`.

use location_service::proto::location::v1;
use tonic::Code;

use super::{
    bad_fields, batch, count, delete, full, get, is_hit, metadata, read, reason, update, uuid,
};
use crate::harness::{Client, TestApp, create, names, of_run, storage};

on_every_pair! { app:
    a_batch_is_updated_in_order_or_not_at_all
    a_batch_is_deleted_in_order_or_not_at_all
    every_request_that_fails_for_one_cause_is_named
    batches_of_another_owner_are_not_found
    a_batch_may_create_update_and_move
    validate_only_changes_nothing
    a_moved_batch_invalidates_its_runs_and_no_other
    a_deleted_batch_invalidates_its_run_and_no_other
    a_response_that_clients_refuse_is_refused_before_the_write
}

fn updates(
    requests: impl IntoIterator<Item = v1::UpdateLocationRequest>,
) -> v1::BatchUpdateLocationsRequest {
    v1::BatchUpdateLocationsRequest {
        requests: requests.into_iter().collect(),
    }
}

fn deletions(
    requests: impl IntoIterator<Item = v1::DeleteLocationRequest>,
) -> v1::BatchDeleteLocationsRequest {
    v1::BatchDeleteLocationsRequest {
        requests: requests.into_iter().collect(),
    }
}

async fn stored(client: &mut Client, count: usize, run: &str) -> Vec<v1::Location> {
    let requests = (0..count).map(|number| create(storage(&format!("{number:04}"), run)));
    let response = client.batch_create_locations(batch(requests)).await;
    response.expect("created").into_inner().locations
}

fn with_capacity(location: &v1::Location, capacity: i64) -> v1::UpdateLocationRequest {
    let change = v1::Location {
        capacity,
        ..location.clone()
    };
    update(change, &["capacity"])
}

async fn a_batch_is_updated_in_order_or_not_at_all(app: &TestApp) {
    let mut client = app.admin();
    let before = stored(&mut client, 1_000, "run").await;
    let requests = (1..)
        .zip(&before)
        .map(|(capacity, location)| with_capacity(location, capacity));
    let after = client.batch_update_locations(updates(requests)).await;
    let after = after.expect("updated").into_inner().locations;
    assert_eq!(after.len(), 1_000);
    for ((capacity, before), after) in (1..).zip(&before).zip(&after) {
        let expected = v1::Location {
            capacity,
            etag: after.etag.clone(),
            update_time: after.update_time,
            ..before.clone()
        };
        assert_eq!(*after, expected);
        assert_ne!(after.etag, before.etag);
    }
    let ids = v1::BatchGetLocationsRequest {
        ids: after.iter().map(|location| location.id.clone()).collect(),
    };
    let found = client.batch_get_locations(ids).await.expect("all exist");
    assert_eq!(found.into_inner().locations, after);

    // The second update of a location builds on the first, and an unchanged one keeps its etag.
    let x = &after[0];
    let renamed = v1::Location {
        etag: String::new(),
        display_name: "renamed".to_owned(),
        ..x.clone()
    };
    let requests = [
        with_capacity(x, 7),
        with_capacity(&after[1], 2),
        update(renamed, &["display_name"]),
    ];
    let response = client.batch_update_locations(updates(requests)).await;
    let response = response.expect("updated").into_inner().locations;
    assert_eq!(
        (response[0].capacity, response[0].display_name.as_str()),
        (7, "0000")
    );
    assert_eq!(
        (response[2].capacity, response[2].display_name.as_str()),
        (7, "renamed")
    );
    assert_eq!(response[1], after[1]);
    assert_eq!(read(&mut client, &x.id).await, response[2]);

    let bad = v1::UpdateLocationRequest {
        validate_only: true,
        ..with_capacity(&after[3], -1)
    };
    let requests = [with_capacity(&after[2], 9), bad, update(full(), &["x"])];
    let status = client.batch_update_locations(updates(requests)).await;
    let expected = [
        "requests[1].location.capacity",
        "requests[1].validate_only",
        "requests[2].location.id",
        "requests[2].update_mask",
    ];
    assert_eq!(bad_fields(&status.expect_err("bad")), expected);
    // A violation that depends on the stored location has its path too.
    let other_type = v1::Location {
        r#type: v1::LocationType::Delivery.into(),
        ..after[3].clone()
    };
    let requests = [with_capacity(&after[2], 9), update(other_type, &["type"])];
    let status = client.batch_update_locations(updates(requests)).await;
    assert_eq!(
        bad_fields(&status.expect_err("immutable")),
        ["requests[1].location.type"]
    );
    assert_eq!(read(&mut client, &after[2].id).await, after[2]);
    for requests in [vec![], vec![with_capacity(x, 1); 1_001]] {
        let status = client.batch_update_locations(updates(requests)).await;
        assert_eq!(
            bad_fields(&status.expect_err("too few or many")),
            ["requests"]
        );
    }
}

async fn a_batch_is_deleted_in_order_or_not_at_all(app: &TestApp) {
    let mut client = app.admin();
    let all = stored(&mut client, 1_000, "run").await;
    let twice = [delete(&all[0].id), delete(&all[1].id), delete(&all[0].id)];
    let status = client
        .batch_delete_locations(deletions(twice.clone()))
        .await;
    let status = status.expect_err("it is deleted once");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(metadata(&status)["indexes"], "2");
    assert_eq!(count(app).await, 1_000);
    let twice = twice.map(|request| v1::DeleteLocationRequest {
        allow_missing: true,
        ..request
    });
    client
        .batch_delete_locations(deletions(twice))
        .await
        .expect("deleted");
    assert_eq!(count(app).await, 998);
    let rest = all[2..].iter().map(|location| v1::DeleteLocationRequest {
        etag: location.etag.clone(),
        ..delete(&location.id)
    });
    client
        .batch_delete_locations(deletions(rest))
        .await
        .expect("deleted");
    assert_eq!(count(app).await, 0);
    let status = client
        .batch_delete_locations(deletions([delete("x")]))
        .await;
    assert_eq!(bad_fields(&status.expect_err("bad")), ["requests[0].id"]);
    let requests = [vec![], vec![delete(&uuid(1)); 1_001]];
    for requests in requests {
        let status = client.batch_delete_locations(deletions(requests)).await;
        assert_eq!(
            bad_fields(&status.expect_err("too few or many")),
            ["requests"]
        );
    }
}

async fn every_request_that_fails_for_one_cause_is_named(app: &TestApp) {
    let mut client = app.admin();
    let all = stored(&mut client, 6, "run").await;
    let stale = |index: usize| v1::Location {
        etag: "\"stale\"".to_owned(),
        ..all[index].clone()
    };
    let requests = [0, 1, 2, 3, 4, 5].map(|index| match index {
        1 | 2 | 5 => with_capacity(&stale(index), 1),
        _ => with_capacity(&all[index], 1),
    });
    let status = client.batch_update_locations(updates(requests)).await;
    let status = status.expect_err("stale");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    assert_eq!(metadata(&status)["indexes"], "1-2,5");
    let requests = all.iter().map(|location| v1::DeleteLocationRequest {
        etag: "\"stale\"".to_owned(),
        ..delete(&location.id)
    });
    let status = client.batch_delete_locations(deletions(requests)).await;
    assert_eq!(metadata(&status.expect_err("stale"))["indexes"], "0-5");
    let missing = |number| v1::Location {
        id: uuid(number),
        ..full()
    };
    let requests = [missing(1), all[0].clone(), missing(2)];
    let requests = requests.map(|location| with_capacity(&location, 3));
    let status = client.batch_update_locations(updates(requests)).await;
    let status = status.expect_err("missing");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "LOCATION_NOT_FOUND")
    );
    assert_eq!(metadata(&status)["indexes"], "0,2");
    for location in &all {
        assert_eq!(read(&mut client, &location.id).await, *location);
    }
}

async fn batches_of_another_owner_are_not_found(app: &TestApp) {
    let (mut ann, mut bob) = (app.user("ann"), app.user("bob"));
    let hers = stored(&mut ann, 2, "run").await;
    let his = stored(&mut bob, 1, "run").await;
    let requests = [&his[0], &hers[1]].map(|location| with_capacity(location, 1));
    let status = bob.batch_update_locations(updates(requests)).await;
    let status = status.expect_err("ann's");
    assert_eq!(
        (status.code(), metadata(&status)["indexes"].as_str()),
        (Code::NotFound, "1")
    );
    let requests = [&his[0], &hers[0]].map(|location| delete(&location.id));
    let status = bob
        .batch_delete_locations(deletions(requests.clone()))
        .await;
    assert_eq!(status.expect_err("ann's").code(), Code::NotFound);
    let requests = requests.map(|request| v1::DeleteLocationRequest {
        allow_missing: true,
        ..request
    });
    bob.batch_delete_locations(deletions(requests))
        .await
        .expect("his own is deleted");
    assert_eq!(count(app).await, 2);
}

async fn a_batch_may_create_update_and_move(app: &TestApp) {
    let mut client = app.admin();
    let there = stored(&mut client, 1, "run").await.remove(0);
    let new = v1::Location {
        id: uuid(5),
        ..storage("new", "run")
    };
    let upsert = |location: v1::Location, paths: &[&str]| v1::UpdateLocationRequest {
        allow_missing: true,
        ..update(location, paths)
    };
    let to_bob = v1::Location {
        owner_id: "bob".to_owned(),
        production_run_id: "other".to_owned(),
        ..there.clone()
    };
    let requests = [
        upsert(new.clone(), &[]),
        upsert(to_bob, &["owner_id", "production_run_id"]),
        upsert(v1::Location { capacity: 3, ..new }, &["capacity"]),
    ];
    let response = client.batch_update_locations(updates(requests)).await;
    let response = response.expect("done").into_inner().locations;
    assert_eq!((response[0].capacity, response[2].capacity), (0, 3));
    assert_eq!(response[1].owner_id, "bob");
    let list = client.list_locations(of_run("run")).await.expect("listed");
    assert_eq!(list.get_ref().locations, [response[2].clone()]);
    let list = app
        .user("bob")
        .list_locations(of_run("other"))
        .await
        .expect("listed");
    assert_eq!(list.get_ref().locations, [response[1].clone()]);
}

async fn validate_only_changes_nothing(app: &TestApp) {
    let mut client = app.admin();
    let all = stored(&mut client, 2, "run").await;
    let requests = [with_capacity(&all[0], 1), with_capacity(&all[1], 0)];
    let requests = requests.map(|request| v1::UpdateLocationRequest {
        validate_only: true,
        ..request
    });
    let response = client.batch_update_locations(updates(requests)).await;
    let response = response.expect("valid").into_inner().locations;
    assert_eq!((response[0].capacity, response[0].etag.as_str()), (1, ""));
    assert_eq!(response[1], all[1]);
    let requests = [0, 1].map(|index: usize| v1::DeleteLocationRequest {
        validate_only: true,
        ..delete(&all[index].id)
    });
    client
        .batch_delete_locations(deletions(requests))
        .await
        .expect("valid");
    for location in &all {
        assert_eq!(read(&mut client, &location.id).await, *location);
    }
}

/// Lists, and whether a batch that moves ann's storage locations from one run to another changes each.
fn lists(from: &str, to: &str) -> [(v1::ListLocationsRequest, bool); 8] {
    let (delivery, storage) = (v1::LocationType::Delivery, v1::LocationType::Storage);
    let of = |run: &str, kind: v1::LocationType, owner: &str| v1::ListLocationsRequest {
        r#type: kind.into(),
        owner_id: owner.to_owned(),
        ..of_run(run)
    };
    let general = v1::ListLocationsRequest::default();
    [
        (of_run(from), true),
        (of_run(to), from != to),
        (of(from, storage, ""), true),
        (of(from, storage, "ann"), true),
        (general, true),
        (of(from, delivery, ""), false),
        (of(from, storage, "bob"), false),
        (of_run("kept"), false),
    ]
}

async fn fill(client: &mut Client, lists: &[(v1::ListLocationsRequest, bool)]) {
    for (request, _) in lists {
        client
            .list_locations(request.clone())
            .await
            .expect("listed");
        let list = client
            .list_locations(request.clone())
            .await
            .expect("listed");
        assert!(is_hit(&list), "{request:?}");
    }
}

async fn check(client: &mut Client, lists: &[(v1::ListLocationsRequest, bool)]) {
    for (request, changed) in lists {
        let list = client
            .list_locations(request.clone())
            .await
            .expect("listed");
        assert_eq!(is_hit(&list), !changed, "{request:?}");
    }
}

async fn a_moved_batch_invalidates_its_runs_and_no_other(app: &TestApp) {
    let (mut admin, mut ann) = (app.admin(), app.user("ann"));
    let all = stored(&mut ann, 100, "from").await;
    let lists = lists("from", "to");
    fill(&mut admin, &lists).await;
    let requests = all.iter().map(|location| {
        let moved = v1::Location {
            production_run_id: "to".to_owned(),
            ..location.clone()
        };
        update(moved, &["production_run_id"])
    });
    ann.batch_update_locations(updates(requests))
        .await
        .expect("moved");
    check(&mut admin, &lists).await;
    let list = v1::ListLocationsRequest {
        page_size: 1_000,
        ..of_run("to")
    };
    let list = admin.list_locations(list).await.expect("listed");
    assert_eq!(list.get_ref().locations.len(), 100);
    // The next write doesn't invalidate the runs that they have left.
    fill(&mut admin, &lists).await;
    let moved = list.get_ref().locations[0].clone();
    ann.update_location(with_capacity(&moved, 3))
        .await
        .expect("updated");
    let list = admin.list_locations(of_run("from")).await.expect("listed");
    assert!(is_hit(&list));
}

async fn a_deleted_batch_invalidates_its_run_and_no_other(app: &TestApp) {
    let (mut admin, mut ann) = (app.admin(), app.user("ann"));
    let all = stored(&mut ann, 100, "from").await;
    let lists = lists("from", "from");
    fill(&mut admin, &lists[2..]).await;
    read(&mut ann, &all[7].id).await;
    let requests = all.iter().map(|location| delete(&location.id));
    ann.batch_delete_locations(deletions(requests))
        .await
        .expect("deleted");
    check(&mut admin, &lists[2..]).await;
    let list = admin.list_locations(of_run("from")).await.expect("listed");
    assert_eq!(names(&list), [""; 0]);
    assert!(ann.get_location(get(&all[7].id)).await.is_err());
}

async fn a_response_that_clients_refuse_is_refused_before_the_write(app: &TestApp) {
    let mut client = app.admin();
    let mut all = Vec::new();
    for _ in 0..2 {
        let large = v1::Location {
            labels: (0..64)
                .map(|number| (format!("k{number:02}"), "🚚".repeat(255)))
                .collect(),
            ..storage("large", "")
        };
        let response = client
            .batch_create_locations(batch(vec![create(large); 35]))
            .await;
        all.extend(response.expect("created").into_inner().locations);
    }
    let requests = |count: usize| updates(all[..count].iter().map(|it| with_capacity(it, 1)));
    let mut requests = requests(70);
    // The requests are small, the locations aren't.
    for request in &mut requests.requests {
        request.location.as_mut().expect("given").labels.clear();
    }
    let status = client.batch_update_locations(requests.clone()).await;
    assert_eq!(bad_fields(&status.expect_err("too large")), ["requests"]);
    assert_eq!(read(&mut client, &all[0].id).await, all[0]);
    requests.requests.truncate(30);
    client
        .batch_update_locations(requests)
        .await
        .expect("it fits");
}
