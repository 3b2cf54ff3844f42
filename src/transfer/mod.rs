//! The `import` and `export` commands: locations from and to files, through any running service.
//!
//! Both are plain clients. [`import()`] streams rows off a file, sends them in batches with several
//! in flight, and sorts out what the service refuses row by row. [`export()`] pages through all that
//! the caller may see. `rows` turns locations into CSV and NDJSON rows and back, without loss.

mod export;
mod import;
mod progress;
mod rows;

use std::{
    env,
    error::Error as StdError,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::proto::location::v1::location_service_client::LocationServiceClient;

pub use self::{
    export::{ExportArgs, ExportSummary, export},
    import::{ImportArgs, ImportSummary, import},
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a call is made before its error stands.
const MAX_ATTEMPTS: u32 = 8;
/// The wait after the first attempt; it doubles with each.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// The longest wait between two attempts, whoever asks for it.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Room for the details of errors, which travel in headers: a batch may have many bad fields.
const MAX_HEADER_BYTES: u32 = 256 * 1024;

/// TagKeys the token of the caller in the environment, where other users can't read it.
const TOKEN_VARIABLE: &str = "LOCATION_SERVICE_TOKEN";

/// The name that stands for standard input or output.
const STANDARD_STREAM: &str = "-";

/// Which service to talk to, and as whom.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Debug, Clone, clap::Args)]
pub struct ConnectionArgs {
    /// The service's address
    #[arg(
        long,
        value_name = "URL",
        env = "LOCATION_SERVICE_SERVER",
        default_value = "http://127.0.0.1:50051"
    )]
    pub server: String,

    /// A file with the JWT to call with. Without it, the environment variable
    /// LOCATION_SERVICE_TOKEN; without that either, no token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// How locations are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Comma-separated values with a header row, quoted as RFC 4180 says
    Csv,
    /// One location a line, in protobuf's JSON form
    Ndjson,
}

impl Format {
    /// The format that the file's extension names.
    fn guess(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "ndjson" | "jsonl" | "json" => Some(Self::Ndjson),
            _ => None,
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
        }
    }
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The arguments don't fit each other or the file. Says what to change.
    #[error("{0}")]
    Usage(String),

    /// A file can't be read, or ends where it shouldn't.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },

    /// A file can't be written.
    #[error("cannot write {}: {cause}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },

    /// No service answers at the address.
    #[error(
        "cannot connect to {server}: {}: is the service running there?",
        root_cause(cause)
    )]
    Connect {
        /// The address.
        server: String,
        /// Why.
        cause: tonic::transport::Error,
    },

    /// The service refused a call, or didn't answer it, retries included.
    #[error("{method} failed: {}", describe(status))]
    Call {
        /// The method.
        method: &'static str,
        /// The answer.
        status: Box<Status>,
    },

    /// Someone stopped the command, and nothing was kept.
    #[error("stopped")]
    Interrupted,

    /// A fault of this program.
    #[error("{0}")]
    Internal(String),
}

impl TransferError {
    /// What the process ends with: 130 when it was stopped, otherwise 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => EXIT_INTERRUPTED,
            _ => 1,
        }
    }
}

/// What shells report for a process that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

fn describe(status: &Status) -> String {
    match status.source() {
        Some(_) => format!("no answer: {}", root_cause(status)),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn root_cause(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A connection that authenticates, sets deadlines and retries.
#[derive(Debug, Clone)]
struct Client {
    service: LocationServiceClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Connects at once, so that a wrong address fails before anything is read.
    async fn connect(args: &ConnectionArgs) -> Result<Self, TransferError> {
        let authorization = authorization(args)?;
        let server = &args.server;
        let endpoint = Endpoint::from_shared(server.clone())
            .ok()
            .filter(|endpoint| endpoint.uri().scheme_str() == Some("http"))
            .ok_or_else(|| {
                TransferError::Usage(format!(
                    "--server {server} must be a URL such as http://127.0.0.1:50051; TLS isn't \
                     spoken, so reach a distant service through a tunnel or a proxy"
                ))
            })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(|cause| TransferError::Connect {
                server: server.clone(),
                cause,
            })?;
        Ok(Self {
            service: LocationServiceClient::new(channel),
            authorization,
        })
    }

    /// Makes a call that is safe to repeat, until it is answered or [`MAX_ATTEMPTS`] are used up.
    async fn call<Q, A, F>(
        &self,
        message: Q,
        method: impl Fn(LocationServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempt = 1;
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(CALL_TIMEOUT);
            if let Some(authorization) = &self.authorization {
                request
                    .metadata_mut()
                    .insert("authorization", authorization.clone());
            }
            match method(self.service.clone(), request).await {
                Err(status) if attempt < MAX_ATTEMPTS && is_transient(&status) => {
                    sleep(backoff(&status, attempt)).await;
                    attempt += 1;
                }
                answer => return answer.map(Response::into_inner),
            }
        }
    }
}

fn authorization(args: &ConnectionArgs) -> Result<Option<MetadataValue<Ascii>>, TransferError> {
    let (token, origin) = match &args.token_file {
        Some(path) => {
            let token = std::fs::read_to_string(path).map_err(|cause| TransferError::Read {
                path: path.clone(),
                cause,
            })?;
            (token, path.display().to_string())
        }
        None => match env::var(TOKEN_VARIABLE) {
            Ok(token) => (token, TOKEN_VARIABLE.to_owned()),
            Err(env::VarError::NotPresent) => return Ok(None),
            Err(env::VarError::NotUnicode(_)) => (String::new(), TOKEN_VARIABLE.to_owned()),
        },
    };
    let mut value = Some(token.trim())
        .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
        .and_then(|token| MetadataValue::try_from(format!("Bearer {token}")).ok())
        .ok_or_else(|| TransferError::Usage(format!("{origin} must hold a JWT, on one line")))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Whether another attempt may succeed. A status with a source was made on this side: the answer
/// was lost or late. `ABORTED` is a write that met another: no etag is ever sent from here.
fn is_transient(status: &Status) -> bool {
    status.source().is_some()
        || matches!(
            status.code(),
            Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Aborted
        )
}

/// How long to wait after the `attempt`-th attempt, counted from 1: what the service asks for, or
/// twice as long each time.
fn backoff(status: &Status, attempt: u32) -> Duration {
    status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
        .unwrap_or_else(|| FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(attempt - 1)))
        .min(MAX_BACKOFF)
}

/// SIGINT and SIGTERM, as often as they come.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn listen() -> Result<Self, TransferError> {
        let listen = |kind| {
            signal(kind).map_err(|cause| {
                TransferError::Internal(format!("cannot listen for signals: {cause}"))
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_unless_the_service_asks() {
        let status = Status::unavailable("");
        assert_eq!(backoff(&status, 1), FIRST_BACKOFF);
        assert_eq!(backoff(&status, 3), FIRST_BACKOFF * 4);
        assert_eq!(backoff(&status, 99), MAX_BACKOFF);

        let asked = |delay| {
            Status::with_error_details(
                Code::Unavailable,
                "",
                ErrorDetails::with_retry_info(Some(delay)),
            )
        };
        let delay = Duration::from_millis(1234);
        assert_eq!(backoff(&asked(delay), 5), delay);
        assert_eq!(backoff(&asked(MAX_BACKOFF * 2), 1), MAX_BACKOFF);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        assert!(is_transient(&Status::resource_exhausted("")));
        assert!(is_transient(&Status::from_error(
            io::Error::other("broken pipe").into()
        )));
        assert!(is_transient(&Status::aborted("")));
        assert!(!is_transient(&Status::permission_denied("")));
        assert!(!is_transient(&Status::invalid_argument("")));
    }

    #[test]
    fn a_token_that_cannot_be_one_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            authorization(&ConnectionArgs {
                server: String::new(),
                token_file: Some(path.clone()),
            })
        };
        let value = read("a.b.c\n").unwrap().unwrap();
        assert_eq!(value.to_str().unwrap(), "Bearer a.b.c");
        assert!(value.is_sensitive());
        for bad in ["", "\n", "se cret", "sécret"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.ends_with("must hold a JWT, on one line"), "{error}");
        }
    }
}
