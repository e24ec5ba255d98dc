//! Both axes against a fake vmm: what is asked of it, what is reported, what the ceiling is.

use std::time::Duration;

use concertina_api::Quota;
use concertina_api::disk::DiskRate;
use concertina_api::event::Event;

use super::capacity::HostMemory;
use super::*;
use crate::cgroup::{Hierarchy, fake_hierarchy};
use crate::testing::{FakeVm, FakeVmm, Faults};

/// A resizer of an instance `1..4` CPUs, `256M..1G`, whose guest has these faults.
struct Bench {
    vmm: FakeVmm,
    resizer: Resizer,
    temp: tempfile::TempDir,
    _cgroup: (tempfile::TempDir, Hierarchy),
}

const HOLD: Duration = Duration::from_millis(50);

fn bench(faults: Faults) -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let cgroup = fake_hierarchy();
    let group = InstanceGroup::create(&cgroup.1, "web").unwrap();
    let bounds = PolicyBounds {
        cpus: "1..4".parse().unwrap(),
        memory: "256M..1G".parse().unwrap(),
    };
    let socket = temp.path().join("vmm.sock");
    let vm = FakeVm::new(bounds.memory.min, bounds.memory.max, 1, faults);
    let vmm = FakeVmm::listen(&socket, vm);
    let events = EventLog::open(&temp.path().join("events"), Instant::now()).unwrap();
    let resizer = Resizer::new(
        bounds,
        HOLD,
        VmmClient::new(&socket),
        group,
        Arc::new(events),
        Arc::new(HostMemory::new(&temp.path().join("meminfo"))),
    );
    resizer.begin_life().unwrap();
    Bench {
        vmm,
        resizer,
        temp,
        _cgroup: cgroup,
    }
}

impl Bench {
    fn by_hand(&self, cpus: Option<u32>, memory_mib: Option<u64>) -> ResizeReport<InstanceSize> {
        let timeout = Duration::from_secs(3);
        let order = Order::manual(cpus.map(Cpus), memory_mib.map(Bytes::mib), timeout);
        self.resizer.carry_out(&order)
    }

    fn by_rule(&self, cpus: Option<u32>, memory_mib: Option<u64>) -> ResizeReport<InstanceSize> {
        let timeout = Duration::from_secs(3);
        self.resizer.carry_out(&Order {
            cause: Cause::Rules(vec!["rule".into()]),
            ..Order::manual(cpus.map(Cpus), memory_mib.map(Bytes::mib), timeout)
        })
    }

    fn ceiling_mib(&self) -> u64 {
        let path = self._cgroup.0.path().join("concertina/web/memory.max");
        std::fs::read_to_string(path)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >> 20
    }

    fn has(&self) -> (u32, Quota, Bytes, Bytes) {
        let vm = self.vmm.vm.lock().unwrap();
        (vm.vcpus, vm.quota, vm.memory, vm.balloon)
    }

    fn last_event(&self) -> EventKind {
        let text = std::fs::read_to_string(self.temp.path().join("events")).unwrap();
        serde_json::from_str::<Event>(text.lines().last().unwrap())
            .unwrap()
            .kind
    }
}

#[test]
fn growth_asks_for_quota_and_vcpus_together() {
    let bench = bench(Faults::default());
    let report = bench.by_rule(Some(2500), None);
    assert_eq!(report.outcome, Outcome::Applied);
    assert_eq!(report.got.cpus, Some(Cpus(2500)));
    let vm = bench.vmm.vm.lock().unwrap();
    assert_eq!(vm.wishes.len(), 1);
    let wish = &vm.wishes[0];
    assert_eq!(
        (wish.vcpus, wish.quota),
        (Some(3), Some(Quota::Limited(Cpus(2500))))
    );
}

#[test]
fn a_rules_shrink_lowers_the_quota_and_removes_vcpus_when_it_has_held() {
    let bench = bench(Faults::default());
    bench.by_rule(Some(3000), None);
    let report = bench.by_rule(Some(1000), None);
    assert_eq!(
        (report.outcome, report.got.cpus),
        (Outcome::Applied, Some(Cpus(1000)))
    );
    assert_eq!(bench.has().0, 3, "vCPUs stay for the shrink window");
    assert_eq!(bench.has().1, Quota::Limited(Cpus(1000)));
    let due = bench.resizer.settle_due().unwrap();
    bench.resizer.settle(due - Duration::from_millis(1));
    assert_eq!(bench.has().0, 3);
    bench.resizer.settle(due);
    assert_eq!((bench.has().0, bench.has().1), (1, Quota::Max));
    assert_eq!(bench.resizer.settle_due(), None);
    assert!(
        matches!(bench.last_event(), EventKind::Resized { cause, .. } if cause == "shrink_window")
    );
}

#[test]
fn growth_within_the_window_keeps_the_vcpus() {
    let bench = bench(Faults::default());
    bench.by_rule(Some(3000), None);
    bench.by_rule(Some(1000), None);
    bench.by_rule(Some(3000), None);
    assert_eq!(bench.resizer.settle_due(), None);
    assert_eq!((bench.has().0, bench.has().1), (3, Quota::Max));
}

#[test]
fn a_shrink_by_hand_removes_vcpus_at_once() {
    let bench = bench(Faults::default());
    bench.by_hand(Some(4000), None);
    let report = bench.by_hand(Some(1500), None);
    assert_eq!(report.outcome, Outcome::Applied);
    assert_eq!(
        (bench.has().0, bench.has().1),
        (2, Quota::Limited(Cpus(1500)))
    );
    assert_eq!(bench.resizer.settle_due(), None);
    let wishes = bench.vmm.vm.lock().unwrap().wishes.clone();
    let down = wishes.last().unwrap();
    assert_eq!(
        (wishes.len(), down.vcpus, down.quota),
        (2, Some(2), Some(Quota::Limited(Cpus(1500)))),
        "one request each way"
    );
}

#[test]
fn a_guest_that_refuses_is_reported_with_its_status_and_the_size_stays() {
    let bench = bench(Faults::default());
    bench.by_hand(Some(3000), None);
    bench.vmm.vm.lock().unwrap().faults.refuse_vcpus = Some(0x82);
    let report = bench.by_hand(Some(1000), None);
    assert_eq!((report.outcome, report.ost), (Outcome::Refused, Some(0x82)));
    assert_eq!(report.got.cpus, Some(Cpus(3000)));
    assert_eq!(
        (bench.has().0, bench.has().1),
        (3, Quota::Max),
        "neither vCPUs nor quota have changed"
    );
    // The next resize works.
    bench.vmm.vm.lock().unwrap().faults.refuse_vcpus = None;
    assert_eq!(bench.by_hand(Some(1000), None).outcome, Outcome::Applied);
}

#[test]
fn a_refused_growth_leaves_the_target_at_what_is_there() {
    let bench = bench(Faults {
        refuse_vcpus: Some(1),
        ..Faults::default()
    });
    bench.by_hand(Some(1000), None);
    let report = bench.by_hand(Some(2000), None);
    assert_eq!(
        (report.outcome, report.got.cpus),
        (Outcome::Refused, Some(Cpus(1000)))
    );
    assert_eq!(bench.resizer.target().cpus, Cpus(1000));
}

#[test]
fn the_same_size_again_is_applied_without_a_request() {
    let bench = bench(Faults::default());
    bench.by_hand(Some(2000), Some(512));
    let before = bench.vmm.vm.lock().unwrap().wishes.len();
    assert_eq!(
        bench.by_hand(Some(2000), Some(512)).outcome,
        Outcome::Applied
    );
    assert_eq!(bench.vmm.vm.lock().unwrap().wishes.len(), before);
}

#[test]
fn memory_grows_under_a_ceiling_that_went_up_first_and_comes_down_last() {
    let bench = bench(Faults {
        used: 64 << 20,
        ..Faults::default()
    });
    let first = bench.ceiling_mib();
    assert!(first > 256 && first < 512, "{first}");
    let report = bench.by_hand(None, Some(768));
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    assert!(report.timeline_ms.contains_key("guest_total"), "{report:?}");
    assert!(bench.ceiling_mib() > 768);
    let report = bench.by_hand(None, Some(256));
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    assert!(
        report.timeline_ms.contains_key("resident_fell"),
        "{report:?}"
    );
    assert_eq!(bench.ceiling_mib(), first);
}

#[test]
fn a_ceiling_that_another_agent_left_is_lowered_where_the_size_is_reached_already() {
    let bench = bench(Faults::default());
    let path = bench._cgroup.0.path().join("concertina/web/memory.max");
    let first = bench.ceiling_mib();
    std::fs::write(&path, (900u64 << 20).to_string()).unwrap();
    let report = bench.by_hand(None, Some(256));
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    assert_eq!(bench.ceiling_mib(), first);
}

#[test]
fn memory_that_the_guest_does_not_bring_online_is_no_success() {
    let bench = bench(Faults {
        memory_offline: true,
        ..Faults::default()
    });
    let order = Order::manual(None, Some(Bytes::mib(512)), Duration::from_millis(300));
    let report = bench.resizer.carry_out(&order);
    assert_eq!(report.outcome, Outcome::TimedOut, "{report:?}");
    assert_eq!(report.got.memory, Some(Bytes::mib(256)));
    assert!(report.reason.unwrap().contains("brought online"));
}

#[test]
fn without_a_balloon_driver_the_devices_word_is_taken() {
    let bench = bench(Faults {
        no_balloon: true,
        ..Faults::default()
    });
    assert_eq!(bench.by_hand(None, Some(512)).outcome, Outcome::Applied);
    assert_eq!(bench.by_hand(None, Some(256)).outcome, Outcome::Applied);
    bench.by_hand(None, Some(512));
    let report = bench.by_rule(None, Some(256));
    assert_eq!(
        report.outcome,
        Outcome::Refused,
        "a rule takes nothing blindly: {report:?}"
    );
}

#[test]
fn a_shrink_ends_where_the_guest_needs_what_it_has() {
    let bench = bench(Faults {
        used: 400 << 20,
        ..Faults::default()
    });
    bench.by_hand(None, Some(1024));
    let report = bench.by_hand(None, Some(256));
    assert_eq!(report.outcome, Outcome::Partial, "{report:?}");
    let got = report.got.memory.unwrap();
    assert!(got >= Bytes::mib(464) && got <= Bytes::mib(500), "{got}");
    assert!(report.reason.unwrap().contains("the least"));
    // Asked again, there is nothing more to take.
    assert_eq!(bench.by_hand(None, Some(256)).outcome, Outcome::Refused);
    assert_eq!(bench.resizer.size().memory, got);
}

#[test]
fn what_is_not_unplugged_is_made_up_for_by_the_balloon_and_given_back_from_it_first() {
    let bench = bench(Faults {
        used: 64 << 20,
        ..Faults::default()
    });
    bench.by_hand(None, Some(768));
    bench.vmm.vm.lock().unwrap().faults.memory_stuck = true;
    let timeout = Duration::from_secs(8);
    let order = Order::manual(None, Some(Bytes::mib(512)), timeout);
    let report = bench.resizer.carry_out(&order);
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    assert_eq!(
        (bench.has().2, bench.has().3),
        (Bytes::mib(768), Bytes::mib(256))
    );
    bench.vmm.vm.lock().unwrap().faults.memory_stuck = false;
    assert_eq!(bench.by_hand(None, Some(640)).outcome, Outcome::Applied);
    assert_eq!(
        (bench.has().2, bench.has().3),
        (Bytes::mib(768), Bytes::mib(128))
    );
}

#[test]
fn a_step_that_hurts_is_given_back() {
    let bench = bench(Faults {
        used: 64 << 20,
        ..Faults::default()
    });
    bench.by_hand(None, Some(1024));
    bench.vmm.vm.lock().unwrap().faults.faults_per_step = 10_000;
    let report = bench.by_rule(None, Some(256));
    assert_eq!(report.got.memory, Some(Bytes::mib(1024)), "{report:?}");
    assert!(report.reason.unwrap().contains("major faults"));
    assert!(report.timeline_ms.contains_key("given_back"));
}

#[test]
fn a_shrink_gives_way_to_a_larger_wish() {
    let bench = bench(Faults {
        used: 64 << 20,
        ..Faults::default()
    });
    bench.by_hand(None, Some(768));
    bench.vmm.vm.lock().unwrap().faults.memory_stuck = true;
    std::thread::scope(|scope| {
        let shrink = scope.spawn(|| bench.by_rule(None, Some(256)));
        while !bench.resizer.is_busy(Axis::Memory) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let growth = scope.spawn(|| bench.by_rule(None, Some(1024)));
        let shrunk = shrink.join().unwrap();
        assert!(shrunk.reason.unwrap().contains("larger wish"));
        bench.vmm.vm.lock().unwrap().faults.memory_stuck = false;
        let grown = growth.join().unwrap();
        assert_eq!(grown.outcome, Outcome::Applied, "{grown:?}");
    });
    assert_eq!(bench.resizer.size().memory, Bytes::mib(1024));
}

#[test]
fn one_axis_that_is_slow_does_not_hold_up_the_other() {
    let bench = bench(Faults {
        used: 64 << 20,
        ..Faults::default()
    });
    bench.by_hand(None, Some(768));
    bench.vmm.vm.lock().unwrap().faults.memory_stuck = true;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| bench.by_rule(None, Some(256)));
        std::thread::sleep(Duration::from_millis(50));
        let begun = Instant::now();
        assert_eq!(bench.by_rule(Some(2000), None).outcome, Outcome::Applied);
        assert!(
            begun.elapsed() < Duration::from_millis(500),
            "{:?}",
            begun.elapsed()
        );
        assert!(bench.resizer.is_busy(Axis::Memory));
        bench.vmm.vm.lock().unwrap().faults.memory_stuck = false;
        slow.join().unwrap();
    });
}

#[test]
fn outside_the_bounds_nothing_is_begun() {
    let bench = bench(Faults::default());
    let report = bench.by_hand(Some(2000), Some(2048));
    assert_eq!(report.outcome, Outcome::Refused);
    assert!(report.reason.unwrap().contains("256M to 1G"));
    assert_eq!(bench.has().0, 1);
    assert!(bench.vmm.vm.lock().unwrap().wishes.is_empty());
}

#[test]
fn an_odd_size_is_rounded_and_that_is_said() {
    let bench = bench(Faults::default());
    let order = Order::manual(None, Some(Bytes((300 << 20) + 5)), Duration::from_secs(3));
    let report = bench.resizer.carry_out(&order);
    assert_eq!(
        (report.outcome, report.got.memory),
        (Outcome::Applied, Some(Bytes::mib(302)))
    );
    assert!(report.reason.unwrap().contains("302M"));
}

#[test]
fn a_vmm_that_answers_rubbish_is_a_failure_not_a_panic() {
    let bench = bench(Faults {
        malformed: true,
        ..Faults::default()
    });
    let report = bench.by_hand(Some(2000), Some(512));
    assert_eq!(report.outcome, Outcome::TimedOut, "{report:?}");
    assert_eq!(report.got.memory, Some(Bytes::mib(256)));
}

#[test]
fn a_vmm_that_is_gone_is_a_failure_at_once() {
    let mut bench = bench(Faults::default());
    let socket = bench.temp.path().join("other.sock");
    let vm = FakeVm::new(Bytes::mib(256), Bytes::mib(1024), 1, Faults::default());
    bench.vmm = FakeVmm::listen(&socket, vm);
    let begun = Instant::now();
    let report = bench.by_hand(Some(2000), Some(512));
    assert_eq!(report.outcome, Outcome::TimedOut);
    assert!(report.reason.unwrap().contains("does not answer"));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn every_change_is_committed_once_with_what_was_reached() {
    let bench = bench(Faults::default());
    bench.by_rule(Some(2000), None);
    bench.by_hand(None, Some(512));
    let commits = bench.resizer.take_commits();
    assert_eq!(commits.len(), 2);
    assert_eq!((commits[0].before, commits[0].after), (1000, 2000));
    assert_eq!(
        (commits[1].cause.clone(), commits[1].after),
        (Cause::Manual, 512 << 20)
    );
    assert!(bench.resizer.take_commits().is_empty());
    let EventKind::Resized { cause, report, .. } = bench.last_event() else {
        panic!()
    };
    assert_eq!(
        (cause.as_str(), report.outcome),
        ("manual", Outcome::Applied)
    );
}

/// With two disks and a network of 100 Mbit/s, of which the disks have bounds.
fn bench_with_devices(faults: Faults) -> Bench {
    let mut bench = bench(faults);
    let net = "100mbit".parse().unwrap();
    let first = IoRates {
        disks: vec!["10M,500iops".parse().unwrap(); 2],
        nets: vec![concertina_api::net::NetRates { rx: net, tx: net }],
    };
    let bounds = IoBounds {
        disk: "10M,500iops..100M,5000iops".parse().ok(),
        net: None,
    };
    bench.resizer = bench.resizer.with_io(bounds, first);
    bench
}

fn by_rule_on_disks(bench: &Bench, mib_per_s: u64) -> ResizeReport<InstanceSize> {
    bench.resizer.carry_out(&Order {
        io: Some((Resource::DiskBytes, mib_per_s << 20)),
        cause: Cause::Rules(vec!["rule".into()]),
        ..Order::manual(None, None, Duration::from_secs(3))
    })
}

#[test]
fn a_rules_limit_is_set_on_all_disks_read_back_and_committed() {
    let bench = bench_with_devices(Faults::default());
    let report = by_rule_on_disks(&bench, 40);
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    let rate = "40M,500iops".parse().unwrap();
    let all = DiskRate { disk: None, rate };
    assert_eq!(
        (report.asked.disk_rate, report.got.disk_rate),
        (Some(all), Some(all))
    );
    assert_eq!(bench.resizer.rates().disks, [rate, rate]);
    let EventKind::Resized { before, cause, .. } = bench.last_event() else {
        panic!("{:?}", bench.last_event());
    };
    let first = "10M,500iops".parse().unwrap();
    assert_eq!(
        (before.disk_rate.unwrap().rate, cause.as_str()),
        (first, "rule")
    );
    let commits = bench.resizer.take_commits();
    let [commit] = commits.as_slice() else {
        panic!("{commits:?}");
    };
    let sizes = (commit.before >> 20, commit.asked >> 20, commit.after >> 20);
    assert_eq!((commit.axis, sizes), (Resource::DiskBytes, (10, 40, 40)));
}

#[test]
fn a_limit_by_hand_is_committed_for_all_that_has_bounds_and_for_nothing_else() {
    let bench = bench_with_devices(Faults::default());
    let by_hand = |disk: Option<&str>, net: Option<&str>| {
        let order = Order::manual(None, None, Duration::from_secs(3))
            .with_disk_rate(disk.map(|text| text.parse().unwrap()))
            .with_net_rate(net.map(|text| text.parse().unwrap()));
        bench.resizer.carry_out(&order)
    };
    assert_eq!(
        by_hand(Some("50M"), Some("rx=5M")).outcome,
        Outcome::Applied
    );
    let commits = bench.resizer.take_commits();
    let axes: Vec<Resource> = commits.iter().map(|commit| commit.axis).collect();
    assert_eq!(axes, [Resource::DiskBytes, Resource::DiskOps]);
    assert!(commits.iter().all(|commit| commit.cause == Cause::Manual));
    assert_eq!(
        bench.resizer.rates().disks[1],
        "50M,500iops".parse().unwrap()
    );
    assert_eq!(bench.resizer.rates().nets[0].rx, "5M".parse().unwrap());
    // Outside the bounds nothing is begun, of the other parts neither.
    bench.vmm.vm.lock().unwrap().wishes.clear();
    for outside in ["5M", "max", "0=50M"] {
        let report = by_hand(Some(outside), Some("7M"));
        assert_eq!(report.outcome, Outcome::Refused, "{report:?}");
    }
    assert!(bench.vmm.vm.lock().unwrap().wishes.is_empty());
    assert!(bench.resizer.take_commits().is_empty());
}

#[test]
fn a_limit_that_the_vmm_does_not_confirm_stays_what_it_was() {
    let bench = bench_with_devices(Faults {
        malformed: true,
        ..Faults::default()
    });
    let before = bench.resizer.rates();
    let report = by_rule_on_disks(&bench, 40);
    assert_eq!(report.outcome, Outcome::TimedOut, "{report:?}");
    assert_eq!(bench.resizer.rates(), before);
    let commits = bench.resizer.take_commits();
    assert_eq!((commits.len(), commits[0].after), (1, commits[0].before));
}

#[test]
fn memory_that_the_host_does_not_have_is_refused_before_anything_is_asked() {
    let bench = bench(Faults::default());
    let meminfo = bench.temp.path().join("meminfo");
    std::fs::write(&meminfo, "MemAvailable: 204800 kB\n").unwrap();
    let report = bench.by_rule(None, Some(768));
    assert_eq!(report.outcome, Outcome::Refused);
    assert!(report.reason.unwrap().contains("host_short_of_memory"));
    assert!(bench.vmm.vm.lock().unwrap().wishes.is_empty());
    assert_eq!(bench.resizer.target().memory, Bytes::mib(256));
    let commit = &bench.resizer.take_commits()[0];
    assert_eq!((commit.before, commit.after), (256 << 20, 256 << 20));
    assert_eq!(bench.by_rule(None, Some(320)).outcome, Outcome::Applied);
}

/// A guest that refuses to give memory back, and remembers what it was told.
#[derive(Debug, Default)]
struct Stubborn(Mutex<Vec<String>>);

impl GuestHooks for Stubborn {
    fn before_shrink(&self, axis: Axis, from: u64, to: u64, _left: Duration) -> Option<String> {
        let asked = format!("{}: {from} -> {to}", axis.as_str());
        lock(&self.0).push(asked);
        (axis == Axis::Memory).then(|| "The guest refused to shrink: backup runs".into())
    }
    fn after_grow(&self, axis: Axis, from: u64, to: u64) {
        lock(&self.0).push(format!("{} grew: {from} -> {to}", axis.as_str()));
    }
}

#[test]
fn a_guest_may_refuse_to_shrink_and_nothing_is_begun() {
    let mut bench = bench(Faults::default());
    let hooks = Arc::new(Stubborn::default());
    bench.resizer = bench.resizer.with_hooks(hooks.clone());
    bench.by_hand(Some(2000), Some(512));
    let wishes = bench.vmm.vm.lock().unwrap().wishes.len();
    for report in [
        bench.by_hand(None, Some(256)),
        bench.by_rule(None, Some(256)),
    ] {
        assert_eq!(report.outcome, Outcome::Refused);
        assert_eq!(report.got.memory, Some(Bytes::mib(512)));
        assert!(report.reason.unwrap().contains("backup runs"));
    }
    assert_eq!(bench.vmm.vm.lock().unwrap().wishes.len(), wishes);
    assert_eq!(bench.by_hand(Some(1000), None).outcome, Outcome::Applied);
    let mut told = lock(&hooks.0).clone();
    told.sort();
    let mib = |n: u64| n << 20;
    let mut expected = vec![
        "cpu grew: 1000 -> 2000".to_owned(),
        "cpu: 2000 -> 1000".to_owned(),
        format!("memory grew: {} -> {}", mib(256), mib(512)),
        format!("memory: {} -> {}", mib(512), mib(256)),
        format!("memory: {} -> {}", mib(512), mib(256)),
    ];
    expected.sort();
    assert_eq!(told, expected);
    let commits = bench.resizer.take_commits();
    let refused = commits
        .iter()
        .filter(|c| c.asked < c.before && c.after == c.before);
    assert_eq!(refused.count(), 2);
}

#[test]
fn of_two_requests_the_newer_one_wins_and_the_older_one_is_told_so() {
    let bench = bench(Faults {
        memory_stuck: true,
        ..Faults::default()
    });
    std::thread::scope(|scope| {
        let older = scope.spawn(|| bench.by_hand(None, Some(512)));
        // It is under way: its guest does not plug anything.
        let is_under_way = || !bench.vmm.vm.lock().unwrap().wishes.is_empty();
        while !is_under_way() {
            std::thread::yield_now();
        }
        let newer = scope.spawn(|| bench.by_hand(None, Some(768)));
        let older = older.join().unwrap();
        assert_eq!(older.outcome, Outcome::Refused, "{older:?}");
        let why = older.reason.unwrap();
        assert!(why.contains("newer request"), "{why}");
        bench.vmm.vm.lock().unwrap().faults.memory_stuck = false;
        let newer = newer.join().unwrap();
        assert_eq!(newer.outcome, Outcome::Applied, "{newer:?}");
    });
    assert_eq!(bench.has().2, Bytes::mib(768));
}
