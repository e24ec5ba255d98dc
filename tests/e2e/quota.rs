//! Fractions of a CPU: the vCPU threads' own cgroup, and the ceiling over the memory.

use std::time::Duration;

use crate::support::{Instance, Launch, MIB, STEP_LIMIT, alone, proc};

/// Processors' worth of time that a quota file allows; `None` when there is no limit.
fn quota_of(instance: &Instance) -> Option<f64> {
    let folder = proc::cgroup_of(instance.vmm_pid(), instance.vcpu_tids()[0]);
    let text = proc::cgroup_file(&folder, "cpu.max");
    let (quota, period) = text.split_once(' ').expect("two fields in cpu.max");
    let number = |field: &str| field.parse::<f64>().ok();
    Some(number(quota)? / number(period).expect("a period in cpu.max"))
}

#[test]
fn half_a_cpu_is_half_a_cpu_on_the_host() {
    let _alone = alone();
    let (instance, mut shell) = Launch::new("half").cpus("0.5..2").boot();
    assert_eq!(quota_of(&instance), Some(0.5));
    assert_eq!(shell.online_cpus(), 1);
    assert_eq!(instance.status()["cpus"]["quota"], 0.5);
    shell.type_line("concertina-guest load --cpu 1 --for 20s >/dev/null &");
    std::thread::sleep(Duration::from_secs(1));
    let used = proc::cpus_used(
        instance.vmm_pid(),
        &instance.vcpu_tids(),
        Duration::from_secs(4),
    );
    assert!((0.35..0.6).contains(&used), "Used {used} of a processor");
}

#[test]
fn one_and_a_half_cpus_are_two_vcpus_with_a_quota() {
    let (instance, mut shell) = Launch::new("ladder").cpus("0.5..2").boot();
    let report = instance.resize_applied(&["--cpus", "1.5"]);
    assert_eq!(report["got"]["cpus"], 1.5, "{report:#}");
    assert_eq!(shell.online_cpus(), 2);
    assert_eq!(quota_of(&instance), Some(1.5));
    instance.resize_applied(&["--cpus", "2"]);
    assert_eq!(shell.online_cpus(), 2);
    let report = instance.resize_applied(&["--cpus", "0.5"]);
    assert_eq!(quota_of(&instance), Some(0.5));
    assert_eq!(shell.online_cpus(), 1);
    // The guest had all its time for letting go of a vCPU: the quota followed.
    let at = |step: &str| report["timeline_ms"][step].as_f64().expect("a time");
    assert!(at("vcpus_parked") <= at("quota"), "{report:#}");
}

#[test]
fn the_vmms_own_threads_are_outside_the_quota() {
    let (instance, _shell) = Launch::new("sibling").cpus("0.5..2").boot();
    let pid = instance.vmm_pid();
    let tids = instance.vcpu_tids();
    let vcpu_group = proc::cgroup_of(pid, tids[0]);
    for thread in proc::threads(pid) {
        // KVM's own kernel thread for huge pages joins whoever runs first; it is hardly ever awake.
        if thread.name.starts_with("kvm-") {
            continue;
        }
        // One that answered a request may have ended since; vCPUs never do.
        let ended = || !proc::threads(pid).iter().any(|now| now.tid == thread.tid);
        if !tids.contains(&thread.tid) && ended() {
            continue;
        }
        let group = proc::cgroup_of(pid, thread.tid);
        if tids.contains(&thread.tid) {
            assert_eq!(group, vcpu_group, "{thread:?}");
        } else {
            assert_ne!(group, vcpu_group, "{thread:?}");
            assert_eq!(group.parent(), vcpu_group.parent(), "{thread:?}");
            let limit = proc::cgroup_file(&group, "cpu.max");
            assert!(limit.starts_with("max "), "{thread:?} has {limit}");
        }
    }
    assert_eq!(proc::cgroup_file(&vcpu_group, "cgroup.type"), "threaded");
}

#[test]
fn a_ceiling_over_the_memory_follows_the_size() {
    let (instance, _shell) = Launch::new("ceiling").memory("256M..1G").boot();
    let pid = instance.vmm_pid();
    let vcpu_group = proc::cgroup_of(pid, instance.vcpu_tids()[0]);
    let group = vcpu_group.parent().expect("the instance's own group");
    let ceiling = || {
        proc::cgroup_file(group, "memory.max")
            .parse::<u64>()
            .unwrap_or(u64::MAX)
    };
    let small = ceiling();
    assert!((256 * MIB..1024 * MIB).contains(&small), "{small}");
    instance.resize_applied(&["--memory", "1G"]);
    let large = ceiling();
    assert!((1024 * MIB..2048 * MIB).contains(&large), "{large}");
    instance.resize_applied(&["--memory", "256M"]);
    assert!(ceiling() < large);
}

#[test]
fn a_quota_takes_effect_at_once() {
    let _alone = alone();
    let (instance, _shell) = Launch::new("fast").cpus("0.5..1").boot();
    let report = instance.resize_applied(&["--cpus", "1"]);
    let took = report["timeline_ms"]["quota"]
        .as_f64()
        .expect("a time for the quota");
    assert!(
        took < STEP_LIMIT.as_secs_f64() * 1000.0 / 60.0,
        "{report:#}"
    );
}
