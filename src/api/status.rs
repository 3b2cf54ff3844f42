//! Maps errors to gRPC statuses and logs them; no other module does either.

use std::{
    error::Error as _,
    fmt::{self, Write as _},
    time::Duration,
};

use tonic::{Code, Status, metadata::AsciiMetadataValue};
use tonic_types::{
    BadRequest, ErrorDetail, ErrorInfo, FieldViolation, ResourceInfo, RetryInfo, StatusExt as _,
};

use crate::error::{Error, Violation, Violations};

const DOMAIN: &str = "location.v1";
const LOCATION: &str = "location.v1.Location";

/// The delay in `RetryInfo`.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The trailer that tells a client when to retry (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Maximum size of the text in a status's details. Clients accept 8 KiB of trailers, where the
/// details are encoded as base64.
const MAX_DETAIL_BYTES: usize = 3_000;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, reason) = classify(&error);
        log(&error, code, reason);
        let mut info = ErrorInfo::new(reason, DOMAIN, []);
        let mut details = Vec::new();
        match &error {
            Error::InvalidArgument(violations) => {
                details.push(BadRequest::new(field_violations(violations)).into());
            }
            Error::TooManyItems {
                field,
                limit,
                count,
            } => {
                info.metadata.insert("field".to_owned(), field.clone());
                info.metadata.insert("limit".to_owned(), limit.to_string());
                info.metadata.insert("value".to_owned(), count.to_string());
                let description = format!("must have at most {limit} items, has {count}");
                details.push(BadRequest::new([FieldViolation::new(field, description)]).into());
            }
            Error::MessageTooLarge { limit, size } => {
                info.metadata.insert("limit".to_owned(), limit.to_string());
                info.metadata.insert("value".to_owned(), size.to_string());
            }
            Error::Overloaded { limit, value } | Error::CallerLimit { limit, value } => {
                info.metadata
                    .insert("limit".to_owned(), (*limit).to_owned());
                info.metadata.insert("value".to_owned(), value.to_string());
            }
            Error::QueryTooSlow(limit) => {
                let name = "milliseconds of a list with query";
                info.metadata.insert("limit".to_owned(), name.to_owned());
                let value = limit.as_millis().to_string();
                info.metadata.insert("value".to_owned(), value);
            }
            Error::TooManyWatches(value) => {
                info.metadata
                    .insert("limit".to_owned(), "watches".to_owned());
                info.metadata.insert("value".to_owned(), value.to_string());
            }
            Error::NotFound(ids) => {
                let mut bytes_left = MAX_DETAIL_BYTES;
                details.extend(
                    ids.iter().map_while(|id| {
                        resource(&id.to_string(), "was not found", &mut bytes_left)
                    }),
                );
            }
            Error::AlreadyExists { id, indexes } => {
                info.metadata.insert("indexes".to_owned(), ranges(indexes));
                let mut bytes_left = MAX_DETAIL_BYTES;
                details.extend(resource(&id.to_string(), "already exists", &mut bytes_left));
            }
            Error::RequestIdReused(id) => {
                let violation = FieldViolation::new("request_id", error.to_string());
                info.metadata
                    .insert("request_id".to_owned(), id.to_string());
                details.push(BadRequest::new([violation]).into());
            }
            Error::EtagMismatch(id) => {
                let mut bytes_left = MAX_DETAIL_BYTES;
                details.extend(resource(&id.to_string(), "has changed", &mut bytes_left));
            }
            _ => {}
        }
        let retryable = matches!(code, Code::Unavailable | Code::ResourceExhausted)
            && !matches!(error, Error::MessageTooLarge { .. });
        if retryable {
            details.push(RetryInfo::new(Some(RETRY_AFTER)).into());
        }
        details.insert(0, info.into());
        let mut status = Status::with_error_details_vec(code, error.to_string(), details);
        if let Some(pushback) = pushback(&error) {
            status.metadata_mut().insert(PUSHBACK, pushback);
        }
        status
    }
}

/// Returns the milliseconds after which a client should retry a refused call; a negative number tells
/// it not to.
fn pushback(error: &Error) -> Option<AsciiMetadataValue> {
    match error {
        Error::Overloaded { .. }
        | Error::CallerLimit { .. }
        | Error::TooManyWatches(_)
        | Error::QueryTooSlow(_) => u32::try_from(RETRY_AFTER.as_millis()).ok().map(Into::into),
        Error::MessageTooLarge { .. } => Some(AsciiMetadataValue::from_static("-1")),
        _ => None,
    }
}

/// Returns the canonical code of an error, and its stable reason.
fn classify(error: &Error) -> (Code, &'static str) {
    match error {
        Error::InvalidArgument(_) | Error::TooManyItems { .. } => {
            (Code::InvalidArgument, "INVALID_FIELD")
        }
        Error::MessageTooLarge { .. } => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        Error::MessageTimeout(_) => (Code::DeadlineExceeded, "MESSAGE_TIMEOUT"),
        Error::Overloaded { .. } | Error::QueryTooSlow(_) => {
            (Code::ResourceExhausted, "OVERLOADED")
        }
        Error::TooManyWatches(_) => (Code::ResourceExhausted, "TOO_MANY_WATCHES"),
        Error::CallerLimit { .. } => (Code::ResourceExhausted, "CALLER_LIMIT"),
        Error::NotFound(_) => (Code::NotFound, "LOCATION_NOT_FOUND"),
        Error::AlreadyExists { .. } => (Code::AlreadyExists, "LOCATION_EXISTS"),
        Error::RequestIdReused(_) => (Code::AlreadyExists, "REQUEST_ID_REUSED"),
        Error::EtagMismatch(_) => (Code::Aborted, "ETAG_MISMATCH"),
        Error::Conflict(_) => (Code::Aborted, "WRITE_CONFLICT"),
        Error::Unauthenticated(_) => (Code::Unauthenticated, "CREDENTIALS_INVALID"),
        Error::PermissionDenied(_) => (Code::PermissionDenied, "NOT_ALLOWED"),
        Error::StorageFull(_) => (Code::ResourceExhausted, "STORAGE_FULL"),
        Error::DatabaseUnavailable(_) => (Code::Unavailable, "DATABASE_UNAVAILABLE"),
        Error::CacheUnavailable(_) => (Code::Unavailable, "CACHE_UNAVAILABLE"),
        Error::OutcomeUnknown(_) => (Code::Unavailable, "OUTCOME_UNKNOWN"),
        Error::Cancelled => (Code::Cancelled, "CANCELLED"),
        Error::DeadlineExceeded(_) => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Error::Stopping => (Code::Unavailable, "STOPPING"),
        Error::Internal(_) => (Code::Internal, "INTERNAL"),
    }
}

fn log(error: &Error, code: Code, reason: &str) {
    let mut cause = String::new();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(cause, ": {error}");
        source = error.source();
    }
    // A limit is logged when it is first reached.
    let is_refusal = matches!(
        error,
        Error::Overloaded { .. }
            | Error::CallerLimit { .. }
            | Error::TooManyWatches(_)
            | Error::MessageTooLarge { .. }
    );
    let (text, cause) = (OneLine(error), OneLine(&cause));
    match code {
        Code::Internal => {
            tracing::error!(error.code = ?code, error.reason = reason, "{text}{cause}");
        }
        Code::Unavailable | Code::ResourceExhausted if !is_refusal => {
            tracing::warn!(error.code = ?code, error.reason = reason, "{text}{cause}");
        }
        _ => tracing::debug!(error.code = ?code, error.reason = reason, "{error}{cause}"),
    }
}

/// A text for the log, with control characters such as line breaks escaped. Some of it may come from
/// a caller, who must not be able to forge a line.
struct OneLine<T>(T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(formatter), "{}", self.0)
    }
}

struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|char| {
            if char.is_control() {
                write!(self.0, "{}", char.escape_default())
            } else {
                self.0.write_char(char)
            }
        })
    }
}

/// Returns the violations that fit in a status, followed by the number of the rest.
fn field_violations(violations: &Violations) -> Vec<FieldViolation> {
    let mut bytes_left = MAX_DETAIL_BYTES;
    let mut shown: Vec<_> = violations
        .first()
        .iter()
        .map_while(|Violation { field, description }| {
            bytes_left = bytes_left.checked_sub(field.len() + description.len())?;
            Some(FieldViolation::new(field, description))
        })
        .collect();
    let more = violations.count() - shown.len();
    if more > 0 {
        shown.push(FieldViolation::new("", format!("and {more} more")));
    }
    shown
}

fn resource(name: &str, description: &str, bytes_left: &mut usize) -> Option<ErrorDetail> {
    *bytes_left = bytes_left.checked_sub(LOCATION.len() + name.len() + description.len())?;
    Some(ResourceInfo::new(LOCATION, name, "", description).into())
}

/// Formats ascending indexes as ranges such as `0-11,17`, as many as fit in a status.
fn ranges(indexes: &[usize]) -> String {
    let mut text = String::new();
    for run in indexes.chunk_by(|a, b| a + 1 == *b) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        if text.len() > MAX_DETAIL_BYTES / 2 {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        let _ = if first == last {
            write!(text, "{first}")
        } else {
            write!(text, "{first}-{last}")
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_formatted_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
        let every_other: Vec<_> = (0..1_000).map(|index| index * 2).collect();
        assert!(ranges(&every_other).len() < MAX_DETAIL_BYTES);
    }

    #[test]
    fn a_log_line_stays_one_line() {
        let error = Error::invalid("labels.a\nINFO forged", "is wrong\u{1b}[0m\u{85}");
        let line = OneLine(error).to_string();
        assert_eq!(line, "labels.a\\nINFO forged is wrong\\u{1b}[0m\\u{85}");
    }

    #[test]
    fn details_fit_in_trailers() {
        let mut violations = Violations::default();
        for index in 0..10_000 {
            violations.add(
                format!("requests[{index}].location.display_name"),
                "is required",
            );
        }
        assert_eq!(violations.first().len(), Violations::MAX);
        let status = Status::from(Error::InvalidArgument(violations));
        assert!(status.details().len() * 4 / 3 + status.message().len() < 8_192);
        let details = status.get_details_bad_request().expect("a BadRequest");
        let last = details.field_violations.last().expect("some");
        let shown = details.field_violations.len() - 1;
        assert_eq!(last.description, format!("and {} more", 10_000 - shown));
    }
}
