//! What an instance needs of each axis at this moment, for a host that looks for donors.

use concertina_api::policy::{Axis, Metric, PolicyBounds};

use crate::ledger::Need;
use crate::plan::memory::margin;
use crate::policy::{Observations, Size};
use crate::resize::books::Books;
use concertina_api::Bytes;

/// Room that a donor keeps above the CPU that it uses.
const CPU_ROOM: f64 = 1.25;

/// Tells the books. What is not known, or makes no sense, is told as unknown: it gives nothing.
pub(super) fn tell(books: &dyn Books, seen: &Observations, size: &Size, bounds: &PolicyBounds) {
    let value = |metric: Metric| {
        let sample = seen.samples.get(&metric)?;
        (sample.value.is_finite() && sample.value >= 0.0).then_some(sample.value)
    };
    let cpus = || {
        let used = f64::from(size.cpus.milli()) * value(Metric::Cpu)? / 100.0;
        Some(Need {
            pressure: value(Metric::CpuPressure)?,
            // A product of non-negative finite numbers: the cast saturates at worst.
            least: ((used * CPU_ROOM) as u64).max(bounds.of(Axis::Cpus).min),
        })
    };
    let memory = || {
        let available = value(Metric::MemoryAvailable)? as u64;
        let used = size.memory.get().saturating_sub(available);
        let least = used.saturating_add(margin(Bytes(used)).get());
        Some(Need {
            pressure: value(Metric::MemoryPressure)?,
            least: least.max(bounds.of(Axis::Memory).min),
        })
    };
    books.need([(Axis::Cpus, cpus()), (Axis::Memory, memory())]);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::journal::IntentId;
    use crate::policy::Sample;
    use crate::resize::books::Step;
    use concertina_api::Cpus;

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<(Axis, Option<Need>)>>);

    impl Books for Heard {
        fn begin(&self, _step: &Step<'_>) -> Result<Option<IntentId>, String> {
            Ok(None)
        }

        fn need(&self, needs: [(Axis, Option<Need>); 2]) {
            self.0.lock().unwrap().extend(needs);
        }
    }

    fn told(samples: &[(Metric, f64)]) -> Vec<(Axis, Option<Need>)> {
        let heard = Heard::default();
        let mut seen = Observations::default();
        for (metric, value) in samples {
            let sample = Sample {
                value: *value,
                at_ms: 1,
            };
            seen.samples.insert(metric.clone(), sample);
        }
        let size = Size {
            cpus: Cpus(2000),
            memory: Bytes::mib(1024),
        };
        let bounds = PolicyBounds {
            cpus: "0.5..4".parse().unwrap(),
            memory: "256M..2G".parse().unwrap(),
        };
        tell(&heard, &seen, &size, &bounds);
        heard.0.into_inner().unwrap()
    }

    #[test]
    fn what_is_needed_is_what_is_used_and_some_room() {
        let needs = told(&[
            (Metric::Cpu, 50.0),
            (Metric::CpuPressure, 1.0),
            (Metric::MemoryAvailable, (512u64 << 20) as f64),
            (Metric::MemoryPressure, 0.0),
        ]);
        let need = |axis| needs.iter().find(|need| need.0 == axis).unwrap().1.unwrap();
        assert_eq!(need(Axis::Cpus).least, 1250);
        assert_eq!(need(Axis::Memory).least, (512 + 64) << 20);
    }

    #[test]
    fn one_that_is_not_known_on_all_counts_is_no_donor() {
        let unknown = [(Axis::Cpus, None), (Axis::Memory, None)];
        for samples in [
            &[][..],
            &[(Metric::Cpu, 1.0), (Metric::MemoryAvailable, 1e9)],
            &[(Metric::CpuPressure, 0.0), (Metric::MemoryPressure, 0.0)],
            &[(Metric::Cpu, f64::NAN), (Metric::CpuPressure, 0.0)],
            &[(Metric::Cpu, -1.0), (Metric::CpuPressure, 0.0)],
            &[(Metric::Cpu, 1.0), (Metric::CpuPressure, f64::INFINITY)],
        ] {
            assert_eq!(told(samples), unknown, "{samples:?}");
        }
    }
}
