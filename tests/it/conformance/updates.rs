//! `UpdateLocation` and its field mask.

use location_service::proto::location::v1;
use tonic::Code;

use super::{bad_fields, created, full, get, read, reason, update, uuid};
use crate::harness::TestApp;

on_every_pair! { app:
    an_empty_mask_changes_the_fields_that_are_set
    a_star_changes_every_field
    a_mask_changes_only_the_fields_that_it_names
    a_mask_reaches_into_fields
    output_only_fields_are_ignored
    the_type_is_immutable
    an_invalid_mask_changes_nothing
    limits_apply_to_the_result_of_an_update
    a_mask_may_repeat_paths_at_no_cost
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
    let clear: [(&str, Clear); 7] = [
        ("production_run_id", |location| {
            location.production_run_id.clear();
        }),
        ("address", |location| location.address = None),
        ("coordinates", |location| location.coordinates = None),
        ("capacity", |location| location.capacity = 0),
        ("state", |location| {
            location.state = v1::LocationState::Active.into();
        }),
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
        location.coordinates = Some(v1::LatLng {
            latitude: 0.0,
            longitude: 2.365_6,
        });
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
        &[
            "id",
            "owner_id",
            "create_time",
            "update_time",
            "etag",
            "capacity",
        ][..],
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

async fn an_invalid_mask_changes_nothing(app: &TestApp) {
    let mut client = app.admin();
    let before = created(&mut client, full()).await;
    let change = v1::Location {
        capacity: 99,
        ..before.clone()
    };
    let long = "é".repeat(500_000);
    for path in [
        "",
        " ",
        "colour",
        "displayName",
        "address.street",
        "address.",
        "coordinates.altitude",
        "labels.",
        "labels.``",
        "display_name.x",
        "location.capacity",
        "1",
        "*.x",
        &long,
    ] {
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
        .map(|number| (number.to_string(), String::new()))
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

async fn a_mask_may_repeat_paths_at_no_cost(app: &TestApp) {
    let labels = (0..64).map(|number| (number.to_string(), "🚚".repeat(255)));
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
