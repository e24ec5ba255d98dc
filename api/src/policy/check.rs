//! What makes a policy wrong: ranges, actions that can do nothing, metrics without a source, rules
//! against themselves. Rules against each other are in [`super::oscillation`].
//!
//! A step that is larger than the whole range is accepted: it is clamped to the bound, and the event
//! says so. A size that is *named* (`= 8 cpu`) has to lie inside the bounds.

use std::collections::BTreeSet;

use super::rule::{REVERSALS, REVERSALS_ALLOWED, WEIGHTS, level_text, time_text};
use super::step::MEMORY_STEP;
use super::{
    Action, Amount, Comparison, Device, MAX_DATAPOINTS, MAX_PERIOD_MS, MAX_WAIT_MS, MAX_WEIGHT,
    MIN_PERIOD_MS, Metric, MetricUnit, Missing, POLICY_VERSION, Policy, PolicyError, Resource,
    Rule, Sources, Window, oscillation,
};
use crate::units::{Bounds, Cpus};

/// Most rules of one policy.
pub const MAX_RULES: usize = 64;
/// Least CPUs that an instance can have.
pub const MIN_CPUS: Cpus = Cpus(100);
/// Largest level of a plain number.
const MAX_NUMBER: f64 = 1e15;

impl Policy {
    /// Refuses the policy if any part of it is wrong, for an instance that has these sources.
    pub fn check(&self, sources: &Sources) -> Result<(), PolicyError> {
        self.check_bounds()?;
        self.check_settings()?;
        let mut seen = BTreeSet::new();
        for rule in &self.rules {
            self.check_rule(rule, sources)?;
            if !seen.insert(rule.to_string()) {
                return Err(PolicyError::Duplicate(rule.to_string()));
            }
        }
        oscillation::check(self)
    }

    fn check_bounds(&self) -> Result<(), PolicyError> {
        let (cpus, memory) = (self.bounds.cpus, self.bounds.memory);
        let inverted = |axis: &str, min: String, max: String| {
            PolicyError::Bounds(format!(
                "Bounds of {axis} are inverted: the lower bound {min} is above the upper bound {max}"
            ))
        };
        if cpus.min > cpus.max {
            return Err(inverted("cpus", cpus.min.to_string(), cpus.max.to_string()));
        }
        if memory.min > memory.max {
            return Err(inverted(
                "memory",
                memory.min.to_string(),
                memory.max.to_string(),
            ));
        }
        if cpus.min < MIN_CPUS {
            return Err(PolicyError::Bounds(format!(
                "Lower bound of cpus {} is too small: the least is {MIN_CPUS}",
                cpus.min
            )));
        }
        if memory.min.get() < MEMORY_STEP {
            return Err(PolicyError::Bounds(format!(
                "Lower bound of memory {} is too small: the least is {}",
                memory.min,
                Resource::Memory.text(MEMORY_STEP)
            )));
        }
        Ok(())
    }

    fn check_settings(&self) -> Result<(), PolicyError> {
        let bad = |field: &str, value: String, allowed: String| PolicyError::Setting {
            field: field.to_owned(),
            value,
            allowed,
        };
        if self.version != POLICY_VERSION {
            let allowed = format!("this program knows version {POLICY_VERSION}");
            return Err(bad("version", self.version.to_string(), allowed));
        }
        let times = [
            ("period", self.period_ms, MIN_PERIOD_MS, MAX_PERIOD_MS),
            ("manual_hold", self.manual_hold_ms, 0, MAX_WAIT_MS),
            ("shrink_window", self.shrink_window_ms, 0, MAX_WAIT_MS),
        ];
        for (field, ms, min, max) in times {
            if !(min..=max).contains(&ms) {
                let allowed = format!("a time from {} to {}", time_text(min), time_text(max));
                return Err(bad(field, time_text(ms), allowed));
            }
        }
        if !WEIGHTS.contains(&self.weight) {
            let allowed = format!("a whole number from 1 to {MAX_WEIGHT}");
            return Err(bad("weight", self.weight.to_string(), allowed));
        }
        if !REVERSALS.contains(&self.reversals_per_hour) {
            let value = self.reversals_per_hour.to_string();
            return Err(bad("reversals_per_hour", value, REVERSALS_ALLOWED.into()));
        }
        if self.rules.len() > MAX_RULES {
            let allowed = format!("at most {MAX_RULES} rules");
            return Err(bad("rules", self.rules.len().to_string(), allowed));
        }
        Ok(())
    }

    fn check_rule(&self, rule: &Rule, sources: &Sources) -> Result<(), PolicyError> {
        let teller = rule.metric().source();
        if !sources.has(teller) {
            return Err(PolicyError::SourceMissing {
                rule: rule.to_string(),
                metric: rule.metric().to_string(),
                teller,
                available: sources.metrics(),
            });
        }
        self.check_level(rule)?;
        self.check_window(rule)?;
        if rule.cooldown_ms() > MAX_WAIT_MS {
            let allowed = format!("at most {}", time_text(MAX_WAIT_MS));
            return Err(bad_rule(
                rule,
                "cooldown",
                time_text(rule.cooldown_ms()),
                allowed,
            ));
        }
        self.check_action(rule)
    }

    fn check_level(&self, rule: &Rule) -> Result<(), PolicyError> {
        let (comparison, level) = match rule {
            Rule::Threshold(rule) => (Some(rule.comparison), rule.level),
            Rule::Target(rule) => (None, rule.level),
        };
        let metric = rule.metric();
        // The largest value that the metric can have, so that a level beyond it never or always fires.
        let most = match metric.unit() {
            MetricUnit::Percent => 100.0,
            MetricUnit::Bytes => self.bounds.memory.max.get() as f64,
            MetricUnit::Number => MAX_NUMBER,
        };
        let inside = match comparison {
            Some(Comparison::Above) => (0.0..most).contains(&level),
            Some(Comparison::Below) => level > 0.0 && level <= most,
            None => level > 0.0 && level <= most,
        };
        if inside {
            return Ok(());
        }
        let (zero, most) = (level_text(metric, 0.0), level_text(metric, most));
        let allowed = match comparison {
            Some(Comparison::Above) => {
                format!("{metric} can be above a level from {zero} to less than {most}")
            }
            Some(Comparison::Below) => {
                format!("{metric} can be below a level of more than {zero}, up to {most}")
            }
            None => format!("a level to keep is more than {zero} and at most {most}"),
        };
        Err(bad_rule(rule, "level", level_text(metric, level), allowed))
    }

    fn check_window(&self, rule: &Rule) -> Result<(), PolicyError> {
        let (window, period_ms) = rule.window();
        let period_ms = period_ms.unwrap_or(self.period_ms);
        if !(MIN_PERIOD_MS..=MAX_PERIOD_MS).contains(&period_ms) {
            let allowed = format!(
                "a time from {} to {}",
                time_text(MIN_PERIOD_MS),
                time_text(MAX_PERIOD_MS)
            );
            return Err(bad_rule(rule, "every", time_text(period_ms), allowed));
        }
        match window {
            Window::For(ms) if ms == 0 || !ms.is_multiple_of(period_ms) => {
                let allowed = format!(
                    "a multiple of the time between datapoints, {}; for finer times add 'every 100ms'",
                    time_text(period_ms)
                );
                Err(bad_rule(rule, "for", time_text(ms), allowed))
            }
            Window::For(ms) if ms / period_ms > u64::from(MAX_DATAPOINTS) => {
                let allowed = format!(
                    "at most {MAX_DATAPOINTS} datapoints of {}; take a longer 'every'",
                    time_text(period_ms)
                );
                Err(bad_rule(rule, "for", time_text(ms), allowed))
            }
            Window::Datapoints { need, of } if need == 0 || need > of || of > MAX_DATAPOINTS => {
                let allowed = format!("M of N with 1 <= M <= N <= {MAX_DATAPOINTS}");
                Err(bad_rule(
                    rule,
                    "datapoints",
                    format!("{need} of {of}"),
                    allowed,
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_action(&self, rule: &Rule) -> Result<(), PolicyError> {
        self.check_bounded(rule)?;
        let threshold = match rule {
            Rule::Threshold(threshold) => threshold,
            Rule::Target(target) if target.metric == rule.resource().share() => return Ok(()),
            Rule::Target(target) => {
                let shares = Resource::ALL.map(|resource| resource.share().to_string());
                let allowed = format!(
                    "target tracking keeps a share of the size: one of {}",
                    shares.join(", ")
                );
                return Err(bad_rule(rule, "metric", target.metric.to_string(), allowed));
            }
        };
        let amount = match threshold.action {
            Action::Add(amount) | Action::Remove(amount) => amount,
            Action::SetCpus(cpus) => return self.check_named(rule, u64::from(cpus.milli())),
            Action::SetMemory(bytes) => return self.check_named(rule, bytes.get()),
            Action::SetIo { size, .. } => return self.check_named(rule, size),
        };
        let growing = matches!(threshold.action, Action::Add(_));
        if !growing && self.missing(rule) == Missing::Breaching {
            let allowed = "missing data never shrinks an instance: hold or ignore".into();
            return Err(bad_rule(rule, "missing", "breaching".into(), allowed));
        }
        check_amount(rule, amount, growing)?;
        check_sense(rule, threshold.comparison, growing)
    }

    /// What a rule resizes needs bounds, and room between them.
    fn check_bounded(&self, rule: &Rule) -> Result<Bounds<u64>, PolicyError> {
        let resource = rule.resource();
        let name = resource.as_str();
        let why = match (self.bounds_of(resource), resource.device()) {
            (Some(bounds), _) if bounds.min < bounds.max => return Ok(bounds),
            (Some(bounds), _) => format!(
                "{name} is fixed at {}; give bounds like MIN..MAX",
                resource.text(bounds.min)
            ),
            (None, Some(Device::Net)) => format!(
                "{name} has no bounds; give them with --net-rate, like 100mbit..1000mbit or \
                 1000pps..50000pps, or as net under [bounds]"
            ),
            (None, _) => format!(
                "{name} has no bounds; give them with --disk-rate, like 10M..100M or \
                 500iops..5000iops, or as disk under [bounds]"
            ),
        };
        Err(PolicyError::NeverApplies {
            rule: rule.to_string(),
            why,
        })
    }

    /// A size that is named has to be one that the instance can have.
    fn check_named(&self, rule: &Rule, size: u64) -> Result<(), PolicyError> {
        let resource = rule.resource();
        let bounds = self.check_bounded(rule)?;
        if !bounds.contains(size) {
            let (min, max) = (resource.text(bounds.min), resource.text(bounds.max));
            let allowed = format!("a size inside the bounds, {min} to {max}");
            return Err(bad_rule(rule, "action", resource.text(size), allowed));
        }
        if self.missing(rule) == Missing::Breaching && size < bounds.max {
            let allowed = "missing data never shrinks an instance, and this size can be a smaller \
                           one: hold or ignore";
            return Err(bad_rule(
                rule,
                "missing",
                "breaching".into(),
                allowed.into(),
            ));
        }
        Ok(())
    }
}

fn check_amount(rule: &Rule, amount: Amount, growing: bool) -> Result<(), PolicyError> {
    let (least, most) = match amount {
        Amount::Percent { .. } => (1, if growing { 1000 } else { 100 }),
        Amount::Cpus(_) => (10, u64::from(u32::MAX)),
        Amount::Memory(_) => (MEMORY_STEP, u64::MAX),
        Amount::Io { of, .. } => (of.unit(), u64::MAX),
    };
    let (value, text) = match amount {
        Amount::Percent { percent, .. } => (u64::from(percent), format!("{percent}%")),
        Amount::Cpus(cpus) => (u64::from(cpus.milli()), format!("{cpus} cpu")),
        Amount::Memory(bytes) => (bytes.get(), bytes.to_string()),
        Amount::Io { of, size } => (size, of.text(size)),
    };
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let allowed = match amount {
        Amount::Percent { .. } => format!("a share from {least}% to {most}%"),
        _ => format!("a step of at least {}", amount.resource().text(least)),
    };
    Err(bad_rule(rule, "action", text, allowed))
}

/// Refuses rules that starve what is short or feed what is idle: they run to a bound by themselves.
fn check_sense(rule: &Rule, comparison: Comparison, growing: bool) -> Result<(), PolicyError> {
    let above = comparison == Comparison::Above;
    let busy = match (rule.metric(), rule.resource()) {
        (Metric::Cpu | Metric::CpuPressure | Metric::Load1, Resource::Cpus) => above,
        (Metric::Memory | Metric::MemoryPressure, Resource::Memory) => above,
        (Metric::MemoryAvailable, Resource::Memory) => !above,
        (Metric::Swap, Resource::Memory) => above,
        (metric, limit) if limit.device().is_some() => {
            if *metric != limit.share() && Some(metric) != limit.throughput().as_ref() {
                return Ok(());
            }
            above
        }
        _ => return Ok(()),
    };
    if busy == growing {
        return Ok(());
    }
    let (does, when) = if busy {
        ("shrinks", "short")
    } else {
        ("grows", "idle")
    };
    let allowed = format!(
        "this {does} {} when it is {when}; turn the comparison or the sign around",
        rule.resource().as_str()
    );
    let sign = if growing { "+" } else { "-" };
    Err(bad_rule(rule, "action", sign.into(), allowed))
}

fn bad_rule(rule: &Rule, field: &'static str, value: String, allowed: String) -> PolicyError {
    PolicyError::Rule {
        rule: rule.to_string(),
        field,
        value,
        allowed,
    }
}
