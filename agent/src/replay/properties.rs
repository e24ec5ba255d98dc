//! What holds for every load and every way to scale.

use concertina_api::policy::{Axis, Policy, PolicyBounds};
use concertina_api::{Bounds, Bytes, Cpus};
use proptest::prelude::*;

use super::trace::TraceSample;
use super::{Actuation, Baseline, Demand, Interpolation, Live, Machine, Scene, Score, Trace, run};

const STEP_MS: u64 = 60_000;

const POLICIES: [&[&str]; 4] = [
    &["target cpu 70%", "target memory 70%"],
    &[
        "cpu > 75% for 3s: +1 cpu",
        "cpu < 20% for 5s: -1 cpu",
        "memory > 80%: +256M",
    ],
    &[
        "cpu > 95%: +100%",
        "cpu < 60% for 10s: -20%",
        "memory < 40% for 5s: -25%",
    ],
    &[
        "cpu > 90% 2 of 5 every 500ms: +25%",
        "memory.available < 64M: +25%",
    ],
];

fn any_percent() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        1 => Just(None),
        4 => (0.0..100.0f64).prop_map(Some),
        2 => Just(Some(2.0)),
        1 => Just(Some(100.0)),
    ]
}

prop_compose! {
    fn any_trace()(
        rows in prop::collection::vec((any_percent(), any_percent(), 1u64..4), 2..12),
    ) -> Trace {
        let mut at_ms = 0;
        let samples = rows
            .into_iter()
            .map(|(cpu_percent, memory_percent, steps)| {
                let sample = TraceSample { at_ms, cpu_percent, memory_percent };
                // Some intervals have a gap.
                at_ms += if steps == 3 { 3 * STEP_MS } else { STEP_MS };
                sample
            })
            .collect();
        Trace {
            samples,
            step_ms: STEP_MS,
            cpus: None,
            memory_bytes: None,
            is_censored: false,
            notes: Vec::new(),
        }
    }
}

prop_compose! {
    fn any_bounds()(
        (least, range) in (100u32..2000, 0u32..6000),
        (least_mib, range_mib) in (64u64..1024, 0u64..4096),
    ) -> PolicyBounds {
        PolicyBounds {
            cpus: Bounds { min: Cpus(least), max: Cpus(least + range) },
            memory: Bounds { min: Bytes::mib(least_mib), max: Bytes::mib(least_mib + range_mib) },
        }
    }
}

fn any_actuation() -> impl Strategy<Value = Actuation> {
    let ms = || prop_oneof![Just(0u64), 1u64..1000, 1000u64..90_000];
    (ms(), ms(), ms(), ms(), ms()).prop_map(|times| Actuation {
        cpu_up_ms: times.0,
        cpu_down_ms: times.1,
        cpu_quota_ms: times.2,
        memory_up_ms: times.3,
        memory_down_ms: times.4,
    })
}

fn any_interpolation() -> impl Strategy<Value = Interpolation> {
    prop_oneof![Just(Interpolation::Hold), Just(Interpolation::Linear)]
}

/// Each way to scale with its name: the baselines, and the live decision under some policies.
fn replay_all(scene: &Scene<'_>) -> Vec<(String, Score)> {
    let baselines = Baseline::ALL.into_iter().map(|baseline| {
        let mut scaler = baseline.scaler(scene.demand, &scene.bounds);
        (baseline.to_string(), run(scene, &mut *scaler).0)
    });
    let policies = POLICIES.iter().map(|rules| {
        let mut policy = Policy::new(scene.bounds);
        rules.iter().for_each(|rule| policy.scale(rule).unwrap());
        (rules.join("; "), run(scene, &mut Live::new(policy)).0)
    });
    baselines.chain(policies).collect()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn sizes_stay_in_the_bounds_and_served_and_unserved_are_the_demand(
        trace in any_trace(),
        bounds in any_bounds(),
        actuation in any_actuation(),
        interpolation in any_interpolation(),
    ) {
        let machine = Machine { cpus: 6.0, memory_bytes: 4e9 };
        let demand = Demand::new(&trace, &machine, interpolation);
        let scene = Scene { demand: &demand, bounds, actuation, hold_ms: 30_000 };
        let mut demands: [Option<f64>; 2] = [None; 2];
        for (name, score) in replay_all(&scene) {
            for (axis, demand) in Axis::ALL.into_iter().zip(&mut demands) {
                let Some(score) = score.of(axis) else { continue };
                let (least, most) = match axis {
                    Axis::Cpus => (bounds.cpus.min.as_f64(), bounds.cpus.max.as_f64()),
                    Axis::Memory => (bounds.memory.min.as_mib_f64(), bounds.memory.max.as_mib_f64()),
                };
                prop_assert!(score.least >= least && score.most <= most, "{name}: {score:?}");
                prop_assert!(near(score.served + score.unserved, score.demand), "{name}: {score:?}");
                prop_assert!(near(score.served + score.slack, score.held), "{name}: {score:?}");
                prop_assert!(score.reversals <= score.changes.saturating_sub(1), "{name}");
                prop_assert!(score.steps_covered <= score.steps, "{name}");
                // The load is the same, whoever scales.
                prop_assert_eq!(*demand.get_or_insert(score.demand), score.demand);
            }
        }
    }

    #[test]
    fn nobody_serves_more_than_an_oracle_that_acts_at_once(
        trace in any_trace(),
        bounds in any_bounds(),
        interpolation in any_interpolation(),
    ) {
        let machine = Machine { cpus: 6.0, memory_bytes: 4e9 };
        let demand = Demand::new(&trace, &machine, interpolation);
        let scene = Scene { demand: &demand, bounds, actuation: Actuation::ZERO, hold_ms: 30_000 };
        let all = replay_all(&scene);
        let oracle = all.iter().find(|(name, _)| name == "oracle").map(|(_, score)| score.clone());
        let oracle = oracle.unwrap();
        for axis in Axis::ALL {
            let Some(best) = oracle.of(axis) else { continue };
            prop_assert_eq!(best.steps, 0);
            for (name, score) in &all {
                let unserved = score.of(axis).map_or(0.0, |score| score.unserved);
                prop_assert!(unserved >= best.unserved, "{} beats the oracle: {}", name, unserved);
            }
        }
    }
}
