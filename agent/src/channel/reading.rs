//! A report of the guest, as far as it can be true. What is not a number, negative, larger than
//! anything real, or at odds with itself, is left out.

use std::collections::BTreeMap;
use std::time::Duration;

use concertina_api::Bytes;
use concertina_api::instance::GuestStatus;
use concertina_api::policy::Metric;
use concertina_guest::channel::{MAX_GAUGES, Report, is_gauge_name};

/// More runnable programs than any machine has.
const MAX_LOAD: f64 = 1e6;
/// Larger than any memory or disk, in bytes: 1 EiB.
const MAX_BYTES: u64 = 1 << 60;
/// Largest number of a program, either sign: what a double still counts one by one, nearly.
const MAX_NUMBER: f64 = 1e15;

/// What is left of a report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    cpu_pressure: Option<f64>,
    memory_pressure: Option<f64>,
    io_pressure: Option<f64>,
    load1: Option<f64>,
    memory: Option<(u64, u64)>,
    swap: Option<(u64, u64)>,
    root: Option<(u64, u64)>,
    cpus: Option<(u32, u32)>,
    custom: BTreeMap<String, f64>,
}

impl Reading {
    /// Keeps what can be true.
    pub fn of(report: Report) -> Self {
        let percent = |value: Option<f64>| value.filter(|value| (0.0..=100.0).contains(value));
        // A part of a whole.
        let part =
            |part: u64, whole: u64| (part <= whole && whole < MAX_BYTES).then_some((part, whole));
        let pressure = report.pressure;
        Self {
            cpu_pressure: percent(pressure.cpu),
            memory_pressure: percent(pressure.memory),
            io_pressure: percent(pressure.io),
            load1: report.load1.filter(|load| (0.0..=MAX_LOAD).contains(load)),
            memory: report.memory.and_then(|m| part(m.available, m.total)),
            swap: report.memory.and_then(|m| part(m.swap_used, m.swap_total)),
            root: report
                .root
                .and_then(|root| part(root.available, root.total)),
            cpus: report
                .cpus
                .map(|cpus| (cpus.online, cpus.present))
                .filter(|(online, present)| online <= present),
            custom: report
                .custom
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .filter(|(name, value)| is_gauge_name(name) && value.abs() <= MAX_NUMBER)
                .take(MAX_GAUGES)
                .collect(),
        }
    }

    /// What the host measures too.
    pub fn pressures(&self) -> impl Iterator<Item = (Metric, f64)> {
        [
            (Metric::CpuPressure, self.cpu_pressure),
            (Metric::MemoryPressure, self.memory_pressure),
            (Metric::IoPressure, self.io_pressure),
        ]
        .into_iter()
        .filter_map(|(metric, value)| Some((metric, value?)))
    }

    /// What only the guest knows.
    pub fn numbers(&self) -> impl Iterator<Item = (Metric, f64)> {
        let swap = self.swap.map(|(used, _)| used as f64);
        let own = [(Metric::Load1, self.load1), (Metric::Swap, swap)];
        let custom = self.custom.iter();
        own.into_iter()
            .filter_map(|(metric, value)| Some((metric, value?)))
            .chain(custom.map(|(name, value)| (Metric::Custom(name.clone()), *value)))
    }

    /// For people.
    pub fn status(&self, age: Duration, bad_lines: u64) -> GuestStatus {
        GuestStatus {
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            cpu_pressure: self.cpu_pressure,
            memory_pressure: self.memory_pressure,
            io_pressure: self.io_pressure,
            load1: self.load1,
            memory_available: self.memory.map(|m| Bytes(m.0)),
            memory_total: self.memory.map(|m| Bytes(m.1)),
            swap_used: self.swap.map(|s| Bytes(s.0)),
            swap_total: self.swap.map(|s| Bytes(s.1)),
            root_available: self.root.map(|r| Bytes(r.0)),
            root_total: self.root.map(|r| Bytes(r.1)),
            cpus_online: self.cpus.map(|c| c.0),
            cpus_present: self.cpus.map(|c| c.1),
            shrink_hooks: None,
            custom: self.custom.clone(),
            bad_lines,
        }
    }
}
