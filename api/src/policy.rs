//! A customer's policy: bounds, and the rules by which an instance grows and shrinks inside them.
//!
//! One model with two spellings: `--scale` rules ([`rule`], whose grammar is written there) and a
//! TOML file ([`file`]). [`Policy::check`] refuses what is wrong or would oscillate ([`check`],
//! [`oscillation`]); [`step`] says what an action makes of a size. Deciding is not done here: the
//! agent does it, with this model as its input.

pub mod check;
pub mod file;
pub mod metric;
pub mod oscillation;
pub mod resource;
pub mod rule;
pub mod step;

#[cfg(test)]
mod io_tests;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::io::bounds::RateBounds;
use crate::units::{Bounds, Bytes, Cpus};
pub use file::PolicyFile;
pub use metric::{Metric, MetricUnit, Source, Sources};
pub use resource::{Device, Resource};
pub use rule::ScaleArgument;

/// Version of the model that this program writes and reads.
pub const POLICY_VERSION: u32 = 1;
/// Shortest time between two datapoints of a rule, in milliseconds.
pub const MIN_PERIOD_MS: u64 = 100;
/// Longest time between two datapoints of a rule, in milliseconds.
pub const MAX_PERIOD_MS: u64 = 3_600_000;
/// Most datapoints that one rule may look back on.
pub const MAX_DATAPOINTS: u32 = 3600;
/// Longest cooldown, shrink window or manual hold, in milliseconds: one week.
pub const MAX_WAIT_MS: u64 = 7 * 24 * 3_600_000;
/// Largest weight.
pub const MAX_WEIGHT: u32 = 10_000;

/// Something is wrong with a policy: a sentence for who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A part of a rule cannot be read or is out of range.
    #[error("Rule '{rule}': {field} '{value}' is not allowed: {allowed}")]
    Rule {
        /// The rule as it was written.
        rule: String,
        /// Which part of it.
        field: &'static str,
        /// What stood there.
        value: String,
        /// What may stand there.
        allowed: String,
    },
    /// A setting cannot be read or is out of range.
    #[error("Policy setting {field} = '{value}' is not allowed: {allowed}")]
    Setting {
        /// Its name.
        field: String,
        /// What stood there.
        value: String,
        /// What may stand there.
        allowed: String,
    },
    /// Two sources of the same thing disagree, or bounds make no sense.
    #[error("{0}")]
    Bounds(String),
    /// The rule's action can do nothing inside the bounds.
    #[error("Rule '{rule}' can never apply: {why}")]
    NeverApplies {
        /// The rule.
        rule: String,
        /// Why not.
        why: String,
    },
    /// The rule's metric has no source on this host or in this instance.
    #[error(
        "Rule '{rule}' needs {metric}, which comes from the {teller}: this instance has none; \
         available are: {available}"
    )]
    SourceMissing {
        /// The rule.
        rule: String,
        /// Its metric.
        metric: String,
        /// Who would know.
        teller: Source,
        /// Metrics that can be used.
        available: String,
    },
    /// The same rule stands there twice.
    #[error("Rule '{0}' is written twice: leave one of them out")]
    Duplicate(String),
    /// Two rules would chase each other.
    #[error("Rules '{grow}' and '{shrink}' would oscillate: {why}")]
    Oscillates {
        /// The rule that grows.
        grow: String,
        /// The rule that shrinks.
        shrink: String,
        /// How, and what to change.
        why: String,
    },
}

/// The resources that a host has only so much of, and in whose change the guest has a part. Limits of
/// I/O are [`Resource`]s as well, and no axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// CPUs: vCPUs online and the quota on them.
    Cpus,
    /// Memory.
    Memory,
}

impl Axis {
    /// Every axis.
    pub const ALL: [Self; 2] = [Self::Cpus, Self::Memory];

    /// The word in rules and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpus => "cpu",
            Self::Memory => "memory",
        }
    }
}

/// Larger or smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Larger.
    Grow,
    /// Smaller.
    Shrink,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Grow, Self::Shrink];
}

/// On which side of the level a value breaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// Strictly more than the level.
    Above,
    /// Strictly less than the level.
    Below,
}

impl Comparison {
    /// Whether `value` is on the breaching side of `level`.
    pub fn breached(self, value: f64, level: f64) -> bool {
        match self {
            Self::Above => value > level,
            Self::Below => value < level,
        }
    }
}

/// What a datapoint without a value counts as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// As unknown: the rule fires only if the known points alone suffice, else it stays as it was.
    #[default]
    Hold,
    /// As a breach. Allowed for growing only.
    Breaching,
    /// As if its period had not been: the window looks further back.
    Ignore,
}

/// What becomes of decisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They are carried out.
    #[default]
    Act,
    /// They are reported, and nothing else.
    Recommend,
}

/// Whether an instance whose guest or vmm failed is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It has ended.
    #[default]
    Never,
    /// After a crash, a kill or a guest's panic, at its first size, with pauses that grow. A guest that
    /// powered off, or was stopped, has not failed.
    OnFailure,
}

/// How many datapoints have to breach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// All datapoints of this time, in milliseconds; a multiple of the period.
    For(u64),
    /// `need` of the last `of` datapoints.
    Datapoints {
        /// How many have to breach, 1 to `of`.
        need: u32,
        /// How many are looked at, up to [`MAX_DATAPOINTS`].
        of: u32,
    },
}

/// How much is added or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many CPUs.
    Cpus(Cpus),
    /// So much memory.
    Memory(Bytes),
    /// So much of a limit of I/O.
    Io {
        /// Which limit.
        of: Resource,
        /// How much, in its smallest unit; a multiple of [`Resource::unit`].
        size: u64,
    },
    /// A share of the present size, in percent.
    Percent {
        /// 1 to 1000 when growing, 1 to 100 when shrinking.
        percent: u32,
        /// Of which size.
        of: Resource,
    },
}

impl Amount {
    /// What it is an amount of.
    pub fn resource(self) -> Resource {
        match self {
            Self::Cpus(_) => Resource::Cpus,
            Self::Memory(_) => Resource::Memory,
            Self::Io { of, .. } | Self::Percent { of, .. } => of,
        }
    }
}

/// What a threshold does when it fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Grow by so much.
    Add(Amount),
    /// Shrink by so much.
    Remove(Amount),
    /// Take this many CPUs, be it more or less.
    SetCpus(Cpus),
    /// Take this much memory, be it more or less.
    SetMemory(Bytes),
    /// Take this limit of I/O, be it higher or lower.
    SetIo {
        /// Which limit.
        of: Resource,
        /// The limit, in its smallest unit; a multiple of [`Resource::unit`].
        size: u64,
    },
}

impl Action {
    /// What it resizes.
    pub fn resource(self) -> Resource {
        match self {
            Self::Add(amount) | Self::Remove(amount) => amount.resource(),
            Self::SetCpus(_) => Resource::Cpus,
            Self::SetMemory(_) => Resource::Memory,
            Self::SetIo { of, .. } => of,
        }
    }
}

/// When a metric is beyond a level for a while, do something.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// What is looked at.
    pub metric: Metric,
    /// On which side of the level it breaches.
    pub comparison: Comparison,
    /// The level, in the metric's unit (percent, bytes or a plain number).
    pub level: f64,
    /// How long.
    pub window: Window,
    /// Time between datapoints in milliseconds; absent: the policy's.
    pub period_ms: Option<u64>,
    /// What is done.
    pub action: Action,
    /// Milliseconds after the commit of a resize that it caused in which it causes no other in the
    /// same direction.
    pub cooldown_ms: u64,
    /// What a datapoint without a value counts as; absent: the policy's.
    pub missing: Option<Missing>,
}

/// Keep a metric near a level by making the size proportional to it (target tracking).
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The share of a resource that is in use ([`Resource::share`]): the rule steers its size.
    pub metric: Metric,
    /// The level to keep, in percent.
    pub level: f64,
    /// Mean over this long; one period by default. Only [`Window::For`].
    pub window: Window,
    /// Time between datapoints in milliseconds; absent: the policy's.
    pub period_ms: Option<u64>,
    /// As for a threshold.
    pub cooldown_ms: u64,
}

/// One rule of a policy. Its text form parses back to itself; serde uses that text.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// A threshold.
    Threshold(Threshold),
    /// Target tracking.
    Target(Target),
}

impl Rule {
    /// What is looked at.
    pub fn metric(&self) -> &Metric {
        match self {
            Self::Threshold(rule) => &rule.metric,
            Self::Target(rule) => &rule.metric,
        }
    }
    /// What is resized.
    pub fn resource(&self) -> Resource {
        match self {
            Self::Threshold(rule) => rule.action.resource(),
            Self::Target(rule) => rule.metric.natural_resource().unwrap_or(Resource::Cpus),
        }
    }
    /// Cooldown in milliseconds.
    pub fn cooldown_ms(&self) -> u64 {
        match self {
            Self::Threshold(rule) => rule.cooldown_ms,
            Self::Target(rule) => rule.cooldown_ms,
        }
    }
    fn window(&self) -> (Window, Option<u64>) {
        match self {
            Self::Threshold(rule) => (rule.window, rule.period_ms),
            Self::Target(rule) => (rule.window, rule.period_ms),
        }
    }
}

/// A rule's window with its period resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datapoints {
    /// How many have to breach.
    pub need: u32,
    /// How many are looked at.
    pub of: u32,
    /// Time between them in milliseconds.
    pub period_ms: u64,
}

/// Least and most on each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PolicyBounds {
    /// CPUs.
    pub cpus: Bounds<Cpus>,
    /// Memory.
    pub memory: Bounds<Bytes>,
}

impl PolicyBounds {
    /// Bounds of one axis in its smallest unit: thousandths of a CPU, or bytes.
    pub fn of(&self, axis: Axis) -> Bounds<u64> {
        match axis {
            Axis::Cpus => Bounds {
                min: u64::from(self.cpus.min.milli()),
                max: u64::from(self.cpus.max.milli()),
            },
            Axis::Memory => Bounds {
                min: self.memory.min.get(),
                max: self.memory.max.get(),
            },
        }
    }
}

/// Least and most of the limits on I/O; absent: no matter of rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct IoBounds {
    /// Of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<RateBounds>,
    /// Of each network interface, in each direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<RateBounds>,
}

impl IoBounds {
    /// Neither is bounded.
    pub fn is_empty(&self) -> bool {
        self.disk.is_none() && self.net.is_none()
    }

    /// Those of one kind of device.
    pub fn of(&self, device: Device) -> Option<RateBounds> {
        match device {
            Device::Disk => self.disk,
            Device::Net => self.net,
        }
    }
}

/// Bounds and rules of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// [`POLICY_VERSION`].
    #[serde(default = "defaults::version")]
    pub version: u32,
    /// Least and most.
    pub bounds: PolicyBounds,
    /// Least and most of the limits on I/O.
    #[serde(default, skip_serializing_if = "IoBounds::is_empty")]
    pub io: IoBounds,
    /// Rules, in the order in which they were given.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Time between datapoints in milliseconds, where a rule says nothing else.
    #[serde(default = "defaults::period_ms")]
    pub period_ms: u64,
    /// What a datapoint without a value counts as, where a rule says nothing else.
    #[serde(default)]
    pub missing: Missing,
    /// How long a resize by hand pauses the rules of its axis, in milliseconds; 0: not at all.
    #[serde(default = "defaults::manual_hold_ms")]
    pub manual_hold_ms: u64,
    /// Shrinking goes no lower than the largest size wanted in this time, in milliseconds.
    #[serde(default = "defaults::shrink_window_ms")]
    pub shrink_window_ms: u64,
    /// Most changes of direction in an hour, on each axis; beyond it only growth.
    #[serde(default = "defaults::reversals_per_hour")]
    pub reversals_per_hour: u32,
    /// What becomes of the rules' decisions. A resize by hand is carried out in any mode.
    #[serde(default)]
    pub mode: Mode,
    /// Whether it is started again when it fails.
    #[serde(default)]
    pub restart: Restart,
    /// Share of what is above all lower bounds, when its host has not enough for all; 1 to
    /// [`MAX_WEIGHT`].
    #[serde(default = "defaults::weight")]
    pub weight: u32,
}

/// What a policy says where its customer says nothing.
mod defaults {
    pub fn version() -> u32 {
        super::POLICY_VERSION
    }
    pub fn period_ms() -> u64 {
        1000
    }
    pub fn manual_hold_ms() -> u64 {
        300_000
    }
    pub fn shrink_window_ms() -> u64 {
        60_000
    }
    pub fn reversals_per_hour() -> u32 {
        4
    }
    pub fn weight() -> u32 {
        100
    }
}

impl Policy {
    /// A policy without rules.
    pub fn new(bounds: PolicyBounds) -> Self {
        Self {
            version: defaults::version(),
            bounds,
            io: IoBounds::default(),
            rules: Vec::new(),
            period_ms: defaults::period_ms(),
            missing: Missing::Hold,
            manual_hold_ms: defaults::manual_hold_ms(),
            shrink_window_ms: defaults::shrink_window_ms(),
            reversals_per_hour: defaults::reversals_per_hour(),
            mode: Mode::Act,
            restart: Restart::Never,
            weight: defaults::weight(),
        }
    }

    /// Bounds of one resource in its smallest unit; absent: it has none, and no rule may touch it.
    pub fn bounds_of(&self, resource: Resource) -> Option<Bounds<u64>> {
        let bounds = match resource.device() {
            None if resource == Resource::Cpus => return Some(self.bounds.of(Axis::Cpus)),
            None => return Some(self.bounds.of(Axis::Memory)),
            Some(device) => self.io.of(device)?,
        };
        Some(Bounds {
            min: resource.of_rate(&bounds.min())?,
            max: resource.of_rate(&bounds.max())?,
        })
    }

    /// Takes one `--scale` argument: a rule, or `set NAME VALUE`.
    pub fn scale(&mut self, text: &str) -> Result<(), PolicyError> {
        match text.parse()? {
            ScaleArgument::Rule(rule) => self.rules.push(rule),
            ScaleArgument::Setting(setting) => setting.apply(self),
        }
        Ok(())
    }

    /// The window of one rule in datapoints. A window that is shorter than a period is one point.
    pub fn datapoints(&self, rule: &Rule) -> Datapoints {
        let (window, period_ms) = rule.window();
        let period_ms = period_ms
            .unwrap_or(self.period_ms)
            .clamp(MIN_PERIOD_MS, MAX_PERIOD_MS);
        let (need, of) = match window {
            Window::For(time_ms) => {
                let points = (time_ms / period_ms).clamp(1, u64::from(MAX_DATAPOINTS)) as u32;
                (points, points)
            }
            Window::Datapoints { need, of } => (need, of),
        };
        let of = of.clamp(1, MAX_DATAPOINTS);
        Datapoints {
            need: need.clamp(1, of),
            of,
            period_ms,
        }
    }

    /// The shortest time between the datapoints of any rule, in milliseconds: how often to look.
    pub fn shortest_period_ms(&self) -> u64 {
        let periods = self
            .rules
            .iter()
            .map(|rule| self.datapoints(rule).period_ms);
        periods.min().unwrap_or(self.period_ms)
    }

    /// What a datapoint without a value counts as for this rule.
    pub fn missing(&self, rule: &Rule) -> Missing {
        match rule {
            Rule::Threshold(rule) => rule.missing.unwrap_or(self.missing),
            Rule::Target(_) => Missing::Hold,
        }
    }
}
