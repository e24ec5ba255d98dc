//! The parts of a change whose times are counted: permission, action, outcome.

use std::time::{Duration, Instant};

use concertina_api::instance::InstanceSize;
use concertina_api::policy::Axis;
use concertina_api::{Bytes, Cpus};

use super::books::{Done, Step};
use super::report::{Axes, AxisReport, Timeline};
use super::{Order, Resizer, Run, lock};
use crate::journal::IntentId;
use crate::measure::{Measures, Phase, Way};

/// Steps of a timeline at which devices and cgroups got their targets; what follows is read back.
const ACT_STEPS: [&str; 5] = [
    "ceiling",
    "quota",
    "vcpus_announced",
    "memory_requested",
    "balloon_requested",
];

/// A change that is being made.
pub(super) struct Acting {
    way: Way,
    /// When the change began, on the clock of its timeline.
    began_ms: f64,
}

impl Acting {
    /// From here on.
    pub fn begin(axis: Axis, before: u64, target: u64, timeline: &Timeline) -> Self {
        Self {
            way: Way::between(axis, before, target),
            began_ms: timeline.elapsed_ms(),
        }
    }

    /// What it has noted tells acting from reading back. One that never got so far has only acted.
    pub fn end(&self, measures: &Measures, timeline: &Timeline) {
        let ended_ms = timeline.elapsed_ms();
        let acted = timeline.last_of(&ACT_STEPS);
        let acted_ms = acted
            .unwrap_or(ended_ms)
            .clamp(self.began_ms, ended_ms.max(self.began_ms));
        let took = |phase, from: f64, to: f64| {
            measures.took(self.way, phase, duration_ms(to - from));
        };
        took(Phase::Act, self.began_ms, acted_ms);
        if acted.is_some() {
            took(Phase::ReadBack, acted_ms, ended_ms);
        }
    }
}

fn duration_ms(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

impl Resizer {
    /// Asks the books. What changes nothing needs no permission.
    pub(super) fn begin(
        &self,
        axis: Axis,
        before: u64,
        target: u64,
        run: &Run<'_>,
    ) -> Result<Option<IntentId>, String> {
        let order = run.order;
        if before == target && order.resumes.is_none() {
            return Ok(None);
        }
        let began = Instant::now();
        let intent = self.books.begin(&Step {
            axis,
            before,
            target,
            order,
        })?;
        let way = Way::between(axis, before, target);
        self.measures.took(way, Phase::Reserve, began.elapsed());
        if let Some(sampled) = order.sampled {
            self.measures.to_intent(way).observe(sampled.elapsed());
        }
        if let Some(intent) = intent {
            let reserved = Some(before.max(target)).filter(|_| target > before);
            lock(&run.intents).push((axis, intent, reserved));
        }
        Ok(intent)
    }

    /// Tells the books how it ended. `sizes`: before, asked for, and seen after.
    pub(super) fn end<T>(
        &self,
        intent: Option<IntentId>,
        axis: Axis,
        sizes: [u64; 3],
        report: &AxisReport<T>,
    ) {
        let [before, target, after] = sizes;
        let began = Instant::now();
        self.books.end(
            intent,
            &Done {
                axis,
                target,
                before,
                after,
                outcome: report.outcome,
                reason: report.reason.as_deref(),
            },
        );
        let way = Way::between(axis, before, target);
        self.measures.took(way, Phase::Commit, began.elapsed());
    }

    /// Counts how the axes of an order have ended.
    pub(super) fn count(&self, order: &Order, before: &InstanceSize, axes: &Axes) {
        let count = |axis, sizes: Option<(u64, u64)>, outcome| {
            if let (Some((before, target)), Some(outcome)) = (sizes, outcome) {
                let way = Way::between(axis, before, target);
                self.measures.resized(way, &order.cause, outcome);
            }
        };
        let milli = |cpus: Cpus| u64::from(cpus.milli());
        let cpus = before.cpus.map(milli).zip(order.cpus.map(milli));
        count(Axis::Cpus, cpus, axes.cpu.as_ref().map(|cpu| cpu.outcome));
        let bytes = |memory: Bytes| memory.get();
        let memory = before.memory.map(bytes).zip(order.memory.map(bytes));
        let outcome = axes.memory.as_ref().map(|memory| memory.outcome);
        count(Axis::Memory, memory, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concertina_api::policy::Direction;
    use std::collections::BTreeMap;

    fn took(measures: &Measures, phase: Phase) -> (u64, u64) {
        let way = Way::new(Axis::Memory, Direction::Grow);
        let counts = measures.phase(way, phase).counts();
        (counts.count, counts.sum_ns)
    }

    #[test]
    fn acting_ends_with_the_last_target_that_was_given() {
        let (measures, mut timeline) = (Measures::default(), Timeline::begin());
        let acting = Acting {
            way: Way::between(Axis::Memory, 1, 2),
            began_ms: 0.0,
        };
        timeline.note("ceiling");
        let steps = BTreeMap::from([
            ("memory_requested".to_owned(), 7.0),
            ("memory_plugged".to_owned(), 9.0),
        ]);
        timeline.adopt(0.0, &steps);
        std::thread::sleep(Duration::from_millis(10));
        acting.end(&measures, &timeline);
        assert_eq!(took(&measures, Phase::Act), (1, 7_000_000));
        let (count, sum_ns) = took(&measures, Phase::ReadBack);
        assert_eq!(count, 1);
        assert!(sum_ns >= 3_000_000, "{sum_ns}");
    }

    #[test]
    fn what_was_never_given_a_target_is_not_read_back() {
        let (measures, timeline) = (Measures::default(), Timeline::begin());
        Acting::begin(Axis::Memory, 1, 2, &timeline).end(&measures, &timeline);
        assert_eq!(took(&measures, Phase::Act).0, 1);
        assert_eq!(took(&measures, Phase::ReadBack).0, 0);
    }
}
