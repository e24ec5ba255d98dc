//! The vertical autoscaler of Kubernetes: decaying histograms of use, a target at the 90th
//! percentile, and a change only when the size is outside of [50th, 95th], or after 12 hours when it
//! is a tenth off. It looks once a minute.
//!
//! As in the original, memory goes by its peak of each 24 hours, a guest that was out of memory
//! counts as one that wanted a fifth more, and the bounds are wide while there is little history.
//! Unlike the original it does not restart what it resizes.

use concertina_api::Bytes;
use concertina_api::policy::Axis;

use super::super::scaler::{Ended, Order, Scaler, Seen};
use super::next_tick;
use crate::policy::Size;

const PERIOD_MS: u64 = 60_000;
const DAY_MS: f64 = 86_400_000.0;
/// A sample's weight halves in this time.
const HALF_LIFE_MS: f64 = DAY_MS;
/// Peaks of memory are of this time.
const PEAK_WINDOW_MS: u64 = 86_400_000;
/// Each bucket is so much wider than the one before.
const GROWTH: f64 = 1.05;
/// From 1 % of a CPU to beyond any machine.
const BUCKETS: usize = 400;
const FIRST_CPU_BUCKET: f64 = 10.0;
const FIRST_MEMORY_BUCKET: f64 = 1e7;
const MARGIN: f64 = 1.15;
/// After this long, what is so far off is changed within the bounds too.
const PATIENCE_MS: u64 = 12 * 3_600_000;
const OFF: f64 = 0.1;
/// What a guest out of memory is taken to have wanted.
const OOM_RATIO: f64 = 1.2;
const OOM_LEAST: u64 = 100 * Bytes::MIB;

/// Weights of values in buckets that grow exponentially.
#[derive(Debug)]
struct Histogram {
    first: f64,
    weights: Vec<f64>,
    total: f64,
    /// The time at which a sample weighs 1; weights are rescaled before they grow out of range.
    reference_ms: u64,
}

impl Histogram {
    fn new(first: f64) -> Self {
        Self {
            first,
            weights: vec![0.0; BUCKETS],
            total: 0.0,
            reference_ms: 0,
        }
    }

    fn bucket(&self, value: f64) -> usize {
        let index = (value * (GROWTH - 1.0) / self.first + 1.0).ln() / GROWTH.ln();
        (index as usize).min(BUCKETS - 1)
    }

    /// Where a bucket ends.
    fn end(&self, bucket: usize) -> f64 {
        let power = GROWTH.powi(i32::try_from(bucket + 1).unwrap_or(i32::MAX));
        self.first * (power - 1.0) / (GROWTH - 1.0)
    }

    fn weight_at(&mut self, now_ms: u64) -> f64 {
        let ages = (now_ms.saturating_sub(self.reference_ms)) as f64 / HALF_LIFE_MS;
        if ages > 100.0 {
            let scale = (-ages).exp2();
            self.weights.iter_mut().for_each(|weight| *weight *= scale);
            self.total *= scale;
            self.reference_ms = now_ms;
            return 1.0;
        }
        ages.exp2()
    }

    fn add(&mut self, value: f64, now_ms: u64) {
        let (bucket, weight) = (self.bucket(value), self.weight_at(now_ms));
        if let Some(at) = self.weights.get_mut(bucket) {
            *at += weight;
            self.total += weight;
        }
    }

    /// Takes back what was added as of `then_ms`.
    fn remove(&mut self, value: f64, then_ms: u64) {
        let (bucket, weight) = (self.bucket(value), self.weight_at(then_ms));
        if let Some(at) = self.weights.get_mut(bucket) {
            let weight = weight.min(*at);
            *at -= weight;
            self.total -= weight;
        }
    }

    /// The end of the bucket in which so much of the weight is reached.
    fn percentile(&self, share: f64) -> f64 {
        let mut sum = 0.0;
        let reached = self.weights.iter().position(|weight| {
            sum += weight;
            sum >= share * self.total
        });
        self.end(reached.unwrap_or(BUCKETS - 1))
    }
}

/// One axis.
#[derive(Debug)]
struct Recommender {
    histogram: Histogram,
    began_ms: Option<u64>,
    samples: u64,
    changed_ms: u64,
}

impl Recommender {
    fn new(first: f64) -> Self {
        Self {
            histogram: Histogram::new(first),
            began_ms: None,
            samples: 0,
            changed_ms: 0,
        }
    }

    /// How much history there is, in days of one sample a minute.
    fn confidence(&self, now_ms: u64) -> f64 {
        let days = now_ms.saturating_sub(self.began_ms.unwrap_or(now_ms)) as f64 / DAY_MS;
        days.min(self.samples as f64 / (24.0 * 60.0))
    }

    /// Another size, if it is time for one.
    fn next(&self, size: u64, now_ms: u64) -> Option<u64> {
        let confidence = self.confidence(now_ms);
        if self.histogram.total <= 0.0 || confidence <= 0.0 {
            return None;
        }
        let at = |share| self.histogram.percentile(share) * MARGIN;
        let size = size as f64;
        let lower = at(0.5) * (1.0 + 0.001 / confidence).powi(-2);
        let upper = at(0.95) * (1.0 + 1.0 / confidence);
        let target = at(0.9);
        let outside = size < lower || size > upper;
        let overdue = now_ms.saturating_sub(self.changed_ms) >= PATIENCE_MS;
        let off = (target - size).abs() >= size * OFF;
        (outside || (overdue && off)).then_some(target.round() as u64)
    }
}

/// The peak of memory in the current window.
#[derive(Debug, Clone, Copy)]
struct Peak {
    began_ms: u64,
    value: f64,
    /// When it was added to the histogram.
    added_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Vpa {
    cpus: Recommender,
    memory: Recommender,
    peak: Option<Peak>,
}

impl Vpa {
    pub(super) fn new() -> Self {
        Self {
            cpus: Recommender::new(FIRST_CPU_BUCKET),
            memory: Recommender::new(FIRST_MEMORY_BUCKET),
            peak: None,
        }
    }

    fn learn_memory(&mut self, value: f64, now_ms: u64) {
        let histogram = &mut self.memory.histogram;
        let is_over = |peak: &Peak| now_ms.saturating_sub(peak.began_ms) >= PEAK_WINDOW_MS;
        match self.peak.filter(|peak| !is_over(peak)) {
            Some(peak) if value <= peak.value => return,
            Some(peak) => {
                histogram.remove(peak.value, peak.added_ms);
                self.peak = Some(Peak {
                    value,
                    added_ms: now_ms,
                    ..peak
                });
            }
            None => {
                self.peak = Some(Peak {
                    began_ms: now_ms,
                    value,
                    added_ms: now_ms,
                });
            }
        }
        histogram.add(value, now_ms);
    }
}

impl Scaler for Vpa {
    fn next_look_ms(&self, now_ms: u64) -> u64 {
        next_tick(now_ms, PERIOD_MS)
    }

    fn look(&mut self, seen: &Seen, size: &Size, now_ms: u64) -> Order {
        if let Some(used) = seen.cpus_used {
            self.cpus.histogram.add(used, now_ms);
            self.cpus.samples += 1;
            self.cpus.began_ms.get_or_insert(now_ms);
        }
        if let Some(used) = seen.memory_used {
            let had = size.of(Axis::Memory);
            let least = had.saturating_add(OOM_LEAST) as f64;
            let wanted = (had as f64 * OOM_RATIO).max(least);
            let value = if seen.memory_short {
                wanted
            } else {
                used as f64
            };
            self.learn_memory(value, now_ms);
            self.memory.samples += 1;
            self.memory.began_ms.get_or_insert(now_ms);
        }
        Order {
            cpus: self.cpus.next(size.of(Axis::Cpus), now_ms),
            memory: self.memory.next(size.of(Axis::Memory), now_ms),
            careful: false,
        }
    }

    fn ended(&mut self, ended: &Ended, now_ms: u64) -> bool {
        match ended.axis {
            Axis::Cpus => self.cpus.changed_ms = now_ms,
            Axis::Memory => self.memory.changed_ms = now_ms,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_MS: u64 = 60_000;

    #[test]
    fn buckets_grow_by_a_twentieth_and_percentiles_are_their_ends() {
        let mut histogram = Histogram::new(10.0);
        assert_eq!((histogram.bucket(0.0), histogram.bucket(9.9)), (0, 0));
        assert_eq!((histogram.bucket(10.1), histogram.bucket(20.6)), (1, 2));
        for value in 0..100 {
            histogram.add(f64::from(value) * 10.0, 0);
        }
        let p90 = histogram.percentile(0.9);
        assert!((890.0..945.0).contains(&p90), "{p90}");
    }

    #[test]
    fn a_sample_weighs_half_after_a_day() {
        let mut histogram = Histogram::new(10.0);
        let day = DAY_MS as u64;
        for days in [0, 1, 2, 300] {
            histogram.add(if days < 300 { 100.0 } else { 1000.0 }, days * day);
        }
        assert!(
            histogram.percentile(0.01) > 900.0,
            "what is old is forgotten"
        );
        let mut histogram = Histogram::new(10.0);
        histogram.add(100.0, 0);
        histogram.add(1000.0, day);
        assert!(histogram.percentile(0.33) < 115.0);
        assert!(histogram.percentile(0.34) > 900.0);
    }

    #[test]
    fn a_step_up_is_followed_after_hours() {
        let mut cpus = Recommender::new(FIRST_CPU_BUCKET);
        cpus.began_ms = Some(0);
        let mut learn = |minutes: std::ops::Range<u64>, value: f64| {
            minutes
                .map(|minute| {
                    cpus.histogram.add(value, minute * MINUTE_MS);
                    cpus.samples += 1;
                    cpus.histogram.percentile(0.9)
                })
                .collect::<Vec<f64>>()
        };
        let week = 7 * 24 * 60;
        learn(0..week, 1000.0);
        let after = learn(week..week + 600, 3000.0);
        let minutes = after.iter().position(|p90| *p90 >= 3000.0).unwrap();
        // 3.6 h, as published.
        assert!((210..225).contains(&minutes), "{minutes}");
    }

    #[test]
    fn memory_goes_by_the_peak_of_a_day() {
        let mut vpa = Vpa::new();
        for minute in 0..600 {
            let peak = if minute == 100 { 3e9 } else { 1e9 };
            vpa.learn_memory(peak, minute * MINUTE_MS);
        }
        assert!(vpa.memory.histogram.percentile(0.01) >= 3e9);
        assert_eq!(vpa.memory.histogram.total.round(), 1.0);
    }
}
