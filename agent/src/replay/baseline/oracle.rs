//! The oracle: knows the trace, and has at each change of the demand the size that is wanted, as soon
//! as actuation lets it. It shows what no scaler can be better than, but for actuation ahead of time.

use concertina_api::policy::PolicyBounds;

use super::super::demand::{Demand, Wanted};
use super::super::scaler::{Ended, Order, Scaler, Seen, size};
use crate::policy::Size;

/// See the module.
#[derive(Debug)]
pub(super) struct Oracle<'a>(&'a Demand);

impl<'a> Oracle<'a> {
    pub(super) fn new(demand: &'a Demand) -> Self {
        Self(demand)
    }

    fn at(&self, now_ms: u64) -> (Wanted, u64) {
        self.0.at(now_ms)
    }
}

impl Scaler for Oracle<'_> {
    fn first(&self, bounds: &PolicyBounds) -> Size {
        let (wanted, _) = self.at(0);
        let cpus = bounds.of(concertina_api::policy::Axis::Cpus);
        let memory = bounds.memory;
        size(
            cpus.clamp(wanted.cpus.unwrap_or(0)),
            memory.min.get().max(wanted.memory.unwrap_or(0)),
        )
    }

    fn next_look_ms(&self, now_ms: u64) -> u64 {
        self.at(now_ms).1
    }

    fn look(&mut self, _seen: &Seen, _size: &Size, now_ms: u64) -> Order {
        let (wanted, _) = self.at(now_ms);
        Order {
            cpus: wanted.cpus,
            memory: wanted.memory,
            careful: false,
        }
    }

    fn ended(&mut self, _ended: &Ended, _now_ms: u64) -> bool {
        // The demand may have changed meanwhile.
        true
    }
}
