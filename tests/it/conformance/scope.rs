//! Authentication, and the scope of callers.

use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{EncodingKey, Header};
use location_service::{auth::NewToken, model::OwnerId, proto::location::v1};
use serde_json::json;
use tonic::{Code, Status};

use super::{
    anonymous, bad_fields, batch, count, created, delete, full, get, read, reason, update, with,
};
use crate::harness::{SECRET, TestApp, create, names, storage, token};

on_every_pair! { app:
    users_see_only_their_own_locations
    users_change_only_their_own_locations
    only_an_admin_may_choose_the_owner
    callers_without_a_valid_token_are_refused
}

async fn two_owners(app: &TestApp) -> [v1::Location; 2] {
    let mut locations = Vec::new();
    for owner in ["ann", "bob"] {
        locations.push(created(&mut app.user(owner), storage(owner, "run")).await);
    }
    locations.try_into().expect("two")
}

fn assert_missing(status: &Status) {
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(reason(status), "LOCATION_NOT_FOUND");
}

async fn users_see_only_their_own_locations(app: &TestApp) {
    let [anns, bobs] = two_owners(app).await;
    let mut ann = app.user("ann");
    for owner_id in ["", "ann"] {
        let request = v1::ListLocationsRequest {
            owner_id: owner_id.to_owned(),
            include_total_size: true,
            ..v1::ListLocationsRequest::default()
        };
        let list = ann.list_locations(request).await.expect("listed");
        assert_eq!(names(&list), ["ann"]);
        assert_eq!(list.get_ref().total_size, 1);
        let request = v1::ListLocationReportsRequest {
            owner_id: owner_id.to_owned(),
            ..v1::ListLocationReportsRequest::default()
        };
        let reports = ann.list_location_reports(request).await.expect("reported");
        assert_eq!(reports.get_ref().reports[0].location_count, 1);
    }
    assert_eq!(read(&mut ann, &anns.id).await, anns);
    // Even if bob's location is cached for him or for an admin.
    for mut other in [app.user("bob"), app.admin()] {
        assert_eq!(read(&mut other, &bobs.id).await, bobs);
        assert_missing(&ann.get_location(get(&bobs.id)).await.expect_err("bob's"));
    }
    for (ids, missing) in [(vec![&anns.id], false), (vec![&anns.id, &bobs.id], true)] {
        let ids = v1::BatchGetLocationsRequest {
            ids: ids.into_iter().cloned().collect(),
        };
        let response = ann.batch_get_locations(ids).await;
        assert_eq!(
            response.is_err_and(|status| {
                assert_missing(&status);
                true
            }),
            missing
        );
    }
    let request = v1::ListLocationsRequest {
        owner_id: "bob".to_owned(),
        ..Default::default()
    };
    let list = ann.list_locations(request).await.map(|_| ());
    let request = v1::ListLocationReportsRequest {
        owner_id: "bob".to_owned(),
        ..Default::default()
    };
    let reports = ann.list_location_reports(request).await.map(|_| ());
    for status in [list, reports].map(|response| response.expect_err("bob's")) {
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(reason(&status), "NOT_ALLOWED");
    }
    for (owner_id, expected) in [("", &["bob", "ann"][..]), ("bob", &["bob"]), ("carl", &[])] {
        let request = v1::ListLocationsRequest {
            owner_id: owner_id.to_owned(),
            ..Default::default()
        };
        let list = app.admin().list_locations(request).await.expect("listed");
        assert_eq!(names(&list), expected);
    }
}

async fn users_change_only_their_own_locations(app: &TestApp) {
    let [anns, bobs] = two_owners(app).await;
    let mut ann = app.user("ann");
    let change = v1::Location {
        capacity: 5,
        ..bobs.clone()
    };
    for etag in ["", "wrong", &bobs.etag] {
        let change = v1::Location {
            etag: etag.to_owned(),
            ..change.clone()
        };
        let status = ann.update_location(update(change, &["capacity"])).await;
        assert_missing(&status.expect_err("bob's"));
        let request = v1::DeleteLocationRequest {
            etag: etag.to_owned(),
            ..delete(&bobs.id)
        };
        assert_missing(&ann.delete_location(request).await.expect_err("bob's"));
    }
    let request = v1::DeleteLocationRequest {
        allow_missing: true,
        ..delete(&bobs.id)
    };
    ann.delete_location(request)
        .await
        .expect("as if it were missing");
    assert_eq!(read(&mut app.user("bob"), &bobs.id).await, bobs);

    let change = v1::Location {
        capacity: 5,
        ..anns.clone()
    };
    ann.update_location(update(change, &["capacity"]))
        .await
        .expect("her own");
    ann.delete_location(delete(&anns.id))
        .await
        .expect("her own");
    app.admin()
        .update_location(update(bobs.clone(), &["capacity"]))
        .await
        .expect("an admin may");
    app.admin()
        .delete_location(delete(&bobs.id))
        .await
        .expect("an admin may");
    assert_eq!(count(app).await, 0);
}

async fn only_an_admin_may_choose_the_owner(app: &TestApp) {
    let for_bob = || {
        create(v1::Location {
            owner_id: "bob".to_owned(),
            ..full()
        })
    };
    for (mut client, owner) in [(app.user("ann"), "ann"), (app.admin(), "bob")] {
        let response = client.create_location(for_bob()).await.expect("created");
        assert_eq!(response.get_ref().owner_id, owner);
        let response = client
            .batch_create_locations(batch([for_bob()]))
            .await
            .expect("created");
        assert_eq!(response.get_ref().locations[0].owner_id, owner);
    }
    let invalid_owner = create(v1::Location {
        owner_id: "x".repeat(256),
        ..full()
    });
    app.user("ann")
        .create_location(invalid_owner.clone())
        .await
        .expect("it is ignored");
    let status = app
        .admin()
        .create_location(invalid_owner)
        .await
        .expect_err("too long");
    assert_eq!(bad_fields(&status), ["location.owner_id"]);
}

async fn callers_without_a_valid_token_are_refused(app: &TestApp) {
    let good = token("ann", true);
    let parts: Vec<_> = good.split('.').collect();
    let none = BASE64.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let root = BASE64.encode(r#"{"sub":"root","admin":true}"#);
    let subject = OwnerId::parse("ann".to_owned()).expect("a subject");
    let sign = |secret: &[u8], ttl| {
        let token = NewToken::new(subject.clone(), true, ttl);
        token.sign(secret).expect("it signs")
    };
    let wrong_key = sign(
        b"another secret, of 32 bytes or more",
        Duration::from_mins(1),
    );
    // Clocks may differ by 30 seconds.
    let expiry = UNIX_EPOCH.elapsed().expect("after 1970").as_secs() - 31;
    let expired = jsonwebtoken::encode(
        &Header::default(),
        &json!({"sub": "ann", "admin": true, "exp": expiry}),
        &EncodingKey::from_secret(SECRET),
    )
    .expect("it signs");
    for authorization in [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(good.clone()),
        Some(format!("Basic {good}")),
        Some(format!("Bearer {none}.{root}.")),
        Some(format!("Bearer {none}.{}.{}", parts[1], parts[2])),
        Some(format!("Bearer {}.{root}.{}", parts[0], parts[2])),
        Some(format!("Bearer {}.{}.", parts[0], parts[1])),
        Some(format!("Bearer {}.{}", parts[0], parts[1])),
        Some(format!("Bearer {good} {good}")),
        Some(format!("Bearer {wrong_key}")),
        Some(format!("Bearer {expired}")),
        Some(format!("Bearer {}", "x".repeat(10_000))),
    ] {
        let mut request = tonic::Request::new(v1::ListLocationsRequest::default());
        if let Some(authorization) = &authorization {
            let authorization = authorization.parse().expect("ASCII");
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        let status = anonymous(app)
            .list_locations(request)
            .await
            .expect_err("unauthenticated");
        assert_eq!(status.code(), Code::Unauthenticated, "{authorization:?}");
        let expected = match &authorization {
            None => "TOKEN_MISSING",
            Some(bearer) if bearer.ends_with(&expired) => "TOKEN_EXPIRED",
            Some(_) => "TOKEN_INVALID",
        };
        assert_eq!(reason(&status), expected);
        assert!(!status.message().is_empty());
    }
    let mut client = anonymous(app);
    let statuses = [
        client.get_location(get("x")).await.map(|_| ()),
        client
            .batch_get_locations(v1::BatchGetLocationsRequest::default())
            .await
            .map(|_| ()),
        client.create_location(create(full())).await.map(|_| ()),
        client.batch_create_locations(batch([])).await.map(|_| ()),
        client
            .update_location(update(full(), &["*"]))
            .await
            .map(|_| ()),
        client
            .batch_update_locations(v1::BatchUpdateLocationsRequest::default())
            .await
            .map(|_| ()),
        client.delete_location(delete("x")).await.map(|_| ()),
        client
            .batch_delete_locations(v1::BatchDeleteLocationsRequest::default())
            .await
            .map(|_| ()),
        client
            .list_location_reports(v1::ListLocationReportsRequest::default())
            .await
            .map(|_| ()),
    ];
    for status in statuses.map(|response| response.expect_err("unauthenticated")) {
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    let request = with(
        v1::ListLocationsRequest::default(),
        "authorization",
        &format!("bearer  {good}"),
    );
    client
        .list_locations(request)
        .await
        .expect("the scheme's case and spaces don't matter");
    assert_eq!(count(app).await, 0);
}
