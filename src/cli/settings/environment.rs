//! The environment variables of settings, and those that set nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fmt::Write as _,
};

use clap::{Arg, CommandFactory as _};

use crate::cli::{Cli, transfer::TOKEN_VARIABLE};

/// The prefix of the environment variables with settings.
const PREFIX: &str = "LOCATION_SERVICE_";

/// Variables without a flag. The first one switches off protections of a debug build.
const WITHOUT_FLAG: [&str; 2] = ["LOCATION_SERVICE_FAILPOINT", TOKEN_VARIABLE];

/// The minimum similarity of a suggested name, from 0 to 1.
const SIMILAR: f64 = 0.8;

/// The transport protocols of Kubernetes.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// The environment variables that begin with `LOCATION_`.
pub struct Environment(pub BTreeMap<String, OsString>);

impl Environment {
    /// The variables of the process.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
            .filter(|(name, _)| name.starts_with("LOCATION_"));
        Self(variables.collect())
    }

    pub fn get(&self, arg: &Arg) -> Option<(&str, &OsStr)> {
        let name = arg.get_env()?.to_str()?;
        let (name, value) = self.0.get_key_value(name)?;
        Some((name, value))
    }

    /// Describes the variables that set nothing, such as misspelled ones.
    pub fn unknown(&self) -> Vec<String> {
        let known: BTreeSet<_> = Cli::command()
            .get_subcommands()
            .flat_map(|command| command.get_arguments().filter_map(Arg::get_env))
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        self.0
            .iter()
            .filter(|(name, value)| {
                name.starts_with(PREFIX)
                    && !known.contains(*name)
                    && !WITHOUT_FLAG.contains(&name.as_str())
                    && !self.is_of_kubernetes(name, value)
            })
            .map(|(name, _)| {
                let mut text = format!("the environment variable {name} isn't a setting");
                if let Some(nearest) = nearest(name, known.iter().map(String::as_str), PREFIX) {
                    // Writing to a string can't fail.
                    let _ = write!(text, ": did you mean {nearest}?");
                }
                text
            })
            .collect()
    }

    /// Whether Kubernetes sets the variable in every container, for a Service whose name is `location`
    /// or begins with `location-service`.
    fn is_of_kubernetes(&self, name: &str, value: &OsStr) -> bool {
        let suffix = name.strip_prefix(PREFIX).unwrap_or(name);
        let is_service =
            |suffix: &str| suffix == "HOST" || suffix == "PORT" || suffix.starts_with("PORT_");
        // Without `LOCATION_PORT`, `LOCATION_SERVICE_HOST` is a mistake.
        let location = self.0.get("LOCATION_PORT");
        if location.is_some_and(|value| is_port_of_service(value)) && is_service(suffix) {
            return true;
        }
        let service = suffix.rsplit_once("SERVICE_").map(|(_, rest)| rest);
        if service.is_some_and(is_service) {
            return true;
        }
        if suffix.ends_with("PORT") && is_port_of_service(value) {
            return true;
        }
        // As in `LOCATION_SERVICE_PORT_50051_TCP_ADDR`.
        suffix.rsplit_once("PORT_").is_some_and(|(_, rest)| {
            let mut parts = rest.split('_');
            let number = parts.next().unwrap_or_default();
            let protocol = parts.next().unwrap_or_default().to_lowercase();
            number.parse::<u16>().is_ok() && PROTOCOLS.contains(&protocol.as_str())
        })
    }
}

/// Whether the value is one that Kubernetes sets for a port of a Service, as in `tcp://10.0.0.1:80`.
fn is_port_of_service(value: &OsStr) -> bool {
    let value = value.to_string_lossy();
    value
        .split_once("://")
        .is_some_and(|(scheme, _)| PROTOCOLS.contains(&scheme))
}

/// The known name that is most similar, if one is similar enough. `prefix`, which all names share, isn't
/// compared.
pub fn nearest<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str>,
    prefix: &str,
) -> Option<&'a str> {
    let name = name.trim_start_matches(prefix);
    known
        .map(|known| {
            let similarity = strsim::jaro_winkler(name, known.trim_start_matches(prefix));
            (similarity, known)
        })
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}
