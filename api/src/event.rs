//! What happened to an instance, one JSON object a line in its `events.jsonl`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::instance::{ExitReason, InstanceSize};
use crate::vm::{Outcome, ResizeReport};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// Wall clock, RFC 3339 with milliseconds: a label, never used to decide.
    pub time: String,
    /// Milliseconds since launch, monotonic.
    pub uptime_ms: u64,
    /// Version of the policy that caused it; absent where no policy did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<u64>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Kinds of events; in JSON the field `event` names the kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
        /// Its intents in the journal of the host's agent, one an axis.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        intents: Vec<u64>,
        /// What the rules saw when they fired, by metric, in the metric's unit.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        samples: BTreeMap<String, f64>,
        /// What was reserved on the host for it: the sizes that growth was promised.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reserved: Option<InstanceSize>,
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
    /// Its policy was replaced while it runs.
    PolicyReplaced {
        /// The new version.
        version: u64,
        /// The new rules.
        rules: Vec<String>,
    },
    /// An agent has taken the running instance over from one that died or was stopped.
    Adopted {
        /// Process id of the agent.
        agent_pid: i32,
        /// Process id of the vmm.
        vmm_pid: i32,
    },
    /// An intent that an agent died over was brought to its end by the next one.
    Recovered {
        /// Which intent.
        intent: u64,
        /// How it ended.
        outcome: Outcome,
        /// What was done.
        reason: String,
    },
    /// The VM failed, and is started again after a pause.
    Restarting {
        /// How it failed, with the evidence.
        reason: String,
        /// The same in one word.
        exit_reason: ExitReason,
        /// Starts in a row after failures, from 1.
        attempt: u32,
        /// Pause before it, in milliseconds.
        wait_ms: u64,
    },
    /// The guest asked for a reset; it is started again at its first size, with the limits on I/O that
    /// were set last.
    Rebooted,
    /// The VM is gone.
    Ended {
        /// Exit status of the vmm, or absent when it was killed by a signal.
        status: Option<i32>,
        /// A sentence, with the evidence.
        reason: String,
        /// The kind of ending in one word.
        #[serde(default)]
        exit_reason: ExitReason,
    },
}
