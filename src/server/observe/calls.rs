//! Counts of calls, with the names and labels of `go-grpc-prometheus`.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use prost_reflect::DescriptorPool;
use tonic::Code;

use crate::{
    api::REFUSALS,
    proto::DESCRIPTORS,
    telemetry::{BUCKETS, Counter, Histogram},
};

/// The codes by number, as Go spells them.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Methods of other packages: their type, service and name.
const OTHER_METHODS: [(&str, &str, &str); 4] = [
    ("unary", "grpc.health.v1.Health", "Check"),
    ("server_stream", "grpc.health.v1.Health", "Watch"),
    (
        "bidi_stream",
        "grpc.reflection.v1.ServerReflection",
        "ServerReflectionInfo",
    ),
    (
        "bidi_stream",
        "grpc.reflection.v1alpha.ServerReflection",
        "ServerReflectionInfo",
    ),
];

/// Copies of the counts. A thread adds to one of them, so that threads rarely contend.
const SHARDS: usize = 4;

/// The counts of all calls by method. Unknown methods share one.
pub struct Calls {
    methods: Vec<Method>,
    /// The counts of each method.
    shards: [Vec<Counts>; SHARDS],
    /// By the index in [`REFUSALS`].
    refusals: [Counter; REFUSALS.len()],
}

/// A method.
pub struct Method {
    /// `unary`, or the kind of stream.
    pub kind: &'static str,
    /// The full name of its service.
    pub service: String,
    /// Its name.
    pub name: String,
    /// The path of its calls.
    path: String,
}

/// The counts of a method. Aligned so that no two threads' counts share a cache line.
#[repr(align(128))]
#[derive(Default)]
struct Counts {
    started: Counter,
    /// By code.
    handled: [Counter; CODES.len()],
    seconds: Histogram,
}

/// The sum of a method's counts.
#[derive(Default)]
pub struct Sums {
    /// Calls that have started.
    pub started: u64,
    /// Calls that have ended, by code.
    pub handled: [u64; CODES.len()],
    /// Calls that have ended, by the bucket of their duration.
    pub buckets: [u64; BUCKETS.len() + 1],
    /// The duration of all calls that have ended.
    pub seconds: Duration,
}

impl Calls {
    /// Starts all counts at zero.
    pub fn new() -> Self {
        let pool = DescriptorPool::decode(DESCRIPTORS)
            .unwrap_or_else(|_| unreachable!("the build made the descriptors"));
        let mut methods = Vec::new();
        let mut add = |kind, service: &str, name: &str| {
            methods.push(Method {
                kind,
                service: service.to_owned(),
                name: name.to_owned(),
                path: format!("/{service}/{name}"),
            });
        };
        for service in pool.services() {
            for method in service.methods() {
                let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                    (false, false) => "unary",
                    (false, true) => "server_stream",
                    (true, false) => "client_stream",
                    (true, true) => "bidi_stream",
                };
                add(kind, service.full_name(), method.name());
            }
        }
        for (kind, service, name) in OTHER_METHODS {
            add(kind, service, name);
        }
        methods.push(Method {
            kind: "unary",
            service: "unknown".to_owned(),
            name: "unknown".to_owned(),
            path: "unknown".to_owned(),
        });
        let counts = || methods.iter().map(|_| Counts::default()).collect();
        Self {
            shards: std::array::from_fn(|_| counts()),
            refusals: Default::default(),
            methods,
        }
    }

    /// The index of a path's method. The last one stands for unknown methods.
    pub fn method(&self, path: &str) -> usize {
        self.methods
            .iter()
            .position(|method| method.path == path)
            .unwrap_or(self.methods.len() - 1)
    }

    /// The path of a method's calls.
    pub fn path(&self, method: usize) -> &str {
        &self.methods[method].path
    }

    /// Whether an index stands for unknown methods.
    pub fn is_unknown(&self, method: usize) -> bool {
        method == self.methods.len() - 1
    }

    /// Counts a call that has started.
    pub fn start(&self, method: usize) {
        self.shards[shard()][method].started.add(1);
    }

    /// Counts a call that has ended.
    pub fn end(&self, method: usize, code: Code, duration: Duration) {
        let counts = &self.shards[shard()][method];
        counts.handled[code as usize].add(1);
        counts.seconds.record(duration);
    }

    /// Counts a call that a limit has refused.
    pub fn refuse(&self, reason: &str) {
        if let Some(index) = REFUSALS.iter().position(|name| *name == reason) {
            self.refusals[index].add(1);
        }
    }

    /// The methods with their counts.
    pub fn sums(&self) -> impl Iterator<Item = (&Method, Sums)> {
        self.methods.iter().enumerate().map(|(index, method)| {
            let mut sums = Sums::default();
            for shard in &self.shards {
                let counts = &shard[index];
                for (sum, count) in sums.handled.iter_mut().zip(&counts.handled) {
                    *sum += count.get();
                }
                counts.seconds.add_to(&mut sums.buckets, &mut sums.seconds);
                // Last, so that no more calls have ended than have started.
                sums.started += counts.started.get();
            }
            (method, sums)
        })
    }

    /// The refusals, with their reasons.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS
            .into_iter()
            .zip(self.refusals.iter().map(Counter::get))
    }
}

/// The shard of the current thread.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_path_and_no_other() {
        let calls = Calls::new();
        for (index, method) in calls.methods.iter().enumerate() {
            assert_eq!(calls.method(&method.path), index);
            assert_eq!(calls.path(index), method.path);
        }
        for unknown in [
            "",
            "/",
            "/location.v1.LocationService/GetLocatioN",
            "unknown",
        ] {
            assert!(calls.is_unknown(calls.method(unknown)), "{unknown}");
        }
    }
}
