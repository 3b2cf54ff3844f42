//! `UpdateLocation` and its field mask.

use location_service::proto::location::v1;
use tonic::Code;

use super::{bad_fields, created, delete, full, get, is_hit, metadata, read, reason, update, uuid};
use crate::harness::{TestApp, names, of_run, storage};

on_every_pair! { app:
    an_empty_mask_changes_the_fields_that_are_set
    a_star_changes_every_field
    a_mask_changes_only_the_fields_that_it_names
    a_mask_reaches_into_fields
    output_only_fields_are_ignored
    the_type_is_immutable
    an_invalid_mask_changes_nothing
    limits_apply_to_the_result_of_an_update
    a_mask_may_repeat_paths
    a_mask_that_can_have_no_effect_is_refused
    an_update_that_changes_nothing_writes_nothing
    an_admin_moves_a_location_to_another_owner
    a_missing_location_is_created_on_request
}

/// Updates the full location, and returns it before and after.
async fn updated(
    app: &TestApp,
    change: v1::Location,
    paths: &[&str],
) -> (v1::Location, v1::Location) {
    let mut client = app.admin();
    let before = created(&mut client, full()).await;
    let change = v1::Location {
        id: before.id.clone(),
        ..change
    };
    let response = client.update_location(update(change, paths)).await;
    let response = response.expect("updated").into_inner();
    assert_eq!(read(&mut client, &before.id).await, response);
    (before, response)
}

/// The expected location after only these changes.
fn changed(
    before: v1::Location,
    response: &v1::Location,
    change: impl FnOnce(&mut v1::Location),
) -> v1::Location {
    let mut expected = v1::Location {
        etag: response.etag.clone(),
        update_time: response.update_time,
        ..before
    };
    change(&mut expected);
    expected
}

fn address(location: &mut v1::Location) -> &mut v1::Address {
    location.address.as_mut().expect("it has one")
}

async fn an_empty_mask_changes_the_fields_that_are_set(app: &TestApp) {
    let change = v1::Location {
        display_name: "new".to_owned(),
        capacity: 99,
        address: Some(v1::Address {
            region_code: "DE".to_owned(),
            ..v1::Address::default()
        }),
        ..v1::Location::default()
    };
    let (before, response) = updated(app, change.clone(), &[]).await;
    let expected = changed(before, &response, |location| {
        location.display_name = "new".into();
        location.capacity = 99;
        location.address.clone_from(&change.address);
    });
    assert_eq!(response, expected);
    // A missing mask is equivalent to an empty one.
    let mut request = update(
        v1::Location {
            capacity: 1,
            ..change
        },
        &[],
    );
    request.update_mask = None;
    request
        .location
        .as_mut()
        .expect("given")
        .id
        .clone_from(&response.id);
    let response = app.admin().update_location(request).await.expect("updated");
    assert_eq!(response.get_ref().capacity, 1);
}

async fn a_star_changes_every_field(app: &TestApp) {
    let change = v1::Location {
        display_name: "bare".to_owned(),
        ..v1::Location::default()
    };
    let (before, response) = updated(app, change, &["*"]).await;
    let expected = v1::Location {
        id: before.id,
        r#type: before.r#type,
        display_name: "bare".to_owned(),
        owner_id: before.owner_id,
        state: v1::LocationState::Active.into(),
        create_time: before.create_time,
        update_time: response.update_time,
        etag: response.etag.clone(),
        ..v1::Location::default()
    };
    assert_eq!(response, expected);
    let nameless = v1::Location {
        id: response.id,
        ..v1::Location::default()
    };
    let status = app.admin().update_location(update(nameless, &["*"])).await;
    assert_eq!(
        bad_fields(&status.expect_err("a name is required")),
        ["location.display_name"]
    );
}

async fn a_mask_changes_only_the_fields_that_it_names(app: &TestApp) {
    type Clear = fn(&mut v1::Location);
    let change = v1::Location {
        display_name: "ignored".to_owned(),
        ..v1::Location::default()
    };
    let clear: [(&str, Clear); 6] = [
        ("production_run_id", |location| {
            location.production_run_id.clear();
        }),
        ("address", |location| location.address = None),
        ("coordinates", |location| location.coordinates = None),
        ("capacity", |location| location.capacity = 0),
        ("description", |location| location.description.clear()),
        ("labels", |location| location.labels.clear()),
    ];
    for (path, clear) in clear {
        let (before, response) = updated(app, change.clone(), &[path]).await;
        assert_eq!(response, changed(before, &response, clear), "{path}");
    }
}

async fn a_mask_reaches_into_fields(app: &TestApp) {
    let mut change = v1::Location {
        labels: [("a.b/c", "new"), ("unnamed", "ignored")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        coordinates: Some(v1::LatLng {
            latitude: -1.0,
            longitude: -2.0,
        }),
        ..full()
    };
    address(&mut change).locality = "Lyon".into();
    address(&mut change).address_lines.clear();
    address(&mut change).postal_code = "ignored".into();
    address(&mut change).region_code = "BE".into();
    let paths = [
        "address.locality",
        "address.address_lines",
        "address.region_code",
        "coordinates.latitude",
        "labels.`a.b/c`",
        "labels.colour",
        "labels.absent",
    ];
    let (before, response) = updated(app, change, &paths).await;
    let expected = changed(before, &response, |location| {
        let address = address(location);
        address.locality = "Lyon".into();
        address.address_lines.clear();
        address.region_code = "BE".into();
        location.coordinates.as_mut().expect("it has some").latitude = -1.0;
        location.labels.insert("a.b/c".to_owned(), "new".to_owned());
        location.labels.remove("colour");
    });
    assert_eq!(response, expected);
    // Parts of unset fields.
    let bare = v1::Location {
        display_name: "bare".to_owned(),
        ..v1::Location::default()
    };
    let (_, bare) = updated(app, bare, &["*"]).await;
    let change = v1::Location {
        id: bare.id.clone(),
        ..full()
    };
    let paths = [
        "address.postal_code",
        "address.administrative_area",
        "coordinates.latitude",
        "coordinates.longitude",
        "labels.colour",
    ];
    let response = app.admin().update_location(update(change, &paths)).await;
    let response = response.expect("updated").into_inner();
    let expected = changed(bare, &response, |location| {
        location.address = Some(v1::Address {
            postal_code: "75013".to_owned(),
            administrative_area: "Île-de-France".to_owned(),
            ..v1::Address::default()
        });
        location.coordinates = full().coordinates;
        location
            .labels
            .insert("colour".to_owned(), "grün".to_owned());
    });
    assert_eq!(response, expected);
}

async fn output_only_fields_are_ignored(app: &TestApp) {
    let change = v1::Location {
        owner_id: "thief".to_owned(),
        create_time: Some(prost_types::Timestamp::default()),
        update_time: Some(prost_types::Timestamp::default()),
        capacity: 13,
        ..v1::Location::default()
    };
    for paths in [
        &["id", "create_time", "update_time", "etag", "capacity"][..],
        &[],
    ] {
        let (before, response) = updated(app, change.clone(), paths).await;
        let expected = changed(before, &response, |location| location.capacity = 13);
        assert_eq!(response, expected);
        assert_ne!(response.update_time, response.create_time);
    }
}

async fn the_type_is_immutable(app: &TestApp) {
    let same = v1::Location {
        r#type: full().r#type,
        capacity: 5,
        ..v1::Location::default()
    };
    for paths in [&[][..], &["type", "capacity"]] {
        let (_, response) = updated(app, same.clone(), paths).await;
        assert_eq!(response.capacity, 5);
    }
    let mut client = app.admin();
    let before = created(&mut client, full()).await;
    for paths in [&[][..], &["type"], &["*"]] {
        let change = v1::Location {
            r#type: v1::LocationType::Storage.into(),
            ..before.clone()
        };
        let response = client.update_location(update(change, paths)).await;
        assert_eq!(
            bad_fields(&response.expect_err("immutable")),
            ["location.type"]
        );
    }
    assert_eq!(read(&mut client, &before.id).await, before);
}

/// Paths that name no field, or no label.
const INVALID_PATHS: &[&str] = &[
    "",
    " ",
    "colour",
    "displayName",
    "address.street",
    "address.",
    "coordinates.altitude",
    "labels.",
    "labels.``",
    "labels.*",
    "labels.`",
    "labels.`a",
    "labels.a`",
    "labels.`a`b`",
    "labels.a.b",
    "labels.Upper",
    "labels.1",
    "labels.é",
    "labels.`a b`",
    "labels.`labels.a`.b",
    "address.address_lines[0]",
    "create_time.seconds",
    "state.x",
    "display_name.x",
    "location.capacity",
    "1",
    "*.x",
];

async fn an_invalid_mask_changes_nothing(app: &TestApp) {
    let mut client = app.admin();
    let before = created(&mut client, full()).await;
    let change = v1::Location {
        capacity: 99,
        ..before.clone()
    };
    let long = "é".repeat(500_000);
    for path in INVALID_PATHS.iter().copied().chain([&*long]) {
        let response = client.update_location(update(change.clone(), &["capacity", path]));
        assert_eq!(
            bad_fields(&response.await.expect_err("bad")),
            ["update_mask"],
            "{path:.20}"
        );
    }
    let response = client
        .update_location(update(change.clone(), &["*", "capacity"]))
        .await;
    assert_eq!(bad_fields(&response.expect_err("bad")), ["update_mask"]);
    let bad = v1::Location {
        id: "x".to_owned(),
        display_name: String::new(),
        coordinates: Some(v1::LatLng {
            latitude: 91.0,
            longitude: f64::NAN,
        }),
        capacity: -1,
        r#type: 7,
        ..change.clone()
    };
    let paths = [
        "type",
        "display_name",
        "coordinates.latitude",
        "coordinates.longitude",
        "x",
        "y",
        "description",
    ];
    let response = client.update_location(update(bad, &paths)).await;
    let expected = [
        "location.coordinates.latitude",
        "location.coordinates.longitude",
        "location.display_name",
        "location.id",
        "location.type",
        "update_mask",
        "update_mask",
    ];
    assert_eq!(bad_fields(&response.expect_err("bad")), expected);
    let response = client
        .update_location(v1::UpdateLocationRequest::default())
        .await;
    assert_eq!(bad_fields(&response.expect_err("bad")), ["location"]);
    assert_eq!(read(&mut client, &before.id).await, before);

    // Each label is valid, but together they are too many.
    let mut change = before.clone();
    change.labels = (0..62)
        .map(|number| (format!("k{number}"), String::new()))
        .collect();
    let keys: Vec<_> = change
        .labels
        .keys()
        .map(|key| format!("labels.{key}"))
        .collect();
    let paths: Vec<_> = keys.iter().map(String::as_str).collect();
    let response = client.update_location(update(change, &paths)).await;
    assert_eq!(
        bad_fields(&response.expect_err("65 labels")),
        ["location.labels"]
    );
    let missing = v1::Location {
        id: uuid(1),
        ..before
    };
    let status = client.update_location(update(missing, &["capacity"])).await;
    let status = status.expect_err("missing");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "LOCATION_NOT_FOUND")
    );
    assert!(client.get_location(get(&uuid(1))).await.is_err());
}

async fn limits_apply_to_the_result_of_an_update(app: &TestApp) {
    let mut client = app.admin();
    let mut location = full();
    location.labels = (0..64)
        .map(|number| (format!("k{number:02}"), String::new()))
        .collect();
    let before = created(&mut client, location).await;
    let change = v1::Location {
        id: before.id.clone(),
        labels: [("a".to_owned(), "new".to_owned())].into(),
        ..v1::Location::default()
    };
    let paths = ["labels.a", "labels.k01"];
    let response = client
        .update_location(update(change.clone(), &paths))
        .await
        .expect("64 labels again")
        .into_inner();
    let expected = changed(before, &response, |location| {
        location.labels.remove("k01");
        location.labels.insert("a".to_owned(), "new".to_owned());
    });
    assert_eq!(response, expected);
    let mut change = change;
    change.labels = [("b".to_owned(), String::new())].into();
    let status = client.update_location(update(change, &["labels.b"])).await;
    assert_eq!(
        bad_fields(&status.expect_err("65 labels")),
        ["location.labels"]
    );
}

async fn a_mask_may_repeat_paths(app: &TestApp) {
    let labels = (0..64).map(|number| (format!("k{number}"), "🚚".repeat(255)));
    let change = v1::Location {
        labels: labels.collect(),
        ..full()
    };
    // The largest number of paths that a mask may have.
    let mask = vec!["labels"; 256];
    let (before, response) = updated(app, change.clone(), &mask).await;
    let expected = changed(before, &response, |location| {
        location.labels = change.labels;
    });
    assert_eq!(response, expected);
}

async fn a_mask_that_can_have_no_effect_is_refused(app: &TestApp) {
    let mut client = app.user("ann");
    let before = created(&mut client, full()).await;
    let bare = created(&mut client, storage("bare", "")).await;
    let position = v1::Location {
        id: bare.id.clone(),
        coordinates: Some(v1::LatLng {
            latitude: 48.5,
            longitude: 2.5,
        }),
        ..v1::Location::default()
    };
    let of = |change: v1::Location| v1::Location {
        id: before.id.clone(),
        ..change
    };
    let unset = || of(v1::Location::default());
    let owned_by = |owner: &str| {
        of(v1::Location {
            owner_id: owner.to_owned(),
            ..v1::Location::default()
        })
    };
    for (change, paths, field) in [
        (unset(), &["state"][..], "location.state"),
        (unset(), &["capacity", "state"], "location.state"),
        (unset(), &["type"], "location.type"),
        (unset(), &["coordinates.latitude"], "location.coordinates"),
        (unset(), &["coordinates.longitude"], "location.coordinates"),
        (position.clone(), &["coordinates.latitude"], "update_mask"),
        (position.clone(), &["coordinates.longitude"], "update_mask"),
        (owned_by("bob"), &["owner_id"], "location.owner_id"),
        (owned_by(""), &["owner_id", "capacity"], "location.owner_id"),
    ] {
        let status = client.update_location(update(change, paths)).await;
        assert_eq!(
            bad_fields(&status.expect_err("no effect")),
            [field],
            "{paths:?}"
        );
    }
    // These masks are accepted: the value is the current one, or the fields are output only.
    for paths in [
        &["owner_id"][..],
        &["id", "etag", "create_time", "update_time"],
    ] {
        let change = owned_by("ann");
        let response = client.update_location(update(change, paths)).await;
        assert_eq!(
            response.expect("unchanged").into_inner(),
            before,
            "{paths:?}"
        );
    }
    let paths = ["coordinates.latitude", "coordinates.longitude"];
    let response = client
        .update_location(update(position.clone(), &paths))
        .await;
    assert_eq!(
        response.expect("both").get_ref().coordinates,
        position.coordinates
    );
}

async fn an_update_that_changes_nothing_writes_nothing(app: &TestApp) {
    let mut client = app.admin();
    let first = created(&mut client, full()).await;
    let change = v1::Location {
        capacity: 13,
        ..first.clone()
    };
    let second = client.update_location(update(change.clone(), &[])).await;
    let second = second.expect("updated").into_inner();
    assert_ne!(second.etag, first.etag);
    let run = of_run(&first.production_run_id);
    // A retry with the old etag, and equal values in other forms.
    for (change, paths) in [
        (change.clone(), &[][..]),
        (change.clone(), &["*"]),
        (change.clone(), &["capacity", "labels", "address.locality"]),
        (second.clone(), &["*"]),
        (
            v1::Location {
                id: first.id.clone(),
                etag: "\"any\"".to_owned(),
                ..v1::Location::default()
            },
            &["labels.absent"],
        ),
    ] {
        client.list_locations(run.clone()).await.expect("listed");
        let list = client.list_locations(run.clone()).await.expect("listed");
        assert!(is_hit(&list));
        let response = client.update_location(update(change, paths)).await;
        assert_eq!(
            response.expect("unchanged").into_inner(),
            second,
            "{paths:?}"
        );
        // It acknowledges the earlier write, so it invalidates the lists of that one.
        let list = client.list_locations(run.clone()).await.expect("listed");
        assert!(!is_hit(&list), "{paths:?}");
        assert_eq!(list.get_ref().locations, std::slice::from_ref(&second));
    }
    assert_eq!(read(&mut client, &first.id).await, second);
    let other = v1::Location {
        capacity: 14,
        ..first
    };
    let status = client.update_location(update(other, &[])).await;
    let status = status.expect_err("stale");
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(metadata(&status)["id"], second.id);
}

async fn an_admin_moves_a_location_to_another_owner(app: &TestApp) {
    let (mut ann, mut bob, mut admin) = (app.user("ann"), app.user("bob"), app.admin());
    let before = created(&mut ann, storage("x", "run")).await;
    let all = v1::ListLocationsRequest::default;
    for client in [&mut ann, &mut bob, &mut admin] {
        for _ in 0..2 {
            client.list_locations(all()).await.expect("listed");
        }
    }
    read(&mut ann, &before.id).await;
    let to = |owner: &str| v1::Location {
        owner_id: owner.to_owned(),
        ..before.clone()
    };
    let moved = admin
        .update_location(update(to("bob"), &["owner_id"]))
        .await;
    let moved = moved.expect("moved").into_inner();
    let expected = changed(before.clone(), &moved, |location| {
        "bob".clone_into(&mut location.owner_id);
    });
    assert_eq!(moved, expected);
    assert_eq!(
        names(&ann.list_locations(all()).await.expect("listed")),
        [""; 0]
    );
    assert_eq!(
        names(&bob.list_locations(all()).await.expect("listed")),
        ["x"]
    );
    assert_eq!(
        names(&admin.list_locations(all()).await.expect("listed")),
        ["x"]
    );
    let status = ann.get_location(get(&before.id)).await.expect_err("bob's");
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(read(&mut bob, &before.id).await, moved);
    for bad in ["", " bob", "b\u{200b}ob"] {
        let location = v1::Location {
            etag: String::new(),
            ..to(bad)
        };
        let status = admin.update_location(update(location, &["owner_id"])).await;
        assert_eq!(bad_fields(&status.expect_err("bad")), ["location.owner_id"]);
    }
    // Only a mask that names it moves the location.
    for paths in [&[][..], &["*"]] {
        let location = v1::Location {
            etag: String::new(),
            ..to("carl")
        };
        let response = admin.update_location(update(location, paths)).await;
        assert_eq!(response.expect("unchanged").get_ref().owner_id, "bob");
    }
}

async fn a_missing_location_is_created_on_request(app: &TestApp) {
    let mut client = app.user("ann");
    let upsert = |location: v1::Location, paths: &[&str]| v1::UpdateLocationRequest {
        allow_missing: true,
        ..update(location, paths)
    };
    let location = v1::Location {
        id: uuid(1),
        capacity: 5,
        ..storage("x", "run")
    };
    client.list_locations(of_run("run")).await.expect("listed");
    let would = v1::UpdateLocationRequest {
        validate_only: true,
        ..upsert(location.clone(), &["capacity"])
    };
    let would = client.update_location(would).await.expect("valid");
    assert_eq!(
        (would.get_ref().etag.as_str(), would.get_ref().id.clone()),
        ("", uuid(1))
    );
    // A creation ignores the mask.
    let first = client
        .update_location(upsert(location.clone(), &["capacity"]))
        .await;
    let first = first.expect("created").into_inner();
    assert_eq!((first.display_name.as_str(), first.capacity), ("x", 5));
    assert_eq!((first.owner_id.as_str(), &first.id), ("ann", &uuid(1)));
    assert_eq!(
        names(&client.list_locations(of_run("run")).await.expect("listed")),
        ["x"]
    );
    assert_eq!(read(&mut client, &first.id).await, first);
    let again = client.update_location(upsert(location.clone(), &[])).await;
    assert_eq!(again.expect("there").into_inner(), first);
    let change = v1::Location {
        capacity: 6,
        ..location.clone()
    };
    let second = client.update_location(upsert(change, &["capacity"])).await;
    assert_eq!(second.expect("updated").get_ref().capacity, 6);

    let status = app
        .user("bob")
        .update_location(upsert(location.clone(), &[]))
        .await;
    let status = status.expect_err("ann's");
    assert_eq!(status.code(), Code::AlreadyExists);
    client
        .delete_location(delete(&uuid(1)))
        .await
        .expect("deleted");
    let stale = v1::Location {
        etag: first.etag.clone(),
        ..location.clone()
    };
    let status = client.update_location(upsert(stale, &[])).await;
    assert_eq!(status.expect_err("it had an etag").code(), Code::Aborted);
    let nameless = v1::Location {
        display_name: String::new(),
        r#type: 0,
        ..location.clone()
    };
    let status = client
        .update_location(upsert(nameless, &["capacity"]))
        .await;
    assert_eq!(
        bad_fields(&status.expect_err("incomplete")),
        ["location.display_name", "location.type"]
    );
    client
        .update_location(upsert(location, &[]))
        .await
        .expect("created again");
}
