//! Pages are complete and without repeats, and their tokens are bound to the request.

use std::collections::HashSet;

use location_service::proto::location::v1;
use tonic::Response;

use super::{bad_fields, batch, created, delete, reason};
use crate::harness::{TestApp, create, names, of_run, storage};

on_every_pair! { app:
    pages_are_complete_in_every_order_during_writes
    pages_of_a_filtered_list_are_complete
    page_size_and_skip_may_change_between_pages
    a_token_of_another_request_is_refused
    a_token_of_another_caller_is_refused
    a_changed_token_is_refused
    pages_of_large_locations_stay_under_4_mib
}

type Request = v1::ListLocationsRequest;

async fn numbered(app: &TestApp, count: i64) -> Vec<v1::Location> {
    let requests = (0..count).map(|number| {
        let name = format!("name {:02}", number * 7 % 20);
        let run = ["odd", "even"][usize::from(number % 2 == 0)];
        create(v1::Location {
            capacity: number % 5,
            ..storage(&name, run)
        })
    });
    let response = app.admin().batch_create_locations(batch(requests)).await;
    response.expect("created").into_inner().locations
}

/// The locations of all pages of a list. `between` is called between two pages, with the locations
/// so far.
async fn pages(
    app: &TestApp,
    request: Request,
    mut between: impl AsyncFnMut(&[v1::Location]),
) -> Vec<v1::Location> {
    let mut client = app.admin();
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let response = client
            .list_locations(Request {
                page_token,
                ..request.clone()
            })
            .await;
        let page = response.expect("listed").into_inner();
        let limit = usize::try_from(request.page_size).expect("positive");
        assert!(page.locations.len() <= limit);
        seen.extend(page.locations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return seen;
        }
        between(&seen).await;
    }
}

async fn pages_are_complete_in_every_order_during_writes(app: &TestApp) {
    for field in ["create_time", "update_time", "display_name", "capacity"] {
        for direction in ["", " desc"] {
            let all: Vec<_> = numbered(app, 40)
                .await
                .into_iter()
                .map(|location| location.id)
                .collect();
            let request = Request {
                page_size: 3,
                order_by: format!("{field}{direction}"),
                ..Request::default()
            };
            let mut deleted = HashSet::new();
            let seen = pages(app, request.clone(), async |seen: &[v1::Location]| {
                let mut client = app.admin();
                let ids: HashSet<_> = seen.iter().map(|location| &location.id).collect();
                // Delete one location of an earlier page and one of a later page, while there are some.
                for is_seen in [true, false] {
                    let victim = all
                        .iter()
                        .find(|id| ids.contains(id) == is_seen && !deleted.contains(*id));
                    if let Some(id) = victim {
                        client.delete_location(delete(id)).await.expect("deleted");
                        deleted.insert(id.clone());
                    }
                }
                // Create locations before, between and after the existing ones.
                if deleted.len() < 20 {
                    for (name, capacity) in [("a", 0), ("name 10", 2), ("z", 9)] {
                        let new = v1::Location {
                            capacity,
                            ..storage(name, "odd")
                        };
                        created(&mut client, new).await;
                    }
                }
            })
            .await;
            let ids: HashSet<_> = seen.iter().map(|location| location.id.clone()).collect();
            assert_eq!(ids.len(), seen.len(), "no repeats in {}", request.order_by);
            for id in &all {
                assert!(
                    ids.contains(id) || deleted.contains(id),
                    "a gap in {}",
                    request.order_by
                );
            }
            let rest = pages(app, request, async |_: &[v1::Location]| {}).await;
            for location in rest {
                app.admin()
                    .delete_location(delete(&location.id))
                    .await
                    .expect("deleted");
            }
        }
    }
}

async fn pages_of_a_filtered_list_are_complete(app: &TestApp) {
    let all = numbered(app, 60).await;
    for order_by in [
        "",
        "create_time",
        "display_name",
        "display_name desc",
        "capacity",
        "capacity desc",
    ] {
        let request = Request {
            page_size: 4,
            order_by: order_by.to_owned(),
            query: "NAME 1".to_owned(),
            state: v1::LocationState::Active.into(),
            r#type: v1::LocationType::Storage.into(),
            ..of_run("odd")
        };
        let whole = Request {
            page_size: 1_000,
            ..request.clone()
        };
        let whole = app
            .admin()
            .list_locations(whole)
            .await
            .expect("listed")
            .into_inner()
            .locations;
        assert_eq!(
            pages(app, request, async |_: &[v1::Location]| {}).await,
            whole
        );
        let expected = all.iter().filter(|location| {
            location.production_run_id == "odd" && location.display_name.starts_with("name 1")
        });
        assert_eq!(whole.len(), expected.count());
    }
}

async fn page_size_and_skip_may_change_between_pages(app: &TestApp) {
    let requests = (0..9).map(|number| create(storage(&number.to_string(), "")));
    app.admin()
        .batch_create_locations(batch(requests))
        .await
        .expect("created");
    let mut client = app.admin();
    let mut page = async |page_size, skip, page_token: &str| {
        let request = Request {
            page_size,
            skip,
            page_token: page_token.to_owned(),
            order_by: "display_name".to_owned(),
            ..Request::default()
        };
        client.list_locations(request).await.expect("listed")
    };
    let token = |page: &Response<v1::ListLocationsResponse>| page.get_ref().next_page_token.clone();
    let first = page(2, 1, "").await;
    assert_eq!(names(&first), ["1", "2"]);
    let second = page(3, 0, &token(&first)).await;
    assert_eq!(names(&second), ["3", "4", "5"]);
    let third = page(1, 2, &token(&second)).await;
    assert_eq!(names(&third), ["8"]);
    assert_eq!(token(&third), "");
    // A token can be used again.
    let again = page(3, 0, &token(&first)).await;
    assert_eq!(again.get_ref(), second.get_ref());
}

async fn a_token_of_another_request_is_refused(app: &TestApp) {
    numbered(app, 20).await;
    let mut client = app.admin();
    let request = Request {
        page_size: 2,
        ..of_run("odd")
    };
    let first = client
        .list_locations(request.clone())
        .await
        .expect("listed")
        .into_inner();
    let request = Request {
        page_token: first.next_page_token.clone(),
        ..request
    };
    // An equivalent request accepts it.
    let same = Request {
        order_by: "create_time desc".to_owned(),
        ..request.clone()
    };
    client.list_locations(same).await.expect("it is the same");
    let counted = Request {
        include_total_size: true,
        ..request.clone()
    };
    let counted = client.list_locations(counted).await.expect("the same list");
    assert_eq!(counted.get_ref().total_size, 10);
    for other in [
        Request {
            r#type: 2,
            ..request.clone()
        },
        Request {
            production_run_id: None,
            ..request.clone()
        },
        Request {
            production_run_id: Some(String::new()),
            ..request.clone()
        },
        Request {
            owner_id: "root".to_owned(),
            ..request.clone()
        },
        Request {
            state: 1,
            ..request.clone()
        },
        Request {
            query: "n".to_owned(),
            ..request.clone()
        },
        Request {
            order_by: "create_time".to_owned(),
            ..request.clone()
        },
        Request {
            order_by: "update_time desc".to_owned(),
            ..request.clone()
        },
        Request {
            order_by: "display_name".to_owned(),
            ..request.clone()
        },
        Request {
            labels: [("a".to_owned(), String::new())].into(),
            ..request.clone()
        },
    ] {
        let status = client
            .list_locations(other)
            .await
            .expect_err("another request");
        assert_eq!(bad_fields(&status), ["page_token"]);
        assert_eq!(reason(&status), "PAGE_TOKEN_INVALID");
    }
    let reports = v1::ListLocationReportsRequest {
        production_run_id: request.production_run_id,
        page_token: first.next_page_token,
        ..v1::ListLocationReportsRequest::default()
    };
    let status = client
        .list_location_reports(reports)
        .await
        .expect_err("another method");
    assert_eq!(bad_fields(&status), ["page_token"]);
}

async fn a_token_of_another_caller_is_refused(app: &TestApp) {
    for subject in ["ann", "bob"] {
        for name in ["1", "2", "3"] {
            created(&mut app.user(subject), storage(name, "")).await;
        }
    }
    let request = Request {
        page_size: 1,
        ..Request::default()
    };
    let first = app
        .user("ann")
        .list_locations(request.clone())
        .await
        .expect("listed");
    let page_token = first.into_inner().next_page_token;
    let request = Request {
        page_token,
        ..request
    };
    for mut other in [app.user("bob"), app.admin()] {
        let status = other
            .list_locations(request.clone())
            .await
            .expect_err("ann's");
        assert_eq!(bad_fields(&status), ["page_token"]);
    }
    let second = app
        .user("ann")
        .list_locations(request)
        .await
        .expect("her own");
    assert_eq!(names(&second), ["2"]);
}

async fn a_changed_token_is_refused(app: &TestApp) {
    numbered(app, 5).await;
    let mut client = app.admin();
    let request = Request {
        page_size: 1,
        ..Request::default()
    };
    let first = client
        .list_locations(request.clone())
        .await
        .expect("listed");
    let token = first.into_inner().next_page_token;
    let mut changed: Vec<String> = (0..token.len())
        .map(|index| {
            let other = if &token[index..=index] == "A" {
                "B"
            } else {
                "A"
            };
            format!("{}{other}{}", &token[..index], &token[index + 1..])
        })
        .collect();
    changed.extend([
        format!("{token}A"),
        format!("{token}="),
        format!(" {token}"),
        token[..token.len() - 1].to_owned(),
        token.to_lowercase(),
        "AAAA".to_owned(),
        "é".to_owned(),
        "x".repeat(1 << 20),
    ]);
    for page_token in changed {
        let status = client
            .list_locations(Request {
                page_token,
                ..request.clone()
            })
            .await;
        assert_eq!(bad_fields(&status.expect_err("changed")), ["page_token"]);
    }
}

async fn pages_of_large_locations_stay_under_4_mib(app: &TestApp) {
    let mut client = app.admin();
    let large = || v1::Location {
        description: "🚚".repeat(2_000),
        labels: (0..64)
            .map(|key| (format!("{key:k>63}"), "🚚".repeat(255)))
            .collect(),
        ..storage("large", "")
    };
    let mut ids = HashSet::new();
    for _ in 0..4 {
        let response = client
            .batch_create_locations(batch((0..25).map(|_| create(large()))))
            .await;
        ids.extend(
            response
                .expect("created")
                .into_inner()
                .locations
                .into_iter()
                .map(|it| it.id),
        );
    }
    // The client refuses a page of more than 4 MiB.
    let request = Request {
        page_size: 1_000,
        ..Request::default()
    };
    let seen = pages(app, request, async |_: &[v1::Location]| {}).await;
    assert_eq!(seen.len(), 100);
    assert_eq!(
        seen.into_iter().map(|it| it.id).collect::<HashSet<_>>(),
        ids
    );
    let mut ids = v1::BatchGetLocationsRequest {
        ids: ids.into_iter().collect(),
    };
    let status = client
        .batch_get_locations(ids.clone())
        .await
        .expect_err("too large");
    assert_eq!(bad_fields(&status), ["ids"]);
    ids.ids.truncate(30);
    client.batch_get_locations(ids).await.expect("it fits");
}
