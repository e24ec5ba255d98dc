//! What is written into the journal.
//!
//! An intent is written before something is done on a host that cannot be undone by forgetting it,
//! and one outcome after it was seen how it ended. The intent of a growth is also its reservation:
//! while it is open, the ledger holds the larger of the sizes before and after.

use concertina_api::instance::InstanceSize;
use concertina_api::policy::Axis;
use concertina_api::vm::Outcome;
use serde::{Deserialize, Serialize};

use super::book::InstanceBook;
use crate::clock::Moment;
use crate::ledger::Claim;
use crate::policy::{PolicyState, Size};

/// Names an intent; never used twice in one journal, and never 0.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct IntentId(pub u64);

impl IntentId {
    /// Stands in an intent that the journal shall number.
    pub const NEXT: Self = Self(0);
}

impl std::fmt::Display for IntentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What shall be done.
// One at a time is held, on its way to the disk or back.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Action {
    /// Start an instance that the ledger has admitted.
    Launch {
        /// What it is guaranteed, and what it may grow to.
        claim: Claim,
    },
    /// Change the axes that are named.
    Resize {
        /// Sizes before.
        before: InstanceSize,
        /// Sizes asked for; the same axes.
        target: InstanceSize,
        /// `manual`, or the rules that want it.
        cause: String,
        /// Version of the policy that wanted it.
        policy_version: u64,
    },
    /// End the instance.
    Stop,
}

/// Something that is about to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// Its number; [`IntentId::NEXT`] before it was appended.
    pub id: IntentId,
    /// Name of the instance.
    pub instance: String,
    /// What.
    pub action: Action,
    /// The idempotency key of the request that wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// When.
    pub at: Moment,
}

impl Intent {
    /// Whether it changes this axis.
    pub fn changes(&self, axis: Axis) -> bool {
        match &self.action {
            Action::Resize { target, .. } => match axis {
                Axis::Cpus => target.cpus.is_some(),
                Axis::Memory => target.memory.is_some(),
            },
            Action::Launch { .. } | Action::Stop => true,
        }
    }

    /// What the ledger holds for an instance of this size while the intent is open.
    pub fn reserved(&self, size: Size) -> Size {
        match &self.action {
            Action::Resize { target, .. } => Size {
                cpus: target.cpus.map_or(size.cpus, |cpus| cpus.max(size.cpus)),
                memory: target
                    .memory
                    .map_or(size.memory, |memory| memory.max(size.memory)),
            },
            Action::Launch { .. } | Action::Stop => size,
        }
    }
}

/// How an intent ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conclusion {
    /// Which intent.
    pub id: IntentId,
    /// How.
    pub outcome: Outcome,
    /// Sizes as they were seen, of the axes that the intent names. After a launch: both.
    #[serde(default)]
    pub after: InstanceSize,
    /// Why it is not `applied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub at: Moment,
}

/// One record.
// One at a time is held, on its way to the disk or back.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// Something is about to be done.
    Intent(Intent),
    /// It has ended.
    Outcome(Conclusion),
    /// An instance has another size than its last outcome says, and nobody asked for it: its guest
    /// was reset, or was out of memory and took back what it had given.
    Seen {
        /// Name of the instance.
        instance: String,
        /// What it has.
        size: Size,
    },
    /// An instance is gone. Intents that were open for it have ended with it.
    Ended {
        /// Name of the instance.
        instance: String,
        /// Why.
        reason: String,
        /// When.
        at: Moment,
    },
    /// A guest does not cooperate on this axis, or does again.
    Stuck {
        /// Name of the instance.
        instance: String,
        /// Which axis.
        axis: Axis,
        /// It does not.
        stuck: bool,
    },
    /// What the decision remembers: cooldowns, reversal budget, windows.
    Policy {
        /// Name of the instance.
        instance: String,
        /// Version of the policy in force.
        version: u64,
        /// The state, timed in milliseconds since the instance's launch.
        state: Box<PolicyState>,
    },
    /// How far the usage file of an instance has come: whoever cuts that file's end contradicts
    /// this.
    Usage {
        /// Name of the instance.
        instance: String,
        /// The mark.
        mark: UsageMark,
    },
    /// All of one instance, as compaction leaves it; takes the place of what is known of it.
    Instance {
        /// Name of the instance.
        instance: String,
        /// What is known.
        book: Box<InstanceBook>,
    },
    /// No intent below this number is used again: what compaction keeps of the intents that ended.
    NextIntent {
        /// The number.
        id: IntentId,
    },
}

/// The head of a usage chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageMark {
    /// Number of the record.
    pub sequence: u64,
    /// Its hash.
    pub hash: String,
}
