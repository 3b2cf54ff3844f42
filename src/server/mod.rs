//! Serving over TCP: connections, limits of calls, health, metrics, and a graceful shutdown.

mod admission;
mod connection;
mod connections;
mod deadlines;
mod handshake;
mod health;
mod limit;
mod listener;
mod metrics;
mod observe;
mod protocol;
mod purge;
mod receive;
mod reflection;
mod streams;
mod write_buffer;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;
use tower::ServiceBuilder;

pub use self::metrics::MetricsPort;
use self::{
    admission::{Admission, MAX_NAME_BYTES},
    connections::Connections,
    health::Health,
    listener::{Listener, MaxAge},
    metrics::Metrics,
    observe::{Calls, Observe},
    purge::purge_loop,
};
use crate::{
    api::{CacheApi, LocationApi, fast_path::FastPath},
    auth::Authenticator,
    proto::location::v1::{
        cache_service_server::CacheServiceServer, location_service_server::LocationServiceServer,
    },
    service::Service,
    store::Store,
    telemetry::AccessLog,
    tls::ServerTls,
};

/// The time for calls in flight to end on a connection that has reached its maximum age: no call to
/// a method takes longer.
pub const MAX_AGE_GRACE: Duration = deadlines::MAX_DEADLINE;

/// The time limit for closing the database's connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A server of the API, of health and of reflection.
pub struct Server {
    /// The implementation of both services.
    pub service: Service,
    /// The database: decides the health, is purged regularly, and closed at the end.
    pub store: Arc<dyn Store>,
    /// Identifies callers.
    pub authenticator: Arc<Authenticator>,
    /// Maximum number of open connections; `None` is 8,192, or fewer if the limit of file descriptors
    /// is lower.
    pub max_connections: Option<usize>,
    /// The age at which connections are ended; `None` is no limit.
    pub max_connection_age: Option<Duration>,
    /// The certificate of the port; `None` serves without TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// Whether the cache has a tier in Redis.
    pub shared_cache: bool,
    /// The time for calls in flight to finish after a shutdown began.
    pub shutdown_grace: Duration,
    /// The calls that are logged.
    pub access_log: AccessLog,
    /// The port of metrics and probes.
    pub metrics: Option<MetricsPort>,
}

impl Server {
    /// Serves until `shutdown` completes. Then stops accepting connections, waits up to the grace
    /// period for calls in flight, and closes the database.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
        let (health, health_service) = tonic_health::server::health_reporter();
        let health = Health::new(health).await;
        let watch_health = spawn(health::watch(health.clone(), Arc::clone(&self.store)));
        let _purge = spawn(purge_loop(Arc::clone(&self.store)));

        let connections = Connections::new(self.max_connections);
        let _sweep = spawn(Arc::clone(&connections).sweep_loop());
        let calls = Arc::new(Calls::new());
        if let Some(port) = &self.metrics {
            let metrics = Metrics {
                calls: Arc::clone(&calls),
                connections: Arc::clone(&connections),
                service: self.service.clone(),
                tls: self.tls.clone(),
            };
            port.show(metrics, health.subscribe());
        }
        let is_logged = self.access_log != AccessLog::Off;
        let admission = Admission::new(Arc::clone(&self.authenticator), is_logged);
        let fast_path = FastPath::new(self.service.clone());
        let api = LocationApi::new(self.service.clone());
        let locations = LocationServiceServer::new(api);
        let cache = CacheServiceServer::new(CacheApi::new(self.service.clone(), self.shared_cache));
        let (stop, mut stopped) = watch::channel(false);
        let stopped = async move {
            // An error means that the sender was dropped, which stops the server as well.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let routes = Routes::new(health_service)
            .add_service(reflection::v1().max_decoding_message_size(MAX_NAME_BYTES))
            .add_service(reflection::v1alpha().max_decoding_message_size(MAX_NAME_BYTES))
            .add_service(locations)
            .add_service(cache)
            .prepare();
        let service = ServiceBuilder::new()
            .layer(Observe::new(calls, self.access_log))
            .layer(admission)
            .layer(fast_path)
            .service(routes);
        let _watch_tls = self.tls.clone().map(|tls| spawn(tls.watch_loop()));
        let listener = Listener {
            socket: listener,
            connections,
            tls: self.tls,
            max_age: self.max_connection_age.map(|mean| MaxAge {
                mean,
                grace: MAX_AGE_GRACE,
            }),
        };
        let mut server = pin!(listener.serve(service, stopped));
        // The server only ends after it was stopped.
        tokio::select! {
            () = &mut server => {}
            () = shutdown => {}
        }

        watch_health.abort();
        let _ = watch_health.await;
        health.set(false).await;
        let grace = Instant::now() + self.shutdown_grace;
        tracing::info!(
            "stopping: calls in flight have {:?} to finish",
            self.shutdown_grace
        );
        stop.send_replace(true);
        let calls = timeout_at(grace, &mut server).await;
        let writes = timeout_at(grace, self.service.finish_writes()).await;
        if writes.is_err() || calls.is_err() {
            tracing::warn!("calls still in flight after the grace period were aborted");
        }
        if timeout(CLOSE_TIMEOUT, self.store.close()).await.is_err() {
            tracing::warn!("the database connections didn't close within {CLOSE_TIMEOUT:?}");
        }
        if let Some(port) = self.metrics {
            port.close().await;
        }
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
