//! The sentences that the rules' semantics consist of, one test each.

use concertina_api::policy::{Axis, Direction, Metric, Policy, PolicyBounds, Sources};
use concertina_api::{Bytes, Cpus};

use super::{
    Decision, HeldReason, MemoryShort, Observations, PolicyState, Sample, Size, Urgency, decide,
};

/// An instance whose resizes are committed as soon as they are asked for, unless a test says no.
struct Bench {
    policy: Policy,
    state: PolicyState,
    seen: Observations,
    size: Size,
    now_ms: u64,
}

impl Bench {
    /// 1 to 4 CPUs, 256 MiB to 4 GiB, at 2 CPUs and 1 GiB; no shrink window unless a test sets one.
    fn new(rules: &[&str]) -> Self {
        let bounds = PolicyBounds {
            cpus: "1..4".parse().unwrap(),
            memory: "256M..4G".parse().unwrap(),
        };
        let mut policy = Policy::new(bounds);
        policy.shrink_window_ms = 0;
        rules.iter().for_each(|rule| policy.scale(rule).unwrap());
        policy.check(&Sources::all()).unwrap();
        let size = Size {
            cpus: Cpus::whole(2),
            memory: Bytes(Bytes::GIB),
        };
        Self {
            policy,
            state: PolicyState::default(),
            seen: Observations::default(),
            size,
            now_ms: 0,
        }
    }

    fn see(&mut self, metric: Metric, value: f64) {
        self.seen.samples.insert(
            metric,
            Sample {
                value,
                at_ms: self.now_ms,
            },
        );
    }

    fn decide(&mut self) -> Decision {
        let (state, decision) = decide(
            &self.policy,
            &self.state,
            &self.seen,
            &self.size,
            self.now_ms,
        );
        self.state = state;
        self.seen.memory_short = None;
        decision
    }

    /// One second in which `metric` shows `value`.
    fn second(&mut self, metric: &Metric, value: f64) -> Decision {
        self.now_ms += 1000;
        self.see(metric.clone(), value);
        self.decide()
    }

    /// A second in which nothing new is seen and everything old is stale.
    fn blind_second(&mut self) -> Decision {
        self.now_ms += 1000;
        self.seen.samples.clear();
        self.decide()
    }

    fn commit(&mut self, decision: &Decision) {
        if let Some(wish) = &decision.cpus {
            let (direction, causes) = (wish.direction, wish.causes.clone());
            self.size.cpus = wish.target;
            self.state
                .committed(&self.policy, Axis::Cpus, direction, &causes, self.now_ms);
        }
        if let Some(wish) = &decision.memory {
            let (direction, causes) = (wish.direction, wish.causes.clone());
            self.size.memory = wish.target;
            self.state
                .committed(&self.policy, Axis::Memory, direction, &causes, self.now_ms);
        }
    }

    /// Seconds of a steady value until a wish on CPUs comes, at most `most`.
    fn seconds_until_wish(&mut self, value: f64, most: u32) -> Option<u32> {
        (1..=most).find(|_| self.second(&Metric::Cpu, value).cpus.is_some())
    }
}

fn cpus(decision: &Decision) -> Option<Cpus> {
    decision.cpus.as_ref().map(|wish| wish.target)
}

fn memory(decision: &Decision) -> Option<Bytes> {
    decision.memory.as_ref().map(|wish| wish.target)
}

fn why(decision: &Decision) -> Vec<HeldReason> {
    decision.held.iter().map(|held| held.why).collect()
}

fn states(decision: &Decision) -> Vec<&str> {
    decision
        .thresholds
        .iter()
        .map(|threshold| &*threshold.state)
        .collect()
}

const UP: &str = "cpu > 75% for 5s: +1 cpu";
const DOWN: &str = "cpu < 20% for 3s: -1 cpu";

#[test]
fn for_5s_is_5_of_5_datapoints() {
    let mut bench = Bench::new(&[UP]);
    let values = [90.0, 90.0, 90.0, 90.0, 70.0, 90.0, 90.0, 90.0, 90.0];
    assert!(
        values
            .iter()
            .all(|v| bench.second(&Metric::Cpu, *v).cpus.is_none())
    );
    let decision = bench.second(&Metric::Cpu, 90.0);
    let wish = decision.cpus.unwrap();
    assert_eq!(
        (wish.target, wish.direction),
        (Cpus::whole(3), Direction::Grow)
    );
    assert_eq!(
        (wish.causes, wish.urgency),
        (vec![UP.to_owned()], Urgency::Prompt)
    );
}

#[test]
fn three_of_five_fires_on_the_third_breach_in_five() {
    let mut bench = Bench::new(&["cpu > 80% 3 of 5: +1 cpu"]);
    for value in [90.0, 10.0, 90.0, 10.0] {
        assert_eq!(cpus(&bench.second(&Metric::Cpu, value)), None);
    }
    assert_eq!(
        cpus(&bench.second(&Metric::Cpu, 90.0)),
        Some(Cpus::whole(3))
    );
    // The first of them leaves the window: two are left.
    assert_eq!(cpus(&bench.second(&Metric::Cpu, 10.0)), None);
}

#[test]
fn three_breaches_suffice_before_five_points_are_known() {
    let mut bench = Bench::new(&["cpu > 80% 3 of 5: +1 cpu"]);
    assert_eq!(bench.seconds_until_wish(90.0, 5), Some(3));
}

#[test]
fn a_datapoint_is_the_mean_of_its_period() {
    let mut bench = Bench::new(&["cpu > 75%: +1 cpu"]);
    bench.second(&Metric::Cpu, 0.0);
    for (step, value) in [100.0, 100.0, 100.0, 0.0].into_iter().enumerate() {
        bench.now_ms += 250;
        bench.see(Metric::Cpu, value);
        let decision = bench.decide();
        assert_eq!(cpus(&decision), None, "step {step}");
        let shown = if step == 3 { 75.0 } else { 0.0 };
        assert_eq!(decision.thresholds[0].last_value, Some(shown));
    }
}

#[test]
fn a_rule_may_look_every_100_ms() {
    let mut bench = Bench::new(&["cpu > 75% for 500ms every 100ms: +1 cpu"]);
    for step in 1..=5 {
        bench.now_ms += 100;
        bench.see(Metric::Cpu, 99.0);
        assert_eq!(bench.decide().cpus.is_some(), step == 5, "step {step}");
    }
}

#[test]
fn looks_that_come_early_or_late_do_not_lose_datapoints() {
    let mut bench = Bench::new(&["cpu > 75% for 10s: +1 cpu"]);
    let mut fired_at = None;
    bench.see(Metric::Cpu, 90.0);
    bench.decide();
    for gap in [950, 1100, 1900, 1050, 1000, 2500, 980, 1020, 1000] {
        bench.now_ms += gap;
        bench.see(Metric::Cpu, 90.0);
        if bench.decide().cpus.is_some() {
            fired_at.get_or_insert(bench.now_ms);
        }
    }
    assert!(
        fired_at.is_some_and(|at| (9_000..=10_600).contains(&at)),
        "{fired_at:?}"
    );
}

#[test]
fn held_data_keep_the_state_and_do_not_act() {
    let mut bench = Bench::new(&["cpu > 75% for 3s: +1 cpu"]);
    bench.seen.cpus_busy = true;
    for _ in 0..3 {
        bench.second(&Metric::Cpu, 90.0);
    }
    bench.seen.cpus_busy = false;
    // Too old to be taken for now, and so unknown: shown as such, nothing is done.
    for _ in 0..5 {
        let decision = bench.blind_second();
        assert_eq!(states(&decision), ["unknown"]);
    }
    assert_eq!(cpus(&bench.blind_second()), None);
}

#[test]
fn nothing_shrinks_against_a_growth_whose_data_went_missing() {
    let mut bench = Bench::new(&["cpu.pressure > 20% for 3s: +1 cpu", "cpu < 20%: -1 cpu"]);
    bench.seen.cpus_busy = true;
    for _ in 0..3 {
        bench.second(&Metric::CpuPressure, 50.0);
    }
    bench.seen = Observations::default();
    bench.now_ms += 4000;
    let decision = bench.second(&Metric::Cpu, 5.0);
    assert_eq!(
        (cpus(&decision), why(&decision)),
        (None, vec![HeldReason::GrowthWins])
    );
}

#[test]
fn a_sample_is_good_for_three_periods() {
    let mut bench = Bench::new(&["cpu > 75% for 4s: +1 cpu"]);
    bench.second(&Metric::Cpu, 90.0);
    let samples = bench.seen.samples.clone();
    let mut fired = Vec::new();
    for _ in 0..4 {
        bench.now_ms += 1000;
        bench.seen.samples = samples.clone();
        fired.push(bench.decide().cpus.is_some());
    }
    assert_eq!(fired, [false, false, true, false]);
}

#[test]
fn missing_breaching_counts_unknown_points() {
    let mut bench = Bench::new(&["cpu > 75% for 3s: +1 cpu, missing breaching"]);
    let wishes: Vec<_> = (0..3)
        .map(|_| bench.blind_second().cpus.is_some())
        .collect();
    assert_eq!(wishes, [false, false, true]);
}

#[test]
fn missing_ignore_looks_further_back() {
    let run = |rule: &str| {
        let mut bench = Bench::new(&[rule]);
        bench.second(&Metric::Cpu, 90.0);
        bench.second(&Metric::Cpu, 90.0);
        for _ in 0..5 {
            assert_eq!(cpus(&bench.second(&Metric::Cpu, f64::NAN)), None);
        }
        bench.second(&Metric::Cpu, 90.0).cpus.is_some()
    };
    assert!(run("cpu > 75% for 3s: +1 cpu, missing ignore"));
    assert!(!run("cpu > 75% for 3s: +1 cpu, missing hold"));
}

#[test]
fn unknown_absurd_and_stale_samples_never_shrink() {
    for absurd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 250.0] {
        let mut bench = Bench::new(&[DOWN]);
        assert_eq!(bench.seconds_until_wish(absurd, 60), None, "{absurd}");
    }
    let mut bench = Bench::new(&[DOWN]);
    bench.second(&Metric::Cpu, 5.0);
    assert!((0..60).all(|_| bench.blind_second().cpus.is_none()));
    // More available than the instance can ever have.
    let mut bench = Bench::new(&["memory.available > 1G for 3s: -256M"]);
    for _ in 0..10 {
        assert_eq!(memory(&bench.second(&Metric::MemoryAvailable, 1e13)), None);
    }
    // The first look that knows nothing stops a shrink that had all its points.
    let mut bench = Bench::new(&[DOWN]);
    bench.seen.cpus_busy = true;
    for _ in 0..5 {
        bench.second(&Metric::Cpu, 5.0);
    }
    bench.seen.cpus_busy = false;
    bench.now_ms += 100;
    bench.see(Metric::Cpu, f64::NAN);
    assert_eq!(cpus(&bench.decide()), None);
}

#[test]
fn a_clamp_is_said() {
    let mut bench = Bench::new(&["cpu > 75%: +3 cpu"]);
    let wish = bench.second(&Metric::Cpu, 90.0).cpus.unwrap();
    assert_eq!(wish.target, Cpus::whole(4));
    assert!(
        wish.notes
            .iter()
            .any(|note| note.contains("clamped to the upper bound 4 cpu"))
    );
}

#[test]
fn at_the_bound_the_rule_fires_and_is_held() {
    let mut bench = Bench::new(&["cpu > 75%: +1 cpu"]);
    bench.size.cpus = Cpus::whole(4);
    let decision = bench.second(&Metric::Cpu, 90.0);
    assert_eq!(
        (cpus(&decision), why(&decision)),
        (None, vec![HeldReason::AtBound])
    );
    assert_eq!(states(&decision), ["held"]);
}

#[test]
fn growth_beats_shrinking() {
    let mut bench = Bench::new(&["cpu.pressure > 20%: +1 cpu", "cpu < 20%: -1 cpu"]);
    bench.now_ms += 1000;
    bench.see(Metric::CpuPressure, 50.0);
    let decision = bench.second(&Metric::Cpu, 5.0);
    assert_eq!(cpus(&decision), Some(Cpus::whole(3)));
    assert_eq!(why(&decision), [HeldReason::GrowthWins]);
    // Even where the growth itself has nowhere to go.
    bench.size.cpus = Cpus::whole(4);
    let decision = bench.second(&Metric::Cpu, 5.0);
    assert_eq!(cpus(&decision), None);
    assert!(
        why(&decision).contains(&HeldReason::GrowthWins),
        "{:?}",
        decision.held
    );
}

#[test]
fn the_largest_growth_and_the_smallest_shrink_win() {
    let (small, large) = ("cpu > 75%: +0.5 cpu", "cpu > 90%: +2 cpu");
    let mut bench = Bench::new(&[small, large]);
    let wish = bench.second(&Metric::Cpu, 95.0).cpus.unwrap();
    assert_eq!(
        (wish.target, wish.causes),
        (Cpus::whole(4), vec![large.to_owned()])
    );
    assert!(
        wish.notes
            .iter()
            .any(|note| note.contains(small) && note.contains("2.5 cpu"))
    );

    let (small, large) = ("memory < 30%: -128M", "memory < 20%: -512M");
    let mut bench = Bench::new(&[small, large]);
    let wish = bench.second(&Metric::Memory, 5.0).memory.unwrap();
    assert_eq!(
        (wish.target, wish.causes),
        (Bytes::mib(896), vec![small.to_owned()])
    );
    assert!(wish.notes.iter().any(|note| note.contains(large)));
}

#[test]
fn the_axes_are_apart() {
    let mut bench = Bench::new(&["cpu < 20%: -1 cpu", "memory > 80%: +25%"]);
    bench.now_ms += 1000;
    bench.see(Metric::Memory, 90.0);
    let decision = bench.second(&Metric::Cpu, 5.0);
    assert_eq!(
        (cpus(&decision), memory(&decision)),
        (Some(Cpus::whole(1)), Some(Bytes::mib(1280)))
    );
    assert_eq!(decision.cpus.unwrap().urgency, Urgency::Routine);
}

#[test]
fn a_resize_by_hand_pauses_its_axis_only() {
    let mut bench = Bench::new(&[
        "cpu > 75%: +1 cpu",
        "memory > 80%: +25%",
        "set manual_hold 10s",
    ]);
    bench.second(&Metric::Cpu, 10.0);
    bench
        .state
        .resized_by_hand(&bench.policy, Axis::Cpus, 2000, bench.now_ms);
    for _ in 0..9 {
        let now_ms = bench.now_ms + 1000;
        bench.seen.samples.insert(
            Metric::Memory,
            Sample {
                value: 90.0,
                at_ms: now_ms,
            },
        );
        let decision = bench.second(&Metric::Cpu, 90.0);
        assert_eq!(
            (cpus(&decision), why(&decision)),
            (None, vec![HeldReason::ManualHold])
        );
        assert_eq!(memory(&decision), Some(Bytes::mib(1280)));
    }
    assert_eq!(
        cpus(&bench.second(&Metric::Cpu, 90.0)),
        Some(Cpus::whole(3))
    );
}

#[test]
fn manual_hold_0_pauses_nothing() {
    let mut bench = Bench::new(&["cpu > 75%: +1 cpu", "set manual_hold 0s"]);
    bench
        .state
        .resized_by_hand(&bench.policy, Axis::Cpus, 2000, 0);
    assert_eq!(bench.seconds_until_wish(90.0, 3), Some(1));
}

#[test]
fn a_cooldown_counts_from_the_commit_and_concerns_its_rule_only() {
    let slow = "cpu > 75%: +1 cpu, cooldown 10s";
    let mut bench = Bench::new(&[slow, "cpu.pressure > 50%: +0.5 cpu"]);
    bench.size.cpus = Cpus::whole(1);
    let decision = bench.second(&Metric::Cpu, 90.0);
    // The resize takes 4 s: nothing else is begun meanwhile, and then the cooldown begins.
    bench.seen.cpus_busy = true;
    for _ in 0..4 {
        let decision = bench.second(&Metric::Cpu, 90.0);
        assert_eq!(
            (cpus(&decision), why(&decision)),
            (None, vec![HeldReason::Busy])
        );
        assert_eq!(states(&decision)[0], "fired");
    }
    bench.seen.cpus_busy = false;
    bench.commit(&decision);
    for _ in 0..8 {
        let decision = bench.second(&Metric::Cpu, 90.0);
        assert_eq!(
            (cpus(&decision), why(&decision)),
            (None, vec![HeldReason::Cooldown])
        );
        assert_eq!(states(&decision)[0], "cooldown");
    }
    // Before its end, another rule may act.
    bench.see(Metric::Cpu, 90.0);
    let decision = bench.second(&Metric::CpuPressure, 90.0);
    assert_eq!(cpus(&decision), Some(Cpus(2500)));
}

#[test]
fn a_cooldown_survives_a_restart_of_the_agent() {
    let mut bench = Bench::new(&["cpu > 75%: +1 cpu, cooldown 10s"]);
    let decision = bench.second(&Metric::Cpu, 90.0);
    bench.commit(&decision);
    let kept = serde_json::to_string(&bench.state).unwrap();
    bench.state = serde_json::from_str(&kept).unwrap();
    assert_eq!(bench.seconds_until_wish(90.0, 20), Some(10));
}

#[test]
fn a_cooldown_concerns_its_direction_only() {
    let set = "custom.wanted > 5: = 2 cpu, cooldown 1h";
    let mut bench = Bench::new(&[set]);
    let metric = Metric::Custom("wanted".into());
    bench.size.cpus = Cpus::whole(1);
    let decision = bench.second(&metric, 9.0);
    bench.commit(&decision);
    bench.size.cpus = Cpus::whole(1);
    assert_eq!(why(&bench.second(&metric, 9.0)), [HeldReason::Cooldown]);
    bench.size.cpus = Cpus::whole(4);
    assert_eq!(cpus(&bench.second(&metric, 9.0)), Some(Cpus::whole(2)));
}

#[test]
fn what_was_measured_before_a_resize_does_not_fire_after_it() {
    let mut bench = Bench::new(&["cpu > 75% for 3s: +1 cpu"]);
    assert_eq!(bench.seconds_until_wish(90.0, 5), Some(3));
    let decision = bench.second(&Metric::Cpu, 90.0);
    bench.commit(&decision);
    assert_eq!(bench.seconds_until_wish(90.0, 5), Some(3));
    // A sample that was taken before the commit says nothing about the size after it.
    let decision = bench.second(&Metric::Cpu, 90.0);
    let before = bench.seen.samples.clone();
    bench.now_ms += 100;
    bench.commit(&decision);
    bench.size.cpus = Cpus::whole(1);
    for _ in 0..3 {
        bench.now_ms += 1000;
        bench.seen.samples = before.clone();
        assert_eq!(cpus(&bench.decide()), None);
    }
}

#[test]
fn shrinking_goes_no_lower_than_what_was_wanted_in_the_shrink_window() {
    let mut bench = Bench::new(&["cpu < 20% for 3s: -1 cpu", "set shrink_window 10s"]);
    bench.size.cpus = Cpus::whole(4);
    bench.second(&Metric::Cpu, 50.0);
    // Content until second 1: from then on 10 s have to pass.
    let mut held = 0;
    let after = (1..=20).find(|_| {
        let decision = bench.second(&Metric::Cpu, 5.0);
        held += u32::from(why(&decision) == [HeldReason::Stabilising]);
        decision.cpus.is_some()
    });
    assert!(matches!(after, Some(10..=12)), "{after:?}");
    assert!(held >= 6);
    // One moment of content begins the window anew.
    let mut bench = Bench::new(&["cpu < 20% for 3s: -1 cpu", "set shrink_window 10s"]);
    for second in 0..30 {
        let value = if second % 8 == 0 { 50.0 } else { 5.0 };
        assert_eq!(
            cpus(&bench.second(&Metric::Cpu, value)),
            None,
            "second {second}"
        );
    }
}

#[test]
fn a_partial_shrink_stops_at_the_largest_size_wanted() {
    let mut bench = Bench::new(&["target cpu 50%", "set shrink_window 10s"]);
    bench.size.cpus = Cpus::whole(4);
    // Wants 2.5 at first and 1 later: after the window only what was wanted last counts.
    for _ in 0..4 {
        bench.second(&Metric::Cpu, 31.0);
    }
    let mut targets = Vec::new();
    for _ in 0..20 {
        let decision = bench.second(&Metric::Cpu, 10.0);
        if let Some(wish) = &decision.cpus {
            targets.push((wish.target, wish.notes.clone()));
        }
    }
    assert_eq!(targets[0].0, Cpus(2500));
    assert!(
        targets[0].1[0].contains("no lower than 2.5 cpu"),
        "{targets:?}"
    );
    assert_eq!(targets.last().unwrap().0, Cpus(1000));
}

#[test]
fn beyond_the_reversal_budget_there_is_only_growth() {
    let rules = [
        "cpu > 75%: +1 cpu",
        "cpu < 20%: -1 cpu",
        "set reversals_per_hour 4",
    ];
    let mut bench = Bench::new(&rules);
    let mut changes = Vec::new();
    for round in 0..12 {
        let value = if round % 2 == 0 { 90.0 } else { 5.0 };
        let decision = bench.second(&Metric::Cpu, value);
        if let Some(wish) = &decision.cpus {
            changes.push(wish.direction);
        }
        if decision.cpus.is_none() && value < 20.0 {
            assert_eq!(why(&decision), [HeldReason::ReversalBudget]);
        }
        bench.commit(&decision);
    }
    use Direction::{Grow, Shrink};
    assert_eq!(changes[..5], [Grow, Shrink, Grow, Shrink, Grow]);
    assert!(
        changes[5..].iter().all(|direction| *direction == Grow),
        "{changes:?}"
    );
    // An hour later it may change its mind again.
    bench.now_ms += 3_600_000;
    bench.second(&Metric::Cpu, 50.0);
    assert_eq!(cpus(&bench.second(&Metric::Cpu, 5.0)), Some(Cpus::whole(3)));
}

#[test]
fn target_tracking_makes_the_size_proportional() {
    let mut bench = Bench::new(&["target cpu 60%"]);
    assert_eq!(cpus(&bench.second(&Metric::Cpu, 66.0)), None); // 2.2: inside the dead band
    assert_eq!(
        cpus(&bench.second(&Metric::Cpu, 90.0)),
        Some(Cpus::whole(3))
    );
    assert_eq!(
        cpus(&bench.second(&Metric::Cpu, 30.0)),
        Some(Cpus::whole(1))
    );
    assert_eq!(cpus(&bench.second(&Metric::Cpu, f64::NAN)), None);
    assert_eq!(cpus(&bench.blind_second()), None);
}

#[test]
fn a_host_short_of_cpu_gets_no_more_vcpus() {
    let mut bench = Bench::new(&["cpu > 75%: +1 cpu"]);
    bench.now_ms = 1000;
    bench.see(Metric::CpuSteal, 60.0);
    let decision = bench.second(&Metric::Cpu, 90.0);
    assert_eq!(
        (cpus(&decision), why(&decision)),
        (None, vec![HeldReason::HostShortOfCpu])
    );
    assert_eq!(why(&decision)[0].as_str(), "host_short_of_cpu");
    // What the vCPUs at hand can carry is only a matter of quota.
    bench.size.cpus = Cpus(1500);
    bench.see(Metric::CpuSteal, 60.0);
    let wish = bench.second(&Metric::Cpu, 90.0).cpus.unwrap();
    assert_eq!(wish.target, Cpus::whole(2));
    assert!(
        wish.notes
            .iter()
            .any(|note| note.contains("host_short_of_cpu"))
    );
    // An old measurement is none.
    let mut bench = Bench::new(&["cpu > 75%: +1 cpu"]);
    bench.see(Metric::CpuSteal, 60.0);
    bench.now_ms = 5000;
    assert_eq!(
        cpus(&bench.second(&Metric::Cpu, 90.0)),
        Some(Cpus::whole(3))
    );
}

#[test]
fn a_guest_out_of_memory_grows_before_anything_else() {
    let rules = [
        "memory > 80% for 30s: +512M, cooldown 1h",
        "memory < 20%: -256M",
    ];
    for evidence in [
        MemoryShort::OomKill,
        MemoryShort::DeflateOnOom,
        MemoryShort::AllocStall,
    ] {
        let mut bench = Bench::new(&rules);
        bench.seen.memory_short = Some(evidence);
        let decision = bench.second(&Metric::Memory, 5.0);
        let wish = decision.memory.clone().unwrap();
        assert_eq!(
            (wish.target, wish.urgency),
            (Bytes::mib(1536), Urgency::Emergency)
        );
        assert!(wish.causes[0].contains(evidence.as_str()));
        bench.commit(&decision);
        // Again, at once: no window and no cooldown stand in its way.
        bench.now_ms += 100;
        bench.seen.memory_short = Some(evidence);
        assert_eq!(memory(&bench.decide()), Some(Bytes::mib(2048)));
        // At the bound it keeps what it has.
        bench.size.memory = Bytes::mib(4096);
        bench.seen.memory_short = Some(evidence);
        let decision = bench.second(&Metric::Memory, 5.0);
        assert_eq!(
            (memory(&decision), why(&decision)),
            (None, vec![HeldReason::GrowthWins])
        );
    }
    // A customer without a rule on memory resizes it by hand.
    let mut bench = Bench::new(&[UP]);
    bench.seen.memory_short = Some(MemoryShort::OomKill);
    assert_eq!(memory(&bench.decide()), None);
}

#[test]
fn a_failed_resize_backs_off_longer_each_time() {
    let mut bench = Bench::new(&["cpu > 75%: +1 cpu"]);
    let mut waits = Vec::new();
    for _ in 0..3 {
        waits.push(bench.seconds_until_wish(90.0, 100).unwrap());
        bench
            .state
            .not_reached(Axis::Cpus, Direction::Grow, bench.now_ms);
    }
    assert_eq!(waits, [1, 5, 10]);
    let decision = bench.second(&Metric::Cpu, 90.0);
    assert_eq!(why(&decision), [HeldReason::BackingOff]);
}

#[test]
fn every_rule_says_how_it_stands() {
    let mut bench = Bench::new(&[UP, DOWN, "memory > 80%: +25%"]);
    let decision = bench.second(&Metric::Cpu, 90.0);
    assert_eq!(states(&decision), ["breaching", "ok", "unknown"]);
    assert_eq!(decision.thresholds[0].last_value, Some(90.0));
    assert_eq!(decision.thresholds[2].last_value, None);
    assert_eq!(decision.thresholds[0].rule, UP);
}

#[test]
fn a_rule_says_how_far_its_window_is_and_what_holds_it() {
    let mut bench = Bench::new(&["cpu > 75% 3 of 5: +1 cpu, cooldown 10s"]);
    bench.second(&Metric::Cpu, 90.0);
    bench.second(&Metric::Cpu, 10.0);
    let decision = bench.second(&Metric::Cpu, 90.0);
    let status = &decision.thresholds[0];
    let window = status.window.unwrap();
    assert_eq!((window.breaching, window.need, window.of), (2, 3, 5));
    assert_eq!(window.period_ms, 1000);
    assert_eq!((status.cooldown_remaining_ms, &status.held), (None, &None));

    let decision = bench.second(&Metric::Cpu, 90.0);
    bench.commit(&decision);
    for _ in 0..3 {
        bench.second(&Metric::Cpu, 90.0);
    }
    let decision = bench.second(&Metric::Cpu, 90.0);
    let status = &decision.thresholds[0];
    assert_eq!(status.cooldown_remaining_ms, Some(6000));
    let held = status.held.as_ref().unwrap();
    assert_eq!(held.reason, "cooldown");
    assert_eq!(held.detail, decision.held[0].detail);
}

#[test]
fn what_bears_on_all_rules_can_be_asked_for() {
    let mut bench = Bench::new(&[UP, DOWN]);
    let scaling = |bench: &Bench| bench.state.scaling(&bench.policy, bench.now_ms);
    assert_eq!(scaling(&bench).cpus.reversals, 0);
    for value in [90.0, 0.0, 90.0] {
        while {
            let decision = bench.second(&Metric::Cpu, value);
            bench.commit(&decision);
            decision.cpus.is_none()
        } {}
    }
    assert_eq!(scaling(&bench).cpus.reversals, 2);
    assert_eq!(scaling(&bench).memory.reversals, 0);
    bench
        .state
        .resized_by_hand(&bench.policy, Axis::Memory, Bytes::GIB, bench.now_ms);
    bench.now_ms += 100_000;
    let seen = scaling(&bench);
    assert_eq!(seen.memory.manual_hold_remaining_ms, 200_000);
    assert_eq!(seen.cpus.manual_hold_remaining_ms, 0);
    assert_eq!(seen.reversals_per_hour, bench.policy.reversals_per_hour);
    bench.now_ms += 3_600_000;
    assert_eq!(scaling(&bench).cpus.reversals, 0);
}
