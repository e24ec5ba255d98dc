//! From samples to "fired", for one rule.
//!
//! A datapoint is the mean of the samples that arrived in one period. A period without a sample takes
//! the last good one if that is not older than three periods; otherwise its datapoint is unknown.
//! A sample that is not a number, or absurd for its metric, makes a period unknown that had no good
//! one. A rule fires when M of its last N datapoints breach. Datapoints from before a resize of the
//! rule's axis describe another size, and are forgotten with it.

use std::collections::VecDeque;

use concertina_api::policy::{Datapoints, Metric, MetricUnit, Missing, Policy, Rule};
use serde::{Deserialize, Serialize};

use super::{Observations, Sample};

/// A sample older than so many periods is unknown.
pub const STALE_PERIODS: u64 = 3;
/// Shares are differences of counters read one after the other: so much above 100 is still 100.
const PERCENT_SLACK: f64 = 10.0;
/// A look may come so much of a period early (one part of this many) and still close it.
const EARLY_PART: u64 = 10;

/// What one rule remembers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleState {
    /// When the last period was closed.
    closed_at_ms: Option<u64>,
    /// Newest last; `None` is unknown.
    points: VecDeque<Option<f64>>,
    /// Sum and number of the good samples since then.
    sum: f64,
    count: u32,
    /// A bad sample arrived since then.
    bad: bool,
    /// Time of the newest sample that was taken in.
    taken_at_ms: Option<u64>,
    /// The last good sample.
    good: Option<Sample>,
    /// The value of the last datapoint, for people.
    shown: Option<f64>,
    /// The last datapoint is known.
    latest_known: bool,
    fired: bool,
    /// When a resize that it caused was committed.
    pub(super) grew_at_ms: Option<u64>,
    pub(super) shrank_at_ms: Option<u64>,
}

/// How a rule stands after a look.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The metric has a fresh, sane value at this moment.
    pub known_now: bool,
    /// The last datapoint is known.
    pub latest_known: bool,
    /// The last datapoint breaches. Never true when it is unknown.
    pub breaching: bool,
    /// How many datapoints of the window breach.
    pub breaches: u32,
    /// M of N breach, or did when the data went missing.
    pub fired: bool,
    /// M of N breach on the evidence at hand: the rule may act.
    pub acts: bool,
    /// Mean of the window, where all of it is known.
    pub mean: Option<f64>,
    /// Value of the last datapoint, for people.
    pub shown: Option<f64>,
}

impl RuleState {
    /// Takes in what was seen, closes periods that are over, and says how the rule stands. Samples
    /// taken at `since_ms` or before (the last resize) are ignored.
    pub(super) fn look(
        &mut self,
        policy: &Policy,
        rule: &Rule,
        seen: &Observations,
        since_ms: Option<u64>,
        now_ms: u64,
    ) -> Reading {
        let window = policy.datapoints(rule);
        let missing = policy.missing(rule);
        let stale_ms = window.period_ms.saturating_mul(STALE_PERIODS);
        let sample = seen.samples.get(rule.metric()).copied();
        let value = sample.and_then(|sample| sane(policy, rule.metric(), sample.value));
        let fresh = |sample: &Sample| now_ms.abs_diff(sample.at_ms) <= stale_ms;
        let usable = |sample: &Sample| since_ms.is_none_or(|since| sample.at_ms > since);

        let new_at = self.taken_at_ms;
        let arrived = |sample: &Sample| new_at.is_none_or(|taken| sample.at_ms > taken);
        if let Some(sample) = sample.filter(fresh).filter(usable).filter(arrived) {
            self.taken_at_ms = Some(sample.at_ms);
            match value {
                Some(value) => {
                    self.sum += value;
                    self.count = self.count.saturating_add(1);
                    self.good = Some(Sample {
                        value,
                        at_ms: sample.at_ms,
                    });
                }
                None => self.bad = true,
            }
        }
        self.close_periods(window, missing, stale_ms, now_ms);
        let known_now = value.is_some() && sample.is_some_and(|sample| fresh(&sample));
        self.read(rule, window, missing, known_now)
    }

    fn close_periods(&mut self, window: Datapoints, missing: Missing, stale_ms: u64, now_ms: u64) {
        let early = window.period_ms / EARLY_PART;
        let periods = match self.closed_at_ms {
            None => 1,
            Some(at) => (now_ms.saturating_sub(at) + early) / window.period_ms,
        };
        if periods == 0 {
            return;
        }
        let value = if self.count > 0 {
            Some(self.sum / f64::from(self.count))
        } else if self.bad {
            None
        } else {
            let fresh = |sample: &Sample| now_ms.abs_diff(sample.at_ms) <= stale_ms;
            self.good.filter(fresh).map(|sample| sample.value)
        };
        // A rate covers the time since the sample before it, so a look that is a little late fills
        // the periods it missed. After a longer gap nobody knows what was between.
        let late = periods <= STALE_PERIODS;
        let skipped = (periods - 1).min(u64::from(window.of));
        for _ in 0..skipped {
            self.push(if late { value } else { None }, window, missing);
        }
        self.push(value, window, missing);
        self.latest_known = value.is_some();
        self.shown = value;
        (self.sum, self.count, self.bad) = (0.0, 0, false);
        // Whole periods from the last close, so that looks which come a little late do not add up.
        let regular = |at: u64| at.saturating_add(periods.saturating_mul(window.period_ms));
        self.closed_at_ms = Some(match self.closed_at_ms {
            Some(at) if late => regular(at),
            _ => now_ms,
        });
    }

    fn push(&mut self, value: Option<f64>, window: Datapoints, missing: Missing) {
        if value.is_none() && missing == Missing::Ignore {
            return;
        }
        self.points.push_back(value);
        while self.points.len() > window.of as usize {
            self.points.pop_front();
        }
    }

    fn read(
        &mut self,
        rule: &Rule,
        window: Datapoints,
        missing: Missing,
        known_now: bool,
    ) -> Reading {
        let known = self.points.iter().flatten();
        let known_count = known.clone().count();
        let latest = self
            .points
            .back()
            .copied()
            .flatten()
            .filter(|_| self.latest_known);
        let mut reading = Reading {
            known_now,
            latest_known: latest.is_some(),
            breaching: false,
            breaches: 0,
            fired: false,
            acts: false,
            mean: None,
            shown: self.shown,
        };
        match rule {
            Rule::Target(_) => {
                let whole = known_count == window.of as usize && latest.is_some();
                reading.mean = whole.then(|| known.sum::<f64>() / known_count.max(1) as f64);
            }
            Rule::Threshold(rule) => {
                let breaches = |value: &f64| rule.comparison.breached(*value, rule.level);
                let assumed = match missing {
                    Missing::Breaching => self.points.len() - known_count,
                    Missing::Hold | Missing::Ignore => 0,
                };
                let breaching = known.filter(|value| breaches(value)).count() + assumed;
                reading.breaches = u32::try_from(breaching).unwrap_or(u32::MAX);
                reading.acts = breaching >= window.need as usize;
                let whole = known_count + assumed >= window.of as usize;
                self.fired = reading.acts || (self.fired && !whole);
                reading.breaching = latest.is_some_and(|value| breaches(&value));
            }
        }
        reading.fired = self.fired;
        reading
    }

    /// Forgets datapoints: the axis has another size.
    pub(super) fn restart(&mut self, now_ms: u64) {
        self.points.clear();
        (self.sum, self.count, self.bad) = (0.0, 0, false);
        self.good = None;
        self.fired = false;
        self.latest_known = false;
        self.closed_at_ms = Some(now_ms);
    }
}

/// The value if the metric can have it; a share that is a little above 100 % is 100 %.
pub(super) fn sane(policy: &Policy, metric: &Metric, value: f64) -> Option<f64> {
    let sane = match metric.unit() {
        MetricUnit::Percent => (0.0..=100.0 + PERCENT_SLACK).contains(&value),
        MetricUnit::Bytes => (0.0..=policy.bounds.memory.max.get() as f64).contains(&value),
        MetricUnit::Number => value.is_finite() && value >= 0.0,
    };
    let most = if metric.unit() == MetricUnit::Percent {
        100.0
    } else {
        f64::MAX
    };
    sane.then(|| value.min(most))
}
