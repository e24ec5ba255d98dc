//! The timeline in the terminal: a line a second, and a line for each event.

use concertina_api::event::{Event, EventKind};
use concertina_api::instance::InstanceSize;

use crate::record::Sample;

/// Over the lines.
pub const HEADER: &str = "        | guest wants |             CPU             |        memory (MiB)\n   \
                             time | CPU  memory | vCPUs  quota  busy           | used%  plugged  on the host";

const BAR_CELLS: usize = 8;

/// One moment in a line.
pub fn line(sample: &Sample) -> String {
    let memory = &sample.status.memory;
    let percent = |value: Option<f64>| value.map_or("   ?".into(), |v| format!("{v:3.0}%"));
    let most = sample.status.cpus.max.as_f64();
    format!(
        "{:6.1} s | {:3.1} {:6.0}M | {:5} {:>6} {}  {} | {} {:8.0} {:8.0}  {}",
        sample.at.as_secs_f64(),
        sample.demand.cpus,
        sample.demand.memory.as_mib_f64(),
        sample.status.cpus.online,
        sample.status.cpus.quota.to_string(),
        percent(sample.metric("cpu")),
        bar(sample.cpus() / most, sample.demand.cpus / most),
        percent(sample.metric("memory")),
        memory.plugged.as_mib_f64(),
        memory.host_resident.as_mib_f64(),
        bar(
            share(memory.plugged.get(), memory.max.get()),
            share(memory.host_resident.get(), memory.max.get()),
        ),
    )
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A bar of the size, filled as far as it is used: `■■■□□···`. Demand beyond the size shows as `!`.
fn bar(size: f64, used: f64) -> String {
    let cells = |fraction: f64| (fraction.clamp(0.0, 1.0) * BAR_CELLS as f64).round() as usize;
    let (size, used) = (cells(size), cells(used));
    (0..BAR_CELLS)
        .map(|cell| match (cell < size, cell < used) {
            (true, true) => '■',
            (true, false) => '□',
            (false, true) => '!',
            (false, false) => '·',
        })
        .collect()
}

/// One event in a line.
pub fn event(event: &Event) -> String {
    format!("         > {}", words(&event.kind))
}

/// An event in words.
pub fn words(kind: &EventKind) -> String {
    match kind {
        EventKind::Started { vmm_pid } => format!("started, process {vmm_pid}"),
        EventKind::Threshold { rule, state, value } => {
            let value = value.map_or("an unknown value".into(), |v| format!("{v:.0}"));
            format!("'{}' is {state} at {value}", condition(rule))
        }
        EventKind::Resized {
            cause,
            before,
            report,
            ..
        } => {
            let took = report.timeline_ms.get("total").copied().unwrap_or_default();
            format!(
                "{}, {} in {took:.0} ms ({})",
                change(before, &report.got),
                report.outcome.as_str().replace('_', " "),
                condition(cause),
            )
        }
        EventKind::Held { cause, why } => format!("held, {why} ({})", condition(cause)),
        EventKind::Recommended {
            cause,
            present,
            recommended,
            ..
        } => format!(
            "recommended, {} ({})",
            change(present, recommended),
            condition(cause)
        ),
        EventKind::GuestMemoryShort { evidence } => format!("guest short of memory: {evidence}"),
        EventKind::DiskError { disk, error, .. } => {
            format!("disk {} fails: {error}", disk.display())
        }
        EventKind::NetDown { net, reason } => format!("network {net} is down: {reason}"),
        EventKind::PolicyReplaced { version, .. } => format!("policy {version} is in force"),
        EventKind::Adopted { agent_pid, .. } => format!("adopted by process {agent_pid}"),
        EventKind::Recovered {
            intent, outcome, ..
        } => format!("intent {intent} recovered: {}", outcome.as_str()),
        EventKind::Restarting { reason, .. } => format!("starts again: {reason}"),
        EventKind::Rebooted => "rebooted".into(),
        EventKind::Ended { reason, .. } => format!("ended: {reason}"),
    }
}

/// The part of a rule before its action, which says what the rule looks at.
fn condition(rule: &str) -> &str {
    rule.split(':').next().unwrap_or(rule)
}

fn change(before: &InstanceSize, got: &InstanceSize) -> String {
    let mut parts = Vec::new();
    match (before.cpus, got.cpus) {
        // The quota was lowered before; the vCPUs follow when that has proved right.
        (Some(from), Some(to)) if from == to => {
            parts.push(format!("vCPUs as few as {to} CPUs need"))
        }
        (Some(from), Some(to)) => parts.push(format!("CPUs {from} -> {to}")),
        _ => {}
    }
    if let (Some(from), Some(to)) = (before.memory, got.memory) {
        parts.push(format!("memory {from} -> {to}"));
    }
    parts.join(", ")
}
