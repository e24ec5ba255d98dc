//! A host and its agent: what an instance is launched from, what is promised of the host, and the
//! bodies of the agent's API on its unix socket (`daemon.sock`). The agent serves its own description of
//! it (OpenAPI) at `/v1/openapi.json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::disk::DiskSpec;
use crate::instance::InstanceSize;
use crate::net::NetWish;
use crate::policy::Policy;

/// What an instance is launched from. Paths are those of the agent's host, and absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// bzImage, or ELF vmlinux.
    pub kernel: PathBuf,
    /// Initial ram file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// What is appended to the kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Disks, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// Network interfaces, in the guest's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetWish>,
    /// A file with the content of the small disk that the guest's cloud-init is configured from; it is
    /// copied, and not needed after the launch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<PathBuf>,
    /// The disk image that kernel and initrd were taken out of: the guest boots what it has installed
    /// there whenever it starts again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_image: Option<ImageSource>,
    /// Bounds and rules.
    pub policy: Policy,
    /// How long it may wait for room on the host, in milliseconds, at most an hour: instances that hold
    /// more than they need are asked to shrink. 0, the default: it is refused at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wait_ms: u64,
}

/// Longest [`LaunchRequest::wait_ms`].
pub const LAUNCH_WAIT_MAX_MS: u64 = 3_600_000;

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's form
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A disk image whose own kernel is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// The image.
    pub image: PathBuf,
    /// The folder where kernels and initrds are taken out to.
    pub cache: PathBuf,
}

/// A policy in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PolicyInForce {
    /// 1 at launch, one more with each replacement.
    pub version: u64,
    /// Bounds and rules.
    pub policy: Policy,
}

/// What its rules want of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Recommendation {
    /// Name of the instance.
    pub instance: String,
    /// What it has.
    pub present: InstanceSize,
    /// What its rules want; absent: what it has, or its policy acts by itself.
    pub recommended: Option<InstanceSize>,
    /// Version of the policy.
    pub policy_version: u64,
}

/// How one axis of a host stands; CPUs in thousandths, memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AxisAccount {
    /// The most that may be promised: (capacity - reserve) x overcommit.
    pub limit: u64,
    /// What is promised or in use, overhead included.
    pub held: u64,
    /// What instances have.
    pub actual: u64,
    /// Lower bounds and overhead of all instances.
    pub guaranteed: u64,
    /// What those who wait want beyond what they hold.
    pub awaited: u64,
    /// What can still be promised.
    pub free: u64,
}

/// Growth that waits for room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WaitStatus {
    /// Name of the instance.
    pub instance: String,
    /// `cpu` or `memory`.
    pub axis: String,
    /// The size that it waits for, in thousandths of a CPU or bytes.
    pub target: u64,
    /// How long it has waited, in milliseconds.
    pub waited_ms: u64,
    /// Why it has to.
    pub why: String,
}

/// A host as its agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostStatus {
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub agent_pid: i32,
    /// Milliseconds since the agent was started.
    pub uptime_ms: u64,
    /// How many instances there are.
    pub instances: u64,
    /// CPUs, in thousandths.
    pub cpus: AxisAccount,
    /// Memory, in bytes.
    pub memory: AxisAccount,
    /// Who waits, in the order in which they are served.
    pub waiting: Vec<WaitStatus>,
    /// Intents that are under way.
    pub open_intents: u64,
    /// Why nothing can be begun at the moment; absent: all is well.
    pub trouble: Option<String>,
}
