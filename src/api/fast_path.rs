//! The fast path of the cached methods: the frame in the cache is the body of the response. tonic
//! would copy it into a buffer of its own.
//!
//! Other calls go on to tonic. On both paths requests are decompressed first, and responses are
//! compressed last, off the workers. A request that isn't exactly one message goes no further.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{CONTENT_TYPE, HeaderName},
};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    cache_headers::{CACHE_STATUS, cache_mode, cache_status},
    codec::{self, Limited},
    compression::{self, Compression, GRPC_ACCEPT_ENCODING, GRPC_ENCODING},
    convert::{self, Paged},
    status::complete,
};
use crate::{
    cache::Encoding,
    error::Error,
    model::Principal,
    proto,
    service::{self, CachedResponse},
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
        /// The whole body: a message in its frame, or something else that the client sent.
        frame: Bytes,
    },
    /// A request to another service, whose body may be a stream.
    Other(Body),
}

/// A layer that responds to calls of the cached methods, and passes others on.
#[derive(Clone)]
pub struct FastPath(Arc<Inner>);

struct Inner {
    service: service::Service,
    compression: Compression,
}

impl FastPath {
    /// Creates the fast path to a service.
    pub fn new(service: service::Service) -> Self {
        Self(Arc::new(Inner {
            service,
            compression: Compression::default(),
        }))
    }
}

impl Inner {
    /// Decompresses a request, and returns the encoding that its response should have.
    async fn negotiate(
        &self,
        headers: &mut HeaderMap,
        frame: Bytes,
    ) -> Result<(Bytes, Option<Encoding>), Error> {
        let encoding = compression::preferred(headers);
        let frame = self.compression.decompress(headers, frame).await?;
        Ok((frame, encoding))
    }

    /// Responds to a call of a cached method.
    async fn respond(
        &self,
        method: CachedMethod,
        headers: &HeaderMap,
        caller: &Principal,
        message: &[u8],
        encoding: Option<Encoding>,
    ) -> Result<Response<ResponseBody>, Error> {
        let mode = cache_mode(headers);
        let response = match method {
            CachedMethod::List => {
                let Paged { query, page_token } = convert::list(decode(message)?)?;
                self.service.list(caller, query, &page_token, mode).await?
            }
            CachedMethod::Get => {
                let id = convert::get(&decode(message)?)?;
                self.service.get(caller, id, mode).await?
            }
            CachedMethod::Reports => {
                let Paged { query, page_token } = convert::reports(decode(message)?)?;
                self.service
                    .reports(caller, query, &page_token, mode)
                    .await?
            }
        };
        match encoding {
            None => Ok(cached_response(response)),
            Some(encoding) => self.compressed_response(response, encoding).await,
        }
    }

    /// A response whose frame is compressed, unless it is small. A compressed frame is made once, and
    /// kept in the cache.
    async fn compressed_response(
        &self,
        mut response: CachedResponse,
        encoding: Encoding,
    ) -> Result<Response<ResponseBody>, Error> {
        let (key, service) = (response.key, &self.service);
        let plain = response.frame.clone().into_bytes();
        if !compression::is_compressible(&plain) {
            return Ok(cached_response(response));
        }
        let kept = || service.compressed(&key, &plain, encoding);
        let compressed = if let Some(compressed) = kept() {
            compressed
        } else {
            let thread = self.compression.thread().await?;
            // Another call may have compressed it meanwhile.
            if let Some(compressed) = kept() {
                compressed
            } else {
                let made = compression::compress(plain.clone(), encoding, thread).await?;
                service.keep_compressed(&key, &plain, encoding, made.clone());
                made
            }
        };
        response.frame = proto::Frame::from_trusted(compressed);
        let mut response = cached_response(response);
        let headers = response.headers_mut();
        headers.insert(GRPC_ENCODING, compression::name(encoding));
        Ok(response)
    }

    /// Collects a unary response of tonic, so that its size is known, and compresses it unless it is
    /// small.
    async fn whole_response(
        &self,
        response: Response<Body>,
        encoding: Option<Encoding>,
    ) -> Result<Response<ResponseBody>, Error> {
        let (mut head, body) = response.into_parts();
        let collected = match body.collect().await {
            Ok(collected) => collected,
            Err(status) => return Ok(status.into_http()),
        };
        let trailers = collected.trailers().cloned();
        let mut frame = collected.to_bytes();
        if let Some(encoding) = encoding
            && compression::is_compressible(&frame)
        {
            let thread = self.compression.thread().await?;
            frame = compression::compress(frame, encoding, thread).await?;
            head.headers
                .insert(GRPC_ENCODING, compression::name(encoding));
        }
        let body = ResponseBody::Whole(frame, trailers.map(Box::new));
        Ok(Response::from_parts(head, body))
    }
}

fn decode<M: Limited + Message + Default>(message: &[u8]) -> Result<M, Error> {
    codec::check::<M>(message)?;
    M::decode(message).map_err(|error| Error::MalformedMessage(error.to_string()))
}

fn cached_response(response: CachedResponse) -> Response<ResponseBody> {
    let CachedResponse { frame, source, .. } = response;
    let mut response = Response::new(ResponseBody::Frame(frame.into_bytes()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(CACHE_STATUS, HeaderValue::from_static(cache_status(source)));
    response
}

fn error_response(error: Error) -> Response<ResponseBody> {
    Status::from(error).into_http()
}

/// The error of a call whose body isn't exactly one message.
fn not_one_message(path: &str) -> Error {
    if proto::is_method(path) {
        Error::MalformedMessage("the body isn't exactly one message in its frame".to_owned())
    } else {
        Error::UnknownMethod
    }
}

/// Whether the messages of a call may be compressed.
fn names_encoding(headers: &HeaderMap) -> bool {
    headers.contains_key(GRPC_ENCODING) || headers.contains_key(GRPC_ACCEPT_ENCODING)
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
    /// A frame, then these trailers.
    Whole(Bytes, Option<Box<HeaderMap>>),
    /// A stream from tonic.
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
            Self::Whole(frame, trailers) if !frame.is_empty() => {
                *self = Self::Whole(Bytes::new(), trailers);
                Some(Ok(Frame::data(frame)))
            }
            Self::Whole(_, trailers) => trailers.map(|trailers| Ok(Frame::trailers(*trailers))),
            Self::Trailers => {
                let trailers = HeaderMap::from_iter([(GRPC_STATUS, OK)]);
                Some(Ok(Frame::trailers(trailers)))
            }
            Self::End | Self::Tonic(_) => None,
        })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Frame(frame) | Self::Whole(frame, _) => SizeHint::with_exact(frame.len() as u64),
            Self::Trailers | Self::End => SizeHint::with_exact(0),
            Self::Tonic(body) => body.size_hint(),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Frame(_) | Self::Trailers => false,
            Self::Whole(frame, trailers) => frame.is_empty() && trailers.is_none(),
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
        let method = CachedMethod::from_path(request.uri().path());
        let path = Arc::clone(&self.path.0);
        let mut inner = self.inner.clone();
        async move {
            let (mut head, body) = request.into_parts();
            let (caller, mut frame) = match body {
                Incoming::Call { caller, frame } => (caller, frame),
                Incoming::Other(body) => {
                    let response = inner.call(Request::from_parts(head, body)).await?;
                    return Ok(complete(response).map(ResponseBody::Tonic));
                }
            };
            let mut encoding = None;
            if names_encoding(&head.headers) {
                (frame, encoding) = match path.negotiate(&mut head.headers, frame).await {
                    Ok(negotiated) => negotiated,
                    Err(error) => return Ok(error_response(error)),
                };
            }
            let Some(frame) = proto::Frame::parse(frame) else {
                return Ok(error_response(not_one_message(head.uri.path())));
            };
            if let Some(method) = method {
                let response = path
                    .respond(method, &head.headers, &caller, frame.message(), encoding)
                    .await;
                return Ok(response.unwrap_or_else(error_response));
            }
            head.extensions.insert(caller);
            let body = Body::new(Full::new(frame.into_bytes()));
            let request = Request::from_parts(head, body);
            let response = complete(inner.call(request).await?);
            let whole = path.whole_response(response, encoding).await;
            Ok(whole.unwrap_or_else(error_response))
        }
        .boxed()
    }
}
