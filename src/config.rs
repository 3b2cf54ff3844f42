//! The settings of the service, one struct for each concern.
//!
//! These are plain values: the command line parses them and checks their limits before anything
//! starts.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::store::Migrate;

pub use crate::{
    telemetry::{AccessLog, LogConfig, LogFormat},
    tls::{ClientCertificate, ServerTlsFiles, TlsFiles},
};

/// The longest [`ServerConfig::shutdown_grace`], in seconds.
pub const MAX_SHUTDOWN_GRACE_SECS: u64 = 3_600;

/// The longest [`ServerConfig::max_connection_age`], in seconds: one year.
pub const MAX_CONNECTION_AGE_SECS: u64 = 31_536_000;

/// The largest [`DatabaseConfig::max_connections`].
pub const MAX_DATABASE_CONNECTIONS: u32 = 1_000;

/// The longest [`CacheConfig::ttl`], in seconds: one year.
pub const MAX_CACHE_TTL_SECS: u64 = 31_536_000;

/// The settings of `serve`. Not `Debug`, because the URLs may hold passwords.
#[derive(Clone)]
pub struct ServeConfig {
    /// The listener and the shutdown.
    pub server: ServerConfig,
    /// The database that stores the locations.
    pub database: DatabaseConfig,
    /// The cache that replicas share. `None` keeps the cache in the process.
    pub redis: Option<RedisConfig>,
    /// The cache in the process.
    pub cache: CacheConfig,
    /// Authentication of callers.
    pub auth: AuthConfig,
    /// The log.
    pub log: LogConfig,
}

/// The listener and the shutdown.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// The address to listen on. Port 0 picks a free port.
    pub listen: SocketAddr,
    /// The address of metrics and probes, if they are served. Port 0 picks a free port.
    pub metrics_listen: Option<SocketAddr>,
    /// The most connections that are open at once, 1 or more; `None` derives it from the limit of
    /// file descriptors.
    pub max_connections: Option<usize>,
    /// The age at which connections are ended, 1 second to [`MAX_CONNECTION_AGE_SECS`]; `None` lets
    /// them live.
    pub max_connection_age: Option<Duration>,
    /// The certificate of the port; `None` serves without TLS.
    pub tls: Option<ServerTlsFiles>,
    /// The most reads, and likewise writes, of one caller that use the database at once, 1 or more;
    /// `None` is a quarter of all.
    pub max_calls_per_caller: Option<usize>,
    /// How long calls in flight may take to finish after the service was asked to stop, up to
    /// [`MAX_SHUTDOWN_GRACE_SECS`].
    pub shutdown_grace: Duration,
    /// The calls that are logged.
    pub access_log: AccessLog,
}

/// The database that stores the locations.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// The engine and the address of the database.
    pub url: DatabaseUrl,
    /// The most `PostgreSQL` connections that are open at once, 1 to [`MAX_DATABASE_CONNECTIONS`].
    pub max_connections: u32,
    /// Whether an older schema is migrated at start.
    pub migrate: Migrate,
}

/// The engine and the address of a database.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A `SQLite` database in this file, which is created if it is missing.
    Sqlite(PathBuf),
    /// The `PostgreSQL` database at this URL.
    Postgres(String),
}

/// The cache that replicas share.
#[derive(Clone)]
pub struct RedisConfig {
    /// The URL of a Redis server, of its sentinels or of a Redis Cluster.
    pub url: String,
    /// Files for a URL with TLS.
    pub tls: TlsFiles,
    /// The prefix of every key, so that several services can share a server.
    pub key_prefix: String,
}

/// The limits of the cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// How long an entry is kept after its last read, up to [`MAX_CACHE_TTL_SECS`].
    pub ttl: Duration,
    /// The memory that the entries in the process may take, in bytes; 1 or more.
    pub max_bytes: u64,
}

/// Authentication of callers.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// The key that verifies tokens. `None` is development mode: every caller is an admin.
    pub keys: Option<KeyFile>,
    /// The `iss` claim that tokens must have. `None` accepts any.
    pub issuer: Option<String>,
    /// The audience that the `aud` claim of tokens must contain. `None` accepts any.
    pub audience: Option<String>,
}

/// A file with the keys that verify tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyFile {
    /// A secret for HS256.
    Secret(PathBuf),
    /// A public key in PEM.
    PublicKey(PathBuf),
    /// A JSON Web Key Set.
    Jwks(PathBuf),
}

impl KeyFile {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Secret(path) | Self::PublicKey(path) | Self::Jwks(path) => path,
        }
    }
}
