//! Durations.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

use super::ms;
use crate::history::Micros;

/// Counts of durations, with a precision of a sixteenth.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// By the highest bits of the duration.
    counts: BTreeMap<u32, u64>,
    longest: Micros,
}

const STEPS: u32 = 16;

impl Histogram {
    pub(super) fn add(&mut self, time: Micros) {
        *self.counts.entry(bucket(time)).or_default() += 1;
        self.longest = self.longest.max(time);
    }

    /// The duration that `per_mille` in a thousand of the counted ones don't exceed.
    fn quantile(&self, per_mille: u64) -> Micros {
        let total: u64 = self.counts.values().sum();
        let rank = (total * per_mille).div_ceil(1_000);
        let mut seen = 0;
        for (bucket, count) in &self.counts {
            seen += count;
            if seen >= rank {
                return upper_bound(*bucket).min(self.longest);
            }
        }
        self.longest
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "p50_ms": ms(self.quantile(500)),
            "p90_ms": ms(self.quantile(900)),
            "p99_ms": ms(self.quantile(990)),
            "p999_ms": ms(self.quantile(999)),
            "max_ms": ms(self.longest),
        })
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p999] = [500, 990, 999].map(|per_mille| ms(self.quantile(per_mille)));
        let max = ms(self.longest);
        write!(
            f,
            "p50 {p50:.1} ms, p99 {p99:.1} ms, p99.9 {p999:.0} ms, max {max:.0} ms"
        )
    }
}

/// The bucket of a duration: exact below 16 µs, then 16 per power of two.
fn bucket(time: Micros) -> u32 {
    let bits = Micros::BITS - time.leading_zeros();
    let shift = bits.saturating_sub(STEPS.ilog2() + 1);
    let top = u32::try_from(time >> shift).unwrap_or(u32::MAX);
    shift * STEPS + top
}

/// The longest duration of a bucket.
fn upper_bound(bucket: u32) -> Micros {
    if bucket < 2 * STEPS {
        return bucket.into();
    }
    let shift = bucket / STEPS - 1;
    let top = bucket % STEPS + STEPS;
    ((Micros::from(top) + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_precise_to_a_sixteenth() {
        for time in (0..5_000).chain([123_456, 60_000_000, 3_600_000_000]) {
            let bound = upper_bound(bucket(time));
            assert!(
                bound >= time && bound - time <= time / 16,
                "{time}: {bound}"
            );
            assert_eq!(bucket(bound), bucket(time));
        }
        let mut histogram = Histogram::default();
        for time in 1..=1_000 {
            histogram.add(time);
        }
        assert!((500..=532).contains(&histogram.quantile(500)));
        assert_eq!(histogram.quantile(1_000), 1_000);
    }
}
