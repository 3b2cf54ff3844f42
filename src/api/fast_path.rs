//! The fast path of the cached methods: the frame in the cache is the body of the response. tonic
//! would copy it into a buffer of its own.
//!
//! It takes calls of one uncompressed message whose client accepts an uncompressed response, as most
//! clients do. Other calls, and malformed ones, pass on to tonic unchanged; there the methods are
//! those of [`LocationApi`] as well.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response,
    header::{CONTENT_TYPE, HeaderName},
};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use prost::{DecodeError, Message as _};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    LocationApi,
    cache_headers::{CACHE_STATUS, cache_mode, cache_status},
    limits,
    status::complete,
};
use crate::{
    error::Error,
    model::Principal,
    proto::{self, location::v1},
    service::{CacheMode, CachedResponse},
};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

const OK: HeaderValue = HeaderValue::from_static("0");

#[derive(Clone, Copy)]
enum CachedMethod {
    List,
    Get,
    Reports,
}

impl CachedMethod {
    fn from_path(path: &str) -> Option<Self> {
        match path {
            "/location.v1.LocationService/ListLocations" => Some(Self::List),
            "/location.v1.LocationService/GetLocation" => Some(Self::Get),
            "/location.v1.LocationService/ListLocationReports" => Some(Self::Reports),
            _ => None,
        }
    }
}

/// The body of an admitted request.
pub enum Incoming {
    /// A call of the API.
    Call {
        /// The authenticated caller.
        caller: Principal,
        /// The whole body: the message in its frame, unless the client sent anything else.
        frame: Bytes,
    },
    /// A request to another service, whose body may be a stream.
    Other(Body),
}

/// A layer that responds to plain calls of the cached methods.
#[derive(Clone)]
pub struct FastPath {
    api: Arc<LocationApi>,
}

impl FastPath {
    /// Creates the fast path to an API.
    pub fn new(api: LocationApi) -> Self {
        Self { api: Arc::new(api) }
    }

    /// Responds to a call; `None` if it is malformed, or anything else that tonic must handle.
    async fn respond(
        &self,
        method: CachedMethod,
        headers: &HeaderMap,
        caller: &Principal,
        frame: &Bytes,
    ) -> Option<Response<ResponseBody>> {
        let frame = proto::Frame::parse(frame.clone())?;
        let mode = cache_mode(headers);
        let response = self.call(method, caller, mode, frame.message()).await;
        // tonic reports a malformed message.
        Some(response.ok()?.map_or_else(error_response, cached_response))
    }

    async fn call(
        &self,
        method: CachedMethod,
        caller: &Principal,
        mode: CacheMode,
        message: &[u8],
    ) -> Result<Result<CachedResponse, Error>, DecodeError> {
        Ok(match method {
            CachedMethod::List => {
                if let Err(error) = limits::check::<v1::ListLocationsRequest>(message) {
                    return Ok(Err(error));
                }
                let request = v1::ListLocationsRequest::decode(message)?;
                self.api.list(caller, mode, request).await
            }
            CachedMethod::Get => {
                let request = v1::GetLocationRequest::decode(message)?;
                self.api.get(caller, mode, &request).await
            }
            CachedMethod::Reports => {
                let request = v1::ListLocationReportsRequest::decode(message)?;
                self.api.reports(caller, mode, request).await
            }
        })
    }
}

fn cached_response(CachedResponse { frame, source }: CachedResponse) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Frame(frame.into_bytes()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_status(source)));
    response
}

fn error_response(error: Error) -> Response<ResponseBody> {
    Status::from(error).into_http()
}

/// Whether the headers of a request need nothing that only tonic does.
fn is_plain<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    request.method() == Method::POST
        && headers.get(CONTENT_TYPE).is_some_and(|content_type| {
            [&b"application/grpc"[..], b"application/grpc+proto"].contains(&content_type.as_bytes())
        })
        && !headers.contains_key("grpc-encoding")
        && !headers.contains_key("grpc-accept-encoding")
}

/// The body of a response.
#[derive(Default)]
pub enum ResponseBody {
    /// A frame, then trailers with the status `OK`.
    Frame(Bytes),
    /// The trailers.
    Trailers,
    /// The end.
    #[default]
    End,
    /// A body from tonic.
    Tonic(Body),
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Self::Tonic(body) = &mut *self {
            return Pin::new(body).poll_frame(context);
        }
        Poll::Ready(match mem::take(&mut *self) {
            Self::Frame(frame) => {
                *self = Self::Trailers;
                Some(Ok(Frame::data(frame)))
            }
            Self::Trailers => {
                let trailers = HeaderMap::from_iter([(GRPC_STATUS, OK)]);
                Some(Ok(Frame::trailers(trailers)))
            }
            Self::End | Self::Tonic(_) => None,
        })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Frame(frame) => SizeHint::with_exact(frame.len() as u64),
            Self::Trailers | Self::End => SizeHint::with_exact(0),
            Self::Tonic(body) => body.size_hint(),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Frame(_) | Self::Trailers => false,
            Self::End => true,
            Self::Tonic(body) => body.is_end_stream(),
        }
    }
}

impl<S> Layer<S> for FastPath {
    type Service = WithFastPath<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithFastPath {
            path: self.clone(),
            inner,
        }
    }
}

/// A service with a [`FastPath`] in front of it. Its requests have the caller, a [`Principal`], as an
/// extension.
#[derive(Clone)]
pub struct WithFastPath<S> {
    path: FastPath,
    inner: S,
}

impl<S> Service<Request<Incoming>> for WithFastPath<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<ResponseBody>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let method = CachedMethod::from_path(request.uri().path()).filter(|_| is_plain(&request));
        let path = self.path.clone();
        // The clone may not be ready, but `self.inner` is.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        async move {
            let (mut head, body) = request.into_parts();
            let body = match body {
                Incoming::Other(body) => body,
                Incoming::Call { caller, frame } => {
                    if let Some(method) = method
                        && let Some(response) =
                            path.respond(method, &head.headers, &caller, &frame).await
                    {
                        return Ok(response);
                    }
                    head.extensions.insert(caller);
                    Body::new(Full::new(frame))
                }
            };
            let response = inner.call(Request::from_parts(head, body)).await?;
            Ok(complete(response).map(ResponseBody::Tonic))
        }
        .boxed()
    }
}
