//! What happened to an instance, one JSON object a line in its `events.jsonl`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::instance::InstanceSize;
use crate::vm::ResizeReport;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Wall clock, RFC 3339 with milliseconds: a label, never used to decide.
    pub time: String,
    /// Milliseconds since launch, monotonic.
    pub uptime_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Kinds of events; in JSON the field `event` names the kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // there is one at a time, on its way to a file
pub enum EventKind {
    /// The vmm runs the guest's first instruction.
    Started {
        /// Process id of the vmm.
        vmm_pid: i32,
    },
    /// A threshold fired, or is satisfied again.
    Threshold {
        /// The rule.
        rule: String,
        /// New state.
        state: String,
        /// Value that did it.
        value: Option<f64>,
    },
    /// A resize ended.
    Resized {
        /// `manual`, or the rule that caused it.
        cause: String,
        /// Why this size: clamps, rounding, what won over what.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        /// Size before.
        before: InstanceSize,
        /// How it ended.
        #[serde(flatten)]
        report: ResizeReport<InstanceSize>,
        /// Guest RAM resident on the host before and after, in bytes.
        resident_before: u64,
        /// See `resident_before`.
        resident_after: u64,
    },
    /// A wish that was not acted on, and why (`host_short_of_cpu`, `cooldown`, …).
    Held {
        /// The rule that wanted it.
        cause: String,
        /// Why not.
        why: String,
    },
    /// What the rules want in a policy with `mode = "recommend"`: another size than before, or
    /// another cause for it. Nothing is done.
    Recommended {
        /// The rules that want it.
        cause: String,
        /// Why this size: clamps, rounding, what won over what.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        /// The present size.
        present: InstanceSize,
        /// The size that it would be resized to.
        recommended: InstanceSize,
    },
    /// The guest killed programs, or stalled, for want of memory.
    GuestMemoryShort {
        /// The evidence.
        evidence: String,
    },
    /// A disk's image or device failed requests of the guest, which was told so. Said once for
    /// errors that follow each other closely.
    DiskError {
        /// Image file or block device.
        disk: PathBuf,
        /// What the last of them met.
        error: String,
        /// How many since the last such event.
        count: u64,
    },
    /// The program behind a network interface has ended: its link is down until the guest restarts.
    NetDown {
        /// Number of the interface.
        net: usize,
        /// Its last words.
        reason: String,
    },
    /// The guest asked for a reset; it is started again at its first size, with the limits on I/O that
    /// were set last.
    Rebooted,
    /// The VM is gone.
    Ended {
        /// Exit status of the vmm, or absent when it was killed by a signal.
        status: Option<i32>,
        /// A sentence.
        reason: String,
    },
}
