//! What holds for every policy and every history of samples, and what a simulated load does to an
//! accepted policy.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use concertina_api::instance::ThresholdStatus;
use concertina_api::policy::{
    Axis, Direction, IoBounds, Metric, Policy, PolicyBounds, Resource, Rule, Sources,
};
use concertina_api::{Bytes, Cpus};
use proptest::prelude::*;

use super::{Decision, MemoryShort, Observations, PolicyState, Sample, Size, Wish, decide};

const HOUR_MS: u64 = 3_600_000;

/// Rules of every kind; any set of them that is accepted together makes a policy.
const RULES: [&str; 25] = [
    "cpu > 75% for 3s: +1 cpu",
    "cpu > 90% 2 of 3: +2 cpu, cooldown 7s",
    "cpu < 20% for 3s: -1 cpu",
    "cpu < 15% 2 of 5 every 500ms: -25%, cooldown 9s",
    "cpu.pressure > 20% for 1s: +0.5 cpu, missing breaching",
    "cpu.pressure < 2%: -0.5 cpu, missing ignore",
    "cpu.steal > 60%: -1 cpu",
    "target cpu 55%",
    "memory > 80% for 2s: +512M",
    "memory > 90%: +25%, cooldown 5s, missing ignore",
    "memory < 30% for 3s: -10%",
    "memory.pressure > 10%: +25%",
    "memory.available < 64M: +256M",
    "memory.pressure < 1% for 4s: -128M",
    "target memory 65% for 2s",
    "io.pressure > 50%: = 2G",
    "disk > 80% for 2s: +20 disk.mbps, cooldown 3s",
    "disk < 20% for 3s: -25%, cooldown 4s",
    "disk.requests > 70%: +500 disk.iops, missing ignore",
    "target disk.requests 40%",
    "net > 90% 2 of 3: +100 net.mbps, missing breaching",
    "net < 30% for 2s: -50 net.mbps, cooldown 6s",
    "net.mbps > 60: = 640 net.mbps",
    "net.packets < 10%: -1000 net.pps",
    "io.pressure > 30% for 2s: +50% disk.mbps",
];

const METRICS: [Metric; 12] = [
    Metric::Cpu,
    Metric::CpuPressure,
    Metric::CpuSteal,
    Metric::Memory,
    Metric::MemoryPressure,
    Metric::MemoryAvailable,
    Metric::IoPressure,
    Metric::Disk,
    Metric::DiskRequests,
    Metric::Net,
    Metric::NetMbps,
    Metric::NetPackets,
];

/// What happens between two looks.
#[derive(Debug, Clone)]
struct Moment {
    passed_ms: u64,
    /// By metric: absent is "no new sample".
    values: Vec<Option<f64>>,
    memory_short: bool,
    busy: bool,
    ending: Ending,
    by_hand: bool,
}

/// What becomes of a wish.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Reached,
    Half,
    NotReached,
    Lost,
}

fn any_value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        3 => Just(None),
        4 => (0.0..100.0f64).prop_map(Some),
        4 => prop_oneof![Just(1.0), Just(99.0)].prop_map(Some),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-3.0), Just(1e300)].prop_map(Some),
    ]
}

prop_compose! {
    fn any_moment()(
        passed_ms in prop_oneof![8 => 80u64..1300, 1 => 1300u64..20_000, 1 => Just(900_000)],
        values in prop::collection::vec(any_value(), METRICS.len()),
        memory_short in prop::bool::weighted(0.02),
        busy in prop::bool::weighted(0.1),
        ending in prop_oneof![
            8 => Just(Ending::Reached), 1 => Just(Ending::Half),
            1 => Just(Ending::NotReached), 1 => Just(Ending::Lost)
        ],
        by_hand in prop::bool::weighted(0.01),
    ) -> Moment {
        Moment { passed_ms, values, memory_short, busy, ending, by_hand }
    }
}

/// Accepted policies: each of the rules in turn where it goes with those before it, from different
/// beginnings, in different bounds.
fn policies() -> &'static [Policy] {
    static POLICIES: OnceLock<Vec<Policy>> = OnceLock::new();
    POLICIES.get_or_init(|| {
        let bounds = [
            ("0.5..4", "256M..4G"),
            ("1..8", "512M..700M"),
            ("1..2", "256M..4G"),
        ];
        let beginnings = (0..RULES.len()).zip(bounds.iter().cycle());
        beginnings
            .map(|(first, (cpus, memory))| policy_from(first, cpus, memory))
            .collect()
    })
}

fn policy_from(first: usize, cpus: &str, memory: &str) -> Policy {
    let bounds = PolicyBounds {
        cpus: cpus.parse().unwrap(),
        memory: memory.parse().unwrap(),
    };
    let mut policy = Policy::new(bounds);
    policy.io = IoBounds {
        disk: "10M,500iops..100M,5000iops".parse().ok(),
        net: "80mbit,1000pps..800mbit,90000pps".parse().ok(),
    };
    policy.manual_hold_ms = 20_000;
    // 7 and the number of rules have no common divisor: every rule gets its turn, in a mixed order.
    for turn in 0..9 {
        policy
            .scale(RULES[(first + turn * 7) % RULES.len()])
            .unwrap();
        if policy.check(&Sources::all()).is_err() {
            policy.rules.pop();
        }
    }
    policy
}

prop_compose! {
    fn any_policy()(
        policy in prop::sample::select(policies()),
        shrink_window_ms in prop_oneof![Just(0u64), Just(5_000), Just(60_000)],
        reversals_per_hour in 2u32..7,
    ) -> Policy {
        Policy { shrink_window_ms, reversals_per_hour, ..policy }
    }
}

/// One wish with what was known when it was made.
struct Wished {
    axis: Resource,
    direction: Direction,
    causes: Vec<String>,
    target: u64,
    present: u64,
    now_ms: u64,
    committed: bool,
    emergency: bool,
    by_hand_at: Option<u64>,
}

/// A whole history with every wish and decision in it.
struct Story {
    wishes: Vec<Wished>,
    decisions: Vec<Decision>,
    looks: Vec<Look>,
}

struct Look {
    seen: Observations,
    now_ms: u64,
}

/// Every wish of a decision, in the smallest unit of its axis.
fn wishes(decision: &Decision) -> Vec<(Resource, Wish<u64>)> {
    let cpus = decision.cpus.clone().map(|wish| {
        let wish = wish.with_target(|cpus| cpus.milli().into());
        (Resource::Cpus, wish)
    });
    let memory = decision.memory.clone().map(|wish| {
        let wish = wish.with_target(Bytes::get);
        (Resource::Memory, wish)
    });
    let io = decision.io.clone();
    cpus.into_iter().chain(memory).chain(io).collect()
}

/// What is seen at a moment.
fn take_in(seen: &mut Observations, moment: &Moment, now_ms: u64) {
    for (metric, value) in METRICS.iter().zip(&moment.values) {
        if let Some(value) = value {
            let scale = if *metric == Metric::MemoryAvailable {
                4e6
            } else {
                1.0
            };
            let sample = Sample {
                value: value * scale,
                at_ms: now_ms,
            };
            seen.samples.insert(metric.clone(), sample);
        }
    }
    seen.memory_short = moment.memory_short.then_some(MemoryShort::OomKill);
    (seen.cpus_busy, seen.memory_busy) = (moment.busy, moment.busy);
    seen.io_busy = moment.busy;
}

fn tell(policy: &Policy, moments: &[Moment]) -> Story {
    let bounds = policy.bounds;
    let mut size = Size {
        cpus: bounds.cpus.min,
        memory: bounds.memory.min,
    };
    let mut state = PolicyState::default();
    let least = |resource| Some((resource, policy.bounds_of(resource)?.min));
    let mut seen = Observations {
        limits: Resource::IO.into_iter().filter_map(least).collect(),
        ..Observations::default()
    };
    let (mut now_ms, mut by_hand) = (1_000u64, BTreeMap::new());
    let mut story = Story {
        wishes: Vec::new(),
        decisions: Vec::new(),
        looks: Vec::new(),
    };
    for moment in moments {
        now_ms += moment.passed_ms;
        take_in(&mut seen, moment, now_ms);
        if moment.by_hand {
            size.cpus = bounds.cpus.max;
            let max = u64::from(size.cpus.milli());
            state.resized_by_hand(policy, Axis::Cpus, max, now_ms);
            by_hand.insert(Resource::Cpus, now_ms);
            let max = policy.bounds_of(Resource::NetBytes).unwrap().max;
            seen.limits.insert(Resource::NetBytes, max);
            state.resized_by_hand(policy, Resource::NetBytes, max, now_ms);
            by_hand.insert(Resource::NetBytes, now_ms);
        }
        let (next, decision) = decide(policy, &state, &seen, &size, now_ms);
        state = next;
        story.looks.push(Look {
            seen: seen.clone(),
            now_ms,
        });
        for (axis, wish) in wishes(&decision) {
            let (target, direction, causes) = (wish.target, wish.direction, wish.causes);
            let present = seen.present(&size, axis).unwrap();
            let reached = match moment.ending {
                Ending::Reached => target,
                Ending::Half => (target + present) / 2,
                Ending::NotReached | Ending::Lost => present,
            };
            match moment.ending {
                Ending::Lost => {}
                Ending::NotReached => state.not_reached(axis, direction, now_ms),
                Ending::Reached | Ending::Half => {
                    state.committed(policy, axis, direction, &causes, now_ms);
                }
            }
            match axis {
                Resource::Cpus => size.cpus = Cpus(u32::try_from(reached).unwrap()),
                Resource::Memory => size.memory = Bytes(reached),
                limit => {
                    seen.limits.insert(limit, reached);
                }
            }
            story.wishes.push(Wished {
                axis,
                direction,
                emergency: causes
                    .iter()
                    .any(|cause| cause.starts_with("guest_memory_short")),
                causes,
                target,
                present,
                now_ms,
                committed: matches!(moment.ending, Ending::Reached | Ending::Half),
                by_hand_at: by_hand.get(&axis).copied(),
            });
        }
        story.decisions.push(decision);
    }
    story
}

fn rule_of<'a>(policy: &'a Policy, cause: &str) -> Option<&'a Rule> {
    policy.rules.iter().find(|rule| rule.to_string() == cause)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn wishes_are_inside_the_bounds_and_in_their_direction(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..150),
    ) {
        for wish in tell(&policy, &moments).wishes {
            prop_assert!(policy.bounds_of(wish.axis).unwrap().contains(wish.target));
            let grows = wish.target > wish.present;
            prop_assert!(wish.target != wish.present);
            prop_assert_eq!(grows, wish.direction == Direction::Grow);
            prop_assert!(!wish.causes.is_empty());
        }
    }

    #[test]
    fn nothing_shrinks_on_unknown_data(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..150),
    ) {
        let story = tell(&policy, &moments);
        for wish in story.wishes.iter().filter(|wish| wish.direction == Direction::Shrink) {
            let look = story.looks.iter().find(|look| look.now_ms == wish.now_ms).unwrap();
            for cause in &wish.causes {
                let rule = rule_of(&policy, cause).unwrap();
                let sample = look.seen.samples.get(rule.metric());
                let period_ms = policy.datapoints(rule).period_ms;
                let known = sample.is_some_and(|sample| {
                    sample.value.is_finite()
                        && sample.value >= 0.0
                        && look.now_ms - sample.at_ms <= 3 * period_ms
                });
                prop_assert!(known, "{cause} shrank on {sample:?} at {}", look.now_ms);
            }
        }
    }

    #[test]
    fn cooldowns_are_respected(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..150),
    ) {
        let wishes = tell(&policy, &moments).wishes;
        let mut committed: BTreeMap<(&str, Direction), u64> = BTreeMap::new();
        for wish in &wishes {
            for cause in &wish.causes {
                let cooldown_ms = rule_of(&policy, cause).map_or(0, Rule::cooldown_ms);
                if let Some(at) = committed.get(&(cause.as_str(), wish.direction)) {
                    prop_assert!(wish.now_ms >= at + cooldown_ms, "{cause}");
                }
                if wish.committed {
                    committed.insert((cause, wish.direction), wish.now_ms);
                }
            }
        }
    }

    #[test]
    fn changes_of_direction_stay_within_the_budget(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..250),
    ) {
        let wishes = tell(&policy, &moments).wishes;
        for axis in Resource::ALL {
            let mut last: Option<(Direction, Option<u64>)> = None;
            let mut reversals: Vec<u64> = Vec::new();
            for wish in wishes.iter().filter(|wish| wish.axis == axis && wish.committed) {
                // A resize by hand begins a history of its own.
                if last.is_some_and(|(d, by_hand)| d != wish.direction && by_hand == wish.by_hand_at) {
                    reversals.push(wish.now_ms);
                }
                last = Some((wish.direction, wish.by_hand_at));
                let hour = reversals.iter().filter(|at| wish.now_ms - **at < HOUR_MS).count();
                prop_assert!(hour <= policy.reversals_per_hour as usize);
            }
        }
    }

    #[test]
    fn a_resize_by_hand_is_left_alone_for_its_hold(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..250),
    ) {
        for wish in tell(&policy, &moments).wishes {
            let free = wish.by_hand_at.is_none_or(|at| wish.now_ms >= at + policy.manual_hold_ms);
            prop_assert!(free);
        }
    }

    #[test]
    fn growth_wins_over_shrinking(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..150),
    ) {
        let story = tell(&policy, &moments);
        for (look, decision) in story.looks.iter().zip(&story.decisions) {
            for (axis, wish) in wishes(decision) {
                let fired_up = decision.thresholds.iter().zip(&policy.rules).any(|(status, rule)| {
                    rule.resource() == axis
                        && rule.to_string().contains(": +")
                        && matches!(&*status.state, "fired" | "held")
                });
                let shrinks = wish.direction == Direction::Shrink;
                prop_assert!(!(fired_up && shrinks), "at {}: {decision:?}", look.now_ms);
            }
        }
    }

    #[test]
    fn the_same_history_gives_the_same_decisions_through_any_restart(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..80),
    ) {
        let first = tell(&policy, &moments);
        prop_assert_eq!(&first.decisions, &tell(&policy, &moments).decisions);
        // The state is written and read back between any two looks.
        let mut state = PolicyState::default();
        for look in &first.looks {
            let size = Size { cpus: policy.bounds.cpus.min, memory: policy.bounds.memory.min };
            let kept = serde_json::to_string(&state).unwrap();
            let restored: PolicyState = serde_json::from_str(&kept).unwrap();
            let live = decide(&policy, &state, &look.seen, &size, look.now_ms);
            let again = decide(&policy, &restored, &look.seen, &size, look.now_ms);
            prop_assert_eq!(&live.1.cpus, &again.1.cpus);
            prop_assert_eq!(&live.1.memory, &again.1.memory);
            prop_assert_eq!(&live.1.io, &again.1.io);
            prop_assert_eq!(&live.1.held, &again.1.held);
            for (live, again) in live.1.thresholds.iter().zip(&again.1.thresholds) {
                prop_assert_eq!(&live.state, &again.state);
                // Numbers may lose their last bit in JSON.
                let value = |status: &ThresholdStatus| status.last_value.unwrap_or(-1.0);
                prop_assert!((value(live) - value(again)).abs() <= value(live).abs() * 1e-12);
            }
            state = live.0;
        }
    }

    #[test]
    fn a_limit_that_is_not_known_is_left_alone(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..80),
    ) {
        let story = tell(&policy, &moments);
        let mut state = PolicyState::default();
        for look in story.looks {
            let seen = Observations { limits: BTreeMap::new(), ..look.seen };
            let size = Size { cpus: policy.bounds.cpus.min, memory: policy.bounds.memory.min };
            let (next, decision) = decide(&policy, &state, &seen, &size, look.now_ms);
            prop_assert!(decision.io.is_empty());
            prop_assert_eq!(decision.thresholds.len(), policy.rules.len());
            state = next;
        }
    }

    #[test]
    fn emergencies_grow_memory_only(
        policy in any_policy(), moments in prop::collection::vec(any_moment(), 1..150),
    ) {
        for wish in tell(&policy, &moments).wishes.iter().filter(|wish| wish.emergency) {
            prop_assert_eq!((wish.axis, wish.direction), (Resource::Memory, Direction::Grow));
        }
    }
}

/// An instance under a load in CPUs and MiB, with noise from a fixed sequence.
fn simulate(
    policy: &Policy,
    seconds: u64,
    load: impl Fn(u64) -> (f64, f64),
    noise: f64,
) -> Vec<(u64, Size)> {
    let mut size = Size {
        cpus: policy.bounds.cpus.min,
        memory: policy.bounds.memory.min,
    };
    let mut state = PolicyState::default();
    let mut random = 0x2545_F491_4F6C_DD1Du64;
    let mut changes = Vec::new();
    for second in 1..=seconds {
        let now_ms = second * 1000;
        let mut jitter = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            1.0 + noise * ((random >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
        };
        let (cpus, mib) = load(second);
        let (cpus, mib) = (cpus * jitter(), mib * jitter());
        let total = size.memory.as_mib_f64();
        let available = (total - mib).max(0.0);
        let values = [
            (Metric::Cpu, (100.0 * cpus / size.cpus.as_f64()).min(100.0)),
            (Metric::Memory, 100.0 * (total - available) / total),
            (Metric::MemoryAvailable, available * Bytes::MIB as f64),
        ];
        let samples = values.map(|(metric, value)| {
            (
                metric,
                Sample {
                    value,
                    at_ms: now_ms,
                },
            )
        });
        let seen = Observations {
            samples: samples.into(),
            ..Observations::default()
        };
        let (next, decision) = decide(policy, &state, &seen, &size, now_ms);
        state = next;
        if let Some(wish) = decision.cpus {
            size.cpus = wish.target;
            state.committed(policy, Axis::Cpus, wish.direction, &wish.causes, now_ms);
            changes.push((second, size));
        }
        if let Some(wish) = decision.memory {
            size.memory = wish.target;
            state.committed(policy, Axis::Memory, wish.direction, &wish.causes, now_ms);
            changes.push((second, size));
        }
    }
    changes
}

fn reversals(changes: &[(u64, Size)], first: Size, axis: Axis) -> usize {
    let mut sizes = vec![first.of(axis)];
    sizes.extend(changes.iter().map(|(_, size)| size.of(axis)));
    sizes.dedup();
    sizes
        .windows(3)
        .filter(|s| (s[1] > s[0]) != (s[2] > s[1]))
        .count()
}

fn accepted(rules: &[&str]) -> Policy {
    let bounds = PolicyBounds {
        cpus: "0.5..4".parse().unwrap(),
        memory: "256M..2G".parse().unwrap(),
    };
    let mut policy = Policy::new(bounds);
    rules.iter().for_each(|rule| policy.scale(rule).unwrap());
    policy.check(&Sources::without_guest_agent()).unwrap();
    policy
}

#[test]
fn a_steady_noisy_load_comes_to_rest() {
    let policies = [
        accepted(&[
            "cpu > 75% for 5s: +0.5 cpu",
            "cpu < 20% for 60s: -0.5 cpu",
            "memory > 80% for 2s: +25%",
            "memory < 40% for 60s: -128M",
        ]),
        accepted(&["target cpu 60% for 3s", "target memory 70%"]),
        accepted(&["cpu > 80% 3 of 5: +1 cpu", "memory.available < 64M: +256M"]),
    ];
    for policy in &policies {
        for tenths in (1..40).step_by(3) {
            let load = f64::from(tenths) / 10.0;
            let changes = simulate(policy, 3600, |_| (load, load * 400.0), 0.10);
            let first = Size {
                cpus: policy.bounds.cpus.min,
                memory: policy.bounds.memory.min,
            };
            for axis in Axis::ALL {
                let turns = reversals(&changes, first, axis);
                assert!(
                    turns <= 2,
                    "{turns} changes of direction at {load}: {changes:?}"
                );
            }
            // Once it has found its size it stays there.
            let late = changes.iter().filter(|(second, _)| *second > 1800).count();
            assert!(
                late <= 2,
                "{late} late changes at {load} with {:?}",
                policy.rules
            );
        }
    }
}

#[test]
fn load_is_followed_up_at_once_and_down_after_the_window() {
    let policy = accepted(&[
        "cpu > 75% for 1s: +1 cpu",
        "cpu < 20% for 5s: -1 cpu",
        "memory > 80% for 2s: +512M",
        "memory < 30% for 5s: -25%",
        "set shrink_window 10s",
    ]);
    let busy = |second| (10..60).contains(&second);
    let load = |second| {
        if busy(second) {
            (3.8, 1200.0)
        } else {
            (0.1, 60.0)
        }
    };
    let changes = simulate(&policy, 300, load, 0.0);
    let at = |second: u64| {
        let past = changes.iter().rev().find(|(at, _)| *at <= second);
        past.map_or(
            Size {
                cpus: Cpus(500),
                memory: Bytes::mib(256),
            },
            |(_, size)| *size,
        )
    };
    assert_eq!(at(9).cpus, Cpus(500));
    assert_eq!(at(14).cpus, Cpus::whole(4), "{changes:?}");
    assert!(at(20).memory >= Bytes::mib(1500), "{changes:?}");
    // Nothing is taken within the shrink window after the load has gone.
    assert_eq!(at(68).cpus, Cpus::whole(4));
    assert_eq!(at(299).cpus, Cpus(500), "{changes:?}");
    assert_eq!(at(299).memory, Bytes::mib(256), "{changes:?}");
}
