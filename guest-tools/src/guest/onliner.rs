//! Brings hot-added vCPUs and memory online.
//!
//! A hot-added vCPU is present but offline until something writes to its sysfs file; no stock guest
//! has anything that does. Hot-added memory is the same where the kernel was not told otherwise.
//! Driven by kernel events, not by polling; one look at everything at the start, and again whenever
//! events were lost, catches what came earlier. What could not be brought online is tried again, ever more
//! seldom: a processor that started too late, or memory for which there was no memory, is not announced twice.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::sys;
use super::uevent::{Received, Uevent, UeventSocket};

const CPU_FOLDER: &str = "/sys/devices/system/cpu";
const MEMORY_FOLDER: &str = "/sys/devices/system/memory";

/// Time until something that failed is tried again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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
    let mut failed = Failed::default();
    failed.note(scan(voice), Instant::now());
    let mut buffer = vec![0u8; 8192];
    loop {
        let left = failed.left(Instant::now());
        if left.is_some() && sys::wait_readable(&[socket.as_raw_fd()], left) == [false] {
            failed.try_again(|thing| thing.bring_online(voice), Instant::now());
            continue;
        }
        let more = match socket.receive(&mut buffer)? {
            Received::Event(event) => on_event(&event, voice),
            Received::Nothing => Vec::new(),
            Received::Overrun => scan(voice),
        };
        failed.note(more, Instant::now());
    }
}

/// A vCPU or a block of memory: the file that says whether it is online, and its words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Thing {
    file: PathBuf,
    offline: &'static str,
    online: &'static str,
}

/// What could not be brought online.
#[derive(Debug, Default)]
struct Failed {
    things: Vec<Thing>,
    pause: Duration,
    next: Option<Instant>,
}

impl Failed {
    /// Some more.
    fn note(&mut self, more: Vec<Thing>, now: Instant) {
        if more.is_empty() {
            return;
        }
        for thing in more {
            if !self.things.contains(&thing) {
                self.things.push(thing);
            }
        }
        self.pause = FIRST_PAUSE;
        self.next = Some(now + self.pause);
    }

    /// Time until it is tried again; `None`: there is nothing.
    fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.next?.saturating_duration_since(now))
    }

    /// Keeps what still cannot be brought online.
    fn try_again(&mut self, mut bring_online: impl FnMut(&Thing) -> bool, now: Instant) {
        self.things.retain(|thing| !bring_online(thing));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.next = (!self.things.is_empty()).then(|| now + self.pause);
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

/// Gives what could not be brought online.
fn on_event(event: &Uevent<'_>, voice: Voice) -> Vec<Thing> {
    if event.action != "add" {
        return Vec::new();
    }
    let device = format!("/sys{}", event.path);
    let thing = match event.subsystem {
        "cpu" => Thing::cpu(Path::new(&device)),
        "memory" => Thing::memory(Path::new(&device)),
        _ => return Vec::new(),
    };
    failures(vec![thing], voice)
}

/// Brings online whatever is present and is not online yet; gives what could not be.
fn scan(voice: Voice) -> Vec<Thing> {
    let list = |name: &str| fs::read_to_string(format!("{CPU_FOLDER}/{name}")).unwrap_or_default();
    let mut things = Vec::new();
    if list("present") != list("online") {
        let cpus = devices(CPU_FOLDER, "cpu");
        things.extend(cpus.iter().map(|device| Thing::cpu(device)));
    }
    // Where the kernel onlines memory by itself there is nothing to look for.
    let policy = fs::read_to_string(format!("{MEMORY_FOLDER}/auto_online_blocks"));
    if policy.is_ok_and(|policy| policy.trim() == "offline") {
        let blocks = devices(MEMORY_FOLDER, "memory");
        things.extend(blocks.iter().map(|device| Thing::memory(device)));
    }
    failures(things, voice)
}

/// Brings online whatever is present and is not online yet.
pub fn scan_once(voice: Voice) {
    scan(voice);
}

fn failures(mut things: Vec<Thing>, voice: Voice) -> Vec<Thing> {
    things.retain(|thing| !thing.bring_online(voice));
    things
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

impl Thing {
    /// CPU 0 has no such file: there is nothing to do for it.
    fn cpu(device: &Path) -> Self {
        Self {
            file: device.join("online"),
            offline: "0",
            online: "1",
        }
    }

    /// Plain `online` leaves the choice of the zone to the kernel's policy, which the host sets on
    /// the command line (`auto-movable`).
    fn memory(device: &Path) -> Self {
        Self {
            file: device.join("state"),
            offline: "offline",
            online: "online",
        }
    }

    fn is_offline(&self) -> bool {
        fs::read_to_string(&self.file).is_ok_and(|state| state.trim() == self.offline)
    }

    /// Whether nothing is left to do: it is online, or gone.
    fn bring_online(&self, voice: Voice) -> bool {
        if !self.is_offline() {
            return true;
        }
        let shown = self.file.parent().unwrap_or(&self.file).display();
        match fs::write(&self.file, self.online) {
            Ok(()) if voice == Voice::Verbose => {
                sys::say(&format!("concertina-guest: online {shown}"));
                true
            }
            Ok(()) => true,
            // The kernel announces memory before it brings it online by itself, and then refuses ours.
            Err(_) if !self.is_offline() => true,
            Err(error) => {
                sys::say(&format!(
                    "concertina-guest: Cannot bring {shown} online: {error}"
                ));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_ever_more_seldom_until_it_is_online_or_gone() {
        let now = Instant::now();
        let mut failed = Failed::default();
        assert_eq!(failed.left(now), None);
        failed.note(Vec::new(), now);
        assert_eq!(failed.left(now), None);
        let cpus = [1, 2].map(|number| Thing::cpu(Path::new(&format!("/nonexistent/cpu{number}"))));
        failed.note(cpus.to_vec(), now);
        failed.note(cpus[..1].to_vec(), now);
        let mut tried = 0;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.extend(failed.left(now));
            failed.try_again(
                |thing| {
                    tried += 1;
                    *thing == cpus[1]
                },
                now,
            );
        }
        assert_eq!(
            tried,
            2 + 7,
            "each once a time, and no more when it is online"
        );
        let seconds: Vec<u64> = pauses.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        // One that fails anew does not wait for that long.
        failed.note(cpus[1..].to_vec(), now);
        assert_eq!(failed.left(now), Some(FIRST_PAUSE));
        failed.try_again(|thing| thing.bring_online(Voice::Quiet), now);
        assert_eq!(failed.left(now), None, "both have gone");
    }

    #[test]
    fn a_thing_is_brought_online_once() {
        let folder = tempfile::tempdir().unwrap();
        let block = Thing::memory(folder.path());
        fs::write(&block.file, "offline\n").unwrap();
        assert!(block.bring_online(Voice::Quiet));
        assert_eq!(fs::read_to_string(&block.file).unwrap(), "online");
        fs::write(&block.file, "going-offline\n").unwrap();
        assert!(block.bring_online(Voice::Quiet));
        assert_eq!(fs::read_to_string(&block.file).unwrap(), "going-offline\n");
    }
}
