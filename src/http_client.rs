//! Connections to other servers, with TLS or without, and single HTTP/1.1 requests. Each request has a
//! connection of its own: requests every few seconds or minutes need no pool. Redirects aren't followed.
//!
//! `hyper` and `tokio-rustls` are dependencies of the gRPC server and of the Redis client already, so
//! this adds no crate.

use std::{error::Error as StdError, io};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header::HOST};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{either::Either, task::AbortOnDropHandle};

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The server can't be reached.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The certificate isn't trusted, or the server doesn't speak TLS.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The host isn't a name that a certificate can have.
    #[error("the host isn't a name or an address")]
    Host(#[from] InvalidDnsNameError),
    /// The connection ended before a response began, or the server doesn't speak HTTP.
    #[error("the request failed")]
    Http(#[from] hyper::Error),
    /// The connection ended early, or the response is too large.
    #[error("the response, of up to {max} bytes, can't be read")]
    Body {
        /// Maximum size of the response.
        max: usize,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// A response whose body hasn't been read yet.
pub struct Received {
    /// The head, and the body as it arrives.
    pub response: Response<Incoming>,
    _connection: AbortOnDropHandle<hyper::Result<()>>,
}

impl Received {
    /// Reads the body, of up to `max` bytes.
    pub async fn read(self, max: usize) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = self.response.into_parts();
        let body = Limited::new(body, max).collect().await;
        let body = body.map_err(|source| HttpError::Body { max, source })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

/// A connection, with TLS or without.
pub type Stream = Either<TlsStream<TcpStream>, TcpStream>;

/// Connects to the host of a URL, over TLS if there is a connector. Has no time limit.
pub async fn connect(url: &Uri, tls: Option<&TlsConnector>) -> Result<Stream, HttpError> {
    let host = url.host().unwrap_or_default();
    // The brackets around an IPv6 address belong to the URL.
    let host = host.trim_matches(['[', ']']);
    let default_port = if tls.is_some() { 443 } else { 80 };
    let port = url.port_u16().unwrap_or(default_port);
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(HttpError::Connect)?;
    let Some(tls) = tls else {
        return Ok(Either::Right(stream));
    };
    let name = ServerName::try_from(host.to_owned())?;
    let session = tls.connect(name, stream).await;
    session.map(Either::Left).map_err(HttpError::Tls)
}

/// Sends a request with an absolute URL, over TLS if there is a connector. Has no time limit.
pub async fn send(
    mut request: Request<Full<Bytes>>,
    tls: Option<&TlsConnector>,
) -> Result<Received, HttpError> {
    let stream = connect(request.uri(), tls).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
    Ok(Received {
        response: sender.send_request(request).await?,
        _connection: connection,
    })
}
