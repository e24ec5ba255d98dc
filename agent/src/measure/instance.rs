//! What is counted of one instance.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use concertina_api::policy::Metric;

use crate::policy::Observations;

/// Metrics whose last value is kept.
pub const SIGNALS: [Metric; 7] = [
    Metric::Cpu,
    Metric::CpuPressure,
    Metric::CpuSteal,
    Metric::Memory,
    Metric::MemoryPressure,
    Metric::MemoryAvailable,
    Metric::IoPressure,
];

/// Numbers of one instance.
#[derive(Debug)]
pub struct InstanceMeasures {
    /// In the order of [`SIGNALS`], each the bits of a number; not a number: unknown.
    signals: [AtomicU64; SIGNALS.len()],
    looks: AtomicU64,
    agent_cpu_ns: AtomicU64,
}

impl Default for InstanceMeasures {
    fn default() -> Self {
        Self {
            signals: std::array::from_fn(|_| AtomicU64::new(f64::NAN.to_bits())),
            looks: AtomicU64::new(0),
            agent_cpu_ns: AtomicU64::new(0),
        }
    }
}

impl InstanceMeasures {
    /// Keeps what a look has seen. What it has not seen is unknown from here on.
    pub fn looked(&self, seen: &Observations) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        for (place, metric) in self.signals.iter().zip(&SIGNALS) {
            let value = seen
                .samples
                .get(metric)
                .map_or(f64::NAN, |sample| sample.value);
            place.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    /// The last value of one of [`SIGNALS`]: percent, or bytes; `None`: unknown.
    pub fn signal(&self, metric: &Metric) -> Option<f64> {
        let place = SIGNALS.iter().position(|kept| kept == metric)?;
        let value = f64::from_bits(self.signals.get(place)?.load(Ordering::Relaxed));
        value.is_finite().then_some(value)
    }

    /// How often it was looked at.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Adds CPU time that the agent has spent in watching this instance.
    pub fn spent(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.agent_cpu_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// CPU time that the agent has spent in watching it, in nanoseconds.
    pub fn agent_cpu_ns(&self) -> u64 {
        self.agent_cpu_ns.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Sample;

    #[test]
    fn what_the_last_look_did_not_see_is_unknown() {
        let measures = InstanceMeasures::default();
        assert_eq!(measures.signal(&Metric::Cpu), None);
        let mut seen = Observations::default();
        let sample = |value| Sample { value, at_ms: 1 };
        seen.samples.insert(Metric::Cpu, sample(42.0));
        seen.samples.insert(Metric::Memory, sample(f64::NAN));
        measures.looked(&seen);
        assert_eq!(measures.signal(&Metric::Cpu), Some(42.0));
        assert_eq!(measures.signal(&Metric::Memory), None);
        measures.looked(&Observations::default());
        assert_eq!(measures.signal(&Metric::Cpu), None);
        assert_eq!(measures.looks(), 2);
    }
}
