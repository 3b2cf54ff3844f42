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
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response,
    header::{CONTENT_TYPE, HeaderName},
};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use prost::{DecodeError, Message as _};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    LocationApi,
    cache_headers::{CACHE_STATUS, cache_mode, cache_status},
};
use crate::{
    auth::Authenticator,
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

/// A layer that responds to plain calls of the cached methods.
#[derive(Clone)]
pub struct FastPath {
    api: LocationApi,
    authenticator: Arc<Authenticator>,
}

impl FastPath {
    /// Creates the fast path to an API.
    pub fn new(api: LocationApi, authenticator: Arc<Authenticator>) -> Self {
        Self { api, authenticator }
    }

    /// Responds to a call, or returns it unchanged for tonic.
    async fn respond(
        &self,
        method: CachedMethod,
        request: Request<Body>,
    ) -> Result<Response<ResponseBody>, Request<Body>> {
        let (head, body) = request.into_parts();
        let caller = match self.authenticator.authenticate(&head.headers) {
            Ok(caller) => caller,
            Err(error) => return Ok(error_response(error)),
        };
        let frame = match only_frame(body).await {
            Ok(frame) => frame,
            Err(body) => return Err(Request::from_parts(head, body)),
        };
        let mode = cache_mode(&head.headers);
        match self.call(method, &caller, mode, frame.message()).await {
            Ok(Ok(response)) => Ok(cached_response(response)),
            Ok(Err(error)) => Ok(error_response(error)),
            Err(_malformed) => {
                let body = Body::new(Full::new(frame.into_bytes()));
                Err(Request::from_parts(head, body))
            }
        }
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
fn is_plain(request: &Request<Body>) -> bool {
    let headers = request.headers();
    request.method() == Method::POST
        && headers.get(CONTENT_TYPE).is_some_and(|content_type| {
            [&b"application/grpc"[..], b"application/grpc+proto"].contains(&content_type.as_bytes())
        })
        && !headers.contains_key("grpc-encoding")
        && !headers.contains_key("grpc-accept-encoding")
}

/// Returns the frame of a body that is one uncompressed frame in one piece. Returns any other body
/// unchanged.
async fn only_frame(mut body: Body) -> Result<proto::Frame, Body> {
    let first = match body.frame().await {
        Some(Ok(first)) => first,
        other => return Err(unread(other, body)),
    };
    let Some(frame) = first.data_ref().cloned().and_then(proto::Frame::parse) else {
        return Err(unread([Ok(first)], body));
    };
    while !body.is_end_stream() {
        match body.frame().await {
            None => break,
            // Many clients end the stream with an empty data frame.
            Some(Ok(end)) if end.data_ref().is_some_and(Bytes::is_empty) => {}
            Some(more) => return Err(unread([Ok(first), more], body)),
        }
    }
    Ok(frame)
}

/// Puts the parts that were read back in front of a body.
fn unread(
    read: impl IntoIterator<Item = Result<Frame<Bytes>, Status>, IntoIter: Send + 'static>,
    rest: Body,
) -> Body {
    Body::new(StreamBody::new(
        stream::iter(read).chain(BodyStream::new(rest)),
    ))
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

/// A service with a [`FastPath`] in front of it.
#[derive(Clone)]
pub struct WithFastPath<S> {
    path: FastPath,
    inner: S,
}

impl<S> Service<Request<Body>> for WithFastPath<S>
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = CachedMethod::from_path(request.uri().path()).filter(|_| is_plain(&request));
        let path = self.path.clone();
        // The clone may not be ready, but `self.inner` is.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        async move {
            let request = match method {
                Some(method) => match path.respond(method, request).await {
                    Ok(response) => return Ok(response),
                    Err(request) => request,
                },
                None => request,
            };
            Ok(inner.call(request).await?.map(ResponseBody::Tonic))
        }
        .boxed()
    }
}
