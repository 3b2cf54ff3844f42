//! A client that authenticates, sets deadlines and retries.

use std::{env, error::Error as _, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use location_service::proto::location::v1::location_service_client::LocationServiceClient;
use parking_lot::RwLock;
use tokio::time::sleep;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_types::StatusExt as _;

use super::TransferError;
use crate::cli::connection::{Refused, ServerArgs, cause};

/// The deadline of one attempt of a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of attempts after which a call fails.
const MAX_ATTEMPTS: u32 = 8;
/// The wait after the first attempt. It doubles after each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// The longest wait between two attempts, even if the service asks for more.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// The environment variable with the caller's token. An argument would show it to other users of
/// the machine.
pub const TOKEN_VARIABLE: &str = "LOCATION_SERVICE_TOKEN";

/// The service to call, and the token to call it with.
#[allow(
    clippy::doc_markdown,
    reason = "the comments are the help, where backticks don't belong"
)]
#[derive(Debug, Clone, Args)]
pub struct ConnectionArgs {
    #[command(flatten)]
    pub server: ServerArgs,

    /// File with the JWT to send, which is read again when the service refuses it [default: the
    /// environment variable LOCATION_SERVICE_TOKEN; if that isn't set, no token is sent]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// A connection to the service.
#[derive(Debug, Clone)]
pub struct Client {
    service: LocationServiceClient<Channel>,
    authorization: Arc<RwLock<Option<MetadataValue<Ascii>>>>,
    args: Arc<ConnectionArgs>,
}

impl Client {
    /// Connects at once, so that a wrong address fails before any row is read.
    pub async fn connect(args: &ConnectionArgs) -> Result<Self, TransferError> {
        let authorization = authorization(args)?;
        let channel = args.server.connect().await;
        let channel = channel.map_err(TransferError::Connect)?;
        Ok(Self {
            service: LocationServiceClient::new(channel),
            authorization: Arc::new(RwLock::new(authorization)),
            args: Arc::new(args.clone()),
        })
    }

    /// Reads the token again. Returns whether it has changed since a call was made with `used`.
    fn renew_token(&self, used: Option<&MetadataValue<Ascii>>) -> bool {
        let Ok(token) = authorization(&self.args) else {
            return false;
        };
        let has_changed = token.as_ref() != used;
        *self.authorization.write() = token;
        has_changed
    }

    /// Makes an idempotent call, with up to [`MAX_ATTEMPTS`] attempts. `message` makes the message of
    /// each.
    pub async fn call<Q, A, F>(
        &self,
        message: impl Fn() -> Q,
        method: impl Fn(LocationServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call_noting(message, &mut false, method).await
    }

    /// Makes a call as [`Client::call`] does, and notes whether there were several attempts: each
    /// but the last may have been executed without a response.
    pub async fn call_noting<Q, A, F>(
        &self,
        message: impl Fn() -> Q,
        was_retried: &mut bool,
        method: impl Fn(LocationServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempt = 1;
        loop {
            let mut request = Request::new(message());
            request.set_timeout(CALL_TIMEOUT);
            let authorization = self.authorization.read().clone();
            if let Some(authorization) = &authorization {
                request
                    .metadata_mut()
                    .insert("authorization", authorization.clone());
            }
            match method(self.service.clone(), request).await {
                Err(status) if attempt < MAX_ATTEMPTS && is_transient(&status) => {
                    *was_retried = true;
                    sleep(backoff(&status, attempt)).await;
                    attempt += 1;
                }
                Err(status)
                    if attempt < MAX_ATTEMPTS
                        && status.code() == Code::Unauthenticated
                        && self.renew_token(authorization.as_ref()) =>
                {
                    attempt += 1;
                }
                result => return result.map(Response::into_inner),
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

/// Whether another attempt may succeed. A status with a source was made by the client: the response
/// was lost or late. All calls may be repeated after an unknown outcome: creations have ids, and
/// updates etags.
fn is_transient(status: &Status) -> bool {
    let has_reason = |reason| {
        status
            .get_details_error_info()
            .is_some_and(|info| info.reason == reason)
    };
    if status.source().is_some() {
        return matches!(cause(status), Refused::Other(_));
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::ResourceExhausted => !has_reason("MESSAGE_TOO_LARGE"),
        Code::Unknown => has_reason("OUTCOME_UNKNOWN"),
        // A conflict with another write, or a stale etag.
        Code::Aborted => !has_reason("ETAG_MISMATCH"),
        _ => false,
    }
}

/// The wait after an attempt, counted from 1: the delay that the service asks for, otherwise twice
/// the previous one.
fn backoff(status: &Status, attempt: u32) -> Duration {
    status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay)
        .unwrap_or_else(|| FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(attempt - 1)))
        .min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_limit_or_follows_the_service() {
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
    fn only_transient_errors_are_retried() {
        assert!(is_transient(&Status::resource_exhausted("")));
        assert!(is_transient(&Status::from_error(
            io::Error::other("broken pipe").into()
        )));
        assert!(is_transient(&Status::aborted("")));
        let with_reason = |code, reason| {
            let details = ErrorDetails::with_error_info(reason, "location.v1", []);
            Status::with_error_details(code, "", details)
        };
        assert!(is_transient(&with_reason(Code::Unknown, "OUTCOME_UNKNOWN")));
        assert!(!is_transient(&with_reason(Code::Unknown, "OTHER")));
        assert!(!is_transient(&with_reason(Code::Aborted, "ETAG_MISMATCH")));
        assert!(!is_transient(&with_reason(
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE"
        )));
        assert!(!is_transient(&Status::permission_denied("")));
        assert!(!is_transient(&Status::invalid_argument("")));
    }

    #[tokio::test]
    async fn a_renewed_token_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "a.b.c").unwrap();
        let args = ConnectionArgs {
            server: ServerArgs::plain("http://127.0.0.1:1"),
            token_file: Some(path.clone()),
        };
        let first = authorization(&args).unwrap();
        let client = Client {
            service: LocationServiceClient::new(
                tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy(),
            ),
            authorization: Arc::new(RwLock::new(first.clone())),
            args: Arc::new(args),
        };
        assert!(!client.renew_token(first.as_ref()), "it hasn't changed");
        fs::write(&path, "d.e.f").unwrap();
        assert!(client.renew_token(first.as_ref()));
        let renewed = client.authorization.read().clone().unwrap();
        assert_eq!(renewed.to_str().unwrap(), "Bearer d.e.f");
        // Another call with the first token, refused later, uses the renewed one.
        assert!(client.renew_token(first.as_ref()));
        assert!(!client.renew_token(Some(&renewed)));
        fs::remove_file(&path).unwrap();
        assert!(!client.renew_token(Some(&renewed)));
    }

    #[test]
    fn an_invalid_token_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            authorization(&ConnectionArgs {
                server: ServerArgs::plain("http://127.0.0.1:1"),
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
