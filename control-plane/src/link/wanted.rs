//! What a host is told about one placement: a pure function of the instance's record.

use concertina_api::link::{Goal, HostInstance, HostPhase, LaunchOrder, Placement, Wanted};

use crate::model::Instance;
use crate::model::state::GoalKind;

/// What `host` shall do about a placement.
pub fn wanted(instance: &Instance, host: &str, placement: Placement) -> Wanted {
    let goal = match instance.life.goal(host, placement.generation) {
        GoalKind::Absent => Goal::Absent,
        GoalKind::Stop => Goal::Stop {
            force: instance.stop_force,
            timeout_ms: if instance.stop_timeout_ms == 0 {
                30_000
            } else {
                instance.stop_timeout_ms
            },
        },
        GoalKind::Run => Goal::Run {
            order: order(instance),
            policy_version: instance.policy_version,
        },
    };
    Wanted { placement, goal }
}

fn order(instance: &Instance) -> LaunchOrder {
    let spec = &instance.spec;
    LaunchOrder {
        image: spec.parts.clone(),
        policy: spec.policy.clone(),
        networks: spec.networks.clone(),
        user_data: spec.user_data.clone(),
        ssh_keys: spec.ssh_keys.clone(),
        hostname: spec.name.clone(),
        disk: spec.disk,
        restart: spec.restart,
    }
}

/// Whether a host already does what is wanted, or is about to.
pub fn is_satisfied(wanted: &Wanted, seen: &HostInstance) -> bool {
    match &wanted.goal {
        Goal::Run { policy_version, .. } => match seen.phase {
            HostPhase::Running => {
                seen.policy_version
                    .is_none_or(|version| version == *policy_version)
                    || seen.policy_problem.is_some()
            }
            _ => true,
        },
        Goal::Stop { .. } => !matches!(seen.phase, HostPhase::Running | HostPhase::Preparing),
        Goal::Absent => false,
    }
}
