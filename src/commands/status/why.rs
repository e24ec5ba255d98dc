//! `status --why`: why an instance has the size that it has, and what would change it. Made of the
//! status, in which the decision says how each rule stands, and of the events, which say who set the
//! size. Nothing is decided here; sizes that a rule would lead to come from the same steps.

mod needs;

use std::path::Path;

use anyhow::Context;
use concertina_api::event::{Event, EventKind};
use concertina_api::instance::{
    HeldStatus, InstanceSize, InstanceStatus, ScalingStatus, ThresholdStatus,
};
use concertina_api::policy::{Device, Mode, Resource, Rule};
use concertina_api::units::Bounds;
use concertina_api::vm::ResizeReport;
use concertina_api::{Bytes, Cpus};
use serde::{Serialize, Serializer};

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
    axes: Vec<AxisWhy>,
}

/// Why an axis has its size.
#[derive(Debug, PartialEq, Serialize)]
struct AxisWhy {
    axis: Resource,
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

/// A size: in JSON a number of CPUs, or else of the resource's smallest unit.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Size {
    of: Resource,
    amount: u64,
}

impl Size {
    /// Of so much in the resource's smallest unit.
    fn new(of: Resource, amount: u64) -> Self {
        Self { of, amount }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.of {
            Resource::Cpus => serializer.serialize_f64(self.amount as f64 / 1000.0),
            _ => serializer.serialize_u64(self.amount),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.of, self.amount) {
            (Resource::Cpus, 1000) => f.write_str("1 CPU"),
            (Resource::Cpus, milli) => {
                write!(f, "{} CPUs", Cpus(u32::try_from(milli).unwrap_or(u32::MAX)))
            }
            (Resource::Memory, bytes) => f.write_str(&output::size(Bytes(bytes))),
            (limit, amount) => f.write_str(&limit.text(amount)),
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
            mode: status.scaling.as_ref().map(|scaling| scaling.mode),
            axes: Resource::ALL
                .into_iter()
                .filter_map(|axis| AxisWhy::of(axis, status, events))
                .collect(),
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

/// The numbers of an axis, in its smallest unit.
struct Numbers {
    has: u64,
    target: u64,
    bounds: Bounds<u64>,
}

impl Numbers {
    /// `None` for a limit that the instance has not, or that has no bounds.
    fn of(axis: Resource, status: &InstanceStatus) -> Option<Self> {
        let (cpus, memory, io) = (&status.cpus, &status.memory, &status.io);
        let milli = |cpus: Cpus| u64::from(cpus.milli());
        let (limit, has) = match axis.device() {
            Some(Device::Disk) => (io.disk_rate, io.disks.first().map(|disk| disk.rate)),
            Some(Device::Net) => (io.net_rate, io.nets.first().map(|net| net.rates.rx)),
            None if axis == Resource::Cpus => {
                return Some(Self {
                    has: milli(cpus_in_force(cpus)),
                    target: milli(cpus.target),
                    bounds: Bounds {
                        min: milli(cpus.min),
                        max: milli(cpus.max),
                    },
                });
            }
            None => {
                return Some(Self {
                    has: memory.plugged.get().saturating_sub(memory.balloon.get()),
                    target: memory.target.get(),
                    bounds: Bounds {
                        min: memory.min.get(),
                        max: memory.max.get(),
                    },
                });
            }
        };
        let limit = limit?;
        Some(Self {
            has: axis.of_rate(&has?)?,
            target: axis.of_rate(&limit.target)?,
            bounds: Bounds {
                min: axis.of_rate(&limit.min)?,
                max: axis.of_rate(&limit.max)?,
            },
        })
    }
}

impl AxisWhy {
    fn of(axis: Resource, status: &InstanceStatus, events: &[Event]) -> Option<Self> {
        let numbers = Numbers::of(axis, status)?;
        let scaling = status.scaling.as_ref();
        let of_axis = scaling.map(|scaling| scaling.of(axis)).unwrap_or_default();
        let rules = status.thresholds.iter().filter_map(|threshold| {
            // A rule that a later version has another spelling for is told on every axis.
            let rule = threshold.rule.parse::<Rule>().ok();
            let concerns = rule.as_ref().is_none_or(|rule| rule.resource() == axis);
            concerns.then(|| RuleWhy::of(threshold, rule.as_ref(), &numbers, scaling))
        });
        Some(Self {
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
        })
    }

    fn text(&self) -> String {
        let name = match self.axis {
            Resource::Cpus => "CPU",
            Resource::Memory => "Memory",
            _ => "Limit",
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
            state: threshold.state.to_string(),
            metric: rule.map(|rule| rule.metric().to_string()),
            value: threshold.last_value,
            would_make: rule
                .zip(needs.would_make)
                .map(|(rule, size)| Size::new(rule.resource(), size)),
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
fn set_by(axis: Resource, status: &InstanceStatus, events: &[Event]) -> SetBy {
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
                let changed = match axis.device() {
                    Some(Device::Disk) => {
                        got.disk_rate.is_some() && got.disk_rate != before.disk_rate
                    }
                    Some(Device::Net) => got.net_rate.is_some() && got.net_rate != before.net_rate,
                    None if axis == Resource::Cpus => got.cpus.is_some() && got.cpus != before.cpus,
                    None => got.memory.is_some() && got.memory != before.memory,
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
fn on_its_way(axis: Resource, numbers: &Numbers, status: &InstanceStatus) -> Option<String> {
    if numbers.has == numbers.target {
        return None;
    }
    let concerns = |report: &&ResizeReport<InstanceSize>| match axis.device() {
        Some(Device::Disk) => report.asked.disk_rate.is_some(),
        Some(Device::Net) => report.asked.net_rate.is_some(),
        None if axis == Resource::Cpus => report.asked.cpus.is_some(),
        None => report.asked.memory.is_some(),
    };
    Some(match status.last_resize.as_ref().filter(concerns) {
        Some(report) if report.reason.is_some() => {
            format!("the last resize ended {}", describe_resize(report))
        }
        _ if numbers.target > numbers.has => "it grows at the moment".to_owned(),
        _ => "it shrinks at the moment".to_owned(),
    })
}

#[cfg(test)]
mod tests;
