//! What answers are made of, where several routes share it.

use concertina_api::link::HostPhase;
use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::now_ms;
use crate::model::{Instance, Observed, PlacementHints, State};

/// Least and most CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuBounds {
    /// What the instance is guaranteed.
    #[schema(value_type = f64, minimum = 0.01, example = 0.5)]
    pub min: Cpus,
    /// What it may grow to.
    #[schema(value_type = f64, minimum = 0.01, example = 4)]
    pub max: Cpus,
}

/// Least and most memory; numbers are bytes, texts have a unit, like `512M`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryBounds {
    /// What the instance is guaranteed.
    #[schema(value_type = u64, minimum = 1, example = 536_870_912)]
    pub min: Bytes,
    /// What it may grow to.
    #[schema(value_type = u64, minimum = 1, example = 4_294_967_296_u64)]
    pub max: Bytes,
}

/// Least and most of everything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// CPUs.
    pub cpus: CpuBounds,
    /// Memory.
    pub memory: MemoryBounds,
}

impl Bounds {
    /// Of a policy.
    pub fn of(cpus: concertina_api::Bounds<Cpus>, memory: concertina_api::Bounds<Bytes>) -> Self {
        Self {
            cpus: CpuBounds {
                min: cpus.min,
                max: cpus.max,
            },
            memory: MemoryBounds {
                min: memory.min,
                max: memory.max,
            },
        }
    }
}

/// Bounds and thresholds in force.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PolicyView {
    /// Grows with each replacement; `If-Match` takes it.
    pub version: u64,
    /// Least and most.
    pub bounds: Bounds,
    /// The rules in their normal form.
    pub thresholds: Vec<String>,
    /// Settings in the form that `thresholds` of a request takes.
    pub settings: Vec<String>,
    /// Whether the rules' decisions are carried out (`act`) or only reported (`recommend`).
    pub mode: String,
}

impl PolicyView {
    /// Of an instance.
    pub fn of(instance: &Instance) -> Self {
        use concertina_api::policy::Mode;
        use concertina_api::policy::rule::time_text;
        let policy = &instance.spec.policy;
        Self {
            version: instance.policy_version,
            bounds: Bounds::of(policy.bounds.cpus, policy.bounds.memory),
            thresholds: policy.rules.iter().map(ToString::to_string).collect(),
            settings: vec![
                format!("set period {}", time_text(policy.period_ms)),
                format!("set manual_hold {}", time_text(policy.manual_hold_ms)),
                format!("set shrink_window {}", time_text(policy.shrink_window_ms)),
                format!("set reversals_per_hour {}", policy.reversals_per_hour),
            ],
            mode: match policy.mode {
                Mode::Act => "act".into(),
                Mode::Recommend => "recommend".into(),
            },
        }
    }
}

/// What the host said last.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ObservedView {
    /// Milliseconds since then.
    pub age_ms: u64,
    /// `preparing`, `running`, `stopping`, `ended`, `launch_failed`.
    pub phase: String,
    /// Version of the policy that is in force there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<u64>,
    /// Why the policy is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_problem: Option<String>,
    /// CPUs: min, max, target, online, quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub cpus: Option<serde_json::Value>,
    /// Memory in bytes: min, max, target, plugged, balloon, …
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub memory: Option<serde_json::Value>,
    /// How each threshold stands.
    #[schema(value_type = Vec<Object>)]
    pub thresholds: Vec<serde_json::Value>,
    /// The size that the rules want, where they only recommend.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub recommended: Option<serde_json::Value>,
    /// What the host cannot give it at the moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_short: Option<String>,
}

impl ObservedView {
    /// Of what was observed.
    pub fn of(observed: &Observed) -> Self {
        let seen = &observed.seen;
        let status = seen.status.as_ref();
        let json = |value: &dyn Fn() -> Option<serde_json::Value>| value();
        let phase = match seen.phase {
            HostPhase::Preparing => "preparing",
            HostPhase::Running => "running",
            HostPhase::Stopping => "stopping",
            HostPhase::Ended { .. } => "ended",
            HostPhase::LaunchFailed { .. } => "launch_failed",
        };
        Self {
            age_ms: now_ms().saturating_sub(observed.time_ms),
            phase: phase.into(),
            policy_version: seen.policy_version,
            policy_problem: seen.policy_problem.clone(),
            cpus: json(&|| serde_json::to_value(&status?.cpus).ok()),
            memory: json(&|| serde_json::to_value(&status?.memory).ok()),
            thresholds: status
                .into_iter()
                .flat_map(|status| &status.thresholds)
                .filter_map(|threshold| serde_json::to_value(threshold).ok())
                .collect(),
            recommended: json(&|| serde_json::to_value(status?.recommended?).ok()),
            capacity_short: seen.capacity_short.as_ref().map(|short| short.why.clone()),
        }
    }
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct InstanceView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: State,
    /// Why: a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `NAME:VERSION`.
    pub image: String,
    /// Bounds and thresholds.
    pub policy: PolicyView,
    /// Metrics that are shown; empty: all.
    pub metrics: Vec<String>,
    /// Network interfaces.
    pub networks: Vec<String>,
    /// Where it shall be.
    pub placement: PlacementHints,
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How often it was placed.
    pub generation: u64,
    /// When it was launched.
    pub created: String,
    /// When its state changed last.
    pub changed: String,
    /// What its host said last; absent: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed: Option<ObservedView>,
}

impl InstanceView {
    /// Of an instance and what was observed of its present placement.
    pub fn of(instance: &Instance, observed: Option<&Observed>) -> Self {
        let present =
            |observed: &&Observed| observed.seen.placement.generation == instance.life.generation;
        Self {
            id: instance.id.clone(),
            name: instance.spec.name.clone(),
            state: instance.life.state,
            reason: instance.life.reason.clone(),
            image: instance.spec.image.clone(),
            policy: PolicyView::of(instance),
            metrics: instance.spec.metrics.clone(),
            networks: instance.spec.networks.clone(),
            placement: instance.spec.placement.clone(),
            host: instance.life.host.clone(),
            generation: instance.life.generation,
            created: instance.created.clone(),
            changed: instance.changed.clone(),
            observed: observed.filter(present).map(ObservedView::of),
        }
    }
}
