//! Bounds of calls: how many are under way, and for how long: what callers ask for with
//! `grpc-timeout`, within the service's own limit.
//!
//! tonic has deadlines too, but answers CANCELLED, which tells callers that they went away
//! themselves.

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

/// How long a call may take, whatever its caller asks for, until its answer begins.
const MAX_DEADLINE: Duration = Duration::from_secs(30);

/// How much earlier than tonic's timer this one ends, which is more than a tick of both.
const LEAD: Duration = Duration::from_millis(3);

/// How many calls are under way at once; more wait for their turn, until their deadlines.
const MAX_CALLS: usize = 1_024;

/// Gives the calls to all services that it wraps their deadlines and their common bound.
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
            places: Arc::clone(&self.0),
        }
    }
}

/// Ends the calls to a service at their deadlines with `DEADLINE_EXCEEDED`, which drops them.
#[derive(Debug, Clone)]
pub struct Bounded<S> {
    inner: S,
    places: Arc<Semaphore>,
}

impl<S, B, A> Service<Request<B>> for Bounded<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    A: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let asked = grpc_timeout(request.headers()).unwrap_or(MAX_DEADLINE);
        let limit = asked.min(MAX_DEADLINE);
        let over = tokio::time::sleep(limit.saturating_sub(LEAD));
        let answer = self.inner.call(request);
        let places = Arc::clone(&self.places);
        async move {
            let turn = async {
                let _place = places.acquire().await;
                answer.await
            };
            tokio::select! {
                biased;
                answer = turn => answer,
                () = over => Ok(Status::from(Error::DeadlineExceeded(limit)).into_http()),
            }
        }
        .boxed()
    }
}

/// The `grpc-timeout`: up to 8 digits, and a unit.
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
    fn timeouts_are_read_as_the_protocol_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a value"));
            grpc_timeout(&headers)
        };
        assert_eq!(read("20m"), Some(Duration::from_millis(20)));
        assert_eq!(read("99999999H"), Some(Duration::from_hours(99_999_999)));
        assert_eq!(read("1n"), Some(Duration::from_nanos(1)));
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1 S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
