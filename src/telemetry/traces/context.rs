//! W3C Trace Context: <https://www.w3.org/TR/trace-context/>.

use http::{HeaderMap, HeaderName};
use opentelemetry::trace::{SpanId, TraceId, TraceState};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Maximum length of a `tracestate`: the least that the standard asks to pass on.
const MAX_STATE_BYTES: usize = 512;

/// Maximum number of members of a `tracestate`, by the standard.
const MAX_STATE_MEMBERS: usize = 32;

/// A W3C trace context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The parent of the spans that are made.
    pub span_id: SpanId,
    /// Whether the spans are sent.
    pub sampled: bool,
    /// The `tracestate`, which is passed on.
    pub state: TraceState,
}

impl TraceContext {
    /// The place in the headers of a request. `None` unless there is one, and it is valid.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::parse(value.to_str().ok()?),
            _ => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.splitn(5, '-');
        let mut field = |length| {
            fields.next().filter(|field| {
                let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                field.len() == length && field.bytes().all(is_hex)
            })
        };
        let version = field(2)?;
        let trace_id = TraceId::from_hex(field(32)?).ok()?;
        let span_id = SpanId::from_hex(field(16)?).ok()?;
        let flags = u8::from_str_radix(field(2)?, 16).ok()?;
        // Later versions may have more fields.
        let is_valid = version != "ff" && (version != "00" || fields.next().is_none());
        let is_named = trace_id != TraceId::INVALID && span_id != SpanId::INVALID;
        (is_valid && is_named).then_some(Self {
            trace_id,
            span_id,
            sampled: flags & 1 == 1,
            state: TraceState::NONE,
        })
    }
}

/// The `tracestate` in the headers of a request. Empty if it is invalid, or exceeds the limits of length
/// or members.
pub(super) fn state(headers: &HeaderMap) -> TraceState {
    if !headers.contains_key(TRACESTATE) {
        return TraceState::NONE;
    }
    let values: Option<Vec<_>> = headers
        .get_all(TRACESTATE)
        .iter()
        .map(|value| value.to_str().ok())
        .collect();
    let text = values.unwrap_or_default().join(",");
    if text.len() > MAX_STATE_BYTES || text.split(',').count() > MAX_STATE_MEMBERS {
        return TraceState::NONE;
    }
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_traceparent_is_taken() {
        const IDS: &str = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        let sampled = |text: &str| TraceContext::parse(text).map(|context| context.sampled);
        assert_eq!(sampled(&format!("00-{IDS}-01")), Some(true));
        assert_eq!(sampled(&format!("00-{IDS}-00")), Some(false));
        assert_eq!(sampled(&format!("01-{IDS}-03-later")), Some(true));
        let zero = "00000000000000000000000000000000";
        for bad in [
            String::new(),
            IDS.to_owned(),
            format!("00-{IDS}"),
            format!("00-{IDS}-1"),
            format!("00-{IDS}-01-later"),
            format!("ff-{IDS}-01"),
            format!("00-{}-01", IDS.to_uppercase()),
            format!("00-{zero}-b7ad6b7169203331-01"),
            format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", &zero[..16]),
            format!("00-+{}-01", &IDS[1..]),
        ] {
            assert_eq!(sampled(&bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_valid_tracestate_within_its_bounds_is_taken() {
        let state_of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(TRACESTATE, value.parse().expect("a header's value"));
            }
            state(&headers).header()
        };
        assert_eq!(state_of(&[]), "");
        assert_eq!(state_of(&["a=1, b@c=2 "]), "a=1,b@c=2");
        assert_eq!(state_of(&["a=1", "b=2,c=3"]), "a=1,b=2,c=3");
        let members = |count: usize| {
            let members: Vec<_> = (0..count).map(|number| format!("k{number}=1")).collect();
            members.join(",")
        };
        assert_eq!(state_of(&[&members(32)]), members(32));
        let value = |length: usize| "x".repeat(length);
        let longest = format!("a={},b={}", value(254), value(253));
        assert_eq!(longest.len(), MAX_STATE_BYTES);
        assert_eq!(state_of(&[&longest]), longest);
        for refused in [
            "a",
            "A=1",
            "a=1,b",
            &members(33),
            &format!("{longest}x"),
            &format!("a={}", value(257)),
        ] {
            assert_eq!(state_of(&[refused]), "", "{refused}");
        }
    }
}
