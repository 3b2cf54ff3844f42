//! The access log: one line a call.

use std::{
    borrow::Cow,
    fmt::Write as _,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use http::HeaderValue;
use tonic::Code;

use super::calls::CODES;
use crate::telemetry::{AccessLog, call::Call};

/// Lines a second with [`AccessLog::Errors`]: callers that are refused must not fill the disk.
const MAX_LINES_A_SECOND: u64 = 200;

/// Maximum number of characters of a text from a caller.
const MAX_TEXT: usize = 256;

/// Writes the lines.
pub struct Access {
    log: AccessLog,
    started: Instant,
    /// The current second in the upper half, and the number of its lines in the lower half.
    lines: AtomicU64,
}

/// A call that has ended.
pub struct Line<'a> {
    /// The path of the method.
    pub path: &'a str,
    /// The status.
    pub code: Code,
    /// The time from the request's headers to the end of the response.
    pub duration: Duration,
    /// The `cache-status`.
    pub cache: Option<&'a HeaderValue>,
    /// The address of the client, or of a proxy.
    pub peer: Option<IpAddr>,
    /// The bytes of the response's body.
    pub response_bytes: u64,
}

impl Access {
    pub fn new(log: AccessLog) -> Self {
        Self {
            log,
            started: Instant::now(),
            lines: AtomicU64::new(0),
        }
    }

    /// Whether no call is logged.
    pub fn is_off(&self) -> bool {
        self.log == AccessLog::Off
    }

    /// Logs a call, unless calls like it aren't logged.
    pub fn log(&self, call: Call, line: &Line<'_>) {
        match self.log {
            AccessLog::Off => {}
            AccessLog::Errors => {
                if severity(line.code) != Severity::Usual && self.may_log() {
                    write(call, line);
                }
            }
            AccessLog::All => write(call, line),
        }
    }

    /// Counts a line, and returns whether it is within the limit of its second. The first line of a later
    /// second logs how many were not.
    fn may_log(&self) -> bool {
        let second = self.started.elapsed().as_secs();
        let mut left_out = 0;
        let counted = self
            .lines
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lines| {
                let (of, count) = (lines >> 32, lines & u64::from(u32::MAX));
                if of == second {
                    left_out = 0;
                    Some(lines + 1)
                } else {
                    left_out = count.saturating_sub(MAX_LINES_A_SECOND);
                    Some(second << 32 | 1)
                }
            });
        if left_out > 0 {
            tracing::warn!(
                "{left_out} failed or refused calls of a second were not logged, above {MAX_LINES_A_SECOND}"
            );
        }
        counted.is_ok_and(|lines| {
            lines >> 32 != second || lines & u64::from(u32::MAX) < MAX_LINES_A_SECOND
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// The service has failed.
    Failure,
    /// The service has refused the call.
    Refusal,
    /// The call has succeeded, or its caller can correct it.
    Usual,
}

/// How a status concerns the operators of the service. Failures are the codes that OpenTelemetry
/// treats as errors of a server: <https://opentelemetry.io/docs/specs/semconv/rpc/grpc>.
fn severity(code: Code) -> Severity {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Severity::Failure,
        Code::PermissionDenied | Code::ResourceExhausted | Code::Unauthenticated => {
            Severity::Refusal
        }
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange => Severity::Usual,
    }
}

/// Whether the service has failed.
pub fn is_failure(code: Code) -> bool {
    severity(code) == Severity::Failure
}

fn write(call: Call, line: &Line<'_>) {
    let subject = call.take_subject().unwrap_or_default();
    let request_bytes = call.request_bytes();
    let method = text(line.path.trim_start_matches('/'));
    let subject = text(&subject);
    let cache = line.cache.and_then(|status| status.to_str().ok());
    let cache = cache.unwrap_or_default();
    let cache = cache.strip_prefix("location-service; ").unwrap_or(cache);
    let peer = line.peer.map(tracing::field::display);
    let ms = (line.duration.as_secs_f64() * 1e6).round() / 1e3;
    let code = CODES[line.code as usize];
    // A macro, because the level of an event is a constant.
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: "access",
                method = &*method,
                code,
                ms,
                subject = &*subject,
                cache,
                peer,
                request.bytes = request_bytes,
                response.bytes = line.response_bytes,
                "call",
            )
        };
    }
    // Within the call, so that the line has the request's id.
    call.enter(|| match severity(line.code) {
        Severity::Failure => event!(warn),
        Severity::Refusal | Severity::Usual => event!(info),
    });
}

/// The start of a text from a caller, with control characters escaped.
fn text(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT && !text.contains(char::is_control) {
        return text.into();
    }
    let mut escaped = String::new();
    for char in text.chars().take(MAX_TEXT) {
        let _ = if char.is_control() {
            write!(escaped, "{}", char.escape_default())
        } else {
            escaped.write_char(char)
        };
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_bounded_and_stays_on_its_line() {
        assert_eq!(text("ann"), "ann");
        assert_eq!(text("a\nINFO \u{1b}[0m"), "a\\nINFO \\u{1b}[0m");
        assert_eq!(text(&"\u{e9}".repeat(1_000)), "\u{e9}".repeat(MAX_TEXT));
    }

    #[test]
    fn failures_and_refusals_are_bounded_in_each_second() {
        let access = Access::new(AccessLog::Errors);
        let allowed = (0..3 * MAX_LINES_A_SECOND)
            .filter(|_| access.may_log())
            .count() as u64;
        // The second may change meanwhile.
        assert!(
            [1, 2].contains(&(allowed / MAX_LINES_A_SECOND)),
            "{allowed}"
        );
    }
}
