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
    let cpus = value(Metric::Cpu).map(|percent| {
        let used = f64::from(size.cpus.milli()) * percent / 100.0;
        Need {
            pressure: value(Metric::CpuPressure).unwrap_or(0.0),
            // A sum of non-negative finite numbers: the cast saturates at worst.
            least: ((used * CPU_ROOM) as u64).max(bounds.of(Axis::Cpus).min),
        }
    });
    books.need(Axis::Cpus, cpus);
    let memory = value(Metric::MemoryAvailable).map(|available| {
        let used = size.memory.get().saturating_sub(available as u64);
        let least = used.saturating_add(margin(Bytes(used)).get());
        Need {
            pressure: value(Metric::MemoryPressure).unwrap_or(0.0),
            least: least.max(bounds.of(Axis::Memory).min),
        }
    });
    books.need(Axis::Memory, memory);
}
