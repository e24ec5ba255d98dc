//! Brings hot-added vCPUs and memory online.
//!
//! A hot-added vCPU is present but offline until something writes to its sysfs file; no stock guest
//! has anything that does. Hot-added memory is the same where the kernel was not told otherwise.
//! Driven by kernel events, not by polling; one look at everything at the start, and again whenever
//! events were lost, catches what came earlier.

use std::fs;
use std::io;
use std::path::Path;

use super::sys;
use super::uevent::{Received, Uevent, UeventSocket};

const CPU_FOLDER: &str = "/sys/devices/system/cpu";
const MEMORY_FOLDER: &str = "/sys/devices/system/memory";

/// Whether each thing brought online is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// Only failures.
    Quiet,
    /// Everything.
    Verbose,
}

/// Runs until the event socket fails, which only a kernel without netlink can make happen.
pub fn run(voice: Voice) -> io::Result<()> {
    let socket = UeventSocket::open()?;
    scan(voice);
    let mut buffer = vec![0u8; 8192];
    loop {
        match socket.receive(&mut buffer)? {
            Received::Event(event) => on_event(&event, voice),
            Received::Nothing => {}
            Received::Overrun => scan(voice),
        }
    }
}

/// Runs in a thread of its own, so that a slow hot-plug holds up nothing else.
pub fn spawn() {
    let thread = std::thread::Builder::new()
        .name("onliner".into())
        .stack_size(64 << 10);
    let started = thread.spawn(|| {
        if let Err(error) = run(Voice::Quiet) {
            sys::say(&format!("concertina-guest: The onliner ended: {error}"));
        }
    });
    if let Err(error) = started {
        sys::say(&format!(
            "concertina-guest: Cannot start the onliner: {error}"
        ));
    }
}

fn on_event(event: &Uevent<'_>, voice: Voice) {
    if event.action != "add" {
        return;
    }
    let device = format!("/sys{}", event.path);
    match event.subsystem {
        "cpu" => online_cpu(Path::new(&device), voice),
        "memory" => online_memory(Path::new(&device), voice),
        _ => {}
    }
}

/// Brings online whatever is present and is not online yet.
pub fn scan(voice: Voice) {
    let list = |name: &str| fs::read_to_string(format!("{CPU_FOLDER}/{name}")).unwrap_or_default();
    if list("present") != list("online") {
        for device in devices(CPU_FOLDER, "cpu") {
            online_cpu(&device, voice);
        }
    }
    // Where the kernel onlines memory by itself there is nothing to look for.
    let policy = fs::read_to_string(format!("{MEMORY_FOLDER}/auto_online_blocks"));
    if policy.is_ok_and(|policy| policy.trim() == "offline") {
        for device in devices(MEMORY_FOLDER, "memory") {
            online_memory(&device, voice);
        }
    }
}

/// The folders called `PREFIX` and a number.
fn devices(folder: &str, prefix: &str) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let is_device = |name: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_device))
        .map(|entry| entry.path())
        .collect()
}

fn online_cpu(device: &Path, voice: Voice) {
    // CPU 0 has no such file, and a CPU that is online needs nothing.
    online(&device.join("online"), "0", "1", voice);
}

fn online_memory(device: &Path, voice: Voice) {
    // Plain `online` leaves the choice of the zone to the kernel's policy, which the host sets on
    // the command line (`auto-movable`).
    online(&device.join("state"), "offline", "online", voice);
}

fn online(file: &Path, offline: &str, wanted: &str, voice: Voice) {
    let is_offline = || fs::read_to_string(file).is_ok_and(|state| state.trim() == offline);
    if !is_offline() {
        return;
    }
    let shown = file.parent().unwrap_or(file).display();
    match fs::write(file, wanted) {
        Ok(()) if voice == Voice::Verbose => {
            sys::say(&format!("concertina-guest: online {shown}"));
        }
        Ok(()) => {}
        // The kernel announces memory before it brings it online by itself, and then refuses ours.
        Err(_) if !is_offline() => {}
        Err(error) => {
            sys::say(&format!(
                "concertina-guest: Cannot bring {shown} online: {error}"
            ));
        }
    }
}
