//! The log: one line for each event, on stderr. Stdout is reserved for the output of commands.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::{LogConfig, LogFormat};

/// Installs the subscriber of the process. Fails if the process already has one.
pub fn init(config: &LogConfig) -> Result<(), TryInitError> {
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        // Otherwise it reports a broken stderr on stderr, and panics.
        .log_internal_errors(false)
        .with_env_filter(config.filter.clone());
    match config.format {
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colors = io::stderr().is_terminal() && !no_color;
            lines.with_ansi(colors).finish().try_init()
        }
    }
}
