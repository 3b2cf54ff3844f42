//! `ListLocations`: filters, orders and counts.

use location_service::proto::location::v1;

use super::{batch, created};
use crate::harness::{TestApp, create, names, of_run, storage};

on_every_pair! { app:
    page_sizes_have_a_default_and_a_maximum
    filters_combine
    an_empty_run_selects_locations_without_a_run
    a_query_ignores_case_and_its_wildcards_are_literal
    orders_sort_and_ties_are_ordered_by_id
    skip_omits_locations_and_the_total_counts_all
}

type Request = v1::ListLocationsRequest;

async fn listed(app: &TestApp, request: Request) -> v1::ListLocationsResponse {
    let response = app.admin().list_locations(request).await;
    response.expect("listed").into_inner()
}

async fn page_sizes_have_a_default_and_a_maximum(app: &TestApp) {
    let requests = || (0..600).map(|number| create(storage(&number.to_string(), "")));
    for _ in 0..2 {
        let response = app.admin().batch_create_locations(batch(requests())).await;
        response.expect("created");
    }
    for (page_size, expected) in [
        (0, 50),
        (1, 1),
        (1_000, 1_000),
        (1_001, 1_000),
        (i32::MAX, 1_000),
    ] {
        let page = listed(
            app,
            Request {
                page_size,
                ..Request::default()
            },
        )
        .await;
        assert_eq!(page.locations.len(), expected);
        assert!(!page.next_page_token.is_empty());
        assert_eq!(page.total_size, 0, "it wasn't requested");
        let page_token = page.next_page_token;
        let page = listed(
            app,
            Request {
                page_token,
                page_size,
                skip: 50,
                ..Request::default()
            },
        );
        let remaining = 1_200 - expected - 50;
        assert_eq!(page.await.locations.len(), expected.min(remaining));
    }
    let exact = Request {
        page_size: 1_000,
        skip: 200,
        ..Request::default()
    };
    let page = listed(app, exact).await;
    assert_eq!(
        (page.locations.len(), page.next_page_token.as_str()),
        (1_000, "")
    );
}

async fn filters_combine(app: &TestApp) {
    let kinds = [v1::LocationType::Delivery, v1::LocationType::Storage];
    let states = [v1::LocationState::Active, v1::LocationState::Inactive];
    let mut all = Vec::new();
    for kind in kinds {
        for state in states {
            for (run, owner) in [
                ("paris", "ann"),
                ("paris", "bob"),
                ("berlin", "ann"),
                ("", "bob"),
            ] {
                let location = v1::Location {
                    r#type: kind.into(),
                    state: state.into(),
                    owner_id: owner.to_owned(),
                    ..storage(format!("{run} {kind:?} {state:?}").trim_start(), run)
                };
                all.push(created(&mut app.admin(), location).await);
            }
        }
    }
    for r#type in 0..=2 {
        for state in 0..=2 {
            for run in [
                None,
                Some("paris"),
                Some("berlin"),
                Some(""),
                Some("*"),
                Some("Paris"),
            ] {
                for owner in ["", "ann", "bob", "*", "carl"] {
                    for query in ["", "paris"] {
                        let request = Request {
                            r#type,
                            state,
                            production_run_id: run.map(str::to_owned),
                            owner_id: owner.to_owned(),
                            query: query.to_owned(),
                            order_by: "create_time".to_owned(),
                            include_total_size: true,
                            ..Request::default()
                        };
                        let expected = all.iter().filter(|location| {
                            (r#type == 0 || location.r#type == r#type)
                                && (state == 0 || location.state == state)
                                && run.is_none_or(|run| location.production_run_id == run)
                                && (owner.is_empty() || location.owner_id == owner)
                                && location.display_name.contains(query)
                        });
                        let expected: Vec<_> = expected.cloned().collect();
                        let page = listed(app, request.clone()).await;
                        assert_eq!(page.locations, expected, "{request:?}");
                        assert_eq!(usize::try_from(page.total_size), Ok(expected.len()));
                    }
                }
            }
        }
    }
}

async fn an_empty_run_selects_locations_without_a_run(app: &TestApp) {
    for run in ["", "paris", "-"] {
        created(&mut app.admin(), storage(&format!("in {run:?}"), run)).await;
    }
    let mut client = app.admin();
    for run in ["", "paris", "-"] {
        let page = client.list_locations(of_run(run)).await.expect("listed");
        assert_eq!(names(&page), [format!("in {run:?}")]);
    }
    let any = client
        .list_locations(Request::default())
        .await
        .expect("listed");
    assert_eq!(names(&any).len(), 3);
}

async fn a_query_ignores_case_and_its_wildcards_are_literal(app: &TestApp) {
    for name in [
        "Quai de Seine",
        "100% full",
        "100 or so",
        "a_b",
        "a-b",
        "back\\slash",
        "backslash",
        "ÉCOLE",
        "Straße",
        "ΟΔΟΣ ΕΡΜΟΥ",
        "οδός",
        "Ж",
        "İzmir",
        "'quoted'\"",
    ] {
        created(&mut app.admin(), storage(name, "")).await;
    }
    for (query, expected) in [
        ("QUAI", &["Quai de Seine"][..]),
        ("i de s", &["Quai de Seine"]),
        ("0%", &["100% full"]),
        ("%", &["100% full"]),
        ("_", &["a_b"]),
        ("A_B", &["a_b"]),
        ("k\\S", &["back\\slash"]),
        ("\\", &["back\\slash"]),
        ("école", &["ÉCOLE"]),
        ("STRASSE", &["Straße"]),
        ("straße", &["Straße"]),
        ("οδος", &["ΟΔΟΣ ΕΡΜΟΥ"]),
        ("ΟΔΌΣ", &["οδός"]),
        ("οδοσ ε", &["ΟΔΟΣ ΕΡΜΟΥ"]),
        ("ж", &["Ж"]),
        ("İZMIR", &["İzmir"]),
        ("izmir", &["İzmir"]),
        ("I\u{307}zmir", &["İzmir"]),
        ("e\u{301}cole", &["ÉCOLE"]),
        ("STRAẞE", &["Straße"]),
        ("'Q", &["'quoted'\""]),
        ("quai  de", &[]),
        ("ecole", &[]),
        ("*", &[]),
    ] {
        let request = Request {
            query: query.to_owned(),
            ..Request::default()
        };
        let page = app.admin().list_locations(request).await.expect("listed");
        assert_eq!(names(&page), expected, "{query}");
    }
}

async fn orders_sort_and_ties_are_ordered_by_id(app: &TestApp) {
    let mut client = app.admin();
    let requests = (0..40_i64).map(|number| {
        let name =
            ["b", "B", "a", "é", "🚚", "ﬀ", "aa"][usize::try_from(number % 7).expect("small")];
        create(v1::Location {
            capacity: number % 3,
            ..storage(name, "")
        })
    });
    let response = client
        .batch_create_locations(batch(requests))
        .await
        .expect("created");
    let mut all = response.into_inner().locations;
    for location in all.iter_mut().step_by(5) {
        let response = client
            .update_location(super::update(location.clone(), &["capacity"]))
            .await;
        *location = response.expect("updated").into_inner();
    }
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time.expect("assigned");
        (time.seconds, time.nanos)
    };
    for field in ["create_time", "update_time", "display_name", "capacity"] {
        match field {
            "create_time" => all.sort_by_cached_key(|it| (time(it.create_time), it.id.clone())),
            "update_time" => all.sort_by_cached_key(|it| (time(it.update_time), it.id.clone())),
            "display_name" => all.sort_by_cached_key(|it| (it.display_name.clone(), it.id.clone())),
            _ => all.sort_by_cached_key(|it| (it.capacity, it.id.clone())),
        }
        let ascending = Request {
            order_by: field.to_owned(),
            ..Request::default()
        };
        assert_eq!(listed(app, ascending).await.locations, all, "{field}");
        let mut reversed = all.clone();
        reversed.reverse();
        let order_by = format!("  {field}   desc ");
        let descending = Request {
            order_by,
            ..Request::default()
        };
        assert_eq!(
            listed(app, descending).await.locations,
            reversed,
            "{field} desc"
        );
        if field == "create_time" {
            assert_eq!(listed(app, Request::default()).await.locations, reversed);
        }
    }
}

async fn skip_omits_locations_and_the_total_counts_all(app: &TestApp) {
    let requests = (0..10).map(|number| create(storage(&number.to_string(), "run")));
    app.admin()
        .batch_create_locations(batch(requests))
        .await
        .expect("created");
    created(&mut app.admin(), storage("another run's", "")).await;
    for (skip, page_size, expected, more) in [
        (0, 3, &["0", "1", "2"][..], true),
        (7, 3, &["7", "8", "9"], false),
        (8, 3, &["8", "9"], false),
        (10, 3, &[], false),
        (i32::MAX, 3, &[], false),
    ] {
        let request = Request {
            skip,
            page_size,
            order_by: "display_name".to_owned(),
            include_total_size: true,
            ..of_run("run")
        };
        let page = app.admin().list_locations(request).await.expect("listed");
        assert_eq!(names(&page), expected);
        assert_eq!(page.get_ref().total_size, 10);
        assert_eq!(!page.get_ref().next_page_token.is_empty(), more);
    }
}
