//! Builds families of metrics.

use std::time::Duration;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::telemetry::BUCKETS;

pub type Labels<'a> = &'a [(&'static str, &'a str)];

pub fn counters(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::COUNTER, metrics)
}

pub fn gauges(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, metrics)
}

pub fn histograms(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::HISTOGRAM, metrics)
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn metric(labels: Labels<'_>) -> Metric {
    let labels = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(labels.collect())
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no integers")]
pub fn float(number: u64) -> f64 {
    number as f64
}

pub fn counter(labels: Labels<'_>, count: u64) -> Metric {
    seconds(labels, float(count))
}

/// A counter of time.
pub fn seconds(labels: Labels<'_>, count: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(count);
    let mut metric = metric(labels);
    metric.set_counter(counter);
    metric
}

pub fn gauge(labels: Labels<'_>, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = metric(labels);
    metric.set_gauge(gauge);
    metric
}

/// The number of durations in each bucket, and their sum.
pub fn histogram(labels: Labels<'_>, counts: &[u64; BUCKETS.len() + 1], sum: Duration) -> Metric {
    let mut cumulative = 0;
    let buckets = BUCKETS.iter().zip(counts).map(|(bound, count)| {
        cumulative += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound.as_secs_f64());
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(sum.as_secs_f64());
    let mut metric = metric(labels);
    metric.set_histogram(histogram);
    metric
}
