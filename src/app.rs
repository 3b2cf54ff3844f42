//! The composition root: engines, service and servers, put together and taken apart.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request,
    codec::CompressionEncoding,
    server::NamedService,
    service::{Interceptor, InterceptorLayer},
    transport::Server,
};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::{Layer as _, util::MapRequestLayer};

use crate::{
    api::{CacheApi, LocationApi, fast_path::FastPath},
    auth::{Authenticator, KeyError},
    cache::{self, Cache, MemoryCache, RedisCache, RedisConfig, RedisConfigError},
    config::{CacheConfig, DatabaseUrl, ServeConfig},
    coordination::Coordinator,
    error::Error,
    model::{Micros, Principal},
    proto::{
        DESCRIPTORS,
        location::v1::{
            cache_service_server::CacheServiceServer,
            location_service_server::LocationServiceServer,
        },
    },
    server::{self, deadlines::Bounds},
    service::Service,
    store::{self, OpenError, Store, postgres, sqlite},
};

/// The largest request. What it creates fits an answer, which has ids, times and etags as well.
pub const MAX_REQUEST_BYTES: usize = 7 << 19;

const MAX_STREAMS_PER_CONNECTION: u32 = 256;

/// A connection whose other end doesn't answer for this long is closed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How often the database is asked whether it answers, and how long it has to.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the database's connections have to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the answers to creations with a request id are kept, and how often old ones go.
const IDEMPOTENCY_TTL: Duration = Duration::from_hours(24);
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_mins(10);

// A writer's tags open again at its deadline: it has to be dead by then, by a wide margin.
const _: () = assert!(store::MAX_WRITE.as_secs() * 2 <= cache::WRITE_DEADLINE.as_secs());

/// Bounds a server's requests, and compresses its answers for who asks. A macro because generated
/// servers have no trait for it.
macro_rules! configure {
    ($server:expr) => {
        $server
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Zstd)
    };
}

/// Brings the schema of a database up to date.
pub async fn migrate(database: &DatabaseUrl) -> Result<(), StartError> {
    match database {
        DatabaseUrl::Sqlite(path) => sqlite::migrate(path).await?,
        DatabaseUrl::Postgres(url) => postgres::migrate(url).await?,
    }
    Ok(())
}

/// Why the service can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database can't be opened.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The database was opened but doesn't answer.
    #[error("can't read the database")]
    Read(#[from] Error),
    /// The key that tokens are checked with can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Replicas wouldn't see each other's writes in their caches.
    #[error(
        "a PostgreSQL database is shared by replicas, and a cache in the process isn't: set \
         redis-url too, or use a database-url like sqlite:locations.db"
    )]
    PostgresWithoutRedis,
    /// Processes with databases of their own would answer from each other's.
    #[error(
        "a Redis is shared by replicas, and an SQLite database isn't: set database-url to \
         postgres://... too, or leave redis-url out"
    )]
    RedisWithoutPostgres,
    /// The cache server's settings can't be used.
    #[error(transparent)]
    Redis(#[from] RedisConfigError),
}

/// Why the service stopped.
#[derive(Debug, thiserror::Error)]
#[error("the server failed")]
pub struct ServeError(#[from] tonic::transport::Error);

/// What the service works on.
pub struct Engines {
    /// Where the locations are.
    pub store: Arc<dyn Store>,
    /// Where answers are kept.
    pub cache: Arc<dyn Cache>,
    /// How replicas use the cache, if they share it.
    pub epochs: Option<Arc<Coordinator>>,
}

/// The service with its engines, ready to serve.
pub struct App {
    service: Service,
    store: Arc<dyn Store>,
    authenticator: Arc<Authenticator>,
    /// Whether replicas share a Redis.
    shared_cache: bool,
    shutdown_grace: Duration,
}

impl App {
    /// The service over the engines that the configuration names.
    pub async fn build(config: &ServeConfig) -> Result<Self, StartError> {
        Self::assemble(config, Self::open(config).await?).await
    }

    /// Opens the engines that the configuration names.
    pub async fn open(config: &ServeConfig) -> Result<Engines, StartError> {
        let CacheConfig { max_bytes, ttl } = config.cache;
        match (&config.database.url, &config.redis) {
            (DatabaseUrl::Postgres(_), None) => Err(StartError::PostgresWithoutRedis),
            (DatabaseUrl::Sqlite(_), Some(_)) => Err(StartError::RedisWithoutPostgres),
            (DatabaseUrl::Sqlite(path), None) => Ok(Engines {
                store: sqlite::open(path, config.database.migrate).await?,
                cache: Arc::new(MemoryCache::new(max_bytes, ttl)),
                epochs: None,
            }),
            (DatabaseUrl::Postgres(url), Some(redis)) => {
                let options = postgres::Options {
                    max_connections: config.database.max_connections,
                    migrate: config.database.migrate,
                };
                let redis = RedisConfig {
                    url: redis.url.clone(),
                    prefix: redis.key_prefix.clone(),
                    max_local_bytes: max_bytes,
                    ttl,
                };
                let store = postgres::open(url, options).await?;
                let cache = Arc::new(RedisCache::connect(&redis).await?);
                let epochs = Coordinator::follow(postgres::epochs(url)?, Arc::clone(&cache))
                    .await
                    .map_err(Error::from)?;
                Ok(Engines {
                    store,
                    cache,
                    epochs: Some(Arc::new(epochs)),
                })
            }
        }
    }

    /// The service over these engines.
    pub async fn assemble(config: &ServeConfig, engines: Engines) -> Result<Self, StartError> {
        let Engines {
            store,
            cache,
            epochs,
        } = engines;
        Ok(Self {
            service: Service::new(Arc::clone(&store), cache, epochs).await?,
            store,
            authenticator: Arc::new(Authenticator::new(&config.auth)?),
            shared_cache: config.redis.is_some(),
            shutdown_grace: config.server.shutdown_grace,
        })
    }

    /// Serves until `shutdown` is done; then stops accepting, finishes what is in flight within the
    /// grace period, and closes the database.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let (health, health_server) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let watch = spawn(watch_health(health.clone(), Arc::clone(&self.store)));
        let _housekeeping = spawn(purge_loop(Arc::clone(&self.store)));

        let admission = InterceptorLayer::new(self.admission());
        let api = LocationApi::new(self.service.clone());
        let fast = FastPath::new(api.clone(), self.admit());
        let locations = configure!(LocationServiceServer::new(api));
        let cache = configure!(CacheServiceServer::new(CacheApi::new(
            self.service.clone(),
            self.shared_cache
        )));
        let (stop, mut asked) = tokio::sync::watch::channel(false);
        let stopped = async move {
            // A sender that is gone stops the server as well.
            let _ = asked.wait_for(|stop| *stop).await;
        };
        let server = Server::builder()
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .http2_keepalive_interval(Some(KEEPALIVE))
            // Short deadlines reset many streams before a busy server has accepted them.
            .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS_PER_CONNECTION as usize))
            .layer(Bounds::default())
            .layer(MapRequestLayer::new(prefer_encoding))
            .layer(fast)
            .add_service(health_server)
            .add_service(reflection().build_v1().unwrap_or_else(|error| {
                unreachable!("the descriptors were made by the build: {error}")
            }))
            .add_service(reflection().build_v1alpha().unwrap_or_else(|error| {
                unreachable!("the descriptors were made by the build: {error}")
            }))
            .add_service(admission.layer(locations))
            .add_service(admission.layer(cache))
            .serve_with_incoming_shutdown(server::accept(listener), stopped);
        tokio::pin!(server);
        let mut outcome = tokio::select! {
            outcome = &mut server => Some(outcome),
            () = shutdown => None,
        };
        drop(watch);
        set_health(&health, ServingStatus::NotServing).await;
        let grace = tokio::time::Instant::now() + self.shutdown_grace;
        if outcome.is_none() {
            tracing::info!("stopping: calls in flight have {:?}", self.shutdown_grace);
            stop.send_replace(true);
            outcome = tokio::time::timeout_at(grace, &mut server).await.ok();
        }
        if tokio::time::timeout_at(grace, self.service.finish_writes())
            .await
            .is_err()
            || outcome.is_none()
        {
            tracing::warn!("calls still in flight after the grace period were cut off");
        }
        let closed = tokio::time::timeout(CLOSE_TIMEOUT, self.store.close()).await;
        if closed.is_err() {
            tracing::warn!("the database's connections didn't close in time");
        }
        Ok(outcome.unwrap_or(Ok(()))?)
    }

    /// Lets in only who is known, as the request's extension [`Principal`].
    fn admission(&self) -> impl Interceptor + Clone + use<> {
        let admit = self.admit();
        move |mut request: Request<()>| {
            let principal = admit(request.metadata().as_ref())?;
            request.extensions_mut().insert(principal);
            Ok(request)
        }
    }

    /// Tells who sent a request's headers.
    fn admit(&self) -> impl Fn(&HeaderMap) -> Result<Principal, Error> + Clone + use<> {
        let authenticator = Arc::clone(&self.authenticator);
        move |headers| authenticator.authenticate(headers)
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // Lets grpcurl show the details of errors.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

/// Answers are compressed only for who asks: with the encoding of the request's message, or one
/// that the client prefers to `identity`, that is, names before it. Most clients name every encoding
/// that they can read, after `identity`.
fn prefer_encoding<B>(mut request: http::Request<B>) -> http::Request<B> {
    const ACCEPT: &str = "grpc-accept-encoding";
    let headers = request.headers_mut();
    if let Some(encoding) = headers.get("grpc-encoding").cloned() {
        headers.insert(ACCEPT, encoding);
    } else if headers
        .get(ACCEPT)
        .is_some_and(|accepted| accepted.as_bytes().starts_with(b"identity"))
    {
        headers.remove(ACCEPT);
    }
    request
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in [
        "",
        LocationServiceServer::<LocationApi>::NAME,
        CacheServiceServer::<CacheApi>::NAME,
    ] {
        health.set_service_status(service, status).await;
    }
}

/// Keeps the health service truthful: the database decides.
async fn watch_health(health: HealthReporter, store: Arc<dyn Store>) {
    let mut serving = None;
    let mut ticks = tokio::time::interval(HEALTH_INTERVAL);
    loop {
        ticks.tick().await;
        let ping = tokio::time::timeout(HEALTH_TIMEOUT, store.ping()).await;
        let answers = matches!(ping, Ok(Ok(())));
        if serving.replace(answers) == Some(answers) {
            continue;
        }
        if answers {
            tracing::info!("the database answers: serving");
            set_health(&health, ServingStatus::Serving).await;
        } else {
            tracing::error!(?ping, "the database doesn't answer: not serving");
            set_health(&health, ServingStatus::NotServing).await;
        }
    }
}

/// Forgets what is kept for a time only.
async fn purge_loop(store: Arc<dyn Store>) {
    let kept = i64::try_from(IDEMPOTENCY_TTL.as_micros()).unwrap_or(i64::MAX);
    let mut ticks = tokio::time::interval(HOUSEKEEPING_INTERVAL);
    // The first one comes at once, when there are calls to answer.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = store.purge_expired(Micros(Micros::now().0 - kept)).await {
            tracing::warn!(%error, "what is kept for a day couldn't be deleted");
        }
    }
}
