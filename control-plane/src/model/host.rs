//! Hosts as they are stored.

use concertina_api::link::HostCapacity;
use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a host is in its life.
///
/// ```text
/// joined ──► ready ◄──► draining
///              │ ▲           │ ▲
///              ▼ │           ▼ │       (its lease has expired, and it is back)
///             lost          lost
/// ```
/// Only `draining` is stored: whether a host lives is in its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Connected: it takes instances.
    Ready,
    /// It takes no further ones.
    Draining,
    /// Not heard of.
    Lost,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// It takes no further instances.
    #[serde(default)]
    pub draining: bool,
    /// Not heard of since its lease expired.
    #[serde(default)]
    pub lost: bool,
    /// What it said last that it can promise.
    pub capacity: HostCapacity,
    /// Version of its agent.
    pub version: String,
    /// Its boot.
    pub boot: String,
    /// SHA-256 of the public key that its certificate is for.
    pub public_key: String,
    /// Placements on it that no record tells of: they are left alone.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// When it joined, RFC 3339.
    pub created: String,
}

impl Host {
    /// Its state.
    pub fn state(&self) -> HostState {
        match (self.lost, self.draining) {
            (true, _) => HostState::Lost,
            (false, true) => HostState::Draining,
            (false, false) => HostState::Ready,
        }
    }
}

/// A host's connection. It has a lease: where it is missing, the host is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Id of the connection.
    pub session: String,
    /// Where it comes from.
    pub remote: String,
}

/// Lower bounds that a host has promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// CPUs.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Bytes,
    /// Instances.
    pub instances: u32,
}

/// Lets one host join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Its id.
    pub id: String,
    /// SHA-256 of its secret part, hexadecimal.
    pub hash: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The host that it was used for.
    #[serde(default)]
    pub used_by: Option<String>,
    /// SHA-256 of the public key that it was used with: the same key may ask again.
    #[serde(default)]
    pub public_key: Option<String>,
}
