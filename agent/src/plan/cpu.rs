//! The CPU ladder: a size is a number of online vCPUs and a quota on their time. 1.5 CPUs are two
//! vCPUs that may use one and a half CPUs' time; a whole number needs no quota.
//!
//! Up: quota and hot-add at the same time, so that what is there can be used at once. Down, when a
//! rule wants it: the quota at once, and a vCPU is removed only when the smaller size has held for the
//! shrink window, because a quota is given back in microseconds and a vCPU is not. Down, when a person
//! wants it: vCPUs go at once, and the quota is set when they have gone (the vmm sees to that order),
//! so that the guest has all its time for letting go of them.

use concertina_api::{Cpus, Quota};

/// vCPUs and quota that make a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// vCPUs online, at least 1.
    pub vcpus: u32,
    /// Limit on their time together.
    pub quota: Quota,
}

/// When a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as the step before it is done.
    Now,
    /// When the size has stayed at or below the target for the shrink window.
    Held,
}

/// How patient a way down is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// vCPUs go when the size has held: a rule wants it.
    WhenHeld,
    /// vCPUs go at once: a person wants it.
    AtOnce,
}

/// One request to the vmm; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LadderStep {
    /// vCPUs online.
    pub vcpus: Option<u32>,
    /// Quota.
    pub quota: Option<Quota>,
    /// When.
    pub when: When,
}

/// The rung of a size with as few vCPUs as can carry it.
pub fn rung(size: Cpus) -> Rung {
    let vcpus = size.vcpus().max(1);
    Rung {
        vcpus,
        quota: quota(size, vcpus),
    }
}

/// The quota that makes so many online vCPUs this size: none where they are no more than that.
pub fn quota(size: Cpus, vcpus: u32) -> Quota {
    if u64::from(size.milli()) >= u64::from(vcpus) * 1000 {
        Quota::Max
    } else {
        Quota::Limited(size)
    }
}

/// The size that online vCPUs and a quota make together.
pub fn size_of(rung: Rung) -> Cpus {
    let whole = Cpus(rung.vcpus.saturating_mul(1000));
    match rung.quota {
        Quota::Max => whole,
        Quota::Limited(limit) => limit.min(whole),
    }
}

/// The steps from what is there to a size, in order; none where it is there already.
pub fn steps(present: Rung, target: Cpus, patience: Patience) -> Vec<LadderStep> {
    let last = rung(target);
    let changed = |vcpus: u32, quota: Quota, from: Rung, when: When| {
        let step = LadderStep {
            vcpus: (vcpus != from.vcpus).then_some(vcpus),
            quota: (quota != from.quota).then_some(quota),
            when,
        };
        (step.vcpus.is_some() || step.quota.is_some()).then_some(step)
    };
    if last.vcpus >= present.vcpus || patience == Patience::AtOnce {
        return changed(last.vcpus, last.quota, present, When::Now)
            .into_iter()
            .collect();
    }
    // With the vCPUs that are still online, even a whole size needs a quota.
    let limited = Rung {
        vcpus: present.vcpus,
        quota: quota(target, present.vcpus),
    };
    let steps = [
        changed(limited.vcpus, limited.quota, present, When::Now),
        changed(last.vcpus, last.quota, limited, When::Held),
    ];
    steps.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limited(milli: u32) -> Quota {
        Quota::Limited(Cpus(milli))
    }

    #[test]
    fn whole_sizes_need_no_quota_and_fractions_do() {
        assert_eq!(
            rung(Cpus(1500)),
            Rung {
                vcpus: 2,
                quota: limited(1500)
            }
        );
        assert_eq!(
            rung(Cpus(2000)),
            Rung {
                vcpus: 2,
                quota: Quota::Max
            }
        );
        assert_eq!(
            rung(Cpus(500)),
            Rung {
                vcpus: 1,
                quota: limited(500)
            }
        );
        assert_eq!(
            rung(Cpus(0)),
            Rung {
                vcpus: 1,
                quota: limited(0)
            }
        );
    }

    #[test]
    fn up_is_one_step_with_quota_and_hot_add_together() {
        let up = steps(rung(Cpus(500)), Cpus(2500), Patience::WhenHeld);
        let want = LadderStep {
            vcpus: Some(3),
            quota: Some(limited(2500)),
            when: When::Now,
        };
        assert_eq!(up, [want]);
        // Inside the vCPUs that are there, only the quota moves.
        let up = steps(rung(Cpus(500)), Cpus(1000), Patience::WhenHeld);
        assert_eq!(
            up,
            [LadderStep {
                vcpus: None,
                quota: Some(Quota::Max),
                when: When::Now
            }]
        );
    }

    #[test]
    fn down_lowers_the_quota_first_and_removes_vcpus_when_the_size_has_held() {
        let down = steps(rung(Cpus(3000)), Cpus(1000), Patience::WhenHeld);
        let want = [
            LadderStep {
                vcpus: None,
                quota: Some(limited(1000)),
                when: When::Now,
            },
            LadderStep {
                vcpus: Some(1),
                quota: Some(Quota::Max),
                when: When::Held,
            },
        ];
        assert_eq!(down, want);
    }

    #[test]
    fn down_by_hand_is_one_step() {
        let by_hand = |target| steps(rung(Cpus(3000)), Cpus(target), Patience::AtOnce);
        let want = |vcpus, quota| LadderStep {
            vcpus: Some(vcpus),
            quota,
            when: When::Now,
        };
        assert_eq!(by_hand(1000), [want(1, None)], "whole sizes have no quota");
        assert_eq!(by_hand(1500), [want(2, Some(limited(1500)))]);
    }

    #[test]
    fn what_is_there_needs_no_step() {
        assert_eq!(steps(rung(Cpus(1500)), Cpus(1500), Patience::AtOnce), []);
        // vCPUs kept over from a larger size go when it has held.
        let kept = Rung {
            vcpus: 4,
            quota: limited(1500),
        };
        let want = [LadderStep {
            vcpus: Some(2),
            quota: None,
            when: When::Held,
        }];
        assert_eq!(steps(kept, Cpus(1500), Patience::WhenHeld), want);
    }

    proptest! {
        /// Whatever is there, the steps end at the target, and on the way the instance never has
        /// less than the smaller nor more than the larger of the two sizes.
        #[test]
        fn steps_end_at_the_target_and_stay_between(
            vcpus in 1u32..64,
            share in 1u32..=1000,
            target in 100u32..64_000,
            patient in any::<bool>(),
        ) {
            let size = Cpus(vcpus * share);
            let mut at = Rung { vcpus, quota: quota(size, vcpus) };
            let (low, high) = (size.min(Cpus(target)), size.max(Cpus(target)));
            let patience = if patient { Patience::WhenHeld } else { Patience::AtOnce };
            for step in steps(at, Cpus(target), patience) {
                at = Rung {
                    vcpus: step.vcpus.unwrap_or(at.vcpus),
                    quota: step.quota.unwrap_or(at.quota),
                };
                prop_assert!(size_of(at) >= low && size_of(at) <= high);
                prop_assert!(at.vcpus >= 1);
            }
            prop_assert_eq!(at, rung(Cpus(target)));
        }
    }
}
