//! Who gives when somebody waits and there is no room: a plan, made from what is known; nothing is
//! done here.
//!
//! Donors are asked in the order of their pressure, the least pressured first. One that is
//! comfortable gives down to the least that it needs, to anybody. One that is under pressure gives
//! only what it holds beyond its fair share, and only to somebody who is still below their own.
//! Whoever is not known, is stuck, or waits itself gives nothing.

use std::collections::BTreeMap;

use concertina_api::policy::Axis;
use concertina_api::policy::step::MEMORY_STEP;

/// At so much pressure (percent of time that something waited) an instance is comfortable.
pub const COMFORTABLE_PERCENT: f64 = 2.0;

/// What is known of one instance's need of an axis. One that is not known is left out: unknown is
/// not zero, and never makes anything shrink.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    /// Percent of time that something waited for the axis. Not a number: unknown.
    pub pressure: f64,
    /// The least that it can go to at this moment without being short, in thousandths of a CPU or
    /// bytes.
    pub least: u64,
}

/// One instance shall become smaller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Donation {
    /// Which.
    pub donor: String,
    /// What it holds.
    pub from: u64,
    /// What it shall have.
    pub to: u64,
}

/// Who gives how much.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DonationPlan {
    /// In the order in which they are asked.
    pub donations: Vec<Donation>,
    /// What is coming already: shrinks that are under way.
    pub coming: u64,
    /// What stays missing when all of it was given.
    pub missing: u64,
}

/// One possible donor, as the ledger has it.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub name: &'a str,
    pub held: u64,
    pub floor: u64,
    pub share: u64,
}

/// What is missing, beyond free room and what is coming.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lack {
    /// By those who wait and are still within their fair share.
    pub within: u64,
    /// What is wanted beyond that.
    pub beyond: u64,
}

/// Makes the plan.
pub(super) fn plan(
    axis: Axis,
    mut lack: Lack,
    candidates: &[Candidate<'_>],
    needs: &BTreeMap<String, Need>,
) -> DonationPlan {
    let known = |candidate: &Candidate<'_>| {
        let need = needs.get(candidate.name)?;
        let sane = need.pressure.is_finite() && need.pressure >= 0.0;
        sane.then_some(*need)
    };
    let mut order: Vec<(&Candidate<'_>, Need)> = candidates
        .iter()
        .filter_map(|candidate| known(candidate).map(|need| (candidate, need)))
        .collect();
    order.sort_by(|(a, x), (b, y)| {
        let pressure = x.pressure.total_cmp(&y.pressure);
        // Of two alike, the one that is further above its share.
        let above = |c: &Candidate<'_>| c.held.saturating_sub(c.share);
        pressure
            .then_with(|| above(b).cmp(&above(a)))
            .then_with(|| a.name.cmp(b.name))
    });
    let mut plan = DonationPlan::default();
    for (candidate, need) in order {
        let comfortable = need.pressure <= COMFORTABLE_PERCENT;
        let least = candidate.floor.max(need.least);
        let (least, wanted) = if comfortable {
            (least, lack.within.saturating_add(lack.beyond))
        } else {
            (least.max(candidate.share), lack.within)
        };
        let spare = candidate.held.saturating_sub(least);
        let step = step_of(axis);
        // Whole steps, and rather a part of one too much than too little: but never below `least`.
        let given = wanted
            .div_ceil(step)
            .saturating_mul(step)
            .min(spare / step * step);
        if given == 0 {
            continue;
        }
        let within = given.min(lack.within);
        lack.within -= within;
        lack.beyond = lack.beyond.saturating_sub(given - within);
        plan.donations.push(Donation {
            donor: candidate.name.to_owned(),
            from: candidate.held,
            to: candidate.held - given,
        });
    }
    plan.missing = lack.within.saturating_add(lack.beyond);
    plan
}

/// The unit in which an axis shrinks.
fn step_of(axis: Axis) -> u64 {
    match axis {
        // A twentieth of a CPU: less is not worth a change.
        Axis::Cpus => 50,
        Axis::Memory => MEMORY_STEP,
    }
}
