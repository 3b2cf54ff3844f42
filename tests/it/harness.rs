//! Starts the service, as `main` does, on a free port and with a database of its own.

use std::{
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use location_service::{
    app::App,
    auth,
    cache::Cache,
    config::{
        AuthConfig, CacheConfig, DatabaseConfig, DatabaseUrl, KeyFile, LogConfig, LogFormat,
        RedisConfig, ServeConfig, ServerConfig,
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

/// A client that sends a caller's token.
pub type Client = LocationServiceClient<InterceptedService<Channel, Bearer>>;

/// A client of the cache's own service that sends a caller's token.
pub type CacheClient = CacheServiceClient<InterceptedService<Channel, Bearer>>;

/// How long anything that is bound to happen may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const SECRET: &[u8] = b"a secret of the tests, of 32 bytes or more";

/// A running service.
pub struct TestApp {
    pub config: ServeConfig,
    pub channel: Channel,
    pub url: String,
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

    /// The service on a pair of engines.
    pub async fn spawn_on(pair: Pair) -> Self {
        Self::spawn_with(pair, |store, cache| (store, cache)).await
    }

    /// The service over engines that a test has wrapped.
    pub async fn spawn_with(
        pair: Pair,
        wrap: impl FnOnce(Arc<dyn Store>, Arc<dyn Cache>) -> (Arc<dyn Store>, Arc<dyn Cache>),
    ) -> Self {
        let dir = Arc::new(TempDir::new().expect("a temporary folder"));
        let config = config_on(pair, &dir).await;
        Self::spawn_config(config, dir, wrap).await
    }

    /// The service on servers of the test's own.
    pub async fn spawn_at(database: String, redis_url: String) -> Self {
        let dir = Arc::new(TempDir::new().expect("a temporary folder"));
        let config = shared_config(database, redis_url, "test:".to_owned(), &dir);
        Self::spawn_config(config, dir, |store, cache| (store, cache)).await
    }

    /// The service that a configuration describes, whose files are in the folder, over engines that
    /// a test has wrapped.
    pub async fn spawn_config(
        config: ServeConfig,
        dir: Arc<TempDir>,
        wrap: impl FnOnce(Arc<dyn Store>, Arc<dyn Cache>) -> (Arc<dyn Store>, Arc<dyn Cache>),
    ) -> Self {
        let mut engines = App::open(&config).await.expect("the engines open");
        (engines.store, engines.cache) = wrap(engines.store, engines.cache);
        let app = App::assemble(&config, engines).await;
        Self::serve(app.expect("it starts"), config, dir).await
    }

    /// Another replica, on the same engines.
    pub async fn replica(&self) -> Self {
        self.replica_with(|store, cache| (store, cache)).await
    }

    /// Another replica, over engines that a test has wrapped.
    pub async fn replica_with(
        &self,
        wrap: impl FnOnce(Arc<dyn Store>, Arc<dyn Cache>) -> (Arc<dyn Store>, Arc<dyn Cache>),
    ) -> Self {
        Self::spawn_config(self.config.clone(), Arc::clone(&self.dir), wrap).await
    }

    async fn serve(app: App, config: ServeConfig, dir: Arc<TempDir>) -> Self {
        let listener = TcpListener::bind(config.server.listen)
            .await
            .expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move {
            app.serve(listener, async move {
                let _ = stopped.await;
            })
            .await
            .expect("it serves");
        });
        Self {
            config,
            channel: connect(&url).await,
            url,
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
            .expect("it stops in time")
            .expect("it doesn't panic");
    }

    /// Stops the service and starts it again on the same database.
    pub async fn restart(self) -> Self {
        let (config, dir) = (self.config.clone(), Arc::clone(&self.dir));
        self.stop().await;
        let app = App::build(&config).await.expect("it starts again");
        Self::serve(app, config, dir).await
    }

    /// A client with an admin's token.
    pub fn admin(&self) -> Client {
        self.client("root", true)
    }

    /// A client with an admin's token, over a connection of its own.
    pub async fn admin_alone(&self) -> Client {
        let channel = connect(&self.url).await;
        LocationServiceClient::with_interceptor(channel, bearer("root", true))
    }

    /// A client with the token of someone who isn't an admin.
    pub fn user(&self, subject: &str) -> Client {
        self.client(subject, false)
    }

    /// A client of the cache's own service with an admin's token.
    pub fn cache_admin(&self) -> CacheClient {
        CacheServiceClient::with_interceptor(self.channel.clone(), bearer("root", true))
    }

    /// A client of the cache's own service with the token of someone who isn't an admin.
    pub fn cache_user(&self, subject: &str) -> CacheClient {
        CacheServiceClient::with_interceptor(self.channel.clone(), bearer(subject, false))
    }

    fn client(&self, subject: &str, admin: bool) -> Client {
        LocationServiceClient::with_interceptor(self.channel.clone(), bearer(subject, admin))
    }
}

async fn connect(url: &str) -> Channel {
    let endpoint = Endpoint::new(url.to_owned()).expect("a URL");
    Box::pin(endpoint.connect()).await.expect("it accepts")
}

/// Sends a token with every call.
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

/// A token that the tests' service takes.
pub fn token(subject: &str, admin: bool) -> String {
    let subject = OwnerId::parse(subject.to_owned()).expect("a subject");
    let hour = Duration::from_hours(1);
    auth::mint(SECRET, &subject, admin, hour, None, None).expect("it signs")
}

/// Tokens are checked, the port is free, everything is in the folder.
pub fn config(dir: &TempDir) -> ServeConfig {
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).expect("a file");
    ServeConfig {
        server: ServerConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            shutdown_grace: Duration::from_secs(5),
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

/// As [`config`], on a pair of engines that nobody else uses.
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
        key_prefix,
    });
    config
}

/// What `cache-status` said of an answer.
pub fn cache_status<T>(response: &Response<T>) -> &str {
    let status = response.metadata().get("cache-status");
    status
        .expect("every cached method says it")
        .to_str()
        .expect("it is ASCII")
}

/// A storage location of a run.
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

/// A request to list a run's locations.
pub fn of_run(run: &str) -> v1::ListLocationsRequest {
    v1::ListLocationsRequest {
        production_run_id: Some(run.to_owned()),
        ..v1::ListLocationsRequest::default()
    }
}

/// The names of the locations in a list, in its order.
pub fn names(response: &Response<v1::ListLocationsResponse>) -> Vec<&str> {
    let locations = &response.get_ref().locations;
    locations
        .iter()
        .map(|location| location.display_name.as_str())
        .collect()
}

/// Waits until something holds, and fails if it doesn't within [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
