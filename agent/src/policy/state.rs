//! What the decision remembers between two looks. Serialisable: it is kept across restarts of the
//! agent, so that cooldowns, budgets and the shrink window survive them.
//!
//! The caller tells it how resizes ended: [`PolicyState::committed`], [`PolicyState::not_reached`],
//! and [`PolicyState::resized_by_hand`]. Cooldowns count from the commit, not from the decision.

use std::collections::{BTreeMap, VecDeque};

use concertina_api::instance::{AxisScaling, ScalingStatus};
use concertina_api::policy::{Direction, Policy, Resource, Rule};
use serde::{Deserialize, Serialize};

use super::window::{RuleState, STALE_PERIODS};

const HOUR_MS: u64 = 3_600_000;
/// Wait after a first failed resize; it doubles with each further one.
const FIRST_BACK_OFF_MS: u64 = 5_000;
/// Longest wait after failed resizes.
const LAST_BACK_OFF_MS: u64 = 300_000;

/// What the decision about one instance remembers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyState {
    /// By rule text: a changed policy keeps what it knows of the rules that stayed.
    rules: BTreeMap<String, RuleState>,
    cpus: AxisState,
    memory: AxisState,
    /// Limits on I/O that have bounds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    io: BTreeMap<Resource, AxisState>,
}

/// What is remembered of one axis.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AxisState {
    /// When its size last changed.
    pub(super) changed_at_ms: Option<u64>,
    manual_at_ms: Option<u64>,
    last_direction: Option<Direction>,
    /// When the direction changed, oldest first, within the last hour.
    reversals_ms: VecDeque<u64>,
    /// Sizes wanted within the shrink window, as (time, size): sizes fall and times rise from front
    /// to back, so that the front is the largest.
    wanted: VecDeque<(u64, u64)>,
    looked_at_ms: Option<u64>,
    back_off: BTreeMap<Direction, BackOff>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct BackOff {
    failures: u32,
    until_ms: u64,
}

impl PolicyState {
    pub(super) fn keep_only(&mut self, texts: &[String]) {
        self.rules.retain(|text, _| texts.contains(text));
    }

    pub(super) fn rule_mut(&mut self, text: &str) -> &mut RuleState {
        // Asked for at each look: only the first time there is something to be made.
        if !self.rules.contains_key(text) {
            self.rules.insert(text.to_owned(), RuleState::default());
        }
        self.rules.entry(text.to_owned()).or_default()
    }

    fn axis(&self, axis: Resource) -> Option<&AxisState> {
        match axis {
            Resource::Cpus => Some(&self.cpus),
            Resource::Memory => Some(&self.memory),
            limit => self.io.get(&limit),
        }
    }

    pub(super) fn axis_mut(&mut self, axis: Resource) -> &mut AxisState {
        match axis {
            Resource::Cpus => &mut self.cpus,
            Resource::Memory => &mut self.memory,
            limit => self.io.entry(limit).or_default(),
        }
    }

    /// When the size of an axis last changed.
    pub(super) fn changed_at_ms(&self, axis: Resource) -> Option<u64> {
        self.axis(axis)?.changed_at_ms
    }

    /// The largest size wanted of an axis within the shrink window, and when.
    pub(super) fn largest_wanted(&self, axis: Resource) -> Option<(u64, u64)> {
        self.axis(axis)?.wanted.front().copied()
    }

    /// A resize that a decision asked for has changed the size of an axis, wholly or in part, in
    /// this direction. `causes` are those of its wish.
    pub fn committed(
        &mut self,
        policy: &Policy,
        axis: impl Into<Resource>,
        direction: Direction,
        causes: &[String],
        now_ms: u64,
    ) {
        let axis = axis.into();
        for cause in causes {
            // Also of a rule that was not looked at yet: an agent before this one has done it.
            let rule = self.rule_mut(cause);
            match direction {
                Direction::Grow => rule.grew_at_ms = Some(now_ms),
                Direction::Shrink => rule.shrank_at_ms = Some(now_ms),
            }
        }
        self.restart_windows(policy, axis, now_ms);
        let state = self.axis_mut(axis);
        state.changed_at_ms = Some(now_ms);
        state.back_off.clear();
        state.forget_old_reversals(now_ms);
        if state.last_direction.is_some_and(|last| last != direction) {
            state.reversals_ms.push_back(now_ms);
        }
        state.last_direction = Some(direction);
    }

    /// A resize that a decision asked for has ended without any change of size: the next try in this
    /// direction waits, longer each time.
    pub fn not_reached(&mut self, axis: impl Into<Resource>, direction: Direction, now_ms: u64) {
        let back_off = self
            .axis_mut(axis.into())
            .back_off
            .entry(direction)
            .or_default();
        let doublings = back_off.failures.min(16);
        back_off.failures = back_off.failures.saturating_add(1);
        let wait = (FIRST_BACK_OFF_MS << doublings).min(LAST_BACK_OFF_MS);
        back_off.until_ms = now_ms.saturating_add(wait);
    }

    /// Somebody resized an axis by hand to `size` (in its smallest unit): the rules of the axis pause,
    /// and begin from this size.
    pub fn resized_by_hand(
        &mut self,
        policy: &Policy,
        axis: impl Into<Resource>,
        size: u64,
        now_ms: u64,
    ) {
        let axis = axis.into();
        self.restart_windows(policy, axis, now_ms);
        let state = self.axis_mut(axis);
        state.changed_at_ms = Some(now_ms);
        state.manual_at_ms = Some(now_ms);
        state.back_off.clear();
        state.last_direction = None;
        state.wanted.clear();
        state.wanted.push_back((now_ms, size));
    }

    fn restart_windows(&mut self, policy: &Policy, axis: Resource, now_ms: u64) {
        let of_axis = |rule: &&Rule| rule.resource() == axis;
        for rule in policy.rules.iter().filter(of_axis) {
            if let Some(state) = self.rules.get_mut(&rule.to_string()) {
                state.restart(now_ms);
            }
        }
    }

    /// What bears on all rules, for who looks at the instance.
    pub fn scaling(&self, policy: &Policy, now_ms: u64) -> ScalingStatus {
        let axis = |axis: &AxisState| AxisScaling {
            manual_hold_remaining_ms: axis.manual_left_ms(policy, now_ms),
            reversals: axis.recent_reversals(now_ms),
        };
        ScalingStatus {
            mode: policy.mode,
            shrink_window_ms: policy.shrink_window_ms,
            reversals_per_hour: policy.reversals_per_hour,
            cpus: axis(&self.cpus),
            memory: axis(&self.memory),
            io: self
                .io
                .iter()
                .map(|(limit, state)| (*limit, axis(state)))
                .collect(),
        }
    }

    /// Milliseconds in which this rule may not cause another resize in this direction.
    pub(super) fn cooldown_left_ms(
        &self,
        rule: &Rule,
        text: &str,
        direction: Direction,
        now_ms: u64,
    ) -> u64 {
        let at = self.rules.get(text).and_then(|state| match direction {
            Direction::Grow => state.grew_at_ms,
            Direction::Shrink => state.shrank_at_ms,
        });
        at.map_or(0, |at| {
            at.saturating_add(rule.cooldown_ms()).saturating_sub(now_ms)
        })
    }
}

impl AxisState {
    /// Remembers what size is wanted at this moment. `present` is what is there.
    pub(super) fn want(&mut self, policy: &Policy, size: u64, present: u64, now_ms: u64) {
        // Nothing is known about the time before the first look and of a gap between two looks:
        // it counts as if the present size had been wanted.
        let gap = policy.period_ms.saturating_mul(STALE_PERIODS);
        if self
            .looked_at_ms
            .is_none_or(|at| now_ms.saturating_sub(at) > gap)
        {
            self.remember(present, now_ms);
        }
        self.looked_at_ms = Some(now_ms);
        let over = |at: u64| now_ms.saturating_sub(at) >= policy.shrink_window_ms;
        while self.wanted.front().is_some_and(|(at, _)| over(*at)) {
            self.wanted.pop_front();
        }
        self.remember(size, now_ms);
    }

    fn remember(&mut self, size: u64, now_ms: u64) {
        while self
            .wanted
            .back()
            .is_some_and(|(_, smaller)| *smaller <= size)
        {
            self.wanted.pop_back();
        }
        self.wanted.push_back((now_ms, size));
    }

    /// Milliseconds for which a resize by hand still pauses the axis.
    pub(super) fn manual_left_ms(&self, policy: &Policy, now_ms: u64) -> u64 {
        self.manual_at_ms.map_or(0, |at| {
            at.saturating_add(policy.manual_hold_ms)
                .saturating_sub(now_ms)
        })
    }

    /// Milliseconds for which a failed resize delays the next try.
    pub(super) fn back_off_left_ms(&self, direction: Direction, now_ms: u64) -> u64 {
        self.back_off
            .get(&direction)
            .map_or(0, |wait| wait.until_ms.saturating_sub(now_ms))
    }

    /// Whether a shrink, and the growth that may have to follow it, stay within the hour's changes
    /// of direction.
    pub(super) fn may_shrink(&mut self, policy: &Policy, now_ms: u64) -> bool {
        self.forget_old_reversals(now_ms);
        let own = usize::from(self.last_direction == Some(Direction::Grow));
        self.reversals_ms.len() + own < policy.reversals_per_hour as usize
    }

    fn recent_reversals(&self, now_ms: u64) -> u32 {
        let recent = |at: &&u64| now_ms.saturating_sub(**at) < HOUR_MS;
        u32::try_from(self.reversals_ms.iter().filter(recent).count()).unwrap_or(u32::MAX)
    }

    fn forget_old_reversals(&mut self, now_ms: u64) {
        while self
            .reversals_ms
            .front()
            .is_some_and(|at| now_ms.saturating_sub(*at) >= HOUR_MS)
        {
            self.reversals_ms.pop_front();
        }
    }
}
