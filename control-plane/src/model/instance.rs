//! Instances as they are stored: what their customer wants, and what was seen of them.

use concertina_api::instance::{InstanceResize, InstanceSize};
use concertina_api::link::{HostInstance, ImageParts, Placement};
use concertina_api::policy::Policy;
use concertina_api::vm::ResizeReport;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::state::Life;

/// What becomes of an instance whose host is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostLostAction {
    /// It waits for the host to come back.
    #[default]
    Wait,
    /// It is launched on another host, from its image: what was on its disk is lost.
    Relaunch,
}

/// What becomes of an instance that its host cannot let grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapacityShortAction {
    /// It stays, and its customer is told.
    #[default]
    Stay,
    /// It is stopped, and started on another host, from its image: what was on its disk is lost.
    Move,
}

pub use concertina_api::link::Restart;

/// Where an instance shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementHints {
    /// Only on the host of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub host: Option<String>,
    /// Rather on another host than instances of the same account with the same word.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 63)]
    pub spread: Option<String>,
}

/// What a customer asked for, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Name, unique among the account's instances that are not terminated.
    pub name: String,
    /// `NAME:VERSION`.
    pub image: String,
    /// What that meant at launch.
    pub parts: ImageParts,
    /// Bounds and rules.
    pub policy: Policy,
    /// Metrics that shall be shown; empty: all.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// Network interfaces.
    pub networks: Vec<String>,
    /// cloud-init user data.
    #[serde(default)]
    pub user_data: Option<String>,
    /// SSH keys.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Least size of its disk in bytes.
    #[serde(default)]
    pub disk: Option<concertina_api::Bytes>,
    /// Where it shall be.
    #[serde(default)]
    pub placement: PlacementHints,
    /// When its host is lost.
    #[serde(default)]
    pub on_host_lost: HostLostAction,
    /// When its host cannot let it grow.
    #[serde(default)]
    pub on_capacity_short: CapacityShortAction,
    /// When it has ended by an error.
    #[serde(default)]
    pub restart: Restart,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub account: String,
    /// What was asked for.
    pub spec: InstanceSpec,
    /// Grows with each replacement of the policy, from 1.
    pub policy_version: u64,
    /// Where it is in its life.
    #[serde(flatten)]
    pub life: Life,
    /// Stop without asking the guest, and how long it may take.
    #[serde(default)]
    pub stop_force: bool,
    /// Milliseconds that the guest may take to stop.
    #[serde(default)]
    pub stop_timeout_ms: u64,
    /// The customer was told that its host is short.
    #[serde(default)]
    pub capacity_short: Option<String>,
    /// The host that it was moved away from: another one is wanted.
    #[serde(default)]
    pub avoid: Option<String>,
    /// When it was launched, RFC 3339.
    pub created: String,
    /// When its state changed last, RFC 3339.
    pub changed: String,
}

impl Instance {
    /// Its present placement.
    pub fn placement(&self) -> Placement {
        Placement {
            id: self.id.clone(),
            generation: self.life.generation,
        }
    }
}

/// What its host said last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    pub seen: HostInstance,
}

/// How far the record goes for one placement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Number of the next event.
    pub events: u64,
    /// Number of the next record of usage.
    pub usage: u64,
    /// Hash of the last record of usage; empty: none.
    pub head: String,
}

/// What an instance has held, over all its placements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageTotal {
    /// How long it ran, in milliseconds.
    pub span_ms: u64,
    /// CPU by quota, in millionths of a CPU-second.
    pub vcpu_us: u64,
    /// Memory by promised size, in KiB-milliseconds.
    pub promised_kib_ms: u64,
    /// Memory resident on the host, in KiB-milliseconds.
    pub resident_kib_ms: u64,
    /// Records that this is the sum of.
    pub records: u64,
}

/// A resize by hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resize {
    /// Its id.
    pub id: String,
    /// Of which placement.
    pub placement: Placement,
    /// To what.
    pub wish: InstanceResize,
    /// How it ended; absent: not yet.
    #[serde(default)]
    pub report: Option<ResizeReport<InstanceSize>>,
    /// Why there is no report: a sentence.
    #[serde(default)]
    pub error: Option<String>,
    /// When it was asked for, RFC 3339.
    pub created: String,
}

impl Resize {
    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.report.is_some() || self.error.is_some()
    }
}
