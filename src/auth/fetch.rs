//! Fetching JSON documents from the issuer of tokens.
//!
//! `hyper` and `tokio-rustls` are dependencies of the gRPC server and of the Redis client already, so
//! this adds no crate. One request each few minutes needs no pool, and redirects aren't followed: a key
//! set that moves is a setting that changes.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Request, StatusCode, Uri,
    header::{ACCEPT, HOST, USER_AGENT},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// Maximum size of a document.
const MAX_BYTES: usize = 1 << 20;

/// Time limit of a request, from the lookup of the host's name to the end of the response.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a document can't be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server can't be reached.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The certificate isn't trusted, or the server doesn't speak TLS.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The host isn't a name that a certificate can have.
    #[error("the host isn't a name or an address")]
    Host(#[from] InvalidDnsNameError),
    /// The server doesn't speak HTTP.
    #[error("the request failed")]
    Http(#[from] hyper::Error),
    /// Redirects aren't followed, and errors have no keys.
    #[error("the response has the status {0}, and must have 200; redirects aren't followed")]
    Status(StatusCode),
    /// The connection ended early, or the response is too large.
    #[error("the response, of up to {MAX_BYTES} bytes, can't be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server takes too long.
    #[error("no complete response within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The response isn't what the URL is for.
    #[error("the response {0}")]
    Content(String),
}

/// Fetches documents over HTTP/1.1.
pub struct Client(TlsConnector);

impl Client {
    /// Trusts the certificate authorities of the system, or those of `SSL_CERT_FILE`.
    pub fn new() -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config).into())
    }

    /// Fetches a document from an `https` or `http` URL.
    pub async fn get(&self, url: &Uri) -> Result<Bytes, FetchError> {
        timeout(TIMEOUT, self.get_slowly(url))
            .await
            .unwrap_or(Err(FetchError::Timeout))
    }

    async fn get_slowly(&self, url: &Uri) -> Result<Bytes, FetchError> {
        let host = url.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_tls = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(FetchError::Connect)?;
        if is_tls {
            let name = ServerName::try_from(host.to_owned())?;
            let stream = self.0.connect(name, stream).await;
            exchange(url, stream.map_err(FetchError::Tls)?).await
        } else {
            exchange(url, stream).await
        }
    }
}

async fn exchange<S>(url: &Uri, stream: S) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    const AGENT: HeaderValue = HeaderValue::from_static("location-service");
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = Request::new(Empty::<Bytes>::new());
    let path = url.path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
    let headers = request.headers_mut();
    if let Some(authority) = url.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(HOST, host);
    }
    headers.insert(ACCEPT, JSON);
    headers.insert(USER_AGENT, AGENT);
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES);
    Ok(body.collect().await.map_err(FetchError::Body)?.to_bytes())
}
