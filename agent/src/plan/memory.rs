//! The memory planner: size = plugged - balloon, and one plan for both devices, so that they never
//! work against each other.
//!
//! virtio-mem is the main actuator, in blocks of 2 MiB. Growing is one request. Shrinking ends at a
//! floor that leaves the guest room to breathe, goes there through probe steps, and is stopped or
//! taken back when the guest comes under pressure. What virtio-mem has not unplugged by its deadline
//! is made up for by the balloon. Where the guest's memory is unknown, there is no floor and hence
//! no shrink.

use concertina_api::policy::step::{MEMORY_STEP, round_up};
use concertina_api::{Bounds, Bytes};

/// Memory block of Linux on x86, the unit in which it adds and removes page arrays.
pub const GUEST_BLOCK: Bytes = Bytes::mib(128);
/// Least room above what the guest uses.
const LEAST_MARGIN: u64 = 64 * Bytes::MIB;
/// Room above what the guest uses, as one part of this many.
const MARGIN_PART: u64 = 10;
/// A way down has at most about so many probe steps.
const PROBE_STEPS: u64 = 4;
/// Major faults in one probe step from which on the guest misses what was taken.
const PRESSING_FAULTS: u64 = 50;
/// Host pressure on the instance's cgroup from which on a shrink stops, in percent.
const PRESSING_PERCENT: f64 = 10.0;

/// What the guest's balloon driver says of its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestMemory {
    /// All that its kernel manages.
    pub total: Bytes,
    /// What programs could get without swapping: free memory and caches.
    pub available: Bytes,
    /// Since its boot.
    pub major_faults: u64,
    /// Since its boot; 0 before Linux 6.12.
    pub alloc_stalls: u64,
    /// Since its boot; 0 before Linux 6.12.
    pub oom_kills: u64,
}

impl GuestMemory {
    /// What cannot be taken without hurting. Caches are not in it: they can be dropped.
    pub fn used(&self) -> Bytes {
        Bytes(self.total.get().saturating_sub(self.available.get()))
    }
}

/// What the devices hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Boot RAM and plugged blocks.
    pub plugged: Bytes,
    /// In the balloon.
    pub balloon: Bytes,
}

impl Held {
    /// What the guest has.
    pub fn size(&self) -> Bytes {
        Bytes(self.plugged.get().saturating_sub(self.balloon.get()))
    }
}

/// A size that the devices can make, with what was changed for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitted {
    /// The size.
    pub size: Bytes,
    /// Said when it is not the size asked for.
    pub note: Option<String>,
}

/// Rounds a size up to what the guest can do, above boot RAM in multiples of `granule`, inside the
/// bounds. The granule is the block of virtio-mem, or [`GUEST_BLOCK`] for a guest that moves whole
/// memory blocks only.
pub fn fit(asked: Bytes, bounds: &Bounds<Bytes>, granule: Bytes) -> Fitted {
    let hot = bounds.clamp(asked).get().saturating_sub(bounds.min.get());
    let granule = round_up(granule.get().max(MEMORY_STEP), MEMORY_STEP);
    let size = bounds.clamp(Bytes(
        bounds.min.get().saturating_add(round_up(hot, granule)),
    ));
    let note = (size != asked).then(|| {
        format!(
            "{asked} rounded to {size}: steps of {} within {bounds}",
            Bytes(granule)
        )
    });
    Fitted { size, note }
}

/// How low an instance may shrink: the lower bound, or what its guest uses and a tenth of that, at
/// least 64 MiB, on top. `size` is what the guest has; the part of it that its kernel does not count
/// into its total (its own text, page arrays) is not there to be taken. Absent where the guest's
/// memory is unknown or makes no sense: nothing is taken blindly.
pub fn shrink_floor(min: Bytes, size: Bytes, guest: Option<&GuestMemory>) -> Option<Bytes> {
    let guest = guest.filter(|guest| {
        guest.total.get() > 0 && guest.total <= size && guest.available <= guest.total
    })?;
    let kernel = size.get().saturating_sub(guest.total.get());
    let needed = kernel
        .saturating_add(guest.used().get())
        .saturating_add(margin(guest.used()).get());
    Some(min.max(Bytes(round_up(needed, MEMORY_STEP))))
}

/// Room that a guest keeps above what it uses.
pub fn margin(used: Bytes) -> Bytes {
    Bytes((used.get() / MARGIN_PART).max(LEAST_MARGIN))
}

/// Sizes to go through on the way down, the goal last; none where there is no way down. Steps are
/// whole memory blocks of the guest, but for the first.
pub fn probe_steps(from: Bytes, goal: Bytes) -> Vec<Bytes> {
    let way = from.get().saturating_sub(goal.get());
    if way == 0 {
        return Vec::new();
    }
    let step = round_up(way.div_ceil(PROBE_STEPS), GUEST_BLOCK.get());
    let count = way.div_ceil(step);
    (0..count)
        .rev()
        .map(|left| Bytes(goal.get().saturating_add(left.saturating_mul(step))))
        .collect()
}

/// What to do after a probe step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The guest does not miss it.
    GoOn,
    /// Nothing more is taken. Why.
    Stop(String),
    /// The last step is given back. Why.
    GiveBack(String),
}

/// Judges a probe step by the guest before and after it, and by the host's memory pressure on the
/// instance after it, in percent. Counters that went back are those of a rebooted guest: unknown.
pub fn judge_probe(
    before: Option<&GuestMemory>,
    after: Option<&GuestMemory>,
    pressure_percent: Option<f64>,
) -> Verdict {
    let (Some(before), Some(after)) = (before, after) else {
        return Verdict::Stop("the guest's memory use became unknown".into());
    };
    let counters = [
        (
            "programs killed for want of memory",
            before.oom_kills,
            after.oom_kills,
            1,
        ),
        (
            "programs that waited for memory",
            before.alloc_stalls,
            after.alloc_stalls,
            1,
        ),
        (
            "major faults",
            before.major_faults,
            after.major_faults,
            PRESSING_FAULTS,
        ),
    ];
    if counters.iter().any(|(_, before, after, _)| after < before) {
        return Verdict::Stop("the guest's counters began again".into());
    }
    for (what, before, after, pressing) in counters {
        let rise = after - before;
        if rise >= pressing {
            return Verdict::GiveBack(format!("{rise} {what} in the guest during the step"));
        }
    }
    if after.available.get() < LEAST_MARGIN / 2 {
        return Verdict::GiveBack(format!(
            "only {} are available in the guest",
            after.available
        ));
    }
    match pressure_percent {
        Some(percent) if percent >= PRESSING_PERCENT => {
            Verdict::GiveBack(format!("memory pressure of {percent:.0}% on the host"))
        }
        _ => Verdict::GoOn,
    }
}

/// Device targets for growing to `size`: the balloon gives back first, blocks make up the rest.
pub fn grow_targets(held: Held, size: Bytes) -> Held {
    Held {
        plugged: held.plugged.max(size),
        balloon: Bytes(held.plugged.get().saturating_sub(size.get())).min(held.balloon),
    }
}

/// Device targets for one step down: blocks alone; the balloon stays as it is.
pub fn unplug_targets(held: Held, size: Bytes, min: Bytes) -> Held {
    let plugged = Bytes(size.get().saturating_add(held.balloon.get()));
    Held {
        plugged: plugged.max(min).min(held.plugged),
        balloon: held.balloon,
    }
}

/// Device targets when unplugging has ended above `goal`: the balloon takes what is missing, and
/// never more than down to the floor.
pub fn make_up_targets(held: Held, goal: Bytes, floor: Bytes) -> Held {
    let size = goal.max(floor);
    let balloon = Bytes(held.plugged.get().saturating_sub(size.get()));
    Held {
        plugged: held.plugged,
        balloon: balloon.max(held.balloon),
    }
}

/// Limits on the instance's cgroup for a promised size: a brake, and a ceiling above it. Both leave
/// room for the vmm itself and for the page tables of the guest's memory, so that they are met only
/// by a guest that takes more than it was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// For `memory.high`.
    pub high: Bytes,
    /// For `memory.max`.
    pub max: Bytes,
}

/// See [`Ceiling`].
pub fn ceiling(size: Bytes) -> Ceiling {
    // 8 bytes of page table a page, twice (the host's and KVM's), are 1/256 of the size.
    let tables = size.get() / 256;
    let high = size
        .get()
        .saturating_add(tables)
        .saturating_add(64 * Bytes::MIB);
    Ceiling {
        high: Bytes(high),
        max: Bytes(high.saturating_add(64 * Bytes::MIB)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const M: fn(u64) -> Bytes = Bytes::mib;

    fn guest(total_mib: u64, available_mib: u64) -> GuestMemory {
        GuestMemory {
            total: M(total_mib),
            available: M(available_mib),
            ..GuestMemory::default()
        }
    }

    fn held(plugged_mib: u64, balloon_mib: u64) -> Held {
        Held {
            plugged: M(plugged_mib),
            balloon: M(balloon_mib),
        }
    }

    #[test]
    fn the_floor_leaves_a_tenth_or_64_mib_above_what_is_used() {
        let floor = |min, size, guest: GuestMemory| shrink_floor(M(min), M(size), Some(&guest));
        // 200 used: 64 on top.
        assert_eq!(floor(128, 1024, guest(1024, 824)), Some(M(264)));
        // 2000 used: a tenth on top.
        assert_eq!(floor(128, 4096, guest(4096, 2096)), Some(M(2200)));
        // 24 that the kernel does not count.
        assert_eq!(floor(128, 1024, guest(1000, 800)), Some(M(288)));
        assert_eq!(floor(512, 1024, guest(1024, 1000)), Some(M(512)));
    }

    #[test]
    fn an_unknown_or_absurd_guest_has_no_floor() {
        assert_eq!(shrink_floor(M(128), M(1024), None), None);
        for absurd in [guest(0, 0), guest(1000, 1001), guest(2048, 100)] {
            assert_eq!(shrink_floor(M(128), M(1024), Some(&absurd)), None);
        }
    }

    #[test]
    fn sizes_are_rounded_up_to_what_the_guest_can_do_and_that_is_said() {
        let bounds = Bounds {
            min: M(256),
            max: M(1024),
        };
        assert_eq!(
            fit(M(300), &bounds, M(2)),
            Fitted {
                size: M(300),
                note: None
            }
        );
        assert_eq!(fit(Bytes(M(300).get() + 1), &bounds, M(2)).size, M(302));
        let fitted = fit(M(300), &bounds, GUEST_BLOCK);
        assert_eq!(fitted.size, M(384));
        assert!(
            fitted
                .note
                .is_some_and(|note| note.contains("300M") && note.contains("128M"))
        );
        assert_eq!(fit(M(5000), &bounds, M(2)).size, M(1024));
        assert_eq!(fit(M(1), &bounds, M(2)).size, M(256));
    }

    #[test]
    fn a_way_down_has_few_steps_of_whole_blocks() {
        assert_eq!(probe_steps(M(512), M(512)), []);
        assert_eq!(probe_steps(M(256), M(512)), []);
        assert_eq!(probe_steps(M(300), M(256)), [M(256)]);
        assert_eq!(
            probe_steps(M(1024), M(512)),
            [M(896), M(768), M(640), M(512)]
        );
        assert_eq!(
            probe_steps(M(4096), M(256)),
            [M(3328), M(2304), M(1280), M(256)]
        );
    }

    #[test]
    fn pressure_takes_a_step_back_and_the_unknown_stops() {
        let calm = GuestMemory {
            major_faults: 100,
            ..guest(1024, 512)
        };
        let judge = |after: GuestMemory, pressure| judge_probe(Some(&calm), Some(&after), pressure);
        assert_eq!(
            judge(
                GuestMemory {
                    major_faults: 149,
                    ..calm
                },
                Some(9.9)
            ),
            Verdict::GoOn
        );
        let pressed = [
            judge(
                GuestMemory {
                    major_faults: 150,
                    ..calm
                },
                None,
            ),
            judge(
                GuestMemory {
                    alloc_stalls: 1,
                    ..calm
                },
                None,
            ),
            judge(
                GuestMemory {
                    oom_kills: 1,
                    ..calm
                },
                None,
            ),
            judge(
                GuestMemory {
                    available: M(16),
                    ..calm
                },
                None,
            ),
            judge(calm, Some(10.0)),
        ];
        for verdict in pressed {
            assert!(matches!(verdict, Verdict::GiveBack(_)), "{verdict:?}");
        }
        assert!(matches!(
            judge_probe(Some(&calm), None, None),
            Verdict::Stop(_)
        ));
        assert!(matches!(
            judge(
                GuestMemory {
                    major_faults: 3,
                    ..calm
                },
                None
            ),
            Verdict::Stop(_)
        ));
    }

    #[test]
    fn the_balloon_gives_back_before_blocks_are_plugged() {
        assert_eq!(grow_targets(held(1024, 512), M(768)), held(1024, 256));
        assert_eq!(grow_targets(held(1024, 512), M(2048)), held(2048, 0));
        assert_eq!(grow_targets(held(512, 0), M(768)), held(768, 0));
    }

    #[test]
    fn the_balloon_makes_up_for_what_was_not_unplugged() {
        assert_eq!(
            unplug_targets(held(1024, 128), M(512), M(256)),
            held(640, 128)
        );
        assert_eq!(
            make_up_targets(held(900, 128), M(512), M(300)),
            held(900, 388)
        );
        // Never below the floor.
        assert_eq!(
            make_up_targets(held(900, 0), M(512), M(600)),
            held(900, 300)
        );
    }

    #[test]
    fn the_ceiling_is_above_the_promise() {
        let at = ceiling(M(1024));
        assert_eq!((at.high, at.max), (M(1024 + 4 + 64), M(1024 + 4 + 128)));
        ceiling(Bytes(u64::MAX));
    }

    proptest! {
        #[test]
        fn no_step_is_below_floor_or_bound(
            min in 1u64..4096,
            range in 0u64..8192,
            asked in 0u64..20_000,
            total in 0u64..14_000,
            available in 0u64..14_000,
        ) {
            let bounds = Bounds { min: M(min), max: M(min + range) };
            let present = bounds.max;
            let guest = guest(total, available);
            let Some(floor) = shrink_floor(bounds.min, present, Some(&guest)) else { return Ok(()) };
            prop_assert!(floor >= bounds.min);
            prop_assert!(floor.get() >= guest.used().get() + 64 * Bytes::MIB || floor == bounds.min);
            let goal = fit(M(asked), &bounds, M(2)).size.max(floor);
            let steps = probe_steps(present, goal);
            let mut last = present;
            for step in &steps {
                prop_assert!(*step < last && *step >= goal && *step >= floor);
                last = *step;
            }
            prop_assert!(steps.len() as u64 <= PROBE_STEPS + 1);
            prop_assert_eq!(steps.last().copied().unwrap_or(goal.max(present)), goal.max(last));
        }

        #[test]
        fn device_targets_make_the_size_and_never_both_work_at_once(
            plugged in 256u64..8192,
            balloon_part in 0u64..256,
            size in 256u64..16_384,
            floor in 0u64..4096,
        ) {
            let held = held(plugged, balloon_part);
            let up = grow_targets(held, M(size).max(held.size()));
            prop_assert_eq!(up.size(), M(size).max(held.size()));
            prop_assert!(up.plugged >= held.plugged && up.balloon <= held.balloon);
            let down = unplug_targets(held, M(size).min(held.size()), M(256));
            prop_assert!(down.plugged <= held.plugged && down.balloon == held.balloon);
            let made_up = make_up_targets(held, M(size).min(held.size()), M(floor));
            prop_assert!(made_up.size() >= M(floor).min(held.size()));
            prop_assert!(made_up.plugged == held.plugged && made_up.balloon >= held.balloon);
        }

        #[test]
        fn fitted_sizes_are_inside_the_bounds(
            min in any::<u64>(), range in any::<u64>(), asked in any::<u64>(), granule in any::<u64>(),
        ) {
            let bounds = Bounds { min: Bytes(min), max: Bytes(min.saturating_add(range)) };
            let size = fit(Bytes(asked), &bounds, Bytes(granule)).size;
            prop_assert!(bounds.contains(size) && (size >= bounds.clamp(Bytes(asked))));
        }
    }
}
