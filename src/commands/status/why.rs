//! `status --why`: why an instance has the size that it has, and what would change it. Made of the
//! status, in which the decision says how each rule stands, and of the events, which say who set the
//! size. Nothing is decided here; sizes that a rule would lead to come from the same steps.

mod needs;

use std::path::Path;

use anyhow::Context;
use concertina_api::event::{Event, EventKind};
use concertina_api::instance::{HeldStatus, InstanceStatus, ScalingStatus, ThresholdStatus};
use concertina_api::policy::{Axis, Direction, Mode, Rule};
use concertina_api::units::Bounds;
use concertina_api::{Bytes, Cpus};
use serde::Serialize;

use super::{cpus_in_force, describe_resize};
use crate::event_tail::EventTail;
use crate::output;
use crate::text::plain;
use needs::Needs;

/// Prints it.
pub fn print(status: &InstanceStatus, events: &Path, json: bool) -> anyhow::Result<()> {
    let failed = || format!("Reading {} failed", events.display());
    let events = EventTail::whole(events).read().with_context(failed)?;
    let why = Why::of(status, &events);
    if json {
        output::json(&why)
    } else {
        output::line(&why.text())
    }
}

/// Why an instance has its size.
#[derive(Debug, PartialEq, Serialize)]
struct Why {
    name: String,
    mode: Option<Mode>,
    axes: [AxisWhy; 2],
}

/// Why an axis has its size.
#[derive(Debug, PartialEq, Serialize)]
struct AxisWhy {
    axis: Axis,
    size: Size,
    min: Size,
    max: Size,
    target: Size,
    set_by: SetBy,
    /// Why it has not what it shall have; absent: it has.
    on_its_way: Option<String>,
    manual_hold_remaining_ms: u64,
    reversals: u32,
    reversals_per_hour: Option<u32>,
    rules: Vec<RuleWhy>,
}

/// A size: in JSON a number of CPUs, or of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
enum Size {
    Cpus(Cpus),
    Memory(Bytes),
}

impl Size {
    /// Of thousandths of a CPU, or bytes.
    fn new(axis: Axis, size: u64) -> Self {
        match axis {
            Axis::Cpus => Self::Cpus(Cpus(u32::try_from(size).unwrap_or(u32::MAX))),
            Axis::Memory => Self::Memory(Bytes(size)),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpus(cpus) if *cpus == Cpus::whole(1) => f.write_str("1 CPU"),
            Self::Cpus(cpus) => write!(f, "{cpus} CPUs"),
            Self::Memory(bytes) => f.write_str(&output::size(*bytes)),
        }
    }
}

/// Who set a size.
#[derive(Debug, Default, PartialEq, Serialize)]
struct SetBy {
    /// `launch`, `hand`, `rule`, or `unknown` where the events do not say.
    by: &'static str,
    /// The rules, or the evidence that the guest is short.
    cause: Option<String>,
    /// What was clamped, rounded or won over.
    note: Option<String>,
    /// When, RFC 3339.
    time: Option<String>,
    ago_ms: Option<u64>,
}

/// How a rule stands.
#[derive(Debug, PartialEq, Serialize)]
struct RuleWhy {
    rule: String,
    state: String,
    metric: Option<String>,
    value: Option<f64>,
    /// The size that it leads to; absent where it leads to none.
    would_make: Option<Size>,
    /// What has to happen for it to act.
    needs: Vec<String>,
    held: Option<HeldStatus>,
    cooldown_remaining_ms: Option<u64>,
}

impl Why {
    fn of(status: &InstanceStatus, events: &[Event]) -> Self {
        Self {
            name: status.name.clone(),
            mode: status.scaling.map(|scaling| scaling.mode),
            axes: Axis::ALL.map(|axis| AxisWhy::of(axis, status, events)),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if self.mode == Some(Mode::Recommend) {
            text.push_str(&format!(
                "{} only recommends (mode = recommend): what its rules want is reported, and nothing \
                 is done.\n\n",
                self.name
            ));
        }
        let axes: Vec<String> = self.axes.iter().map(AxisWhy::text).collect();
        text.push_str(&axes.join("\n\n"));
        text
    }
}

/// The numbers of an axis, in thousandths of a CPU or in bytes.
struct Numbers {
    has: u64,
    target: u64,
    bounds: Bounds<u64>,
}

impl Numbers {
    fn of(axis: Axis, status: &InstanceStatus) -> Self {
        let (cpus, memory) = (&status.cpus, &status.memory);
        let milli = |cpus: Cpus| u64::from(cpus.milli());
        match axis {
            Axis::Cpus => Self {
                has: milli(cpus_in_force(cpus)),
                target: milli(cpus.target),
                bounds: Bounds {
                    min: milli(cpus.min),
                    max: milli(cpus.max),
                },
            },
            Axis::Memory => Self {
                has: memory.plugged.get().saturating_sub(memory.balloon.get()),
                target: memory.target.get(),
                bounds: Bounds {
                    min: memory.min.get(),
                    max: memory.max.get(),
                },
            },
        }
    }
}

impl AxisWhy {
    fn of(axis: Axis, status: &InstanceStatus, events: &[Event]) -> Self {
        let numbers = Numbers::of(axis, status);
        let scaling = status.scaling.as_ref();
        let of_axis = scaling.map(|scaling| match axis {
            Axis::Cpus => scaling.cpus,
            Axis::Memory => scaling.memory,
        });
        let of_axis = of_axis.unwrap_or_default();
        let rules = status.thresholds.iter().filter_map(|threshold| {
            // A rule that a later version has another spelling for is told on both axes.
            let rule = threshold.rule.parse::<Rule>().ok();
            let concerns = rule.as_ref().is_none_or(|rule| rule.axis() == axis);
            concerns.then(|| RuleWhy::of(threshold, rule.as_ref(), &numbers, scaling))
        });
        Self {
            axis,
            size: Size::new(axis, numbers.has),
            min: Size::new(axis, numbers.bounds.min),
            max: Size::new(axis, numbers.bounds.max),
            target: Size::new(axis, numbers.target),
            set_by: set_by(axis, status, events),
            on_its_way: on_its_way(axis, &numbers, status),
            manual_hold_remaining_ms: of_axis.manual_hold_remaining_ms,
            reversals: of_axis.reversals,
            reversals_per_hour: scaling.map(|scaling| scaling.reversals_per_hour),
            rules: rules.collect(),
        }
    }

    fn text(&self) -> String {
        let name = match self.axis {
            Axis::Cpus => "CPU",
            Axis::Memory => "Memory",
        };
        let bounds = if self.min == self.max {
            format!("its bounds are {}, so that it cannot change", self.min)
        } else {
            format!("bounds {} to {}", self.min, self.max)
        };
        let mut lines = vec![format!(
            "{name}: {}, {}; {bounds}.",
            self.size,
            self.set_by.text()
        )];
        if let Some(why) = &self.on_its_way {
            lines.push(format!("  It shall have {}: {why}.", self.target));
        }
        if self.manual_hold_remaining_ms > 0 {
            lines.push(format!(
                "  Somebody resized it by hand: its rules pause for another {}.",
                output::span_ms(self.manual_hold_remaining_ms)
            ));
        }
        if let Some(budget) = self.reversals_per_hour.filter(|_| self.reversals > 0) {
            lines.push(format!(
                "  It changed its direction {} times in the last hour; {budget} are allowed, and beyond \
                 them it only grows.",
                self.reversals
            ));
        }
        if self.rules.is_empty() {
            lines.push("  No rule resizes it: only 'concertina resize' does.".to_owned());
        }
        lines.extend(self.rules.iter().map(RuleWhy::text));
        // Rules carry names that guests choose.
        let lines: Vec<String> = lines
            .iter()
            .flat_map(|line| line.lines())
            .map(plain)
            .collect();
        lines.join("\n")
    }
}

impl SetBy {
    fn text(&self) -> String {
        let mut text = match (self.by, &self.cause) {
            ("hand", _) => "set by hand".to_owned(),
            ("rule", Some(cause)) => format!("set by '{cause}'"),
            ("launch", _) => "as at launch".to_owned(),
            _ => "set by nobody knows whom (its events are gone)".to_owned(),
        };
        if let Some(ago) = self.ago_ms {
            text.push_str(&format!(" {} ago", output::span_ms(ago)));
        }
        if let Some(note) = &self.note {
            text.push_str(&format!(" ({note})"));
        }
        text
    }
}

impl RuleWhy {
    fn of(
        threshold: &ThresholdStatus,
        rule: Option<&Rule>,
        numbers: &Numbers,
        scaling: Option<&ScalingStatus>,
    ) -> Self {
        let needs =
            rule.map(|rule| Needs::of(rule, threshold, numbers.has, &numbers.bounds, scaling));
        let needs = needs.unwrap_or_default();
        Self {
            rule: threshold.rule.clone(),
            state: threshold.state.clone(),
            metric: rule.map(|rule| rule.metric().to_string()),
            value: threshold.last_value,
            would_make: rule
                .zip(needs.would_make)
                .map(|(rule, size)| Size::new(rule.axis(), size)),
            needs: needs.sentences,
            held: threshold.held.clone(),
            cooldown_remaining_ms: threshold.cooldown_remaining_ms,
        }
    }

    /// The rule on a line, and under it how it stands and what it needs.
    fn text(&self) -> String {
        let value = match (&self.metric, self.value) {
            (Some(metric), Some(value)) => {
                format!("{metric} is {}", needs::value_text(metric, value))
            }
            (Some(metric), None) => format!("{metric} is unknown"),
            (None, _) => "this version does not know it".to_owned(),
        };
        let mut lines = vec![format!("  {}", self.rule)];
        lines.push(match (&self.held, self.cooldown_remaining_ms) {
            (Some(held), _) => {
                format!(
                    "    {value}: it fired, and is held ({}): {}",
                    held.reason, held.detail
                )
            }
            (None, Some(left)) => format!(
                "    {value}; after its last resize it waits for another {}",
                output::span_ms(left)
            ),
            (None, None) => format!("    {value} ({})", self.state),
        });
        lines.extend(self.needs.iter().map(|sentence| format!("    {sentence}")));
        lines.join("\n")
    }
}

/// The event that gave an axis its size.
fn set_by(axis: Axis, status: &InstanceStatus, events: &[Event]) -> SetBy {
    let at = |by, event: &Event| SetBy {
        by,
        time: Some(event.time.clone()),
        ago_ms: status.uptime_ms.checked_sub(event.uptime_ms),
        ..SetBy::default()
    };
    for event in events.iter().rev() {
        match &event.kind {
            EventKind::Resized {
                cause,
                note,
                before,
                report,
                ..
            } => {
                let got = report.got;
                let changed = match axis {
                    Axis::Cpus => got.cpus.is_some() && got.cpus != before.cpus,
                    Axis::Memory => got.memory.is_some() && got.memory != before.memory,
                };
                if changed {
                    let by = if cause == "manual" { "hand" } else { "rule" };
                    return SetBy {
                        cause: (by == "rule").then(|| cause.clone()),
                        note: note.clone(),
                        ..at(by, event)
                    };
                }
            }
            // A guest that restarts has its first size again.
            EventKind::Started { .. } | EventKind::Rebooted => return at("launch", event),
            _ => {}
        }
    }
    SetBy {
        by: "unknown",
        ..SetBy::default()
    }
}

/// Why an axis has not what it shall have.
fn on_its_way(axis: Axis, numbers: &Numbers, status: &InstanceStatus) -> Option<String> {
    if numbers.has == numbers.target {
        return None;
    }
    let concerns = status.last_resize.as_ref().filter(|report| match axis {
        Axis::Cpus => report.asked.cpus.is_some(),
        Axis::Memory => report.asked.memory.is_some(),
    });
    Some(match concerns {
        Some(report) if report.reason.is_some() => {
            format!("the last resize ended {}", describe_resize(report))
        }
        _ => {
            let direction = if numbers.target > numbers.has {
                Direction::Grow
            } else {
                Direction::Shrink
            };
            let way = match direction {
                Direction::Grow => "it grows",
                Direction::Shrink => "it shrinks",
            };
            format!("{way} at the moment")
        }
    })
}

#[cfg(test)]
mod tests;
