//! Creations that are safe to retry (AIP-155).

use std::collections::HashSet;

use location_service::proto::location::v1;
use tonic::{Code, Status};

use super::{batch, count, delete, get, metadata, reason, update, uuid};
use crate::harness::{Client, TestApp, create, storage};

on_every_pair! { app:
    a_retry_returns_the_first_result_despite_later_writes
    a_request_id_with_another_body_is_refused
    callers_do_not_share_request_ids
    a_batch_may_repeat_and_retry_requests
    concurrent_calls_with_one_request_id_create_one_location
    a_failed_call_does_not_use_up_its_request_id
    a_retry_is_the_same_location_in_any_form
    a_retry_may_be_validated
}

fn once(id: u128, name: &str) -> v1::CreateLocationRequest {
    v1::CreateLocationRequest {
        request_id: uuid(id),
        ..create(storage(name, "run"))
    }
}

async fn created_once(client: &mut Client, id: u128, name: &str) -> v1::Location {
    let response = client.create_location(once(id, name)).await;
    response.expect("created").into_inner()
}

fn assert_reused(status: &Status) {
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(reason(status), "REQUEST_ID_REUSED");
}

async fn a_retry_returns_the_first_result_despite_later_writes(app: &TestApp) {
    let mut client = app.admin();
    let first = created_once(&mut client, 0xA, "x").await;
    let mut retry = once(0xA, "x");
    retry.request_id = retry.request_id.to_uppercase();
    let change = v1::Location {
        display_name: "y".to_owned(),
        ..first.clone()
    };
    let changed = client
        .update_location(update(change, &["display_name"]))
        .await;
    let changed = changed.expect("updated").into_inner();
    let response = client
        .create_location(retry.clone())
        .await
        .expect("a retry");
    assert_eq!(response.into_inner(), first);
    let current = client
        .get_location(get(&first.id))
        .await
        .expect("it exists");
    assert_eq!(current.into_inner(), changed);
    client
        .delete_location(delete(&first.id))
        .await
        .expect("deleted");
    let response = client.create_location(retry).await.expect("a retry");
    assert_eq!(response.into_inner(), first);
    assert_eq!(count(app).await, 0);
}

async fn a_request_id_with_another_body_is_refused(app: &TestApp) {
    let mut client = app.admin();
    client.create_location(once(1, "x")).await.expect("created");
    let with_id = v1::CreateLocationRequest {
        location_id: uuid(2),
        ..once(1, "x")
    };
    for other in [once(1, "y"), with_id] {
        assert_reused(
            &client
                .create_location(other.clone())
                .await
                .expect_err("reused"),
        );
        let response = client
            .batch_create_locations(batch([once(3, "z"), other]))
            .await;
        let status = response.expect_err("reused");
        assert_reused(&status);
        assert_eq!(metadata(&status)["requestId"], uuid(1));
        assert_eq!(metadata(&status)["field"], "requests[1].request_id");
    }
    assert_eq!(count(app).await, 1);
}

async fn callers_do_not_share_request_ids(app: &TestApp) {
    let mut ids = HashSet::new();
    for mut client in [app.user("ann"), app.user("bob"), app.admin()] {
        let response = client.create_location(once(1, "x")).await.expect("created");
        ids.insert(response.into_inner().id);
        let response = client.create_location(once(1, "x")).await.expect("a retry");
        assert!(ids.contains(&response.into_inner().id));
    }
    assert_eq!((ids.len(), count(app).await), (3, 3));
}

async fn a_batch_may_repeat_and_retry_requests(app: &TestApp) {
    let mut client = app.admin();
    let single = created_once(&mut client, 1, "a").await;
    let request = batch([
        once(2, "b"),
        once(1, "a"),
        once(2, "b"),
        create(storage("c", "")),
    ]);
    let response = client.batch_create_locations(request.clone()).await;
    let first = response.expect("created").into_inner().locations;
    assert_eq!(first[1], single);
    assert_eq!(first[0], first[2]);
    assert_eq!(count(app).await, 3);
    let response = client.batch_create_locations(request).await;
    let second = response.expect("created").into_inner().locations;
    assert_eq!(second[..3], first[..3]);
    assert_ne!(second[3].id, first[3].id, "it had no request id");
    let response = client
        .batch_create_locations(batch([once(3, "d"), once(3, "e")]))
        .await;
    assert_reused(&response.expect_err("reused"));
    assert_eq!(count(app).await, 4);
}

async fn concurrent_calls_with_one_request_id_create_one_location(app: &TestApp) {
    const ROUNDS: u128 = 10;
    for round in 1..=ROUNDS {
        // With an id of the client's own, the calls collide on that as well.
        let location_id = if round > ROUNDS / 2 {
            uuid(round)
        } else {
            String::new()
        };
        let request = v1::CreateLocationRequest {
            location_id,
            ..once(round, "x")
        };
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..8 {
            let (mut client, request) = (app.admin(), request.clone());
            calls.spawn(async move {
                if number % 2 == 0 {
                    let response = client.create_location(request).await;
                    response.expect("created").into_inner()
                } else {
                    let response = client.batch_create_locations(batch([request])).await;
                    response.expect("created").into_inner().locations.remove(0)
                }
            });
        }
        let responses = calls.join_all().await;
        assert!(responses.iter().all(|response| *response == responses[0]));
    }
    assert_eq!(count(app).await, i32::try_from(ROUNDS).expect("few"));
}

async fn a_failed_call_does_not_use_up_its_request_id(app: &TestApp) {
    let mut client = app.admin();
    let used = v1::CreateLocationRequest {
        location_id: uuid(7),
        ..create(storage("x", ""))
    };
    client.create_location(used).await.expect("created");
    let request = v1::CreateLocationRequest {
        location_id: uuid(7),
        ..once(1, "y")
    };
    let status = client
        .create_location(request)
        .await
        .expect_err("the id is used");
    assert_eq!(reason(&status), "LOCATION_EXISTS");
    client.create_location(once(1, "z")).await.expect("created");
}

async fn a_retry_is_the_same_location_in_any_form(app: &TestApp) {
    let mut client = app.admin();
    let first = created_once(&mut client, 1, "x").await;
    let change = |change: fn(&mut v1::Location)| {
        let mut request = once(1, "x");
        change(request.location.as_mut().expect("given"));
        request
    };
    for same in [
        change(|location| location.id = uuid(7)),
        change(|location| "mine".clone_into(&mut location.etag)),
        change(|location| location.create_time = Some(prost_types::Timestamp::default())),
        change(|location| "root".clone_into(&mut location.owner_id)),
        change(|location| location.state = v1::LocationState::Active.into()),
        change(|location| location.address = Some(v1::Address::default())),
    ] {
        let response = client.create_location(same).await.expect("a retry");
        assert_eq!(response.into_inner(), first);
    }
    for other in [
        change(|location| "ann".clone_into(&mut location.owner_id)),
        change(|location| location.state = v1::LocationState::Inactive.into()),
        change(|location| location.coordinates = Some(v1::LatLng::default())),
    ] {
        assert_reused(&client.create_location(other).await.expect_err("reused"));
    }
    assert_eq!(count(app).await, 1);
}

async fn a_retry_may_be_validated(app: &TestApp) {
    let mut client = app.admin();
    let first = created_once(&mut client, 1, "x").await;
    let validated = |name| v1::CreateLocationRequest {
        validate_only: true,
        ..once(1, name)
    };
    let response = client
        .create_location(validated("x"))
        .await
        .expect("a retry");
    assert_eq!(response.into_inner(), first);
    let status = client.create_location(validated("y")).await;
    assert_reused(&status.expect_err("reused"));
    // A validated creation doesn't use up its request id.
    for name in ["a", "b"] {
        let request = v1::CreateLocationRequest {
            request_id: uuid(2),
            ..validated(name)
        };
        let response = client
            .create_location(request)
            .await
            .expect("valid")
            .into_inner();
        assert_eq!((response.id.as_str(), response.etag.as_str()), ("", ""));
    }
    assert_eq!(count(app).await, 1);
}
