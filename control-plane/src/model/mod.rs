//! What the registry holds: one type for each kind of key, stored as JSON. Fields that came later have
//! defaults, so that what an earlier version wrote can be read.
//!
//! | key | value |
//! |---|---|
//! | `cluster` | [`Cluster`] |
//! | `account/A` | [`Account`] |
//! | `used/A` | [`Used`]: what counts against its quota |
//! | `key/K`, `account-key/A/K` | [`ApiKey`]; index |
//! | `image/OWNER/NAME/VERSION` | [`Image`] |
//! | `instance/I`, `account-instance/A/I`, `name/A/NAME` | [`Instance`]; indexes |
//! | `host/H`, `live/H`, `host-instance/H/I`, `promised/H` | [`Host`], [`Live`] with a lease; index; [`Promised`] |
//! | `placed/I/G` | the host of a placement, for good |
//! | `host-key/SHA256`, `host-name/NAME`, `account-name/NAME` | indexes |
//! | `observed/I` | [`Observed`] |
//! | `event/I/N`, `event-next/I` | [`Recorded`]; number |
//! | `cursor/I/G` | [`Cursor`] |
//! | `usage/I/G/N`, `usage-total/I` | a line of the host's chain; [`UsageTotal`] |
//! | `resize/I/R`, `host-resize/H/I/R` | [`Resize`]; index of those that are open |
//! | `once/A/…` | [`Once`]: answers to client tokens |
//! | `join/J` | [`JoinToken`] |
//! | `webhook/A/W`, `outbox/W/…`, `dead/W/…` | [`Webhook`], [`Delivery`] |
//! | `audit/A/…` | [`Audit`] |
//! | `authority/N` | [`crate::ca::Authority`] |

mod event;
mod host;
mod instance;
pub mod state;

pub use event::{Delivery, Event, Recorded, Webhook};
pub use host::{Host, HostState, JoinToken, Live, Promised};
pub use instance::{
    CapacityShortAction, Cursor, HostLostAction, Instance, InstanceSpec, Observed, PlacementHints,
    Resize, Restart, UsageTotal,
};
pub use state::{Life, State};

use concertina_api::link::ImageParts;
use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The account of who runs the control plane.
pub const OPERATOR: &str = "operator";
/// Owner of images that every account may use.
pub const PUBLIC: &str = "public";

/// What is once in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Version of the values' form.
    pub schema: u32,
    /// Identity of this registry, over all its backups.
    pub id: String,
}

/// Who is billed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Its id.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// What it may have.
    pub quota: Quota,
    /// It can do nothing while this is set; its instances run on.
    #[serde(default)]
    pub suspended: bool,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// What an account may have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Most instances that are not terminated.
    #[schema(maximum = 1_000_000)]
    pub instances: u32,
    /// Most CPUs: the sum of upper bounds.
    #[schema(value_type = f64, minimum = 0, maximum = 1_000_000)]
    pub cpus: Cpus,
    /// Most memory in bytes: the sum of upper bounds.
    #[schema(value_type = u64)]
    pub memory: Bytes,
    /// Requests a second, over all of its keys; twice as many may come at once.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub requests_per_second: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            instances: 20,
            cpus: Cpus::whole(64),
            memory: Bytes(256 * Bytes::GIB),
            requests_per_second: 50,
        }
    }
}

/// What counts against a quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Instances that are not terminated.
    pub instances: u32,
    /// Sum of their upper bounds.
    pub cpus: Cpus,
    /// Sum of their upper bounds.
    pub memory: Bytes,
}

/// What a key may do. Each includes those before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// See what the account has.
    Read,
    /// Launch, resize, stop, terminate.
    Launch,
    /// Keys, webhooks, audit log; for the operator's account: everything.
    Admin,
}

/// A key of the API. The key itself is not stored: only its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id, which is also the first part of the key.
    pub id: String,
    /// Whose it is.
    pub account: String,
    /// What it is for, for people.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// SHA-256 of the secret part, hexadecimal.
    pub hash: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// When it ends, in milliseconds since 1970; absent: never.
    #[serde(default)]
    pub expires_ms: Option<u64>,
    /// Revoked.
    #[serde(default)]
    pub revoked: bool,
}

/// An image: what `NAME:VERSION` means, for good. A version is never changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// [`PUBLIC`], or the account that alone may use it.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its parts with their digests.
    pub parts: ImageParts,
    /// When it was registered, RFC 3339.
    pub created: String,
}

/// The answer that was given to a client token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Once {
    /// SHA-256 of the request that came with it.
    pub request: String,
    /// Id of what the request made.
    pub made: String,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
}

/// Somebody changed something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// When, RFC 3339.
    pub time: String,
    /// Whose key did it.
    pub account: String,
    /// The key.
    pub key: String,
    /// What was done: a stable word, as `instance.launch`.
    pub action: String,
    /// To what.
    pub target: String,
    /// The request's id, which its answer has as `X-Request-Id`.
    pub request_id: String,
    /// Where the request came from.
    pub remote: String,
}
