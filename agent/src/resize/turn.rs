//! The order of requests: of two for the same axis the newer one wins, and the older one is told so.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use concertina_api::policy::Axis;

use super::{Order, lock};

/// Numbers the orders of one instance.
#[derive(Debug, Default)]
pub(super) struct Turns {
    last: AtomicU64,
    /// The newest order by hand.
    cpus: Mutex<Newest>,
    memory: Mutex<Newest>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Newest {
    turn: u64,
    target: String,
}

impl Turns {
    /// Gives an order its number. One by hand overtakes all before it on its axes.
    pub fn take(&self, order: &Order) -> u64 {
        let turn = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        if order.is_manual() {
            let overtake = |newest: &Mutex<Newest>, target: Option<String>| {
                let mut newest = lock(newest);
                if let Some(target) = target.filter(|_| newest.turn < turn) {
                    *newest = Newest { turn, target };
                }
            };
            overtake(&self.cpus, order.cpus.map(|cpus| format!("{cpus} CPUs")));
            overtake(&self.memory, order.memory.map(|memory| memory.to_string()));
        }
        turn
    }

    /// Why the order of this number must not begin, or go on.
    pub fn overtaken(&self, axis: Axis, turn: u64) -> Option<String> {
        if self.is_closed() {
            return Some("The agent is ending: nothing is begun".into());
        }
        let newest = lock(match axis {
            Axis::Cpus => &self.cpus,
            Axis::Memory => &self.memory,
        });
        (newest.turn > turn).then(|| {
            format!(
                "Superseded by a newer request, which asks for {}",
                newest.target
            )
        })
    }

    /// Nothing begins any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether nothing begins any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resize::Cause;
    use concertina_api::{Bytes, Cpus};
    use std::time::Duration;

    #[test]
    fn a_newer_request_overtakes_on_its_own_axes_only() {
        let turns = Turns::default();
        let order = |cpus: Option<u32>, memory: Option<u64>| {
            let memory = memory.map(Bytes::mib);
            Order::manual(cpus.map(Cpus), memory, Duration::from_secs(1))
        };
        let first = turns.take(&order(Some(1000), Some(512)));
        assert_eq!(turns.overtaken(Axis::Cpus, first), None);
        let second = turns.take(&order(None, Some(768)));
        assert_eq!(turns.overtaken(Axis::Cpus, first), None);
        let why = turns.overtaken(Axis::Memory, first).unwrap();
        assert!(why.contains("768M"), "{why}");
        assert_eq!(turns.overtaken(Axis::Memory, second), None);
    }

    #[test]
    fn a_rule_overtakes_nobody() {
        let turns = Turns::default();
        let by_hand = Order::manual(Some(Cpus(1000)), None, Duration::from_secs(1));
        let first = turns.take(&by_hand);
        turns.take(&Order {
            cause: Cause::Rules(vec!["rule".into()]),
            ..by_hand
        });
        assert_eq!(turns.overtaken(Axis::Cpus, first), None);
    }
}
