//! One instance from its launch to its end.
//!
//! ```text
//! keeper thread     starts the vmm, waits for its end, starts it again after a guest's reset
//!   └─ watch job      signals → decision → resize, one a life of the vmm
//! api thread        agent.sock: status, resize, stop
//! channel job       what the program in the guest says
//! ```
//! Jobs run in the process's pool ([`crate::pool`]), with those of all other instances.
//! They share one [`core::Core`]. The keeper is a thread of its own because the vmm of a process for
//! one instance dies with the thread that started it. In the agent of a host there is no api thread:
//! the agent has one socket for all its instances.

mod answers;
pub(crate) mod api;
mod core;
mod disks;
mod evidence;
mod keeper;
mod kept;
mod needs;
mod news;
mod owner;
mod recommend;
mod remember;
mod status;
mod stop;
mod watch;

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use concertina_api::event::EventKind;
use concertina_api::instance::{ExitReason, InstanceSize, InstanceState};
use concertina_api::policy::Axis;
use concertina_api::vm::{ResizeReport, VmSpec};
use concertina_http::Server;

pub(crate) use self::core::{Core, InForce};
pub(crate) use self::keeper::First;
pub(crate) use self::kept::LaunchRecord;
pub(crate) use self::owner::{OnEnd, Owner};
pub use self::stop::Stopper;
use crate::cgroup::{Hierarchy, InstanceGroup};
use crate::launch::{BootSource, LaunchError, LaunchSpec};
use crate::policy::Size;
use crate::resize::Order;
use crate::state_dir::{InstancePaths, NameLock};

/// Stack of an instance's threads; only the pages that they touch become resident.
const STACK_BYTES: usize = 512 << 10;

/// Exit statuses of a supervisor beyond those of [`concertina_api::vm::exit`].
pub mod exit {
    /// The guest reset itself again and again right after its start.
    pub const REBOOT_LOOP: i32 = 67;
    /// The guest's kernel panicked.
    pub const GUEST_PANIC: i32 = 68;
    /// Added to the number of the signal that killed the vmm.
    pub const SIGNAL_BASE: i32 = 128;
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    /// 0: powered off or stopped on request. 65, 66: see [`concertina_api::vm::exit`]. 67: a reboot
    /// loop. 68: the guest's kernel panicked. 128 and the number of the signal that killed the vmm.
    pub status: i32,
    /// A sentence, with the evidence.
    pub reason: String,
    /// The same in one word.
    pub exit_reason: ExitReason,
}

/// How the keeping of an instance ended.
#[derive(Debug)]
pub(crate) enum Kept {
    /// Its guest did not come to run.
    NeverRan,
    /// The instance has ended.
    Ended(ExitReport),
    /// Its VM was left to itself.
    Left,
}

/// An instance that an agent takes over from one that died.
pub(crate) struct Adoption {
    pub name: String,
    pub launch: LaunchRecord,
    pub paths: InstancePaths,
    pub group: InstanceGroup,
    pub vmm_command: Vec<OsString>,
    pub boot_source: Option<BootSource>,
    pub owner: Owner,
    pub lock: NameLock,
}

/// An instance whose name is taken. Dropping it ends the VM and leaves no trace of a launch that
/// was not finished.
#[derive(Debug)]
pub struct Instance {
    core: Arc<Core>,
    running: Option<Running>,
    /// It keeps itself: nothing ends with this.
    handed_over: bool,
}

#[derive(Debug)]
struct Running {
    keeper: JoinHandle<Kept>,
    api: Option<Api>,
}

#[derive(Debug)]
struct Api {
    thread: JoinHandle<()>,
    stopper: concertina_http::Stopper,
}

impl Api {
    fn serve(core: &Arc<Core>) -> Result<Self, LaunchError> {
        let server = Server::bind(&core.paths.agent_socket).map_err(LaunchError::AgentSocket)?;
        let stopper = server.stopper();
        let handler = api::handler(Arc::clone(core));
        let thread = spawn("api", move || {
            if let Err(error) = server.serve(handler) {
                eprintln!("concertina: {}", crate::sentence(&error));
            }
        })?;
        Ok(Self { thread, stopper })
    }

    fn end(self) {
        self.stopper.stop();
        let _ = self.thread.join();
    }
}

impl Instance {
    pub(crate) fn new(
        spec: LaunchSpec,
        vm: VmSpec,
        paths: InstancePaths,
        tree: &Hierarchy,
        owned: (Owner, NameLock),
    ) -> Result<Self, LaunchError> {
        Ok(Self {
            core: Arc::new(Core::new(spec, vm, paths, tree, owned)?),
            running: None,
            handed_over: false,
        })
    }

    /// Starts the vmm and returns when its guest runs. On error everything is gone again, and the
    /// instance is of no further use.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        if self.running.is_some() {
            return Ok(());
        }
        let started = self.begin();
        if started.is_err() {
            self.core.discard();
        }
        started
    }

    fn begin(&mut self) -> Result<(), LaunchError> {
        let core = &self.core;
        let api = match core.owner.socket {
            Some(_) => None,
            None => Some(Api::serve(core)?),
        };
        let begun = listen(core).and_then(|()| {
            let (tell, told) = sync_channel(1);
            let kept = Arc::clone(core);
            let keeper = spawn("keeper", move || keeper::keep(&kept, First::Launch, tell))?;
            match told.recv() {
                Ok(Ok(())) => Ok(keeper),
                failed => {
                    let _ = keeper.join();
                    let silent = || LaunchError::Vmm("The supervising thread ended early".into());
                    Err(failed.ok().and_then(Result::err).unwrap_or_else(silent))
                }
            }
        });
        match begun {
            Ok(keeper) => {
                self.running = Some(Running { keeper, api });
                Ok(())
            }
            Err(error) => {
                if let Some(api) = api {
                    api.end();
                }
                Err(error)
            }
        }
    }

    /// Watches over the instance until it has ended; reboots of the guest are handled inside.
    pub fn supervise(mut self) -> ExitReport {
        self.finish()
    }

    /// A handle that asks it to end, from any thread.
    pub fn stopper(&self) -> Stopper {
        Stopper::new(Arc::clone(&self.core.stop))
    }

    /// Where its files are.
    pub fn paths(&self) -> &InstancePaths {
        &self.core.paths
    }

    fn finish(&mut self) -> ExitReport {
        let Some(running) = self.running.take() else {
            self.core.discard();
            return ExitReport {
                status: 1,
                reason: "Instance was never started".into(),
                exit_reason: ExitReason::Unknown,
            };
        };
        let report = match running.keeper.join() {
            Ok(Kept::Ended(report)) => report,
            _ => ExitReport {
                status: 1,
                reason: "The supervising thread failed".into(),
                exit_reason: ExitReason::Unknown,
            },
        };
        if let Some(api) = running.api {
            api.end();
        }
        self.core.channel.close();
        self.core.end(&report);
        report
    }
}

/// Begins to listen to the program in the guest.
fn listen(core: &Core) -> Result<(), LaunchError> {
    core.channel
        .listen(&core.paths.channel_socket, &core.owner.pool)
        .map_err(|e| LaunchError::Vmm(format!("The channel to the guest cannot be made: {e}")))
}

/// An instance of an agent: it keeps itself, in threads of its own, until it has ended.
impl Core {
    /// Makes an instance that was prepared an agent's own, and returns when its guest runs. On error
    /// everything is gone again. `on_end` is called when all of it has ended, unless it was left.
    pub(crate) fn launch(mut instance: Instance, on_end: OnEnd) -> Result<Arc<Self>, LaunchError> {
        let core = Arc::clone(&instance.core);
        let (tell, told) = sync_channel(1);
        let kept = Arc::clone(&core);
        listen(&core)?;
        spawn("keeper", move || {
            let ended = keeper::keep(&kept, First::Launch, tell);
            kept.after(ended, on_end);
        })?;
        instance.handed_over = true;
        match told.recv() {
            Ok(Ok(())) => Ok(core),
            failed => {
                core.discard();
                let silent = || LaunchError::Vmm("The supervising thread ended early".into());
                Err(failed.ok().and_then(Result::err).unwrap_or_else(silent))
            }
        }
    }

    /// Takes over an instance from an agent that died.
    ///
    /// # Errors
    /// It cannot be watched; a vmm that is at work runs on.
    pub(crate) fn take_over(
        adoption: Adoption,
        first: First,
        on_end: OnEnd,
    ) -> Result<Arc<Self>, LaunchError> {
        let vmm = match &first {
            First::TakeOver(vmm) => Some(vmm.pidfd()),
            First::Launch | First::Gone(_) => None,
        };
        let core = Arc::new(Self::adopt(adoption, vmm)?);
        let (tell, told) = sync_channel(1);
        let kept = Arc::clone(&core);
        listen(&core)?;
        if let First::TakeOver(vmm) = &first {
            keeper::introduce(&core, vmm);
        }
        spawn("keeper", move || {
            let ended = keeper::keep(&kept, first, tell);
            kept.after(ended, on_end);
        })?;
        match told.recv() {
            Ok(result) => result.map(|()| core),
            Err(_) => Err(LaunchError::Vmm(
                "The supervising thread ended early".into(),
            )),
        }
    }

    /// After the keeper: the instance's presence on the host ends, or it is left as it is.
    fn after(&self, kept: Kept, on_end: OnEnd) {
        self.channel.close();
        match kept {
            // Whoever waits for the launch takes it back.
            Kept::NeverRan => {}
            Kept::Left => self.leave(),
            Kept::Ended(report) => {
                self.end(&report);
                on_end(&report);
            }
        }
    }

    /// Lets go of it: its VM runs on.
    pub(crate) fn let_go(&self) {
        self.resizer.close();
        self.stop.leave();
    }

    /// Asks its guest to power off, with the usual grace.
    pub(crate) fn ask_to_stop(&self) {
        self.stop.ask(stop::DEFAULT_GRACE);
    }

    /// Carries out an order, and waits for its end.
    pub(crate) fn carry_out(&self, order: &Order) -> ResizeReport<InstanceSize> {
        let report = self.resizer.carry_out(order);
        self.commit_wakeup.set();
        report
    }

    /// What it has.
    pub(crate) fn size(&self) -> Size {
        self.resizer.size()
    }

    /// What it shall have.
    pub(crate) fn target(&self) -> Size {
        self.resizer.target()
    }

    /// vCPUs that are online or coming.
    pub(crate) fn vcpus(&self) -> u32 {
        self.resizer.present().vcpus
    }

    /// Anonymous memory of its vmm that is resident on the host, in bytes; 0: it has none.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resizer.resident()
    }

    /// Whether a change of this axis is under way.
    pub(crate) fn is_busy(&self, axis: Axis) -> bool {
        self.resizer.is_busy(axis)
    }

    /// Puts something into its events.
    pub(crate) fn event(&self, kind: EventKind) {
        self.events.append(kind);
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether its guest runs and can be resized.
    pub(crate) fn is_running(&self) -> bool {
        self.state() == InstanceState::Running
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        if self.running.is_some() {
            self.core.stop.force();
            self.finish();
        } else if !self.core.has_ended() {
            self.core.discard();
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, LaunchError> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(body)
        .map_err(|e| LaunchError::Vmm(format!("A thread of the supervisor could not start: {e}")))
}
