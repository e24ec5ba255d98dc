//! The live decision as a scaler: the same function, state and commits as in the agent.

use concertina_api::Bytes;
use concertina_api::policy::{Axis, Direction, Metric, Policy, Rule};

use super::scaler::{Ended, Order, Scaler, Seen};
use crate::policy::{
    MemoryShort, Observations, PolicyState, Sample, Size, decide_in_place, rule_texts,
};

/// An instance's policy at work.
#[derive(Debug)]
pub struct Live {
    policy: Policy,
    texts: Vec<String>,
    state: PolicyState,
    /// The rules behind the changes under way.
    causes: Vec<(Axis, Direction, Vec<String>)>,
}

impl Live {
    /// Under a policy that was checked.
    pub fn new(policy: Policy) -> Self {
        Self {
            texts: rule_texts(&policy),
            policy,
            state: PolicyState::default(),
            causes: Vec::new(),
        }
    }

    /// Rules whose metric a trace does not tell: they stay unknown.
    pub fn blind_rules(policy: &Policy) -> impl Iterator<Item = &Rule> {
        policy.rules.iter().filter(|rule| {
            !matches!(
                rule.metric(),
                Metric::Cpu | Metric::Memory | Metric::MemoryAvailable | Metric::Load1
            )
        })
    }

    fn observe(&self, seen: &Seen, size: &Size, now_ms: u64) -> Observations {
        let available = seen
            .memory_used
            .map(|used| size.memory.get().saturating_sub(used) as f64);
        let values = [
            (Metric::Cpu, seen.cpu_percent(size)),
            (Metric::Load1, seen.load1),
            (Metric::Memory, seen.memory_percent(size)),
            (Metric::MemoryAvailable, available),
        ];
        let sample = |(metric, value): (Metric, Option<f64>)| {
            let at_ms = now_ms;
            value.map(|value| (metric, Sample { value, at_ms }))
        };
        Observations {
            samples: values.into_iter().filter_map(sample).collect(),
            memory_short: seen.memory_short.then_some(MemoryShort::AllocStall),
            cpus_busy: seen.cpus_busy,
            memory_busy: seen.memory_moves == Some(Direction::Grow),
            ..Observations::default()
        }
    }
}

impl Scaler for Live {
    fn next_look_ms(&self, now_ms: u64) -> u64 {
        now_ms + self.policy.shortest_period_ms()
    }

    fn look(&mut self, seen: &Seen, size: &Size, now_ms: u64) -> Order {
        let observed = self.observe(seen, size, now_ms);
        let decision = decide_in_place(
            &self.policy,
            &self.texts,
            &mut self.state,
            &observed,
            size,
            now_ms,
        );
        let mut order = Order {
            careful: true,
            ..Order::default()
        };
        if let Some(wish) = decision.cpus.filter(|_| !observed.cpus_busy) {
            order.cpus = Some(wish.target.milli().into());
            self.causes.push((Axis::Cpus, wish.direction, wish.causes));
        }
        // A shrink under way is interrupted by growth only.
        let wish = decision.memory.filter(|wish| match seen.memory_moves {
            None => true,
            Some(Direction::Shrink) => wish.direction == Direction::Grow,
            Some(Direction::Grow) => false,
        });
        if let Some(wish) = wish {
            let Bytes(target) = wish.target;
            order.memory = Some(target);
            self.causes
                .push((Axis::Memory, wish.direction, wish.causes));
        }
        order
    }

    fn ended(&mut self, ended: &Ended, now_ms: u64) -> bool {
        let (axis, direction) = (ended.axis, ended.direction());
        let is_it = |(on, to, _): &(Axis, Direction, Vec<String>)| *on == axis && *to == direction;
        let causes = match self.causes.iter().position(is_it) {
            Some(at) => self.causes.swap_remove(at).2,
            None => Vec::new(),
        };
        if ended.after == ended.before {
            self.state.not_reached(axis, direction, now_ms);
        } else {
            self.state
                .committed(&self.policy, axis, direction, &causes, now_ms);
        }
        false
    }
}
