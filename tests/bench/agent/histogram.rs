//! Reads one histogram out of Prometheus' text format, summed over all its labels.

use std::collections::BTreeMap;

/// Counts by upper bound, in nanoseconds: each includes those below it.
#[derive(Debug, Default, Clone)]
pub struct Histogram(BTreeMap<u64, u64>);

impl Histogram {
    /// The histogram `name` in `text`; empty when there is none.
    pub fn read(text: &str, name: &str) -> Self {
        let mut sums = BTreeMap::new();
        let start = format!("{name}_bucket{{");
        for line in text.lines().filter_map(|line| line.strip_prefix(&start)) {
            let bound = line
                .split_once("le=\"")
                .and_then(|(_, rest)| rest.split('"').next());
            let count = line
                .rsplit(' ')
                .next()
                .and_then(|count| count.parse::<u64>().ok());
            let (Some(bound), Some(count)) = (bound, count) else {
                continue;
            };
            let ns = match bound.parse::<f64>() {
                Ok(seconds) if seconds.is_finite() => (seconds * 1e9).round() as u64,
                _ => u64::MAX,
            };
            *sums.entry(ns).or_insert(0) += count;
        }
        Self(sums)
    }

    /// What has come since an earlier look.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound| earlier.0.get(bound).copied().unwrap_or(0);
        let grown = self.0.iter();
        Self(
            grown
                .map(|(bound, count)| (*bound, count.saturating_sub(before(bound))))
                .collect(),
        )
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.values().last().copied().unwrap_or(0)
    }

    /// Upper bound in milliseconds of the bucket that this share of all lies in; infinite beyond the
    /// last bound. `None`: there is nothing.
    pub fn bound_ms(&self, share: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let found = self.0.iter().find(|(_, count)| **count >= wanted.max(1));
        found.map(|(bound, _)| match *bound {
            u64::MAX => f64::INFINITY,
            ns => ns as f64 / 1e6,
        })
    }
}
