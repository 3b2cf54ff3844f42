//! `grpc.health.v1`: the database decides whether the service is serving; the cache doesn't,
//! because reads fall back to the database.

use std::{sync::Arc, time::Duration};

use tonic::server::NamedService;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    api::{CacheApi, LocationApi},
    proto::location::v1::{
        cache_service_server::CacheServiceServer, location_service_server::LocationServiceServer,
    },
    store::Store,
};

/// The time between two checks of the database.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The time limit of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Sets the status of the server as a whole and of each service.
pub async fn set(health: &HealthReporter, status: ServingStatus) {
    for service in [
        "",
        LocationServiceServer::<LocationApi>::NAME,
        CacheServiceServer::<CacheApi>::NAME,
    ] {
        health.set_service_status(service, status).await;
    }
}

/// Checks the database again and again, and reports each change.
pub async fn watch(health: HealthReporter, store: Arc<dyn Store>) {
    let mut reported = None;
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        let check = tokio::time::timeout(CHECK_TIMEOUT, store.ping()).await;
        let healthy = matches!(check, Ok(Ok(())));
        if reported.replace(healthy) == Some(healthy) {
            continue;
        }
        if healthy {
            tracing::info!("the database is reachable: serving");
            set(&health, ServingStatus::Serving).await;
        } else {
            tracing::error!(?check, "the database check failed: not serving");
            set(&health, ServingStatus::NotServing).await;
        }
    }
}
