//! The composition root: opens the engines that the configuration names, and builds the service on
//! them.

use std::sync::Arc;

use tokio::net::TcpListener;

pub use crate::server::MetricsPort;
use crate::{
    auth::{Authenticator, KeyError},
    cache::{self, Cache, CacheError, MemoryCache, RedisCache, RedisConfig, RedisConfigError},
    config::{CacheConfig, DatabaseUrl, ServeConfig},
    coordination::{Coordinator, FollowError},
    error::Error,
    server::Server,
    service::{Concurrency, Service},
    store::{self, OpenError, SchemaStatus, Store, postgres, sqlite},
    tls::{ServerTls, ServerTlsError},
};

// A writer's tags reopen at its deadline. Its transaction must have ended by then, by a wide margin.
const _: () = assert!(store::MAX_WRITE.as_secs() * 2 <= cache::WRITE_DEADLINE.as_secs());

/// Migrates a database to the current schema.
pub async fn migrate(database: &DatabaseUrl) -> Result<(), StartError> {
    match database {
        DatabaseUrl::Sqlite(path) => sqlite::migrate(path).await?,
        DatabaseUrl::Postgres(url) => postgres::migrate(url).await?,
    }
    Ok(())
}

/// Returns which migrations were applied to a database. Creates and changes nothing.
pub async fn schema_status(database: &DatabaseUrl) -> Result<SchemaStatus, StartError> {
    Ok(match database {
        DatabaseUrl::Sqlite(path) => sqlite::schema_status(path).await?,
        DatabaseUrl::Postgres(url) => postgres::schema_status(url).await?,
    })
}

/// The service can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database can't be opened.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The database was opened, and can't be read.
    #[error("can't read the database")]
    Read(#[from] Error),
    /// The keys can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate of the port, its key or the authorities of clients can't be used.
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
    /// Replicas would share a database without seeing each other's writes in their caches.
    #[error(
        "replicas share a PostgreSQL database, and can't share a cache in the process: set \
         redis-url too, or use a database-url such as sqlite:locations.db"
    )]
    PostgresWithoutRedis,
    /// Processes with separate databases would share cached responses.
    #[error(
        "replicas share a Redis, and can't share an SQLite database: set database-url to \
         postgres://... too, or leave out redis-url"
    )]
    RedisWithoutPostgres,
    /// The Redis settings can't be used.
    #[error(transparent)]
    Redis(#[from] RedisConfigError),
    /// Running replicas share the cache with other settings.
    #[error(transparent)]
    OtherSettings(CacheError),
}

impl From<FollowError> for StartError {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::Database(error) => Self::Read(error.into()),
            FollowError::OtherSettings(error) => Self::OtherSettings(error),
        }
    }
}

/// The engines of a service.
pub struct Engines {
    /// Stores the locations.
    pub store: Arc<dyn Store>,
    /// Caches responses.
    pub cache: Arc<dyn Cache>,
    /// Coordinates the replicas that share the cache; `None` if the cache is in the process.
    pub epochs: Option<Arc<Coordinator>>,
}

/// The files that decide who may connect and call, in use: they can be read again.
#[derive(Clone)]
pub struct Access {
    authenticator: Arc<Authenticator>,
    tls: Option<Arc<ServerTls>>,
}

impl Access {
    async fn load(config: &ServeConfig) -> Result<Self, StartError> {
        let tls = config
            .server
            .tls
            .as_ref()
            .map(ServerTls::load)
            .transpose()?;
        Ok(Self {
            authenticator: Arc::new(Authenticator::open(&config.auth).await?),
            tls: tls.map(Arc::new),
        })
    }

    /// Reads the key file and the certificate again. If they can't be used, the old ones stay in use,
    /// except keys with [`AuthConfig::revoke_unreadable_keys`](crate::config::AuthConfig).
    pub fn reload(&self) {
        self.authenticator.reload();
        if let Some(tls) = &self.tls {
            tls.reload();
        }
    }
}

/// The service on its engines, ready to serve.
pub struct App(Server);

impl App {
    /// Opens the engines that the configuration names, and builds the service on them.
    pub async fn build(config: &ServeConfig) -> Result<Self, StartError> {
        // An invalid key file must not leave a migrated database.
        let access = Box::pin(Access::load(config)).await?;
        Self::compose(config, Self::open(config).await?, access).await
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
                    tls: redis.tls.clone(),
                    prefix: redis.key_prefix.clone(),
                    max_local_bytes: max_bytes,
                    ttl,
                };
                // These two check the settings and change nothing, so an invalid setting never leaves a
                // migrated database: `open` migrates.
                let database = postgres::Database::new(url)?;
                let cache = Arc::new(RedisCache::connect(&redis).await?);
                let store = database.open(options).await?;
                let epochs = database.epochs(cache.settings());
                let epochs = Coordinator::follow(epochs, Arc::clone(&cache)).await?;
                Ok(Engines {
                    store,
                    cache,
                    epochs: Some(Arc::new(epochs)),
                })
            }
        }
    }

    /// Builds the service on these engines.
    pub async fn assemble(config: &ServeConfig, engines: Engines) -> Result<Self, StartError> {
        Self::compose(config, engines, Box::pin(Access::load(config)).await?).await
    }

    async fn compose(
        config: &ServeConfig,
        engines: Engines,
        access: Access,
    ) -> Result<Self, StartError> {
        let Engines {
            store,
            cache,
            epochs,
        } = engines;
        let concurrency = match &config.database.url {
            DatabaseUrl::Sqlite(_) => {
                Concurrency::apart(sqlite::READERS as usize, sqlite::WRITES as usize)
            }
            DatabaseUrl::Postgres(_) => {
                Concurrency::shared(config.database.max_connections as usize)
            }
        };
        let max_calls = config.server.max_calls_per_caller;
        Ok(Self(Server {
            service: Service::new(Arc::clone(&store), cache, epochs, concurrency, max_calls)
                .await?,
            store,
            authenticator: access.authenticator,
            max_connections: config.server.max_connections,
            max_connection_age: config.server.max_connection_age,
            tls: access.tls,
            shared_cache: config.redis.is_some(),
            shutdown_grace: config.server.shutdown_grace,
            access_log: config.server.access_log,
            metrics: None,
        }))
    }

    /// Serves metrics and probes on this port while the service runs.
    #[must_use]
    pub fn with_metrics(mut self, port: MetricsPort) -> Self {
        self.0.metrics = Some(port);
        self
    }

    /// The files that can be read again while the service runs.
    pub fn access(&self) -> Access {
        Access {
            authenticator: Arc::clone(&self.0.authenticator),
            tls: self.0.tls.clone(),
        }
    }

    /// Serves until `shutdown` completes, and then shuts down gracefully: see [`Server::serve`].
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()> + Send) {
        self.0.serve(listener, shutdown).await;
    }
}
