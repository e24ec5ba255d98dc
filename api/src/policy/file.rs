//! The TOML spelling of a policy, as `--policy FILE` takes it. Unknown fields are refused.
//!
//! ```toml
//! shrink_window = "60s"
//! [bounds]
//! cpus   = { min = 1, max = 4 }
//! memory = { min = "512M", max = "4G" }
//! [[threshold]]
//! metric = "cpu"
//! above  = "75%"
//! for    = "5s"
//! add    = { cpus = 1 }
//! [[target]]
//! metric = "memory"
//! level  = "70%"
//! ```

use std::fmt;
use std::fmt::Display;

use serde::Deserialize;

use super::rule::{self, Setting, time_ms};
use super::{
    Action, Amount, Axis, Comparison, MAX_DATAPOINTS, MAX_PERIOD_MS, MAX_WAIT_MS, MIN_PERIOD_MS,
    Metric, MetricUnit, Missing, Policy, PolicyBounds, PolicyError, Rule, Target, Threshold,
    Window,
};
use crate::units::{Bounds, Bytes, Cpus};

/// A policy in its customer's words.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyFile {
    version: Option<u32>,
    bounds: FileBounds,
    period: Option<String>,
    missing: Option<Missing>,
    manual_hold: Option<String>,
    shrink_window: Option<String>,
    reversals_per_hour: Option<u32>,
    mode: Option<String>,
    restart: Option<String>,
    weight: Option<u32>,
    threshold: Vec<FileThreshold>,
    target: Vec<FileTarget>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileBounds {
    cpus: Option<Bounds<Cpus>>,
    memory: Option<Bounds<Bytes>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileThreshold {
    metric: String,
    above: Option<Level>,
    below: Option<Level>,
    r#for: Option<String>,
    datapoints: Option<String>,
    period: Option<String>,
    add: Option<FileAmount>,
    remove: Option<FileAmount>,
    set: Option<FileAmount>,
    cooldown: Option<String>,
    missing: Option<Missing>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTarget {
    metric: String,
    level: Level,
    r#for: Option<String>,
    period: Option<String>,
    cooldown: Option<String>,
}

/// `"75%"`, `75` or `"64M"`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Level {
    Whole(u64),
    Number(f64),
    Text(String),
}

impl Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AxisName {
    #[serde(alias = "cpus")]
    Cpu,
    Memory,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileAmount {
    cpus: Option<Cpus>,
    memory: Option<Bytes>,
    percent: Option<u32>,
    of: Option<AxisName>,
}

/// Where in the file something is wrong.
struct Place(String);

impl Place {
    fn wrong(
        &self,
        field: &'static str,
        value: impl Display,
        allowed: impl Into<String>,
    ) -> PolicyError {
        PolicyError::Rule {
            rule: self.0.clone(),
            field,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    fn time(
        &self,
        field: &'static str,
        text: Option<&String>,
        (min_ms, max_ms): (u64, u64),
    ) -> Result<Option<u64>, PolicyError> {
        let read = |text: &String| {
            time_ms(text, min_ms, max_ms).map_err(|allowed| self.wrong(field, text, allowed))
        };
        text.map(read).transpose()
    }

    fn metric(&self, name: &str) -> Result<Metric, PolicyError> {
        name.parse()
            .map_err(|error: super::metric::UnknownMetric| self.wrong("metric", name, error.0))
    }

    fn level(&self, metric: &Metric, level: &Level) -> Result<f64, PolicyError> {
        // A bare number of a share is in percent.
        let text = match (level, metric.unit()) {
            (Level::Text(text), _) => text.replace(" %", "%"),
            (number, MetricUnit::Percent) => format!("{number}%"),
            (number, _) => number.to_string(),
        };
        rule::parse_level(metric, &text).map_err(|allowed| self.wrong("level", level, allowed))
    }
}

const PERIODS: (u64, u64) = (MIN_PERIOD_MS, MAX_PERIOD_MS);
const WINDOWS: (u64, u64) = (MIN_PERIOD_MS, MAX_DATAPOINTS as u64 * MAX_PERIOD_MS);
const WAITS: (u64, u64) = (0, MAX_WAIT_MS);

impl PolicyFile {
    /// The bounds that are written in it.
    pub fn bounds(&self) -> (Option<Bounds<Cpus>>, Option<Bounds<Bytes>>) {
        (self.bounds.cpus, self.bounds.memory)
    }

    /// The policy, with the bounds of the command line where they are given. Bounds that are given
    /// in both places have to be the same.
    pub fn into_policy(
        self,
        cpus: Option<Bounds<Cpus>>,
        memory: Option<Bounds<Bytes>>,
    ) -> Result<Policy, PolicyError> {
        let bounds = PolicyBounds {
            cpus: one_of("cpus", cpus, self.bounds.cpus)?,
            memory: one_of("memory", memory, self.bounds.memory)?,
        };
        let mut policy = Policy::new(bounds);
        policy.version = self.version.unwrap_or(policy.version);
        policy.missing = self.missing.unwrap_or(policy.missing);
        let count = self.reversals_per_hour.map(|count| count.to_string());
        let settings = [
            ("period", self.period),
            ("manual_hold", self.manual_hold),
            ("shrink_window", self.shrink_window),
            ("reversals_per_hour", count),
            ("mode", self.mode),
            ("restart", self.restart),
            ("weight", self.weight.map(|weight| weight.to_string())),
        ];
        for (name, value) in settings {
            if let Some(value) = value {
                Setting::parse(name, &value)?.apply(&mut policy);
            }
        }
        for (number, threshold) in (1u32..).zip(&self.threshold) {
            let place = Place(format!("[[threshold]] number {number}"));
            policy.rules.push(Rule::Threshold(threshold.read(&place)?));
        }
        for (number, target) in (1u32..).zip(&self.target) {
            let place = Place(format!("[[target]] number {number}"));
            policy.rules.push(Rule::Target(target.read(&place)?));
        }
        Ok(policy)
    }
}

fn one_of<T: PartialEq + Display + Copy>(
    axis: &str,
    given: Option<Bounds<T>>,
    file: Option<Bounds<T>>,
) -> Result<Bounds<T>, PolicyError> {
    match (given, file) {
        (Some(given), Some(file)) if given != file => Err(PolicyError::Bounds(format!(
            "Bounds of {axis} are {given} on the command line and {file} in the policy file: \
             write them once, or the same"
        ))),
        (Some(bounds), _) | (None, Some(bounds)) => Ok(bounds),
        (None, None) => Err(PolicyError::Bounds(format!(
            "Bounds of {axis} are missing: give them on the command line or in the policy file"
        ))),
    }
}

impl FileThreshold {
    fn read(&self, place: &Place) -> Result<Threshold, PolicyError> {
        let metric = place.metric(&self.metric)?;
        let (comparison, level) = match (&self.above, &self.below) {
            (Some(level), None) => (Comparison::Above, level),
            (None, Some(level)) => (Comparison::Below, level),
            (Some(above), Some(below)) => {
                let value = format!("{above}' and '{below}");
                return Err(place.wrong("above and below", value, "write one of the two"));
            }
            (None, None) => {
                return Err(place.wrong("level", "", "write above = \"75%\" or below = \"20%\""));
            }
        };
        let window = match (&self.r#for, &self.datapoints) {
            (Some(_), Some(points)) => {
                return Err(place.wrong(
                    "datapoints",
                    points,
                    "write 'for' or 'datapoints', not both",
                ));
            }
            (time @ Some(_), None) => place.time("for", time.as_ref(), WINDOWS)?.map(Window::For),
            (None, Some(points)) => {
                let (need, of) = points.split_once('/').unwrap_or((points, ""));
                let read = rule::datapoints(need, of);
                Some(read.map_err(|_| {
                    let allowed = format!("\"M/N\" with 1 <= M <= N <= {MAX_DATAPOINTS}");
                    place.wrong("datapoints", points, allowed)
                })?)
            }
            (None, None) => None,
        };
        Ok(Threshold {
            level: place.level(&metric, level)?,
            comparison,
            window: window.unwrap_or(Window::Datapoints { need: 1, of: 1 }),
            period_ms: place.time("period", self.period.as_ref(), PERIODS)?,
            action: self.action(&metric, place)?,
            cooldown_ms: place
                .time("cooldown", self.cooldown.as_ref(), WAITS)?
                .unwrap_or(0),
            missing: self.missing,
            metric,
        })
    }

    fn action(&self, metric: &Metric, place: &Place) -> Result<Action, PolicyError> {
        match (&self.add, &self.remove, &self.set) {
            (Some(add), None, None) => add.read(metric, place).map(Action::Add),
            (None, Some(remove), None) => remove.read(metric, place).map(Action::Remove),
            (None, None, Some(set)) => match set.read(metric, place)? {
                Amount::Cpus(cpus) => Ok(Action::SetCpus(cpus)),
                Amount::Memory(bytes) => Ok(Action::SetMemory(bytes)),
                Amount::Percent { percent, .. } => {
                    Err(place.wrong("set", format!("{percent}%"), "a size: cpus or memory"))
                }
            },
            _ => Err(place.wrong("action", "", "write exactly one of add, remove, set")),
        }
    }
}

impl FileAmount {
    fn read(&self, metric: &Metric, place: &Place) -> Result<Amount, PolicyError> {
        match (self.cpus, self.memory, self.percent, self.of) {
            (Some(cpus), None, None, None) => Ok(Amount::Cpus(cpus)),
            (None, Some(bytes), None, None) => Ok(Amount::Memory(bytes)),
            (None, None, Some(percent), of) => {
                let axis = match of {
                    Some(AxisName::Cpu) => Some(Axis::Cpus),
                    Some(AxisName::Memory) => Some(Axis::Memory),
                    None => metric.natural_axis(),
                };
                let axis = axis.ok_or_else(|| {
                    let allowed =
                        format!("{metric} belongs to no size: add of = \"cpu\" or \"memory\"");
                    place.wrong("percent", percent, allowed)
                })?;
                Ok(Amount::Percent { percent, axis })
            }
            _ => {
                let allowed =
                    "exactly one of { cpus = 1 }, { memory = \"512M\" }, { percent = 25 }";
                Err(place.wrong("action", "", allowed))
            }
        }
    }
}

impl FileTarget {
    fn read(&self, place: &Place) -> Result<Target, PolicyError> {
        let metric = place.metric(&self.metric)?;
        let window = place.time("for", self.r#for.as_ref(), WINDOWS)?;
        Ok(Target {
            level: place.level(&metric, &self.level)?,
            window: window.map_or(Window::Datapoints { need: 1, of: 1 }, Window::For),
            period_ms: place.time("period", self.period.as_ref(), PERIODS)?,
            cooldown_ms: place
                .time("cooldown", self.cooldown.as_ref(), WAITS)?
                .unwrap_or(0),
            metric,
        })
    }
}
