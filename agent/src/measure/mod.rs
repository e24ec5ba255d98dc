//! What the agent counts of its own work: how long each part of a change takes, how changes end, and
//! what is not done and why. Plain atomics; nothing here knows who reads them
//! ([`crate::host`] gives them to Prometheus).

pub mod histogram;
pub mod instance;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use concertina_api::policy::{Axis, Direction, Resource};
use concertina_api::vm::Outcome;

pub use self::histogram::Histogram;
pub use self::instance::InstanceMeasures;
use crate::policy::{Held, HeldReason};
use crate::resize::Cause;

/// A part of a change, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From the look at the counters to the wish of the rules.
    Decide,
    /// Until it is in the ledger, and its intent on the disk.
    Reserve,
    /// Until the devices and cgroups have their targets.
    Act,
    /// Until KVM, device, guest and host agree, or the deadline is over.
    ReadBack,
    /// Until the outcome is written down.
    Commit,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Decide,
        Self::Reserve,
        Self::Act,
        Self::ReadBack,
        Self::Commit,
    ];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decide => "decide",
            Self::Reserve => "reserve",
            Self::Act => "act",
            Self::ReadBack => "read_back",
            Self::Commit => "commit",
        }
    }
}

/// What a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// What is changed.
    pub axis: Axis,
    /// Larger or smaller.
    pub direction: Direction,
}

impl Way {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self::new(Axis::Cpus, Direction::Grow),
        Self::new(Axis::Cpus, Direction::Shrink),
        Self::new(Axis::Memory, Direction::Grow),
        Self::new(Axis::Memory, Direction::Shrink),
    ];

    /// Of this axis, in this direction.
    pub const fn new(axis: Axis, direction: Direction) -> Self {
        Self { axis, direction }
    }

    /// From one size to another one; one that stays counts as growth.
    pub fn between(axis: Axis, before: u64, target: u64) -> Self {
        let direction = if target < before {
            Direction::Shrink
        } else {
            Direction::Grow
        };
        Self { axis, direction }
    }
}

/// How a direction is called in metrics.
pub fn direction_word(direction: Direction) -> &'static str {
    match direction {
        Direction::Grow => "grow",
        Direction::Shrink => "shrink",
    }
}

/// Who wants a change, without the words of the rule.
pub const CAUSES: [&str; 3] = ["manual", "rule", "host"];
/// How a change may end.
pub const OUTCOMES: [Outcome; 5] = [
    Outcome::Applied,
    Outcome::Partial,
    Outcome::Refused,
    Outcome::RolledBack,
    Outcome::TimedOut,
];

/// A counter for each way, and for each of `N` things.
type Table<const N: usize> = [[AtomicU64; N]; Way::ALL.len()];

/// What all instances of an agent have in common.
#[derive(Debug, Default)]
pub struct Measures {
    /// One look: counters read, rules decided.
    pub look: Histogram,
    /// From the look at the counters to the intent on the disk, by way.
    to_intent: [Histogram; Way::ALL.len()],
    phases: [[Histogram; Phase::ALL.len()]; Way::ALL.len()],
    resizes: [Table<{ OUTCOMES.len() }>; CAUSES.len()],
    held: [[AtomicU64; HeldReason::ALL.len()]; Resource::ALL.len()],
}

impl Measures {
    /// A part of a change has taken this long.
    pub fn took(&self, way: Way, phase: Phase, time: Duration) {
        self.phase(way, phase).observe(time);
    }

    /// How long a part takes.
    pub fn phase(&self, way: Way, phase: Phase) -> &Histogram {
        &self.phases[way_index(way)][phase as usize]
    }

    /// How long it takes from the look at the counters to the intent on the disk.
    pub fn to_intent(&self, way: Way) -> &Histogram {
        &self.to_intent[way_index(way)]
    }

    /// A change has ended.
    pub fn resized(&self, way: Way, cause: &Cause, outcome: Outcome) {
        let cause = match cause {
            Cause::Manual => 0,
            Cause::Rules(_) => 1,
            Cause::Host(_) => 2,
        };
        self.resizes[cause][way_index(way)][outcome_index(outcome)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many changes have ended so; `cause` is an index of [`CAUSES`].
    pub fn resizes(&self, cause: usize, way: Way, outcome: Outcome) -> u64 {
        let of_cause = self.resizes.get(cause);
        let count = of_cause.map(|ways| &ways[way_index(way)][outcome_index(outcome)]);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// A look has ended with these wishes not followed.
    pub fn held(&self, held: &[Held]) {
        for held in held {
            self.held[held.axis as usize][held.why as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// At how many looks a wish was not followed for this reason.
    pub fn held_looks(&self, axis: Resource, why: HeldReason) -> u64 {
        self.held[axis as usize][why as usize].load(Ordering::Relaxed)
    }
}

// The arrays above have a place for each value of the enums, so that these cannot be outside of them.

fn axis_index(axis: Axis) -> usize {
    match axis {
        Axis::Cpus => 0,
        Axis::Memory => 1,
    }
}

fn way_index(way: Way) -> usize {
    match way.direction {
        Direction::Grow => 2 * axis_index(way.axis),
        Direction::Shrink => 2 * axis_index(way.axis) + 1,
    }
}

fn outcome_index(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Applied => 0,
        Outcome::Partial => 1,
        Outcome::Refused => 2,
        Outcome::RolledBack => 3,
        Outcome::TimedOut => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_place_of_its_own() {
        let indices: Vec<usize> = Way::ALL.into_iter().map(way_index).collect();
        assert_eq!(indices, [0, 1, 2, 3]);
        let indices: Vec<usize> = OUTCOMES.into_iter().map(outcome_index).collect();
        assert_eq!(indices, [0, 1, 2, 3, 4]);
        for (index, phase) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, index);
        }
        for (index, resource) in Resource::ALL.into_iter().enumerate() {
            assert_eq!(resource as usize, index);
        }
        for (index, why) in HeldReason::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, index, "{why:?}");
        }
    }

    #[test]
    fn a_change_is_counted_by_axis_direction_cause_and_outcome() {
        let measures = Measures::default();
        let way = Way::between(Axis::Memory, 10, 5);
        measures.resized(way, &Cause::Rules(Vec::new()), Outcome::Partial);
        for (index, cause) in CAUSES.into_iter().enumerate() {
            for other in Way::ALL {
                for outcome in OUTCOMES {
                    let is_it = cause == "rule" && other == way && outcome == Outcome::Partial;
                    let count = measures.resizes(index, other, outcome);
                    assert_eq!(count, u64::from(is_it), "{cause} {other:?} {outcome:?}");
                }
            }
        }
    }
}
