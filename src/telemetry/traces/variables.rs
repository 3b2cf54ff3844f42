//! The standard variables. Reports the invalid values that the libraries ignore silently.

use std::{env, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use http::Uri;
use rustls::ClientConfig;

use crate::tls::{ClientCertificate, TlsFiles};

/// The protocols in which spans are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `http/protobuf`, the default.
    Http,
    /// `grpc`.
    Grpc,
}

const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The variables with whole numbers.
const NUMBERS: [&str; 9] = [
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
];

/// The value of a variable. An empty one is unset.
fn value(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The value of an exporter's variable: the one for traces, or else the one for all signals.
fn exporter_value(name: &str) -> Option<String> {
    value(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
        .or_else(|| value(&format!("OTEL_EXPORTER_OTLP_{name}")))
}

/// Where to send spans, without a password. `None` if traces are off.
pub fn endpoint() -> Option<String> {
    let disabled = value("OTEL_SDK_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true"));
    if disabled || value("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none") {
        return None;
    }
    let endpoint = exporter_value("ENDPOINT")?;
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", &endpoint));
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
    Some(format!("{scheme}://{address}"))
}

/// The protocol in which spans are sent.
pub fn protocol() -> Result<Protocol, String> {
    match exporter_value("PROTOCOL").as_deref() {
        None | Some("http/protobuf") => Ok(Protocol::Http),
        Some("grpc") => Ok(Protocol::Grpc),
        Some(other) => Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf or grpc, is {other:?}"
        )),
    }
}

/// The endpoint and the TLS of connections to it, if it is an `https` URL.
pub fn https() -> Result<Option<(Uri, Arc<ClientConfig>)>, String> {
    let url: Option<Uri> = exporter_value("ENDPOINT").and_then(|url| url.parse().ok());
    let Some(url) = url.filter(|url| url.scheme_str() == Some("https")) else {
        return Ok(None);
    };
    let path = |name| exporter_value(name).map(PathBuf::from);
    let client = match (path("CLIENT_CERTIFICATE"), path("CLIENT_KEY")) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        _ => {
            return Err(
                "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY belong \
                 together: set both"
                    .to_owned(),
            );
        }
    };
    let authorities = path("CERTIFICATE");
    let files = TlsFiles {
        authorities,
        client,
    };
    let config = files.client_config().map_err(|error| {
        let name = match &files.client {
            Some(client) if client.key == error.path => "CLIENT_KEY",
            Some(client) if client.certificate == error.path => "CLIENT_CERTIFICATE",
            _ => "CERTIFICATE",
        };
        format!("OTEL_EXPORTER_OTLP_{name}: {error}")
    })?;
    Ok(Some((url, Arc::new(config))))
}

/// The time limit of an export.
pub fn timeout() -> Duration {
    let millis = exporter_value("TIMEOUT").and_then(|millis| millis.parse().ok());
    Duration::from_millis(millis.unwrap_or(10_000))
}

/// Whether variables name the service.
pub fn name_the_service() -> bool {
    let attributes = value("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let mut names = attributes
        .split(',')
        .filter_map(|attribute| attribute.split_once('='))
        .map(|(name, _)| name.trim());
    value("OTEL_SERVICE_NAME").is_some() || names.any(|name| name == "service.name")
}

/// Warns of the values that are ignored because they are invalid.
pub fn warn_of_invalid() {
    let check = |name: &str, is_valid: &dyn Fn(&str) -> bool, rule: &str| {
        if let Some(value) = value(name).filter(|value| !is_valid(value)) {
            tracing::warn!("{name} {rule}, is {value:?}: its default is used");
        }
    };
    let is_number = |value: &str| u64::from_str(value).is_ok();
    for name in NUMBERS {
        check(name, &is_number, "must be a whole number");
    }
    let is_sampler = |value: &str| SAMPLERS.contains(&value);
    let samplers = format!("must be one of {}", SAMPLERS.join(", "));
    check("OTEL_TRACES_SAMPLER", &is_sampler, &samplers);
    let is_ratio = |value: &str| f64::from_str(value).is_ok_and(|it| (0.0..=1.0).contains(&it));
    check(
        "OTEL_TRACES_SAMPLER_ARG",
        &is_ratio,
        "must be a number from 0 to 1",
    );
    let is_otlp = |value: &str| value == "otlp";
    check("OTEL_TRACES_EXPORTER", &is_otlp, "must be otlp or none");
}
