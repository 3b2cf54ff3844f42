//! Durability across a restart.

use location_service::proto::location::v1;

use super::{batch, created, delete, full, get, read, uuid};
use crate::harness::{TestApp, create, names, of_run, storage};

on_every_pair! { owned:
    everything_survives_a_restart
}

async fn everything_survives_a_restart(app: TestApp) {
    let mut client = app.admin();
    let location = created(&mut client, full()).await;
    let gone = created(&mut client, full()).await;
    client
        .delete_location(delete(&gone.id))
        .await
        .expect("deleted");
    let once = v1::CreateLocationRequest {
        request_id: uuid(1),
        ..create(full())
    };
    let first = client
        .create_location(once.clone())
        .await
        .expect("created")
        .into_inner();
    let requests = ["a", "b", "c"].map(|name| create(storage(name, "run")));
    client
        .batch_create_locations(batch(requests))
        .await
        .expect("created");
    let request = v1::ListLocationsRequest {
        page_size: 2,
        order_by: "display_name".to_owned(),
        ..of_run("run")
    };
    let page = client
        .list_locations(request.clone())
        .await
        .expect("listed")
        .into_inner();

    let app = app.restart().await;
    let mut client = app.admin();
    assert_eq!(read(&mut client, &location.id).await, location);
    assert!(client.get_location(get(&gone.id)).await.is_err());
    let again = client
        .create_location(once)
        .await
        .expect("a retry")
        .into_inner();
    assert_eq!(again, first, "request ids are remembered");
    let request = v1::ListLocationsRequest {
        page_token: page.next_page_token,
        ..request
    };
    let rest = client
        .list_locations(request)
        .await
        .expect("page tokens hold");
    assert_eq!(names(&rest), ["c"]);
    app.stop().await;
}
