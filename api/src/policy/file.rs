//! The TOML spelling of a policy, as `--policy FILE` takes it. Unknown fields are refused.
//!
//! ```toml
//! shrink_window = "60s"
//! [bounds]
//! cpus   = { min = 1, max = 4 }
//! memory = { min = "512M", max = "4G" }
//! disk   = { min = "10M,500iops", max = "100M,5000iops" }
//! net    = { min = "80mbit", max = "800mbit" }
//! [[threshold]]
//! metric = "cpu"
//! above  = "75%"
//! for    = "5s"
//! add    = { cpus = 1 }
//! [[target]]
//! metric = "memory"
//! level  = "70%"
//! [[threshold]]
//! metric = "net"
//! above  = "80%"
//! add    = { net.mbps = 50 }
//! ```

use std::fmt;
use std::fmt::Display;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::rule::{self, Setting, time_ms};
use super::{
    Action, Amount, Comparison, IoBounds, MAX_DATAPOINTS, MAX_PERIOD_MS, MAX_WAIT_MS,
    MIN_PERIOD_MS, Metric, MetricUnit, Missing, Policy, PolicyBounds, PolicyError, Resource, Rule,
    Target, Threshold, Window,
};
use crate::io::IoRate;
use crate::io::bounds::RateBounds;
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
    disk: Option<FileRates>,
    net: Option<FileRates>,
}

/// Bounds of a limit, each end as on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRates {
    #[serde(deserialize_with = "rate")]
    min: IoRate,
    #[serde(deserialize_with = "rate")]
    max: IoRate,
}

fn rate<'de, D: Deserializer<'de>>(d: D) -> Result<IoRate, D::Error> {
    String::deserialize(d)?.parse().map_err(D::Error::custom)
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

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileAmount {
    cpus: Option<Cpus>,
    memory: Option<Bytes>,
    /// `disk.mbps = 100` is a key in a table `disk`.
    disk: Option<FileDisk>,
    net: Option<FileNet>,
    percent: Option<u32>,
    of: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileDisk {
    mbps: Option<u64>,
    iops: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileNet {
    mbps: Option<u64>,
    pps: Option<u64>,
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

    /// The same with the bounds of limits on I/O that the command line gives. Bounds that are given in
    /// both places have to be the same.
    pub fn with_rates(
        mut self,
        disk: Option<RateBounds>,
        net: Option<RateBounds>,
    ) -> Result<Self, PolicyError> {
        for (of, given, file) in [
            ("disk", disk, &mut self.bounds.disk),
            ("net", net, &mut self.bounds.net),
        ] {
            let Some(given) = given else { continue };
            let bounds = one_of(of, Some(given), rates(of, *file)?)?;
            *file = Some(FileRates {
                min: bounds.min(),
                max: bounds.max(),
            });
        }
        Ok(self)
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
        policy.io = IoBounds {
            disk: rates("disk", self.bounds.disk)?,
            net: rates("net", self.bounds.net)?,
        };
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

fn rates(of: &str, file: Option<FileRates>) -> Result<Option<RateBounds>, PolicyError> {
    let bounds = file.map(|rates| RateBounds::between(rates.min, rates.max));
    let bounds = bounds.transpose();
    bounds.map_err(|error| PolicyError::Bounds(format!("Bounds of {of}: {error}")))
}

fn one_of<B: PartialEq + Display + Copy>(
    axis: &str,
    given: Option<B>,
    file: Option<B>,
) -> Result<B, PolicyError> {
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
                Amount::Io { of, size } => Ok(Action::SetIo { of, size }),
                Amount::Percent { percent, .. } => {
                    let allowed = "a size: cpus, memory, disk.mbps or the like";
                    Err(place.wrong("set", format!("{percent}%"), allowed))
                }
            },
            _ => Err(place.wrong("action", "", "write exactly one of add, remove, set")),
        }
    }
}

impl FileAmount {
    fn read(&self, metric: &Metric, place: &Place) -> Result<Amount, PolicyError> {
        let (disk, net) = (self.disk.unwrap_or_default(), self.net.unwrap_or_default());
        let limits = [
            (Resource::DiskBytes, disk.mbps),
            (Resource::DiskOps, disk.iops),
            (Resource::NetBytes, net.mbps),
            (Resource::NetOps, net.pps),
        ];
        let mut limits = limits.into_iter().filter_map(|(of, n)| Some((of, n?)));
        let limit = (limits.next(), limits.next());
        match (self.cpus, self.memory, limit, self.percent, &self.of) {
            (Some(cpus), None, (None, _), None, None) => Ok(Amount::Cpus(cpus)),
            (None, Some(bytes), (None, _), None, None) => Ok(Amount::Memory(bytes)),
            (None, None, (Some((of, count)), None), None, None) => rule::io_size(of, count)
                .ok_or_else(|| place.wrong("action", count, "a limit that fits into 64 bits")),
            (None, None, (None, _), Some(percent), of) => {
                let of = match of {
                    Some(name) => Some(share_of(name, place)?),
                    None => metric.natural_resource(),
                };
                let of = of.ok_or_else(|| {
                    let allowed =
                        format!("{metric} belongs to no size: add of = \"cpu\" or \"memory\"");
                    place.wrong("percent", percent, allowed)
                })?;
                Ok(Amount::Percent { percent, of })
            }
            _ => {
                let allowed = "exactly one of { cpus = 1 }, { memory = \"512M\" }, \
                               { disk.mbps = 100 }, { disk.iops = 500 }, { net.mbps = 50 }, \
                               { net.pps = 5000 }, { percent = 25 }";
                Err(place.wrong("action", "", allowed))
            }
        }
    }
}

fn share_of(name: &str, place: &Place) -> Result<Resource, PolicyError> {
    let named = |resource: &Resource| {
        resource.as_str() == name || (*resource == Resource::Cpus && name == "cpus")
    };
    Resource::ALL.into_iter().find(named).ok_or_else(|| {
        let names = Resource::ALL.map(Resource::as_str).join(", ");
        place.wrong("of", name, format!("one of {names}"))
    })
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
