//! The balloon: reclaim, statistics, free page reporting, and giving back when the guest is short.

use concertina_api::units::Bytes;
use concertina_api::vm::{BalloonStatistics, Outcome, VmResize};

use crate::support::{Instance, Launch, MIB, STEP_LIMIT, Series, proc, until};

fn balloon_to(instance: &Instance, mib: u64) {
    let report = instance.resize_vm(&VmResize {
        balloon: Some(Bytes::mib(mib)),
        timeout_ms: Some(20_000),
        ..VmResize::default()
    });
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    assert_eq!(report.got.balloon, Some(Bytes::mib(mib)), "{report:?}");
}

fn statistics(instance: &Instance) -> BalloonStatistics {
    concertina_http::client::get_json(
        &instance.file("vmm.sock"),
        "/v1/vm/balloon/statistics",
        STEP_LIMIT,
    )
    .expect("balloon statistics")
}

#[test]
fn inflating_takes_memory_from_the_guest_and_deflating_gives_it_back() {
    for (name, series) in [("air61", Series::V6_1), ("air612", Series::V6_12)] {
        let (instance, mut shell) = Launch::new(name).series(series).memory("512M").boot();
        let total = shell.meminfo("MemTotal");
        // Linux takes what it reports as free out of its lists for a moment, hence the waiting.
        let mut until_used = |what: &str, holds: &dyn Fn(u64) -> bool| {
            until(what, STEP_LIMIT, || {
                holds(total - shell.meminfo("MemAvailable")).then_some(())
            });
        };
        until_used("a guest with free memory", &|used| used < 60 * MIB);
        balloon_to(&instance, 200);
        let balloon = instance.vm().balloon;
        assert_eq!(balloon.actual, Bytes::mib(200), "{balloon:?}");
        until_used("a guest without 200 MiB", &|used| {
            (200 * MIB..260 * MIB).contains(&used)
        });
        balloon_to(&instance, 0);
        until_used("the memory back in the guest", &|used| used < 60 * MIB);
        assert_eq!(instance.vm().balloon.bad_requests, 0);
    }
}

#[test]
fn an_inflated_balloon_frees_memory_of_the_host() {
    let (instance, mut shell) = Launch::new("reclaim").memory("512M").boot();
    shell.run("mkdir /held; mount -t tmpfs -o size=95% held /held");
    shell.run("dd if=/dev/zero of=/held/file bs=1M count=300 2>/dev/null");
    let full = proc::resident_bytes(instance.vmm_pid());
    shell.run("rm /held/file");
    balloon_to(&instance, 300);
    let left = proc::resident_bytes(instance.vmm_pid());
    assert!(full - left > 200 * MIB, "{full} then {left}");
}

#[test]
fn free_page_reporting_gives_back_what_the_guest_frees() {
    let (instance, mut shell) = Launch::new("report").memory("512M").boot();
    let pid = instance.vmm_pid();
    shell.run("mkdir /held; mount -t tmpfs -o size=95% held /held");
    shell.run("dd if=/dev/zero of=/held/file bs=1M count=300 2>/dev/null");
    let full = proc::resident_bytes(pid);
    assert!(full > 300 * MIB, "{full}");
    shell.run("rm /held/file");
    // Linux reports free pages some seconds after they were freed.
    until("the host has the freed memory", STEP_LIMIT, || {
        (full.saturating_sub(proc::resident_bytes(pid)) > 200 * MIB).then_some(())
    });
    assert!(instance.vm().balloon.reported_total.get() > 200 * MIB);
}

#[test]
fn the_statistics_are_those_of_the_guest() {
    for (name, series) in [("stat61", Series::V6_1), ("stat612", Series::V6_12)] {
        let (instance, mut shell) = Launch::new(name).series(series).memory("256M").boot();
        let known = until("fresh statistics", STEP_LIMIT, || {
            Some(statistics(&instance)).filter(|s| s.values.contains_key("total_memory"))
        });
        let total = shell.meminfo("MemTotal");
        assert_eq!(known.values["total_memory"], total);
        let available = shell.meminfo("MemAvailable");
        let claimed = known.values["available_memory"];
        assert!(
            claimed.abs_diff(available) < 16 * MIB,
            "{claimed}, {available}"
        );
        let mut names = vec![
            "swap_in",
            "swap_out",
            "major_faults",
            "minor_faults",
            "free_memory",
            "disk_caches",
        ];
        if series == Series::V6_12 {
            names.extend([
                "oom_kill",
                "alloc_stall",
                "async_scan",
                "direct_scan",
                "async_reclaim",
                "direct_reclaim",
            ]);
        }
        for name in names {
            assert!(known.values.contains_key(name), "No {name} in {known:?}");
        }
        // The customer's view has them too.
        let status = instance.wait_for_status("the guest's memory", STEP_LIMIT, |s| {
            s["memory"]["guest_total"].is_u64()
        });
        assert_eq!(status["memory"]["guest_total"], total);
        assert!(status["memory"]["guest_available"].is_u64(), "{status:#}");
    }
}

#[test]
fn a_guest_short_of_memory_takes_the_balloon_back_before_it_kills() {
    let (instance, mut shell) = Launch::new("short").memory("512M").boot();
    balloon_to(&instance, 300);
    // Linux takes a mebibyte back each time that it finds none free, so this takes a while.
    shell.type_line("concertina-guest load --memory 300M --for 60s --reserve 0 >/dev/null &");
    until("a balloon under 250 MiB", 2 * STEP_LIMIT, || {
        (instance.vm().balloon.actual < Bytes::mib(250)).then_some(())
    });
    assert!(!shell.run("dmesg").contains("Out of memory: Killed"));
}
