//! Maps errors to gRPC statuses and logs them; no other module does either.

use std::{
    collections::HashMap,
    error::Error as _,
    fmt::{self, Write as _},
    time::Duration,
};

use http::Response;
use tonic::{Code, Status, metadata::AsciiMetadataValue};
use tonic_types::{
    BadRequest, ErrorDetail, ErrorInfo, FieldViolation, ResourceInfo, RetryInfo, StatusExt as _,
};

use super::MAX_REQUEST_BYTES;
use crate::{
    error::{Culprits, Error, TokenProblem, Violation, Violations},
    telemetry::call,
};

const DOMAIN: &str = "location.v1";
const LOCATION: &str = "location.v1.Location";

/// The delay in `RetryInfo`.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The trailer that tells a client when to retry (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Maximum size of the text in a status's details. Clients accept 8 KiB of trailers, where the
/// details are encoded as base64.
const MAX_DETAIL_BYTES: usize = 3_000;

/// Locations that a status names. The metadata of `ErrorInfo` has the indexes of all.
const MAX_RESOURCES: usize = 16;

/// Maximum size of a value in the metadata of `ErrorInfo`. The longest `indexes`, every second one of a
/// batch, fit.
const MAX_METADATA_BYTES: usize = 2_000;

/// The reasons of calls that a limit has refused.
pub const REFUSALS: [&str; 4] = [
    "OVERLOADED",
    "CALLER_LIMIT",
    "TOO_MANY_WATCHES",
    "MESSAGE_TOO_LARGE",
];

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (code, reason) = classify(&error);
        log(&error, code, reason);
        if REFUSALS.contains(&reason) {
            call::set_refusal(reason);
        }
        let info = error_info(reason, metadata(&error));
        let mut details = vec![info.into()];
        match &error {
            Error::InvalidArgument(violations) => {
                details.push(BadRequest::new(field_violations(violations)).into());
            }
            Error::TooManyItems {
                field,
                limit,
                count,
            } => details.push(bad_field(
                field,
                format!("must have at most {limit} items, has {count}"),
            )),
            Error::PageTokenInvalid { field } | Error::RequestIdReused { field, .. } => {
                details.push(bad_field(field, error.to_string()));
            }
            Error::NotFound(culprits) => details.extend(resources(culprits, "was not found")),
            Error::AlreadyExists(culprits) => details.extend(resources(culprits, "already exists")),
            Error::EtagMismatch(culprits) => details.extend(resources(culprits, "has changed")),
            _ => {}
        }
        let retryable = matches!(code, Code::Unavailable | Code::ResourceExhausted)
            && reason != "MESSAGE_TOO_LARGE";
        if retryable {
            details.push(RetryInfo::new(Some(RETRY_AFTER)).into());
        }
        let mut status = Status::with_error_details_vec(code, error.to_string(), details);
        if let Some(pushback) = pushback(&error) {
            status.metadata_mut().insert(PUSHBACK, pushback);
        }
        if matches!(error, Error::UnsupportedEncoding) {
            let supported = AsciiMetadataValue::from_static("identity,gzip,zstd");
            status
                .metadata_mut()
                .insert("grpc-accept-encoding", supported);
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
        Error::MessageTooLarge { .. } | Error::DecompressedTooLarge { .. } => {
            Some(AsciiMetadataValue::from_static("-1"))
        }
        _ => None,
    }
}

/// Gives an error of tonic the code, the reason and the details of this API: unknown methods, and
/// messages that can't be decoded. Other errors have them already.
pub fn complete<B: Default>(response: Response<B>) -> Response<B> {
    let headers = response.headers();
    // Without a message, the status is in the headers.
    let Some(status) = Status::from_header_map(headers) else {
        return response;
    };
    if status.code() == Code::Ok || !status.details().is_empty() {
        return response;
    }
    let error = match status.code() {
        // tonic names the encodings that it supports.
        Code::Unimplemented if headers.contains_key("grpc-accept-encoding") => {
            Error::UnsupportedEncoding
        }
        Code::Unimplemented => Error::UnknownMethod,
        Code::OutOfRange | Code::ResourceExhausted => Error::DecompressedTooLarge {
            limit: MAX_REQUEST_BYTES,
        },
        Code::Internal => Error::MalformedMessage(status.message().to_owned()),
        code => {
            let info = error_info(&name(code), HashMap::new());
            return Status::with_error_details_vec(code, status.message(), vec![info.into()])
                .into_http();
        }
    };
    Status::from(error).into_http()
}

/// The reason of an error, and its variables with the id of the request.
fn error_info(reason: &str, mut metadata: HashMap<String, String>) -> ErrorInfo {
    if let Some(id) = call::request_id() {
        // `REQUEST_ID_REUSED` names the id in the message.
        metadata.entry("requestId".to_owned()).or_insert(id);
    }
    ErrorInfo::new(reason, DOMAIN, metadata)
}

/// The canonical name of a code.
fn name(code: Code) -> String {
    let mut name = String::new();
    for char in format!("{code:?}").chars() {
        if char.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(char.to_ascii_uppercase());
    }
    name
}

/// The variables of an error's message. The keys are in lowerCamelCase (AIP-193).
fn metadata(error: &Error) -> HashMap<String, String> {
    let variables: Vec<(&str, String)> = match error {
        Error::InvalidArgument(violations) => violations
            .first()
            .first()
            .map(|violation| ("field", violation.field.clone()))
            .into_iter()
            .collect(),
        Error::PageTokenInvalid { field } => vec![("field", field.clone())],
        Error::TooManyItems {
            field,
            limit,
            count,
        } => vec![
            ("field", field.clone()),
            ("limit", limit.to_string()),
            ("value", count.to_string()),
        ],
        Error::MessageTooLarge { limit, size } => {
            vec![("limit", limit.to_string()), ("value", size.to_string())]
        }
        Error::DecompressedTooLarge { limit } => vec![("limit", limit.to_string())],
        Error::Overloaded { limit, value } | Error::CallerLimit { limit, value } => {
            vec![("limit", (*limit).to_owned()), ("value", value.to_string())]
        }
        Error::QueryTooSlow(limit) => vec![
            ("limit", "milliseconds of a list with query".to_owned()),
            ("value", limit.as_millis().to_string()),
        ],
        Error::TooManyWatches(value) => {
            vec![
                ("limit", "watches".to_owned()),
                ("value", value.to_string()),
            ]
        }
        Error::RequestIdReused { id, field } => {
            vec![("requestId", id.to_string()), ("field", field.clone())]
        }
        Error::NotFound(culprits)
        | Error::AlreadyExists(culprits)
        | Error::EtagMismatch(culprits) => {
            let id = culprits.ids().next();
            let indexes: Vec<_> = culprits.indexes().collect();
            let indexes = (!indexes.is_empty()).then(|| ("indexes", ranges(&indexes)));
            id.map(|id| ("id", id.to_string()))
                .into_iter()
                .chain(indexes)
                .collect()
        }
        Error::MessageTimeout(limit) | Error::DeadlineExceeded(limit) => {
            vec![("timeoutMs", limit.as_millis().to_string())]
        }
        _ => Vec::new(),
    };
    variables
        .into_iter()
        .map(|(key, value)| (key.to_owned(), truncated(&value, MAX_METADATA_BYTES)))
        .collect()
}

/// Returns the canonical code of an error, and its stable reason.
fn classify(error: &Error) -> (Code, &'static str) {
    match error {
        Error::InvalidArgument(_) | Error::TooManyItems { .. } => {
            (Code::InvalidArgument, "INVALID_FIELD")
        }
        Error::PageTokenInvalid { .. } => (Code::InvalidArgument, "PAGE_TOKEN_INVALID"),
        Error::MalformedMessage(_) => (Code::InvalidArgument, "MALFORMED_MESSAGE"),
        Error::UnsupportedEncoding => (Code::Unimplemented, "UNSUPPORTED_ENCODING"),
        Error::UnknownMethod => (Code::Unimplemented, "UNKNOWN_METHOD"),
        Error::MessageTooLarge { .. } | Error::DecompressedTooLarge { .. } => {
            (Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
        }
        Error::MessageTimeout(_) => (Code::DeadlineExceeded, "MESSAGE_TIMEOUT"),
        Error::Overloaded { .. } | Error::QueryTooSlow(_) => {
            (Code::ResourceExhausted, "OVERLOADED")
        }
        Error::TooManyWatches(_) => (Code::ResourceExhausted, "TOO_MANY_WATCHES"),
        Error::CallerLimit { .. } => (Code::ResourceExhausted, "CALLER_LIMIT"),
        Error::NotFound(_) => (Code::NotFound, "LOCATION_NOT_FOUND"),
        Error::AlreadyExists(_) => (Code::AlreadyExists, "LOCATION_EXISTS"),
        Error::RequestIdReused { .. } => (Code::AlreadyExists, "REQUEST_ID_REUSED"),
        Error::EtagMismatch(_) => (Code::Aborted, "ETAG_MISMATCH"),
        Error::Conflict(_) => (Code::Aborted, "WRITE_CONFLICT"),
        Error::NotCached => (Code::FailedPrecondition, "NOT_CACHED"),
        Error::Unauthenticated { problem, .. } => (
            Code::Unauthenticated,
            match problem {
                TokenProblem::Missing => "TOKEN_MISSING",
                TokenProblem::Expired => "TOKEN_EXPIRED",
                TokenProblem::NotYetValid => "TOKEN_NOT_YET_VALID",
                TokenProblem::Invalid => "TOKEN_INVALID",
            },
        ),
        Error::PermissionDenied(_) => (Code::PermissionDenied, "NOT_ALLOWED"),
        Error::StorageFull(_) => (Code::ResourceExhausted, "STORAGE_FULL"),
        Error::DatabaseUnavailable(_) => (Code::Unavailable, "DATABASE_UNAVAILABLE"),
        Error::CacheUnavailable(_) => (Code::Unavailable, "CACHE_UNAVAILABLE"),
        // Clients retry UNAVAILABLE by themselves.
        Error::OutcomeUnknown { repeatable, .. } => (
            if *repeatable {
                Code::Unavailable
            } else {
                Code::Unknown
            },
            "OUTCOME_UNKNOWN",
        ),
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
            | Error::DecompressedTooLarge { .. }
    );
    let (text, cause) = (OneLine(error), OneLine(&cause));
    match code {
        Code::Internal => {
            tracing::error!(error.code = ?code, error.reason = reason, "{text}{cause}");
        }
        Code::Unavailable | Code::Unknown | Code::ResourceExhausted if !is_refusal => {
            tracing::warn!(error.code = ?code, error.reason = reason, "{text}{cause}");
        }
        _ => tracing::debug!(error.code = ?code, error.reason = reason, "{text}{cause}"),
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

/// The first of the locations that make a call fail.
fn resources(culprits: &Culprits, description: &str) -> Vec<ErrorDetail> {
    let ids = culprits.ids().take(MAX_RESOURCES);
    ids.map(|id| ResourceInfo::new(LOCATION, id.to_string(), "", description).into())
        .collect()
}

fn bad_field(field: &str, description: String) -> ErrorDetail {
    BadRequest::new([FieldViolation::new(field, description)]).into()
}

/// The start of a text, up to this number of bytes.
fn truncated(text: &str, max_bytes: usize) -> String {
    text[..text.floor_char_boundary(max_bytes)].to_owned()
}

/// Formats ascending indexes of a batch as ranges such as `0-11,17`.
fn ranges(indexes: &[usize]) -> String {
    let mut text = String::new();
    for run in indexes.chunk_by(|a, b| a + 1 == *b) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
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
    use crate::model::LocationId;

    #[test]
    fn indexes_are_formatted_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
        let every_other: Vec<_> = (0..500).map(|index| index * 2).collect();
        assert!(ranges(&every_other).len() <= MAX_METADATA_BYTES);
    }

    /// The rows of the table of reasons in the proto: code, reason and keys of the metadata.
    fn documented() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
        let proto = include_str!("../../proto/location/v1/location_service.proto");
        let rows = proto.lines().filter_map(|line| line.strip_prefix("// | "));
        rows.skip(2)
            .map(|row| {
                let mut cells = row.split('|').map(str::trim);
                let mut cell = || cells.next().expect("four columns");
                let (code, reason, keys) = (cell(), cell(), cell());
                let keys = keys.split(',').filter(|key| !key.is_empty()).collect();
                (code, reason, keys)
            })
            .collect()
    }

    /// An error of each variant, or several where the code or the reason differs.
    fn every_error() -> Vec<Error> {
        let cause = || -> crate::error::Cause { std::sync::Arc::new(fmt::Error) };
        let field = || "page_token".to_owned();
        let culprits = |batch| Culprits::new([(7, LocationId::generate())], batch).expect("one");
        let problems = [
            TokenProblem::Missing,
            TokenProblem::Expired,
            TokenProblem::NotYetValid,
            TokenProblem::Invalid,
        ];
        let tokens = problems.map(|problem| Error::Unauthenticated {
            problem,
            message: String::new(),
        });
        let doubts = [false, true].map(|repeatable| Error::OutcomeUnknown {
            repeatable,
            cause: cause(),
        });
        let (limit, value) = ("calls", 1);
        let others = [
            Error::invalid("page_size", "must be positive"),
            Error::PageTokenInvalid { field: field() },
            Error::TooManyItems {
                field: field(),
                limit: 1,
                count: 2,
            },
            Error::MessageTooLarge { limit: 1, size: 2 },
            Error::DecompressedTooLarge { limit: 1 },
            Error::MessageTimeout(RETRY_AFTER),
            Error::Overloaded { limit, value },
            Error::TooManyWatches(1),
            Error::QueryTooSlow(RETRY_AFTER),
            Error::CallerLimit { limit, value },
            Error::NotFound(culprits(true)),
            Error::AlreadyExists(culprits(false)),
            Error::RequestIdReused {
                id: uuid::Uuid::nil(),
                field: field(),
            },
            Error::EtagMismatch(culprits(true)),
            Error::NotCached,
            Error::UnknownMethod,
            Error::MalformedMessage(String::new()),
            Error::UnsupportedEncoding,
            Error::PermissionDenied(String::new()),
            Error::StorageFull(cause()),
            Error::Conflict(cause()),
            Error::DatabaseUnavailable(cause()),
            Error::CacheUnavailable(cause()),
            Error::Cancelled,
            Error::DeadlineExceeded(RETRY_AFTER),
            Error::Stopping,
            Error::Internal(cause()),
        ];
        tokens.into_iter().chain(doubts).chain(others).collect()
    }

    #[test]
    fn the_proto_lists_every_reason_and_its_metadata() {
        let documented = documented();
        let mut reasons = std::collections::BTreeSet::new();
        for error in every_error() {
            let (code, reason) = classify(&error);
            reasons.insert(reason);
            let row = documented
                .iter()
                .find(|row| (row.0, row.1) == (name(code).as_str(), reason));
            let (_, _, keys) = row.unwrap_or_else(|| panic!("{code:?} {reason} isn't listed"));
            for key in metadata(&error).keys() {
                assert!(keys.contains(&key.as_str()), "{reason} has {key}");
            }
        }
        for (_, reason, _) in documented {
            assert!(reasons.contains(reason), "{reason} is no reason");
        }
        // Reasons are written as literals in one place.
        let source = include_str!("status.rs");
        let (_, rest) = source.split_once("fn classify(").expect("it is here");
        let (classify, _) = rest.split_once("\nfn ").expect("another one follows");
        for literal in classify.split('"').skip(1).step_by(2) {
            assert!(reasons.contains(literal), "{literal} isn't tried");
        }
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
        let fits = |status: &Status| {
            assert!(status.details().len() * 4 / 3 + status.message().len() < 8_192);
        };
        let missing = (0..500).map(|index| (index * 2, LocationId::generate()));
        fits(&Error::NotFound(Culprits::new(missing, true).expect("some")).into());
        let status = Status::from(Error::InvalidArgument(violations));
        fits(&status);
        let details = status.get_details_bad_request().expect("a BadRequest");
        let last = details.field_violations.last().expect("some");
        let shown = details.field_violations.len() - 1;
        assert_eq!(last.description, format!("and {} more", 10_000 - shown));
    }
}
