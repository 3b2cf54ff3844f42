//! `ListLocationsRequest.labels`.

use std::collections::BTreeMap;

use location_service::proto::location::v1;

use super::{bad_fields, batch, created, delete, is_hit, update};
use crate::harness::{TestApp, create, names, of_run, storage};

on_every_pair! { app:
    lists_have_only_locations_with_all_labels
    lists_by_label_follow_every_write
    pages_by_label_are_complete
    labels_that_cannot_exist_are_refused
}

type Request = v1::ListLocationsRequest;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn labelled(name: &str, run: &str, pairs: &[(&str, &str)]) -> v1::Location {
    v1::Location {
        labels: labels(pairs),
        ..storage(name, run)
    }
}

async fn lists_have_only_locations_with_all_labels(app: &TestApp) {
    let mut client = app.admin();
    for (name, run, owner, pairs) in [
        ("a", "x", "ann", &[("colour", "red"), ("size", "xl")][..]),
        ("b", "x", "bob", &[("colour", "red"), ("size", "s")]),
        (
            "c",
            "y",
            "ann",
            &[("colour", "Red"), ("k8s.io/app-x_1", "\"é\\\u{1}")],
        ),
        ("d", "x", "ann", &[("colour", "")]),
        ("e", "", "ann", &[]),
    ] {
        let location = v1::Location {
            owner_id: owner.to_owned(),
            ..labelled(name, run, pairs)
        };
        created(&mut client, location).await;
    }
    let any = Request::default;
    let of_ann = || Request {
        owner_id: "ann".to_owned(),
        ..any()
    };
    let red = &[("colour", "red")][..];
    for (request, pairs, expected) in [
        (any(), &[][..], "abcde"),
        (any(), red, "ab"),
        (any(), &[("colour", "red"), ("size", "xl")], "a"),
        (any(), &[("size", "xl"), ("colour", "Red")], ""),
        (any(), &[("colour", "")], "d"),
        (any(), &[("k8s.io/app-x_1", "\"é\\\u{1}")], "c"),
        (any(), &[("colour", "%"), ("size", "_")], ""),
        (of_run("x"), red, "ab"),
        (of_run("y"), red, ""),
        (of_run(""), red, ""),
        (of_ann(), red, "a"),
        (
            Request {
                query: "B".to_owned(),
                ..any()
            },
            red,
            "b",
        ),
        (
            Request {
                r#type: v1::LocationType::Delivery.into(),
                ..any()
            },
            red,
            "",
        ),
    ] {
        for order_by in ["create_time", "display_name", "capacity", "update_time"] {
            let request = Request {
                labels: labels(pairs),
                order_by: order_by.to_owned(),
                include_total_size: true,
                ..request.clone()
            };
            let list = client
                .list_locations(request.clone())
                .await
                .expect("listed");
            let mut found = names(&list);
            found.sort_unstable();
            assert_eq!(found.concat(), expected, "{request:?}");
            assert_eq!(
                usize::try_from(list.get_ref().total_size),
                Ok(found.len()),
                "{request:?}"
            );
        }
    }
    let request = Request {
        labels: labels(red),
        ..any()
    };
    let list = app
        .user("bob")
        .list_locations(request)
        .await
        .expect("listed");
    assert_eq!(names(&list), ["b"]);
}

async fn lists_by_label_follow_every_write(app: &TestApp) {
    let mut client = app.admin();
    let red = Request {
        labels: labels(&[("colour", "red")]),
        ..Request::default()
    };
    let listed = async |expected: &[&str]| {
        let mut client = app.admin();
        for expect_hit in [false, true] {
            let list = client.list_locations(red.clone()).await.expect("listed");
            assert_eq!(names(&list), expected);
            assert_eq!(is_hit(&list), expect_hit);
        }
    };
    listed(&[]).await;
    let a = created(
        &mut client,
        labelled("a", "", &[("colour", "red"), ("x", "")]),
    )
    .await;
    listed(&["a"]).await;
    let b = created(&mut client, storage("b", "run")).await;
    listed(&["a"]).await;
    let change = |location: &v1::Location, pairs: &[(&str, &str)], paths: &[&str]| {
        let change = v1::Location {
            labels: labels(pairs),
            etag: String::new(),
            ..location.clone()
        };
        update(change, paths)
    };
    for (request, expected) in [
        (
            change(&b, &[("colour", "red")], &["labels.colour"]),
            &["b", "a"][..],
        ),
        (
            change(&a, &[("colour", "blue")], &["labels.colour"]),
            &["b"],
        ),
        (change(&a, &[("colour", "red")], &["labels"]), &["b", "a"]),
        (change(&b, &[], &["labels.colour"]), &["a"]),
        (
            change(&b, &[("y", ""), ("colour", "red")], &["labels"]),
            &["b", "a"],
        ),
        (change(&a, &[], &["*"]), &["b"]),
    ] {
        client.update_location(request).await.expect("updated");
        listed(expected).await;
    }
    client
        .delete_location(delete(&b.id))
        .await
        .expect("deleted");
    listed(&[]).await;
    let requests = [&a, &a].map(|location| change(location, &[("colour", "red")], &["labels"]));
    let request = v1::BatchUpdateLocationsRequest {
        requests: requests.into(),
    };
    client
        .batch_update_locations(request)
        .await
        .expect("updated");
    listed(&["a"]).await;
}

async fn pages_by_label_are_complete(app: &TestApp) {
    let mut client = app.admin();
    let requests = (0..60).map(|number| {
        let pairs: &[_] = match number % 3 {
            0 => &[("even", "no"), ("third", "yes")],
            _ => &[("even", "no")],
        };
        let run = ["x", "y"][number % 2];
        create(labelled(&format!("{:02}", number * 7 % 60), run, pairs))
    });
    client
        .batch_create_locations(batch(requests))
        .await
        .expect("created");
    for (run, pairs, expected) in [
        (None, &[("even", "no")][..], 60),
        (None, &[("even", "no"), ("third", "yes")], 20),
        (Some("x"), &[("even", "no"), ("third", "yes")], 10),
    ] {
        for order_by in ["", "create_time", "display_name", "display_name desc"] {
            let mut request = Request {
                production_run_id: run.map(str::to_owned),
                labels: labels(pairs),
                order_by: order_by.to_owned(),
                page_size: 1_000,
                ..Request::default()
            };
            let whole = client
                .list_locations(request.clone())
                .await
                .expect("listed");
            let whole = whole.into_inner().locations;
            assert_eq!(whole.len(), expected);
            request.page_size = 7;
            let mut seen = Vec::new();
            loop {
                let page = client
                    .list_locations(request.clone())
                    .await
                    .expect("listed");
                let page = page.into_inner();
                seen.extend(page.locations);
                request.page_token = page.next_page_token;
                if request.page_token.is_empty() {
                    break;
                }
            }
            assert_eq!(seen, whole, "{order_by}");
        }
    }
}

async fn labels_that_cannot_exist_are_refused(app: &TestApp) {
    let long = "x".repeat(256);
    for (pairs, field) in [
        (&[("Upper", "")][..], "labels"),
        (&[("", "")], "labels"),
        (&[("colour", long.as_str())], "labels.colour"),
    ] {
        let request = Request {
            labels: labels(pairs),
            ..Request::default()
        };
        let status = app.admin().list_locations(request.clone()).await;
        assert_eq!(bad_fields(&status.expect_err("bad")), [field]);
        let request = v1::ExplainListRequest {
            request: Some(request),
            subject: String::new(),
        };
        let status = app.cache_admin().explain_list(request).await;
        assert_eq!(
            bad_fields(&status.expect_err("bad")),
            [format!("request.{field}")]
        );
    }
    for count in [65, 300] {
        let request = Request {
            labels: (0..count)
                .map(|number| (format!("k{number}"), String::new()))
                .collect(),
            ..Request::default()
        };
        let status = app.admin().list_locations(request).await;
        assert_eq!(bad_fields(&status.expect_err("too many")), ["labels"]);
    }
}
