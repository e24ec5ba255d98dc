//! The life of the vmm: start it or take it over, wait until its guest runs, watch for its end or for
//! a wish to stop, and start it again when the guest asked for a reset, or when it failed and its
//! policy says so.
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
use concertina_api::instance::{ExitReason, InstanceState};
use concertina_api::policy::Restart;

use super::core::Core;
use super::evidence::{self, Before};
use super::stop::StopWish;
use super::watch::Watch;
use super::{ExitReport, Kept, exit};
use crate::fault;
use crate::launch::LaunchError;
use crate::net::KeptPrograms;
use crate::sentence;
use crate::state_dir::{ProcessId, write_json};
use crate::vmm::process::last_words;
use crate::vmm::{VmmExit, VmmProcess, VmmStart};

/// How long a vmm may take from its start to its first answer.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Pauses between asking whether it is ready: short at first, since it is a matter of milliseconds
/// on hardware.
const READY_PAUSE_MIN: Duration = Duration::from_millis(2);
const READY_PAUSE_MAX: Duration = Duration::from_millis(50);
/// How long a vmm may take to end when it was told to.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a guest may take to begin its end before it is asked again.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// A life shorter than this that ends in a reset counts as part of a reboot loop.
const SHORT_LIFE: Duration = Duration::from_secs(30);
/// So many short lives in a row are one too many.
const SHORT_LIVES_MAX: u32 = 6;

/// How long a vmm that is taken over may take to say what it is.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(1);
/// First pause before a start after a failure; it doubles with each further one.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before a start after a failure.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A life that has lasted so long had nothing to do with the failure before it.
const LONG_LIFE: Duration = Duration::from_secs(300);

/// Where the keeping begins.
pub(crate) enum First {
    /// With the start of a vmm.
    Launch,
    /// With a vmm that another agent has started.
    TakeOver(VmmProcess),
    /// With a vmm that has ended while nobody watched.
    Gone(VmmExit),
}

/// Keeps the instance until its end. `started` is told once: the guest runs, or why it does not.
pub(super) fn keep(
    core: &Arc<Core>,
    first: First,
    started: SyncSender<Result<(), LaunchError>>,
) -> Kept {
    let mut tries = Tries::default();
    let next = match first {
        First::TakeOver(vmm) => Next::Life(Life::taken_over(core, vmm)),
        First::Gone(exit) => {
            core.go_on_with_usage();
            let ended = Ended {
                exit,
                phase: Phase::Running,
                grace: Duration::ZERO,
            };
            tries.next(core, Duration::ZERO, &Before::default(), &ended)
        }
        First::Launch => match Life::begin(core) {
            Ok(life) => Next::Life(life),
            Err(error) => {
                let _ = started.send(Err(error));
                return Kept::NeverRan;
            }
        },
    };
    let _ = started.send(Ok(()));
    let ended = live(core, &mut tries, next);
    if let Kept::Ended(report) = &ended {
        core.set_state(if report.status == 0 {
            InstanceState::Stopped
        } else {
            InstanceState::Failed
        });
    }
    ended
}

/// Learns what a vmm has that another agent has started. Not in the keeper's own thread: what that
/// touches of its stack once, it keeps for the life of the instance.
pub(super) fn introduce(core: &Core, vmm: &VmmProcess) {
    let id = vmm.id();
    core.set_vmm(Some(id), InstanceState::Running);
    match core.vmm.with_deadline(ADOPTION_DEADLINE).describe() {
        Ok(seen) => core.take_over_at(&seen),
        // One that hangs has the size that the books have, until it answers.
        Err(_) => core.take_over_unseen(),
    }
    core.go_on_with_usage();
    core.events.append(EventKind::Adopted {
        agent_pid: ProcessId::of_self().pid,
        vmm_pid: id.pid,
    });
}

/// One life after the other.
fn live<'a>(core: &'a Arc<Core>, tries: &mut Tries, mut next: Next<'a>) -> Kept {
    loop {
        let mut life = match next {
            Next::Life(life) => life,
            Next::End(report) => return Kept::Ended(report),
            Next::Left => return Kept::Left,
        };
        let watch = Watch::begin(core);
        let Some(ended) = life.last(core) else {
            watch.end();
            return Kept::Left;
        };
        watch.end();
        core.set_vmm(None, InstanceState::Stopping);
        let (age, before) = (life.began.elapsed(), life.before);
        // The programs of its interfaces end here: those of the next life need their ports.
        drop(life);
        next = tries.next(core, age, &before, &ended);
    }
}

/// What follows a life of the vmm.
enum Next<'a> {
    Life(Life<'a>),
    End(ExitReport),
    Left,
}

/// Lives in a row that did not last.
#[derive(Default)]
struct Tries {
    /// That ended in a reset by the guest.
    resets: u32,
    /// That ended in a failure.
    failures: u32,
}

impl Tries {
    /// Judges the end of a life, and begins the next one where there is to be one.
    fn next<'a>(
        &mut self,
        core: &'a Core,
        age: Duration,
        before: &Before,
        ended: &Ended,
    ) -> Next<'a> {
        let report = ended.report(core, before);
        let reset = ended.exit == VmmExit::Reset && ended.phase == Phase::Running;
        if reset && report.exit_reason == ExitReason::PoweredOff {
            return self.after_reset(core, age, ended);
        }
        let mut failure = Failure {
            status: ended.exit.code(),
            report,
        };
        let restarts = core.policy().policy.restart == Restart::OnFailure;
        if failure.report.status == 0 || ended.phase != Phase::Running || !restarts {
            return failure.end(core);
        }
        if age >= LONG_LIFE {
            self.failures = 0;
        }
        loop {
            let pause = self.pause();
            self.failures = self.failures.saturating_add(1);
            core.count_restart();
            core.events.append(EventKind::Restarting {
                reason: failure.report.reason.clone(),
                exit_reason: failure.report.exit_reason,
                attempt: self.failures,
                wait_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            });
            core.set_state(InstanceState::Starting);
            match core.stop.sleep(pause) {
                Some(StopWish::Leave) => return Next::Left,
                Some(_) => return failure.end(core),
                None => {}
            }
            core.renew_boot_files();
            match Life::begin(core) {
                Ok(life) => return Next::Life(life),
                Err(error) => failure.report = not_begun(&error),
            }
        }
    }

    fn pause(&self) -> Duration {
        (RESTART_PAUSE * 2u32.saturating_pow(self.failures.min(16))).min(RESTART_PAUSE_MAX)
    }

    fn after_reset<'a>(&mut self, core: &'a Core, age: Duration, ended: &Ended) -> Next<'a> {
        self.resets = if age < SHORT_LIFE { self.resets + 1 } else { 0 };
        if self.resets > SHORT_LIVES_MAX {
            let reason = format!(
                "Guest reset itself {} times, each within {} s of its start; {} says why",
                self.resets,
                SHORT_LIFE.as_secs(),
                core.paths.console_log.display()
            );
            let report = ExitReport {
                status: exit::REBOOT_LOOP,
                reason,
                exit_reason: ExitReason::RebootLoop,
            };
            let status = ended.exit.code();
            return Failure { status, report }.end(core);
        }
        core.events.append(EventKind::Rebooted);
        core.renew_boot_files();
        match Life::begin(core) {
            Ok(life) => Next::Life(life),
            Err(error) => Next::End(not_begun(&error)),
        }
    }
}

/// A life that ended for good, or by a failure.
struct Failure {
    /// Exit status of the vmm.
    status: Option<i32>,
    report: ExitReport,
}

impl Failure {
    /// Says it, and that is all.
    fn end<'a>(self, core: &Core) -> Next<'a> {
        core.events.append(EventKind::Ended {
            status: self.status,
            reason: self.report.reason.clone(),
            exit_reason: self.report.exit_reason,
        });
        Next::End(self.report)
    }
}

fn not_begun(error: &LaunchError) -> ExitReport {
    ExitReport {
        status: 1,
        reason: sentence(error),
        exit_reason: ExitReason::VmmFailed,
    }
}

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Asked { until: Instant, again: Instant },
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
    /// What the evidence of its end is compared with.
    before: Before,
    /// Set when the vmm had ended before it could be watched.
    early_exit: Option<VmmExit>,
    /// The programs of its network interfaces end with it.
    _net: KeptPrograms<'a>,
}

impl<'a> Life<'a> {
    /// Starts a vmm at the instance's first size and waits for its guest to run.
    fn begin(core: &'a Core) -> Result<Self, LaunchError> {
        core.resizer.begin_life()?;
        let before = Before::look(&core.paths, &core.group);
        // A socket file of the life before would be connected to in vain.
        let _ = std::fs::remove_file(&core.paths.vmm_socket);
        let net = core.networks.begin_life(&core.group)?;
        let told = core.spec_of_life(net.specs());
        write_json(&core.paths.vm_spec, &told)?;
        let start = VmmStart {
            command: &core.vmm_command,
            spec: &core.paths.vm_spec,
            procs: core.group.open_procs()?,
            log: &core.paths.vmm_log,
            exit_file: &core.paths.exit,
            inherited: &net.descriptors(),
            bond: core.owner.bond,
        };
        let vmm = VmmProcess::spawn(start).map_err(|source| {
            let program = core.vmm_command.first();
            LaunchError::Spawn {
                program: program.map_or_else(String::new, |p| p.to_string_lossy().into_owned()),
                source,
            }
        })?;
        fault::point("spawned");
        core.set_vmm(Some(vmm.id()), InstanceState::Starting);
        fault::point("recorded");
        let mut life = Self {
            vmm,
            began: Instant::now(),
            before,
            early_exit: None,
            _net: net.handed_over(&core.net_programs),
        };
        if let Err(error) = life.wait_until_ready(core) {
            // What outlives us would also outlive this.
            let _ = life.vmm.kill();
            return Err(error);
        }
        core.set_state(InstanceState::Running);
        core.begin_usage();
        core.events.append(EventKind::Started {
            vmm_pid: life.vmm.id().pid,
        });
        Ok(life)
    }

    /// A life that another agent has begun, and that was [introduced](introduce).
    fn taken_over(core: &'a Core, vmm: VmmProcess) -> Self {
        Self {
            vmm,
            began: Instant::now(),
            before: Before::look(&core.paths, &core.group),
            early_exit: None,
            _net: core.net_programs.none(),
        }
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
    /// `None`: it shall run on without us.
    fn last(&mut self, core: &Core) -> Option<Ended> {
        let mut phase = Phase::Running;
        let mut grace = Duration::ZERO;
        loop {
            if let Some(exit) = self.early_exit {
                return Some(Ended { exit, phase, grace });
            }
            core.stop.wakeup.clear();
            if core.stop.wish() == Some(StopWish::Leave) {
                core.net_programs.leave();
                return None;
            }
            phase = match (core.stop.wish(), phase) {
                (Some(StopWish::Ask(time)), Phase::Running) => {
                    grace = time;
                    ask(core, Instant::now() + time)
                }
                (Some(StopWish::Force), Phase::Running | Phase::Asked { .. }) => tell(core),
                (_, Phase::Asked { until, .. }) if Instant::now() >= until => tell(core),
                (_, Phase::Asked { until, again }) if Instant::now() >= again => ask(core, until),
                (_, Phase::Told { until }) if Instant::now() >= until => Phase::Killed,
                (_, phase) => phase,
            };
            let waited = match phase {
                Phase::Killed => self.vmm.kill().map(Some),
                Phase::Running => self.wait(core, None),
                Phase::Asked { until, again } => self.wait(core, Some(until.min(again))),
                Phase::Told { until } => self.wait(core, Some(until)),
            };
            // A descriptor that cannot be polled leaves no way to see the end: bring it about.
            match waited {
                Ok(None) => {}
                Ok(Some(exit)) => return Some(Ended { exit, phase, grace }),
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

/// Presses the power button, and again some time later: a guest that boots has nobody yet who sees it. A
/// vmm that does not take it is told to stop at once.
fn ask(core: &Core, until: Instant) -> Phase {
    core.set_state(InstanceState::Stopping);
    // Guests without anybody at the power button may have our program, and the other way round.
    core.channel.power_off();
    match core.vmm.power_button() {
        Ok(()) => Phase::Asked {
            until,
            again: Instant::now() + PRESS_AGAIN,
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
    fn report(&self, core: &Core, before: &Before) -> ExitReport {
        let stopped = |reason: String| ExitReport {
            status: 0,
            reason,
            exit_reason: ExitReason::Stopped,
        };
        match (self.phase, self.exit) {
            (Phase::Asked { .. }, VmmExit::PoweredOff | VmmExit::Reset) => {
                stopped("Stopped on request: the guest powered off".into())
            }
            (Phase::Told { .. } | Phase::Killed, _) if self.grace.is_zero() => {
                stopped("Stopped on request, without asking the guest".into())
            }
            (Phase::Told { .. } | Phase::Killed, _) => stopped(format!(
                "Stopped on request: the guest did not power off within {}",
                humantime::format_duration(self.grace)
            )),
            (_, exit) => evidence::report(exit, &core.paths, &core.group, before),
        }
    }
}
