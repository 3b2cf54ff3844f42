//! Fetching JSON documents from the issuer of tokens.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Request, StatusCode, Uri,
    header::{ACCEPT, USER_AGENT},
};
use http_body_util::Full;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::{
    http_client::{self, HttpError},
    tls::TlsFiles,
};

/// Maximum size of a document.
const MAX_BYTES: usize = 1 << 20;

/// Time limit of a request, from the lookup of the host's name to the end of the response.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a document can't be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no response.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The status isn't 200. Redirects aren't followed.
    #[error("the response has the status {0}, and must have 200; redirects aren't followed")]
    Status(StatusCode),
    /// The server takes too long.
    #[error("no complete response within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The content of the response is invalid.
    #[error("the response {0}")]
    Content(String),
}

/// Fetches documents.
pub struct Client(TlsConnector);

impl Client {
    /// Trusts the certificate authorities of the system, or those of `SSL_CERT_FILE`.
    pub fn new() -> Self {
        let config = TlsFiles::default().client_config();
        let config = config.unwrap_or_else(|_| unreachable!("no file is named"));
        Self(Arc::new(config).into())
    }

    /// Fetches a document from an `https` or `http` URL.
    pub async fn get(&self, url: &Uri) -> Result<Bytes, FetchError> {
        timeout(TIMEOUT, self.get_slowly(url))
            .await
            .unwrap_or(Err(FetchError::Timeout))
    }

    async fn get_slowly(&self, url: &Uri) -> Result<Bytes, FetchError> {
        let request = Request::get(url)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, "location-service")
            .body(Full::default())
            .unwrap_or_else(|_| unreachable!("the headers are constants"));
        let tls = (url.scheme_str() == Some("https")).then_some(&self.0);
        let received = http_client::send(request, tls).await?;
        let status = received.response.status();
        if status != StatusCode::OK {
            return Err(FetchError::Status(status));
        }
        Ok(received.read(MAX_BYTES).await?.into_body())
    }
}
