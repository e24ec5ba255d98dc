//! An instance as its customer sees it: bounds, target, what it has, and how its thresholds stand.
//! These are the bodies of the agent's per-instance unix-socket API (`agent.sock`):
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/instance` | | [`InstanceStatus`] |
//! | `PUT /v1/instance/resize` | [`InstanceResize`] | `ResizeReport<InstanceSize>` |
//! | `PUT /v1/instance/stop` | [`StopRequest`] | 202 |

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::disk::{DiskRate, DiskStatus};
use crate::io::IoRate;
use crate::net::{NetRateChange, NetStatus};
use crate::policy::{Mode, Resource};
use crate::units::{Bytes, Cpus, Quota};
use crate::vm::ResizeReport;

/// Where an instance is in its life.
///
/// ```text
/// starting ──► running ──► stopping ──► stopped
///     │           │ ▲
///     │           ▼ │ (guest reboot)
///     └──────► failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// The vmm is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is held.
    Paused,
    /// Asked to end.
    Stopping,
    /// Ended as asked, or powered off by the guest.
    Stopped,
    /// Ended by an error; the last event says which.
    Failed,
}

impl InstanceState {
    /// The word used in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// How an instance ended, or failed before it was started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off.
    PoweredOff,
    /// As asked.
    Stopped,
    /// The kernel of the guest panicked.
    GuestPanic,
    /// The guest crashed so that its processor gave up.
    TripleFault,
    /// KVM could not go on.
    KvmError,
    /// The guest reset itself again and again right after its start.
    RebootLoop,
    /// The host killed the vmm for want of memory.
    OomKill,
    /// Somebody killed the vmm.
    Killed,
    /// The vmm gave up.
    VmmFailed,
    /// Not recorded.
    #[default]
    Unknown,
}

/// CPU of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CpuStatus {
    /// Lower bound.
    pub min: Cpus,
    /// Upper bound.
    pub max: Cpus,
    /// What it shall have.
    pub target: Cpus,
    /// vCPUs online in the guest.
    pub online: u32,
    /// CPU quota in force.
    pub quota: Quota,
}

/// Memory of an instance, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemoryStatus {
    /// Lower bound.
    pub min: Bytes,
    /// Upper bound.
    pub max: Bytes,
    /// What it shall have.
    pub target: Bytes,
    /// Boot RAM and plugged blocks.
    pub plugged: Bytes,
    /// Given back through the balloon.
    pub balloon: Bytes,
    /// Total as the guest's balloon driver says; absent: unknown.
    pub guest_total: Option<Bytes>,
    /// Available as the guest's balloon driver says; absent: unknown.
    pub guest_available: Option<Bytes>,
    /// Guest RAM that is resident on the host.
    pub host_resident: Bytes,
}

/// I/O of an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct IoStatus {
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskStatus>,
    /// Network interfaces, in the guest's order.
    #[serde(default)]
    pub nets: Vec<NetStatus>,
    /// The limit of each disk, where it has bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<RateStatus>,
    /// The limit of each network interface in each direction, where it has bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<RateStatus>,
}

/// A limit on I/O that has bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RateStatus {
    /// Lower bound.
    pub min: IoRate,
    /// Upper bound.
    pub max: IoRate,
    /// What the devices shall have; what they have is in their own status.
    pub target: IoRate,
}

/// How one threshold stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ThresholdStatus {
    /// The rule as its customer wrote it (or its normal form).
    pub rule: String,
    /// `ok`, `breaching`, `fired`, `cooldown`, `held`, `unknown`.
    pub state: Cow<'static, str>,
    /// Last value of its metric in the metric's unit; absent: unknown.
    pub last_value: Option<f64>,
    /// How far its datapoints are; absent before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowStatus>,
    /// Milliseconds until the cooldown after its last resize is over; absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown_remaining_ms: Option<u64>,
    /// What keeps it from being followed although it fired; absent: nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldStatus>,
}

/// The datapoints of one rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WindowStatus {
    /// How many breach the level at the moment.
    pub breaching: u32,
    /// How many have to.
    pub need: u32,
    /// How many are looked at.
    pub of: u32,
    /// Time between them in milliseconds.
    pub period_ms: u64,
}

/// Why a rule that fired is not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HeldStatus {
    /// `busy`, `manual_hold`, `cooldown`, `at_bound`, `growth_wins`, `stabilising`,
    /// `reversal_budget`, `host_short_of_cpu` or `backing_off`.
    pub reason: String,
    /// A sentence.
    pub detail: String,
}

/// What bears on all rules of an instance, besides the rules themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ScalingStatus {
    /// What becomes of the rules' decisions.
    pub mode: Mode,
    /// Shrinking goes no lower than the largest size wanted in this time, in milliseconds.
    pub shrink_window_ms: u64,
    /// Most changes of direction in an hour, on each axis.
    pub reversals_per_hour: u32,
    /// Of the CPUs.
    pub cpus: AxisScaling,
    /// Of the memory.
    pub memory: AxisScaling,
    /// Of the limits on I/O that rules have looked at.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub io: BTreeMap<Resource, AxisScaling>,
}

impl ScalingStatus {
    /// What bears on the rules of one resource.
    pub fn of(&self, resource: Resource) -> AxisScaling {
        match resource {
            Resource::Cpus => self.cpus,
            Resource::Memory => self.memory,
            limit => self.io.get(&limit).copied().unwrap_or_default(),
        }
    }
}

/// What bears on the rules of one axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AxisScaling {
    /// Milliseconds for which a resize by hand still pauses the rules; 0: it does not.
    pub manual_hold_remaining_ms: u64,
    /// Changes of direction within the last hour.
    pub reversals: u32,
}

/// What the program in the guest said last, as far as it can be true; absent fields are unknown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestStatus {
    /// Milliseconds since it said so.
    pub age_ms: u64,
    /// Time in which something waited for a processor, percent.
    pub cpu_pressure: Option<f64>,
    /// The same for memory.
    pub memory_pressure: Option<f64>,
    /// The same for a device.
    pub io_pressure: Option<f64>,
    /// Load average of the last minute.
    pub load1: Option<f64>,
    /// Memory that programs can have without swapping.
    pub memory_available: Option<Bytes>,
    /// Memory that the guest's kernel manages.
    pub memory_total: Option<Bytes>,
    /// Swap space in use.
    pub swap_used: Option<Bytes>,
    /// Swap space.
    pub swap_total: Option<Bytes>,
    /// What can still be written to the root file system.
    pub root_available: Option<Bytes>,
    /// Size of the root file system.
    pub root_total: Option<Bytes>,
    /// Processors that the guest has brought online.
    pub cpus_online: Option<u32>,
    /// Processors that the guest has.
    pub cpus_present: Option<u32>,
    /// Whether a hook of the guest is asked before a shrink; absent: it does not say.
    #[serde(default)]
    pub shrink_hooks: Option<bool>,
    /// Numbers of the guest's programs, without the `custom.` before their names.
    pub custom: BTreeMap<String, f64>,
    /// Lines that were no messages, since launch.
    pub bad_lines: u64,
}

/// An instance as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InstanceStatus {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: InstanceState,
    /// Milliseconds since launch.
    pub uptime_ms: u64,
    /// Process id of whoever decides for it (`concertina run`, or `concertina agent`).
    pub agent_pid: i32,
    /// Process id of its vmm; absent when there is none.
    pub vmm_pid: Option<i32>,
    /// CPU.
    pub cpus: CpuStatus,
    /// Memory.
    pub memory: MemoryStatus,
    /// I/O.
    #[serde(default)]
    pub io: IoStatus,
    /// What the program in the guest says; absent while it is silent.
    #[serde(default)]
    pub guest: Option<GuestStatus>,
    /// The last resize, by hand or by threshold.
    pub last_resize: Option<ResizeReport<InstanceSize>>,
    /// Version of the policy in force: 1 at launch, one more with each replacement.
    #[serde(default)]
    pub policy_version: u64,
    /// Growth that its host has no room for yet; it is carried out when there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<InstanceSize>,
    /// Starts after failures since launch.
    #[serde(default)]
    pub restarts: u64,
    /// The size that its rules want, where its policy only recommends; absent: the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommended: Option<InstanceSize>,
    /// Its thresholds.
    pub thresholds: Vec<ThresholdStatus>,
    /// What bears on all of them; absent before the first look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,
    /// What is measured of it, by the names of the rules' metrics and in their units, whether a rule
    /// looks at it or not. What is not known, or not any more, is absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub observed: BTreeMap<String, f64>,
}

/// The part of an instance's size that a resize touched; absent where it was not asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct InstanceSize {
    /// CPUs: vCPUs online, limited by quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory: plugged less balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Limit of one disk, or of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<DiskRate>,
    /// Limit of one network interface, or of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<NetRateChange>,
}

/// A wish of a person; what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct InstanceResize {
    /// CPUs, inside the bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Memory, inside the bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Another limit for one disk, or for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<DiskRate>,
    /// Another limit for one network interface, or for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<NetRateChange>,
    /// Deadline in milliseconds; default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Idempotency key: a request with the key of an earlier one gets that one's answer, and nothing
    /// is done again. 1 to 128 characters, no control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// How an instance shall end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Do not ask the guest, end the VM now.
    #[serde(default)]
    pub force: bool,
    /// How long the guest may take, in milliseconds; default 30,000. Then the VM is ended.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}
