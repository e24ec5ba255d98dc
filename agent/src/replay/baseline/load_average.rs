//! A goal from the load average, in NeonVM's form: compute units of a quarter of a CPU and 1 GiB;
//! as many of them as keep the load below 90 % of the CPUs and the memory below 75 %. It looks every
//! 5 s, and follows as slowly as a load average over a minute does.

use concertina_api::Bytes;

use super::super::scaler::{Order, Scaler, Seen};
use super::next_tick;
use crate::policy::Size;

const PERIOD_MS: u64 = 5_000;
/// CPUs of one unit.
const UNIT_CPUS: f64 = 0.25;
/// Memory of one unit, in bytes.
const UNIT_MEMORY: u64 = Bytes::GIB;
/// Load that one CPU carries.
const LOAD_PER_CPU: f64 = 0.9;
/// Share of the memory that may be used.
const MEMORY_SHARE: f64 = 0.75;
/// Memory on top of what is used, in bytes.
const MEMORY_EXTRA: u64 = 100 * Bytes::MIB;

/// See the module.
#[derive(Debug)]
pub(super) struct LoadAverage;

/// Units for what is known of the load.
fn goal(seen: &Seen) -> Option<u64> {
    let cpus = seen.load1.map(|load| load / LOAD_PER_CPU / UNIT_CPUS);
    let memory = seen
        .memory_used
        .map(|used| (used + MEMORY_EXTRA) as f64 / MEMORY_SHARE / UNIT_MEMORY as f64);
    let units = cpus.into_iter().chain(memory).max_by(f64::total_cmp)?;
    Some(units.ceil() as u64)
}

impl Scaler for LoadAverage {
    fn next_look_ms(&self, now_ms: u64) -> u64 {
        next_tick(now_ms, PERIOD_MS)
    }

    fn look(&mut self, seen: &Seen, _size: &Size, _now_ms: u64) -> Order {
        let goal = goal(seen);
        Order {
            cpus: goal.map(|units| units * (UNIT_CPUS * 1000.0) as u64),
            memory: goal.map(|units| units.saturating_mul(UNIT_MEMORY)),
            careful: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_need_gives_the_number_of_units() {
        let goal = |load1, used_mib: Option<u64>| {
            goal(&Seen {
                load1,
                memory_used: used_mib.map(|mib| mib * Bytes::MIB),
                ..Seen::default()
            })
        };
        // 8 tasks: 8.9 CPUs.
        assert_eq!(goal(Some(8.0), None), Some(36));
        assert_eq!(goal(Some(0.2), Some(100)), Some(1));
        // 3 GiB and 100 MiB are three quarters of 4.13 GiB.
        assert_eq!(goal(Some(0.2), Some(3072)), Some(5));
        assert_eq!(goal(None, None), None);
    }
}
