//! What decides about a simulated instance, and what it gets to see.

use concertina_api::policy::{Axis, Direction, PolicyBounds};
use concertina_api::{Bytes, Cpus};

use crate::policy::Size;

/// What can be measured from outside, as a live scaler would. Absent is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// CPU time used per time, in thousandths of a CPU, since the last look or the last change of
    /// size: never more than the size.
    pub cpus_used: Option<f64>,
    /// The guest's load average over a minute, in tasks. A task that waits counts too.
    pub load1: Option<f64>,
    /// Memory in use, in bytes: never more than the size.
    pub memory_used: Option<u64>,
    /// The guest waited for memory since the last look.
    pub memory_short: bool,
    /// A change of the CPUs is under way.
    pub cpus_busy: bool,
    /// What change of memory is under way.
    pub memory_moves: Option<Direction>,
}

impl Seen {
    /// Share of the CPUs that the instance has, 0 to 100.
    pub fn cpu_percent(&self, size: &Size) -> Option<f64> {
        percent(self.cpus_used?, size.of(Axis::Cpus))
    }

    /// Share of the memory that the instance has, 0 to 100.
    pub fn memory_percent(&self, size: &Size) -> Option<f64> {
        percent(self.memory_used? as f64, size.of(Axis::Memory))
    }

    /// Share of one axis.
    pub fn percent(&self, axis: Axis, size: &Size) -> Option<f64> {
        match axis {
            Axis::Cpus => self.cpu_percent(size),
            Axis::Memory => self.memory_percent(size),
        }
    }
}

fn percent(used: f64, size: u64) -> Option<f64> {
    (size > 0).then(|| (used / size as f64 * 100.0).min(100.0))
}

/// A wish for another size, in the axes' smallest units; absent: as it is. What is outside the
/// bounds is taken as the bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order {
    /// CPUs, in thousandths.
    pub cpus: Option<u64>,
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Memory shrinks by the plan of [`crate::plan::memory`]: not below what the guest needs, in
    /// probe steps. Else it goes straight to the size, whatever the guest needs.
    pub careful: bool,
}

impl Order {
    /// Another size of one axis.
    pub fn set(&mut self, axis: Axis, size: u64) {
        match axis {
            Axis::Cpus => self.cpus = Some(size),
            Axis::Memory => self.memory = Some(size),
        }
    }
}

/// A change of size that is over, in the axis's smallest unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// What was changed.
    pub axis: Axis,
    /// Size before.
    pub before: u64,
    /// Size asked for.
    pub asked: u64,
    /// Size reached.
    pub after: u64,
}

impl Ended {
    /// Where it was to go.
    pub fn direction(&self) -> Direction {
        if self.asked < self.before {
            Direction::Shrink
        } else {
            Direction::Grow
        }
    }
}

/// Decides about one instance. Looks come in the order of time, from 0 on.
pub trait Scaler {
    /// The size at the beginning: the lower bounds, as a VM starts.
    fn first(&self, bounds: &PolicyBounds) -> Size {
        Size {
            cpus: bounds.cpus.min,
            memory: bounds.memory.min,
        }
    }

    /// When to look next, after `now_ms`.
    fn next_look_ms(&self, now_ms: u64) -> u64;

    /// Looks once.
    fn look(&mut self, seen: &Seen, size: &Size, now_ms: u64) -> Order;

    /// A change has ended. True: look again at once.
    fn ended(&mut self, _ended: &Ended, _now_ms: u64) -> bool {
        false
    }
}

/// A size from the axes' smallest units.
pub(super) fn size(cpus: u64, memory: u64) -> Size {
    Size {
        cpus: Cpus(u32::try_from(cpus).unwrap_or(u32::MAX)),
        memory: Bytes(memory),
    }
}
