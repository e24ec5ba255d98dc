//! What would have to happen for a rule to act, in sentences.

use concertina_api::Bytes;
use concertina_api::instance::{ScalingStatus, ThresholdStatus, WindowStatus};
use concertina_api::policy::rule::time_text;
use concertina_api::policy::step::{self, track_target, tracking_step};
use concertina_api::policy::{
    Comparison, Direction, Metric, MetricUnit, Resource, Rule, Target, Threshold,
};
use concertina_api::units::Bounds;

use super::Size;

/// A level so little beyond another one that it only decides on which side of it.
const BEYOND: f64 = 1e-9;

/// What a rule needs to act.
#[derive(Debug, Default, PartialEq)]
pub struct Needs {
    /// The size that it leads to, in its smallest unit; absent where it leads to none, or
    /// to several.
    pub would_make: Option<u64>,
    /// What has to happen.
    pub sentences: Vec<String>,
}

impl Needs {
    /// Of a rule that stands like this on an axis that has `present`.
    pub fn of(
        rule: &Rule,
        status: &ThresholdStatus,
        present: u64,
        bounds: &Bounds<u64>,
        scaling: Option<&ScalingStatus>,
    ) -> Self {
        let mut needs = match rule {
            Rule::Threshold(rule) => of_threshold(rule, status, present, bounds, scaling),
            Rule::Target(target) => of_target(target, rule.resource(), status, present, bounds),
        };
        if status.state == "unknown" {
            needs
                .sentences
                .push("While that is unknown the rule does nothing.".to_owned());
        }
        needs
    }
}

fn of_threshold(
    rule: &Threshold,
    status: &ThresholdStatus,
    present: u64,
    bounds: &Bounds<u64>,
    scaling: Option<&ScalingStatus>,
) -> Needs {
    let axis = rule.action.resource();
    let target = step::target(rule.action, present, bounds);
    if target == present {
        let bound = match present {
            _ if present == bounds.max => ", its upper bound",
            _ if present == bounds.min => ", its lower bound",
            _ => "",
        };
        let size = Size::new(axis, present);
        return Needs {
            would_make: None,
            sentences: vec![format!(
                "It leads to {size}{bound}, which is there already."
            )],
        };
    }
    let side = match rule.comparison {
        Comparison::Above => "over",
        Comparison::Below => "under",
    };
    let level = value_of(&rule.metric, rule.level);
    let window = status.window.map(window_text).unwrap_or_default();
    let size = Size::new(axis, target);
    let mut sentence = format!("{} {side} {level}{window} makes it {size}", rule.metric);
    if target < present
        && let Some(shrink_window) = scaling.map(|scaling| scaling.shrink_window_ms)
        && shrink_window > 0
    {
        sentence.push_str(&format!(
            ", when nothing more was wanted for {}",
            time_text(shrink_window)
        ));
    }
    sentence.push_str(&status.window.map(progress_text).unwrap_or_default());
    sentence.push('.');
    Needs {
        would_make: Some(target),
        sentences: vec![sentence],
    }
}

/// ` for 5s`, ` in 3 of 5 datapoints of 1s`; nothing for one datapoint of a second or less.
fn window_text(window: WindowStatus) -> String {
    let span = |points: u32| time_text(u64::from(points).saturating_mul(window.period_ms));
    if window.need == window.of {
        return format!(" for {}", span(window.of));
    }
    format!(
        " in {} of {} datapoints of {}",
        window.need,
        window.of,
        span(1)
    )
}

fn progress_text(window: WindowStatus) -> String {
    if window.breaching == 0 || window.breaching >= window.need {
        return String::new();
    }
    let missing = u64::from(window.need - window.breaching).saturating_mul(window.period_ms);
    format!(
        " (it was for {} of {} datapoints: {} more)",
        window.breaching,
        window.need,
        time_text(missing)
    )
}

/// Target tracking acts on both sides of its level.
fn of_target(
    rule: &Target,
    axis: Resource,
    status: &ThresholdStatus,
    present: u64,
    bounds: &Bounds<u64>,
) -> Needs {
    let window = status.window.map(window_text).unwrap_or_default();
    let sentences = Direction::ALL.map(|direction| {
        let (word, at_bound) = match direction {
            Direction::Grow => ("over", present >= bounds.max),
            Direction::Shrink => ("under", present <= bounds.min),
        };
        if at_bound {
            let side = if direction == Direction::Grow {
                "upper"
            } else {
                "lower"
            };
            return format!("It cannot go beyond its {side} bound, which it has.");
        }
        let level = edge(axis, rule.level, direction, present, bounds);
        let beyond = match direction {
            Direction::Grow => level * (1.0 + BEYOND),
            Direction::Shrink => level * (1.0 - BEYOND),
        };
        let size = track_target(axis, rule.level, beyond, present, bounds);
        if size == present || level > 100.0 {
            return format!(
                "{} cannot come so far {word} {} that it would change.",
                rule.metric,
                value_of(&rule.metric, rule.level)
            );
        }
        format!(
            "{} {word} {} on average{window} makes it {}.",
            rule.metric,
            value_of(&rule.metric, level),
            Size::new(axis, size)
        )
    });
    Needs {
        would_make: None,
        sentences: sentences.into(),
    }
}

/// The mean beyond which target tracking takes another size: half a step around the present one is
/// dead, and a smaller size is a whole number of steps.
fn edge(
    axis: Resource,
    level: f64,
    direction: Direction,
    present: u64,
    bounds: &Bounds<u64>,
) -> f64 {
    let step = tracking_step(axis, bounds);
    let (now, half) = (present as f64, step as f64 / 2.0);
    let size = match direction {
        Direction::Grow => now + half,
        Direction::Shrink => {
            let smaller = present.saturating_sub(1) / step.max(1) * step;
            (now - half).min(smaller as f64)
        }
    };
    level * size / now.max(1.0)
}

fn value_of(metric: &Metric, value: f64) -> String {
    match metric.unit() {
        MetricUnit::Percent => format!("{}%", shortest(value)),
        // Casts saturate; a level is checked when its policy is read.
        MetricUnit::Bytes => crate::output::size(Bytes(value as u64)),
        MetricUnit::Number => shortest(value),
    }
}

/// One decimal, where there is one.
fn shortest(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// A value of a metric by its name, as people read it.
pub fn value_text(metric: &str, value: f64) -> String {
    match metric.parse::<Metric>() {
        Ok(metric) => value_of(&metric, value),
        Err(_) => shortest(value),
    }
}
