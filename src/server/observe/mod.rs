//! The outermost layer: counts, logs and traces each call, however it ends.

mod access;
mod calls;

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;
use tonic::Code;
use tower::{Layer, Service};

use self::access::{Access, Line, is_failure};
pub use self::calls::{CODES, Calls};
use super::connections::Activity;
use crate::{
    api::CACHE_STATUS,
    telemetry::{
        AccessLog, Span,
        call::{Call, REQUEST_ID},
    },
};

const GRPC_STATUS: &str = "grpc-status";

/// The layer that observes the calls of the services that it wraps.
#[derive(Clone)]
pub struct Observe(Arc<Observer>);

struct Observer {
    calls: Arc<Calls>,
    access: Access,
}

impl Observe {
    /// Creates the layer, which counts in `calls`.
    pub fn new(calls: Arc<Calls>, log: AccessLog) -> Self {
        Self(Arc::new(Observer {
            calls,
            access: Access::new(log),
        }))
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed {
            observer: Arc::clone(&self.0),
            inner,
        }
    }
}

/// A service whose calls are observed.
#[derive(Clone)]
pub struct Observed<S> {
    observer: Arc<Observer>,
    inner: S,
}

impl<S, R, B> Service<Request<R>> for Observed<S>
where
    S: Service<Request<R>, Response = Response<B>>,
{
    type Response = Response<ObservedBody<B>>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let (call, span) = Call::new(request.headers());
        let record = Record::start(&self.observer, &request, call.started(), span);
        ObservedFuture {
            response: call.scope(self.inner.call(request)),
            record: Some(record),
        }
    }
}

/// A call in progress. When it is dropped, the call has ended.
struct Record {
    observer: Arc<Observer>,
    /// The index of the method.
    method: usize,
    started: Instant,
    code: Code,
    /// Known once the response has begun or the call was given up.
    call: Option<Call>,
    span: Span,
    // For the log and the span.
    path: Option<Box<str>>,
    peer: Option<IpAddr>,
    cache: Option<HeaderValue>,
    response_bytes: u64,
}

impl Record {
    fn start<R>(
        observer: &Arc<Observer>,
        request: &Request<R>,
        started: Instant,
        span: Span,
    ) -> Self {
        let path = request.uri().path();
        let method = observer.calls.method(path);
        observer.calls.start(method);
        let is_logged = !observer.access.is_off() || span.is_recording();
        let is_unknown = observer.calls.is_unknown(method);
        let activity = || request.extensions().get::<Arc<Activity>>();
        Self {
            observer: Arc::clone(observer),
            method,
            started,
            // Unless a status is sent, the client has gone.
            code: Code::Cancelled,
            call: None,
            span,
            path: (is_logged && is_unknown).then(|| path.into()),
            peer: is_logged
                .then(activity)
                .flatten()
                .map(|activity| activity.address()),
            cache: None,
            response_bytes: 0,
        }
    }

    /// Reads the start of the response, which has the status if there is no message.
    fn respond<B>(&mut self, response: &mut Response<B>) {
        if !self.read_status(response.headers()) && response.status() != StatusCode::OK {
            self.code = code_of(response.status());
        }
        if !self.observer.access.is_off() || self.span.is_recording() {
            self.cache = response.headers().get(CACHE_STATUS).cloned();
        }
        if let Some(call) = &self.call {
            let id = call.id().to_header();
            response.headers_mut().insert(REQUEST_ID, id);
        }
    }

    /// Describes the call in its span:
    /// <https://opentelemetry.io/docs/specs/semconv/rpc/grpc>.
    fn end_span(&mut self, call: &Call) {
        let calls = &self.observer.calls;
        let path = calls.path(self.method).trim_start_matches('/');
        let span = &mut self.span;
        span.set_name(path);
        span.set("rpc.system", "grpc");
        if let Some((service, method)) = path.split_once('/') {
            span.set("rpc.service", service.to_owned());
            span.set("rpc.method", method.to_owned());
        }
        span.set("rpc.grpc.status_code", i64::from(i32::from(self.code)));
        span.set("request.id", call.id().to_string());
        if let Some(peer) = self.peer {
            span.set("client.address", peer.to_string());
        }
        if let Some(cache) = self.cache.as_ref().and_then(|status| status.to_str().ok()) {
            span.set("cache.status", cache.to_owned());
        }
        if is_failure(self.code) {
            span.fail(CODES[self.code as usize]);
        }
    }

    /// Takes the status from headers or trailers, and returns whether they have one.
    fn read_status(&mut self, headers: &HeaderMap) -> bool {
        let status = headers.get(GRPC_STATUS);
        if let Some(status) = status {
            self.code = Code::from_bytes(status.as_bytes());
        }
        status.is_some()
    }
}

/// The code that gRPC clients give to a response without one:
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        let call = self.call.take();
        if let Some(call) = &call
            && self.span.is_recording()
        {
            self.end_span(call);
        }
        let Observer { calls, access } = &*self.observer;
        calls.end(self.method, self.code, duration);
        let Some(call) = call else {
            return;
        };
        if let Some(reason) = call.refusal() {
            calls.refuse(reason);
        }
        if access.is_off() {
            return;
        }
        let line = Line {
            path: self
                .path
                .as_deref()
                .unwrap_or_else(|| calls.path(self.method)),
            code: self.code,
            duration,
            cache: self.cache.as_ref(),
            peer: self.peer,
            response_bytes: self.response_bytes,
        };
        access.log(call, &line);
    }
}

pin_project! {
    /// The future of an observed call's response.
    pub struct ObservedFuture<F> {
        #[pin]
        response: TaskLocalFuture<Call, F>,
        record: Option<Record>,
    }

    impl<F> PinnedDrop for ObservedFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(record) = this.record {
                record.call = this.response.take_value();
            }
        }
    }
}

impl<F, B, E> Future for ObservedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ObservedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(record) = this.record {
            // Remains if the poll panics.
            record.code = Code::Internal;
        }
        let outcome = this.response.as_mut().poll(context);
        if let Some(record) = this.record {
            record.code = Code::Cancelled;
        }
        let outcome = ready!(outcome);
        let mut record = this.record.take();
        if let Some(record) = &mut record {
            record.call = this.response.take_value();
        }
        let mut response = outcome?;
        if let Some(record) = &mut record {
            record.respond(&mut response);
        }
        Poll::Ready(Ok(response.map(|body| ObservedBody { body, record })))
    }
}

pin_project! {
    /// The body of an observed call's response.
    #[derive(Default)]
    pub struct ObservedBody<B> {
        #[pin]
        body: B,
        record: Option<Record>,
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for ObservedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(context));
        if let Some(record) = this.record {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        record.response_bytes += data.len() as u64;
                    } else if let Some(trailers) = frame.trailers_ref() {
                        record.read_status(trailers);
                    }
                }
                Some(Err(_)) => record.code = Code::Internal,
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
