//! Replays of small loads whose outcome can be told beforehand.

use concertina_api::policy::{Axis, Policy, PolicyBounds, Sources};
use concertina_api::{Bytes, Cpus};

use super::{
    Actuation, AxisScore, Baseline, Demand, Interpolation, Live, Machine, Scene, Score, Trace,
    TraceOptions, read_trace, run,
};

const G: f64 = Bytes::GIB as f64;

/// A load with 1 to 4 CPUs and 1 to 4 GiB around it.
struct Load {
    demand: Demand,
    bounds: PolicyBounds,
}

impl Load {
    /// Percent of 4 CPUs, one value in five minutes; an empty one is unknown.
    fn of_cpus(values: &[&str]) -> Self {
        Self::of(values, Axis::Cpus)
    }

    fn of(values: &[&str], axis: Axis) -> Self {
        let lines: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(index, value)| format!("{},{value}\n", index * 300))
            .collect();
        let options = TraceOptions { axis, full: None };
        let text = format!("timestamp,value\n{}", lines.concat());
        let trace: Trace = read_trace(&text, &options).unwrap();
        let machine = Machine {
            cpus: 4.0,
            memory_bytes: 4.0 * G,
        };
        Self {
            demand: Demand::new(&trace, &machine, Interpolation::Hold),
            bounds: PolicyBounds {
                cpus: "1..4".parse().unwrap(),
                memory: "1G..4G".parse().unwrap(),
            },
        }
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            demand: &self.demand,
            bounds: self.bounds,
            actuation: Actuation::default(),
            hold_ms: 60_000,
        }
    }

    fn policy(&self, rules: &[&str]) -> Score {
        let mut policy = Policy::new(self.bounds);
        rules.iter().for_each(|rule| policy.scale(rule).unwrap());
        policy.check(&Sources::all()).unwrap();
        run(&self.scene(), &mut Live::new(policy)).0
    }

    fn baseline(&self, baseline: Baseline) -> Score {
        let mut scaler = baseline.scaler(&self.demand, &self.bounds);
        run(&self.scene(), &mut *scaler).0
    }

    fn cpu(&self, baseline: Baseline) -> AxisScore {
        self.baseline(baseline).cpu.unwrap()
    }
}

#[test]
fn a_step_costs_the_rules_time_and_the_actuation() {
    let rules = ["cpu > 75% for 2s: +2 cpu"];
    let load = Load::of_cpus(&["20", "50", "50"]);
    let score = load.policy(&rules).cpu.unwrap();
    // 0.8 of 1 CPU are 80 %: over the level from the start, without any shortage.
    assert_eq!((score.changes, score.unserved, score.most), (1, 0.0, 3.0));

    let load = Load::of_cpus(&["10", "55", "55"]);
    let score = load.policy(&rules).cpu.unwrap();
    // 1.2 of 2.2 CPUs are missing for 2 s and until the first vCPU is there, and then 0.2.
    let unserved = 1.2 * 2.225 + 0.2 * 0.225;
    assert!((score.unserved - unserved).abs() < 1e-9, "{score:?}");
    assert_eq!((score.steps, score.steps_covered), (1, 1));
    assert_eq!(score.cover_median_ms, Some(2450));
    assert_eq!(load.cpu(Baseline::Oracle).cover_median_ms, Some(450));
}

#[test]
fn a_full_instance_does_not_show_how_much_is_missing() {
    let load = Load::of_cpus(&["10", "100", "100"]);
    // Only 100 % of one CPU can be seen: tracking goes on step by step.
    let score = load.policy(&["target cpu 50%"]).cpu.unwrap();
    assert_eq!((score.changes, score.most), (2, 4.0));
}

#[test]
fn memory_that_is_short_grows_at_once_and_is_given_back_carefully() {
    let load = Load::of(&["20", "60", "20", "20"], Axis::Memory);
    let rules = ["memory > 80% for 60s: +1G", "memory < 40% for 10s: -50%"];
    let score = load.policy(&rules).memory.unwrap();
    // 2.4 GiB at 1 GiB: an emergency at the first look, a second one at the next, and a third one
    // for what the guest still waited after that look.
    assert_eq!(score.cover_median_ms, Some(2422));
    // 20 % are 0.8 GiB; a tenth on top is the least, and the lower bound is above that.
    assert_eq!((score.least, score.most), (1024.0, 4096.0));
    assert_eq!(score.reversals, 1);
    assert!(score.steps == 1 && score.unserved > 0.0);
}

#[test]
fn where_nothing_is_known_nothing_is_done_and_nothing_scored_but_by_the_naive() {
    let load = Load::of_cpus(&["70", "70", "70", "", "", "70", "70"]);
    let rules = ["cpu > 75%: +1 cpu", "cpu < 35%: -1 cpu"];
    let score = load.policy(&rules).cpu.unwrap();
    assert_eq!(score.known_seconds, 5.0 * 300.0);
    assert_eq!(score.demand, 5.0 * 300.0 * 2.8);
    assert_eq!((score.changes, score.reversals), (3, 0));
    let naive = load.cpu(Baseline::Naive);
    // 1, 2, 3, and after each unknown value one less.
    assert_eq!((naive.changes, naive.reversals), (6, 2));
    assert!(naive.unserved > 100.0 * score.unserved);
}

#[test]
fn naive_loses_against_any_rule_on_a_load_that_comes_and_goes() {
    let day = ["5", "5", "90", "90", "90", "5", "5", "60", "60", "5", "5"];
    let load = Load::of_cpus(&day.repeat(6));
    let rules = [
        "cpu > 90% for 2s: +50%",
        "cpu < 60% for 20s: -30%",
        "set reversals_per_hour 12",
    ];
    let score = load.policy(&rules).cpu.unwrap();
    let naive = load.cpu(Baseline::Naive);
    assert!(naive.unserved > 20.0 * score.unserved, "{naive:?}");
    assert!(naive.slack > score.slack, "{naive:?}");
}

#[test]
fn static_is_the_peak_and_a_fifth_within_the_bounds() {
    let values: Vec<&str> = ["10"; 199].into_iter().chain(["60"]).collect();
    let load = Load::of_cpus(&values);
    // The 99.5th percentile of 200 values is the 199th.
    assert_eq!(load.cpu(Baseline::Static).most, 1.0);
    let load = Load::of_cpus(&["10", "50"]);
    assert_eq!(load.cpu(Baseline::Static).most, 2.4);
    assert_eq!(load.cpu(Baseline::Static).changes, 0);
}

#[test]
fn the_load_average_takes_its_time() {
    let load = Load::of_cpus(&["10", "75", "75"]);
    let score = load.cpu(Baseline::LoadAverage);
    let longest = score.cover_longest_ms.unwrap();
    assert!((60_000..180_000).contains(&longest), "{score:?}");
}

#[test]
fn proxmox_goes_by_the_host_and_not_by_the_need() {
    let load = Load::of(&["5", "5", "5"], Axis::Memory);
    let score = load.baseline(Baseline::Proxmox).memory.unwrap();
    assert!(score.most > 3200.0 && score.least == 1024.0, "{score:?}");
}

#[test]
fn the_same_replay_gives_the_same_scores() {
    let load = Load::of_cpus(&["5", "90", "20", "", "70"]);
    let rules = ["cpu > 90% for 2s: +50%", "cpu < 60% for 20s: -30%"];
    assert_eq!(load.policy(&rules), load.policy(&rules));
    for baseline in Baseline::ALL {
        assert_eq!(load.baseline(baseline), load.baseline(baseline));
    }
}

#[test]
fn a_first_size_outside_the_bounds_is_the_bound() {
    let mut load = Load::of_cpus(&["90", "90"]);
    load.bounds.cpus.max = Cpus::whole(2);
    assert_eq!(load.cpu(Baseline::Oracle).most, 2.0);
    assert_eq!(load.cpu(Baseline::Static).most, 2.0);
}
