//! The settings of the service: one struct a concern, from flags, environment and a file, checked
//! before anything starts.
//!
//! A flag wins over its environment variable, that over the file, and that over the default. The
//! file's keys are the flags' names, and its values become the flags' defaults before the command
//! line is parsed: every value, wherever it comes from, goes through the same parser.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{
    ArgMatches, Args, Command, Parser, ValueEnum,
    builder::TypedValueParser as _,
    error::{ContextKind, ContextValue, ErrorKind},
    value_parser,
};
use tracing_subscriber::EnvFilter;

use crate::store::Migrate;

/// What `serve` needs. Not `Debug`, nor are its parts: the URLs may hold passwords.
#[derive(Clone)]
pub struct ServeConfig {
    /// Where to listen; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where locations are stored.
    pub database: DatabaseUrl,
    /// How many connections to PostgreSQL at most.
    pub database_max_connections: u32,
    /// What happens to an older schema.
    pub migrate: Migrate,
    /// The shared cache; without one the cache is in the process.
    pub redis_url: Option<String>,
    /// What every key in Redis begins with.
    pub redis_key_prefix: String,
    /// The cache in the process.
    pub cache: CacheConfig,
    /// How callers are told apart.
    pub auth: AuthConfig,
    /// How long calls in flight may take when the service stops.
    pub shutdown_grace: Duration,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// Where locations are stored.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A `SQLite` database in this file, which is created if it isn't there.
    Sqlite(PathBuf),
    /// A `PostgreSQL` database with this URL.
    Postgres(String),
}

/// Bounds of the cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheConfig {
    /// How long an entry that isn't read takes memory.
    pub ttl: Duration,
    /// How many bytes all entries in the process may take.
    pub max_bytes: u64,
}

/// How callers are told apart.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// What tokens are checked with; `None` is development mode.
    pub keys: Option<KeyFile>,
    /// The `iss` that a token must have; `None` for any.
    pub issuer: Option<String>,
    /// The `aud` that a token must have, alone or among others; `None` for any.
    pub audience: Option<String>,
}

/// A file with what tokens are checked with.
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
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Secret(path) | Self::PublicKey(path) | Self::Jwks(path) => path,
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The form of a line.
    pub format: LogFormat,
    /// Which events.
    pub filter: EnvFilter,
}

/// The form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object for each event.
    Json,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line or the environment; also what `--help` and `--version` print.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The file can't be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file isn't TOML.
    #[error("the configuration file {} isn't TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        source: Box<toml::de::Error>,
    },
    /// A key of the file is unknown, or its value is bad.
    #[error("in the configuration file {}: `{key}` {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong, the limit, and how to mend it.
        problem: String,
    },
    /// More than one key file.
    #[error("{0} and {1} are both set, and tokens are checked with one file: unset one of them")]
    TwoKeyFiles(&'static str, &'static str),
    /// Anybody who reaches the service would be an admin.
    #[error(
        "without a key every caller is an admin, so the service listens on loopback only, \
         not on {0}: set jwt-secret-file, jwt-public-key-file or jwks-file, \
         or listen on 127.0.0.1"
    )]
    Exposed(SocketAddr),
}

/// Options of `serve`.
#[derive(Args, Clone)]
pub struct ServeArgs {
    #[command(flatten)]
    config: ConfigArg,

    /// Address to listen on; port 0 picks a free one, which is printed and logged
    #[arg(long, value_name = "IP:PORT", env = "LOCATION_SERVICE_LISTEN")]
    #[arg(default_value = "127.0.0.1:50051", value_parser = listen_address)]
    #[arg(help_heading = "Server")]
    listen: SocketAddr,

    /// How long calls in flight may take to finish after SIGTERM or SIGINT
    #[arg(
        long,
        value_name = "SECS",
        env = "LOCATION_SERVICE_SHUTDOWN_GRACE_SECS"
    )]
    #[arg(default_value = "10", value_parser = seconds(0..=3600))]
    #[arg(help_heading = "Server")]
    shutdown_grace_secs: Duration,

    /// Where locations are stored: `sqlite:FILE` (created if missing) or
    /// `postgres://USER@HOST/NAME`
    #[arg(
        long,
        value_name = "URL",
        env = "LOCATION_SERVICE_DATABASE_URL",
        hide_env_values = true
    )]
    #[arg(default_value = "sqlite:locations.db", value_parser = database_url)]
    #[arg(help_heading = "Storage")]
    database_url: DatabaseUrl,

    /// Whether a schema that is older than this release is brought up to date at start; if not, the
    /// service doesn't start before `migrate` was run
    #[arg(long, value_name = "WHEN", env = "LOCATION_SERVICE_MIGRATE")]
    #[arg(default_value = "auto", help_heading = "Storage")]
    migrate: Migrate,

    /// How many connections to PostgreSQL the service opens at most
    #[arg(
        long,
        value_name = "NUMBER",
        env = "LOCATION_SERVICE_DATABASE_MAX_CONNECTIONS"
    )]
    #[arg(default_value = "16", value_parser = value_parser!(u32).range(1..=1_000))]
    #[arg(help_heading = "Storage")]
    database_max_connections: u32,

    /// Cache that several replicas share: redis://HOST:PORT, rediss:// (TLS), redis-sentinel:// or
    /// redis-cluster:// [default: a cache in the process]
    #[arg(
        long,
        value_name = "URL",
        env = "LOCATION_SERVICE_REDIS_URL",
        hide_env_values = true
    )]
    #[arg(value_parser = redis_url)]
    #[arg(help_heading = "Cache")]
    redis_url: Option<String>,

    /// What every key in Redis begins with, so that several services can share a server
    #[arg(long, value_name = "TEXT", env = "LOCATION_SERVICE_REDIS_KEY_PREFIX")]
    #[arg(default_value = "location-service:", help_heading = "Cache")]
    redis_key_prefix: String,

    /// How long an entry that nobody reads takes memory; answers are never stale, whatever this is
    #[arg(long, value_name = "SECS", env = "LOCATION_SERVICE_CACHE_TTL")]
    #[arg(default_value = "300", value_parser = seconds(1..=31_536_000))]
    #[arg(help_heading = "Cache")]
    cache_ttl: Duration,

    /// How many bytes the cache in the process may take
    #[arg(long, value_name = "BYTES", env = "LOCATION_SERVICE_CACHE_MAX_BYTES")]
    #[arg(default_value = "67108864", value_parser = value_parser!(u64).range(1..))]
    #[arg(help_heading = "Cache")]
    cache_max_bytes: u64,

    /// Secret that tokens are signed with (HS256), better of 32 bytes or more, such as
    /// `openssl rand -hex 32` makes [default with no key file: development mode]
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_JWT_SECRET_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Authentication")]
    jwt_secret_file: Option<PathBuf>,

    /// Public key of tokens in PEM (RS256, ES256 or `EdDSA`)
    #[arg(
        long,
        value_name = "FILE",
        env = "LOCATION_SERVICE_JWT_PUBLIC_KEY_FILE"
    )]
    #[arg(value_parser = existing_file, help_heading = "Authentication")]
    jwt_public_key_file: Option<PathBuf>,

    /// Keys of tokens as a JSON Web Key Set, chosen by a token's `kid`
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_JWKS_FILE")]
    #[arg(value_parser = existing_file, help_heading = "Authentication")]
    jwks_file: Option<PathBuf>,

    #[command(flatten)]
    claims: ClaimArgs,

    /// Form of the log, which goes to stderr
    #[arg(long, value_name = "FORMAT", env = "LOCATION_SERVICE_LOG_FORMAT")]
    #[arg(default_value = "text", help_heading = "Logging")]
    log_format: LogFormat,

    /// What is logged: a level, or levels by module, such as `info,location_service=debug`
    #[arg(long, value_name = "FILTER", env = "LOCATION_SERVICE_LOG_FILTER")]
    #[arg(default_value = "info", value_parser = log_filter)]
    #[arg(help_heading = "Logging")]
    log_filter: EnvFilter,
}

/// Options of `token`.
#[derive(Args, Clone)]
pub struct TokenArgs {
    #[command(flatten)]
    config: ConfigArg,

    /// Who the token stands for: 1 to 255 characters
    #[arg(long, value_name = "NAME", value_parser = |text: &str| crate::model::OwnerId::parse(text.to_owned()))]
    pub subject: crate::model::OwnerId,

    /// Lets the token see and change everything
    #[arg(long)]
    pub admin: bool,

    /// How long the token is good for
    #[arg(long, value_name = "SECS", default_value = "3600", value_parser = seconds(1..=315_360_000))]
    pub ttl_secs: Duration,

    /// Secret to sign with (HS256), the one that the service checks tokens with
    #[arg(long, value_name = "FILE", env = "LOCATION_SERVICE_JWT_SECRET_FILE")]
    #[arg(value_parser = existing_file)]
    pub jwt_secret_file: PathBuf,

    /// The issuer and the audience that go into the token.
    #[command(flatten)]
    pub claims: ClaimArgs,
}

/// The file with settings.
#[derive(Args, Clone)]
struct ConfigArg {
    /// TOML file with settings: the keys are the names of the flags, as in `cache-ttl = 60`
    #[arg(long = "config", id = CONFIG, value_name = "FILE", env = "LOCATION_SERVICE_CONFIG")]
    _path: Option<PathBuf>,
}

const CONFIG: &str = "config";

/// Whom tokens are from and for.
#[derive(Args, Clone)]
pub struct ClaimArgs {
    /// Issuer (`iss`) that tokens must have [default: any]
    #[arg(long, value_name = "NAME", env = "LOCATION_SERVICE_JWT_ISSUER")]
    #[arg(value_parser = claim, help_heading = "Authentication")]
    pub jwt_issuer: Option<String>,

    /// Audience (`aud`) that tokens must have [default: any]
    #[arg(long, value_name = "NAME", env = "LOCATION_SERVICE_JWT_AUDIENCE")]
    #[arg(value_parser = claim, help_heading = "Authentication")]
    pub jwt_audience: Option<String>,
}

impl ServeArgs {
    /// Checks what no flag tells alone.
    pub fn check(self) -> Result<ServeConfig, ConfigError> {
        let mut files = [
            self.jwt_secret_file
                .map(|path| ("jwt-secret-file", KeyFile::Secret(path))),
            self.jwt_public_key_file
                .map(|path| ("jwt-public-key-file", KeyFile::PublicKey(path))),
            self.jwks_file
                .map(|path| ("jwks-file", KeyFile::Jwks(path))),
        ]
        .into_iter()
        .flatten();
        let keys = match (files.next(), files.next()) {
            (Some((first, _)), Some((second, _))) => {
                return Err(ConfigError::TwoKeyFiles(first, second));
            }
            (file, _) => file.map(|(_, file)| file),
        };
        if keys.is_none() && !self.listen.ip().is_loopback() {
            return Err(ConfigError::Exposed(self.listen));
        }
        Ok(ServeConfig {
            listen: self.listen,
            database: self.database_url,
            database_max_connections: self.database_max_connections,
            migrate: self.migrate,
            redis_url: self.redis_url,
            redis_key_prefix: self.redis_key_prefix,
            cache: CacheConfig {
                ttl: self.cache_ttl,
                max_bytes: self.cache_max_bytes,
            },
            auth: AuthConfig {
                keys,
                issuer: self.claims.jwt_issuer,
                audience: self.claims.jwt_audience,
            },
            shutdown_grace: self.shutdown_grace_secs,
            log: LogConfig {
                format: self.log_format,
                filter: self.log_filter,
            },
        })
    }
}

/// Parses a command line (the program's name first), the environment, and the file that one of the
/// two names with `config`, for whatever commands `C` has.
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, ConfigError> {
    let mut matches = matches(C::command(), args.into_iter().collect())?;
    Ok(C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut C::command()))?)
}

fn matches(command: Command, args: Vec<OsString>) -> Result<ArgMatches, ConfigError> {
    // What is wrong is for the second parse to say: here it may be what the file sets right.
    let first = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&args)?;
    let named = first.subcommand().map_or(&first, |(_, matches)| matches);
    let command = match named.try_get_one::<PathBuf>(CONFIG) {
        Ok(Some(path)) => with_defaults(command, &read_file(path)?),
        _ => command,
    };
    command
        .try_get_matches_from(args)
        .map_err(|error| mask(error).into())
}

/// Replaces the flags' defaults by what the file says, for whichever commands have the flags.
fn with_defaults(command: Command, values: &[(String, String)]) -> Command {
    command
        .mut_args(|arg| {
            let value = values.iter().find(|(key, _)| arg.get_long() == Some(key));
            match value {
                Some((_, value)) => arg.default_value(value.clone()).required(false),
                None => arg,
            }
        })
        .mut_subcommands(|command| with_defaults(command, values))
}

/// The keys and values of a file, each of which a flag of `serve` takes.
fn read_file(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table = toml::from_str(&text).map_err(|source| ConfigError::Syntax {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    table
        .into_iter()
        .map(|(key, value)| match check_key(&key, value) {
            Ok((flag, value)) => Ok((flag, value)),
            Err(problem) => Err(ConfigError::Key {
                path: path.to_owned(),
                key,
                problem,
            }),
        })
        .collect()
}

/// The flag and its value as text, if `serve` has a flag with this name that takes it. `cache_ttl`
/// is as good as `cache-ttl`: many a TOML file spells keys that way.
fn check_key(key: &str, value: toml::Value) -> Result<(String, String), String> {
    let key = key.replace('_', "-");
    let value = match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        other => {
            return Err(format!(
                "must be text or a whole number, is a {}",
                other.type_str()
            ));
        }
    };
    // Without the environment, for the file is what is checked here.
    let command = ServeArgs::augment_args(Command::new("file").no_binary_name(true))
        .disable_help_flag(true)
        .mut_args(|arg| arg.env(None::<&str>))
        .mut_arg(CONFIG, |arg| arg.long(None::<&str>));
    match command.try_get_matches_from([format!("--{key}={value}")]) {
        Ok(_) => Ok((key, value)),
        Err(error) if error.kind() == ErrorKind::UnknownArgument => {
            Err(match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(flag)) => {
                    format!(
                        "isn't known: did you mean `{}`?",
                        flag.trim_start_matches('-')
                    )
                }
                _ => "isn't known: the keys are the names of the flags of `serve`".to_owned(),
            })
        }
        Err(error) => Err(problem(&error)),
    }
}

/// What a value parser found wrong, without the value: that may be a secret.
fn problem(error: &clap::Error) -> String {
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        return format!("must be one of {}", values.join(", "));
    }
    let cause = std::error::Error::source(error).map(ToString::to_string);
    cause.unwrap_or_else(|| "has no value".to_owned())
}

/// Takes what follows the scheme of a URL, which may be a password, out of an error.
fn mask(mut error: clap::Error) -> clap::Error {
    if let (Some(ContextValue::String(arg)), Some(ContextValue::String(value))) = (
        error.get(ContextKind::InvalidArg),
        error.get(ContextKind::InvalidValue),
    ) && arg.contains("-url ")
        && let Some((scheme, _)) = value.split_once(':')
    {
        let masked = ContextValue::String(format!("{scheme}:..."));
        error.insert(ContextKind::InvalidValue, masked);
    }
    error
}

/// A parser of whole seconds in this range.
pub fn seconds(
    range: std::ops::RangeInclusive<u64>,
) -> impl clap::builder::TypedValueParser<Value = Duration> {
    value_parser!(u64).range(range).map(Duration::from_secs)
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "must be an IP address and a port, such as 127.0.0.1:50051 or [::1]:0".to_owned()
    })
}

fn database_url(text: &str) -> Result<DatabaseUrl, String> {
    if ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
    {
        return Ok(DatabaseUrl::Postgres(text.to_owned()));
    }
    let file = text
        .strip_prefix("sqlite:")
        .ok_or("must start with sqlite: or postgres://")?;
    let file = file.strip_prefix("//").unwrap_or(file);
    if file.is_empty() || file == ":memory:" || file.contains('?') {
        return Err("must name a file and nothing else, such as sqlite:locations.db".to_owned());
    }
    let path = PathBuf::from(file);
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match directory {
        Some(directory) if !directory.is_dir() => Err(format!(
            "must name a file in a directory that exists, and {} doesn't",
            directory.display()
        )),
        _ => Ok(DatabaseUrl::Sqlite(path)),
    }
}

/// The engine, which knows the schemes, checks the rest.
fn redis_url(text: &str) -> Result<String, String> {
    match text.split_once("://") {
        Some((scheme, host)) if scheme.starts_with("redis") && !host.is_empty() => {
            Ok(text.to_owned())
        }
        _ => Err(
            "must be a host after redis://, redis-sentinel:// or redis-cluster://, or with TLS \
             after rediss://, rediss-sentinel:// or rediss-cluster://"
                .to_owned(),
        ),
    }
}

fn existing_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let unreadable = |error| format!("can't be read: {error}");
    if !fs::metadata(&path).map_err(unreadable)?.is_file() {
        return Err("must be a plain file, not a directory or a pipe".to_owned());
    }
    File::open(&path).map_err(unreadable)?;
    Ok(path)
}

fn claim(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("must not be empty: leave it out to accept any".to_owned());
    }
    Ok(text.to_owned())
}

fn log_filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| format!("{error}: use a level such as info, or target=level"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use tempfile::TempDir;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Commands,
    }

    #[derive(clap::Subcommand)]
    enum Commands {
        Serve(Box<ServeArgs>),
        Token(TokenArgs),
    }

    fn words(line: &[&str]) -> Vec<OsString> {
        ["location-service"]
            .iter()
            .chain(line)
            .map(OsString::from)
            .collect()
    }

    fn serve(flags: &[&str]) -> Result<ServeConfig, ConfigError> {
        match parse::<Cli>(words(&[&["serve"], flags].concat()))?.command {
            Commands::Serve(args) => args.check(),
            Commands::Token(_) => panic!("serve was asked for"),
        }
    }

    /// What a person reads.
    fn refusal<T>(outcome: Result<T, ConfigError>) -> String {
        let error = outcome.err().expect("it was taken");
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error} {}", cause.unwrap_or_default())
    }

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Self(TempDir::new().unwrap())
        }

        fn write(&self, name: &str, content: &str) -> String {
            let path = self.0.path().join(name);
            fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        }
    }

    /// `serve` with a file of this content.
    fn from_file(content: &str) -> Result<ServeConfig, ConfigError> {
        let files = Files::new();
        serve(&["--config", &files.write("config.toml", content)])
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_need_no_setting() {
        let config = serve(&[]).ok().unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:50051");
        assert!(config.database == DatabaseUrl::Sqlite("locations.db".into()));
        assert_eq!(config.redis_url, None);
        assert_eq!(config.cache.ttl, Duration::from_mins(5));
        assert_eq!(config.cache.max_bytes, 64 * 1024 * 1024);
        assert_eq!(config.auth.keys, None);
        assert_eq!(config.shutdown_grace, Duration::from_secs(10));
        assert_eq!(config.log.format, LogFormat::Text);
        assert_eq!(config.log.filter.to_string(), "info");
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let serve = ServeArgs::augment_args(Command::new("serve"));
        for arg in serve.get_arguments() {
            let name = arg.get_long().unwrap().to_uppercase().replace('-', "_");
            let expected = format!("LOCATION_SERVICE_{name}");
            assert_eq!(arg.get_env().unwrap().to_str(), Some(expected.as_str()));
        }
    }

    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
        let files = Files::new();
        let file = files.write(
            "config.toml",
            "jwt-issuer = 'file'\njwt-audience = 'file'\ncache-ttl = 7",
        );
        // A variable that every process has, for a test can't set one.
        let path = std::env::var("PATH").unwrap();
        let command = || {
            Cli::command().mut_subcommand("serve", |serve| {
                serve.mut_arg("jwt_issuer", |arg| arg.env("PATH"))
            })
        };
        let issuer = |flags: &[&str]| {
            let matches = matches(command(), words(&[&["serve"], flags].concat()))
                .ok()
                .unwrap();
            let (_, serve) = matches.subcommand().unwrap();
            serve.get_one::<String>("jwt_issuer").cloned()
        };
        assert_eq!(
            issuer(&["--config", &file, "--jwt-issuer", "flag"]).unwrap(),
            "flag"
        );
        assert_eq!(issuer(&["--config", &file]).unwrap(), path);

        let config = serve(&["--config", &file]).ok().unwrap();
        assert_eq!(config.auth.issuer.as_deref(), Some("file"));
        let config = serve(&["--jwt-issuer", "flag", "--config", &file])
            .ok()
            .unwrap();
        assert_eq!(config.auth.issuer.as_deref(), Some("flag"));
        assert_eq!(config.auth.audience.as_deref(), Some("file"));
        assert_eq!(config.cache.ttl, Duration::from_secs(7));
        assert_eq!(config.cache.max_bytes, 64 * 1024 * 1024);
    }

    #[test]
    fn the_file_can_be_named_by_the_environment() {
        let files = Files::new();
        let file = files.write("config.toml", "cache-ttl = 7");
        let command = Cli::command().mut_subcommand("serve", |serve| {
            serve.mut_arg(CONFIG, |arg| arg.env("CARGO_MANIFEST_DIR"))
        });
        // A directory, which is enough to see that it was tried.
        let error = refusal(matches(command, words(&["serve"])));
        assert!(
            error.contains("cannot read the configuration file"),
            "{error}"
        );
        assert!(serve(&["--config", &file]).is_ok());
    }

    #[test]
    fn the_file_satisfies_what_token_requires() {
        let files = Files::new();
        let secret = files.write("secret", "s");
        let content =
            format!("jwt-secret-file = '{secret}'\njwt-issuer = 'me'\nlog-format = 'json'");
        let file = files.write("config.toml", &content);
        let parsed = parse::<Cli>(words(&["token", "--subject", "ann", "--config", &file]));
        let Ok(Cli {
            command: Commands::Token(args),
        }) = parsed
        else {
            panic!("{}", refusal(parsed));
        };
        assert_eq!(args.jwt_secret_file, PathBuf::from(secret));
        assert_eq!(args.claims.jwt_issuer.as_deref(), Some("me"));
        assert_eq!(args.ttl_secs, Duration::from_hours(1));
        assert!(!args.admin);

        let error = refusal(parse::<Cli>(words(&["token", "--subject", "ann"])));
        assert!(error.contains("--jwt-secret-file"), "{error}");
    }

    #[test]
    fn every_setting_can_come_from_the_file() {
        let files = Files::new();
        let jwks = files.write("jwks", "{}");
        let database = files.0.path().join("x.db");
        let config = from_file(&format!(
            "listen = '0.0.0.0:1'\nshutdown-grace-secs = 0\ndatabase-url = 'sqlite:{}'\n\
             redis-url = 'redis://cache'\ncache-ttl = '9'\ncache-max-bytes = 10\n\
             jwks-file = '{jwks}'\njwt-issuer = 'i'\njwt-audience = 'a'\n\
             log-format = 'json'\nlog-filter = 'warn,location_service=debug'",
            database.display()
        ));
        let config = config.map_err(|error| error.to_string()).ok().unwrap();
        assert_eq!(config.listen.to_string(), "0.0.0.0:1");
        assert_eq!(config.shutdown_grace, Duration::ZERO);
        assert!(config.database == DatabaseUrl::Sqlite(database));
        assert_eq!(config.redis_url.as_deref(), Some("redis://cache"));
        assert_eq!(config.cache.ttl, Duration::from_secs(9));
        assert_eq!(config.cache.max_bytes, 10);
        assert_eq!(config.auth.keys, Some(KeyFile::Jwks(jwks.into())));
        assert_eq!(config.log.format, LogFormat::Json);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file_and_the_nearest_known_one() {
        for (line, nearest) in [
            ("cache-tll = 1", "cache-ttl"),
            ("cache_tll = 1", "cache-ttl"),
            ("databse-url = 'x'", "database-url"),
        ] {
            let error = refusal(from_file(line));
            assert!(error.contains("config.toml"), "{error}");
            assert!(error.contains(line.split(' ').next().unwrap()), "{error}");
            assert!(
                error.contains(&format!("did you mean `{nearest}`?")),
                "{error}"
            );
        }
        for line in [
            "zzz = 1",
            "config = 'x'",
            "subject = 'x'",
            "help = 'x'",
            "\"\" = 1",
        ] {
            assert!(refusal(from_file(line)).contains("isn't known"), "{line}");
        }
    }

    #[test]
    fn a_bad_value_in_the_file_is_named_with_key_and_limit() {
        for (line, limit) in [
            ("cache-ttl = 0", "1..=31536000"),
            ("cache-ttl = -1", "invalid digit"),
            ("cache-ttl = 1.5", "whole number, is a float"),
            ("cache-ttl = ['1']", "is a array"),
            ("cache-max-bytes = 0", "1..18446744073709551615"),
            ("log-format = 'xml'", "one of text, json"),
            ("listen = ''", "such as 127.0.0.1:50051"),
            ("[cache]\nttl = 1", "is a table"),
        ] {
            let error = refusal(from_file(line));
            assert!(error.contains("config.toml: `"), "{error}");
            assert!(error.contains(limit), "{error}");
        }
        let secret = refusal(from_file("database-url = 'mysql://ann:hunter2@db'"));
        assert!(
            secret.contains("sqlite:") && !secret.contains("hunter2"),
            "{secret}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = refusal(serve(&["--config", "/missing.toml"]));
        assert!(
            error.contains("/missing.toml") && error.contains("No such file"),
            "{error}"
        );
        let error = refusal(from_file("listen ="));
        assert!(
            error.contains("isn't TOML") && error.contains("line 1"),
            "{error}"
        );
    }

    #[test]
    fn bad_flags_are_refused_with_the_limit() {
        for (flags, expected) in [
            (["--listen", "localhost"], "127.0.0.1:50051"),
            (["--shutdown-grace-secs", "3601"], "0..=3600"),
            (["--cache-ttl", "31536001"], "1..=31536000"),
            (["--database-url", "mysql://x"], "sqlite: or postgres://"),
            (["--database-url", "sqlite:"], "must name a file"),
            (["--database-url", "sqlite::memory:"], "must name a file"),
            (["--database-url", "sqlite:x?mode=ro"], "must name a file"),
            (
                ["--database-url", "sqlite:/missing/x.db"],
                "/missing doesn't",
            ),
            (["--redis-url", "http://x"], "redis-sentinel://"),
            (["--redis-url", "redis://"], "must be a host"),
            (["--jwks-file", "/missing"], "No such file"),
            (["--jwt-secret-file", "/"], "plain file"),
            (["--jwt-issuer", ""], "must not be empty"),
            (["--log-filter", "a=b=c"], "target=level"),
            (["--log-format", "xml"], "possible values: text, json"),
        ] {
            let error = refusal(serve(&flags));
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        for flag in ["--database-url", "--redis-url"] {
            for url in ["postgress://ann:hunter2@db", "rediss:hunter2@db"] {
                let error = refusal(serve(&[flag, url]));
                assert!(error.contains("ss:..."), "{error}");
                assert!(!error.contains("hunter2"), "{error}");
            }
        }
    }

    #[test]
    fn urls_of_every_engine_are_taken() {
        for url in ["postgres://u:p@h/d", "postgresql://h/d"] {
            let config = serve(&["--database-url", url]).ok().unwrap();
            assert!(config.database == DatabaseUrl::Postgres(url.to_owned()));
        }
        let config = serve(&["--database-url", "sqlite:///tmp/x.db"])
            .ok()
            .unwrap();
        assert!(config.database == DatabaseUrl::Sqlite("/tmp/x.db".into()));
        for scheme in ["redis", "rediss", "redis-sentinel", "redis-cluster"] {
            assert!(serve(&["--redis-url", &format!("{scheme}://h:1")]).is_ok());
        }
    }

    #[test]
    fn development_mode_listens_on_loopback_only() {
        let error = refusal(serve(&["--listen", "0.0.0.0:50051"]));
        assert!(
            error.contains("0.0.0.0:50051") && error.contains("jwks-file"),
            "{error}"
        );
        assert!(serve(&["--listen", "[::]:0"]).is_err());
        assert!(serve(&["--listen", "[::1]:0"]).is_ok());
        let files = Files::new();
        let secret = files.write("secret", "s");
        assert!(serve(&["--listen", "0.0.0.0:0", "--jwt-secret-file", &secret]).is_ok());
    }

    #[test]
    fn one_key_file_at_most() {
        let files = Files::new();
        let key = files.write("key", "k");
        let kinds = ["--jwt-secret-file", "--jwt-public-key-file", "--jwks-file"];
        for (first, second) in [(0, 1), (0, 2), (1, 2)] {
            let error = refusal(serve(&[kinds[first], &key, kinds[second], &key]));
            assert!(error.contains(&kinds[first][2..]), "{error}");
            assert!(error.contains(&kinds[second][2..]), "{error}");
        }
        let content = format!("jwks-file = '{key}'");
        let file = files.write("config.toml", &content);
        assert!(serve(&["--config", &file, "--jwt-secret-file", &key]).is_err());
    }
}
