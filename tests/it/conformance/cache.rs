//! Cached responses, their invalidation by writes, and `cache-status`.

use location_service::proto::location::v1;
use tonic::{Request, Response};

use super::{anonymous, authorized, batch, created, delete, get, is_hit, update};
use crate::harness::{Client, TestApp, cache_status, create, names, of_run, storage};

on_every_pair! { app:
    the_second_call_of_a_cached_method_hits
    a_write_invalidates_only_the_views_that_it_changes
    writes_without_effect_invalidate_nothing
    errors_that_reveal_a_write_invalidate_its_lists
    no_cache_reads_the_database_and_refreshes
    equivalent_requests_share_an_entry
    different_requests_do_not_share_an_entry
    a_created_location_is_in_the_next_list_and_other_lists_stay_cached
    a_reader_sees_its_own_writes_at_once
}

const MISS: &str = "location-service; fwd=miss; stored";
const REQUESTED: &str = "location-service; fwd=request; stored";

type List = v1::ListLocationsRequest;
type Reports = v1::ListLocationReportsRequest;

async fn the_second_call_of_a_cached_method_hits(app: &TestApp) {
    let mut client = app.admin();
    let location = created(&mut client, storage("x", "run")).await;
    for expect_hit in [false, true] {
        let check = |status: &str| {
            if expect_hit {
                assert!(
                    status.starts_with("location-service; hit; detail="),
                    "{status}"
                );
            } else {
                assert_eq!(status, MISS);
            }
        };
        let list = client
            .list_locations(List::default())
            .await
            .expect("listed");
        check(cache_status(&list));
        assert_eq!(list.get_ref().locations, std::slice::from_ref(&location));
        let one = client
            .get_location(get(&location.id))
            .await
            .expect("it exists");
        check(cache_status(&one));
        assert_eq!(*one.get_ref(), location);
        let reports = client
            .list_location_reports(Reports::default())
            .await
            .expect("reported");
        check(cache_status(&reports));
        assert_eq!(reports.get_ref().reports[0].location_count, 1);
    }
    let ids = v1::BatchGetLocationsRequest {
        ids: vec![location.id.clone()],
    };
    let response = client.batch_get_locations(ids).await.expect("it exists");
    assert!(
        response.metadata().get("cache-status").is_none(),
        "it isn't cached"
    );
}

/// Predicates: a type (0: any), a run (`*`: any) and an owner.
const VIEWS: [(i32, &str, &str); 14] = [
    (0, "*", ""),
    (1, "*", ""),
    (2, "*", ""),
    (0, "paris", ""),
    (0, "berlin", ""),
    (0, "", ""),
    (0, "*", "ann"),
    (0, "*", "bob"),
    (2, "paris", ""),
    (1, "paris", ""),
    (2, "berlin", "ann"),
    (2, "paris", "bob"),
    (1, "*", "ann"),
    (2, "paris", "ann"),
];

/// The views that were cached when this function called them.
async fn hits(app: &TestApp) -> Vec<(i32, &'static str, &'static str)> {
    let mut client = app.admin();
    let mut hits = Vec::new();
    for view @ (r#type, run, owner) in VIEWS {
        let run = (run != "*").then(|| run.to_owned());
        let list = List {
            r#type,
            production_run_id: run.clone(),
            owner_id: owner.to_owned(),
            ..List::default()
        };
        // All filters, orders and pages of one predicate have its tag.
        let by_name = List {
            order_by: "display_name".to_owned(),
            ..list.clone()
        };
        let found = List {
            query: "x".to_owned(),
            state: 1,
            skip: 1,
            ..list.clone()
        };
        let reports = Reports {
            r#type,
            production_run_id: run,
            owner_id: owner.to_owned(),
            ..Reports::default()
        };
        let statuses = [
            is_hit(&client.list_locations(list).await.expect("listed")),
            is_hit(&client.list_locations(by_name).await.expect("listed")),
            is_hit(&client.list_locations(found).await.expect("listed")),
            is_hit(
                &client
                    .list_location_reports(reports)
                    .await
                    .expect("reported"),
            ),
        ];
        assert!(
            statuses.iter().all(|hit| *hit == statuses[0]),
            "{view:?}: {statuses:?}"
        );
        if statuses[0] {
            hits.push(view);
        }
    }
    hits
}

/// Warms the cache, makes a write, and checks that exactly these views were invalidated.
async fn expect_invalidated<T>(
    app: &TestApp,
    what: &str,
    write: impl Future<Output = T>,
    invalidated: impl Fn(i32, &str, &str) -> bool,
) -> T {
    hits(app).await;
    assert_eq!(hits(app).await, VIEWS, "warm before {what}");
    let response = write.await;
    let mut expected = VIEWS.to_vec();
    expected.retain(|&(kind, run, owner)| !invalidated(kind, run, owner));
    assert_eq!(hits(app).await, expected, "after {what}");
    response
}

async fn a_write_invalidates_only_the_views_that_it_changes(app: &TestApp) {
    let in_runs = |runs: &'static [&'static str]| {
        move |kind: i32, run: &str, owner: &str| {
            kind != 1 && (run == "*" || runs.contains(&run)) && matches!(owner, "" | "ann")
        }
    };
    let mut client = app.admin();
    let anns = |run: &str| v1::Location {
        owner_id: "ann".to_owned(),
        ..storage("x", run)
    };
    let create = created(&mut client, anns("paris"));
    let location = expect_invalidated(app, "a creation", create, in_runs(&["paris"])).await;

    let other = created(&mut app.admin(), anns("rome")).await;
    for id in [&location.id, &other.id] {
        let mut client = app.admin();
        assert!(!is_hit(
            &client.get_location(get(id)).await.expect("it exists")
        ));
        assert!(is_hit(
            &client.get_location(get(id)).await.expect("it exists")
        ));
    }
    let change = |run: &str, capacity| v1::Location {
        capacity,
        ..v1::Location {
            production_run_id: run.to_owned(),
            ..location.clone()
        }
    };
    let without_etag = |location: v1::Location| v1::Location {
        etag: String::new(),
        ..location
    };
    let paths = &["production_run_id", "capacity"][..];
    for (what, run, runs) in [
        ("an update", "paris", &["paris"][..]),
        ("a move to a run", "berlin", &["paris", "berlin"]),
        ("a move out of all runs", "", &["berlin", ""]),
        ("a move back", "paris", &["", "paris"]),
    ] {
        let request = update(without_etag(change(run, 5)), paths);
        let write = async { app.admin().update_location(request).await.expect("updated") };
        expect_invalidated(app, what, write, in_runs(runs)).await;
    }
    let mut client = app.admin();
    assert!(!is_hit(
        &client
            .get_location(get(&location.id))
            .await
            .expect("it exists")
    ));
    assert!(is_hit(
        &client
            .get_location(get(&other.id))
            .await
            .expect("it exists")
    ));

    let write = async {
        app.admin()
            .delete_location(delete(&location.id))
            .await
            .expect("deleted")
    };
    expect_invalidated(app, "a deletion", write, in_runs(&["paris"])).await;
    assert!(client.get_location(get(&location.id)).await.is_err());

    let requests = [("paris", "ann"), ("berlin", "bob")].map(|(run, owner)| {
        crate::harness::create(v1::Location {
            owner_id: owner.to_owned(),
            r#type: 1,
            ..storage("x", run)
        })
    });
    let write = async {
        app.admin()
            .batch_create_locations(batch(requests))
            .await
            .expect("created")
    };
    expect_invalidated(app, "a batch", write, |kind, run, owner| {
        kind != 2
            && [("paris", "ann"), ("berlin", "bob")]
                .iter()
                .any(|&(its_run, its_owner)| {
                    (run == "*" || run == its_run) && (owner.is_empty() || owner == its_owner)
                })
    })
    .await;
}

async fn writes_without_effect_invalidate_nothing(app: &TestApp) {
    let mut client = app.admin();
    let location = created(&mut client, storage("x", "paris")).await;
    let mut checked = update(location.clone(), &["capacity"]);
    checked.validate_only = true;
    let write = async {
        let mut client = app.admin();
        let check = v1::CreateLocationRequest {
            validate_only: true,
            ..create(storage("y", "paris"))
        };
        client.create_location(check).await.expect("valid");
        client.update_location(checked).await.expect("valid");
        let check = v1::DeleteLocationRequest {
            validate_only: true,
            ..delete(&location.id)
        };
        client.delete_location(check).await.expect("valid");
        let missing = v1::DeleteLocationRequest {
            allow_missing: true,
            ..delete(&super::uuid(1))
        };
        client
            .delete_location(missing)
            .await
            .expect("missing is fine");
        app.user("ann")
            .delete_location(delete(&location.id))
            .await
            .expect_err("root's");
    };
    expect_invalidated(app, "nothing", write, |_, _, _| false).await;
    let list = client
        .list_locations(List::default())
        .await
        .expect("listed");
    assert_eq!(list.get_ref().locations, [location]);
}

/// The error tells the caller that a write was committed. Its writer may have died before it reopened
/// its tags.
async fn errors_that_reveal_a_write_invalidate_its_lists(app: &TestApp) {
    let location = created(&mut app.admin(), storage("x", "paris")).await;
    let used = v1::CreateLocationRequest {
        location_id: location.id.clone(),
        ..create(storage("y", "paris"))
    };
    let unchanged = location.clone();
    let stale = v1::Location {
        etag: "stale".to_owned(),
        capacity: 9,
        ..location
    };
    let paris = |kind, run: &str, owner: &str| {
        kind != 1 && (run == "*" || run == "paris") && (owner.is_empty() || owner == "root")
    };
    let write = async { app.admin().create_location(used).await.expect_err("used") };
    expect_invalidated(app, "a used id", write, paris).await;
    let request = update(stale, &["capacity"]);
    let write = async {
        app.admin()
            .update_location(request)
            .await
            .expect_err("stale")
    };
    expect_invalidated(app, "a stale etag", write, paris).await;
    let request = update(unchanged, &["capacity"]);
    let write = async {
        app.admin()
            .update_location(request)
            .await
            .expect("unchanged")
    };
    expect_invalidated(app, "an update that changes nothing", write, paris).await;
}

/// A request of an admin with these cache directives.
fn with_directives<T>(directives: &str, message: T) -> Request<T> {
    let mut request = authorized(message);
    let directives = directives.parse().expect("ASCII");
    request.metadata_mut().insert("cache-control", directives);
    request
}

async fn no_cache_reads_the_database_and_refreshes(app: &TestApp) {
    let location = created(&mut app.admin(), storage("x", "run")).await;
    let mut client = anonymous(app);
    // Without an entry, and with one.
    for directives in ["no-cache", "no-cache", "No-Cache", "max-age=0, no-cache"] {
        let response = client
            .get_location(with_directives(directives, get(&location.id)))
            .await;
        let response = response.expect("it exists");
        assert_eq!(cache_status(&response), REQUESTED);
        assert_eq!(*response.get_ref(), location);
        let response = client.get_location(authorized(get(&location.id))).await;
        assert!(is_hit(&response.expect("it exists")));
    }
    for directives in ["", "max-age=0", "x-no-cache"] {
        let response = client
            .get_location(with_directives(directives, get(&location.id)))
            .await;
        assert!(is_hit(&response.expect("it exists")));
    }
    for _ in 0..2 {
        let list = client
            .list_locations(with_directives("no-cache", List::default()))
            .await;
        let list = list.expect("listed");
        assert_eq!(cache_status(&list), REQUESTED);
        assert_eq!(names(&list), ["x"]);
        let reports = client
            .list_location_reports(with_directives("no-cache", Reports::default()))
            .await;
        assert_eq!(cache_status(&reports.expect("reported")), REQUESTED);
    }
}

async fn equivalent_requests_share_an_entry(app: &TestApp) {
    for number in 0..3 {
        created(&mut app.user("ann"), storage(&format!("É {number}"), "run")).await;
    }
    let hit_after = async |client: &mut Client, first: List, same: List| {
        let miss = client.list_locations(first).await.expect("listed");
        assert_eq!(cache_status(&miss), MISS);
        let hit = client.list_locations(same.clone()).await.expect("listed");
        assert!(is_hit(&hit), "{same:?}");
        assert_eq!(hit.get_ref(), miss.get_ref());
    };
    let run = || of_run("run");
    let mut admin = app.admin();
    let explicit = List {
        page_size: 50,
        order_by: " create_time  desc".to_owned(),
        ..run()
    };
    hit_after(&mut admin, run(), explicit).await;
    let most = List {
        page_size: 1_000,
        ..run()
    };
    hit_after(
        &mut admin,
        most,
        List {
            page_size: 5_000,
            ..run()
        },
    )
    .await;
    let upper = List {
        query: "É".to_owned(),
        ..run()
    };
    hit_after(
        &mut admin,
        upper,
        List {
            query: "é".to_owned(),
            ..run()
        },
    )
    .await;
    let own = List {
        owner_id: "ann".to_owned(),
        ..run()
    };
    hit_after(&mut app.user("ann"), run(), own.clone()).await;
    // An admin's request with the same canonical form.
    assert!(is_hit(&admin.list_locations(own).await.expect("listed")));
    let any = Reports::default();
    let miss = admin
        .list_location_reports(any.clone())
        .await
        .expect("reported");
    assert_eq!(cache_status(&miss), MISS);
    let fifty = Reports {
        page_size: 50,
        ..any
    };
    assert!(is_hit(
        &admin.list_location_reports(fifty).await.expect("reported")
    ));
}

async fn different_requests_do_not_share_an_entry(app: &TestApp) {
    let location = created(&mut app.user("ann"), storage("x", "run")).await;
    for (number, list) in [
        List::default(),
        List {
            page_size: 1,
            ..List::default()
        },
        List {
            skip: 1,
            ..List::default()
        },
        List {
            r#type: 1,
            ..List::default()
        },
        List {
            production_run_id: Some(String::new()),
            ..List::default()
        },
        List {
            production_run_id: Some("*".to_owned()),
            ..List::default()
        },
        List {
            production_run_id: Some("run,ann".to_owned()),
            ..List::default()
        },
        List {
            owner_id: "*".to_owned(),
            ..List::default()
        },
        List {
            owner_id: "ann".to_owned(),
            ..List::default()
        },
        List {
            state: 1,
            ..List::default()
        },
        List {
            query: "x".to_owned(),
            ..List::default()
        },
        List {
            order_by: "create_time".to_owned(),
            ..List::default()
        },
        List {
            include_total_size: true,
            ..List::default()
        },
    ]
    .into_iter()
    .enumerate()
    {
        let response = app.admin().list_locations(list).await.expect("listed");
        assert_eq!(cache_status(&response), MISS, "list {number}");
    }
    // A user doesn't share the entries of an admin.
    for mut client in [app.user("bob"), app.user("carl")] {
        let response = client
            .list_locations(List::default())
            .await
            .expect("listed");
        assert_eq!(cache_status(&response), MISS);
        assert_eq!(names(&response), [""; 0]);
        assert!(client.get_location(get(&location.id)).await.is_err());
    }
}

async fn a_created_location_is_in_the_next_list_and_other_lists_stay_cached(app: &TestApp) {
    let mut client = app.admin();
    for run in ["paris", "berlin"] {
        created(&mut client, storage("first", run)).await;
        let list = client.list_locations(of_run(run)).await.expect("listed");
        assert_eq!(cache_status(&list), MISS);
        let list = client.list_locations(of_run(run)).await.expect("listed");
        assert!(is_hit(&list));
    }
    created(&mut client, storage("second", "paris")).await;
    let paris = client
        .list_locations(of_run("paris"))
        .await
        .expect("listed");
    assert_eq!(names(&paris), ["second", "first"]);
    let berlin = client
        .list_locations(of_run("berlin"))
        .await
        .expect("listed");
    assert!(is_hit(&berlin));
}

async fn a_reader_sees_its_own_writes_at_once(app: &TestApp) {
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (mut client, mut admin) = (app.user(&format!("user {number}")), app.admin());
        clients.spawn(async move {
            let mut location = created(&mut client, storage("x", "run")).await;
            for capacity in 1..30 {
                location.capacity = capacity;
                let response = client
                    .update_location(update(location, &["capacity"]))
                    .await;
                location = response.expect("updated").into_inner();
                let own = client
                    .list_locations(List::default())
                    .await
                    .expect("listed");
                assert_eq!(own.get_ref().locations, [location.clone()]);
                let all: Response<_> = admin.list_locations(of_run("run")).await.expect("listed");
                assert!(all.get_ref().locations.contains(&location));
                let one = admin
                    .get_location(get(&location.id))
                    .await
                    .expect("it exists");
                assert_eq!(*one.get_ref(), location);
            }
        });
    }
    clients.join_all().await;
}
