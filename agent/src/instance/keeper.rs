//! The life of the vmm: start it, wait until its guest runs, watch for its end or for a wish to
//! stop, and start it again when the guest asked for a reset.
//!
//! ```text
//!           power button          grace over, or button fails          vmm does not obey
//! Running ───────────────► Asked ─────────────────────────────► Told ───────────────────► killed
//!     └──────────────────── force ──────────────────────────────►┘
//! ```

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use concertina_api::event::EventKind;
use concertina_api::instance::InstanceState;

use super::core::Core;
use super::stop::StopWish;
use super::watch::Watch;
use super::{ExitReport, exit};
use crate::launch::LaunchError;
use crate::net::KeptPrograms;
use crate::sentence;
use crate::state_dir::write_json;
use crate::vmm::process::last_words;
use crate::vmm::{VmmExit, VmmProcess};

/// How long a vmm may take from its start to its first answer.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Pauses between asking whether it is ready: short at first, since it is a matter of milliseconds
/// on hardware.
const READY_PAUSE_MIN: Duration = Duration::from_millis(2);
const READY_PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long a vmm may take to end when it was told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// A life shorter than this that ends in a reset counts as part of a reboot loop.
const SHORT_LIFE: Duration = Duration::from_secs(30);
/// So many short lives in a row are one too many.
const SHORT_LIVES_MAX: u32 = 6;

/// Keeps the instance until its end. `started` is told once: the guest runs, or why it does not.
pub(super) fn keep(core: &Arc<Core>, started: SyncSender<Result<(), LaunchError>>) -> ExitReport {
    let mut started = Some(started);
    let mut short_lives = 0;
    let report = loop {
        let mut life = match Life::begin(core) {
            Ok(life) => life,
            Err(error) => {
                let reason = sentence(&error);
                if let Some(started) = started.take() {
                    let _ = started.send(Err(error));
                }
                break ExitReport { status: 1, reason };
            }
        };
        if let Some(started) = started.take() {
            let _ = started.send(Ok(()));
        }
        let watch = Watch::begin(core);
        let ended = life.last(core);
        watch.end();
        core.set_vmm(None, InstanceState::Stopping);
        if ended.exit != VmmExit::Reset || ended.phase != Phase::Running {
            let report = ended.report(core);
            core.events.append(EventKind::Ended {
                status: ended.exit.code(),
                reason: report.reason.clone(),
            });
            break report;
        }
        short_lives = if life.began.elapsed() < SHORT_LIFE {
            short_lives + 1
        } else {
            0
        };
        if short_lives > SHORT_LIVES_MAX {
            let reason = format!(
                "Guest reset itself {short_lives} times, each within {} s of its start; {} says why",
                SHORT_LIFE.as_secs(),
                core.paths.console_log.display()
            );
            core.events.append(EventKind::Ended {
                status: ended.exit.code(),
                reason: reason.clone(),
            });
            break ExitReport {
                status: exit::REBOOT_LOOP,
                reason,
            };
        }
        core.events.append(EventKind::Rebooted);
        core.renew_boot_files();
    };
    core.set_state(if report.status == 0 {
        InstanceState::Stopped
    } else {
        InstanceState::Failed
    });
    report
}

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Asked { until: Instant },
    Told { until: Instant },
    Killed,
}

/// How a life ended.
struct Ended {
    exit: VmmExit,
    phase: Phase,
    grace: Duration,
}

/// One life of the vmm.
struct Life<'a> {
    vmm: VmmProcess,
    began: Instant,
    /// Set when the vmm had ended before it could be watched.
    early_exit: Option<VmmExit>,
    /// The programs of its network interfaces end with it.
    _net: KeptPrograms<'a>,
}

impl<'a> Life<'a> {
    /// Starts a vmm at the instance's first size and waits for its guest to run.
    fn begin(core: &'a Core) -> Result<Self, LaunchError> {
        core.resizer.begin_life()?;
        // A socket file of the life before would be connected to in vain.
        let _ = std::fs::remove_file(&core.paths.vmm_socket);
        let procs = core.group.open_procs()?;
        let (command, spec, log) = (&core.vmm_command, &core.paths.vm_spec, &core.paths.vmm_log);
        let net = core.networks.begin_life(&core.group)?;
        let told = core.spec_of_life(net.specs());
        write_json(spec, &told)?;
        let spawned = VmmProcess::spawn(command, spec, procs, log, &net.descriptors());
        let vmm = spawned.map_err(|source| {
            let program = command.first().map(|p| p.to_string_lossy().into_owned());
            LaunchError::Spawn {
                program: program.unwrap_or_default(),
                source,
            }
        })?;
        core.set_vmm(Some(vmm.id()), InstanceState::Starting);
        let mut life = Self {
            vmm,
            began: Instant::now(),
            early_exit: None,
            _net: net.handed_over(&core.net_programs),
        };
        life.wait_until_ready(core)?;
        core.set_state(InstanceState::Running);
        core.begin_usage();
        core.events.append(EventKind::Started {
            vmm_pid: life.vmm.id().pid,
        });
        Ok(life)
    }

    fn wait_until_ready(&mut self, core: &Core) -> Result<(), LaunchError> {
        let mut pause = READY_PAUSE_MIN;
        loop {
            if core.paths.vmm_socket.exists() && core.vmm.describe().is_ok() {
                return Ok(());
            }
            if core.stop.wish() == Some(StopWish::Force) {
                return Err(LaunchError::Vmm("Start was ended on request".into()));
            }
            if self.began.elapsed() > READY_TIMEOUT {
                return Err(LaunchError::Vmm(format!(
                    "The vmm has not answered within {} s of its start",
                    READY_TIMEOUT.as_secs()
                )));
            }
            let waited = self.vmm.wait(None, Some(pause)).map_err(wait_failed)?;
            match waited {
                None => {}
                // A guest may be done before anybody could look at it.
                Some(
                    VmmExit::PoweredOff | VmmExit::Reset | VmmExit::TripleFault | VmmExit::KvmError,
                ) => {
                    self.early_exit = waited;
                    return Ok(());
                }
                Some(exit) => return Err(LaunchError::Vmm(gave_up(core, exit))),
            }
            pause = (pause * 2).min(READY_PAUSE_MAX);
        }
    }

    /// Waits for the end, and brings it about when somebody wishes so.
    fn last(&mut self, core: &Core) -> Ended {
        let mut phase = Phase::Running;
        let mut grace = Duration::ZERO;
        loop {
            if let Some(exit) = self.early_exit {
                return Ended { exit, phase, grace };
            }
            core.stop.wakeup.clear();
            phase = match (core.stop.wish(), phase) {
                (Some(StopWish::Ask(time)), Phase::Running) => {
                    grace = time;
                    ask(core, time)
                }
                (Some(StopWish::Force), Phase::Running | Phase::Asked { .. }) => tell(core),
                (_, Phase::Asked { until }) if Instant::now() >= until => tell(core),
                (_, Phase::Told { until }) if Instant::now() >= until => Phase::Killed,
                (_, phase) => phase,
            };
            let waited = match phase {
                Phase::Killed => self.vmm.kill().map(Some),
                Phase::Running => self.wait(core, None),
                Phase::Asked { until } | Phase::Told { until } => self.wait(core, Some(until)),
            };
            // A descriptor that cannot be polled leaves no way to see the end: bring it about.
            match waited {
                Ok(None) => {}
                Ok(Some(exit)) => return Ended { exit, phase, grace },
                Err(_) => phase = Phase::Killed,
            }
        }
    }

    fn wait(&mut self, core: &Core, until: Option<Instant>) -> std::io::Result<Option<VmmExit>> {
        use std::os::fd::AsFd;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        self.vmm.wait(Some(core.stop.wakeup.as_fd()), left)
    }
}

/// Presses the power button; a vmm that does not take it is told to stop at once.
fn ask(core: &Core, grace: Duration) -> Phase {
    core.set_state(InstanceState::Stopping);
    // Guests without anybody at the power button may have our program, and the other way round.
    core.channel.power_off();
    match core.vmm.power_button() {
        Ok(()) => Phase::Asked {
            until: Instant::now() + grace,
        },
        Err(_) => tell(core),
    }
}

/// Tells the vmm to end; one that does not answer is given the same time and then killed.
fn tell(core: &Core) -> Phase {
    core.set_state(InstanceState::Stopping);
    let _ = core.vmm.stop();
    Phase::Told {
        until: Instant::now() + STOP_TIMEOUT,
    }
}

fn wait_failed(error: std::io::Error) -> LaunchError {
    LaunchError::Vmm(format!("Waiting for the vmm failed: {error}"))
}

/// Why a vmm ended before its guest ran.
fn gave_up(core: &Core, exit: VmmExit) -> String {
    match (last_words(&core.paths.vmm_log), exit) {
        (Some(words), _) => words,
        (None, VmmExit::Signal(signal)) => {
            format!("The vmm was killed by signal {signal} before its guest ran")
        }
        (None, exit) => format!(
            "The vmm ended with status {} before its guest ran and did not say why",
            exit.code().unwrap_or(1)
        ),
    }
}

impl Ended {
    fn report(&self, core: &Core) -> ExitReport {
        let words = || match last_words(&core.paths.vmm_log) {
            Some(words) => format!(": {words}"),
            None => String::new(),
        };
        let (status, reason) = match (self.phase, self.exit) {
            (Phase::Asked { .. }, VmmExit::PoweredOff | VmmExit::Reset) => {
                (0, "Stopped on request: the guest powered off".into())
            }
            (Phase::Told { .. } | Phase::Killed, _) if self.grace.is_zero() => {
                (0, "Stopped on request, without asking the guest".into())
            }
            (Phase::Told { .. } | Phase::Killed, _) => {
                let grace = humantime::format_duration(self.grace);
                (
                    0,
                    format!("Stopped on request: the guest did not power off within {grace}"),
                )
            }
            (_, VmmExit::PoweredOff | VmmExit::Reset) => (0, "Guest powered off".into()),
            (_, VmmExit::SetupFailed) => (1, format!("The vmm failed{}", words())),
            (_, exit @ VmmExit::TripleFault) => {
                let status = exit.code().unwrap_or(1);
                (
                    status,
                    format!("A vCPU of the guest shut down by triple fault{}", words()),
                )
            }
            (_, exit @ VmmExit::KvmError) => (
                exit.code().unwrap_or(1),
                format!("KVM could not go on with the guest{}", words()),
            ),
            (_, VmmExit::Signal(signal)) => (
                exit::SIGNAL_BASE + signal,
                match core.group.memory_events() {
                    Some(events) if signal == libc::SIGKILL && events.oom_kill > 0 => {
                        "The vmm was killed by the kernel: its cgroup reached its memory ceiling"
                            .into()
                    }
                    _ => format!("The vmm was killed by signal {signal}{}", words()),
                },
            ),
            (_, VmmExit::Other(status)) => (
                status,
                format!("The vmm ended with status {status}{}", words()),
            ),
        };
        ExitReport { status, reason }
    }
}
