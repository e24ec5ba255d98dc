//! One instance from its launch to its end.
//!
//! ```text
//! keeper thread     starts the vmm, waits for its end, starts it again after a guest's reset
//!   └─ watch thread   signals → decision → resize, one a life of the vmm
//! api thread        agent.sock: status, resize, stop
//! channel thread    what the program in the guest says
//! ```
//! They share one [`core::Core`]. The keeper is a thread of its own because the vmm dies with the
//! thread that started it.

mod api;
mod core;
mod disks;
mod keeper;
mod news;
mod recommend;
mod stop;
mod watch;

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};

use concertina_api::vm::VmSpec;
use concertina_http::Server;

use self::core::Core;
pub use self::stop::Stopper;
use crate::cgroup::Hierarchy;
use crate::launch::{LaunchError, LaunchSpec};
use crate::state_dir::{InstancePaths, NameLock};

/// Exit statuses of a supervisor beyond those of [`concertina_api::vm::exit`].
pub mod exit {
    /// The guest reset itself again and again right after its start.
    pub const REBOOT_LOOP: i32 = 67;
    /// Added to the number of the signal that killed the vmm.
    pub const SIGNAL_BASE: i32 = 128;
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReport {
    /// 0: powered off or stopped on request. 65, 66: see [`concertina_api::vm::exit`]. 67: a reboot
    /// loop. 128 and the number of the signal that killed the vmm.
    pub status: i32,
    /// A sentence.
    pub reason: String,
}

/// An instance whose name is taken. Dropping it ends the VM and leaves no trace of a launch that
/// was not finished.
#[derive(Debug)]
pub struct Instance {
    core: Arc<Core>,
    running: Option<Running>,
    /// Held until the very end: only then the name is free.
    _lock: NameLock,
}

#[derive(Debug)]
struct Running {
    keeper: JoinHandle<ExitReport>,
    api: JoinHandle<()>,
    api_stopper: concertina_http::Stopper,
}

impl Instance {
    pub(crate) fn new(
        spec: LaunchSpec,
        vm: VmSpec,
        paths: InstancePaths,
        tree: &Hierarchy,
        lock: NameLock,
    ) -> Result<Self, LaunchError> {
        Ok(Self {
            core: Arc::new(Core::new(spec, vm, paths, tree)?),
            running: None,
            _lock: lock,
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
        let server = Server::bind(&core.paths.agent_socket).map_err(LaunchError::AgentSocket)?;
        let no_channel =
            |e| LaunchError::Vmm(format!("The channel to the guest cannot be made: {e}"));
        core.channel
            .listen(&core.paths.channel_socket)
            .map_err(no_channel)?;
        let api_stopper = server.stopper();
        let handler = api::handler(Arc::clone(core));
        let api = spawn("api", move || {
            if let Err(error) = server.serve(handler) {
                eprintln!("concertina: {}", crate::sentence(&error));
            }
        })?;
        let (tell, told) = sync_channel(1);
        let kept = Arc::clone(core);
        let keeper = spawn("keeper", move || keeper::keep(&kept, tell))?;
        match told.recv() {
            Ok(Ok(())) => {
                self.running = Some(Running {
                    keeper,
                    api,
                    api_stopper,
                });
                Ok(())
            }
            failed => {
                api_stopper.stop();
                let _ = keeper.join();
                let _ = api.join();
                let silent = || LaunchError::Vmm("The supervising thread ended early".into());
                Err(failed.ok().and_then(Result::err).unwrap_or_else(silent))
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
            };
        };
        let report = running.keeper.join().unwrap_or_else(|_| ExitReport {
            status: 1,
            reason: "The supervising thread failed".into(),
        });
        running.api_stopper.stop();
        let _ = running.api.join();
        self.core.channel.close();
        self.core.end(&report);
        report
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
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
        .spawn(body)
        .map_err(|e| LaunchError::Vmm(format!("A thread of the supervisor could not start: {e}")))
}
