//! Limits on I/O are decided about as CPUs and memory are: the same sentences, one test each.

use concertina_api::policy::{
    Direction, IoBounds, Metric, Policy, PolicyBounds, Resource, Sources,
};
use concertina_api::{Bytes, Cpus};

use super::{Decision, HeldReason, Observations, PolicyState, Sample, Size, Urgency, decide};

const MIB: u64 = Bytes::MIB;
const MBIT: u64 = 125_000;

/// An instance whose changes are committed as soon as they are asked for, unless a test says no.
struct Bench {
    policy: Policy,
    state: PolicyState,
    seen: Observations,
    now_ms: u64,
}

impl Bench {
    /// Disks of 10 to 100 MiB/s at 50, and 500 to 5000 requests/s at 1000; networks of 80 to 800
    /// Mbit/s at 100. No shrink window unless a test sets one.
    fn new(rules: &[&str]) -> Self {
        let mut policy = Policy::new(PolicyBounds {
            cpus: "1".parse().unwrap(),
            memory: "256M".parse().unwrap(),
        });
        policy.io = IoBounds {
            disk: "10M,500iops..100M,5000iops".parse().ok(),
            net: "80mbit..800mbit".parse().ok(),
        };
        policy.shrink_window_ms = 0;
        rules.iter().for_each(|rule| policy.scale(rule).unwrap());
        policy.check(&Sources::without_guest_agent()).unwrap();
        let limits = [
            (Resource::DiskBytes, 50 * MIB),
            (Resource::DiskOps, 1000),
            (Resource::NetBytes, 100 * MBIT),
        ];
        Self {
            policy,
            state: PolicyState::default(),
            seen: Observations {
                limits: limits.into(),
                ..Observations::default()
            },
            now_ms: 0,
        }
    }

    fn decide(&mut self) -> Decision {
        let size = Size {
            cpus: Cpus::whole(1),
            memory: Bytes::mib(256),
        };
        let (state, decision) = decide(&self.policy, &self.state, &self.seen, &size, self.now_ms);
        self.state = state;
        decision
    }

    /// One second in which these metrics show these values, and others nothing new.
    fn second(&mut self, values: &[(Metric, f64)]) -> Decision {
        self.now_ms += 1000;
        for (metric, value) in values {
            let sample = Sample {
                value: *value,
                at_ms: self.now_ms,
            };
            self.seen.samples.insert(metric.clone(), sample);
        }
        self.decide()
    }

    fn commit(&mut self, decision: &Decision) {
        for (resource, wish) in &decision.io {
            self.seen.limits.insert(*resource, wish.target);
            let (direction, causes) = (wish.direction, &wish.causes);
            self.state
                .committed(&self.policy, *resource, direction, causes, self.now_ms);
        }
    }
}

fn wanted(decision: &Decision, resource: Resource) -> Option<u64> {
    decision.io.get(&resource).map(|wish| wish.target)
}

fn why(decision: &Decision) -> Vec<(Resource, HeldReason)> {
    let held = decision.held.iter();
    held.map(|held| (held.axis, held.why)).collect()
}

const UP: &str = "net > 80% for 3s: +50 net.mbps";

#[test]
fn a_limit_that_is_used_up_is_raised_by_the_step_of_its_rule() {
    let mut bench = Bench::new(&[UP, "net < 20% for 3s: -50 net.mbps"]);
    assert!(bench.second(&[(Metric::Net, 95.0)]).io.is_empty());
    assert!(bench.second(&[(Metric::Net, 95.0)]).io.is_empty());
    let decision = bench.second(&[(Metric::Net, 95.0)]);
    let wish = decision.io.get(&Resource::NetBytes).unwrap();
    assert_eq!((wish.target, wish.direction), (150 * MBIT, Direction::Grow));
    assert_eq!(
        (&wish.causes[..], wish.urgency),
        (&[UP.to_owned()][..], Urgency::Prompt)
    );
    assert!(decision.cpus.is_none() && decision.memory.is_none());
    bench.commit(&decision);
    // Datapoints of the lower limit are forgotten.
    assert!(bench.second(&[(Metric::Net, 95.0)]).io.is_empty());
    for _ in 0..2 {
        assert!(bench.second(&[(Metric::Net, 5.0)]).io.is_empty());
    }
    let decision = bench.second(&[(Metric::Net, 5.0)]);
    assert_eq!(wanted(&decision, Resource::NetBytes), Some(100 * MBIT));
}

#[test]
fn the_numbers_of_a_limit_are_decided_apart_and_at_once() {
    let rules = [
        "disk > 80%: +25%",
        "disk.requests > 80%: +500 disk.iops",
        "net > 80%: = 400 net.mbps",
    ];
    let mut bench = Bench::new(&rules);
    let busy = [Metric::Disk, Metric::DiskRequests, Metric::Net].map(|metric| (metric, 99.0));
    let decision = bench.second(&busy);
    assert_eq!(wanted(&decision, Resource::DiskBytes), Some(125 * MIB / 2));
    assert_eq!(wanted(&decision, Resource::DiskOps), Some(1500));
    assert_eq!(wanted(&decision, Resource::NetBytes), Some(400 * MBIT));
    // A resize by hand of the one holds that one only.
    bench
        .state
        .resized_by_hand(&bench.policy, Resource::DiskOps, 1000, bench.now_ms);
    let decision = bench.second(&busy);
    assert_eq!(
        why(&decision),
        [(Resource::DiskOps, HeldReason::ManualHold)]
    );
    assert_eq!(wanted(&decision, Resource::DiskBytes), Some(125 * MIB / 2));
}

#[test]
fn growth_ends_at_the_upper_bound_and_says_so() {
    let mut bench = Bench::new(&["disk > 80%: +80 disk.mbps"]);
    let decision = bench.second(&[(Metric::Disk, 99.0)]);
    let wish = decision.io.get(&Resource::DiskBytes).unwrap();
    assert_eq!(wish.target, 100 * MIB);
    assert_eq!(wish.notes, ["clamped to the upper bound 100 disk.mbps"]);
    bench.commit(&decision);
    let decision = bench.second(&[(Metric::Disk, 99.0)]);
    assert_eq!(why(&decision), [(Resource::DiskBytes, HeldReason::AtBound)]);
    assert!(decision.held[0].detail.contains("100 disk.mbps"));
}

#[test]
fn unknown_is_not_idle() {
    let mut bench = Bench::new(&["disk < 20% for 2s: -10 disk.mbps"]);
    bench.second(&[(Metric::Disk, 1.0)]);
    for _ in 0..10 {
        // Nothing new comes, and what there was grows stale.
        let decision = bench.second(&[]);
        if bench.now_ms > 4000 {
            assert!(decision.io.is_empty(), "at {}", bench.now_ms);
            assert_eq!(decision.thresholds[0].state, "unknown");
        }
    }
    assert!(bench.second(&[(Metric::Disk, f64::NAN)]).io.is_empty());
}

#[test]
fn cooldown_window_busy_and_budget_hold_a_limit_as_they_hold_cpus() {
    let rules = [
        "net > 80%: +50 net.mbps, cooldown 5s",
        "net < 20%: -50 net.mbps",
        "set shrink_window 4s",
        "set reversals_per_hour 2",
    ];
    let mut bench = Bench::new(&rules);
    let (up, down) = ([(Metric::Net, 95.0)], [(Metric::Net, 5.0)]);
    let decision = bench.second(&up);
    bench.commit(&decision);
    let decision = bench.second(&up);
    assert_eq!(why(&decision), [(Resource::NetBytes, HeldReason::Cooldown)]);
    let decision = bench.second(&down);
    assert_eq!(
        why(&decision),
        [(Resource::NetBytes, HeldReason::Stabilising)]
    );
    for _ in 0..3 {
        bench.second(&down);
    }
    bench.seen.io_busy = true;
    assert_eq!(
        why(&bench.second(&down)),
        [(Resource::NetBytes, HeldReason::Busy)]
    );
    bench.seen.io_busy = false;
    let decision = bench.second(&down);
    assert_eq!(wanted(&decision, Resource::NetBytes), Some(100 * MBIT));
    bench.commit(&decision);
    let decision = bench.second(&up);
    assert_eq!(wanted(&decision, Resource::NetBytes), Some(150 * MBIT));
    bench.commit(&decision);
    // Two changes of direction are used up.
    for _ in 0..5 {
        bench.second(&down);
    }
    let decision = bench.second(&down);
    assert_eq!(
        why(&decision),
        [(Resource::NetBytes, HeldReason::ReversalBudget)]
    );
}

#[test]
fn a_target_makes_the_limit_proportional_to_what_passes() {
    let mut bench = Bench::new(&["target disk 50%"]);
    let decision = bench.second(&[(Metric::Disk, 90.0)]);
    assert_eq!(wanted(&decision, Resource::DiskBytes), Some(90 * MIB));
    bench.commit(&decision);
    assert!(bench.second(&[(Metric::Disk, 50.0)]).io.is_empty());
}

#[test]
fn other_metrics_raise_limits_and_limits_raise_other_sizes() {
    let mut bench = Bench::new(&["io.pressure > 40%: +10% disk.mbps"]);
    let decision = bench.second(&[(Metric::IoPressure, 60.0)]);
    assert_eq!(wanted(&decision, Resource::DiskBytes), Some(55 * MIB));
    let mut bench = Bench::new(&[]);
    bench.policy.bounds.cpus = "1..2".parse().unwrap();
    bench.policy.scale("disk > 90%: +1 cpu").unwrap();
    let decision = bench.second(&[(Metric::Disk, 95.0)]);
    assert_eq!(decision.cpus.map(|wish| wish.target), Some(Cpus::whole(2)));
    assert!(decision.io.is_empty());
}
