//! Errors while the database is unavailable, from a store that always fails.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use location_service::{
    model::{
        Cursor, ListQuery, Location, LocationId, Micros, OwnerId, Page, Report, ReportCursor,
        ReportQuery,
    },
    proto::location::v1,
    store::{Store, StoreError, StoreResult, StoreStats, Transaction},
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use super::{batch, delete, full, get, reason, update, uuid};
use crate::harness::{Pair, TestApp, create};

/// A database that has gone away after the start.
struct Down;

fn down<T>() -> StoreResult<T> {
    let cause = std::io::Error::other("password of the driver");
    Err(StoreError::unavailable(cause))
}

#[async_trait]
impl Store for Down {
    async fn list(&self, _: &ListQuery, _: Option<&Cursor>) -> StoreResult<Page<Location, Cursor>> {
        down()
    }

    async fn get(&self, _: &[LocationId], _: Option<&OwnerId>) -> StoreResult<Vec<Location>> {
        down()
    }

    async fn reports(
        &self,
        _: &ReportQuery,
        _: Option<&ReportCursor>,
    ) -> StoreResult<Page<Report, ReportCursor>> {
        down()
    }

    async fn begin(&self) -> StoreResult<Box<dyn Transaction>> {
        down()
    }

    async fn delete_previous_images(&self, _: &[LocationId], _: Micros) -> StoreResult<()> {
        down()
    }

    async fn purge_expired(&self, _: Duration) -> StoreResult<()> {
        down()
    }

    async fn page_token_key(&self) -> StoreResult<[u8; 32]> {
        Ok([7; 32])
    }

    async fn ping(&self) -> StoreResult<()> {
        down()
    }

    async fn close(&self) {}

    fn stats(&self) -> StoreStats {
        StoreStats::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_database_are_unavailable_with_a_retry_delay() {
    let app = TestApp::spawn_with(Pair::Embedded, |_, cache| (Arc::new(Down), cache)).await;
    let mut client = app.admin();
    let ids = vec![uuid(1)];
    let found = v1::Location {
        id: uuid(1),
        ..full()
    };
    let statuses = [
        client
            .list_locations(v1::ListLocationsRequest::default())
            .await
            .map(|_| ()),
        client.get_location(get(&uuid(1))).await.map(|_| ()),
        client
            .batch_get_locations(v1::BatchGetLocationsRequest { ids })
            .await
            .map(|_| ()),
        client.create_location(create(full())).await.map(|_| ()),
        client
            .batch_create_locations(batch([create(full())]))
            .await
            .map(|_| ()),
        client
            .update_location(update(found.clone(), &["capacity"]))
            .await
            .map(|_| ()),
        client
            .batch_update_locations(v1::BatchUpdateLocationsRequest {
                requests: vec![update(found, &["capacity"])],
            })
            .await
            .map(|_| ()),
        client.delete_location(delete(&uuid(1))).await.map(|_| ()),
        client
            .batch_delete_locations(v1::BatchDeleteLocationsRequest {
                requests: vec![delete(&uuid(1))],
            })
            .await
            .map(|_| ()),
        client
            .list_location_reports(v1::ListLocationReportsRequest::default())
            .await
            .map(|_| ()),
    ];
    for status in statuses.map(|response| response.expect_err("it is down")) {
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(reason(&status), "DATABASE_UNAVAILABLE");
        let retry = status.get_details_retry_info().expect("given");
        assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));
        assert!(
            !format!("{status:?}").contains("password"),
            "never a driver's text"
        );
    }
    let mut health = HealthClient::new(app.channel.clone());
    for service in ["", "location.v1.LocationService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let response = health.check(request).await.expect("it is known");
        assert_eq!(response.get_ref().status(), ServingStatus::NotServing);
    }
    app.stop().await;
}
