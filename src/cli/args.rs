//! The options of `serve`, and those that it shares with `migrate` and `token`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use location_service::{
    app::StartError,
    config::{
        AccessLog, CacheConfig, ClientCertificate, DatabaseConfig, DatabaseUrl, LogConfig,
        LogFormat, MAX_CACHE_TTL_SECS, MAX_CONNECTION_AGE_SECS, MAX_DATABASE_CONNECTIONS,
        MAX_SHUTDOWN_GRACE_SECS, RedisConfig, ServeConfig, ServerConfig, ServerTlsFiles, TlsFiles,
    },
    store,
};
use tracing_subscriber::EnvFilter;

use super::{
    keys::KeyArgs,
    settings::{Conflict, Sources},
    values::{
        bytes, database_url, existing_file, log_filter, number, positive, redis_url, seconds,
        socket_address,
    },
};

pub const SERVE_EXAMPLES: &str = "\
Precedence: flag, environment variable, file of --config, default. The file is TOML, and its keys
are the names of the flags:
  listen = \"0.0.0.0:50051\"
  database-url = \"sqlite:/var/lib/location-service/locations.db\"
  jwks-file = \"/etc/location-service/jwks.json\"
  jwt-issuer = \"https://id.example.com\"
  cache-ttl = 600
  cache-max-bytes = \"256MiB\"

Examples:
  location-service serve
  location-service serve --config /etc/location-service.toml --log-format json
  LOCATION_SERVICE_LISTEN=127.0.0.1:0 location-service serve --database-url sqlite:/tmp/try.db

Without a key the service is in development mode: every caller is an admin, and it listens on
loopback only. SIGTERM and SIGINT stop it after the calls in flight have finished.";

/// The id of the option that names the settings file.
pub const CONFIG: &str = "config";

const REDIS_TLS_CA_FILE: &str = "redis-tls-ca-file";
const REDIS_TLS_CERT_FILE: &str = "redis-tls-cert-file";
const REDIS_TLS_KEY_FILE: &str = "redis-tls-key-file";

/// Options of `serve`.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Args, Clone)]
pub struct ServeArgs {
    #[command(flatten)]
    config: ConfigArg,

    /// Address to listen on; port 0 picks a free port, which is printed and logged
    #[arg(long, value_name = "IP:PORT", env = "LOCATION_SERVICE_LISTEN")]
    #[arg(default_value = "127.0.0.1:50051", value_parser = socket_address)]
    #[arg(help_heading = "Server")]
    listen: SocketAddr,

    /// Address of metrics and probes: /metrics for Prometheus, /livez and /readyz; without a token
    #[arg(long, value_name = "IP:PORT", env = "LOCATION_SERVICE_METRICS_LISTEN")]
    #[arg(value_parser = socket_address, help_heading = "Server")]
    metrics_listen: Option<SocketAddr>,

    /// Certificate in PEM of the gRPC port, with the intermediate ones. It and the other TLS files are
    /// reread when they change [default: no TLS]
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_TLS_CERT_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Server")]
    tls_cert_file: Option<PathBuf>,

    /// Private key in PEM of the certificate
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_TLS_KEY_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Server")]
    tls_key_file: Option<PathBuf>,

    /// Certificate authorities in PEM: every client then needs a certificate of one of them, beside
    /// its token
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_TLS_CLIENT_CA_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Server")]
    tls_client_ca_file: Option<PathBuf>,

    /// Age, give or take a tenth, at which a connection takes no new calls, so that its client
    /// connects again, perhaps to another replica. Calls in flight have 30 seconds to end; 0 sets no
    /// limit
    #[arg(
        long,
        value_name = "SECS",
        env = "LOCATION_SERVICE_MAX_CONNECTION_AGE_SECS"
    )]
    #[arg(default_value = "0", value_parser = seconds(0..=MAX_CONNECTION_AGE_SECS))]
    #[arg(help_heading = "Server")]
    max_connection_age_secs: Duration,

    /// Maximum number of open connections; at most half of them from one address [default: 8192, or
    /// the hard limit of file descriptors minus 96 if that is lower]
    #[arg(long, value_name = "NUMBER", env = "LOCATION_SERVICE_MAX_CONNECTIONS")]
    #[arg(value_parser = positive, help_heading = "Server")]
    max_connections: Option<usize>,

    /// Maximum number of reads of one caller that use the database at once, and likewise of writes;
    /// further ones wait for their turn [default: a quarter of all]
    #[arg(
        long,
        value_name = "NUMBER",
        env = "LOCATION_SERVICE_MAX_CALLS_PER_CALLER"
    )]
    #[arg(value_parser = positive, help_heading = "Server")]
    max_calls_per_caller: Option<usize>,

    /// Time for calls in flight to finish after SIGTERM or SIGINT
    #[arg(
        long,
        value_name = "SECS",
        env = "LOCATION_SERVICE_SHUTDOWN_GRACE_SECS"
    )]
    #[arg(default_value = "10", value_parser = seconds(0..=MAX_SHUTDOWN_GRACE_SECS))]
    #[arg(help_heading = "Server")]
    shutdown_grace_secs: Duration,

    #[command(flatten)]
    database: DatabaseArg,

    /// Whether to migrate an older schema at start
    #[arg(long, value_name = "WHEN", env = "LOCATION_SERVICE_MIGRATE")]
    #[arg(default_value = "auto", help_heading = "Storage")]
    migrate: Migrate,

    /// Maximum number of connections to PostgreSQL
    #[arg(
        long,
        value_name = "NUMBER",
        env = "LOCATION_SERVICE_DATABASE_MAX_CONNECTIONS"
    )]
    #[arg(default_value = "16")]
    #[arg(value_parser = number(1..=MAX_DATABASE_CONNECTIONS))]
    #[arg(help_heading = "Storage")]
    database_max_connections: u32,

    /// Redis that replicas share as their cache: redis://HOST:PORT, rediss:// (TLS),
    /// redis-sentinel:// or redis-cluster:// [default: a cache in the process]
    #[arg(
        long,
        value_name = "URL",
        env = "LOCATION_SERVICE_REDIS_URL",
        hide_env_values = true
    )]
    #[arg(value_parser = redis_url)]
    #[arg(help_heading = "Cache")]
    redis_url: Option<String>,

    /// Prefix of every key in Redis, so that several services can share a server
    #[arg(long, value_name = "TEXT", env = "LOCATION_SERVICE_REDIS_KEY_PREFIX")]
    #[arg(default_value = "location-service:", help_heading = "Cache")]
    redis_key_prefix: String,

    /// Certificate authorities in PEM for a Redis URL with TLS [default: those of the system]
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_REDIS_TLS_CA_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Cache")]
    redis_tls_ca_file: Option<PathBuf>,

    /// Client certificate in PEM for a Redis that requires one, with the intermediate ones
    #[arg(
        long,
        value_name = "FILE",
        env = "LOCATION_SERVICE_REDIS_TLS_CERT_FILE"
    )]
    #[arg(value_parser = existing_file, help_heading = "Cache")]
    redis_tls_cert_file: Option<PathBuf>,

    /// Private key in PEM of the client certificate
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_REDIS_TLS_KEY_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Cache")]
    redis_tls_key_file: Option<PathBuf>,

    /// Time to live of a cached response: since its last read in the process, since it was stored in
    /// Redis. It bounds memory use only: lists are never stale, whatever its value
    #[arg(long, value_name = "SECS", env = "LOCATION_SERVICE_CACHE_TTL")]
    #[arg(default_value = "300", value_parser = seconds(1..=MAX_CACHE_TTL_SECS))]
    #[arg(help_heading = "Cache")]
    cache_ttl: Duration,

    /// Maximum memory of the cache in the process, such as 256MiB
    #[arg(long, value_name = "BYTES", env = "LOCATION_SERVICE_CACHE_MAX_BYTES")]
    #[arg(default_value = "67108864", value_parser = bytes(1))]
    #[arg(help_heading = "Cache")]
    cache_max_bytes: u64,

    #[command(flatten)]
    keys: KeyArgs,

    /// Calls to log, one line each
    #[arg(long, value_name = "CALLS", env = "LOCATION_SERVICE_ACCESS_LOG")]
    #[arg(default_value = "errors", help_heading = "Logging")]
    access_log: Access,

    #[command(flatten)]
    log: LogArgs,
}

/// The option that names the settings file, which [`super::file`] reads.
#[derive(Args, Clone)]
pub struct ConfigArg {
    /// TOML file with settings: the keys are the names of the flags, as in `cache-ttl = 60`
    #[arg(long = "config", id = CONFIG, value_name = "FILE", env = "LOCATION_SERVICE_CONFIG")]
    _path: Option<PathBuf>,
}

/// The option that names the database.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Args, Clone)]
pub struct DatabaseArg {
    /// Database of the locations: sqlite:FILE (created if missing) or postgres://USER@HOST/NAME
    #[arg(
        long,
        value_name = "URL",
        env = "LOCATION_SERVICE_DATABASE_URL",
        hide_env_values = true
    )]
    #[arg(default_value = "sqlite:locations.db", value_parser = database_url)]
    #[arg(help_heading = "Storage")]
    pub database_url: DatabaseUrl,
}

/// The options of the log.
#[derive(Args, Clone)]
pub struct LogArgs {
    /// Format of the log, which is written to stderr
    #[arg(long, value_name = "FORMAT", env = "LOCATION_SERVICE_LOG_FORMAT")]
    #[arg(default_value = "text", help_heading = "Logging")]
    log_format: Format,

    /// Events to log: a level, or levels by module, such as `info,location_service=debug`
    #[arg(long, value_name = "FILTER", env = "LOCATION_SERVICE_LOG_FILTER")]
    #[arg(default_value = "info", value_parser = log_filter)]
    #[arg(help_heading = "Logging")]
    log_filter: EnvFilter,
}

#[derive(Clone, Copy, ValueEnum)]
enum Migrate {
    /// Migrate it
    Auto,
    /// Fail until `location-service migrate` has run
    Never,
}

#[derive(Clone, Copy, ValueEnum)]
enum Access {
    /// None
    Off,
    /// Those that failed in the service, or that it refused
    Errors,
    /// All
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object for each event
    Json,
}

impl ServeArgs {
    /// The settings of the service, if no options contradict each other.
    pub fn check(self, sources: &Sources) -> Result<ServeConfig, Vec<Conflict>> {
        let conflicts = self.conflicts(sources);
        if conflicts.is_empty() {
            Ok(self.config())
        } else {
            Err(conflicts)
        }
    }

    /// All options that contradict each other.
    pub fn conflicts(&self, sources: &Sources) -> Vec<Conflict> {
        let mut conflicts = self.keys.conflicts(sources);
        let mut conflict = |flags: &[&'static str], message: String| {
            conflicts.push(Conflict {
                flags: flags.to_vec(),
                message,
            });
        };
        if self.keys.clone().config().is_development() && !self.listen.ip().is_loopback() {
            // Every client that reaches the service would be an admin.
            let (flags, names) = KeyArgs::flags();
            let mut of_flags = vec!["listen"];
            of_flags.extend(flags);
            conflict(
                &of_flags,
                format!(
                    "{}={}: without a key every caller is an admin, so the service listens on \
                     loopback only: set one of {names}, or listen on 127.0.0.1",
                    sources.name("listen"),
                    self.listen
                ),
            );
        }
        let mut without = |set: &'static str, missing: &'static str| {
            let name = sources.name(set);
            conflict(
                &[set, missing],
                format!("{name} is set without {missing}: set both or neither"),
            );
        };
        let files = [
            (REDIS_TLS_CA_FILE, &self.redis_tls_ca_file),
            (REDIS_TLS_CERT_FILE, &self.redis_tls_cert_file),
            (REDIS_TLS_KEY_FILE, &self.redis_tls_key_file),
        ];
        if self.redis_url.is_none() {
            for (flag, _) in files.iter().filter(|(_, file)| file.is_some()) {
                without(flag, "redis-url");
            }
        }
        match (&self.redis_tls_cert_file, &self.redis_tls_key_file) {
            (Some(_), None) => without(REDIS_TLS_CERT_FILE, REDIS_TLS_KEY_FILE),
            (None, Some(_)) => without(REDIS_TLS_KEY_FILE, REDIS_TLS_CERT_FILE),
            _ => {}
        }
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(_), None) => without("tls-cert-file", "tls-key-file"),
            (None, Some(_)) => without("tls-key-file", "tls-cert-file"),
            (None, None) if self.tls_client_ca_file.is_some() => {
                without("tls-client-ca-file", "tls-cert-file");
            }
            _ => {}
        }
        let engines = match (&self.database.database_url, &self.redis_url) {
            (DatabaseUrl::Postgres(_), None) => Some(StartError::PostgresWithoutRedis),
            (DatabaseUrl::Sqlite(_), Some(_)) => Some(StartError::RedisWithoutPostgres),
            _ => None,
        };
        if let Some(error) = engines {
            conflict(&["database-url", "redis-url"], error.to_string());
        }
        conflicts
    }

    fn config(self) -> ServeConfig {
        let client_authorities = self.tls_client_ca_file;
        let server_tls = self.tls_cert_file.zip(self.tls_key_file);
        let server_tls = server_tls.map(|(certificate, key)| ServerTlsFiles {
            certificate,
            key,
            client_authorities,
        });
        let tls = TlsFiles {
            authorities: self.redis_tls_ca_file,
            client: self
                .redis_tls_cert_file
                .zip(self.redis_tls_key_file)
                .map(|(certificate, key)| ClientCertificate { certificate, key }),
        };
        let key_prefix = self.redis_key_prefix;
        ServeConfig {
            server: ServerConfig {
                listen: self.listen,
                metrics_listen: self.metrics_listen,
                max_connections: self.max_connections,
                max_connection_age: Some(self.max_connection_age_secs).filter(|age| !age.is_zero()),
                tls: server_tls,
                max_calls_per_caller: self.max_calls_per_caller,
                shutdown_grace: self.shutdown_grace_secs,
                access_log: match self.access_log {
                    Access::Off => AccessLog::Off,
                    Access::Errors => AccessLog::Errors,
                    Access::All => AccessLog::All,
                },
            },
            database: DatabaseConfig {
                url: self.database.database_url,
                max_connections: self.database_max_connections,
                migrate: match self.migrate {
                    Migrate::Auto => store::Migrate::Auto,
                    Migrate::Never => store::Migrate::Never,
                },
            },
            redis: self.redis_url.map(|url| RedisConfig {
                url,
                tls,
                key_prefix,
            }),
            cache: CacheConfig {
                ttl: self.cache_ttl,
                max_bytes: self.cache_max_bytes,
            },
            auth: self.keys.config(),
            log: self.log.into(),
        }
    }
}

impl From<LogArgs> for LogConfig {
    fn from(args: LogArgs) -> Self {
        Self {
            format: match args.log_format {
                Format::Text => LogFormat::Text,
                Format::Json => LogFormat::Json,
            },
            filter: args.log_filter,
        }
    }
}
