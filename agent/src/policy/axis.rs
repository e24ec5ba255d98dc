//! From rules that fired to at most one wish, on one axis.
//!
//! Growth beats shrinking; of several growths the largest, of several shrinks the smallest. What is
//! in the way of the winner is looked for in a fixed order, and the first obstacle is said.

use concertina_api::Bounds;
use concertina_api::policy::step;
use concertina_api::policy::{Action, Amount, Direction, Metric, Policy, Resource, Rule};

use super::state::PolicyState;
use super::window::{Reading, STALE_PERIODS, sane};
use super::{Held, HeldReason, Observations, Size, Urgency, Wish};

/// From this much run delay on, in percent, the host is the bottleneck.
pub const HOST_SHORT_PERCENT: f64 = 25.0;
/// Growth of a guest that is out of memory, where no rule says how much, in percent.
const EMERGENCY_PERCENT: u32 = 25;

/// A rule and how it stands.
pub(super) struct Looked<'a> {
    pub rule: &'a Rule,
    pub text: &'a str,
    pub reading: &'a Reading,
}

/// What a decision about one axis is made from, besides the rules and the state.
pub(super) struct Scene<'a> {
    pub policy: &'a Policy,
    pub seen: &'a Observations,
    pub size: &'a Size,
    pub axis: Resource,
    /// What the axis has, and the least and most that it may have, in its smallest unit.
    pub present: u64,
    pub bounds: Bounds<u64>,
    pub now_ms: u64,
}

/// What one rule wants.
struct Want<'a> {
    rule: &'a Rule,
    text: &'a str,
    target: u64,
    notes: Vec<String>,
    /// The rule fired on the evidence at hand.
    acts: bool,
}

impl Scene<'_> {
    fn held(&self, cause: &str, why: HeldReason, detail: String) -> Held {
        Held {
            cause: cause.to_owned(),
            axis: self.axis,
            why,
            detail,
        }
    }
}

/// The wish of one axis, and who has to wait. Every look has to come here once: it also remembers
/// what was wanted.
pub(super) fn decide(
    scene: &Scene<'_>,
    state: &mut PolicyState,
    looked: &[Looked<'_>],
) -> (Option<Wish<u64>>, Vec<Held>) {
    let present = scene.present;
    let wants: Vec<Want<'_>> = looked
        .iter()
        .filter(|looked| looked.rule.resource() == scene.axis)
        .filter_map(|looked| want(scene, looked))
        .collect();
    let emergency = emergency(scene, looked);
    let wanted = wanted_now(present, &wants, emergency.as_ref());
    state
        .axis_mut(scene.axis)
        .want(scene.policy, wanted, present, scene.now_ms);

    let mut held = Vec::new();
    if let Some(wish) = emergency {
        let wish = unless_held(scene, state, wish, &mut held);
        return (wish, held);
    }
    let growth = |want: &&Want<'_>| want.acts && grows(want, present);
    let short = scene.axis == Resource::Memory && scene.seen.memory_short.is_some();
    let kept = looked.iter().any(|looked| kept_growth(scene, looked));
    if short || kept || wants.iter().any(|want| growth(&want)) {
        for loser in wants
            .iter()
            .filter(|want| want.acts && want.target < present)
        {
            let detail = "growth is wanted too".to_owned();
            held.push(scene.held(loser.text, HeldReason::GrowthWins, detail));
        }
        let candidates = wants.iter().filter(growth).collect();
        let wish = grow(scene, state, candidates, &mut held);
        return (wish, held);
    }
    let candidates = wants.iter().filter(|want| want.acts).collect();
    let wish = shrink(scene, state, candidates, &mut held);
    (wish, held)
}

/// Whether the rule means growth, be it at the upper bound already.
fn grows(want: &Want<'_>, present: u64) -> bool {
    want.target > present
        || matches!(want.rule, Rule::Threshold(rule) if matches!(rule.action, Action::Add(_)))
}

/// Whether a rule that grows had fired when its data went missing. It does not act on what it does
/// not know, but nothing shrinks against it either.
fn kept_growth(scene: &Scene<'_>, looked: &Looked<'_>) -> bool {
    let kept = looked.reading.fired && !looked.reading.acts;
    let Rule::Threshold(threshold) = looked.rule else {
        return false;
    };
    let on_axis = looked.rule.resource() == scene.axis;
    kept && on_axis
        && (matches!(threshold.action, Action::Add(_))
            || step::target(threshold.action, scene.present, &scene.bounds) > scene.present)
}

/// What a rule wants at this moment; nothing while it is quiet.
fn want<'a>(scene: &Scene<'_>, looked: &Looked<'a>) -> Option<Want<'a>> {
    let present = scene.present;
    let bounds = &scene.bounds;
    let Looked {
        rule,
        text,
        reading,
    } = looked;
    let (stepped, acts) = match rule {
        Rule::Threshold(threshold) => {
            if !reading.acts && !reading.breaching {
                return None;
            }
            (step::apply(threshold.action, present, bounds), reading.acts)
        }
        Rule::Target(target) => {
            let mean = reading.mean?;
            (
                step::track(scene.axis, target.level, mean, present, bounds),
                true,
            )
        }
    };
    // Unknown data never shrink anything: neither the last datapoint nor this moment may be unknown.
    let certain = reading.known_now && reading.latest_known;
    if stepped.target < present && !certain {
        return None;
    }
    Some(Want {
        rule,
        text,
        target: stepped.target,
        notes: stepped.notes,
        acts,
    })
}

/// The size that the rules want at this moment, fired or about to: what the shrink window looks at.
fn wanted_now(present: u64, wants: &[Want<'_>], emergency: Option<&Wish<u64>>) -> u64 {
    let fired = wants
        .iter()
        .filter(|want| want.acts && want.target > present);
    let grown = fired
        .map(|want| want.target)
        .chain(emergency.map(|wish| wish.target))
        .max();
    let steered = |want: &&Want<'_>| matches!(want.rule, Rule::Target(_));
    let lower = wants
        .iter()
        .filter(|want| steered(want) || want.target < present);
    grown
        .or_else(|| lower.map(|want| want.target).max())
        .unwrap_or(present)
}

fn grow(
    scene: &Scene<'_>,
    state: &mut PolicyState,
    candidates: Vec<&Want<'_>>,
    held: &mut Vec<Held>,
) -> Option<Wish<u64>> {
    let present = scene.present;
    let mut ready = Vec::new();
    for want in candidates {
        if want.target <= present {
            let detail = format!("already at {}", scene.axis.text(present));
            held.push(scene.held(want.text, HeldReason::AtBound, detail));
        } else if !in_cooldown(scene, state, want, Direction::Grow, held) {
            ready.push(want);
        }
    }
    let target = ready.iter().map(|want| want.target).max()?;
    let wish = wish(scene, target, Direction::Grow, &ready);
    unless_held(scene, state, wish, held)
}

fn shrink(
    scene: &Scene<'_>,
    state: &mut PolicyState,
    candidates: Vec<&Want<'_>>,
    held: &mut Vec<Held>,
) -> Option<Wish<u64>> {
    let present = scene.present;
    let mut ready = Vec::new();
    for want in candidates {
        if want.target >= present {
            // Target tracking that is content, or a rule that names or has reached a bound.
            if matches!(want.rule, Rule::Threshold(_)) {
                let detail = format!("already at {}", scene.axis.text(present));
                held.push(scene.held(want.text, HeldReason::AtBound, detail));
            }
        } else if !in_cooldown(scene, state, want, Direction::Shrink, held) {
            ready.push(want);
        }
    }
    let asked = ready.iter().map(|want| want.target).max()?;
    let mut wish = wish(scene, asked, Direction::Shrink, &ready);
    if let Some((at_ms, size)) = state.largest_wanted(scene.axis)
        && size > asked
    {
        let ago = seconds(scene.now_ms.saturating_sub(at_ms));
        let text = scene.axis.text(size);
        if size >= present {
            let window = seconds(scene.policy.shrink_window_ms);
            let detail =
                format!("{text} was wanted {ago} ago, within the shrink window of {window}");
            hold_all(scene, &wish, HeldReason::Stabilising, &detail, held);
            return None;
        }
        wish.target = size;
        wish.notes
            .push(format!("no lower than {text}, which was wanted {ago} ago"));
    }
    unless_held(scene, state, wish, held)
}

fn in_cooldown(
    scene: &Scene<'_>,
    state: &PolicyState,
    want: &Want<'_>,
    direction: Direction,
    held: &mut Vec<Held>,
) -> bool {
    let left = state.cooldown_left_ms(want.rule, want.text, direction, scene.now_ms);
    if left > 0 {
        let detail = format!("cooldown for another {}", seconds(left));
        held.push(scene.held(want.text, HeldReason::Cooldown, detail));
    }
    left > 0
}

/// The wish of the candidates that want exactly `target`; the others are named as beaten.
fn wish(scene: &Scene<'_>, target: u64, direction: Direction, ready: &[&Want<'_>]) -> Wish<u64> {
    let (winners, beaten): (Vec<&&Want<'_>>, Vec<_>) =
        ready.iter().partition(|want| want.target == target);
    let mut notes: Vec<String> = winners
        .first()
        .map(|winner| winner.notes.clone())
        .unwrap_or_default();
    let kind = if direction == Direction::Grow {
        "largest growth"
    } else {
        "smallest shrink"
    };
    notes.extend(beaten.iter().map(|want| {
        format!(
            "{kind}: won over '{}', which wanted {}",
            want.text,
            scene.axis.text(want.target)
        )
    }));
    let urgency = match direction {
        Direction::Grow => Urgency::Prompt,
        Direction::Shrink => Urgency::Routine,
    };
    let causes = winners.iter().map(|want| want.text.to_owned()).collect();
    Wish {
        target,
        direction,
        causes,
        urgency,
        notes,
    }
}

/// The wish, unless something that concerns the whole axis is in its way.
fn unless_held(
    scene: &Scene<'_>,
    state: &mut PolicyState,
    mut wish: Wish<u64>,
    held: &mut Vec<Held>,
) -> Option<Wish<u64>> {
    let axis = state.axis_mut(scene.axis);
    let manual = axis.manual_left_ms(scene.policy, scene.now_ms);
    let back_off = axis.back_off_left_ms(wish.direction, scene.now_ms);
    let obstacle = if scene.seen.busy(scene.axis) {
        Some((HeldReason::Busy, "a resize is under way".to_owned()))
    } else if manual > 0 {
        let detail = format!(
            "resized by hand; rules pause for another {}",
            seconds(manual)
        );
        Some((HeldReason::ManualHold, detail))
    } else if back_off > 0 && wish.urgency != Urgency::Emergency {
        let detail = format!("the last try failed; the next is in {}", seconds(back_off));
        Some((HeldReason::BackingOff, detail))
    } else if wish.direction == Direction::Shrink && !axis.may_shrink(scene.policy, scene.now_ms) {
        let budget = scene.policy.reversals_per_hour;
        let detail =
            format!("a shrink and its way back would pass {budget} changes of direction an hour");
        Some((HeldReason::ReversalBudget, detail))
    } else {
        host_short(scene, &mut wish)
    };
    match obstacle {
        None => Some(wish),
        Some((why, detail)) => {
            hold_all(scene, &wish, why, &detail, held);
            None
        }
    }
}

fn hold_all(
    scene: &Scene<'_>,
    wish: &Wish<u64>,
    why: HeldReason,
    detail: &str,
    held: &mut Vec<Held>,
) {
    held.extend(
        wish.causes
            .iter()
            .map(|cause| scene.held(cause, why, detail.to_owned())),
    );
}

/// On a host that is short of CPU, growth ends at what the vCPUs at hand can carry: more of them
/// would only wait with the others.
fn host_short(scene: &Scene<'_>, wish: &mut Wish<u64>) -> Option<(HeldReason, String)> {
    if scene.axis != Resource::Cpus || wish.direction == Direction::Shrink {
        return None;
    }
    let stale_ms = scene.policy.period_ms.saturating_mul(STALE_PERIODS);
    let sample = scene.seen.samples.get(&Metric::CpuSteal)?;
    let delay = sane(scene.policy, &Metric::CpuSteal, sample.value)?;
    if scene.now_ms.abs_diff(sample.at_ms) > stale_ms || delay < HOST_SHORT_PERCENT {
        return None;
    }
    let carried = u64::from(scene.size.cpus.vcpus()) * 1000;
    if wish.target <= carried {
        return None;
    }
    let detail = format!("vCPUs were ready and waited for the host in {delay:.0}% of the time");
    if carried <= scene.present {
        return Some((HeldReason::HostShortOfCpu, detail));
    }
    wish.target = carried;
    wish.notes
        .push(format!("no vCPU added: host_short_of_cpu, {detail}"));
    None
}

/// Growth for a guest that is out of memory, where its customer lets rules move its memory.
fn emergency(scene: &Scene<'_>, looked: &[Looked<'_>]) -> Option<Wish<u64>> {
    let evidence = scene
        .seen
        .memory_short
        .filter(|_| scene.axis == Resource::Memory)?;
    let present = scene.present;
    let bounds = scene.bounds;
    let mut steered = false;
    let mut best: Option<step::Stepped> = None;
    for rule in looked
        .iter()
        .map(|looked| looked.rule)
        .filter(|rule| rule.resource() == Resource::Memory)
    {
        steered = true;
        if let Rule::Threshold(threshold) = rule {
            let stepped = step::apply(threshold.action, present, &bounds);
            let larger = best
                .as_ref()
                .is_none_or(|best| stepped.target > best.target);
            if stepped.target > present && larger {
                best = Some(stepped);
            }
        }
    }
    if !steered {
        return None;
    }
    let share = Amount::Percent {
        percent: EMERGENCY_PERCENT,
        of: Resource::Memory,
    };
    let stepped = best.unwrap_or_else(|| step::apply(Action::Add(share), present, &bounds));
    (stepped.target > present).then(|| Wish {
        target: stepped.target,
        direction: Direction::Grow,
        causes: vec![format!("guest_memory_short: {}", evidence.as_str())],
        urgency: Urgency::Emergency,
        notes: stepped.notes,
    })
}

/// Milliseconds as seconds for people: `4.5s`.
fn seconds(ms: u64) -> String {
    format!("{}.{}s", ms / 1000, ms % 1000 / 100)
}
