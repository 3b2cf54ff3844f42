//! The log: one line for each event, on stderr. Stdout is reserved for the output of commands.

use std::{
    fmt,
    io::{self, IsTerminal as _},
};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{DefaultFields, Writer},
    },
    registry::LookupSpan,
    util::{SubscriberInitExt as _, TryInitError},
};

use super::call;

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The format of a line.
    pub format: LogFormat,
    /// Selects the events to log.
    pub filter: EnvFilter,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people, coloured on a terminal.
    Text,
    /// One JSON object for each event.
    Json,
}

/// The calls that are logged, one line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those that failed in the service, or that it refused.
    Errors,
    /// All.
    All,
}

/// Installs the subscriber of the process. Fails if the process already has one.
pub fn init(config: &LogConfig) -> Result<(), TryInitError> {
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        // Otherwise it reports a broken stderr on stderr, and panics.
        .log_internal_errors(false)
        .with_env_filter(config.filter.clone());
    match config.format {
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .map_event_format(JsonOfCall)
            .finish()
            .try_init(),
        LogFormat::Text => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colors = io::stderr().is_terminal() && !no_color;
            lines
                .with_ansi(colors)
                .fmt_fields(FieldsOfCall(DefaultFields::new()))
                .finish()
                .try_init()
        }
    }
}

/// Ends the fields of an event with those that name its call.
struct FieldsOfCall(DefaultFields);

impl<'writer> FormatFields<'writer> for FieldsOfCall {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        self.0.format_fields(writer.by_ref(), fields)?;
        call::write_names(&mut writer, |writer, name, value| {
            write!(writer, " {name}={value}")
        })
    }
}

/// Ends the object of an event with the fields that name its call.
struct JsonOfCall<F>(F);

impl<S, N, F> FormatEvent<S, N> for JsonOfCall<F>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut object = String::new();
        self.0
            .format_event(context, Writer::new(&mut object), event)?;
        writer.write_str(object.trim_end().strip_suffix('}').unwrap_or_default())?;
        call::write_names(&mut writer, |writer, name, value| {
            let value = serde_json::Value::String(value.to_string());
            write!(writer, ",\"{name}\":{value}")
        })?;
        writer.write_str("}\n")
    }
}
