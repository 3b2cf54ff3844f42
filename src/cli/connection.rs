//! Connections to a running service, with TLS or without.

use std::{
    error::Error as StdError,
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use clap::Args;
use http::Uri;
use hyper_util::rt::TokioIo;
use location_service::tls::{ClientCertificate, FileError, TlsFiles};
use parking_lot::Mutex;
use rustls::{
    CertificateError, ClientConfig, Error as TlsError, InvalidMessage, pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, Join, ReadBuf, ReadHalf, WriteHalf, join, split},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::service_fn;

use super::values::{endpoint, existing_file};

/// The time limit of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The limit of response headers, which hold the error details: one violation for each bad field of
/// a batch.
const MAX_HEADER_BYTES: u32 = 256 * 1024;

const HTTP2: &[u8] = b"h2";

const HTTP_PORT: u16 = 80;

const HTTPS_PORT: u16 = 443;

/// The bytes from the service that are searched for a refusal.
const MAX_START_BYTES: usize = 256;

/// The service to connect to.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address of the service: http://HOST:PORT, or https://HOST:PORT if it has TLS
    #[arg(long, value_name = "URL", env = "LOCATION_SERVICE_SERVER")]
    #[arg(default_value = "http://127.0.0.1:50051", value_parser = endpoint)]
    server: Endpoint,

    /// Certificate authorities in PEM that sign the certificate of an https:// service [default:
    /// those of the system]
    #[arg(long, value_name = "FILE", value_parser = existing_file)]
    tls_ca_file: Option<PathBuf>,

    /// Client certificate in PEM for a service that requires one, with the intermediate ones
    #[arg(long, value_name = "FILE", value_parser = existing_file, requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,

    /// Private key in PEM of the client certificate
    #[arg(long, value_name = "FILE", value_parser = existing_file, requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The arguments contradict each other.
    #[error("--tls-ca-file and --tls-cert-file are for https://, and --server is {0}")]
    FilesWithoutTls(Uri),
    #[error("the TLS file {0}")]
    File(#[from] FileError),
    #[error("cannot connect to {server}: {reason}")]
    Failed { server: Uri, reason: String },
}

impl ConnectError {
    fn failed(server: Uri, refused: Refused) -> Self {
        let reason = match refused {
            Refused::Tls(reason) => reason,
            Refused::Other(reason) => format!("{reason}: is the service running there?"),
        };
        Self::Failed { server, reason }
    }

    /// Whether the arguments are invalid.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Failed { .. })
    }
}

/// Why a connection with TLS failed, and how to correct that.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ServerArgs {
    /// A service without TLS.
    #[cfg(test)]
    pub fn plain(server: &'static str) -> Self {
        Self {
            server: Endpoint::from_static(server),
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
        }
    }

    /// The address of the service.
    pub fn uri(&self) -> &Uri {
        self.server.uri()
    }

    /// Connects at once, so that a wrong address is noticed before anything is done.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        let link = self.open().await?;
        // With TLS 1.3 a service refuses a client after the client's handshake, and without TLS there
        // is none: only a response shows that it accepts the connection.
        let mut health = HealthClient::new(link.channel.clone());
        let first = timeout(CONNECT_TIMEOUT, health.check(HealthCheckRequest::default())).await;
        match first {
            Ok(Err(status)) => link.refusal(&status).map_or(Ok(link.channel), Err),
            _ => Ok(link.channel),
        }
    }

    /// Connects, without a call that shows whether the service accepts the connection.
    pub async fn open(&self) -> Result<Link, ConnectError> {
        let client = self.tls_cert_file.clone().zip(self.tls_key_file.clone());
        let files = TlsFiles {
            authorities: self.tls_ca_file.clone(),
            client: client.map(|(certificate, key)| ClientCertificate { certificate, key }),
        };
        let tls = if self.uri().scheme_str() == Some("https") {
            let mut config = files.client_config()?;
            config.alpn_protocols = vec![HTTP2.to_vec()];
            Some(Arc::new(config))
        } else if files == TlsFiles::default() {
            None
        } else {
            return Err(ConnectError::FilesWithoutTls(self.uri().clone()));
        };
        let received = Arc::new(Mutex::new(Received::default()));
        let connector = {
            let received = Arc::clone(&received);
            service_fn(move |uri| connect(uri, tls.clone(), Arc::clone(&received)))
        };
        let connected = self
            .server
            .clone()
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .connect_with_connector(connector)
            .await;
        let server = self.uri().clone();
        match connected {
            Ok(channel) => Ok(Link {
                server,
                channel,
                received,
            }),
            Err(error) => Err(ConnectError::failed(server, cause(&error))),
        }
    }
}

/// A connection that the service may still refuse.
pub struct Link {
    server: Uri,
    pub channel: Channel,
    received: Arc<Mutex<Received>>,
}

impl Link {
    /// The error of the connection, if the first call failed because of it.
    pub fn refusal(&self, status: &Status) -> Option<ConnectError> {
        status.source()?;
        let refusal = self.received.lock().refusal();
        let refused = refusal.map_or_else(|| cause(status), Refused::Tls);
        Some(ConnectError::failed(self.server.clone(), refused))
    }
}

type Stream = Either<TlsStream<TcpStream>, TcpStream>;

async fn connect(
    uri: Uri,
    tls: Option<Arc<ClientConfig>>,
    received: Arc<Mutex<Received>>,
) -> Result<TokioIo<Join<Watched, WriteHalf<Stream>>>, Box<dyn StdError + Send + Sync>> {
    // The brackets around an IPv6 address belong to the URL.
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let default_port = if tls.is_some() { HTTPS_PORT } else { HTTP_PORT };
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(default_port))).await?;
    stream.set_nodelay(true)?;
    let stream = match tls {
        Some(config) => {
            let name = ServerName::try_from(host.to_owned())?;
            let connected = TlsConnector::from(config).connect(name, stream).await;
            let session = connected.map_err(|error| Refusal(explain_handshake(&error, host)))?;
            Either::Left(session)
        }
        None => Either::Right(stream),
    };
    *received.lock() = Received::default();
    let (reader, writer) = split(stream);
    Ok(TokioIo::new(join(Watched { reader, received }, writer)))
}

/// The first bytes and the error that a connection received: the HTTP/2 library doesn't report why a
/// connection ended before its first request.
#[derive(Default)]
struct Received {
    /// The first [`MAX_START_BYTES`].
    start: Vec<u8>,
    error: Option<String>,
}

impl Received {
    /// Why the service has refused the connection, if it has.
    fn refusal(&self) -> Option<String> {
        let error = self.error.as_deref().and_then(explain);
        error.or_else(|| explain(&String::from_utf8_lossy(&self.start)))
    }
}

/// A reader that records the start of its input, and its error.
struct Watched {
    reader: ReadHalf<Stream>,
    received: Arc<Mutex<Received>>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.reader).poll_read(context, buffer));
        let mut received = self.received.lock();
        match &read {
            Ok(()) => {
                let missing = MAX_START_BYTES - received.start.len();
                let new = &buffer.filled()[before..];
                received.start.extend(&new[..new.len().min(missing)]);
            }
            Err(error) => received.error = Some(error.to_string()),
        }
        drop(received);
        Poll::Ready(read)
    }
}

/// The reason why a handshake failed, and how to correct it.
fn explain_handshake(error: &io::Error, host: &str) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls {
        Some(TlsError::InvalidCertificate(problem)) => explain_certificate(problem, host),
        Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "the service there has no TLS: use http://".to_owned()
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it closed the connection during the TLS handshake: if it has no TLS, use http://"
                .to_owned()
        }
        _ => explain(&error.to_string()).unwrap_or_else(|| format!("no TLS session: {error}")),
    }
}

fn explain_certificate(problem: &CertificateError, host: &str) -> String {
    match problem {
        CertificateError::UnknownIssuer => {
            "its certificate is of an authority that isn't trusted here: give the authority's \
             certificate with --tls-ca-file"
                .to_owned()
        }
        CertificateError::NotValidForName => {
            format!("its certificate isn't for {host}: connect to a name that the certificate has")
        }
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "its certificate isn't for {host}, only for {}: connect to a name that the \
             certificate has",
            presented.join(", ")
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: renew it where the service runs, or correct the clock \
             here"
                .to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate isn't valid yet: correct the clock here, or that of its issuer"
                .to_owned()
        }
        problem => format!("its certificate can't be used: {problem}"),
    }
}

/// Explains an error by its text, if the cause is TLS or the lack of it. With TLS 1.3 a client learns
/// only after its handshake that its certificate is refused.
fn explain(cause: &str) -> Option<String> {
    const ALERT: &str = "received fatal alert: ";
    let explanation = if let Some((_, alert)) = cause.split_once(ALERT) {
        match alert {
            "CertificateRequired" => {
                "the service requires a client certificate: give --tls-cert-file and --tls-key-file"
            }
            "HandshakeFailure" => {
                "the service refuses the handshake: if it requires a client certificate, give \
                 --tls-cert-file and --tls-key-file"
            }
            "NoApplicationProtocol" => "the service there doesn't speak HTTP/2",
            "UnknownCA"
            | "BadCertificate"
            | "UnsupportedCertificate"
            | "CertificateRevoked"
            | "CertificateExpired"
            | "CertificateUnknown"
            | "DecryptError"
            | "AccessDenied" => {
                "the service refuses the client certificate: give one that is valid and of an \
                 authority that it trusts"
            }
            _ => "the service refuses the TLS session",
        }
    } else if cause.contains("This port speaks TLS") {
        return Some("the service there has TLS: use https://".to_owned());
    } else if cause.contains("frame with invalid size") {
        "the service there doesn't speak HTTP/2: if it has TLS, use https://"
    } else {
        return None;
    };
    Some(format!("{explanation} ({cause})"))
}

/// Why a connection failed or broke.
pub enum Refused {
    /// TLS failed or is missing. Another attempt fails too.
    Tls(String),
    /// Anything else.
    Other(String),
}

/// Finds the cause of a failed connection.
pub fn cause(error: &(dyn StdError + 'static)) -> Refused {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    if let Some(Refusal(reason)) = root.downcast_ref() {
        return Refused::Tls(reason.clone());
    }
    let root = root.to_string();
    match explain(&root) {
        Some(reason) => Refused::Tls(reason),
        None => Refused::Other(root),
    }
}

/// Describes a failed call.
pub fn describe(status: &Status) -> String {
    match status.source() {
        Some(_) => match cause(status) {
            Refused::Tls(reason) | Refused::Other(reason) => format!("no response: {reason}"),
        },
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}
