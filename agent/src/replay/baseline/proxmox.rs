//! Ballooning in Proxmox' form: every 10 s at most 100 MiB towards a host whose memory is used to
//! 80 %. It goes by the host's memory and not by the guest's need; CPUs are not scaled at all.
//!
//! The host is one that has just enough for the instance at its upper bound, with nothing else on
//! it, and what the instance holds is used.

use concertina_api::Bytes;
use concertina_api::policy::PolicyBounds;

use super::super::scaler::{Order, Scaler, Seen};
use super::next_tick;
use crate::policy::Size;

const PERIOD_MS: u64 = 10_000;
const HOST_PERCENT: u64 = 80;
const MOST_CHANGE: u64 = 100 * Bytes::MIB;
/// A smaller way to go is not gone.
const LEAST_CHANGE: u64 = 10 * Bytes::MIB;

/// See the module.
#[derive(Debug)]
pub(super) struct Proxmox {
    /// What the host may use, in bytes.
    goal: u64,
}

impl Proxmox {
    pub(super) fn new(bounds: &PolicyBounds) -> Self {
        Self {
            goal: bounds.memory.max.get() / 100 * HOST_PERCENT,
        }
    }
}

impl Scaler for Proxmox {
    fn first(&self, bounds: &PolicyBounds) -> Size {
        Size {
            cpus: bounds.cpus.max,
            memory: bounds.memory.min,
        }
    }

    fn next_look_ms(&self, now_ms: u64) -> u64 {
        next_tick(now_ms, PERIOD_MS)
    }

    fn look(&mut self, _seen: &Seen, size: &Size, _now_ms: u64) -> Order {
        let size = size.memory.get();
        let memory = (size.abs_diff(self.goal) > LEAST_CHANGE).then(|| {
            self.goal.clamp(
                size.saturating_sub(MOST_CHANGE),
                size.saturating_add(MOST_CHANGE),
            )
        });
        Order {
            memory,
            ..Order::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::scaler;

    #[test]
    fn eight_gibibytes_take_it_minutes() {
        let bounds = PolicyBounds {
            cpus: "1..4".parse().unwrap(),
            memory: "256M..10G".parse().unwrap(),
        };
        let mut proxmox = Proxmox::new(&bounds);
        let (mut memory, mut looks) = (bounds.memory.min.get(), 0);
        let mut look = |memory| {
            let size = scaler::size(4000, memory);
            proxmox.look(&Seen::default(), &size, 0).memory
        };
        while let Some(next) = look(memory) {
            (memory, looks) = (next, looks + 1);
        }
        assert_eq!(Bytes(memory), Bytes(10 * Bytes::GIB / 100 * 80));
        // 820 s for 8 GiB.
        assert_eq!(looks * PERIOD_MS, 800_000);
    }
}
