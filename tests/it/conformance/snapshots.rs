//! Each response is read from one snapshot of the database.

use std::sync::atomic::{AtomicBool, Ordering};

use location_service::proto::location::v1;

use super::{batch, created, update, with};
use crate::harness::{TestApp, create, of_run, storage};

on_every_pair! { app:
    a_page_and_its_total_are_of_one_time
    a_batch_get_reads_one_snapshot
}

async fn a_page_and_its_total_are_of_one_time(app: &TestApp) {
    let done = AtomicBool::new(false);
    let writers = async {
        let create_many = async |run: &str| {
            let mut client = app.admin();
            for number in 0..60 {
                created(&mut client, storage(&number.to_string(), run)).await;
            }
        };
        tokio::join!(create_many("run"), create_many("run"), create_many("run"));
        done.store(true, Ordering::Relaxed);
    };
    let reader = async {
        let mut client = app.admin();
        while !done.load(Ordering::Relaxed) {
            let request = v1::ListLocationsRequest {
                page_size: 1_000,
                include_total_size: true,
                ..of_run("run")
            };
            let request = with(request, "cache-control", "no-cache");
            let list = client
                .list_locations(request)
                .await
                .expect("listed")
                .into_inner();
            assert_eq!(Ok(list.locations.len()), usize::try_from(list.total_size));
        }
    };
    tokio::join!(writers, reader);
}

async fn a_batch_get_reads_one_snapshot(app: &TestApp) {
    let mut client = app.admin();
    let requests = ["a", "b"].map(|name| create(storage(name, "")));
    let response = client.batch_create_locations(batch(requests)).await;
    let pair = response.expect("created").into_inner().locations;
    let done = AtomicBool::new(false);
    let writer = async {
        let mut client = app.admin();
        for capacity in 1..60 {
            let requests = pair.iter().map(|location| {
                let change = v1::Location {
                    capacity,
                    etag: String::new(),
                    ..location.clone()
                };
                update(change, &["capacity"])
            });
            let request = v1::BatchUpdateLocationsRequest {
                requests: requests.collect(),
            };
            client
                .batch_update_locations(request)
                .await
                .expect("updated");
        }
        done.store(true, Ordering::Relaxed);
    };
    let reader = async {
        let mut client = app.admin();
        let request = v1::BatchGetLocationsRequest {
            ids: pair.iter().map(|location| location.id.clone()).collect(),
        };
        while !done.load(Ordering::Relaxed) {
            let found = client
                .batch_get_locations(request.clone())
                .await
                .expect("found");
            let found = found.into_inner().locations;
            assert_eq!(found[0].capacity, found[1].capacity);
        }
    };
    tokio::join!(writer, reader);
}
