//! Parsers of option values. Errors state the valid form, and never repeat a URL, which may hold a
//! password.

use std::{
    fs::{self, File},
    net::SocketAddr,
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use location_service::config::DatabaseUrl;
use tonic::transport::Endpoint;
use tracing_subscriber::EnvFilter;

/// Parses a time in a range of whole seconds: `300`, `300s`, `5m`, `1h` or `1d`.
pub fn seconds(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync {
    const UNITS: &[(&str, u64)] = &[("", 1), ("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    move |text| {
        let seconds = with_unit(text, |unit| {
            Some(UNITS.iter().find(|(name, _)| *name == unit)?.1)
        });
        let seconds = seconds.filter(|seconds| range.contains(seconds));
        seconds.map(Duration::from_secs).ok_or_else(|| {
            format!(
                "must be a time of {} to {} seconds, such as 10, 10s or 2m",
                range.start(),
                range.end()
            )
        })
    }
}

/// Parses a size of `min` bytes or more: `1000`, `10MB` (of 1,000,000 bytes) or `64 MiB` (of 1,048,576).
pub fn bytes(min: u64) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync {
    move |text| {
        let size = with_unit(text, size_unit).filter(|size| *size >= min);
        size.ok_or_else(|| {
            format!("must be a size of {min} or more bytes, such as 67108864, 64MiB or 64MB")
        })
    }
}

fn size_unit(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if ["", "b"].contains(&unit.as_str()) {
        return Some(1);
    }
    let exponent = ["k", "m", "g", "t"]
        .iter()
        .position(|prefix| unit.starts_with(prefix))?;
    let base: u64 = match &unit[1..] {
        "b" => 1_000,
        "i" | "ib" => 1_024,
        _ => return None,
    };
    base.checked_pow(u32::try_from(exponent + 1).ok()?)
}

/// Parses a whole number and a unit.
fn with_unit(text: &str, unit: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, name) = text.split_at(end);
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(unit(name.trim_start())?)
}

/// Parses a whole number in a range.
pub fn number(
    range: RangeInclusive<u32>,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            format!(
                "must be a whole number from {} to {}",
                range.start(),
                range.end()
            )
        })
    }
}

/// Parses a number of 1 or more.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "must be a whole number of 1 or more".to_owned())
}

/// Parses the value of a flag that takes none on the command line.
pub fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
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
