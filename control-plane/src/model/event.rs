//! What happened to instances, and who is told.

use concertina_api::event::Event as HostEvent;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::State;

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // there is one at a time, on its way to the registry
pub enum Event {
    /// On its host, as the host's journal has it.
    Host {
        /// Generation of the placement.
        generation: u64,
        /// Its number there, from 0.
        host_number: u64,
        /// What.
        #[serde(flatten)]
        event: HostEvent,
    },
    /// In the control plane.
    Control {
        /// A stable word: `state`, `capacity_short`, `policy`.
        event: String,
        /// The instance's state after it.
        state: State,
        /// A sentence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
}

impl Event {
    /// The word that tells its kind.
    pub fn kind(&self) -> String {
        match self {
            Self::Control { event, .. } => event.clone(),
            Self::Host { event, .. } => serde_json::to_value(&event.kind)
                .ok()
                .and_then(|value| value.get("event")?.as_str().map(str::to_owned))
                .unwrap_or_default(),
        }
    }
}

/// An event in the record of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its number in the record, from 0, without gaps.
    pub number: u64,
    /// The instance.
    pub instance: String,
    /// When it was recorded, RFC 3339.
    pub recorded: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// Who is told of an account's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub account: String,
    /// Where events are sent: `https://` (or `http://`, where the operator allows it).
    pub url: String,
    /// Kinds of events; empty: all.
    #[serde(default)]
    pub events: Vec<String>,
    /// What its messages are signed with. The control plane has to sign, so it is no hash.
    pub secret: String,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// A message that is on its way to a webhook, or could not be delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// Its id: the same in each attempt, so that a receiver can tell a repetition.
    pub id: String,
    /// The webhook.
    pub webhook: String,
    /// Whose it is.
    pub account: String,
    /// The event.
    #[schema(value_type = Object)]
    pub event: serde_json::Value,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// Not tried before, in milliseconds since 1970.
    #[serde(default)]
    pub not_before_ms: u64,
    /// What came of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
