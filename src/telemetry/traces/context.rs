//! W3C Trace Context: <https://www.w3.org/TR/trace-context/>.

use http::{HeaderMap, HeaderName};
use opentelemetry::trace::{SpanId, TraceId};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that other spans lie within.
    pub span_id: SpanId,
    /// Whether the spans are sent.
    pub sampled: bool,
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
        })
    }
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
}
