//! What a vmm process is asked to be ([`VmSpec`]), what it is ([`VmDescription`]), and how it
//! answers a resize ([`ResizeReport`]). These are the bodies of its unix-socket API:
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/vm` | | [`VmDescription`] |
//! | `PUT /v1/vm/resize` | [`VmResize`] | [`ResizeReport`] of [`VmSize`] |
//! | `GET /v1/vm/disks` | | list of [`DiskStatus`] |
//! | `GET /v1/vm/nets` | | list of [`NetStatus`] |
//! | `GET /v1/vm/balloon/statistics` | | [`BalloonStatistics`] (fresh, or the last with its age) |
//! | `PUT /v1/vm/counters` | [`Publishing`] | 204: the counters file of the specification is written |
//! | `PUT /v1/vm/pause`, `/resume`, `/power-button`, `/stop` | | 204 |

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::disk::{DiskRate, DiskSpec, DiskStatus};
use crate::net::{NetRateChange, NetSpec, NetStatus};
use crate::units::{Bytes, Quota};

/// Exit statuses of a vmm process.
pub mod exit {
    /// The guest powered off, or the VM was stopped on request.
    pub const POWER_OFF: i32 = 0;
    /// The VM could not be built: bad kernel, no KVM, no memory. Nothing ran.
    pub const SETUP_FAILED: i32 = 1;
    /// The guest asked for a reset (`reboot`): start it again, fresh.
    pub const RESET: i32 = 64;
    /// A vCPU shut down by triple fault.
    pub const TRIPLE_FAULT: i32 = 65;
    /// KVM could not go on (internal error, failed entry, bad address).
    pub const KVM_ERROR: i32 = 66;
}

/// Threaded groups inside a VM's cgroup.
pub mod cgroup {
    /// vCPU threads, which have the quota.
    pub const VCPU: &str = "vcpu";
    /// All other threads, and the programs that move the guest's frames: never throttled.
    pub const OTHERS: &str = "emu";
}

/// One virtual machine, in the words of whoever starts it. The vmm checks it before anything is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name of the instance, for messages and thread names.
    pub name: String,
    /// bzImage, or ELF vmlinux with a PVH note.
    pub kernel: PathBuf,
    /// Initial ram file system, any format the kernel reads.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Whole kernel command line.
    pub cmdline: String,
    /// vCPUs online at boot, at least 1.
    pub boot_vcpus: u32,
    /// Most vCPUs ever, at least `boot_vcpus`.
    pub max_vcpus: u32,
    /// CPU quota at start.
    pub quota: Quota,
    /// Boot RAM: the lower bound of memory.
    pub boot_memory: Bytes,
    /// Most memory ever; what is above boot RAM is a virtio-mem region.
    pub max_memory: Bytes,
    /// Where the API listens.
    pub api_socket: PathBuf,
    /// Where the serial console listens; the last 64 KiB of output are replayed to who connects.
    #[serde(default)]
    pub console_socket: Option<PathBuf>,
    /// A file that gets a copy of the serial output.
    #[serde(default)]
    pub console_log: Option<PathBuf>,
    /// Disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Sockets between programs of the guest and of the host; absent: none.
    #[serde(default)]
    pub vsock: Option<VsockSpec>,
    /// An existing, writable cgroup v2 folder of this VM alone; the vmm makes the
    /// groups of [`cgroup`] in it, where they are not there.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Network interfaces, in the guest's order.
    #[serde(default)]
    pub nets: Vec<NetSpec>,
    /// A file that gets a [`VmExitRecord`] at the end, for an agent that is not the parent process any
    /// more; absent: none.
    #[serde(default)]
    pub exit_file: Option<PathBuf>,
    /// A file that gets a [`crate::counters::Counters`] record, as often as it is asked for; absent: none.
    #[serde(default)]
    pub counters_file: Option<PathBuf>,
}

/// A wish for the counters file to be written, again and again; the last one holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Publishing {
    /// Milliseconds from one time to the next, 20 to 60,000.
    pub period_ms: u64,
    /// Milliseconds from now to the first time, at most 60,000: whoever reads it regularly, has it
    /// written a moment before.
    pub first_ms: u64,
}

impl Publishing {
    /// Shortest and longest period, in milliseconds.
    pub const PERIODS_MS: std::ops::RangeInclusive<u64> = 20..=60_000;

    /// Whether it is possible; else a sentence.
    ///
    /// # Errors
    /// One of the times is out of its range.
    pub fn check(&self) -> Result<(), String> {
        let (least, most) = (Self::PERIODS_MS.start(), Self::PERIODS_MS.end());
        if !Self::PERIODS_MS.contains(&self.period_ms) {
            return Err(format!(
                "A period_ms of {} is not allowed: {least} to {most} are",
                self.period_ms
            ));
        }
        if self.first_ms > *most {
            return Err(format!(
                "A first_ms of {} is not allowed: 0 to {most} are",
                self.first_ms
            ));
        }
        Ok(())
    }
}

/// How a vmm process ended, in its own words. A process that was killed leaves none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmExitRecord {
    /// Process id of the vmm that wrote it.
    pub pid: i32,
    /// Its exit status, one of [`exit`].
    pub status: i32,
    /// A sentence.
    pub reason: String,
}

/// A virtio socket device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context id, at least 3.
    pub cid: u32,
    /// The base socket P. Whoever connects to it and writes `CONNECT <port>\n` reaches that port of the
    /// guest and reads `OK <host port>\n` first; a guest that connects to port N of context id 2
    /// reaches who listens on `P_N`.
    pub socket: PathBuf,
}

/// Is the guest's code running?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// vCPUs are held between two instructions.
    Paused,
    /// On the way out.
    Stopping,
}

/// One possible vCPU as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VcpuState {
    /// Not in the machine; its thread sleeps outside KVM.
    Parked,
    /// Announced to the guest, not yet taken.
    Inserting,
    /// Taken by the guest, not yet started by it.
    Present,
    /// Started by the guest (it has received SIPI) or a boot vCPU.
    Online,
    /// The guest was asked to give it back.
    Removing,
}

/// One vCPU thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VcpuThread {
    /// vCPU number, equal to its APIC id.
    pub vcpu: u32,
    /// Thread id on the host.
    pub tid: i32,
    /// State as the host sees it.
    pub state: VcpuState,
}

/// Virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VcpuStatus {
    /// Most ever.
    pub max: u32,
    /// Asked for.
    pub target: u32,
    /// In the machine (taken by the guest).
    pub present: u32,
    /// Started by the guest.
    pub online: u32,
    /// All of them, parked ones too.
    pub threads: Vec<VcpuThread>,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MemoryStatus {
    /// Boot RAM.
    pub boot: Bytes,
    /// Most ever.
    pub max: Bytes,
    /// Asked for, boot RAM included.
    pub target: Bytes,
    /// Held by the guest now: boot RAM and plugged blocks.
    pub plugged: Bytes,
    /// Unit of plugging.
    pub block: Bytes,
    /// The guest's virtio-mem driver is up.
    pub driver_ready: bool,
    /// Requests of the driver that were refused because they are invalid.
    pub bad_requests: u64,
}

/// The balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BalloonStatus {
    /// Asked for.
    pub target: Bytes,
    /// What the guest says it has given.
    pub actual: Bytes,
    /// The guest's balloon driver is up.
    pub driver_ready: bool,
    /// Bytes given back by free page reporting since start.
    pub reported_total: Bytes,
    /// Bytes given back by inflation since start.
    pub inflated_total: Bytes,
    /// Pages or ranges that the guest named and that are not its own.
    pub bad_requests: u64,
}

/// The socket device. Counters begin when the VM does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VsockStatus {
    /// Connections at the moment.
    pub connections: u64,
    /// Connections that programs of the host have asked for.
    pub opened_by_host: u64,
    /// Connections that the guest has asked for, and got.
    pub opened_by_guest: u64,
    /// Connections that were not made: nobody listens, wrong words, or too many.
    pub refused: u64,
    /// Bytes to the guest.
    pub bytes_to_guest: u64,
    /// Bytes from the guest.
    pub bytes_from_guest: u64,
    /// Connections that were reset because the guest sent more than it had credit for.
    pub credit_overruns: u64,
    /// Packets and buffers of the guest that break the protocol, those overruns among them.
    pub bad_requests: u64,
}

/// What the guest's balloon driver says of its memory. Untrusted: it may only make its own VM larger.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BalloonStatistics {
    /// Milliseconds since these numbers arrived; none yet: absent.
    pub age_ms: Option<u64>,
    /// By name: `swap_in`, `swap_out`, `major_faults`, `minor_faults`, `free_memory`,
    /// `total_memory`, `available_memory`, `disk_caches`, `hugetlb_allocations`,
    /// `hugetlb_failures`, `oom_kill`, `alloc_stall`, `async_scan`, `direct_scan`,
    /// `async_reclaim`, `direct_reclaim`. Memory in bytes, the rest in events.
    pub values: BTreeMap<String, u64>,
}

/// A virtual machine as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmDescription {
    /// Name of the instance.
    pub name: String,
    /// Process id of the vmm.
    pub pid: i32,
    /// Milliseconds since the first instruction of the guest.
    pub uptime_ms: u64,
    /// Running or held.
    pub state: RunState,
    /// vCPUs.
    pub vcpus: VcpuStatus,
    /// CPU quota in force; absent without a cgroup.
    pub quota: Option<Quota>,
    /// Memory.
    pub memory: MemoryStatus,
    /// Balloon.
    pub balloon: BalloonStatus,
    /// Disks, in the order of the specification.
    #[serde(default)]
    pub disks: Vec<DiskStatus>,
    /// Sockets; absent without the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockStatus>,
    /// Network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetStatus>,
    /// Resident memory of the guest's RAM on the host, from `smaps`.
    pub guest_resident: Bytes,
    /// Resident memory of everything else in the vmm process, from `smaps`.
    pub vmm_resident: Bytes,
}

/// A wish: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VmResize {
    /// Whole vCPUs, 1 to max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// CPU quota. With fewer vCPUs than are online it is set when they have gone, and not where the
    /// guest keeps them; else at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Memory, boot RAM included, boot to max; rounded to blocks by the vmm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Balloon: how much the guest shall give back on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Bytes>,
    /// Another limit for one disk or for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<DiskRate>,
    /// Other limits of network interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<NetRateChange>,
    /// Deadline in milliseconds; default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// The part of a VM's size that a resize touched; absent where it was not asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmSize {
    /// vCPUs started by the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// CPU quota in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Plugged memory, boot RAM included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Balloon size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Bytes>,
    /// Limit in force of the disk, or of the first of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<DiskRate>,
    /// Limits of network interfaces in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<NetRateChange>,
}

/// How a resize ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Reached exactly what was asked.
    Applied,
    /// Reached a part of it; `got` says what.
    Partial,
    /// The guest said no, or the request is impossible; `reason` says why.
    Refused,
    /// What had been begun was taken back.
    RolledBack,
    /// The guest did not answer within the deadline.
    TimedOut,
}

impl Outcome {
    /// The word used in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Partial => "partial",
            Self::Refused => "refused",
            Self::RolledBack => "rolled_back",
            Self::TimedOut => "timed_out",
        }
    }
}

/// The answer to a resize: what was reached, never just "accepted".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResizeReport<Size = VmSize> {
    /// How it ended.
    pub outcome: Outcome,
    /// What was asked.
    pub asked: Size,
    /// What is there now.
    pub got: Size,
    /// Why it is not `applied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Status that the guest gave by ACPI `_OST`, when it refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ost: Option<u32>,
    /// Milliseconds from the request to each step that was seen, for example `vcpus_present`,
    /// `vcpus_online`, `quota`, `memory_plugged`, `resident_fell`, `total`.
    pub timeline_ms: BTreeMap<String, f64>,
}
