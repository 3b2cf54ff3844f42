//! The fast path of the cached methods: the frame that the cache holds is the body of the response,
//! ahead of tonic, which would copy it into a buffer of its own.
//!
//! It takes the calls that nearly all clients make: one message, not compressed, and no wish for a
//! compressed answer. Any other call, and one that can't be decoded, goes to tonic as it came.

use std::{
    mem,
    pin::Pin,
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
    error::Error,
    model::Principal,
    proto::{self, location::v1},
    service::{CacheMode, CachedResponse},
};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// A call of a cached method.
enum Call {
    List(v1::ListLocationsRequest),
    Get(v1::GetLocationRequest),
    Reports(v1::ListLocationReportsRequest),
}

/// How a cached method's message becomes a call.
type Decode = fn(&[u8]) -> Result<Call, DecodeError>;

fn cached_method(path: &str) -> Option<Decode> {
    Some(match path {
        "/location.v1.LocationService/ListLocations" => |message| {
            let request = v1::ListLocationsRequest::decode(message)?;
            Ok(Call::List(request))
        },
        "/location.v1.LocationService/GetLocation" => |message| {
            let request = v1::GetLocationRequest::decode(message)?;
            Ok(Call::Get(request))
        },
        "/location.v1.LocationService/ListLocationReports" => |message| {
            let request = v1::ListLocationReportsRequest::decode(message)?;
            Ok(Call::Reports(request))
        },
        _ => return None,
    })
}

/// Answers calls of the cached methods ahead of the services that it wraps. `admit` tells who sent
/// a request's headers.
#[derive(Clone)]
pub struct FastPath<A> {
    api: LocationApi,
    admit: A,
}

impl<A> FastPath<A>
where
    A: Fn(&HeaderMap) -> Result<Principal, Error>,
{
    /// The fast path to an API.
    pub fn new(api: LocationApi, admit: A) -> Self {
        Self { api, admit }
    }

    /// The response to a call, or the request, unchanged, if tonic has to answer it.
    async fn answer(
        &self,
        decode: Decode,
        request: Request<Body>,
    ) -> Result<Response<ResponseBody>, Request<Body>> {
        let (head, body) = request.into_parts();
        let caller = match (self.admit)(&head.headers) {
            Ok(caller) => caller,
            Err(error) => return Ok(refuse(error)),
        };
        let frame = match sole_frame(body).await {
            Ok(frame) => frame,
            Err(body) => return Err(Request::from_parts(head, body)),
        };
        let Ok(call) = decode(frame.message()) else {
            let body = Body::new(Full::new(frame.into_bytes()));
            return Err(Request::from_parts(head, body));
        };
        let served = self.call(&caller, cache_mode(&head.headers), call).await;
        Ok(served.map_or_else(refuse, respond))
    }

    async fn call(
        &self,
        caller: &Principal,
        mode: CacheMode,
        call: Call,
    ) -> Result<CachedResponse, Error> {
        match call {
            Call::List(request) => self.api.list(caller, mode, request).await,
            Call::Get(request) => self.api.get(caller, mode, &request).await,
            Call::Reports(request) => self.api.reports(caller, mode, request).await,
        }
    }
}

fn respond(CachedResponse { frame, source }: CachedResponse) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Frame(frame.into_bytes()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_status(source)));
    response
}

fn refuse(error: Error) -> Response<ResponseBody> {
    Status::from(error).into_http()
}

/// Whether a request's headers ask for nothing that tonic alone can do.
fn is_plain(request: &Request<Body>) -> bool {
    let headers = request.headers();
    request.method() == Method::POST
        && headers.get(CONTENT_TYPE).is_some_and(|kind| {
            [&b"application/grpc"[..], b"application/grpc+proto"].contains(&kind.as_bytes())
        })
        && !headers.contains_key("grpc-encoding")
        && !headers.contains_key("grpc-accept-encoding")
}

/// The frame of a body that is just one, uncompressed and in one piece; or the body as it was.
async fn sole_frame(mut body: Body) -> Result<proto::Frame, Body> {
    let first = match body.frame().await {
        Some(Ok(first)) => first,
        other => return Err(again(other, body)),
    };
    let Some(frame) = first.data_ref().cloned().and_then(proto::Frame::parse) else {
        return Err(again([Ok(first)], body));
    };
    while !body.is_end_stream() {
        match body.frame().await {
            None => break,
            // What many clients end with.
            Some(Ok(end)) if end.data_ref().is_some_and(Bytes::is_empty) => {}
            Some(more) => return Err(again([Ok(first), more], body)),
        }
    }
    Ok(frame)
}

/// A body from which something was read.
fn again(
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
    /// A frame, and trailers that say it went well.
    Frame(Bytes),
    /// The trailers.
    Trailers,
    /// Nothing.
    #[default]
    End,
    /// What tonic answers.
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

impl<A: Clone, S> Layer<S> for FastPath<A> {
    type Service = Fast<A, S>;

    fn layer(&self, inner: S) -> Fast<A, S> {
        Fast {
            path: self.clone(),
            inner,
        }
    }
}

/// Services with a [`FastPath`] ahead of them.
#[derive(Clone)]
pub struct Fast<A, S> {
    path: FastPath<A>,
    inner: S,
}

impl<A, S> Service<Request<Body>> for Fast<A, S>
where
    A: Fn(&HeaderMap) -> Result<Principal, Error> + Clone + Send + Sync + 'static,
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
        let decode = cached_method(request.uri().path()).filter(|_| is_plain(&request));
        let path = self.path.clone();
        // The clone may not be ready, and this one is.
        let fresh = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, fresh);
        async move {
            let request = match decode {
                Some(decode) => match path.answer(decode, request).await {
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
