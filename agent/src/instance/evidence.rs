//! Why a vmm ended, with the evidence: its exit status, its last words, the counters of its cgroup, and
//! what the guest's kernel said on the console.
//!
//! The console belongs to the guest: what is read there is quoted, and decides only what becomes of
//! this very guest.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use concertina_api::instance::ExitReason;

use super::{ExitReport, exit};
use crate::cgroup::InstanceGroup;
use crate::state_dir::InstancePaths;
use crate::vmm::VmmExit;
use crate::vmm::process::last_words;

/// Most bytes of the console's end that are looked through.
const CONSOLE_BYTES: u64 = 64 << 10;
/// How a Linux kernel begins its last sentence.
const PANIC: &str = "Kernel panic - not syncing";
/// Most characters of that sentence that are quoted.
const QUOTE_CHARS: usize = 160;

/// What has to be known from before a life of the vmm to judge its end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    console_bytes: u64,
    oom_kills: u64,
}

impl Before {
    /// Taken before the vmm is started.
    pub fn look(paths: &InstancePaths, group: &InstanceGroup) -> Self {
        Self {
            console_bytes: std::fs::metadata(&paths.console_log).map_or(0, |log| log.len()),
            oom_kills: oom_kills(group),
        }
    }
}

/// Whether the guest's kernel panicked since then; its sentence.
pub(super) fn panic(paths: &InstancePaths, before: &Before) -> Option<String> {
    let text = end_of(&paths.console_log, before.console_bytes)?;
    let line = text.lines().rev().find(|line| line.contains(PANIC))?;
    let from = line.find(PANIC)?;
    let quote = line.get(from..)?.chars().filter(|c| !c.is_control());
    Some(quote.take(QUOTE_CHARS).collect())
}

/// The report of a vmm that ended by itself, or was killed by somebody else.
pub(super) fn report(
    exit: VmmExit,
    paths: &InstancePaths,
    group: &InstanceGroup,
    before: &Before,
) -> ExitReport {
    let words = || match last_words(&paths.vmm_log) {
        Some(words) => format!(": {words}"),
        None => String::new(),
    };
    if exit == VmmExit::Reset
        && let Some(panic) = panic(paths, before)
    {
        return ExitReport {
            status: exit::GUEST_PANIC,
            reason: format!("The guest's kernel panicked; its console says '{panic}'"),
            exit_reason: ExitReason::GuestPanic,
        };
    }
    let status = exit.code().unwrap_or(1);
    let (status, reason, exit_reason) = match exit {
        VmmExit::PoweredOff | VmmExit::Reset => {
            (0, "Guest powered off".into(), ExitReason::PoweredOff)
        }
        VmmExit::SetupFailed => (
            1,
            format!("The vmm failed{}", words()),
            ExitReason::VmmFailed,
        ),
        VmmExit::TripleFault => (
            status,
            format!("A vCPU of the guest shut down by triple fault{}", words()),
            ExitReason::TripleFault,
        ),
        VmmExit::KvmError => (
            status,
            format!("KVM could not go on with the guest{}", words()),
            ExitReason::KvmError,
        ),
        VmmExit::Other(_) => (
            status,
            format!("The vmm ended with status {status}{}", words()),
            ExitReason::VmmFailed,
        ),
        VmmExit::Signal(signal) => killed(Some(signal), group, before, &words()),
        VmmExit::Vanished => killed(None, group, before, &words()),
    };
    ExitReport {
        status,
        reason,
        exit_reason,
    }
}

fn killed(
    signal: Option<i32>,
    group: &InstanceGroup,
    before: &Before,
    words: &str,
) -> (i32, String, ExitReason) {
    let status = exit::SIGNAL_BASE + signal.unwrap_or(libc::SIGKILL);
    let kills = oom_kills(group).saturating_sub(before.oom_kills);
    let may_be_oom = signal.is_none_or(|signal| signal == libc::SIGKILL);
    if may_be_oom && kills > 0 {
        let reason = format!(
            "The vmm was killed by the kernel for want of memory: memory.events of its cgroup counts \
             {kills} oom_kill"
        );
        return (status, reason, ExitReason::OomKill);
    }
    let reason = match signal {
        Some(signal) => format!("The vmm was killed by signal {signal}{words}"),
        None => format!(
            "The vmm was killed while its agent was another one: it has left no exit record, and \
             memory.events counts no oom_kill{words}"
        ),
    };
    (status, reason, ExitReason::Killed)
}

fn oom_kills(group: &InstanceGroup) -> u64 {
    group.memory_events().map_or(0, |events| events.oom_kill)
}

/// The end of a log, but nothing from before `from`.
fn end_of(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    let from = from.max(len.saturating_sub(CONSOLE_BYTES));
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(CONSOLE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::fake_hierarchy;
    use std::fs;

    fn bench() -> (
        tempfile::TempDir,
        InstancePaths,
        InstanceGroup,
        tempfile::TempDir,
    ) {
        let temp = tempfile::tempdir().unwrap();
        let (cgroup, tree) = fake_hierarchy();
        let group = InstanceGroup::create(&tree, "web").unwrap();
        let paths = InstancePaths::in_dir(temp.path().to_owned());
        (temp, paths, group, cgroup)
    }

    #[test]
    fn a_panic_of_this_life_is_quoted_and_one_of_an_earlier_life_is_not() {
        let (_temp, paths, group, _cgroup) = bench();
        let line = "[    1.5] Kernel panic - not syncing: sysrq triggered crash\r\n";
        fs::write(&paths.console_log, line).unwrap();
        let later = Before::look(&paths, &group);
        let first = report(VmmExit::Reset, &paths, &group, &Before::default());
        assert_eq!(first.exit_reason, ExitReason::GuestPanic);
        assert!(first.reason.contains("sysrq triggered crash'"), "{first:?}");
        let second = report(VmmExit::Reset, &paths, &group, &later);
        assert_eq!(second.exit_reason, ExitReason::PoweredOff);
        // A guest that says so and powers off has powered off.
        let off = report(VmmExit::PoweredOff, &paths, &group, &Before::default());
        assert_eq!(off.exit_reason, ExitReason::PoweredOff);
    }

    #[test]
    fn an_oom_kill_is_told_from_a_kill_by_the_counter_of_its_own_life() {
        let (_temp, paths, group, _cgroup) = bench();
        let events = |count: u32| {
            let text = format!("low 0\nhigh 0\nmax 3\noom 1\noom_kill {count}\n");
            fs::write(group.path().join("memory.events"), text).unwrap();
        };
        events(1);
        let before = Before::look(&paths, &group);
        for exit in [VmmExit::Signal(libc::SIGKILL), VmmExit::Vanished] {
            let ended = report(exit, &paths, &group, &before);
            assert_eq!(ended.exit_reason, ExitReason::Killed, "{ended:?}");
        }
        events(2);
        for exit in [VmmExit::Signal(libc::SIGKILL), VmmExit::Vanished] {
            let ended = report(exit, &paths, &group, &before);
            assert_eq!(ended.exit_reason, ExitReason::OomKill, "{ended:?}");
            assert_eq!(ended.status, 137);
        }
        let other = report(VmmExit::Signal(libc::SIGSEGV), &paths, &group, &before);
        assert_eq!(other.exit_reason, ExitReason::Killed);
    }
}
