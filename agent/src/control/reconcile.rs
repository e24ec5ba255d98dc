//! What is wanted and what is there, and so what to do: a pure function.
//!
//! | wanted | there | do |
//! |---|---|---|
//! | run | nothing, never launched | launch |
//! | run | nothing, launched before | nothing: it has ended, and is said to have |
//! | run | running with another policy | replace the policy |
//! | stop | running | stop |
//! | absent | running | stop at once |
//! | absent | ended, not all in the record | wait |
//! | absent | ended, all in the record | remove |
//! | stop or absent | nothing | say that it is gone |

use concertina_api::link::{Goal, HostInstance, HostPhase};

/// How long the guest of a placement that is not wanted any more may take to stop, in milliseconds.
const FENCED_STOP_MS: u64 = 5000;

/// What to do next about one placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is as it should be, or on its way.
    Nothing,
    /// Launch it.
    Launch,
    /// Put the wanted policy in force.
    ReplacePolicy,
    /// End it.
    Stop {
        /// Without asking the guest.
        force: bool,
        /// How long the guest may take.
        timeout_ms: u64,
    },
    /// Remove what is left of it.
    Remove,
    /// Say that nothing of it is here.
    SayGone,
    /// Say that it has ended, although there is no trace of how.
    SayEnded,
}

/// What is there.
#[derive(Debug, Clone, Copy)]
pub struct There<'a> {
    /// Its trace; absent: none.
    pub seen: Option<&'a HostInstance>,
    /// It was launched here, or that was tried.
    pub launched: bool,
    /// A higher generation of the same instance was wanted here.
    pub fenced: bool,
    /// Its events and usage are all in the control plane's record.
    pub recorded: bool,
}

/// What to do about one placement.
pub fn action(goal: &Goal, there: There<'_>) -> Action {
    let Some(seen) = there.seen else {
        return match goal {
            Goal::Run { .. } if there.fenced => Action::SayGone,
            Goal::Run { .. } if there.launched => Action::SayEnded,
            Goal::Run { .. } => Action::Launch,
            Goal::Stop { .. } | Goal::Absent => Action::SayGone,
        };
    };
    let lives = matches!(seen.phase, HostPhase::Running | HostPhase::Preparing);
    let ends = matches!(seen.phase, HostPhase::Stopping);
    match goal {
        Goal::Run { .. } if there.fenced => absent(lives, ends, there.recorded),
        Goal::Run { policy_version, .. } => {
            let differs = seen
                .policy_version
                .is_some_and(|version| version != *policy_version);
            let refused = seen.policy_problem.is_some();
            match seen.phase {
                HostPhase::Running if differs && !refused => Action::ReplacePolicy,
                _ => Action::Nothing,
            }
        }
        Goal::Stop { force, timeout_ms } if lives => Action::Stop {
            force: *force,
            timeout_ms: *timeout_ms,
        },
        Goal::Stop { .. } => Action::Nothing,
        Goal::Absent => absent(lives, ends, there.recorded),
    }
}

fn absent(lives: bool, ends: bool, recorded: bool) -> Action {
    if lives {
        return Action::Stop {
            force: false,
            timeout_ms: FENCED_STOP_MS,
        };
    }
    if ends || !recorded {
        Action::Nothing
    } else {
        Action::Remove
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use concertina_api::link::{ImageParts, LaunchOrder, Placement};
    use concertina_api::policy::{Policy, PolicyBounds};
    use concertina_api::{Bounds, Bytes, Cpus};
    use proptest::prelude::*;

    use super::*;

    fn run(policy_version: u64) -> Goal {
        let artifact = concertina_api::link::Artifact {
            url: String::new(),
            sha256: String::new(),
            size_bytes: 1,
        };
        let bounds = PolicyBounds {
            cpus: Bounds {
                min: Cpus(1),
                max: Cpus(1),
            },
            memory: Bounds {
                min: Bytes(1),
                max: Bytes(1),
            },
        };
        Goal::Run {
            order: LaunchOrder {
                image: ImageParts::Disk { disk: artifact },
                policy: Policy::new(bounds),
                networks: Vec::new(),
                user_data: None,
                ssh_keys: Vec::new(),
                hostname: "web".into(),
                disk: None,
                restart: Default::default(),
            },
            policy_version,
        }
    }

    fn seen(phase: HostPhase) -> HostInstance {
        HostInstance {
            placement: Placement {
                id: "i".into(),
                generation: 1,
            },
            phase,
            policy_version: Some(1),
            status: None,
            metrics: BTreeMap::new(),
            capacity_short: None,
            policy_problem: None,
        }
    }

    fn phases() -> impl Strategy<Value = Option<HostInstance>> {
        prop_oneof![
            Just(None),
            Just(Some(seen(HostPhase::Preparing))),
            Just(Some(seen(HostPhase::Running))),
            Just(Some(seen(HostPhase::Stopping))),
            Just(Some(seen(HostPhase::Ended {
                status: 0,
                reason: String::new()
            }))),
        ]
    }

    fn goals() -> impl Strategy<Value = Goal> {
        prop_oneof![
            (1u64..3).prop_map(run),
            Just(Goal::Stop {
                force: false,
                timeout_ms: 1
            }),
            Just(Goal::Absent),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_launched_twice_or_behind_the_fence(
            goal in goals(), seen in phases(), launched: bool, fenced: bool, recorded: bool,
        ) {
            let there = There { seen: seen.as_ref(), launched, fenced, recorded };
            let action = action(&goal, there);
            if action == Action::Launch {
                prop_assert!(!launched && !fenced && seen.is_none());
                prop_assert!(matches!(goal, Goal::Run { .. }), "{goal:?}");
            }
            if action == Action::Remove {
                let is_over = matches!(seen.map(|s| s.phase), Some(HostPhase::Ended { .. }));
                prop_assert!(recorded && is_over, "what is not in the record is not removed");
            }
        }

        #[test]
        fn whatever_is_there_comes_to_what_is_wanted(goal in goals(), start in phases()) {
            let mut seen = start;
            let mut launched = seen.is_some();
            for _ in 0..6 {
                let there = There { seen: seen.as_ref(), launched, fenced: false, recorded: true };
                match action(&goal, there) {
                    Action::Launch => {
                        launched = true;
                        seen = Some(super::tests::seen(HostPhase::Running));
                    }
                    Action::Stop { .. } => {
                        let reason = String::new();
                        seen = Some(super::tests::seen(HostPhase::Ended { status: 0, reason }));
                    }
                    Action::Remove => seen = None,
                    Action::ReplacePolicy => {
                        if let Some(seen) = &mut seen {
                            seen.policy_version = Some(2);
                        }
                    }
                    Action::Nothing => match &mut seen {
                        Some(HostInstance { phase: phase @ HostPhase::Preparing, .. }) => {
                            *phase = HostPhase::Running;
                        }
                        Some(HostInstance { phase: phase @ HostPhase::Stopping, .. }) => {
                            *phase = HostPhase::Ended { status: 0, reason: String::new() };
                        }
                        _ => {}
                    },
                    Action::SayGone | Action::SayEnded => {}
                }
            }
            let runs = seen.as_ref().is_some_and(|seen| seen.phase == HostPhase::Running);
            match goal {
                Goal::Run { .. } => prop_assert!(runs || launched),
                Goal::Stop { .. } => prop_assert!(!runs),
                Goal::Absent => prop_assert!(seen.is_none()),
            }
        }
    }
}
