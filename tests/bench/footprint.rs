//! What an instance costs beside its guest's RAM, and what its idle guest holds, from `smaps`.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Options;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::ours::Ours;
use crate::report::Results;

/// Long enough for the guest to have reported its free pages.
const IDLE: Duration = Duration::from_secs(20);
/// No mapping but guest RAM is this large: 256 MiB of boot RAM, 768 MiB that can be plugged.
const GUEST_MAPPING_KIB: u64 = 200 << 10;

/// Measures one idle instance with every elastic device attached.
pub fn measure(options: &Options, results: &mut Results) -> Result<()> {
    let ours = Ours::launch(options, "1..4", "256M..1G", &[])?;
    let guest = Guest::connect(&ours.console())?;
    drop(guest);
    let (beside, guest_ram) = resident_kib(ours.pid())?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    results.add("VM process beside guest RAM", "vmm", "MiB", &[mib(beside)]);
    results.add(
        "guest RAM resident after boot",
        "vmm",
        "MiB",
        &[mib(guest_ram)],
    );
    thread::sleep(IDLE);
    let (beside, guest_ram) = resident_kib(ours.pid())?;
    results.add(
        "VM process beside guest RAM, idle 20 s",
        "vmm",
        "MiB",
        &[mib(beside)],
    );
    results.add(
        "guest RAM resident, idle 20 s",
        "vmm",
        "MiB",
        &[mib(guest_ram)],
    );
    let (agent, none) = resident_kib(ours.agent_pid())?;
    results.add("agent process", "concertina", "MiB", &[mib(agent + none)]);
    Ok(())
}

/// Resident MiB of a VM's process outside of its guest's RAM.
pub fn beside_guest_ram_mib(pid: i32) -> Result<f64> {
    Ok(resident_kib(pid)?.0 as f64 / 1024.0)
}

/// Resident KiB of a process: outside of large mappings, and in them.
fn resident_kib(pid: i32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
    let (mut beside, mut guest, mut size) = (0, 0, 0);
    for line in text.lines() {
        let kib = |rest: &str| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok();
        if let Some(rest) = line.strip_prefix("Size:") {
            size = kib(rest).unwrap_or(0);
        } else if let Some(rest) = line.strip_prefix("Rss:") {
            let resident = kib(rest).unwrap_or(0);
            *(if size >= GUEST_MAPPING_KIB {
                &mut guest
            } else {
                &mut beside
            }) += resident;
        }
    }
    Ok((beside, guest))
}
