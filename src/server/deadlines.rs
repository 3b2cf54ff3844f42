//! Limits of calls: how many run at once, and the deadline of each, which is the caller's
//! `grpc-timeout` or the service's own limit if that is shorter.
//!
//! tonic has a timeout too. It ends calls with CANCELLED, the code for calls that the caller itself
//! has cancelled.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use tokio::sync::Semaphore;
use tonic::Status;
use tower::{Layer, Service};

use crate::error::Error;

/// The longest deadline, up to the start of the response.
const MAX_DEADLINE: Duration = Duration::from_secs(30);

/// Calls end this much earlier than tonic's timer would end them: more than one tick of both timers.
const LEAD: Duration = Duration::from_millis(3);

/// Calls that run at once. Further ones wait, until their deadlines.
const MAX_CALLS: usize = 1_024;

/// Applies the deadlines, and one common limit, to the calls of all services that it wraps.
#[derive(Debug, Clone)]
pub struct Bounds(Arc<Semaphore>);

impl Default for Bounds {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CALLS)))
    }
}

impl<S> Layer<S> for Bounds {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded {
            inner,
            permits: Arc::clone(&self.0),
        }
    }
}

/// A service whose calls are dropped at their deadlines, and end with `DEADLINE_EXCEEDED`.
#[derive(Debug, Clone)]
pub struct Bounded<S> {
    inner: S,
    permits: Arc<Semaphore>,
}

impl<S, B, R> Service<Request<B>> for Bounded<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = grpc_timeout(request.headers())
            .map_or(MAX_DEADLINE, |timeout| timeout.min(MAX_DEADLINE));
        let deadline = tokio::time::sleep(limit.saturating_sub(LEAD));
        let response = self.inner.call(request);
        let permits = Arc::clone(&self.permits);
        async move {
            let call = async {
                let _permit = permits.acquire().await;
                response.await
            };
            tokio::select! {
                biased;
                response = call => response,
                () = deadline => Ok(Status::from(Error::DeadlineExceeded(limit)).into_http()),
            }
        }
        .boxed()
    }
}

/// Parses `grpc-timeout`: up to 8 digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeout_follows_the_protocol() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a value"));
            grpc_timeout(&headers)
        };
        assert_eq!(parse("20m"), Some(Duration::from_millis(20)));
        assert_eq!(parse("99999999H"), Some(Duration::from_hours(99_999_999)));
        assert_eq!(parse("1n"), Some(Duration::from_nanos(1)));
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1 S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
