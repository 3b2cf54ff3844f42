//! `grpc.health.v1`: the database decides whether the service is serving; the cache doesn't,
//! because reads fall back to the database.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
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

/// The health of the server.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    serving: watch::Sender<bool>,
}

impl Health {
    /// A server that isn't serving yet.
    pub async fn new(reporter: HealthReporter) -> Self {
        let (serving, _) = watch::channel(false);
        let health = Self { reporter, serving };
        health.set(false).await;
        health
    }

    /// Whether the server is serving.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.serving.subscribe()
    }

    /// Sets the status of the server as a whole and of each service.
    pub async fn set(&self, serving: bool) {
        self.serving.send_replace(serving);
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in [
            "",
            LocationServiceServer::<LocationApi>::NAME,
            CacheServiceServer::<CacheApi>::NAME,
        ] {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// Checks the database every [`CHECK_INTERVAL`], and reports each change.
pub async fn watch(health: Health, store: Arc<dyn Store>) {
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
        } else {
            tracing::error!(?check, "the database check failed: not serving");
        }
        health.set(healthy).await;
    }
}
