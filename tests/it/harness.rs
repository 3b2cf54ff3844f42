//! Starts the service in the process, on a free port and with a database of its own.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use location_service::{
    app::{App, MetricsPort},
    auth::NewToken,
    cache::Cache,
    config::{
        AccessLog, AuthConfig, CacheConfig, DatabaseConfig, DatabaseUrl, KeyFile, LogConfig,
        LogFormat, RedisConfig, ServeConfig, ServerConfig,
    },
    model::OwnerId,
    proto::location::v1::{
        self, cache_service_client::CacheServiceClient,
        location_service_client::LocationServiceClient,
    },
    store::{Migrate, Store},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Request, Response, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tracing_subscriber::EnvFilter;

use servers::{
    postgres::Postgres,
    redis::{RedisCluster, RedisServer},
};

/// A client of `LocationService` that sends a token.
pub type Client = LocationServiceClient<InterceptedService<Channel, Bearer>>;

/// A client of `CacheService` that sends a token.
pub type CacheClient = CacheServiceClient<InterceptedService<Channel, Bearer>>;

/// The time limit for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The secret of the tests' tokens.
pub const SECRET: &[u8] = b"a secret of the tests, of 32 bytes or more";

/// Counts the tables of a PostgreSQL database.
pub const COUNT_TABLES: &str = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";

/// A running service.
pub struct TestApp {
    pub config: ServeConfig,
    pub channel: Channel,
    pub url: String,
    /// The port of metrics, if the configuration has one.
    pub metrics: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    /// Dropped last.
    dir: Arc<TempDir>,
}

/// A pair of engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// SQLite, and a cache in the process.
    Embedded,
    /// PostgreSQL and a Redis server.
    Redis,
    /// PostgreSQL and a Redis Cluster of three masters.
    Cluster,
}

impl TestApp {
    /// The service on SQLite and memory.
    pub async fn spawn() -> Self {
        Self::spawn_on(Pair::Embedded).await
    }

    /// The service on this pair of engines.
    pub async fn spawn_on(pair: Pair) -> Self {
        Self::spawn_with(pair, |store, cache| (store, cache)).await
    }

    /// The service on engines that the test wraps.
    pub async fn spawn_with(
        pair: Pair,
        wrap: impl FnOnce(Arc<dyn Store>, Arc<dyn Cache>) -> (Arc<dyn Store>, Arc<dyn Cache>),
    ) -> Self {
        let dir = Arc::new(TempDir::new().expect("a temporary folder"));
        let config = config_on(pair, &dir).await;
        Self::spawn_config(config, dir, wrap).await
    }

    /// The service on database and Redis servers that belong to the test.
    pub async fn spawn_at(database: String, redis_url: String) -> Self {
        let dir = Arc::new(TempDir::new().expect("a temporary folder"));
        let config = shared_config(database, redis_url, "test:".to_owned(), &dir);
        Self::spawn_config(config, dir, |store, cache| (store, cache)).await
    }

    /// The service on this pair of engines, with a changed configuration.
    pub async fn spawn_changed(pair: Pair, change: impl FnOnce(&mut ServeConfig)) -> Self {
        let dir = Arc::new(TempDir::new().expect("a temporary folder"));
        let mut config = config_on(pair, &dir).await;
        change(&mut config);
        Self::spawn_config(config, dir, |store, cache| (store, cache)).await
    }

    /// The service with this configuration, whose files are in `dir`, on engines that the test wraps.
    pub async fn spawn_config(
        config: ServeConfig,
        dir: Arc<TempDir>,
        wrap: impl FnOnce(Arc<dyn Store>, Arc<dyn Cache>) -> (Arc<dyn Store>, Arc<dyn Cache>),
    ) -> Self {
        let mut engines = Box::pin(App::open(&config))
            .await
            .expect("the engines open");
        (engines.store, engines.cache) = wrap(engines.store, engines.cache);
        let app = App::assemble(&config, engines).await;
        Self::serve(app.expect("the service starts"), config, dir).await
    }

    /// Another replica on the same database and Redis.
    pub async fn replica(&self) -> Self {
        self.replica_with(|store, cache| (store, cache)).await
    }

    /// Another replica on the same database and Redis, with engines that the test wraps.
    pub async fn replica_with(
        &self,
        wrap: impl FnOnce(Arc<dyn Store>, Arc<dyn Cache>) -> (Arc<dyn Store>, Arc<dyn Cache>),
    ) -> Self {
        Self::spawn_config(self.config.clone(), Arc::clone(&self.dir), wrap).await
    }

    async fn serve(mut app: App, config: ServeConfig, dir: Arc<TempDir>) -> Self {
        let mut metrics = None;
        if let Some(address) = config.server.metrics_listen {
            let listener = TcpListener::bind(address).await.expect("a free port");
            metrics = Some(listener.local_addr().expect("bound"));
            app = app.with_metrics(MetricsPort::open(listener));
        }
        let listener = TcpListener::bind(config.server.listen)
            .await
            .expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move {
            let stop = async move {
                let _ = stopped.await;
            };
            app.serve(listener, stop).await;
        });
        Self {
            config,
            channel: connect(&url).await,
            url,
            metrics,
            stop: Some(stop),
            server,
            dir,
        }
    }

    /// Stops the service gracefully.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        tokio::time::timeout(PATIENCE, &mut self.server)
            .await
            .expect("the service stops in time")
            .expect("the server doesn't panic");
    }

    /// Stops the service, and starts it again on the same database.
    pub async fn restart(self) -> Self {
        let (config, dir) = (self.config.clone(), Arc::clone(&self.dir));
        self.stop().await;
        let app = App::build(&config).await.expect("the service starts again");
        Self::serve(app, config, dir).await
    }

    /// A client with an admin's token.
    pub fn admin(&self) -> Client {
        self.client("root", true)
    }

    /// A client with an admin's token on a new connection.
    pub async fn admin_on_new_connection(&self) -> Client {
        admin(connect(&self.url).await)
    }

    /// A client with the token of a caller who isn't an admin.
    pub fn user(&self, subject: &str) -> Client {
        self.client(subject, false)
    }

    /// A client of `CacheService` with an admin's token.
    pub fn cache_admin(&self) -> CacheClient {
        CacheServiceClient::with_interceptor(self.channel.clone(), bearer("root", true))
    }

    /// A client of `CacheService` with the token of a caller who isn't an admin.
    pub fn cache_user(&self, subject: &str) -> CacheClient {
        CacheServiceClient::with_interceptor(self.channel.clone(), bearer(subject, false))
    }

    /// A client with a caller's token on a new connection.
    pub async fn user_on_new_connection(&self, subject: &str) -> Client {
        let channel = connect(&self.url).await;
        LocationServiceClient::with_interceptor(channel, bearer(subject, false))
    }

    fn client(&self, subject: &str, admin: bool) -> Client {
        LocationServiceClient::with_interceptor(self.channel.clone(), bearer(subject, admin))
    }
}

/// A new connection.
pub async fn connect(url: &str) -> Channel {
    let endpoint = Endpoint::new(url.to_owned()).expect("a URL");
    Box::pin(endpoint.connect())
        .await
        .expect("the service accepts")
}

/// A client with an admin's token.
pub fn admin(channel: Channel) -> Client {
    LocationServiceClient::with_interceptor(channel, bearer("root", true))
}

/// Sends an `authorization` with every call.
#[derive(Clone)]
pub struct Bearer(pub String);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = MetadataValue::try_from(&self.0).expect("a token is ASCII");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

fn bearer(subject: &str, admin: bool) -> Bearer {
    Bearer(format!("Bearer {}", token(subject, admin)))
}

/// A token that the service accepts, for an hour.
pub fn token(subject: &str, admin: bool) -> String {
    let subject = OwnerId::parse(subject.to_owned()).expect("a subject");
    let hour = Duration::from_hours(1);
    NewToken::new(subject, admin, hour)
        .sign(SECRET)
        .expect("the token is signed")
}

/// A configuration with authentication, a free port, and SQLite. All files are in `dir`.
pub fn config(dir: &TempDir) -> ServeConfig {
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).expect("a file");
    ServeConfig {
        server: ServerConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            metrics_listen: None,
            max_connections: None,
            max_connection_age: None,
            tls: None,
            // In the race tests, one caller uses all of the few connections.
            max_calls_per_caller: Some(64),
            shutdown_grace: Duration::from_secs(5),
            access_log: AccessLog::Off,
        },
        database: DatabaseConfig {
            url: DatabaseUrl::Sqlite(dir.path().join("locations.db")),
            max_connections: 4,
            migrate: Migrate::Auto,
        },
        redis: None,
        cache: CacheConfig {
            ttl: Duration::from_mins(5),
            max_bytes: 64 << 20,
        },
        auth: AuthConfig {
            keys: Some(KeyFile::Secret(secret)),
            ..AuthConfig::default()
        },
        log: LogConfig {
            format: LogFormat::Text,
            filter: EnvFilter::new("off"),
        },
    }
}

/// As [`config`], on a pair of engines, with a database and a Redis key prefix of its own.
pub async fn config_on(pair: Pair, dir: &TempDir) -> ServeConfig {
    static SERVICES: AtomicU32 = AtomicU32::new(0);
    static REDIS: OnceLock<RedisServer> = OnceLock::new();
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    let redis_url = match pair {
        Pair::Embedded => return config(dir),
        Pair::Redis => REDIS.get_or_init(RedisServer::start).url(),
        Pair::Cluster => CLUSTER.get_or_init(RedisCluster::start).url(),
    };
    let postgres = Postgres::shared();
    let database = postgres.database().await;
    let key_prefix = format!("test-{}:", SERVICES.fetch_add(1, Ordering::Relaxed));
    shared_config(database, redis_url, key_prefix, dir)
}

/// As [`config`], on PostgreSQL and Redis.
pub fn shared_config(
    database: String,
    redis_url: String,
    key_prefix: String,
    dir: &TempDir,
) -> ServeConfig {
    let mut config = config(dir);
    config.database.url = DatabaseUrl::Postgres(database);
    config.redis = Some(RedisConfig {
        url: redis_url,
        tls: location_service::config::TlsFiles::default(),
        key_prefix,
    });
    config
}

/// The `cache-status` of a response.
pub fn cache_status<T>(response: &Response<T>) -> &str {
    let status = response.metadata().get("cache-status");
    status
        .expect("every cached method sends it")
        .to_str()
        .expect("it is ASCII")
}

/// A storage location in a production run.
pub fn storage(name: &str, run: &str) -> v1::Location {
    v1::Location {
        r#type: v1::LocationType::Storage.into(),
        display_name: name.to_owned(),
        production_run_id: run.to_owned(),
        ..v1::Location::default()
    }
}

/// A request to create a location.
pub fn create(location: v1::Location) -> v1::CreateLocationRequest {
    v1::CreateLocationRequest {
        location: Some(location),
        ..v1::CreateLocationRequest::default()
    }
}

/// A request to list a production run's locations.
pub fn of_run(run: &str) -> v1::ListLocationsRequest {
    v1::ListLocationsRequest {
        production_run_id: Some(run.to_owned()),
        ..v1::ListLocationsRequest::default()
    }
}

/// A request for a location that doesn't exist.
pub fn get_missing() -> v1::GetLocationRequest {
    let id = "018f0000-0000-7000-8000-000000000000".to_owned();
    v1::GetLocationRequest { id }
}

/// A request with metadata.
pub fn with<T>(message: T, key: &'static str, value: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = value.parse().expect("it is ASCII");
    request.metadata_mut().insert(key, value);
    request
}

/// The names of the locations in a list, in its order.
pub fn names(response: &Response<v1::ListLocationsResponse>) -> Vec<&str> {
    let locations = &response.get_ref().locations;
    locations
        .iter()
        .map(|location| location.display_name.as_str())
        .collect()
}

/// Waits until the condition holds; panics if it doesn't within [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(condition: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {condition}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
