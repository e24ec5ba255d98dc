//! What an action makes of a size: steps, rounding, clamping.
//!
//! Sizes are in the smallest unit of their resource ([`super::resource`]). A share is rounded
//! so that the instance keeps the larger size: away from the present size when it grows, towards it
//! when it shrinks, and by at least one step. Everything ends inside the bounds, and what was
//! rounded or clamped is said.

use super::{Action, Amount, Resource};
use crate::units::{Bounds, Bytes};

/// Step of a share of the CPUs, in thousandths: a hundredth of a CPU, one millisecond in each period
/// of a quota. Coarser ones would make a small share of a small instance a large one.
pub const CPU_STEP: u64 = 10;
/// Step of memory: the block of virtio-mem, in bytes.
pub const MEMORY_STEP: u64 = 2 * Bytes::MIB;
/// A size that an action leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stepped {
    /// The size, inside the bounds.
    pub target: u64,
    /// What was rounded or clamped.
    pub notes: Vec<String>,
}

/// The size that `action` leads to from `present`, with what was rounded or clamped for it.
pub fn apply(action: Action, present: u64, bounds: &Bounds<u64>) -> Stepped {
    let resource = action.resource();
    let (exact, rounded) = unclamped(action, present);
    let mut notes = Vec::new();
    if rounded != exact {
        let step = resource.text(resource.step());
        notes.push(format!(
            "rounded to {} (steps of {step})",
            resource.text(rounded)
        ));
    }
    clamped(resource, rounded, bounds, notes)
}

/// The size that `action` leads to from `present`.
pub fn target(action: Action, present: u64, bounds: &Bounds<u64>) -> u64 {
    bounds.clamp(unclamped(action, present).1)
}

/// The size that `action` means, and the one that can be had.
fn unclamped(action: Action, present: u64) -> (u64, u64) {
    let exact = match action {
        Action::Add(amount) => present.saturating_add(change(amount, present)),
        Action::Remove(amount) => present.saturating_sub(change(amount, present)),
        Action::SetCpus(cpus) => u64::from(cpus.milli()),
        Action::SetMemory(bytes) => bytes.get(),
        Action::SetIo { size, .. } => size,
    };
    let share = matches!(
        action,
        Action::Add(Amount::Percent { .. }) | Action::Remove(Amount::Percent { .. })
    );
    let step = action.resource().step();
    // Only memory comes in blocks: a quota and a limit that were named exactly can be any number.
    let rounded = match (action.resource(), action) {
        (resource, _) if !share && resource != Resource::Memory => exact,
        (_, Action::Add(_)) => round_up(exact.max(present.saturating_add(step)), step),
        (_, Action::Remove(_)) => round_up(exact.min(present.saturating_sub(step)), step),
        _ => round_up(exact, step),
    };
    (exact, rounded)
}

/// How much `amount` is, unrounded.
fn change(amount: Amount, present: u64) -> u64 {
    match amount {
        Amount::Cpus(cpus) => u64::from(cpus.milli()),
        Amount::Memory(bytes) => bytes.get(),
        Amount::Io { size, .. } => size,
        Amount::Percent { percent, .. } => {
            let share = u128::from(present) * u128::from(percent) / 100;
            u64::try_from(share).unwrap_or(u64::MAX)
        }
    }
}

/// Step of target tracking: half the range between the bounds, but not coarser than half a CPU, a
/// memory block or the like, nor finer than the resource's own step.
pub fn tracking_step(resource: Resource, bounds: &Bounds<u64>) -> u64 {
    let (fine, coarse) = (resource.step(), resource.tracking_step_max());
    let half_range = bounds.max.saturating_sub(bounds.min) / 2;
    (half_range / fine * fine).clamp(fine, coarse)
}

/// Target tracking: the size at which `measured` would become `level`, both in percent of the
/// present size. Inside half a step around the present size nothing changes.
pub fn track(
    resource: Resource,
    level: f64,
    measured: f64,
    present: u64,
    bounds: &Bounds<u64>,
) -> Stepped {
    clamped(
        resource,
        tracked(resource, level, measured, present, bounds),
        bounds,
        Vec::new(),
    )
}

/// The size that target tracking leads to.
pub fn track_target(
    resource: Resource,
    level: f64,
    measured: f64,
    present: u64,
    bounds: &Bounds<u64>,
) -> u64 {
    bounds.clamp(tracked(resource, level, measured, present, bounds))
}

fn tracked(
    resource: Resource,
    level: f64,
    measured: f64,
    present: u64,
    bounds: &Bounds<u64>,
) -> u64 {
    let step = tracking_step(resource, bounds);
    let wanted = present as f64 * measured / level;
    if !wanted.is_finite() || (wanted - present as f64).abs() <= step as f64 / 2.0 {
        return present;
    }
    // Casts from floating point saturate; sizes are far below 2^53, where they are exact.
    let rounded = round_up(wanted.ceil() as u64, step);
    if wanted < present as f64 {
        rounded.min(present)
    } else {
        rounded
    }
}

fn clamped(resource: Resource, size: u64, bounds: &Bounds<u64>, mut notes: Vec<String>) -> Stepped {
    let target = bounds.clamp(size);
    if target != size {
        let side = if target < size { "upper" } else { "lower" };
        notes.push(format!(
            "clamped to the {side} bound {}",
            resource.text(target)
        ));
    }
    Stepped { target, notes }
}

/// The next multiple of `step`, or `u64::MAX` where that is beyond it.
pub fn round_up(size: u64, step: u64) -> u64 {
    size.checked_next_multiple_of(step.max(1))
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Cpus;

    const CPUS: Bounds<u64> = Bounds {
        min: 500,
        max: 4000,
    };
    const MEMORY: Bounds<u64> = Bounds {
        min: 256 << 20,
        max: 4096 << 20,
    };

    fn percent(percent: u32, of: Resource) -> Amount {
        Amount::Percent { percent, of }
    }

    #[test]
    fn a_share_rounds_away_when_growing_and_towards_when_shrinking() {
        let grow = |p, from| apply(Action::Add(percent(p, Resource::Cpus)), from, &CPUS).target;
        let shrink =
            |p, from| apply(Action::Remove(percent(p, Resource::Cpus)), from, &CPUS).target;
        assert_eq!(grow(25, 1010), 1270);
        assert_eq!(shrink(25, 1010), 760);
        assert_eq!(grow(25, 2000), 2500);
        // At least one step, however small the share.
        assert_eq!(grow(1, 600), 610);
        assert_eq!(shrink(1, 600), 590);
        let memory = apply(
            Action::Add(percent(25, Resource::Memory)),
            500 << 20,
            &MEMORY,
        );
        assert_eq!(memory.target, 626 << 20);
        assert_eq!(memory.notes, ["rounded to 626M (steps of 2M)"]);
    }

    #[test]
    fn a_clamp_is_said() {
        let stepped = apply(Action::Add(Amount::Cpus(Cpus::whole(3))), 2000, &CPUS);
        assert_eq!(stepped.target, 4000);
        assert_eq!(stepped.notes, ["clamped to the upper bound 4 cpu"]);
        let stepped = apply(
            Action::Remove(Amount::Memory(Bytes::mib(512))),
            300 << 20,
            &MEMORY,
        );
        assert_eq!(stepped.target, 256 << 20);
        assert_eq!(stepped.notes, ["clamped to the lower bound 256M"]);
    }

    #[test]
    fn exact_cpus_are_not_rounded() {
        let stepped = apply(Action::Add(Amount::Cpus(Cpus(250))), 1000, &CPUS);
        assert_eq!((stepped.target, stepped.notes.len()), (1250, 0));
        assert_eq!(apply(Action::SetCpus(Cpus(1250)), 4000, &CPUS).target, 1250);
    }

    #[test]
    fn tracking_has_a_dead_band_of_half_a_step() {
        let track =
            |measured, present| track(Resource::Cpus, 60.0, measured, present, &CPUS).target;
        assert_eq!(track(60.0, 1000), 1000);
        assert_eq!(track(75.0, 1000), 1000); // wants 1.25: exactly half a step
        assert_eq!(track(80.0, 1000), 1500);
        assert_eq!(track(100.0, 3000), 4000); // wants 5
        assert_eq!(track(50.0, 2000), 2000); // wants 1.67: half a step less would not do
        assert_eq!(track(20.0, 2000), 1000);
        assert_eq!(track(0.0, 2000), 500);
        assert_eq!(track(f64::NAN, 2000), 2000);
    }

    #[test]
    fn extremes_saturate() {
        let wide = Bounds {
            min: 0,
            max: u64::MAX,
        };
        for action in [
            Action::Add(percent(1000, Resource::Memory)),
            Action::Remove(percent(100, Resource::Memory)),
        ] {
            for present in [0, 1, u64::MAX] {
                apply(action, present, &wide);
            }
        }
    }
}
