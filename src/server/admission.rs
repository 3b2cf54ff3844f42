//! Admission: a call takes its place once its caller is known and its message has arrived. Until
//! then it takes only memory for the unfinished message, which is limited for each caller.
//!
//! Health and reflection need no token, so they have limits of their own and never wait behind the
//! calls of the API.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response, request::Parts};
use http_body::Frame;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep, sleep_until},
};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    connections::{Activity, CallGuard},
    deadlines,
    limit::Limit,
    protocol::refuse_other_protocols,
    receive::{RequestMemory, UnfinishedChecks},
};
use crate::{
    api::{MAX_REQUEST_BYTES, fast_path::Incoming},
    auth::Authenticator,
    error::{Error, Result},
    telemetry::call::{self, Call},
};

/// API calls in progress, of all callers. Above the limits of the calls that use the database, so that
/// these never take the places of cached hits.
const MAX_CALLS: usize = 10_240;

/// The memory of all API requests that don't arrive in one piece, until their calls end, in KiB:
/// 128 MiB.
const MAX_REQUEST_KIB: usize = 128 << 10;

/// The memory of all health requests that don't arrive in one piece, in KiB: 16,384 of them, or fewer
/// with long headers.
const MAX_CHECK_KIB: usize = 64 << 10;

/// Maximum size of a message to health or reflection, which contains little more than a name.
pub const MAX_NAME_BYTES: usize = 4 << 10;

/// Health checks that run at once. They only read a status, so further ones wait only briefly.
const MAX_CHECKS: usize = 64;

/// Health watches that are open at once.
const MAX_WATCHES: usize = 1_024;

/// Reflection streams that are open at once.
const MAX_REFLECTIONS: usize = 64;

/// The lifetime of a reflection stream. A client needs a few requests on one.
const REFLECTION_LIFETIME: Duration = Duration::from_secs(30);

/// Maximum size of a piece of a response. Each piece counts as progress.
const MAX_PIECE_BYTES: usize = 64 << 10;

/// The layer that admits calls to the services that it wraps.
#[derive(Clone)]
pub struct Admission(Arc<Limits>);

impl Admission {
    /// Creates the layer, with limits of its own. `name_callers` tells whether the log names the
    /// callers.
    pub fn new(authenticator: Arc<Authenticator>, name_callers: bool) -> Self {
        Self(Arc::new(Limits::new(authenticator, name_callers)))
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admitted {
            limits: Arc::clone(&self.0),
            inner,
        }
    }
}

/// A service behind an [`Admission`].
#[derive(Clone)]
pub struct Admitted<S> {
    limits: Arc<Limits>,
    inner: S,
}

impl<S, B> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body + Default + Send + 'static,
{
    type Response = Response<Guarded<B>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if let Some(refusal) = refuse_other_protocols(&request) {
            let refusal = refusal.map(Guarded::text);
            return async move { Ok(refusal) }.boxed();
        }
        let limit = deadlines::limit(request.headers());
        let limits = Arc::clone(&self.limits);
        let inner = self.inner.clone();
        async move {
            let lead = limit.saturating_sub(deadlines::LEAD);
            let deadline = sleep_until((call::started() + lead).into());
            let call = limits.call(inner, request);
            let refusal = tokio::select! {
                biased;
                response = call => match response {
                    Ok(response) => return response,
                    Err(error) => error,
                },
                () = deadline => Error::DeadlineExceeded(limit),
            };
            Ok(Status::from(refusal).into_http())
        }
        .boxed()
    }
}

/// The kinds of calls, which have different limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Api,
    HealthCheck,
    HealthWatch,
    Reflection,
    /// No service has the method, and none reads the request.
    Unknown,
}

impl Kind {
    fn of(path: &str) -> Self {
        if path.starts_with("/location.v1.") {
            Self::Api
        } else if path == "/grpc.health.v1.Health/Check" {
            Self::HealthCheck
        } else if path == "/grpc.health.v1.Health/Watch" {
            Self::HealthWatch
        } else if path.starts_with("/grpc.reflection.") {
            Self::Reflection
        } else {
            Self::Unknown
        }
    }
}

struct Limits {
    authenticator: Arc<Authenticator>,
    name_callers: bool,
    calls: Limit,
    requests: RequestMemory,
    checks: Limit,
    watches: Limit,
    reflections: Limit,
    unfinished_checks: UnfinishedChecks,
}

impl Limits {
    fn new(authenticator: Arc<Authenticator>, name_callers: bool) -> Self {
        Self {
            authenticator,
            name_callers,
            calls: Limit::new("calls", MAX_CALLS),
            requests: RequestMemory::new(MAX_REQUEST_KIB),
            checks: Limit::new("health checks", MAX_CHECKS),
            watches: Limit::new("health watches", MAX_WATCHES),
            reflections: Limit::new("reflection streams", MAX_REFLECTIONS),
            unfinished_checks: UnfinishedChecks::new(MAX_CHECK_KIB),
        }
    }

    /// Admits a call and runs it up to the start of its response. The outer error refuses it.
    async fn call<S, B>(
        &self,
        mut inner: S,
        request: Request<Body>,
    ) -> Result<Result<Response<Guarded<B>>, S::Error>>
    where
        S: Service<Request<Incoming>, Response = Response<B>>,
        B: http_body::Body,
    {
        let (head, body) = request.into_parts();
        let kind = Kind::of(head.uri.path());
        let mut guard = Guard::default();
        if let Some(activity) = head.extensions.get::<Arc<Activity>>() {
            guard.call = Some(match kind {
                Kind::HealthWatch | Kind::Reflection => activity.stream(),
                Kind::Api | Kind::HealthCheck | Kind::Unknown => activity.call(),
            });
        }
        let mut run = |head: Parts, incoming| inner.call(Request::from_parts(head, incoming));
        let response = match kind {
            Kind::Api => {
                let caller = self.authenticator.authenticate(&head.headers).await?;
                if self.name_callers {
                    call::set_subject(caller.subject.as_str());
                }
                let (frame, memory) = self
                    .requests
                    .receive(&caller.subject, &head.headers, body, MAX_REQUEST_BYTES)
                    .await?;
                call::set_request_bytes(frame.len());
                let place = self.calls.take_one()?;
                let response = run(head, Incoming::Call { caller, frame }).await;
                drop((place, memory));
                response
            }
            Kind::HealthCheck | Kind::HealthWatch => {
                let frame = self
                    .unfinished_checks
                    .receive(&head.headers, body, MAX_NAME_BYTES)
                    .await?;
                call::set_request_bytes(frame.len());
                if kind == Kind::HealthWatch {
                    let permit = self.watches.take(1);
                    guard.permit = Some(permit.map_err(|_| Error::TooManyWatches(MAX_WATCHES))?);
                }
                let _place = self.checks.wait().await?;
                run(head, Incoming::Other(full(frame))).await
            }
            Kind::Reflection => {
                guard.permit = Some(self.reflections.take(1)?);
                guard.expiry = Some(Box::pin(sleep(REFLECTION_LIFETIME)));
                guard.of = call::part();
                run(head, Incoming::Other(body)).await
            }
            Kind::Unknown => run(head, Incoming::Other(body)).await,
        };
        Ok(response.map(|response| response.map(|body| Guarded::new(body, guard))))
    }
}

fn full(frame: Bytes) -> Body {
    Body::new(http_body_util::Full::new(frame))
}

/// Held by a response until its end.
#[derive(Default)]
struct Guard {
    /// Counts the call or stream of its connection.
    call: Option<CallGuard>,
    /// Counts a stream against its limit.
    permit: Option<OwnedSemaphorePermit>,
    /// The end of the stream.
    expiry: Option<Pin<Box<Sleep>>>,
    /// The call of a stream that may expire, for the log.
    of: Option<Call>,
}

/// The body of a response, which counts as a call of its connection, may count against a limit, and
/// may expire.
#[derive(Default)]
pub struct Guarded<B> {
    body: B,
    /// The rest of a large part of the body.
    rest: Bytes,
    guard: Guard,
}

impl<B: http_body::Body> Guarded<B> {
    fn new(body: B, mut guard: Guard) -> Self {
        if let Some(call) = &mut guard.call {
            call.progress();
            let size = body.size_hint().lower();
            call.add_unsent(usize::try_from(size).unwrap_or(usize::MAX));
        }
        Self {
            body,
            rest: Bytes::new(),
            guard,
        }
    }
}

impl<B: Default> Guarded<B> {
    /// A body that isn't the response to a call.
    fn text(text: &'static str) -> Self {
        Self {
            rest: Bytes::from_static(text.as_bytes()),
            ..Self::default()
        }
    }
}

impl<B> Guarded<B> {
    /// Returns the next piece of the data.
    fn piece(&mut self, mut data: Bytes) -> Frame<Bytes> {
        let piece = data.split_to(data.len().min(MAX_PIECE_BYTES));
        self.rest = data;
        if let Some(call) = &mut self.guard.call {
            call.progress();
        }
        Frame::data(piece)
    }
}

impl<B> http_body::Body for Guarded<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(expiry) = &mut self.guard.expiry
            && expiry.as_mut().poll(context).is_ready()
        {
            self.guard.expiry = None;
            let mut trailers = HeaderMap::new();
            let expire = || Status::from(Error::DeadlineExceeded(REFLECTION_LIFETIME));
            let status = match self.guard.of.take() {
                Some(call) => call.enter(expire),
                None => expire(),
            };
            return Poll::Ready(
                status
                    .add_header(&mut trailers)
                    .ok()
                    .map(|()| Ok(Frame::trailers(trailers))),
            );
        }
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(self.piece(rest))));
        }
        Pin::new(&mut self.body).poll_frame(context).map(|frame| {
            Some(frame?.map(|frame| match frame.into_data() {
                Ok(data) => self.piece(data),
                Err(trailers) => trailers,
            }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}
