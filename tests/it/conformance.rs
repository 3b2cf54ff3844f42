//! What the contract promises, on every pair of engines.

use crate::harness::{TestApp, cache_status, create, names, of_run, storage};

#[tokio::test(flavor = "multi_thread")]
async fn a_created_location_is_in_the_next_list_and_other_lists_stay_cached() {
    let app = TestApp::spawn().await;
    let mut client = app.admin();
    for run in ["paris", "berlin"] {
        client
            .create_location(create(storage("first", run)))
            .await
            .expect("created");
        for expected in [
            "location-service; fwd=miss; stored",
            "location-service; hit; detail=local",
        ] {
            let list = client.list_locations(of_run(run)).await.expect("listed");
            assert_eq!(cache_status(&list), expected);
        }
    }
    client
        .create_location(create(storage("second", "paris")))
        .await
        .expect("created");
    let paris = client
        .list_locations(of_run("paris"))
        .await
        .expect("listed");
    assert_eq!(names(&paris), ["second", "first"]);
    let berlin = client
        .list_locations(of_run("berlin"))
        .await
        .expect("listed");
    assert_eq!(cache_status(&berlin), "location-service; hit; detail=local");
    app.stop().await;
}
