//! Calls: the replica, credentials and deadline of a call, and the meaning of its error.

use std::{error::Error as _, io, ops::Range, sync::atomic::Ordering, time::Duration};

use location_service::{auth::NewToken, error::Error, model::OwnerId};
use rand::{RngExt as _, rngs::StdRng};
use tonic::{
    Code, Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};
use tonic_types::StatusExt as _;

use super::Worker;
use crate::history::{Micros, Page, Reply};

/// The usual deadline of a read.
pub(super) const READ_DEADLINE: Duration = Duration::from_secs(1);

/// The usual deadline of a write.
pub(super) const WRITE_DEADLINE: Duration = Duration::from_secs(4);

/// The deadline of one call in twenty, in milliseconds.
const SHORT_DEADLINE_MS: Range<u64> = 10..80;

/// One client in this many waits longer than any fault takes, so it receives the responses of replicas
/// that were suspended.
pub(super) const PATIENT: u16 = 6;

/// The deadline of those clients.
const PATIENCE: Duration = Duration::from_mins(1);

/// The pause before the next call after UNAVAILABLE, in milliseconds.
const RETRY_DELAY_MS: Range<u64> = 20..100;

/// The time that clients avoid a replica that didn't respond, as a load balancer does.
const AVOIDED_FOR: Micros = 300_000;

impl Worker {
    /// A random replica of the client's database, preferably one that responded to the last calls.
    pub(super) fn replica(&self, rng: &mut StdRng) -> usize {
        let databases = self.settings.databases;
        let count = self.stubs.len() / databases;
        let nth = |index: usize| index % count * databases + self.database();
        let first = rng.random_range(0..count);
        if self.patient {
            return nth(first);
        }
        let now = self.recorder.now();
        (first..first + count)
            .map(nth)
            .find(|&replica| !self.fleet.is_avoided(replica, now))
            .unwrap_or_else(|| nth(first))
    }

    /// The number of the database of the client's locations.
    fn database(&self) -> usize {
        usize::from(self.number) % self.settings.databases
    }

    /// The deadline of a call.
    pub(super) fn deadline(&self, rng: &mut StdRng, usual: Duration) -> Duration {
        let hurry = rng.random_ratio(1, 20);
        let short = Duration::from_millis(rng.random_range(SHORT_DEADLINE_MS));
        match (self.patient, hurry) {
            (true, _) => PATIENCE,
            (_, true) => short,
            _ => usual,
        }
    }

    /// A request with the client's credentials.
    pub(super) fn request<T>(&self, message: T, deadline: Duration, fresh: bool) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        let metadata = request.metadata_mut();
        if let Some(bearer) = &self.bearer {
            metadata.insert("authorization", bearer.clone());
        }
        if fresh {
            metadata.insert("cache-control", AsciiMetadataValue::from_static("no-cache"));
        }
        request
    }

    /// Makes a call that ends at its deadline at the latest.
    pub(super) async fn call<T>(
        &self,
        replica: usize,
        deadline: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let late = || {
            Err(Status::deadline_exceeded(
                "the client's deadline has passed",
            ))
        };
        let called = tokio::time::timeout(deadline, call).await;
        let result = called.unwrap_or_else(|_| late());
        let Err(status) = &result else {
            return result;
        };
        let silent = matches!(
            status.code(),
            Code::DeadlineExceeded | Code::Cancelled | Code::Unavailable | Code::Unknown
        );
        if silent && reason(status).is_none() && deadline >= READ_DEADLINE {
            let until = self.recorder.now() + AVOIDED_FOR;
            let replica = &self.fleet.states[replica];
            replica.avoided_until.fetch_max(until, Ordering::Relaxed);
        }
        if status.code() == Code::Unavailable {
            let rest = rand::random_range(RETRY_DELAY_MS);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
        result
    }

    /// The record of a call, and its response.
    pub(super) fn page<T>(
        &self,
        replica: usize,
        start: Micros,
        called: Result<Response<T>, Status>,
        convert: impl FnOnce(&T) -> Reply,
    ) -> (Page, Option<T>) {
        let end = self.recorder.now();
        let (reply, cache, response) = match called {
            Ok(response) => {
                let cache = cache_status(response.metadata());
                if cache.contains("; hit") {
                    let states = &self.fleet.states[replica];
                    states.hit.fetch_max(start, Ordering::Relaxed);
                }
                let response = response.into_inner();
                (convert(&response), cache, Some(response))
            }
            Err(status) => {
                let reply = match status.code() {
                    Code::NotFound => Reply::Missing,
                    Code::PermissionDenied => Reply::Refused,
                    _ => Reply::Failed(describe(&status)),
                };
                (reply, cache_status(status.metadata()), None)
            }
        };
        let page = Page {
            start,
            end,
            cache,
            reply,
        };
        (page, response)
    }
}

/// The credentials of a client.
pub(super) fn bearer(
    secret: &[u8],
    subject: &str,
    admin: bool,
) -> Result<AsciiMetadataValue, Error> {
    const MONTH: Duration = Duration::from_hours(30 * 24);
    let owner = OwnerId::parse(subject.to_owned()).map_err(Error::internal)?;
    let token = NewToken::new(owner, admin, MONTH).sign(secret)?;
    format!("Bearer {token}").parse().map_err(Error::internal)
}

fn cache_status(metadata: &MetadataMap) -> String {
    let status = metadata.get("cache-status");
    let status = status.and_then(|status| status.to_str().ok());
    status.unwrap_or("none").to_owned()
}

/// The reason in the `ErrorInfo` of an error.
fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// An error as one line of text.
pub(super) fn describe(status: &Status) -> String {
    match reason(status) {
        Some(reason) => format!("{:?} {reason}", status.code()),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Whether a failed write never takes effect, by the contract. An error that the service didn't
/// return leaves it in doubt, unless the connection was refused.
pub(super) fn changed_nothing(status: &Status) -> bool {
    let Some(reason) = reason(status) else {
        return was_refused(status);
    };
    match status.code() {
        Code::Unavailable => {
            ["DATABASE_UNAVAILABLE", "CACHE_UNAVAILABLE", "STOPPING"].contains(&reason.as_str())
        }
        Code::DeadlineExceeded | Code::Internal | Code::Unknown => false,
        _ => true,
    }
}

fn was_refused(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}
