//! Creating, reading and deleting; batches; etags; `validate_only`.

use location_service::proto::location::v1;
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::{
    bad_fields, batch, count, created, delete, full, get, metadata, read, reason, update, uuid,
};
use crate::harness::{TestApp, create, of_run, storage};

on_every_pair! { app:
    every_field_is_kept_and_output_only_ones_are_assigned
    unset_fields_get_their_defaults
    a_client_may_choose_the_id_once
    a_batch_is_created_in_order_or_not_at_all
    a_batch_is_read_in_the_order_of_its_ids_or_not_at_all
    a_location_is_deleted_once
    a_stale_etag_aborts_and_a_current_one_does_not
    validate_only_checks_everything_and_changes_nothing
    times_and_etags_change_with_every_update
    coordinates_are_kept_exactly
}

async fn every_field_is_kept_and_output_only_ones_are_assigned(app: &TestApp) {
    let mut client = app.admin();
    let requested = v1::Location {
        id: uuid(1),
        create_time: Some(prost_types::Timestamp::default()),
        update_time: Some(prost_types::Timestamp::default()),
        etag: "mine".to_owned(),
        ..full()
    };
    let response = created(&mut client, requested).await;
    let id: Uuid = response.id.parse().expect("a UUID");
    assert_eq!(id.get_version_num(), 7);
    assert_eq!(response.id, id.to_string(), "canonical");
    assert!(
        response.etag.starts_with('"') && response.etag.ends_with('"') && response.etag.len() > 2
    );
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs();
    let create_time = response.create_time.expect("assigned");
    assert!(
        u64::try_from(create_time.seconds)
            .expect("after 1970")
            .abs_diff(now)
            < 60
    );
    assert_eq!(response.update_time, response.create_time);
    let expected = v1::Location {
        id: response.id.clone(),
        create_time: response.create_time,
        update_time: response.update_time,
        etag: response.etag.clone(),
        ..full()
    };
    assert_eq!(response, expected);
    assert_eq!(read(&mut client, &response.id).await, expected);
    assert_eq!(
        read(&mut client, &response.id.to_uppercase()).await,
        expected
    );
    let list = client.list_locations(v1::ListLocationsRequest::default());
    assert_eq!(
        list.await.expect("listed").into_inner().locations,
        [expected]
    );
}

async fn unset_fields_get_their_defaults(app: &TestApp) {
    let response = created(&mut app.admin(), storage("x", "")).await;
    let expected = v1::Location {
        id: response.id.clone(),
        owner_id: "root".to_owned(),
        state: v1::LocationState::Active.into(),
        create_time: response.create_time,
        update_time: response.update_time,
        etag: response.etag.clone(),
        ..storage("x", "")
    };
    assert_eq!(response, expected);
}

async fn a_client_may_choose_the_id_once(app: &TestApp) {
    let mut client = app.admin();
    let request = v1::CreateLocationRequest {
        location_id: uuid(0xABC).to_uppercase(),
        ..create(storage("first", ""))
    };
    let response = client.create_location(request.clone()).await.expect("new");
    assert_eq!(response.get_ref().id, uuid(0xABC));
    let status = client.create_location(request).await.expect_err("used");
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(reason(&status), "LOCATION_EXISTS");
    assert_eq!(metadata(&status)["id"], uuid(0xABC));
    let resource = status.get_details_resource_info().expect("given");
    assert_eq!(resource.resource_type, "location.v1.Location");
    assert_eq!(resource.resource_name, uuid(0xABC));
    assert_eq!(count(app).await, 1);
}

async fn a_batch_is_created_in_order_or_not_at_all(app: &TestApp) {
    let mut client = app.admin();
    let numbered = |number: u128| v1::CreateLocationRequest {
        location_id: uuid(number),
        ..create(storage(&format!("{number}"), "run"))
    };
    let response = client.batch_create_locations(batch((1..=1_000).map(numbered)));
    let locations = response.await.expect("created").into_inner().locations;
    assert_eq!(locations.len(), 1_000);
    for (number, location) in (1..).zip(&locations) {
        assert_eq!(
            (&location.id, &location.display_name),
            (&uuid(number), &number.to_string())
        );
    }

    for (numbers, indexes) in [
        (vec![2_001, 5, 6, 2_002, 7], "1-2,4"),
        (vec![2_001, 2_002, 2_001], "2"),
        (vec![1], "0"),
    ] {
        let response = client.batch_create_locations(batch(numbers.into_iter().map(numbered)));
        let status = response.await.expect_err("they collide");
        assert_eq!(status.code(), Code::AlreadyExists);
        let info = status.get_details_error_info().expect("given");
        assert_eq!(info.metadata["indexes"], indexes);
    }
    let bad = v1::CreateLocationRequest {
        location: None,
        ..numbered(3_002)
    };
    let response = client.batch_create_locations(batch([numbered(3_001), bad]));
    assert_eq!(
        bad_fields(&response.await.expect_err("bad")),
        ["requests[1].location"]
    );
    assert_eq!(count(app).await, 1_000);

    let mixed = v1::CreateLocationRequest {
        validate_only: true,
        ..numbered(3_002)
    };
    let response = client.batch_create_locations(batch([numbered(3_001), mixed]));
    let fields = bad_fields(&response.await.expect_err("mixed"));
    assert_eq!(fields, ["requests[1].validate_only"]);
    for requests in [vec![], (1..=1_001).map(numbered).collect()] {
        let response = client.batch_create_locations(batch(requests)).await;
        assert_eq!(
            bad_fields(&response.expect_err("too few or many")),
            ["requests"]
        );
    }
}

async fn a_batch_is_read_in_the_order_of_its_ids_or_not_at_all(app: &TestApp) {
    let mut client = app.admin();
    let requests = (0..1_000).map(|number| create(storage(&number.to_string(), "")));
    let response = client.batch_create_locations(batch(requests)).await;
    let mut locations = response.expect("created").into_inner().locations;
    locations.reverse();
    locations[1] = v1::Location::clone(&locations[0]);
    let ids = |locations: &[v1::Location]| v1::BatchGetLocationsRequest {
        ids: locations
            .iter()
            .map(|location| location.id.clone())
            .collect(),
    };
    let response = client.batch_get_locations(ids(&locations)).await;
    assert_eq!(
        response.expect("all exist").into_inner().locations,
        locations
    );

    let mut request = ids(&locations[..3]);
    request.ids[1] = uuid(1);
    let status = client
        .batch_get_locations(request)
        .await
        .expect_err("one is missing");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(reason(&status), "LOCATION_NOT_FOUND");
    let resource = status.get_details_resource_info().expect("given");
    assert_eq!(resource.resource_name, uuid(1));
    assert_eq!(metadata(&status)["indexes"], "1");
    // Every missing location is named.
    let mut request = ids(&locations);
    for id in request.ids.iter_mut().step_by(2) {
        *id = Uuid::new_v4().to_string();
    }
    let status = client
        .batch_get_locations(request)
        .await
        .expect_err("missing");
    let expected: Vec<_> = (0..1_000)
        .step_by(2)
        .map(|index| index.to_string())
        .collect();
    assert_eq!(metadata(&status)["indexes"], expected.join(","));
    let missing = (0..1_000).map(|_| Uuid::new_v4().to_string());
    let request = v1::BatchGetLocationsRequest {
        ids: missing.collect(),
    };
    let status = client
        .batch_get_locations(request)
        .await
        .expect_err("missing");
    assert_eq!(metadata(&status)["indexes"], "0-999");

    let mut request = ids(&locations[..3]);
    request.ids[0] = String::new();
    request.ids[2] = "x".into();
    let status = client.batch_get_locations(request).await.expect_err("bad");
    assert_eq!(bad_fields(&status), ["ids[0]", "ids[2]"]);
    let mut request = ids(&locations);
    request.ids.push(uuid(1));
    for request in [request, ids(&[])] {
        let status = client.batch_get_locations(request).await.expect_err("bad");
        assert_eq!(bad_fields(&status), ["ids"]);
    }
}

async fn a_location_is_deleted_once(app: &TestApp) {
    let mut client = app.admin();
    let location = created(&mut client, storage("x", "")).await;
    client
        .delete_location(delete(&location.id))
        .await
        .expect("deleted");
    let missing = [
        client.get_location(get(&location.id)).await.map(|_| ()),
        client
            .delete_location(delete(&location.id))
            .await
            .map(|_| ()),
        client
            .update_location(update(location.clone(), &["capacity"]))
            .await
            .map(|_| ()),
    ];
    for status in missing.map(|response| response.expect_err("it is gone")) {
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(reason(&status), "LOCATION_NOT_FOUND");
        let resource = status.get_details_resource_info().expect("given");
        assert_eq!(resource.resource_name, location.id);
    }
    let request = v1::DeleteLocationRequest {
        allow_missing: true,
        etag: "any".to_owned(),
        ..delete(&location.id)
    };
    client
        .delete_location(request)
        .await
        .expect("missing is fine");
    assert_eq!(count(app).await, 0);
}

async fn a_stale_etag_aborts_and_a_current_one_does_not(app: &TestApp) {
    let mut client = app.admin();
    let first = created(&mut client, storage("x", "")).await;
    let renamed = |etag: &str, name: &str| {
        let location = v1::Location {
            etag: etag.to_owned(),
            id: first.id.clone(),
            ..storage(name, "")
        };
        update(location, &["display_name"])
    };
    let second = client.update_location(renamed(&first.etag, "y")).await;
    let second = second.expect("current").into_inner();
    let bare = second.etag.trim_matches('"');
    let third = client.update_location(renamed(bare, "z")).await;
    let third = third.expect("quotes don't matter").into_inner();
    let removal = |etag: &str| v1::DeleteLocationRequest {
        etag: etag.to_owned(),
        allow_missing: true,
        ..delete(&first.id)
    };
    for stale in [&first.etag, &second.etag, bare, "\"\"", "W/x", "é"] {
        for response in [
            client
                .update_location(renamed(stale, "stale"))
                .await
                .map(|_| ()),
            client.delete_location(removal(stale)).await.map(|_| ()),
        ] {
            let status = response.expect_err("stale");
            assert_eq!(status.code(), Code::Aborted);
            assert_eq!(reason(&status), "ETAG_MISMATCH");
            assert_eq!(metadata(&status)["id"], first.id);
        }
    }
    assert_eq!(read(&mut client, &first.id).await, third);
    client
        .delete_location(removal(&third.etag))
        .await
        .expect("current");
    assert_eq!(count(app).await, 0);
}

async fn validate_only_checks_everything_and_changes_nothing(app: &TestApp) {
    let mut client = app.admin();
    let location = created(&mut client, storage("x", "run")).await;
    let try_create = |request| v1::CreateLocationRequest {
        validate_only: true,
        request_id: uuid(9),
        ..request
    };
    let would = client.create_location(try_create(create(full()))).await;
    let would = would.expect("valid").into_inner();
    assert_eq!(would, full(), "nothing is generated");
    let chosen = v1::CreateLocationRequest {
        location_id: uuid(8),
        ..create(full())
    };
    let would = client.create_location(try_create(chosen)).await;
    let would = would.expect("valid").into_inner();
    let expected = v1::Location {
        id: uuid(8),
        ..full()
    };
    assert_eq!(would, expected);
    let used = v1::CreateLocationRequest {
        location_id: location.id.clone(),
        ..create(full())
    };
    let status = client
        .create_location(try_create(used))
        .await
        .expect_err("used");
    assert_eq!(status.code(), Code::AlreadyExists);
    let requests =
        batch(
            [create(full()), create(full())].map(|request| v1::CreateLocationRequest {
                validate_only: true,
                ..request
            }),
        );
    let would = client
        .batch_create_locations(requests)
        .await
        .expect("valid");
    assert_eq!(would.get_ref().locations.len(), 2);
    // The request id wasn't used up.
    let request = v1::CreateLocationRequest {
        request_id: uuid(9),
        ..create(storage("y", "run"))
    };
    client.create_location(request).await.expect("created");

    let change = v1::Location {
        display_name: "z".to_owned(),
        ..location.clone()
    };
    let mut request = update(change, &["display_name"]);
    request.validate_only = true;
    let would = client
        .update_location(request)
        .await
        .expect("valid")
        .into_inner();
    let expected = v1::Location {
        display_name: "z".to_owned(),
        update_time: None,
        etag: String::new(),
        ..location.clone()
    };
    assert_eq!(would, expected);
    let mut request = update(location.clone(), &["display_name"]);
    request.validate_only = true;
    let would = client.update_location(request).await.expect("valid");
    assert_eq!(would.into_inner(), location, "it would change nothing");
    for allow_missing in [false, true] {
        let request = v1::DeleteLocationRequest {
            validate_only: true,
            allow_missing,
            ..delete(&location.id)
        };
        client.delete_location(request).await.expect("valid");
    }
    let request = v1::DeleteLocationRequest {
        validate_only: true,
        ..delete(&uuid(1))
    };
    let status = client.delete_location(request).await.expect_err("missing");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(read(&mut client, &location.id).await, location);
    assert_eq!(count(app).await, 2);
}

async fn times_and_etags_change_with_every_update(app: &TestApp) {
    let mut client = app.admin();
    let mut last = created(&mut client, storage("x", "")).await;
    for _ in 0..20 {
        let change = v1::Location {
            capacity: last.capacity + 1,
            ..last.clone()
        };
        let response = client.update_location(update(change, &["capacity"])).await;
        let next = response.expect("updated").into_inner();
        assert_eq!(next.create_time, last.create_time);
        let time = |location: &v1::Location| {
            let time = location.update_time.expect("assigned");
            (time.seconds, time.nanos)
        };
        assert!(time(&next) > time(&last));
        assert_ne!(next.etag, last.etag);
        last = next;
    }
}

/// Including the sign of zero, which SQLite's columns don't keep.
async fn coordinates_are_kept_exactly(app: &TestApp) {
    let degrees = [
        0.0,
        -0.0,
        5e-324,
        -2.225_073_858_507_201e-308,
        40.631_900_787_353_516,
        -90.0,
    ];
    let mut client = app.admin();
    let requests = degrees.map(|latitude| {
        let coordinates = Some(v1::LatLng {
            latitude,
            longitude: -latitude,
        });
        create(v1::Location {
            coordinates,
            ..storage("A", "exact")
        })
    });
    let response = client.batch_create_locations(batch(requests)).await;
    let mut created = response.expect("created").into_inner().locations;
    let ids = created.iter().map(|location| location.id.clone()).collect();
    let bits = |locations: &[v1::Location]| -> Vec<_> {
        let positions = locations.iter().map(|location| location.coordinates);
        positions
            .map(|position| {
                let position = position.expect("a position");
                (position.latitude.to_bits(), position.longitude.to_bits())
            })
            .collect()
    };
    let expected = degrees.map(|latitude| (latitude.to_bits(), (-latitude).to_bits()));
    assert_eq!(bits(&created), expected);
    let request = v1::BatchGetLocationsRequest { ids };
    let stored = client.batch_get_locations(request).await.expect("read");
    assert_eq!(bits(&stored.into_inner().locations), expected);
    // An update of another field keeps them too.
    for location in &mut created {
        location.capacity = 7;
        let update = update(location.clone(), &["capacity"]);
        client.update_location(update).await.expect("updated");
    }
    let request = v1::ListLocationsRequest {
        order_by: "create_time".to_owned(),
        ..of_run("exact")
    };
    let listed = client.list_locations(request).await.expect("listed");
    let listed = listed.into_inner().locations;
    for (before, bits_before) in created.iter().zip(expected) {
        let after = listed.iter().find(|location| location.id == before.id);
        let after = after.expect("listed");
        assert_eq!(
            (after.capacity, bits(std::slice::from_ref(after))),
            (7, vec![bits_before])
        );
    }
}
