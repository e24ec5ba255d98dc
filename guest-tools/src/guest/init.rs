//! Process 1 of the default guest, from the kernel's hand-over to power-off.
//!
//! Boot time is measured in instructions, so the way up has no wait, no poll and no file that is
//! not needed: mount, load modules, start the onliner, start what was asked for. After that one
//! thread sleeps until a child ends, a signal comes, or the power button is pressed; the onliner
//! has a thread of its own.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::acpi::PowerButton;
use super::bootargs::{BootOptions, Command};
use super::console::{self, Pid};
use super::kept::{Kept, Pauses};
use super::sys::{self, Ending, Reaped, SignalFile};
use super::{dhcp, filesystems, modules, onliner, power};

/// Between two starts of the agent.
const AGENT_PAUSES: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(32),
};

/// What the guest is doing apart from being there.
enum Foreground {
    /// A shell on the console, for as long as the machine runs.
    Shell(Kept),
    /// One command; the machine ends with it.
    Command(Pid),
    /// Nothing.
    Nothing,
}

impl Foreground {
    fn shell(&self) -> Option<Pid> {
        match self {
            Self::Shell(shell) => shell.pid(),
            Self::Command(_) | Self::Nothing => None,
        }
    }
}

/// Runs the machine.
pub fn run() -> ! {
    let uptime = sys::uptime();
    sys::say(&format!(
        "concertina-guest: init at {:.3} s",
        uptime.as_secs_f64()
    ));
    filesystems::mount_all();
    reopen_console_if_missing();
    let options = BootOptions::read();
    // Before there is a second thread: one that let these signals through would take them away, and
    // a fatal one would then end process 1 and the kernel with it.
    let signals = open_signals();
    modules::load_all();
    onliner::spawn();
    if let Some(how) = options.end {
        power::end(how, signals.as_ref(), None);
    }
    let button = PowerButton::open()
        .inspect_err(|error| {
            sys::say(&format!(
                "concertina-guest: No power button events: {error}"
            ));
        })
        .ok();
    let foreground = start(&options);
    serve(signals, button, foreground, start_agent())
}

/// An archive without a console node leaves process 1 without standard files.
fn reopen_console_if_missing() {
    if sys::is_open(1) {
        return;
    }
    if let Ok(console) = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")
    {
        for target in 0..3 {
            let _ = sys::duplicate_onto(console.as_fd(), target);
        }
    }
}

fn open_signals() -> Option<SignalFile> {
    let mut wanted = power::SIGNALS.to_vec();
    wanted.push(libc::SIGCHLD);
    SignalFile::open(&wanted)
        .inspect_err(|error| {
            sys::say(&format!(
                "concertina-guest: Cannot watch for signals: {error}"
            ));
        })
        .ok()
}

fn start(options: &BootOptions) -> Foreground {
    dhcp::start(&options.dhcp);
    for command in &options.start {
        if let Err(error) = console::run_in_background(command) {
            sys::say(&format!(
                "concertina-guest: Cannot start {command:?}: {error}"
            ));
        }
    }
    match &options.run {
        Some(command) => match console::run(command) {
            Ok(pid) => Foreground::Command(pid),
            Err(error) => {
                sys::say(&format!(
                    "concertina-guest: Cannot run {command:?}: {error}"
                ));
                finish(127, None)
            }
        },
        None if options.no_console => Foreground::Nothing,
        None => Foreground::Shell(console::start_shell()),
    }
}

/// A process of its own: its hooks are children that it waits for, and process 1 reaps every child of
/// its own by itself. The host hears of a guest through it, so it is started again when it has died.
fn start_agent() -> Kept {
    let command = Command::Words(vec!["agent".into(), "--no-online".into()]);
    let start = move || console::run_in_background(&command);
    Kept::start(
        "the channel to the host",
        AGENT_PAUSES,
        Instant::now(),
        start,
    )
}

/// The end of a machine that had one command to run.
fn finish(status: i32, signals: Option<&SignalFile>) -> ! {
    sys::say(&format!("concertina-guest: exit status {status}"));
    power::end(Ending::PowerOff, signals, None)
}

fn serve(
    signals: Option<SignalFile>,
    button: Option<PowerButton>,
    mut front: Foreground,
    mut agent: Kept,
) -> ! {
    let files: Vec<RawFd> = [
        signals.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        button.as_ref().map_or(-1, AsRawFd::as_raw_fd),
    ]
    .to_vec();
    loop {
        reap_all(&mut front, &mut agent, signals.as_ref());
        let shell = match &mut front {
            Foreground::Shell(shell) => Some(shell),
            Foreground::Command(_) | Foreground::Nothing => None,
        };
        let due = |kept: &mut Kept| {
            let now = Instant::now();
            kept.start_if_due(now);
            kept.due_in(now)
        };
        let timeout = shell.and_then(due).into_iter().chain(due(&mut agent)).min();
        let ready = sys::wait_readable(&files, timeout);
        while let Some(signal) = signals.as_ref().and_then(SignalFile::next) {
            if let Some(how) = power::ending_for(signal) {
                power::end(how, signals.as_ref(), front.shell());
            }
        }
        let pressed =
            ready.get(1) == Some(&true) && button.as_ref().is_some_and(PowerButton::pressed);
        if pressed {
            sys::say("concertina-guest: The power button was pressed");
            power::end(Ending::PowerOff, signals.as_ref(), front.shell());
        }
    }
}

fn reap_all(front: &mut Foreground, agent: &mut Kept, signals: Option<&SignalFile>) {
    while let Reaped::Child(ended) = sys::reap() {
        let now = Instant::now();
        agent.on_end(ended.pid, now);
        match front {
            Foreground::Shell(shell) => shell.on_end(ended.pid, now),
            Foreground::Command(pid) if *pid == ended.pid => finish(ended.status, signals),
            Foreground::Command(_) | Foreground::Nothing => {}
        }
    }
}
