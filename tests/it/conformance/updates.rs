//! `UpdateLocation` and its field mask.

use location_service::proto::location::v1;
use tonic::Code;

use super::{bad_fields, created, full, get, read, reason, update, uuid};
use crate::harness::TestApp;

on_every_pair! { app:
    an_empty_mask_changes_what_is_set
    a_star_changes_everything
    a_mask_changes_what_it_names
    a_mask_reaches_into_fields
    output_only_fields_are_ignored
    the_type_is_immutable
    a_bad_mask_is_refused_whole
    a_mask_may_repeat_paths_at_no_cost
}

/// Updates the full location, and answers what it was and what it is.
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
    let answer = client.update_location(update(change, paths)).await;
    let answer = answer.expect("updated").into_inner();
    assert_eq!(read(&mut client, &before.id).await, answer);
    (before, answer)
}

/// What the location would be if nothing but these changes had been made to it.
fn changed(
    before: v1::Location,
    answer: &v1::Location,
    change: impl FnOnce(&mut v1::Location),
) -> v1::Location {
    let mut expected = v1::Location {
        etag: answer.etag.clone(),
        update_time: answer.update_time,
        ..before
    };
    change(&mut expected);
    expected
}

fn address(location: &mut v1::Location) -> &mut v1::Address {
    location.address.as_mut().expect("it has one")
}

async fn an_empty_mask_changes_what_is_set(app: &TestApp) {
    let change = v1::Location {
        display_name: "new".to_owned(),
        capacity: 99,
        address: Some(v1::Address {
            region_code: "DE".to_owned(),
            ..v1::Address::default()
        }),
        ..v1::Location::default()
    };
    let (before, answer) = updated(app, change.clone(), &[]).await;
    let expected = changed(before, &answer, |location| {
        location.display_name = "new".into();
        location.capacity = 99;
        location.address.clone_from(&change.address);
    });
    assert_eq!(answer, expected);
    // A mask that isn't there is as good as an empty one.
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
        .clone_from(&answer.id);
    let answer = app.admin().update_location(request).await.expect("updated");
    assert_eq!(answer.get_ref().capacity, 1);
}

async fn a_star_changes_everything(app: &TestApp) {
    let change = v1::Location {
        display_name: "bare".to_owned(),
        ..v1::Location::default()
    };
    let (before, answer) = updated(app, change, &["*"]).await;
    let expected = v1::Location {
        id: before.id,
        r#type: before.r#type,
        display_name: "bare".to_owned(),
        owner_id: before.owner_id,
        state: v1::LocationState::Active.into(),
        create_time: before.create_time,
        update_time: answer.update_time,
        etag: answer.etag.clone(),
        ..v1::Location::default()
    };
    assert_eq!(answer, expected);
    let nameless = v1::Location {
        id: answer.id,
        ..v1::Location::default()
    };
    let status = app.admin().update_location(update(nameless, &["*"])).await;
    assert_eq!(
        bad_fields(&status.expect_err("a name is required")),
        ["location.display_name"]
    );
}

async fn a_mask_changes_what_it_names(app: &TestApp) {
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
        let (before, answer) = updated(app, change.clone(), &[path]).await;
        assert_eq!(answer, changed(before, &answer, clear), "{path}");
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
    let (before, answer) = updated(app, change, &paths).await;
    let expected = changed(before, &answer, |location| {
        let address = address(location);
        address.locality = "Lyon".into();
        address.address_lines.clear();
        address.region_code = "BE".into();
        location.coordinates.as_mut().expect("it has some").latitude = -1.0;
        location.labels.insert("a.b/c".to_owned(), "new".to_owned());
        location.labels.remove("colour");
    });
    assert_eq!(answer, expected);
    // Parts of what isn't there.
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
    let answer = app.admin().update_location(update(change, &paths)).await;
    let answer = answer.expect("updated").into_inner();
    let expected = changed(bare, &answer, |location| {
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
    assert_eq!(answer, expected);
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
        let (before, answer) = updated(app, change.clone(), paths).await;
        let expected = changed(before, &answer, |location| location.capacity = 13);
        assert_eq!(answer, expected);
        assert_ne!(answer.update_time, answer.create_time);
    }
}

async fn the_type_is_immutable(app: &TestApp) {
    let same = v1::Location {
        r#type: full().r#type,
        capacity: 5,
        ..v1::Location::default()
    };
    for paths in [&[][..], &["type", "capacity"]] {
        let (_, answer) = updated(app, same.clone(), paths).await;
        assert_eq!(answer.capacity, 5);
    }
    let mut client = app.admin();
    let before = created(&mut client, full()).await;
    for paths in [&[][..], &["type"], &["*"]] {
        let change = v1::Location {
            r#type: v1::LocationType::Storage.into(),
            ..before.clone()
        };
        let answer = client.update_location(update(change, paths)).await;
        assert_eq!(
            bad_fields(&answer.expect_err("immutable")),
            ["location.type"]
        );
    }
    assert_eq!(read(&mut client, &before.id).await, before);
}

async fn a_bad_mask_is_refused_whole(app: &TestApp) {
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
        let answer = client.update_location(update(change.clone(), &["capacity", path]));
        assert_eq!(
            bad_fields(&answer.await.expect_err("bad")),
            ["update_mask"],
            "{path:.20}"
        );
    }
    let answer = client
        .update_location(update(change.clone(), &["*", "capacity"]))
        .await;
    assert_eq!(bad_fields(&answer.expect_err("bad")), ["update_mask"]);
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
    let answer = client.update_location(update(bad, &paths)).await;
    let expected = [
        "location.coordinates.latitude",
        "location.coordinates.longitude",
        "location.display_name",
        "location.id",
        "location.type",
        "update_mask",
        "update_mask",
    ];
    assert_eq!(bad_fields(&answer.expect_err("bad")), expected);
    let answer = client
        .update_location(v1::UpdateLocationRequest::default())
        .await;
    assert_eq!(bad_fields(&answer.expect_err("bad")), ["location"]);
    assert_eq!(read(&mut client, &before.id).await, before);

    // Labels that are fine one by one may be too many together.
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
    let answer = client.update_location(update(change, &paths)).await;
    assert_eq!(
        bad_fields(&answer.expect_err("65 labels")),
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

async fn a_mask_may_repeat_paths_at_no_cost(app: &TestApp) {
    let labels = (0..64).map(|number| (number.to_string(), "🚚".repeat(255)));
    let change = v1::Location {
        labels: labels.collect(),
        ..full()
    };
    // A copy of the labels for each would be 20 GB.
    let (before, answer) = updated(app, change.clone(), &vec!["labels"; 300_000]).await;
    let expected = changed(before, &answer, |location| location.labels = change.labels);
    assert_eq!(answer, expected);
}
