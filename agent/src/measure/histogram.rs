//! A histogram of durations that many threads count into without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds, each inclusive: from a quota that is set to a guest that
/// takes its time. Beyond the last one everything is one bucket.
pub const BOUNDS_US: [u64; 19] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 30_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Counts by duration.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS_US.len()],
    beyond: AtomicU64,
    sum_ns: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// How many were at most [`BOUNDS_US`] of the same index; each includes those before it.
    pub at_most: [u64; BOUNDS_US.len()],
    /// How many in all.
    pub count: u64,
    /// Sum of all, in nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, time: Duration) {
        let us = time.as_nanos().div_ceil(1000);
        let place = BOUNDS_US.iter().position(|bound| us <= u128::from(*bound));
        let bucket = place.and_then(|place| self.counts.get(place));
        bucket
            .unwrap_or(&self.beyond)
            .fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Reads it. What is counted meanwhile may be in the sum and not in the counts.
    pub fn counts(&self) -> Counts {
        let mut count = 0;
        let mut at_most = [0; BOUNDS_US.len()];
        for (sum, bucket) in at_most.iter_mut().zip(&self.counts) {
            count += bucket.load(Ordering::Relaxed);
            *sum = count;
        }
        Counts {
            at_most,
            count: count + self.beyond.load(Ordering::Relaxed),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for time in [
            Duration::ZERO,
            Duration::from_micros(100),
            Duration::from_nanos(100_001),
            Duration::from_secs(60),
            Duration::from_secs(61),
        ] {
            histogram.observe(time);
        }
        let counts = histogram.counts();
        assert_eq!(counts.at_most[..2], [2, 3], "a bound belongs to its bucket");
        assert_eq!(counts.at_most[BOUNDS_US.len() - 2..], [3, 4]);
        assert_eq!(counts.count, 5, "what is beyond the last bound counts too");
        assert_eq!(counts.sum_ns, 121_000_200_001);
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS_US.is_sorted_by(|a, b| a < b));
    }
}
