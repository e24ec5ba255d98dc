//! The scaler of many scripts: every five minutes one step, by the value of that moment, and what
//! cannot be read is 0. The negative control: it has to lose.

use concertina_api::Bytes;
use concertina_api::policy::Axis;

use super::super::scaler::{Order, Scaler, Seen};
use super::next_tick;
use crate::policy::Size;

const PERIOD_MS: u64 = 300_000;
const GROW_PERCENT: f64 = 80.0;
const SHRINK_PERCENT: f64 = 20.0;
/// One CPU, in thousandths.
const CPU_STEP: u64 = 1000;
const MEMORY_STEP: u64 = Bytes::GIB;

/// See the module.
#[derive(Debug)]
pub(super) struct Naive;

fn next(percent: Option<f64>, size: u64, step: u64) -> Option<u64> {
    let percent = percent.unwrap_or(0.0);
    if percent > GROW_PERCENT {
        Some(size.saturating_add(step))
    } else if percent < SHRINK_PERCENT {
        Some(size.saturating_sub(step))
    } else {
        None
    }
}

impl Scaler for Naive {
    fn next_look_ms(&self, now_ms: u64) -> u64 {
        next_tick(now_ms, PERIOD_MS)
    }

    fn look(&mut self, seen: &Seen, size: &Size, _now_ms: u64) -> Order {
        let next = |axis, step| next(seen.percent(axis, size), size.of(axis), step);
        Order {
            cpus: next(Axis::Cpus, CPU_STEP),
            memory: next(Axis::Memory, MEMORY_STEP),
            careful: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_by_steps_and_takes_an_error_for_an_idle_machine() {
        assert_eq!(next(Some(81.0), 2000, 1000), Some(3000));
        assert_eq!(next(Some(50.0), 2000, 1000), None);
        assert_eq!(next(Some(19.0), 2000, 1000), Some(1000));
        assert_eq!(next(None, 2000, 1000), Some(1000));
    }
}
