//! The log: events as lines on stderr, so that stdout stays for what commands answer.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::{LogConfig, LogFormat};

/// Starts the log of the process; it fails if that has one.
pub fn init(config: &LogConfig) -> Result<(), TryInitError> {
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        // It would tell of a broken stderr on stderr, and panic.
        .log_internal_errors(false)
        .with_env_filter(config.filter.clone());
    match config.format {
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colors = io::stderr().is_terminal() && !plain;
            lines.with_ansi(colors).finish().try_init()
        }
    }
}
