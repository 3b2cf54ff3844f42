//! The call in progress, in a task-local variable: functions needn't pass it on.

use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use futures_util::future::Either;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::task::futures::TaskLocalFuture;
use uuid::Uuid;

use super::traces::{Span, TraceContext};

/// The header of a request and of its response that has the request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a request id from a client. A longer one is ignored.
const MAX_REQUEST_ID_BYTES: usize = 128;

tokio::task_local! {
    static CURRENT: Call;
}

/// A call in progress, with the data for its line in the access log.
#[derive(Debug)]
pub struct Call {
    id: RequestId,
    started: Instant,
    trace: Option<TraceContext>,
    subject: RefCell<Option<Box<str>>>,
    request_bytes: Cell<usize>,
    refusal: Cell<Option<&'static str>>,
}

impl Call {
    /// A call with these request headers, and its span.
    pub fn new(headers: &HeaderMap) -> (Self, Span) {
        let (trace, span) = Span::of_call(headers);
        let id = RequestId::of(headers);
        (Self::with(id, Instant::now(), trace), span)
    }

    fn with(id: RequestId, started: Instant, trace: Option<TraceContext>) -> Self {
        Self {
            id,
            started,
            trace,
            subject: RefCell::default(),
            request_bytes: Cell::default(),
            refusal: Cell::default(),
        }
    }

    /// Runs a future as a part of the call.
    pub fn scope<F: Future>(self, future: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self, future)
    }

    /// Runs a function as a part of the call.
    pub fn enter<T>(self, run: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, run)
    }

    /// The id of the request.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// When its request arrived.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The authenticated caller, if [`set_subject`] has named it.
    pub fn take_subject(&self) -> Option<Box<str>> {
        self.subject.take()
    }

    /// The bytes of the request message.
    pub fn request_bytes(&self) -> usize {
        self.request_bytes.get()
    }

    /// Why a limit has refused the call, if one has.
    pub fn refusal(&self) -> Option<&'static str> {
        self.refusal.get()
    }

    /// A part of the same call that runs elsewhere.
    fn part(&self) -> Self {
        Self::with(self.id.clone(), self.started, self.trace.clone())
    }
}

/// The id of a request: the client's, or a generated one.
#[derive(Debug, Clone)]
pub enum RequestId {
    /// Visible ASCII characters, at most 128.
    Received(HeaderValue),
    /// The number of the request in this process.
    Made(u64),
}

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let received = headers.get(REQUEST_ID).filter(|id| {
            (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
                && id.as_bytes().iter().all(u8::is_ascii_graphic)
        });
        match received {
            Some(id) => Self::Received(id.clone()),
            None => Self::Made(NEXT.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// The id as a header, marked as sensitive so that HPACK doesn't index it: ids would evict headers
    /// that recur.
    pub fn to_header(&self) -> HeaderValue {
        let mut value = match self {
            Self::Received(id) => id.clone(),
            Self::Made(number) => {
                let mut buffer = Uuid::encode_buffer();
                let text = made(*number).hyphenated().encode_lower(&mut buffer);
                HeaderValue::from_str(text).unwrap_or_else(|_| unreachable!("a UUID is ASCII"))
            }
        };
        value.set_sensitive(true);
        value
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Received(id) => formatter.write_str(id.to_str().unwrap_or_default()),
            Self::Made(number) => made(*number).fmt(formatter),
        }
    }
}

/// The UUID of a request: version 8 (RFC 9562), with 74 bits that are random for the process, and the
/// number of the request in the last 48.
fn made(number: u64) -> Uuid {
    const NUMBER: u128 = (1 << 48) - 1;
    const VERSION: u128 = 0xf << 76;
    /// A version 4 has the same variant.
    static PROCESS: LazyLock<u128> =
        LazyLock::new(|| Uuid::new_v4().as_u128() & !(NUMBER | VERSION) | 8 << 76);
    Uuid::from_u128(*PROCESS | u128::from(number) & NUMBER)
}

/// Runs a future, in another task say, as a part of the current call, if there is one.
pub fn continue_in<F: Future>(future: F) -> impl Future<Output = F::Output> {
    match CURRENT.try_with(Call::part) {
        Ok(call) => Either::Left(call.scope(future)),
        Err(_) => Either::Right(future),
    }
}

/// A part of the current call, to continue it elsewhere with [`Call::enter`]. `None` outside of a call.
pub fn part() -> Option<Call> {
    CURRENT.try_with(Call::part).ok()
}

/// When the current call's request arrived; now, outside of a call.
pub fn started() -> Instant {
    CURRENT
        .try_with(Call::started)
        .unwrap_or_else(|_| Instant::now())
}

/// The current call's request id.
pub fn request_id() -> Option<String> {
    CURRENT.try_with(|call| call.id.to_string()).ok()
}

/// Begins a span of the current call, for a request to another server. Empty unless the call is sampled.
pub fn span(name: impl FnOnce() -> String) -> Span {
    let span = CURRENT.try_with(|call| match &call.trace {
        Some(trace) if trace.sampled => Span::within(trace, name()),
        _ => Span::default(),
    });
    span.unwrap_or_default()
}

/// Names the current call's caller.
pub fn set_subject(subject: &str) {
    let _ = CURRENT.try_with(|call| *call.subject.borrow_mut() = Some(subject.into()));
}

/// Sets the size of the current call's message.
pub fn set_request_bytes(bytes: usize) {
    let _ = CURRENT.try_with(|call| call.request_bytes.set(bytes));
}

/// Notes that a limit has refused the current call.
pub fn set_refusal(reason: &'static str) {
    let _ = CURRENT.try_with(|call| call.refusal.set(Some(reason)));
}

/// Writes the fields that name the current call in the log.
pub(super) fn write_names(
    writer: &mut impl fmt::Write,
    mut field: impl FnMut(&mut dyn fmt::Write, &str, &dyn fmt::Display) -> fmt::Result,
) -> fmt::Result {
    CURRENT
        .try_with(|call| {
            field(writer, "request.id", &call.id)?;
            match &call.trace {
                Some(trace) => field(writer, "trace.id", &trace.trace_id),
                None => Ok(()),
            }
        })
        .unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn id(header: Option<&str>) -> RequestId {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            let header = HeaderValue::from_bytes(header.as_bytes());
            headers.insert(REQUEST_ID, header.expect("a header's value"));
        }
        RequestId::of(&headers)
    }

    #[test]
    fn only_short_ids_of_visible_ascii_are_taken() {
        let longest = "x".repeat(MAX_REQUEST_ID_BYTES);
        for taken in ["1", "!~\"\\", &longest] {
            let id = id(Some(taken));
            assert_eq!(id.to_string(), taken);
            assert_eq!(id.to_header(), taken);
        }
        let long = "x".repeat(MAX_REQUEST_ID_BYTES + 1);
        for refused in ["", " ", "a b", "a\tb", "caf\u{e9}", &long] {
            let id = id(Some(refused)).to_string();
            assert!(Uuid::parse_str(&id).is_ok(), "{refused:?}: {id}");
        }
    }

    #[test]
    fn a_made_id_is_a_uuid_of_its_own() {
        let ids: HashSet<_> = (0..1_000).map(|_| id(None).to_string()).collect();
        assert_eq!(ids.len(), 1_000);
        let uuid = Uuid::parse_str(&id(None).to_string()).expect("a UUID");
        assert_eq!(uuid.get_version_num(), 8);
        assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
    }

    #[tokio::test]
    async fn a_call_is_known_in_its_own_tasks_only() {
        assert_eq!(request_id(), None);
        let call = Call::with(id(Some("one")), Instant::now(), None);
        let seen = call.scope(async {
            let apart = tokio::spawn(async { request_id() });
            let part = tokio::spawn(continue_in(async { request_id() }));
            (request_id(), part.await.unwrap(), apart.await.unwrap())
        });
        let one = Some("one".to_owned());
        assert_eq!(seen.await, (one.clone(), one, None));
    }
}
