//! Limits of fields, and the `BadRequest` for violations.

use location_service::proto::location::v1;

use super::{bad_fields, created, delete, get};
use crate::harness::{TestApp, create, storage};

on_every_pair! { app:
    every_violation_of_a_creation_is_reported
    every_violation_of_a_list_is_reported
    values_at_the_limits_are_accepted_and_stored
    values_past_the_limits_are_refused
    ids_must_be_hyphenated_uuids
    a_thousand_violations_fit_in_the_trailers
}

fn long(character: &str, count: usize) -> String {
    character.repeat(count)
}

async fn every_violation_of_a_creation_is_reported(app: &TestApp) {
    let location = v1::Location {
        r#type: 9,
        display_name: String::new(),
        production_run_id: long("x", 129),
        owner_id: long("x", 256),
        address: Some(v1::Address {
            address_lines: vec![String::new(), long("x", 257)],
            locality: long("x", 257),
            administrative_area: long("x", 257),
            postal_code: long("x", 33),
            region_code: "fr".to_owned(),
        }),
        coordinates: Some(v1::LatLng {
            latitude: -90.001,
            longitude: 180.001,
        }),
        capacity: -1,
        state: 3,
        description: long("x", 2_001),
        labels: [("colour".to_owned(), long("x", 256))].into(),
        ..v1::Location::default()
    };
    let request = v1::CreateLocationRequest {
        location: Some(location),
        location_id: "7".to_owned(),
        request_id: "8".to_owned(),
        validate_only: false,
    };
    let fields = [
        "location.address.address_lines[1]",
        "location.address.administrative_area",
        "location.address.locality",
        "location.address.postal_code",
        "location.address.region_code",
        "location.capacity",
        "location.coordinates.latitude",
        "location.coordinates.longitude",
        "location.description",
        "location.display_name",
        "location.labels.colour",
        "location.owner_id",
        "location.production_run_id",
        "location.state",
        "location.type",
        "location_id",
        "request_id",
    ];
    let status = app.admin().create_location(request.clone()).await;
    assert_eq!(bad_fields(&status.expect_err("bad")), fields);
    // The owner_id of other callers is ignored, so it can't be invalid.
    let status = app.user("ann").create_location(request.clone()).await;
    assert_eq!(
        bad_fields(&status.expect_err("bad")).len(),
        fields.len() - 1
    );
    let requests = vec![create(storage("fine", "")), request];
    let mut admin = app.admin();
    let status = admin.batch_create_locations(v1::BatchCreateLocationsRequest { requests });
    let expected = fields.map(|field| format!("requests[1].{field}"));
    assert_eq!(bad_fields(&status.await.expect_err("bad")), expected);
    let status = app
        .admin()
        .create_location(v1::CreateLocationRequest::default())
        .await;
    assert_eq!(bad_fields(&status.expect_err("bad")), ["location"]);
}

async fn every_violation_of_a_list_is_reported(app: &TestApp) {
    let request = v1::ListLocationsRequest {
        page_size: -1,
        skip: -1,
        r#type: 3,
        production_run_id: Some(long("x", 129)),
        owner_id: long("x", 256),
        state: -1,
        query: long("x", 257),
        order_by: "colour".to_owned(),
        labels: [("Upper", String::new()), ("a", long("x", 256))]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        ..v1::ListLocationsRequest::default()
    };
    let status = app.admin().list_locations(request).await.expect_err("bad");
    let expected = [
        "labels",
        "labels.a",
        "order_by",
        "owner_id",
        "page_size",
        "production_run_id",
        "query",
        "skip",
        "state",
        "type",
    ];
    assert_eq!(bad_fields(&status), expected);
    let request = v1::ListLocationReportsRequest {
        r#type: 3,
        production_run_id: Some(long("x", 129)),
        owner_id: long("x", 256),
        page_size: i32::MIN,
        page_token: String::new(),
    };
    let status = app
        .admin()
        .list_location_reports(request)
        .await
        .expect_err("bad");
    let expected = ["owner_id", "page_size", "production_run_id", "type"];
    assert_eq!(bad_fields(&status), expected);
    for order_by in [
        "capacity asc",
        "capacity DESC",
        "desc",
        "Capacity",
        "capacity desc desc",
        "capacity,create_time",
        "display_name collate",
    ] {
        let order_by = order_by.to_owned();
        let request = v1::ListLocationsRequest {
            order_by,
            ..v1::ListLocationsRequest::default()
        };
        let status = app.admin().list_locations(request).await.expect_err("bad");
        assert_eq!(bad_fields(&status), ["order_by"]);
    }
}

async fn values_at_the_limits_are_accepted_and_stored(app: &TestApp) {
    // Characters are counted, not bytes.
    let location = v1::Location {
        r#type: v1::LocationType::Storage.into(),
        display_name: long("🚚", 256),
        production_run_id: long("é", 128),
        owner_id: long("界", 255),
        address: Some(v1::Address {
            address_lines: vec![long("é", 256); 10],
            locality: long("é", 256),
            administrative_area: long("é", 256),
            postal_code: long("é", 32),
            region_code: "XK".to_owned(),
        }),
        coordinates: Some(v1::LatLng {
            latitude: 90.0,
            longitude: -180.0,
        }),
        capacity: i64::MAX,
        state: v1::LocationState::Active.into(),
        description: long("🚚", 2_000),
        labels: (0..64)
            .map(|number| (format!("{number:k>63}"), long("é", 255)))
            .collect(),
        ..v1::Location::default()
    };
    let mut client = app.admin();
    let response = created(&mut client, location.clone()).await;
    let expected = v1::Location {
        id: response.id.clone(),
        create_time: response.create_time,
        update_time: response.update_time,
        etag: response.etag.clone(),
        ..location
    };
    assert_eq!(response, expected);
    let request = v1::ListLocationsRequest {
        production_run_id: Some(long("é", 128)),
        owner_id: long("界", 255),
        query: long("🚚", 256),
        order_by: "display_name".to_owned(),
        page_size: 1_000,
        ..v1::ListLocationsRequest::default()
    };
    let list = client.list_locations(request).await.expect("listed");
    assert_eq!(list.into_inner().locations, [expected]);
}

async fn values_past_the_limits_are_refused(app: &TestApp) {
    type Change = fn(&mut v1::Location);
    fn address(location: &mut v1::Location) -> &mut v1::Address {
        location.address.get_or_insert_default()
    }
    let changes: [(&str, Change); 24] = [
        ("type", |location| location.r#type = 0),
        ("type", |location| location.r#type = i32::MIN),
        ("display_name", |location| {
            location.display_name = long("é", 257);
        }),
        ("display_name", |location| {
            location.display_name = "a\0b".into();
        }),
        ("production_run_id", |location| {
            location.production_run_id = long("é", 129);
        }),
        ("production_run_id", |location| {
            location.production_run_id = "\0".into();
        }),
        ("owner_id", |location| location.owner_id = "\0".into()),
        ("address.address_lines", |location| {
            address(location).address_lines = vec![String::new(); 11];
        }),
        ("address.region_code", |location| {
            address(location).region_code = "ZZ".into();
        }),
        ("address.region_code", |location| {
            address(location).region_code = "FRA".into();
        }),
        ("address.region_code", |location| {
            address(location).region_code = "A ".into();
        }),
        ("coordinates.latitude", |location| {
            location.coordinates = Some(v1::LatLng {
                latitude: f64::NAN,
                longitude: 0.0,
            });
        }),
        ("coordinates.longitude", |location| {
            location.coordinates = Some(v1::LatLng {
                latitude: 0.0,
                longitude: f64::INFINITY,
            });
        }),
        ("capacity", |location| location.capacity = i64::MIN),
        ("state", |location| location.state = -1),
        ("labels", |location| {
            location.labels = (0..65)
                .map(|key| (format!("k{key}"), String::new()))
                .collect();
        }),
        ("labels", |location| {
            location.labels = [("camelKey".to_owned(), String::new())].into();
        }),
        ("labels", |location| {
            location.labels = [("0".to_owned(), String::new())].into();
        }),
        ("display_name", |location| {
            location.display_name = " x".into();
        }),
        ("production_run_id", |location| {
            location.production_run_id = "x\u{200b}".into();
        }),
        ("owner_id", |location| location.owner_id = "a\nb".into()),
        ("labels", |location| {
            location.labels = [(String::new(), String::new())].into();
        }),
        ("labels", |location| {
            location.labels = [(long("k", 64), String::new())].into();
        }),
        ("labels.a", |location| {
            location.labels = [("a".to_owned(), "\0".to_owned())].into();
        }),
    ];
    for (field, change) in changes {
        let mut location = storage("x", "");
        change(&mut location);
        let status = app.admin().create_location(create(location)).await;
        let fields = bad_fields(&status.expect_err("bad"));
        let field = format!("location.{field}");
        assert_eq!(fields.len(), 1, "{fields:?}");
        assert!(fields[0].starts_with(&field), "{fields:?} isn't {field}");
    }
}

async fn ids_must_be_hyphenated_uuids(app: &TestApp) {
    let mut client = app.admin();
    for id in [
        "",
        "x",
        "0190a5e27c1b7e3a9f3d2b8c4d5e6f70",
        "{0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70}",
        "urn:uuid:0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70",
        "0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f7g",
        "0190a5e2-7c1b-7e3a-9f3d-2b8c4d5e6f70 ",
        "éééééééééééééééééé",
    ] {
        let status = client.get_location(get(id)).await.expect_err("bad");
        assert_eq!(bad_fields(&status), ["id"]);
        let request = v1::DeleteLocationRequest {
            allow_missing: true,
            ..delete(id)
        };
        let status = client.delete_location(request).await.expect_err("bad");
        assert_eq!(bad_fields(&status), ["id"]);
    }
}

async fn a_thousand_violations_fit_in_the_trailers(app: &TestApp) {
    let bad = create(v1::Location {
        labels: (0..60)
            .map(|number| (format!("{number:🚚>64}"), String::new()))
            .collect(),
        ..v1::Location::default()
    });
    let requests = vec![bad; 100];
    let mut admin = app.admin();
    let status = admin.batch_create_locations(v1::BatchCreateLocationsRequest { requests });
    let status = status.await.expect_err("bad");
    let fields = bad_fields(&status);
    assert!(fields.len() > 1, "some are reported");
    assert_eq!(fields[0], "", "the rest is counted");
}
