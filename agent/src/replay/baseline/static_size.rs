//! Static provisioning: as large as the trace needs at its 99.5th percentile, and a fifth more. It is
//! told the whole trace, which nobody who provisions is.

use concertina_api::policy::{Axis, PolicyBounds};

use super::super::demand::Demand;
use super::super::scaler::{Order, Scaler, Seen, size};
use crate::policy::Size;

/// The percentile, in thousandths.
const PERMILLE: usize = 995;

/// Never changes its size.
#[derive(Debug)]
pub(super) struct Static(Size);

impl Static {
    pub(super) fn new(demand: &Demand, bounds: &PolicyBounds) -> Self {
        let provisioned = |axis| {
            let mut values: Vec<u64> = demand.values(axis).collect();
            values.sort_unstable();
            let rank = (values.len() * PERMILLE).div_ceil(1000);
            let peak = rank.checked_sub(1).and_then(|rank| values.get(rank));
            let size = peak.map_or(0, |peak| peak.saturating_mul(6) / 5);
            bounds.of(axis).clamp(size)
        };
        Self(size(provisioned(Axis::Cpus), provisioned(Axis::Memory)))
    }
}

impl Scaler for Static {
    fn first(&self, _bounds: &PolicyBounds) -> Size {
        self.0
    }

    fn next_look_ms(&self, _now_ms: u64) -> u64 {
        u64::MAX
    }

    fn look(&mut self, _seen: &Seen, _size: &Size, _now_ms: u64) -> Order {
        Order::default()
    }
}
