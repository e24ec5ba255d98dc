//! The end of the guest: clean where process 1 is ours, by a refusal where it is somebody else's.
//!
//! Signals to process 1 mean what they mean to busybox's init: USR1 and USR2 power off, TERM (and
//! INT, which the kernel sends for Ctrl-Alt-Del) reboots.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::sys::{self, Ending, Reaped, SignalFile};

/// How long programs may take to end after they were told to.
const GRACE: Duration = Duration::from_secs(2);

/// The signals that `ending_for` knows.
pub const SIGNALS: [libc::c_int; 4] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM, libc::SIGINT];

/// What a signal asks of process 1.
pub fn ending_for(signal: libc::c_int) -> Option<Ending> {
    match signal {
        libc::SIGUSR1 | libc::SIGUSR2 => Some(Ending::PowerOff),
        libc::SIGTERM | libc::SIGINT => Some(Ending::Reboot),
        _ => None,
    }
}

/// Asks process 1 to end the machine, or ends it without asking when `force` is set.
pub fn request(how: Ending, force: bool) -> Result<(), String> {
    if force {
        return Err(format!(
            "The kernel refuses to end the machine: {}",
            sys::end_machine(how)
        ));
    }
    if !init_is_ours() {
        return Err("Process 1 is another init: use its own command, or --force".into());
    }
    let signal = match how {
        Ending::PowerOff => libc::SIGUSR2,
        Ending::Reboot => libc::SIGTERM,
    };
    sys::kill(1, signal).map_err(|error| format!("Cannot signal process 1: {error}"))
}

fn init_is_ours() -> bool {
    let identity = |path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let ours = identity("/proc/self/exe");
    ours.is_some() && ours == identity("/proc/1/exe")
}

/// Process 1's way out: tell every program, wait for them as long as the grace lasts, then end.
/// An interactive shell ignores being told and has nothing to save: `shell` is not waited for.
pub fn end(how: Ending, signals: Option<&SignalFile>, shell: Option<libc::pid_t>) -> ! {
    if let Some(shell) = shell {
        let _ = sys::kill(shell, libc::SIGKILL);
    }
    // Stopped programs need CONT to hear the others.
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGCONT] {
        let _ = sys::kill(-1, signal);
    }
    wait_for_children(signals);
    let _ = sys::kill(-1, libc::SIGKILL);
    let error = sys::end_machine(how);
    sys::say(&format!(
        "concertina-guest: The kernel refuses to end the machine: {error}"
    ));
    loop {
        sys::wait_readable(&[], None);
    }
}

fn wait_for_children(signals: Option<&SignalFile>) {
    use std::os::fd::AsRawFd;
    let Some(signals) = signals else { return };
    let deadline = Instant::now() + GRACE;
    loop {
        match sys::reap() {
            Reaped::NoChildren => return,
            Reaped::Child(_) => continue,
            Reaped::AllAlive => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        sys::wait_readable(&[signals.as_raw_fd()], Some(left));
        while signals.next().is_some() {}
    }
}
