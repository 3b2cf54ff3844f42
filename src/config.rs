//! The settings of the service, one struct for each concern.
//!
//! These are plain values: the command line parses them and checks their limits before anything
//! starts.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;

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
    /// The most connections that are open at once, 1 or more; `None` is 8,192, or fewer if the limit
    /// of file descriptors is lower.
    pub max_connections: Option<usize>,
    /// The age at which connections are ended, 1 second to [`MAX_CONNECTION_AGE_SECS`]; `None` is no
    /// limit.
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
    /// The time to live of an entry: since its last read in the process, since it was stored in Redis. Up
    /// to [`MAX_CACHE_TTL_SECS`].
    pub ttl: Duration,
    /// The memory that the entries in the process may take, in bytes; 1 or more.
    pub max_bytes: u64,
}

/// Authentication of callers. Without `keys` and `remote` the service is in development mode: every
/// caller is an admin.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// The key that verifies tokens.
    pub keys: Option<KeyFile>,
    /// The published keys that verify tokens, if there is no key file.
    pub remote: Option<Box<RemoteKeys>>,
    /// Whether no token is accepted while the key file can't be used. Otherwise the old keys stay in
    /// use.
    pub revoke_unreadable_keys: bool,
    /// The `iss` claim that tokens must have. `None` accepts any.
    pub issuer: Option<String>,
    /// The audience that the `aud` claim of tokens must contain. `None` accepts any.
    pub audience: Option<String>,
    /// The claim that makes a caller an admin. `None` is `admin: true`, or `"admin"` in `roles`.
    pub admin_claim: Option<Box<AdminClaim>>,
}

impl AuthConfig {
    /// Whether every caller is an admin.
    pub fn is_development(&self) -> bool {
        self.keys.is_none() && self.remote.is_none()
    }
}

/// A claim that makes a caller an admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminClaim {
    /// The name of the claim, or a JSON Pointer (RFC 6901) to a nested one, such as
    /// `/realm_access/roles`.
    pub name: String,
    /// The text that the claim must be, or that its array must contain; in `scope` also one of the
    /// words. `None` stands for `true`.
    pub value: Option<String>,
}

impl AdminClaim {
    /// Parses `NAME` or `NAME=VALUE`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = match text.rsplit_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || name == "/" || value.as_deref() == Some("") {
            return Err(
                "must be a claim or a claim and its value, such as admin, groups=operators or \
                 /realm_access/roles=admin"
                    .to_owned(),
            );
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

/// Keys that the issuer of tokens publishes as a JSON Web Key Set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteKeys {
    /// The set at this URL.
    Url(Uri),
    /// The set that `OpenID` Connect Discovery finds.
    Issuer {
        /// The issuer, which its metadata must repeat exactly.
        name: String,
        /// The URL of its metadata.
        discovery: Uri,
    },
}

impl RemoteKeys {
    /// Parses a URL of keys. It needs TLS unless the host is a loopback address: otherwise the keys
    /// could be replaced on the way.
    pub fn parse_url(text: &str) -> Result<Uri, String> {
        const FORM: &str = "must be a URL with https://, or with http:// for a loopback address";
        let url: Uri = text.parse().map_err(|_| FORM)?;
        let host = url.host().unwrap_or_default();
        if url
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err("must be a URL without a user and a password".to_owned());
        }
        match url.scheme_str() {
            Some("https") if !host.is_empty() => Ok(url),
            Some("http") if is_loopback(host) => Ok(url),
            _ => Err(FORM.to_owned()),
        }
    }

    /// The keys of an issuer; `None` unless its name is a URL from which its metadata can be fetched.
    pub fn of_issuer(name: &str) -> Option<Self> {
        Self::parse_url(name).ok()?;
        if name.contains(['?', '#']) {
            return None;
        }
        let base = name.trim_end_matches('/');
        let discovery = format!("{base}/.well-known/openid-configuration");
        Some(Self::Issuer {
            name: name.to_owned(),
            discovery: discovery.parse().ok()?,
        })
    }
}

impl fmt::Display for RemoteKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) | Self::Issuer { discovery: url, .. } => url.fmt(out),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
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
