//! Deciding what size an instance shall have: `(policy, state, observations, size, time)` to a
//! decision with its reasons. Pure: no I/O, no clock, no randomness; the same code decides live and
//! in tests, and the same input always gives the same answer.
//!
//! Per rule, samples become datapoints and datapoints become "fired" ([`window`]); per axis, what
//! fired becomes at most one wish ([`axis`]); what has to be remembered between two looks, and
//! across restarts of the agent, is in [`PolicyState`] ([`state`]). Nothing here acts: the caller
//! resizes, and tells the state how it ended.

pub mod axis;
pub mod file;
pub mod state;
pub mod window;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod semantics;
#[cfg(test)]
mod semantics_io;

use std::collections::BTreeMap;

use concertina_api::instance::{HeldStatus, ThresholdStatus, WindowStatus};
use concertina_api::policy::{Axis, Direction, Metric, Policy, Resource, Rule};
use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};

pub use file::read_policy;
pub use state::PolicyState;

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In the metric's unit. A rate describes the time since the sample before it.
    pub value: f64,
    /// When it was taken, on the clock of `now_ms`.
    pub at_ms: u64,
}

/// Evidence that the guest is out of memory at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryShort {
    /// The guest killed a program for want of memory.
    OomKill,
    /// The guest took pages back from the balloon rather than kill a program.
    DeflateOnOom,
    /// A program had to wait for memory to be reclaimed.
    AllocStall,
}

impl MemoryShort {
    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OomKill => "oom_kill",
            Self::DeflateOnOom => "deflate_on_oom",
            Self::AllocStall => "alloc_stall",
        }
    }
}

/// What was seen. A metric that is not in `samples` is unknown.
///
/// `cpu.steal` has to be free of what the instance's own quota held back (`throttled_usec`): it is
/// taken as the host's shortage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observations {
    /// The newest sample of each metric.
    pub samples: BTreeMap<Metric, Sample>,
    /// Since the last look, the worst if there were several.
    pub memory_short: Option<MemoryShort>,
    /// A resize of the CPUs is under way.
    pub cpus_busy: bool,
    /// A resize of memory is under way.
    pub memory_busy: bool,
    /// Limits on I/O in force, in their smallest unit; one that is absent is not decided about.
    #[serde(default)]
    pub limits: BTreeMap<Resource, u64>,
    /// A change of a limit on I/O is under way.
    #[serde(default)]
    pub io_busy: bool,
}

impl Observations {
    fn busy(&self, axis: Resource) -> bool {
        match axis {
            Resource::Cpus => self.cpus_busy,
            Resource::Memory => self.memory_busy,
            _ => self.io_busy,
        }
    }

    /// What the instance has of a resource, in its smallest unit; absent: unknown, or without limit.
    pub fn present(&self, size: &Size, axis: Resource) -> Option<u64> {
        match axis {
            Resource::Cpus => Some(size.of(Axis::Cpus)),
            Resource::Memory => Some(size.of(Axis::Memory)),
            limit => self.limits.get(&limit).copied(),
        }
    }
}

/// What the instance has: the size that the last resize reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// CPUs.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Bytes,
}

impl Size {
    /// One axis in its smallest unit: thousandths of a CPU, or bytes.
    pub fn of(&self, axis: Axis) -> u64 {
        match axis {
            Axis::Cpus => u64::from(self.cpus.milli()),
            Axis::Memory => self.memory.get(),
        }
    }
}

/// How soon a wish has to be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Urgency {
    /// Shrinking: in probe steps, when nothing speaks against it.
    Routine,
    /// Growing: at once.
    Prompt,
    /// The guest is out of memory: before anything else.
    Emergency,
}

/// A size that an axis shall have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish<T> {
    /// The size, inside the bounds and different from the present one.
    pub target: T,
    /// Larger or smaller.
    pub direction: Direction,
    /// The rules that want exactly this, as text; or the evidence that the guest is short.
    pub causes: Vec<String>,
    /// How soon.
    pub urgency: Urgency,
    /// What was clamped, rounded or won over.
    pub notes: Vec<String>,
}

/// Why a rule that fired does not get its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldReason {
    /// A resize of this axis is under way.
    Busy,
    /// Somebody resized by hand a short while ago.
    ManualHold,
    /// The rule caused a resize a short while ago.
    Cooldown,
    /// The axis is at its bound.
    AtBound,
    /// A rule that grows fired too.
    GrowthWins,
    /// A larger size was wanted within the shrink window.
    Stabilising,
    /// The hour's changes of direction are used up.
    ReversalBudget,
    /// The host has no CPU time to give: more vCPUs would wait with the rest.
    HostShortOfCpu,
    /// The last try failed; the next one waits.
    BackingOff,
}

impl HeldReason {
    /// Every reason, in the order above.
    pub const ALL: [Self; 9] = [
        Self::Busy,
        Self::ManualHold,
        Self::Cooldown,
        Self::AtBound,
        Self::GrowthWins,
        Self::Stabilising,
        Self::ReversalBudget,
        Self::HostShortOfCpu,
        Self::BackingOff,
    ];

    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::ManualHold => "manual_hold",
            Self::Cooldown => "cooldown",
            Self::AtBound => "at_bound",
            Self::GrowthWins => "growth_wins",
            Self::Stabilising => "stabilising",
            Self::ReversalBudget => "reversal_budget",
            Self::HostShortOfCpu => "host_short_of_cpu",
            Self::BackingOff => "backing_off",
        }
    }
}

/// A rule that fired and is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The rule as text, or the evidence that the guest is short.
    pub cause: String,
    /// What it would resize.
    pub axis: Resource,
    /// Why not.
    pub why: HeldReason,
    /// A sentence, for people.
    pub detail: String,
}

/// What to do, what not, and how every rule stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// CPUs; absent: nothing to do.
    pub cpus: Option<Wish<Cpus>>,
    /// Memory; absent: nothing to do.
    pub memory: Option<Wish<Bytes>>,
    /// Limits on I/O, in their smallest unit; absent: nothing to do.
    #[serde(default)]
    pub io: BTreeMap<Resource, Wish<u64>>,
    /// Rules that fired and are not followed. The same ones come at every look: report changes.
    pub held: Vec<Held>,
    /// Every rule, in the policy's order.
    pub thresholds: Vec<ThresholdStatus>,
}

/// Looks once. `now_ms` never goes back; the returned state is the next look's `state`.
pub fn decide(
    policy: &Policy,
    state: &PolicyState,
    seen: &Observations,
    size: &Size,
    now_ms: u64,
) -> (PolicyState, Decision) {
    let mut state = state.clone();
    let decision = decide_in_place(policy, &rule_texts(policy), &mut state, seen, size, now_ms);
    (state, decision)
}

/// The text of each rule, by which the state knows it.
pub(crate) fn rule_texts(policy: &Policy) -> Vec<String> {
    policy.rules.iter().map(Rule::to_string).collect()
}

/// [`decide`] for who looks millions of times: `texts` are made once, and the state is not copied.
pub(crate) fn decide_in_place(
    policy: &Policy,
    texts: &[String],
    state: &mut PolicyState,
    seen: &Observations,
    size: &Size,
    now_ms: u64,
) -> Decision {
    state.keep_only(texts);
    let mut readings = Vec::with_capacity(policy.rules.len());
    for (rule, text) in policy.rules.iter().zip(texts) {
        let since = state.changed_at_ms(rule.resource());
        let rule_state = state.rule_mut(text);
        readings.push(rule_state.look(policy, rule, seen, since, now_ms));
    }
    let looked: Vec<axis::Looked<'_>> = policy
        .rules
        .iter()
        .zip(texts)
        .zip(&readings)
        .map(|((rule, text), reading)| axis::Looked {
            rule,
            text,
            reading,
        })
        .collect();

    let mut decision = Decision::default();
    for on in Resource::ALL {
        let known = policy.bounds_of(on).zip(seen.present(size, on));
        let Some((bounds, present)) = known else {
            continue;
        };
        let scene = axis::Scene {
            policy,
            seen,
            size,
            axis: on,
            present,
            bounds,
            now_ms,
        };
        let (wish, held) = axis::decide(&scene, state, &looked);
        decision.held.extend(held);
        match on {
            Resource::Cpus => {
                decision.cpus =
                    wish.map(|w| w.with_target(|t| Cpus(u32::try_from(t).unwrap_or(u32::MAX))));
            }
            Resource::Memory => decision.memory = wish.map(|w| w.with_target(Bytes)),
            limit => decision.io.extend(wish.map(|wish| (limit, wish))),
        }
    }
    decision.thresholds = looked
        .iter()
        .map(|rule| threshold_status(policy, rule, state, &decision.held, now_ms))
        .collect();
    decision
}

/// How one rule stands after a decision.
fn threshold_status(
    policy: &Policy,
    looked: &axis::Looked<'_>,
    state: &PolicyState,
    held: &[Held],
    now_ms: u64,
) -> ThresholdStatus {
    let window = policy.datapoints(looked.rule);
    let held = held.iter().find(|held| held.cause == looked.text);
    let left = |on| state.cooldown_left_ms(looked.rule, looked.text, on, now_ms);
    let cooldown_ms = Direction::ALL.into_iter().map(left).max();
    let cooldown_remaining_ms = cooldown_ms.filter(|ms| *ms > 0);
    let why = held.map(|held| held.why);
    ThresholdStatus {
        rule: looked.text.to_owned(),
        state: state_word(looked.reading, why, cooldown_remaining_ms.is_some()).into(),
        last_value: looked.reading.shown,
        window: Some(WindowStatus {
            breaching: looked.reading.breaches,
            need: window.need,
            of: window.of,
            period_ms: window.period_ms,
        }),
        cooldown_remaining_ms,
        held: held.map(|held| HeldStatus {
            reason: held.why.as_str().to_owned(),
            detail: held.detail.clone(),
        }),
    }
}

/// The words of [`ThresholdStatus::state`].
fn state_word(reading: &window::Reading, why: Option<HeldReason>, cooling: bool) -> &'static str {
    if !reading.known_now {
        return "unknown";
    }
    match why {
        Some(HeldReason::Cooldown) => "cooldown",
        Some(HeldReason::Busy) => "fired",
        Some(_) => "held",
        None if reading.fired => "fired",
        None if cooling => "cooldown",
        None if reading.breaching => "breaching",
        None => "ok",
    }
}

impl<T> Wish<T> {
    /// The same wish for another number.
    pub(crate) fn with_target<U>(self, convert: impl FnOnce(T) -> U) -> Wish<U> {
        Wish {
            target: convert(self.target),
            direction: self.direction,
            causes: self.causes,
            urgency: self.urgency,
            notes: self.notes,
        }
    }
}
