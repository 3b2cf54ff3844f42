//! `ListLocationReports`.

use location_service::proto::location::v1;

use super::{bad_fields, batch, created, update};
use crate::harness::{TestApp, create, storage};

on_every_pair! { app:
    a_report_counts_and_sums_its_locations
    a_sum_saturates_at_the_largest_number
    reports_come_in_order_and_in_pages
    a_report_token_is_refused_by_other_requests
    reports_have_the_filters_of_lists
}

type Request = v1::ListLocationReportsRequest;

async fn reported(app: &TestApp, request: Request) -> Vec<v1::LocationReport> {
    let response = app.admin().list_location_reports(request).await;
    response.expect("reported").into_inner().reports
}

async fn a_report_counts_and_sums_its_locations(app: &TestApp) {
    assert_eq!(reported(app, Request::default()).await, []);
    let mut client = app.admin();
    let mut last = v1::Location::default();
    for (region_code, capacity, state) in [("FR", 3, 1), ("FR", 4, 2), ("DE", 0, 1), ("", 5, 2)] {
        let address = v1::Address {
            region_code: region_code.to_owned(),
            ..v1::Address::default()
        };
        let location = v1::Location {
            capacity,
            state,
            address: Some(address),
            ..storage("x", "paris")
        };
        last = created(&mut client, location).await;
    }
    let response = client.update_location(update(last, &["description"])).await;
    let expected = v1::LocationReport {
        r#type: v1::LocationType::Storage.into(),
        production_run_id: "paris".to_owned(),
        location_count: 4,
        active_count: 2,
        total_capacity: 12,
        region_count: 2,
        latest_update_time: response.expect("updated").into_inner().update_time,
    };
    assert_eq!(reported(app, Request::default()).await, [expected]);
}

async fn a_sum_saturates_at_the_largest_number(app: &TestApp) {
    for (run, capacities, sum) in [
        ("one", &[i64::MAX][..], i64::MAX),
        ("many", &[i64::MAX; 9], i64::MAX),
        ("just over", &[i64::MAX, 1], i64::MAX),
        ("exact", &[i64::MAX - 5, 2, 3], i64::MAX),
        ("just under", &[i64::MAX - 5, 2, 2], i64::MAX - 1),
        (
            "carry",
            &[i64::from(u32::MAX), i64::from(u32::MAX), 3],
            (1 << 33) + 1,
        ),
    ] {
        let requests = capacities.iter().map(|&capacity| {
            create(v1::Location {
                capacity,
                ..storage("x", run)
            })
        });
        app.admin()
            .batch_create_locations(batch(requests))
            .await
            .expect("created");
        let request = Request {
            production_run_id: Some(run.to_owned()),
            ..Request::default()
        };
        assert_eq!(reported(app, request).await[0].total_capacity, sum, "{run}");
    }
}

async fn reports_come_in_order_and_in_pages(app: &TestApp) {
    let mut requests = Vec::new();
    for number in 0..30 {
        for r#type in [2, 1] {
            let run = if number == 0 {
                String::new()
            } else {
                format!("run {}", number * 7 % 30)
            };
            requests.push(create(v1::Location {
                r#type,
                ..storage("x", &run)
            }));
        }
    }
    app.admin()
        .batch_create_locations(batch(requests))
        .await
        .expect("created");
    let key = |report: &v1::LocationReport| (report.r#type, report.production_run_id.clone());
    let mut seen = Vec::new();
    let mut page_token = String::new();
    for page in 0.. {
        // The size of a page may change.
        let page_size = 5 + page;
        let request = Request {
            page_size,
            page_token: page_token.clone(),
            ..Request::default()
        };
        let response = app.admin().list_location_reports(request).await;
        let response = response.expect("reported").into_inner();
        seen.extend(response.reports.iter().map(key));
        page_token = response.next_page_token;
        if page_token.is_empty() {
            break;
        }
        assert_eq!(i32::try_from(response.reports.len()), Ok(page_size));
        // A location on an earlier page doesn't shift the next one.
        created(
            &mut app.admin(),
            v1::Location {
                r#type: 1,
                ..storage("x", "")
            },
        )
        .await;
    }
    assert_eq!(seen.len(), 60);
    assert!(seen.is_sorted());
    seen.dedup();
    assert_eq!(seen.len(), 60);
    assert_eq!(
        reported(app, Request::default()).await.len(),
        50,
        "by default"
    );
    let most = Request {
        page_size: i32::MAX,
        ..Request::default()
    };
    assert_eq!(reported(app, most).await.len(), 60);
}

async fn a_report_token_is_refused_by_other_requests(app: &TestApp) {
    for run in ["a", "b"] {
        created(&mut app.admin(), storage("x", run)).await;
    }
    let first = Request {
        page_size: 1,
        ..Request::default()
    };
    let first = app.admin().list_location_reports(first).await;
    let page_token = first.expect("reported").into_inner().next_page_token;
    for other in [
        Request {
            r#type: 1,
            ..Request::default()
        },
        Request {
            production_run_id: Some(String::new()),
            ..Request::default()
        },
        Request {
            owner_id: "root".to_owned(),
            ..Request::default()
        },
    ] {
        let other = Request {
            page_token: page_token.clone(),
            ..other
        };
        let status = app
            .admin()
            .list_location_reports(other)
            .await
            .expect_err("another");
        assert_eq!(bad_fields(&status), ["page_token"]);
    }
    let request = Request {
        page_token: page_token.clone(),
        ..Request::default()
    };
    let status = app
        .user("ann")
        .list_location_reports(request)
        .await
        .expect_err("root's");
    assert_eq!(bad_fields(&status), ["page_token"]);
    let mut bytes = page_token.clone().into_bytes();
    bytes[0] ^= 1;
    let request = Request {
        page_token: String::from_utf8(bytes).expect("ASCII"),
        ..Request::default()
    };
    let status = app
        .admin()
        .list_location_reports(request)
        .await
        .expect_err("changed");
    assert_eq!(bad_fields(&status), ["page_token"]);
}

async fn reports_have_the_filters_of_lists(app: &TestApp) {
    for (r#type, run, owner) in [
        (1, "paris", "ann"),
        (1, "paris", "bob"),
        (2, "paris", "ann"),
        (2, "berlin", "bob"),
        (2, "", "ann"),
    ] {
        let owner_id = owner.to_owned();
        created(
            &mut app.admin(),
            v1::Location {
                r#type,
                owner_id,
                ..storage("x", run)
            },
        )
        .await;
    }
    for (r#type, run, owner, expected) in [
        (
            0,
            None,
            "",
            &[
                (1, "paris", 2),
                (2, "", 1),
                (2, "berlin", 1),
                (2, "paris", 1),
            ][..],
        ),
        (1, None, "", &[(1, "paris", 2)]),
        (0, Some("paris"), "", &[(1, "paris", 2), (2, "paris", 1)]),
        (0, Some(""), "", &[(2, "", 1)]),
        (
            0,
            None,
            "ann",
            &[(1, "paris", 1), (2, "", 1), (2, "paris", 1)],
        ),
        (2, Some("berlin"), "ann", &[]),
    ] {
        let request = Request {
            r#type,
            production_run_id: run.map(str::to_owned),
            owner_id: owner.to_owned(),
            ..Request::default()
        };
        let reports = reported(app, request).await;
        let summary: Vec<_> = reports
            .iter()
            .map(|it| (it.r#type, it.production_run_id.as_str(), it.location_count))
            .collect();
        assert_eq!(summary, expected);
    }
}
