//! Parsers of option values. Errors state the valid form, and never repeat a URL, which may hold a
//! password.

use std::{
    fs::{self, File},
    net::SocketAddr,
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use clap::{builder::TypedValueParser, value_parser};
use location_service::config::DatabaseUrl;
use tonic::transport::Endpoint;
use tracing_subscriber::EnvFilter;

/// Parses whole seconds in a range.
pub fn seconds(range: RangeInclusive<u64>) -> impl TypedValueParser<Value = Duration> {
    value_parser!(u64).range(range).map(Duration::from_secs)
}

/// Parses a number of 1 or more.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "must be a whole number of 1 or more".to_owned())
}

/// Parses an IP address with a port.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "must be an IP address and a port, such as 127.0.0.1:50051 or [::1]:0".to_owned()
    })
}

/// Parses the address of a service to call.
pub fn endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::from_shared(text.to_owned())
        .ok()
        .filter(|endpoint| matches!(endpoint.uri().scheme_str(), Some("http" | "https")))
        .ok_or_else(|| {
            "must be a URL such as http://127.0.0.1:50051 or https://locations.example.com:50051"
                .to_owned()
        })
}

/// The parameters of a `PostgreSQL` URL. The driver ignores any other, and a misspelled `sslmode`
/// would connect without TLS.
const POSTGRES_PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];

/// The prefix of `PostgreSQL` parameters that set one option of the session, as in
/// `options[search_path]`.
const POSTGRES_OPTION: &str = "options[";

/// The parameters of a Redis Cluster URL.
const CLUSTER_PARAMETERS: &[&str] = &["node"];

/// The parameters of a Redis Sentinel URL.
const SENTINEL_PARAMETERS: &[&str] = &[
    "node",
    "sentinelServiceName",
    "sentinelUsername",
    "sentinelPassword",
];

/// Parses the engine and the address of a database.
pub fn database_url(text: &str) -> Result<DatabaseUrl, String> {
    if ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
    {
        check_parameters(text, |name| {
            POSTGRES_PARAMETERS.contains(&name)
                || (name.starts_with(POSTGRES_OPTION) && name.ends_with(']'))
        })
        .map_err(|problem| format!("{problem}: use {}", POSTGRES_PARAMETERS.join(", ")))?;
        return Ok(DatabaseUrl::Postgres(text.to_owned()));
    }
    let file = text
        .strip_prefix("sqlite:")
        .ok_or("must start with sqlite: or postgres://")?;
    let file = file.strip_prefix("//").unwrap_or(file);
    if file.is_empty() || file == ":memory:" || file.contains('?') {
        return Err("must name a file, without parameters, such as sqlite:locations.db".to_owned());
    }
    let path = PathBuf::from(file);
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match directory {
        Some(directory) if !directory.is_dir() => Err(format!(
            "must name a file in an existing directory: {} doesn't exist",
            directory.display()
        )),
        _ => Ok(DatabaseUrl::Sqlite(path)),
    }
}

/// Checks the form and the parameters of a Redis URL. The engine parses the rest.
pub fn redis_url(text: &str) -> Result<String, String> {
    let scheme = match text.split_once("://") {
        Some((scheme, host)) if scheme.starts_with("redis") && !host.is_empty() => scheme,
        _ => {
            return Err(
                "must be a host after redis://, redis-sentinel:// or redis-cluster://, or with TLS \
                 after rediss://, rediss-sentinel:// or rediss-cluster://"
                    .to_owned(),
            );
        }
    };
    let known = match scheme.rsplit_once('-') {
        Some((_, "cluster")) => CLUSTER_PARAMETERS,
        Some((_, "sentinel")) => SENTINEL_PARAMETERS,
        _ => &[],
    };
    check_parameters(text, |name| known.contains(&name)).map_err(|problem| {
        if known.is_empty() {
            format!("{problem}: {scheme}:// has none; a database number is the path, as in /3")
        } else {
            format!("{problem}: use {}", known.join(", "))
        }
    })?;
    Ok(text.to_owned())
}

/// Checks the names of the parameters of a URL. The error names the unknown one, unless it may be a
/// part of a password that has an unescaped `?`.
fn check_parameters(url: &str, is_known: impl Fn(&str) -> bool) -> Result<(), String> {
    let Some((_, query)) = url.split_once('?') else {
        return Ok(());
    };
    let unknown = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split('=').next().unwrap_or_default())
        .find(|name| !is_known(name));
    match unknown {
        None => Ok(()),
        Some(_) if query.contains('@') => {
            Err("has an unknown parameter (in a password, write ? as %3F)".to_owned())
        }
        Some(name) => Err(format!(
            "has the unknown parameter `{}`",
            name.escape_debug()
        )),
    }
}

/// Checks that a file can be read.
pub fn existing_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let unreadable = |error| format!("can't be read: {error}");
    if !fs::metadata(&path).map_err(unreadable)?.is_file() {
        return Err("must be a plain file, not a directory or a pipe".to_owned());
    }
    File::open(&path).map_err(unreadable)?;
    Ok(path)
}

/// Checks the value of a claim.
pub fn claim(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("must not be empty: omit it to accept any value".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses a filter of log events.
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| format!("{error}: use a level such as info, or target=level"))
}
