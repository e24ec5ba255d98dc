//! Why an instance was not launched: sentences for whoever typed the command.

use std::io;
use std::path::PathBuf;

use concertina_api::policy::PolicyError;
use concertina_http::HttpError;

use crate::cgroup::CgroupError;
use crate::net::NetError;
use crate::state_dir::{LockError, StateError};

/// A launch that did not happen. Nothing of it is left on the host.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// What was asked for is impossible or wrong, on any host.
    #[error("{0}")]
    Request(String),
    /// The policy is wrong in itself, or needs what this host cannot tell.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A file that the request names is unusable.
    #[error("{what} {path} {problem}")]
    File {
        /// `Kernel`, `Initrd` or `Disk`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The rest of the sentence.
        problem: String,
    },
    /// The name is taken, or breaks the rules.
    #[error(transparent)]
    Name(#[from] LockError),
    /// The name belongs to a VM whose agent is gone.
    #[error(
        "Name '{name}' is in use: its VM (process {vmm}) runs on without its agent; start 'concertina \
         agent' with this state folder, which takes it over"
    )]
    RunsOn {
        /// The name.
        name: String,
        /// Process id of the vmm.
        vmm: i32,
    },
    /// The host's agent refuses: it has not enough for the lower bounds, or cannot write it down.
    #[error("{0}")]
    Admission(String),
    /// `/dev/kvm` cannot be used.
    #[error("{0}")]
    Kvm(String),
    /// There is no usable cgroup v2.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The state folder refuses.
    #[error(transparent)]
    State(#[from] StateError),
    /// A network interface cannot be had.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The agent's socket could not be made.
    #[error(transparent)]
    AgentSocket(HttpError),
    /// The vmm program could not be started.
    #[error("Starting the vmm program '{program}' failed")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The vmm ended, or said nothing, before its guest ran.
    #[error("{0}")]
    Vmm(String),
}

impl LaunchError {
    /// Whether the request is at fault (exit status 2) and not this host (exit status 1).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Request(_) | Self::Policy(_) | Self::File { .. } => true,
            Self::Name(LockError::State(StateError::Name(_)))
            | Self::State(StateError::Name(_)) => true,
            Self::Net(error) => error.is_usage(),
            Self::Name(_)
            | Self::Kvm(_)
            | Self::RunsOn { .. }
            | Self::Admission(_)
            | Self::Cgroup(_)
            | Self::State(_)
            | Self::AgentSocket(_)
            | Self::Spawn { .. }
            | Self::Vmm(_) => false,
        }
    }
}
