//! Metrics in Prometheus's text format, made of the service's own counts when they are scraped.
//!
//! Every series exists from the start, and no label has a caller's text.

mod family;
mod http;
mod process;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{TextEncoder, proto::MetricFamily};

use self::family::{counter, counters, float, gauge, gauges, histogram, histograms};
pub use self::http::MetricsPort;
use super::{
    connections::Connections,
    observe::{CODES, Calls},
};
use crate::{service::Service, telemetry::BUCKETS, tls::ServerTls};

/// The sources of the metrics.
pub struct Metrics {
    pub calls: Arc<Calls>,
    pub connections: Arc<Connections>,
    pub service: Service,
    pub tls: Option<Arc<ServerTls>>,
}

impl Metrics {
    /// The current values as text.
    pub fn encode(&self) -> String {
        let mut families = vec![gauges(
            "location_service_build_info",
            "The version of the service.",
            vec![gauge(&[("version", env!("CARGO_PKG_VERSION"))], 1.0)],
        )];
        families.extend(self.of_calls());
        families.extend(self.of_service());
        families.extend(process::families());
        let mut text = String::new();
        // Fails only if a family is empty.
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
            tracing::error!(%error, "the metrics can't be encoded");
        }
        text
    }

    fn of_calls(&self) -> [MetricFamily; 7] {
        let (mut started, mut handled, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
        for (method, sums) in self.calls.sums() {
            let labels = [
                ("grpc_type", method.kind),
                ("grpc_service", &*method.service),
                ("grpc_method", &*method.name),
            ];
            started.push(counter(&labels, sums.started));
            for (code, count) in CODES.into_iter().zip(sums.handled) {
                let [kind, service, name] = labels;
                handled.push(counter(&[kind, service, name, ("grpc_code", code)], count));
            }
            seconds.push(histogram(&labels, &sums.buckets, sums.seconds));
        }
        let refusals = self.calls.refusals();
        let refusals = refusals.map(|(reason, count)| counter(&[("reason", reason)], count));
        [
            counters(
                "grpc_server_started_total",
                "Calls that have started.",
                started,
            ),
            counters(
                "grpc_server_handled_total",
                "Calls that have ended, however they ended.",
                handled,
            ),
            histograms(
                "grpc_server_handling_seconds",
                "Seconds from the start of a call to the end of its response.",
                seconds,
            ),
            counters(
                "location_service_refusals_total",
                "Calls that a limit has refused.",
                refusals.collect(),
            ),
            single(
                "location_service_connections",
                "Open connections of clients.",
                float(self.connections.open() as u64),
            ),
            // Dashboards have panels for them.
            single(
                "location_service_watchers",
                "Streams that watch locations. 0: no method watches yet.",
                0.0,
            ),
            single(
                "location_service_watch_lag_seconds",
                "The age of the oldest change that a stream hasn't been sent. 0: no method watches yet.",
                0.0,
            ),
        ]
    }

    fn of_service(&self) -> Vec<MetricFamily> {
        let stats = self.service.stats();
        let cache = stats.cache;
        let reads = stats.reads.counts();
        let reads = reads.map(|(method, result, count)| {
            counter(&[("method", method), ("result", result)], count)
        });
        let fills = [("stored", cache.fills), ("rejected", cache.rejected_fills)];
        let fills = fills.map(|(result, count)| counter(&[("result", result)], count));
        let errors = cache.errors();
        let errors = errors.map(|(kind, count)| counter(&[("kind", kind)], count));
        let connections = stats.store.pools.iter().flat_map(|pool| {
            [("used", pool.used), ("idle", pool.idle)].map(|(state, count)| {
                gauge(
                    &[("pool", pool.name), ("state", state)],
                    float(count as u64),
                )
            })
        });
        let operations = stats.store.operations.iter().map(|(name, durations)| {
            let (mut buckets, mut sum) = ([0; BUCKETS.len() + 1], std::time::Duration::ZERO);
            durations.add_to(&mut buckets, &mut sum);
            histogram(&[("operation", name)], &buckets, sum)
        });
        vec![
            counters(
                "location_service_cache_reads_total",
                "Calls of cached methods, by the tier of the hit, or the reason why the database was read.",
                reads.collect(),
            ),
            counters(
                "location_service_cache_fills_total",
                "Responses that were read for the cache, by whether they were stored.",
                fills.to_vec(),
            ),
            counters(
                "location_service_cache_closed_tags_total",
                "Tags that writes and invalidations have closed.",
                vec![counter(&[], cache.invalidations)],
            ),
            counters(
                "location_service_cache_errors_total",
                "Steps of the cache that failed.",
                errors.collect(),
            ),
            single(
                "location_service_cache_entries",
                "Cached responses in the process.",
                float(cache.local_entries),
            ),
            single(
                "location_service_cache_bytes",
                "Bytes of the cached responses in the process.",
                float(cache.local_bytes),
            ),
            single(
                "location_service_cache_active",
                "1 if responses are served from the cache, 0 if it is suspended.",
                f64::from(u8::from(cache.active)),
            ),
            single(
                "location_service_cache_epoch",
                "The epoch of the shared cache, which grows when it is suspended or activated; 0 \
                 without a shared cache.",
                float(cache.epoch),
            ),
            gauges(
                "location_service_database_connections",
                "Open connections to the database.",
                connections.collect(),
            ),
            histograms(
                "location_service_database_seconds",
                "Seconds of operations on the database, with the wait for a connection.",
                operations.collect(),
            ),
            single(
                "location_service_calls_waiting",
                "Calls that wait for their turn to use the database.",
                float(stats.waiting as u64),
            ),
            single(
                "location_service_tls_certificate_expiry_seconds",
                "The Unix time at which the certificate expires; +Inf without one.",
                self.tls
                    .as_ref()
                    .map_or(f64::INFINITY, |tls| unix_seconds(tls.expiry())),
            ),
        ]
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

fn single(name: &str, help: &str, value: f64) -> MetricFamily {
    gauges(name, help, vec![gauge(&[], value)])
}
