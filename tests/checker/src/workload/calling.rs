//! How a client calls: which replica, as whom, for how long, and what an error means.

use std::{error::Error as _, io, ops::Range, sync::atomic::Ordering, time::Duration};

use location_service::{auth::NewToken, error::Error, model::OwnerId};
use rand::{RngExt as _, rngs::StdRng};
use tonic::{
    Code, Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};
use tonic_types::StatusExt as _;

use super::Worker;
use crate::history::{Answer, Micros, Page};

/// How long a call may take: a read, a write, and now and then one that is in a hurry.
pub(super) const READ_DEADLINE: Duration = Duration::from_secs(1);
pub(super) const WRITE_DEADLINE: Duration = Duration::from_secs(4);
const HURRY_MS: Range<u64> = 10..80;

/// One of these many clients waits longer than any fault lasts, and so sees what a replica answers
/// that has been suspended.
pub(super) const PATIENT: u16 = 6;
const PATIENCE: Duration = Duration::from_mins(1);

/// When a client comes again that was told to.
const COME_AGAIN_MS: Range<u64> = 20..100;

/// For how long a replica that didn't answer is left alone, as a load balancer does.
const LEFT_ALONE: Micros = 300_000;

impl Worker {
    /// A replica, but rather none that didn't answer a moment ago.
    pub(super) fn replica(&self, rng: &mut StdRng) -> usize {
        let count = self.stubs.len();
        let first = rng.random_range(0..count);
        if self.patient {
            return first;
        }
        let now = self.recorder.now();
        (first..first + count)
            .map(|replica| replica % count)
            .find(|&replica| !self.fleet.is_alone(replica, now))
            .unwrap_or(first)
    }

    /// How long a call may take.
    pub(super) fn deadline(&self, rng: &mut StdRng, usual: Duration) -> Duration {
        let hurry = rng.random_ratio(1, 20);
        let short = Duration::from_millis(rng.random_range(HURRY_MS));
        match (self.patient, hurry) {
            (true, _) => PATIENCE,
            (_, true) => short,
            _ => usual,
        }
    }

    /// A message as the client's own.
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

    /// Makes a call, which ends at its deadline.
    pub(super) async fn call<T>(
        &self,
        replica: usize,
        deadline: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let late = || Err(Status::deadline_exceeded("the client has waited enough"));
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
            let until = self.recorder.now() + LEFT_ALONE;
            let standing = &self.fleet.standing[replica];
            standing.alone_until.fetch_max(until, Ordering::Relaxed);
        }
        if status.code() == Code::Unavailable {
            let rest = rand::random_range(COME_AGAIN_MS);
            tokio::time::sleep(Duration::from_millis(rest)).await;
        }
        result
    }

    /// A call's answer as it is recorded, and as it came.
    pub(super) fn page<T>(
        &self,
        replica: usize,
        start: Micros,
        called: Result<Response<T>, Status>,
        answer: impl FnOnce(&T) -> Answer,
    ) -> (Page, Option<T>) {
        let end = self.recorder.now();
        let (answer, cache, response) = match called {
            Ok(response) => {
                let cache = cache_status(response.metadata());
                if cache.contains("; hit") {
                    let standing = &self.fleet.standing[replica];
                    standing.hit.fetch_max(start, Ordering::Relaxed);
                }
                let response = response.into_inner();
                (answer(&response), cache, Some(response))
            }
            Err(status) => {
                let answer = match status.code() {
                    Code::NotFound => Answer::Missing,
                    Code::PermissionDenied => Answer::Refused,
                    _ => Answer::Failed(describe(&status)),
                };
                (answer, cache_status(status.metadata()), None)
            }
        };
        let page = Page {
            start,
            end,
            cache,
            answer,
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

/// Why a call failed, in the service's own words.
fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// An error in a line.
pub(super) fn describe(status: &Status) -> String {
    match reason(status) {
        Some(reason) => format!("{:?} {reason}", status.code()),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// Whether a failed write has changed nothing, and never will, by what the contract says. Whatever
/// the service itself doesn't say is in doubt, but for a connection that was never made.
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
