//! `CacheService`: its explanations, invalidations and statistics match the reads.

use std::sync::Arc;

use location_service::proto::location::v1;
use prost::Message as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    gates::{GatedStore, Gates},
    harness::{CacheClient, Client, Pair, TestApp, cache_status, create, of_run, storage, with},
};

on_every_pair! { pair:
    a_list_is_explained_at_every_step
    an_explanation_of_what_cant_be_listed_is_the_lists_error
    what_is_invalidated_is_dropped_and_nothing_else
    an_invalidation_that_names_nothing_sensible_is_refused
    each_read_is_counted_once
    only_admins_may_see_or_change_the_cache
}

/// A service whose writes and reads of the database can be held.
async fn gated(pair: Pair) -> (TestApp, Arc<Gates>) {
    let gates = Arc::<Gates>::default();
    let app = TestApp::spawn_with(pair, |store, cache| {
        let gates = Arc::clone(&gates);
        let store = GatedStore {
            inner: store,
            gates,
        };
        (Arc::new(store), cache)
    })
    .await;
    (app, gates)
}

fn shared(pair: Pair) -> bool {
    pair != Pair::Embedded
}

async fn explain(
    cache: &mut CacheClient,
    request: v1::ListLocationsRequest,
    subject: &str,
) -> v1::ExplainListResponse {
    let request = v1::ExplainListRequest {
        request: Some(request),
        subject: subject.to_owned(),
    };
    let explained = cache.explain_list(request).await.expect("explained");
    explained.into_inner()
}

fn assert_without_version(explained: &v1::ExplainListResponse) {
    assert_eq!(
        (explained.writers_in_flight, explained.would_hit),
        (0, false)
    );
    assert!(
        explained
            .explanation
            .starts_with("Miss: the tag has no version"),
        "{}",
        explained.explanation
    );
}

/// The `cache-status` of a list, without `location-service; `.
async fn list(client: &mut Client, request: v1::ListLocationsRequest) -> String {
    let list = client.list_locations(request).await.expect("listed");
    let status = cache_status(&list).split_once("; ");
    status.expect("a parameter").1.to_owned()
}

fn page_of(size: i32) -> v1::ListLocationsRequest {
    v1::ListLocationsRequest {
        page_size: size,
        ..of_run("a run")
    }
}

#[allow(clippy::too_many_lines, reason = "one scenario, step by step")]
async fn a_list_is_explained_at_every_step(pair: Pair) {
    let (app, gates) = gated(pair).await;
    let (mut cache, mut ann) = (app.cache_admin(), app.user("ann"));

    let explained = explain(&mut cache, of_run("a run"), "ann").await;
    let canonical = v1::ListLocationsRequest {
        page_size: 50,
        owner_id: "ann".to_owned(),
        order_by: "create_time desc".to_owned(),
        ..of_run("a run")
    };
    assert_eq!(explained.canonical_request, Some(canonical));
    assert_eq!(explained.tag, "*,a%20run,ann");
    assert!(
        explained.key.starts_with("ListLocations:"),
        "{}",
        explained.key
    );
    assert_eq!(explained.current_version, "");
    assert_eq!(
        (explained.local.as_ref(), explained.redis.as_ref()),
        (None, None)
    );
    assert_without_version(&explained);
    let again = explain(&mut cache, of_run("a run"), "ann").await;
    assert_eq!(again, explained, "explaining changes nothing");
    let admins = explain(&mut cache, of_run("a run"), "").await;
    assert_eq!(admins.tag, "*,a%20run,*");
    assert_ne!(admins.key, explained.key);

    assert_eq!(list(&mut ann, of_run("a run")).await, "fwd=miss; stored");
    let list_response = ann.list_locations(of_run("a run")).await.expect("listed");
    let explained = explain(&mut cache, of_run("a run"), "ann").await;
    let local = explained.local.as_ref().expect("it is stored");
    assert!(explained.would_hit);
    assert!(
        explained.explanation.starts_with("Hit: the process holds"),
        "{}",
        explained.explanation
    );
    assert_eq!(explained.current_version.len(), 32, "128 bits");
    assert_eq!(local.version, explained.current_version);
    let length = i64::try_from(list_response.get_ref().encoded_len()).expect("small");
    assert_eq!(local.size_bytes, length);
    let age = local.age.expect("it has one");
    assert!((0..20).contains(&age.seconds), "{age:?}");
    assert_eq!(explained.redis.is_some(), shared(pair));
    if let Some(redis) = &explained.redis {
        assert_eq!(redis.version, explained.current_version);
        assert_eq!(redis.size_bytes, length);
        let age = redis.age.expect("it has one");
        assert!((0..20).contains(&age.seconds), "{age:?}");
    }
    let other_page = explain(&mut cache, page_of(7), "ann").await;
    assert!(!other_page.would_hit);
    assert!(
        other_page
            .explanation
            .starts_with("Miss: the tag is open, but this request's"),
        "{}",
        other_page.explanation
    );
    let other_subject = explain(&mut cache, of_run("a run"), "bob").await;
    assert!(!other_subject.would_hit, "bob has a list of his own");

    list(&mut ann, page_of(7)).await;
    gates.closed.arm();
    let mut writer = ann.clone();
    let write = tokio::spawn(async move {
        let new = create(storage("new", "a run"));
        writer.create_location(new).await
    });
    gates.closed.held().await;
    let explained = explain(&mut cache, of_run("a run"), "ann").await;
    assert_eq!(
        (explained.writers_in_flight, explained.would_hit),
        (1, false)
    );
    assert_eq!(
        (explained.current_version.as_str(), explained.redis),
        ("", None)
    );
    assert!(
        explained
            .explanation
            .starts_with("Bypass: a write on the tag is in flight"),
        "{}",
        explained.explanation
    );
    assert_eq!(
        list(&mut ann, of_run("a run")).await,
        "fwd=bypass; detail=write-in-flight"
    );
    gates.closed.release();
    write.await.expect("no panic").expect("created");

    let explained = explain(&mut cache, of_run("a run"), "ann").await;
    assert_without_version(&explained);
    assert_eq!(list(&mut ann, of_run("a run")).await, "fwd=miss; stored");
    assert!(
        explain(&mut cache, of_run("a run"), "ann").await.would_hit,
        "the tag is open again"
    );
    let explained = explain(&mut cache, page_of(7), "ann").await;
    assert!(!explained.would_hit);
    // The process learns of another version when it reads the entry, and not before.
    let expected = if shared(pair) {
        "Miss: the stored response has an older version"
    } else {
        "Miss: the tag is open, but this request's response isn't cached"
    };
    assert!(
        explained.explanation.starts_with(expected),
        "{}",
        explained.explanation
    );

    if shared(pair) {
        Box::pin(on_the_other_replica(&app, ann)).await;
    }
    app.stop().await;
}

/// The list is cached by one replica; the other one hasn't read it yet.
async fn on_the_other_replica(app: &TestApp, mut ann: Client) {
    let replica = app.replica().await;
    let (mut cache, mut anns_other) = (replica.cache_admin(), replica.user("ann"));
    let explained = explain(&mut cache, of_run("a run"), "ann").await;
    assert!(explained.would_hit);
    assert!(
        explained.explanation.starts_with("Hit: Redis holds"),
        "{}",
        explained.explanation
    );
    assert_eq!(explained.local, None);
    assert_eq!(
        list(&mut anns_other, of_run("a run")).await,
        "hit; detail=redis"
    );
    let explained = explain(&mut cache, of_run("a run"), "ann").await;
    assert!(explained.local.is_some());
    assert_eq!(
        list(&mut anns_other, of_run("a run")).await,
        "hit; detail=local"
    );

    // Its own entry is old now, and Redis has a current one.
    ann.create_location(create(storage("newer", "a run")))
        .await
        .expect("created");
    list(&mut ann, of_run("a run")).await;
    let explained = explain(&mut cache, of_run("a run"), "ann").await;
    let local = explained.local.as_ref().expect("it is still held");
    assert_ne!(local.version, explained.current_version);
    assert!(explained.would_hit);
    assert!(
        explained.explanation.starts_with("Hit: Redis holds"),
        "{}",
        explained.explanation
    );
    assert_eq!(
        list(&mut anns_other, of_run("a run")).await,
        "hit; detail=redis"
    );
    replica.stop().await;
}

/// The code of an error, and the fields that it names.
fn blamed(status: &tonic::Status) -> (Code, Vec<String>) {
    let fields = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();
    let fields = fields.into_iter().map(|violation| violation.field);
    (status.code(), fields.collect())
}

async fn an_explanation_of_what_cant_be_listed_is_the_lists_error(pair: Pair) {
    let app = TestApp::spawn_on(pair).await;
    let mut cache = app.cache_admin();
    let list = |request| v1::ExplainListRequest {
        request: Some(request),
        subject: "ann".to_owned(),
    };
    let of_bob = v1::ListLocationsRequest {
        owner_id: "bob".to_owned(),
        ..of_run("a run")
    };
    let forged = v1::ListLocationsRequest {
        page_token: "forged".to_owned(),
        ..of_run("a run")
    };
    let long = v1::ExplainListRequest {
        subject: "a".repeat(256),
        ..list(of_run("a run"))
    };
    for (request, code, field) in [
        (
            v1::ExplainListRequest::default(),
            Code::InvalidArgument,
            Some("request"),
        ),
        (
            list(page_of(-1)),
            Code::InvalidArgument,
            Some("request.page_size"),
        ),
        (
            list(forged),
            Code::InvalidArgument,
            Some("request.page_token"),
        ),
        (long, Code::InvalidArgument, Some("subject")),
        (list(of_bob), Code::PermissionDenied, None),
    ] {
        let error = cache.explain_list(request).await.expect_err("refused");
        let fields: Vec<String> = field.map(str::to_owned).into_iter().collect();
        assert_eq!(blamed(&error), (code, fields), "{error}");
    }
    app.stop().await;
}

/// Makes seven reads with different tags, and returns `hit` or the `fwd` of each.
async fn warm(admin: &mut Client, ann: &mut Client, id: &str) -> Vec<String> {
    let get = v1::GetLocationRequest { id: id.to_owned() };
    let found = admin.get_location(get).await.expect("found");
    let storages = v1::ListLocationsRequest {
        r#type: v1::LocationType::Storage.into(),
        ..v1::ListLocationsRequest::default()
    };
    let all = v1::ListLocationsRequest::default();
    let status = cache_status(&found).split_once("; ");
    let mut statuses = vec![status.expect("a parameter").1.to_owned()];
    for request in [of_run("paris"), of_run("berlin"), of_run(""), storages, all] {
        statuses.push(list(admin, request).await);
    }
    statuses.push(list(ann, of_run("paris")).await);
    // The tier doesn't matter here.
    for status in &mut statuses {
        *status = status.split("; ").next().expect("a word").to_owned();
    }
    statuses
}

async fn what_is_invalidated_is_dropped_and_nothing_else(pair: Pair) {
    let app = TestApp::spawn_on(pair).await;
    let replica = if shared(pair) {
        Some(app.replica().await)
    } else {
        None
    };
    let (mut cache, mut admin, mut ann) = (app.cache_admin(), app.admin(), app.user("ann"));
    let created = ann.create_location(create(storage("one", "paris"))).await;
    let id = created.expect("created").into_inner().id;
    let location = v1::InvalidateRequest {
        location_id: id.clone(),
        ..v1::InvalidateRequest::default()
    };
    let run = |run: &str| v1::InvalidateRequest {
        production_run_id: Some(run.to_owned()),
        ..v1::InvalidateRequest::default()
    };
    let storages = v1::InvalidateRequest {
        r#type: v1::LocationType::Storage.into(),
        ..v1::InvalidateRequest::default()
    };
    let anns = v1::InvalidateRequest {
        owner_id: "ann".to_owned(),
        ..run("paris")
    };
    let everything = v1::InvalidateRequest {
        everything: true,
        ..v1::InvalidateRequest::default()
    };
    warm(&mut admin, &mut ann, &id).await;
    for (request, dropped) in [
        (location, &[0][..]),
        (run("paris"), &[1]),
        (run("berlin"), &[2]),
        (run(""), &[3]),
        (storages, &[4]),
        (v1::InvalidateRequest::default(), &[5]),
        (anns, &[6]),
        (run("nowhere"), &[]),
        (everything, &[0, 1, 2, 3, 4, 5, 6]),
    ] {
        if let Some(replica) = &replica {
            let (mut admin, mut ann) = (replica.admin(), replica.user("ann"));
            warm(&mut admin, &mut ann, &id).await;
            let local = warm(&mut admin, &mut ann, &id).await;
            assert_eq!(local, ["hit"; 7]);
        }
        let response = cache.invalidate(request.clone()).await.expect("dropped");
        let count = i64::try_from(dropped.len()).expect("small");
        assert_eq!(response.get_ref().dropped_count, count, "{request:?}");
        let expected: Vec<_> = (0..7)
            .map(|place| {
                if dropped.contains(&place) {
                    "fwd=miss"
                } else {
                    "hit"
                }
            })
            .collect();
        let statuses = match &replica {
            // Its local entries are dropped as well.
            Some(replica) => warm(&mut replica.admin(), &mut replica.user("ann"), &id).await,
            None => warm(&mut admin, &mut ann, &id).await,
        };
        assert_eq!(statuses, expected, "{request:?}");
    }
    if let Some(replica) = replica {
        replica.stop().await;
    }
    app.stop().await;
}

async fn an_invalidation_that_names_nothing_sensible_is_refused(pair: Pair) {
    let app = TestApp::spawn_on(pair).await;
    let mut cache = app.cache_admin();
    let nothing = v1::InvalidateRequest::default;
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (request, field) in [
        (
            v1::InvalidateRequest {
                everything: true,
                r#type: 1,
                ..nothing()
            },
            "everything",
        ),
        (
            v1::InvalidateRequest {
                everything: true,
                location_id: id.to_owned(),
                ..nothing()
            },
            "everything",
        ),
        (
            v1::InvalidateRequest {
                location_id: id.to_owned(),
                production_run_id: Some(String::new()),
                ..nothing()
            },
            "location_id",
        ),
        (
            v1::InvalidateRequest {
                location_id: id.to_owned(),
                owner_id: "ann".to_owned(),
                ..nothing()
            },
            "location_id",
        ),
        (
            v1::InvalidateRequest {
                location_id: "7".to_owned(),
                ..nothing()
            },
            "location_id",
        ),
        (
            v1::InvalidateRequest {
                r#type: 7,
                ..nothing()
            },
            "type",
        ),
        (
            v1::InvalidateRequest {
                production_run_id: Some("a".repeat(129)),
                ..nothing()
            },
            "production_run_id",
        ),
        (
            v1::InvalidateRequest {
                owner_id: "a".repeat(256),
                ..nothing()
            },
            "owner_id",
        ),
    ] {
        let error = cache.invalidate(request).await.expect_err("refused");
        let expected = (Code::InvalidArgument, vec![field.to_owned()]);
        assert_eq!(blamed(&error), expected, "{error}");
    }
    app.stop().await;
}

async fn stats(cache: &mut CacheClient) -> v1::GetStatsResponse {
    let stats = cache.get_stats(v1::GetStatsRequest {}).await;
    stats.expect("counted").into_inner()
}

/// Hits and misses of the process, then those of Redis; then the bypasses.
fn reads(stats: &v1::GetStatsResponse) -> (Vec<(i64, i64)>, i64) {
    let tiers = stats.tiers.iter();
    let tiers = tiers.map(|tier| (tier.hit_count, tier.miss_count));
    (tiers.collect(), stats.bypass_count)
}

async fn each_read_is_counted_once(pair: Pair) {
    let (app, gates) = gated(pair).await;
    let (mut cache, mut client) = (app.cache_admin(), app.admin());
    // The second tier is there only if there is a Redis.
    let tiers = |local, redis| {
        let tiers = [local, redis];
        tiers[..if shared(pair) { 2 } else { 1 }].to_vec()
    };
    let counted = stats(&mut cache).await;
    assert_eq!(reads(&counted), (tiers((0, 0), (0, 0)), 0));
    let names: Vec<_> = counted
        .tiers
        .iter()
        .map(|tier| tier.tier.as_str())
        .collect();
    assert_eq!(names, ["local", "redis"][..names.len()]);
    assert_eq!(counted.tiers[0].entry_count, Some(0));
    assert_eq!((counted.fill_count, counted.invalidation_count), (0, 0));

    list(&mut client, of_run("run")).await;
    let counted = stats(&mut cache).await;
    assert_eq!(reads(&counted), (tiers((0, 1), (0, 1)), 0), "a miss");
    assert_eq!(counted.fill_count, 1);
    assert_eq!(counted.tiers[0].entry_count, Some(1));
    assert!(counted.tiers[0].size_bytes > Some(0));
    assert_eq!(counted.round_trip_count > 0, shared(pair));

    list(&mut client, of_run("run")).await;
    let counted = stats(&mut cache).await;
    assert_eq!(reads(&counted), (tiers((1, 1), (0, 1)), 0), "a hit");

    let reread = with(of_run("run"), "cache-control", "no-cache");
    client.list_locations(reread).await.expect("listed");
    let counted = stats(&mut cache).await;
    assert_eq!(reads(&counted), (tiers((1, 1), (0, 1)), 1), "no-cache");
    assert_eq!(counted.fill_count, 2);

    let missing = v1::GetLocationRequest {
        id: "01890a5d-ac96-774b-bcce-b302099a8057".to_owned(),
    };
    let error = client.get_location(missing).await.expect_err("missing");
    assert_eq!(error.code(), Code::NotFound);
    let counted = stats(&mut cache).await;
    assert_eq!(
        reads(&counted),
        (tiers((1, 2), (0, 2)), 1),
        "no such location"
    );

    gates.closed.arm();
    let mut writer = client.clone();
    let write = tokio::spawn(async move {
        let new = create(storage("new", "run"));
        writer.create_location(new).await
    });
    gates.closed.held().await;
    list(&mut client, of_run("run")).await;
    gates.closed.release();
    write.await.expect("no panic").expect("created");
    let counted = stats(&mut cache).await;
    assert_eq!(
        reads(&counted),
        (tiers((1, 2), (0, 2)), 2),
        "a write in flight"
    );
    assert_eq!(
        counted.invalidation_count, 9,
        "its own tag and eight predicates"
    );
    assert_eq!((counted.fill_count, counted.rejected_fill_count), (2, 0));

    gates.list_read.arm();
    let mut reader = client.clone();
    let read = tokio::spawn(async move { reader.list_locations(of_run("run")).await });
    gates.list_read.held().await;
    client
        .create_location(create(storage("newer", "run")))
        .await
        .expect("created");
    gates.list_read.release();
    read.await.expect("no panic").expect("listed");
    let counted = stats(&mut cache).await;
    assert_eq!(reads(&counted), (tiers((1, 3), (0, 3)), 2), "overtaken");
    assert_eq!((counted.fill_count, counted.rejected_fill_count), (2, 1));
    assert_eq!(counted.error_count, 0);

    if shared(pair) {
        list(&mut client, of_run("run")).await;
        let replica = app.replica().await;
        list(&mut replica.admin(), of_run("run")).await;
        let counted = stats(&mut replica.cache_admin()).await;
        assert_eq!(reads(&counted), (vec![(0, 1), (1, 0)], 0));
        assert_eq!((counted.fill_count, counted.invalidation_count), (0, 0));
        replica.stop().await;
    }
    app.stop().await;
}

async fn only_admins_may_see_or_change_the_cache(pair: Pair) {
    let app = TestApp::spawn_on(pair).await;
    let mut cache = app.cache_user("ann");
    let own = v1::ExplainListRequest {
        request: Some(of_run("a run")),
        subject: "ann".to_owned(),
    };
    // Also for an invalid request: the error reveals nothing to a caller without permission.
    for request in [own, v1::ExplainListRequest::default()] {
        let refused = cache.explain_list(request).await.expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    for location_id in ["", "7"] {
        let request = v1::InvalidateRequest {
            location_id: location_id.to_owned(),
            ..v1::InvalidateRequest::default()
        };
        let refused = cache.invalidate(request).await.expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let refused = cache.get_stats(v1::GetStatsRequest {}).await;
    assert_eq!(refused.expect_err("refused").code(), Code::PermissionDenied);
    let mut anonymous = v1::cache_service_client::CacheServiceClient::new(app.channel.clone());
    let refused = anonymous.get_stats(v1::GetStatsRequest {}).await;
    assert_eq!(refused.expect_err("refused").code(), Code::Unauthenticated);
    app.stop().await;
}
