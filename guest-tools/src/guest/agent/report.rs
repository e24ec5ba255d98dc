//! What the kernel says of this guest: one [`Report`] at a time, and when one is urgent.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use concertina_guest::channel::{Disk, Memory, Pressure, Processors, Report};

use crate::guest::{status, sys};

const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];
/// The kernel wakes us when something waited for 10 % of half a second: stall and window, microseconds.
const TRIGGER: &str = "some 50000 500000\0";

/// The kernel's triggers, as far as it takes them: without privileges or without pressure information
/// there are none, and reports come in turn only.
pub struct Triggers(Vec<File>);

impl Triggers {
    /// Sets them.
    pub fn open() -> Self {
        let trigger = |resource: &&str| {
            let path = format!("/proc/pressure/{resource}");
            let mut file = OpenOptions::new().read(true).write(true).open(path).ok()?;
            file.write_all(TRIGGER.as_bytes()).ok()?;
            Some(file)
        };
        Self(RESOURCES.iter().filter_map(trigger).collect())
    }

    /// What to wait for.
    pub fn files(&self) -> impl Iterator<Item = (RawFd, libc::c_short)> {
        self.0.iter().map(|file| (file.as_raw_fd(), libc::POLLPRI))
    }
}

/// Remembers what the report before has seen.
pub struct Reporter {
    totals_us: [Option<u64>; 3],
    at: Instant,
}

impl Reporter {
    /// The first report knows no pressure.
    pub fn new() -> Self {
        Self {
            totals_us: RESOURCES.map(total_us),
            at: Instant::now(),
        }
    }

    /// Looks at everything.
    pub fn report(&mut self, custom: BTreeMap<String, Option<f64>>) -> Report {
        let now = Instant::now();
        let passed_us = now.duration_since(self.at).as_micros() as f64;
        self.at = now;
        let totals_us = RESOURCES.map(total_us);
        let mut shares = [None; 3];
        for ((share, now), before) in shares.iter_mut().zip(totals_us).zip(self.totals_us) {
            *share = now.zip(before).and_then(|(now, before)| {
                let waited_us = now.checked_sub(before)? as f64;
                (passed_us > 0.0).then(|| (waited_us / passed_us * 100.0).min(100.0))
            });
        }
        self.totals_us = totals_us;
        let [cpu, memory, io] = shares;
        Report {
            urgent: false,
            pressure: Pressure { cpu, memory, io },
            load1: load1(),
            memory: memory_now(),
            root: sys::file_system(c"/").map(|(total, available)| Disk { total, available }),
            cpus: processors(),
            custom,
        }
    }
}

/// Microseconds in which something has waited since boot.
fn total_us(resource: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split("total=").nth(1)?.trim().parse().ok()
}

fn load1() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

fn memory_now() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |field: &str| status::meminfo_bytes(&text, field);
    let swap_total = bytes("SwapTotal")?;
    Some(Memory {
        total: bytes("MemTotal")?,
        available: bytes("MemAvailable")?,
        swap_total,
        swap_used: swap_total.saturating_sub(bytes("SwapFree")?),
    })
}

fn processors() -> Option<Processors> {
    let count = |list: &str| {
        let text = fs::read_to_string(format!("/sys/devices/system/cpu/{list}")).ok()?;
        u32::try_from(status::count(text.trim())).ok()
    };
    Some(Processors {
        online: count("online")?,
        present: count("present")?,
    })
}
