//! The one-line spelling of a rule, as `--scale` takes it:
//!
//! ```text
//! rule      = METRIC ('>' | '<') LEVEL [window] ['every' TIME] ':' action {',' option}
//! target    = 'target' METRIC PERCENT ['for' TIME] ['every' TIME] {',' 'cooldown' TIME}
//! setting   = 'set' NAME VALUE                           (the names of the TOML file's top level)
//! window    = 'for' TIME | M 'of' N                      (default: one datapoint)
//! action    = ('+' | '-') (amount | NUMBER '%' [of]) | '=' amount
//! amount    = CPUS 'cpu' | SIZE ['memory'] | NUMBER limit
//! of        = 'cpu' | 'memory' | limit
//! limit     = 'disk.mbps' | 'disk.iops' | 'net.mbps' | 'net.pps'
//! option    = 'cooldown' TIME | 'missing' ('hold' | 'breaching' | 'ignore')
//! ```
//!
//! `cpu > 75% for 5s: +1 cpu, cooldown 10s`. A bare `+25%` means the resource that the metric is
//! about; units are those of [`super::resource`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Action, Amount, Comparison, MAX_DATAPOINTS, MAX_PERIOD_MS, MAX_WAIT_MS, MAX_WEIGHT,
    MIN_PERIOD_MS, Metric, MetricUnit, Missing, Mode, Policy, PolicyError, Resource, Restart, Rule,
    Target, Threshold, Window,
};
use crate::units::{Bytes, Cpus};

/// One `--scale` argument.
#[derive(Debug, Clone, PartialEq)]
pub enum ScaleArgument {
    /// A rule.
    Rule(Rule),
    /// A setting of the whole policy.
    Setting(Setting),
}

/// A setting of the whole policy; the names are those of the TOML file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// Time between datapoints, in milliseconds.
    Period(u64),
    /// What a datapoint without a value counts as.
    Missing(Missing),
    /// See [`Policy::manual_hold_ms`].
    ManualHold(u64),
    /// See [`Policy::shrink_window_ms`].
    ShrinkWindow(u64),
    /// See [`Policy::reversals_per_hour`].
    ReversalsPerHour(u32),
    /// See [`Policy::mode`].
    Mode(Mode),
    /// See [`Policy::restart`].
    Restart(Restart),
    /// See [`Policy::weight`].
    Weight(u32),
}

impl Setting {
    /// Reads one setting; the ranges are those that [`Policy::check`] holds the policy to.
    pub fn parse(name: &str, value: &str) -> Result<Self, PolicyError> {
        let bad = |allowed: String| PolicyError::Setting {
            field: name.to_owned(),
            value: value.to_owned(),
            allowed,
        };
        let wait = || time_ms(value, 0, MAX_WAIT_MS).map_err(bad);
        match name {
            "period" => Ok(Self::Period(
                time_ms(value, MIN_PERIOD_MS, MAX_PERIOD_MS).map_err(bad)?,
            )),
            "missing" => Ok(Self::Missing(missing(value).map_err(bad)?)),
            "manual_hold" => Ok(Self::ManualHold(wait()?)),
            "shrink_window" => Ok(Self::ShrinkWindow(wait()?)),
            "mode" => match value {
                "act" => Ok(Self::Mode(Mode::Act)),
                "recommend" => Ok(Self::Mode(Mode::Recommend)),
                _ => Err(bad("write act or recommend".into())),
            },
            "restart" => match value {
                "never" => Ok(Self::Restart(Restart::Never)),
                "on-failure" => Ok(Self::Restart(Restart::OnFailure)),
                _ => Err(bad("write never or on-failure".into())),
            },
            "weight" => {
                let weight = value.parse().ok().filter(|weight| WEIGHTS.contains(weight));
                weight
                    .map(Self::Weight)
                    .ok_or_else(|| bad(format!("a whole number from 1 to {MAX_WEIGHT}")))
            }
            "reversals_per_hour" => {
                let count = value.parse().ok().filter(|count| REVERSALS.contains(count));
                count
                    .map(Self::ReversalsPerHour)
                    .ok_or_else(|| bad(REVERSALS_ALLOWED.into()))
            }
            _ => Err(PolicyError::Setting {
                field: name.to_owned(),
                value: value.to_owned(),
                allowed: "settings are period, missing, manual_hold, shrink_window, \
                          reversals_per_hour, mode, restart, weight"
                    .into(),
            }),
        }
    }

    /// Writes it into the policy.
    pub fn apply(self, policy: &mut Policy) {
        match self {
            Self::Period(ms) => policy.period_ms = ms,
            Self::Missing(missing) => policy.missing = missing,
            Self::ManualHold(ms) => policy.manual_hold_ms = ms,
            Self::ShrinkWindow(ms) => policy.shrink_window_ms = ms,
            Self::ReversalsPerHour(count) => policy.reversals_per_hour = count,
            Self::Mode(mode) => policy.mode = mode,
            Self::Restart(restart) => policy.restart = restart,
            Self::Weight(weight) => policy.weight = weight,
        }
    }
}

/// A shrink that follows growth spends two changes of direction: its own and the way back.
pub(super) const REVERSALS: std::ops::RangeInclusive<u32> = 2..=1000;
pub(super) const REVERSALS_ALLOWED: &str =
    "a whole number from 2 (down and up again) to 1000 changes of direction an hour";

/// Weights that make sense.
pub(super) const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=MAX_WEIGHT;

/// A part of a rule that is wrong; the rule's text is added by the caller.
struct Wrong {
    field: &'static str,
    value: String,
    allowed: String,
}

fn wrong(field: &'static str, value: impl Into<String>, allowed: impl Into<String>) -> Wrong {
    Wrong {
        field,
        value: value.into(),
        allowed: allowed.into(),
    }
}

impl FromStr for ScaleArgument {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if let ["set", rest @ ..] = words.as_slice() {
            return match rest {
                [name, value] => Setting::parse(name, value).map(Self::Setting),
                _ => Err(PolicyError::Setting {
                    field: rest.first().copied().unwrap_or("").to_owned(),
                    value: rest.get(1..).unwrap_or_default().join(" "),
                    allowed: "write 'set NAME VALUE', like 'set shrink_window 30s'".into(),
                }),
            };
        }
        text.parse().map(Self::Rule)
    }
}

impl FromStr for Rule {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let text = text.trim();
        let parsed = match text.strip_prefix("target ") {
            Some(rest) => target(rest).map(Self::Target),
            None => threshold(text).map(Self::Threshold),
        };
        parsed.map_err(
            |Wrong {
                 field,
                 value,
                 allowed,
             }| PolicyError::Rule {
                rule: text.to_owned(),
                field,
                value,
                allowed,
            },
        )
    }
}

fn threshold(text: &str) -> Result<Threshold, Wrong> {
    let shape = "write 'METRIC > LEVEL for TIME: ACTION', like 'cpu > 75% for 5s: +1 cpu'";
    let (condition, outcome) = text
        .split_once(':')
        .ok_or_else(|| wrong("form", text, shape))?;
    let at = condition
        .find(['>', '<'])
        .ok_or_else(|| wrong("form", condition.trim(), shape))?;
    let (name, rest) = condition.split_at(at);
    let comparison = if rest.starts_with('>') {
        Comparison::Above
    } else {
        Comparison::Below
    };
    let rest = rest.get(1..).unwrap_or_default();
    if rest.starts_with('=') {
        return Err(wrong("comparison", rest, "only '>' and '<' are compared"));
    }
    let metric = metric(name.trim())?;
    // "75 %" and "75%" are the same level.
    let rest = rest.replace(" %", "%");
    let mut words = rest.split_whitespace();
    let level_text = words
        .next()
        .ok_or_else(|| wrong("level", "", "write a level after '>' or '<'"))?;
    let level = level(&metric, level_text)?;
    let (window, period_ms) = window(words)?;

    let mut parts = outcome.split(',').map(str::trim);
    let action = action(parts.next().unwrap_or_default(), &metric)?;
    let (cooldown_ms, missing) = options(parts)?;
    Ok(Threshold {
        metric,
        comparison,
        level,
        window,
        period_ms,
        action,
        cooldown_ms: cooldown_ms.unwrap_or(0),
        missing,
    })
}

fn target(text: &str) -> Result<Target, Wrong> {
    let mut parts = text.split(',').map(str::trim);
    let condition = parts.next().unwrap_or_default().replace(" %", "%");
    let mut words = condition.split_whitespace();
    let metric = metric(words.next().unwrap_or_default())?;
    let level_text = words.next().ok_or_else(|| {
        wrong(
            "level",
            "",
            "write the level to keep, like 'target cpu 60%'",
        )
    })?;
    let level = level(&metric, level_text)?;
    let (window, period_ms) = window(words)?;
    if let Window::Datapoints { need, of: of @ 2.. } = window {
        let value = format!("{need} of {of}");
        return Err(wrong(
            "window",
            value,
            "target tracking takes the mean over 'for TIME'",
        ));
    }
    let (cooldown_ms, missing) = options(parts)?;
    if missing.is_some() {
        return Err(wrong(
            "option",
            "missing",
            "target tracking does nothing on missing data",
        ));
    }
    Ok(Target {
        metric,
        level,
        window,
        period_ms,
        cooldown_ms: cooldown_ms.unwrap_or(0),
    })
}

fn metric(name: &str) -> Result<Metric, Wrong> {
    name.parse()
        .map_err(|error: super::metric::UnknownMetric| wrong("metric", name, error.0))
}

/// Reads a level in the metric's unit. Whether it makes sense there is for [`Policy::check`].
pub(super) fn parse_level(metric: &Metric, text: &str) -> Result<f64, String> {
    match metric.unit() {
        MetricUnit::Percent => text
            .strip_suffix('%')
            .and_then(plain_number)
            .ok_or_else(|| {
                format!("{metric} is a share: write a number from 0 to 100 with '%', like 75%")
            }),
        MetricUnit::Number => plain_number(text)
            .ok_or_else(|| format!("{metric} is a plain number: write it like 4 or 0.5")),
        MetricUnit::Bytes => {
            let bytes: Option<Bytes> = text
                .parse()
                .ok()
                .filter(|b: &Bytes| b.get() <= MAX_LEVEL_BYTES);
            bytes.map(|bytes| bytes.get() as f64).ok_or_else(|| {
                format!(
                    "{metric} is a size up to 8192T: write a number with K, M, G or T, like 64M"
                )
            })
        }
    }
}

/// Up to here every number of bytes is exact as a floating point number.
const MAX_LEVEL_BYTES: u64 = 1 << 53;

fn level(metric: &Metric, text: &str) -> Result<f64, Wrong> {
    parse_level(metric, text).map_err(|allowed| wrong("level", text, allowed))
}

/// Digits with at most one point: no sign, exponent, infinity or NaN.
fn plain_number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let edges = text.starts_with('.') || text.ends_with('.');
    if !plain || edges || text.len() > 20 {
        return None;
    }
    text.parse().ok()
}

fn window<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<(Window, Option<u64>), Wrong> {
    let (mut window, mut period_ms) = (None, None);
    let form = "after the level stands 'for TIME' or 'M of N', and 'every TIME'";
    while let Some(word) = words.next() {
        match word {
            "for" if window.is_none() => {
                let text = words.next().unwrap_or_default();
                let ms = time_ms(
                    text,
                    MIN_PERIOD_MS,
                    u64::from(MAX_DATAPOINTS) * MAX_PERIOD_MS,
                )
                .map_err(|allowed| wrong("for", text, allowed))?;
                window = Some(Window::For(ms));
            }
            "every" if period_ms.is_none() => {
                let text = words.next().unwrap_or_default();
                let ms = time_ms(text, MIN_PERIOD_MS, MAX_PERIOD_MS)
                    .map_err(|allowed| wrong("every", text, allowed))?;
                period_ms = Some(ms);
            }
            need if window.is_none() && need.bytes().all(|b| b.is_ascii_digit()) => {
                if words.next() != Some("of") {
                    return Err(wrong("window", need, form));
                }
                let of = words.next().unwrap_or_default();
                window =
                    Some(datapoints(need, of).map_err(|allowed| {
                        wrong("datapoints", format!("{need} of {of}"), allowed)
                    })?);
            }
            other => return Err(wrong("window", other, form)),
        }
    }
    Ok((
        window.unwrap_or(Window::Datapoints { need: 1, of: 1 }),
        period_ms,
    ))
}

/// Reads M and N of "M of N".
pub(super) fn datapoints(need: &str, of: &str) -> Result<Window, String> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    match (number(need), number(of)) {
        (Some(need), Some(of)) if need >= 1 && need <= of && of <= MAX_DATAPOINTS => {
            Ok(Window::Datapoints { need, of })
        }
        _ => Err(format!(
            "write M of N with 1 <= M <= N <= {MAX_DATAPOINTS}, like 3 of 5"
        )),
    }
}

fn options<'a>(
    parts: impl Iterator<Item = &'a str>,
) -> Result<(Option<u64>, Option<Missing>), Wrong> {
    let (mut cooldown_ms, mut when_missing) = (None, None);
    for part in parts {
        match part.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["cooldown", text] if cooldown_ms.is_none() => {
                let ms = time_ms(text, 0, MAX_WAIT_MS);
                cooldown_ms = Some(ms.map_err(|allowed| wrong("cooldown", *text, allowed))?);
            }
            ["missing", text] if when_missing.is_none() => {
                let value = missing(text).map_err(|allowed| wrong("missing", *text, allowed))?;
                when_missing = Some(value);
            }
            _ => {
                let allowed = "options are 'cooldown TIME' and 'missing hold|breaching|ignore', \
                               each once";
                return Err(wrong("option", part, allowed));
            }
        }
    }
    Ok((cooldown_ms, when_missing))
}

fn missing(text: &str) -> Result<Missing, String> {
    match text {
        "hold" => Ok(Missing::Hold),
        "breaching" => Ok(Missing::Breaching),
        "ignore" => Ok(Missing::Ignore),
        _ => Err("write hold, breaching or ignore".into()),
    }
}

const ACTION_FORM: &str = "write what changes and by how much: '+1 cpu', '-0.5 cpu', '+512M', \
                           '-25%', '+50 net.mbps', '-500 disk.iops', '= 2 cpu' or '= 1G'";

fn action(text: &str, metric: &Metric) -> Result<Action, Wrong> {
    let bad = |allowed: &str| wrong("action", text, allowed);
    let sign = text
        .chars()
        .next()
        .filter(|c| "+-=".contains(*c))
        .ok_or_else(|| bad(ACTION_FORM))?;
    let amount = text.get(1..).unwrap_or_default().trim();
    let amount = parse_amount(amount, metric).map_err(|allowed| bad(&allowed))?;
    match (sign, amount) {
        ('+', amount) => Ok(Action::Add(amount)),
        ('-', amount) => Ok(Action::Remove(amount)),
        (_, Amount::Cpus(cpus)) => Ok(Action::SetCpus(cpus)),
        (_, Amount::Memory(bytes)) => Ok(Action::SetMemory(bytes)),
        (_, Amount::Io { of, size }) => Ok(Action::SetIo { of, size }),
        (_, Amount::Percent { .. }) => Err(bad("'=' takes a size, like '= 2 cpu' or '= 1G'")),
    }
}

fn parse_amount(text: &str, metric: &Metric) -> Result<Amount, String> {
    let form = || ACTION_FORM.to_owned();
    // A number, then what it counts: "1 cpu", "512M", "512M memory", "25%", "25% cpu", "50 net.mbps".
    let words = Resource::ALL.map(|resource| (resource.as_str(), resource));
    let (number, named) = std::iter::once(("cpus", Resource::Cpus))
        .chain(words)
        .find_map(|(word, resource)| Some((text.strip_suffix(word)?, Some(resource))))
        .unwrap_or((text, None));
    let number = number.trim_end();
    if let Some(percent) = number.strip_suffix('%') {
        let percent = percent
            .trim()
            .parse()
            .map_err(|_| format!("'{percent}%' has to be a whole number of percent"))?;
        let of = named.or_else(|| metric.natural_resource()).ok_or_else(|| {
            format!("{metric} belongs to no size: write '{number} cpu' or '{number} memory'")
        })?;
        return Ok(Amount::Percent { percent, of });
    }
    match named {
        Some(Resource::Cpus) => number
            .parse::<Cpus>()
            .map(Amount::Cpus)
            .map_err(|error| error.0),
        Some(of) if of != Resource::Memory => io_amount(of, number),
        None if !number.ends_with(|c: char| c.is_ascii_alphabetic()) => Err(form()),
        _ => number
            .parse::<Bytes>()
            .map(Amount::Memory)
            .map_err(|_| form()),
    }
}

fn io_amount(of: Resource, number: &str) -> Result<Amount, String> {
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let count = number.parse::<u64>().ok().filter(|_| digits);
    count
        .and_then(|count| io_size(of, count))
        .ok_or_else(|| format!("'{number}' has to be a whole number of {}", of.as_str()))
}

/// So many units of a limit.
pub(super) fn io_size(of: Resource, count: u64) -> Option<Amount> {
    let size = count.checked_mul(of.unit())?;
    Some(Amount::Io { of, size })
}

/// Reads a time like `5s`, `250ms`, `1m30s` within a range, in milliseconds.
pub(super) fn time_ms(text: &str, min_ms: u64, max_ms: u64) -> Result<u64, String> {
    let allowed = || {
        format!(
            "write a time from {} to {}, like 5s, 250ms or 1m",
            time_text(min_ms),
            time_text(max_ms)
        )
    };
    let time = humantime::parse_duration(text).map_err(|_| allowed())?;
    if !time.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("times are whole milliseconds".into());
    }
    let ms = u64::try_from(time.as_millis()).map_err(|_| allowed())?;
    if (min_ms..=max_ms).contains(&ms) {
        Ok(ms)
    } else {
        Err(allowed())
    }
}

/// The form that [`time_ms`] reads back: `1m30s`, without blanks.
pub fn time_text(ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(ms))
        .to_string()
        .replace(' ', "")
}

/// The shortest form that reads back as exactly so many bytes.
fn exact_bytes(bytes: Bytes) -> String {
    let short = bytes.to_string();
    match short.parse::<Bytes>() {
        Ok(back) if back == bytes && short.ends_with(char::is_alphabetic) => short,
        _ => format!("{}B", bytes.get()),
    }
}

/// A level in its metric's unit, as a rule spells it.
pub fn level_text(metric: &Metric, level: f64) -> String {
    match metric.unit() {
        MetricUnit::Percent => format!("{level}%"),
        MetricUnit::Number => format!("{level}"),
        // Levels are 0 to MAX_LEVEL_BYTES, where the conversion is exact.
        MetricUnit::Bytes => exact_bytes(Bytes(level as u64)),
    }
}

struct Spelled<'a>(Amount, &'a Metric);

impl fmt::Display for Spelled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Amount::Cpus(cpus) => write!(f, "{cpus} cpu"),
            Amount::Memory(bytes) => f.write_str(&exact_bytes(bytes)),
            Amount::Io { of, size } => write!(f, "{} {}", size / of.unit(), of.as_str()),
            Amount::Percent { percent, of } if self.1.natural_resource() == Some(of) => {
                write!(f, "{percent}%")
            }
            Amount::Percent { percent, of } => write!(f, "{percent}% {}", of.as_str()),
        }
    }
}

fn write_window(f: &mut fmt::Formatter<'_>, window: Window, period_ms: Option<u64>) -> fmt::Result {
    match window {
        Window::For(ms) => write!(f, " for {}", time_text(ms))?,
        Window::Datapoints { need: 1, of: 1 } => {}
        Window::Datapoints { need, of } => write!(f, " {need} of {of}")?,
    }
    match period_ms {
        Some(ms) => write!(f, " every {}", time_text(ms)),
        None => Ok(()),
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.comparison {
            Comparison::Above => '>',
            Comparison::Below => '<',
        };
        write!(
            f,
            "{} {sign} {}",
            self.metric,
            level_text(&self.metric, self.level)
        )?;
        write_window(f, self.window, self.period_ms)?;
        match self.action {
            Action::Add(amount) => write!(f, ": +{}", Spelled(amount, &self.metric))?,
            Action::Remove(amount) => write!(f, ": -{}", Spelled(amount, &self.metric))?,
            Action::SetCpus(cpus) => write!(f, ": = {cpus} cpu")?,
            Action::SetMemory(bytes) => write!(f, ": = {}", exact_bytes(bytes))?,
            Action::SetIo { of, size } => {
                write!(f, ": = {}", Spelled(Amount::Io { of, size }, &self.metric))?;
            }
        }
        if self.cooldown_ms > 0 {
            write!(f, ", cooldown {}", time_text(self.cooldown_ms))?;
        }
        match self.missing {
            None => Ok(()),
            Some(Missing::Hold) => f.write_str(", missing hold"),
            Some(Missing::Breaching) => f.write_str(", missing breaching"),
            Some(Missing::Ignore) => f.write_str(", missing ignore"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "target {} {}",
            self.metric,
            level_text(&self.metric, self.level)
        )?;
        write_window(f, self.window, self.period_ms)?;
        if self.cooldown_ms > 0 {
            write!(f, ", cooldown {}", time_text(self.cooldown_ms))?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threshold(rule) => rule.fmt(f),
            Self::Target(rule) => rule.fmt(f),
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}
