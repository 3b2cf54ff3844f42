//! Counts and durations. Adding to them takes no lock and no allocation.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A monotonic count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count.
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The current count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the buckets of a [`Histogram`]: from a cached hit to the longest deadline.
pub const BUCKETS: [Duration; 16] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

/// Durations, counted in [`BUCKETS`].
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has no upper bound.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// Adds a duration.
    pub fn record(&self, duration: Duration) {
        let bucket = BUCKETS.partition_point(|bound| *bound < duration);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Adds the time until the timer is dropped.
    pub fn time(&self) -> Timer<'_> {
        Timer {
            histogram: self,
            started: Instant::now(),
        }
    }

    /// Adds the number of durations in each bucket to `counts`, and their sum to `sum`.
    pub fn add_to(&self, counts: &mut [u64; BUCKETS.len() + 1], sum: &mut Duration) {
        for (total, count) in counts.iter_mut().zip(&self.buckets) {
            *total += count.load(Ordering::Relaxed);
        }
        *sum += Duration::from_nanos(self.nanos.load(Ordering::Relaxed));
    }
}

/// Measures the time until it is dropped.
pub struct Timer<'a> {
    histogram: &'a Histogram,
    started: Instant,
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.histogram.record(self.started.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for duration in [
            Duration::ZERO,
            BUCKETS[0],
            BUCKETS[0] + Duration::from_nanos(1),
            BUCKETS[15],
            Duration::from_mins(1),
        ] {
            histogram.record(duration);
        }
        let (mut counts, mut sum) = ([0; BUCKETS.len() + 1], Duration::ZERO);
        histogram.add_to(&mut counts, &mut sum);
        let mut expected = [0; BUCKETS.len() + 1];
        (expected[0], expected[1], expected[15], expected[16]) = (2, 1, 1, 1);
        assert_eq!(counts, expected);
        let nanos = 2 * 100_000 + 1 + 90_000_000_000;
        assert_eq!(sum, Duration::from_nanos(nanos));
    }
}
