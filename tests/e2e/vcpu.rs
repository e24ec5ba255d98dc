//! vCPUs come and go while the guest runs; the host's threads are the proof.

use std::time::{Duration, Instant};

use concertina_api::vm::{Outcome, VcpuState, VmResize};
use concertina_api::{Cpus, Quota};

use crate::boot::pvh_kernel;
use crate::support::{Launch, STEP_LIMIT, Series, Shell, alone, guest, proc, until};

#[test]
fn a_vcpu_added_to_a_running_guest_is_online_there() {
    for (name, series) in [("add61", Series::V6_1), ("add612", Series::V6_12)] {
        let (instance, mut shell) = Launch::new(name).series(series).cpus("1..4").boot();
        assert_eq!(shell.online_cpus(), 1);
        let report = instance.resize_applied(&["--cpus", "3"]);
        assert_eq!(report["asked"]["cpus"], 3.0, "{report:#}");
        assert_eq!(report["got"]["cpus"], 3.0, "{report:#}");
        assert!(
            report["timeline_ms"]["total"].as_f64().unwrap() > 0.0,
            "{report:#}"
        );
        assert_eq!(shell.online_cpus(), 3);
        // It is not only listed: it runs programs.
        shell.run(
            "for i in 1 2 3; do (n=0; while [ $n -lt 3000 ]; do n=$((n+1)); done) & done; wait",
        );
        let pid = instance.vmm_pid();
        for (number, tid) in instance.vcpu_tids().into_iter().enumerate().take(3) {
            assert!(
                proc::run_time_ns(pid, tid) > 1_000_000,
                "vCPU {number} has hardly run"
            );
        }
    }
}

#[test]
fn a_removed_vcpu_has_a_parked_thread_on_the_host() {
    let _alone = alone();
    let (instance, mut shell) = Launch::new("remove").cpus("1..4").boot();
    let pid = instance.vmm_pid();
    let tids = instance.vcpu_tids();
    assert_eq!(tids.len(), 4, "One thread for each possible vCPU");
    let before = settled_threads(pid);
    instance.resize_applied(&["--cpus", "4"]);
    assert_eq!(shell.online_cpus(), 4);
    instance.resize_applied(&["--cpus", "1"]);
    assert_eq!(shell.online_cpus(), 1);
    let states: Vec<_> = instance
        .vm()
        .vcpus
        .threads
        .iter()
        .map(|t| t.state)
        .collect();
    assert_eq!(states[0], VcpuState::Online);
    assert!(
        states[1..].iter().all(|s| *s == VcpuState::Parked),
        "{states:?}"
    );
    let used = proc::cpus_used(pid, &tids[1..], Duration::from_secs(1));
    assert!(
        used == 0.0,
        "Parked vCPU threads take {used} of a processor"
    );
    until_the_threads_are(pid, &before);
}

#[test]
fn one_to_sixteen_and_back_twenty_times_leaks_no_thread() {
    let (instance, mut shell) = Launch::new("swing").cpus("1..16").memory("512M").boot();
    let pid = instance.vmm_pid();
    let before = settled_threads(pid);
    for round in 1..=20 {
        for vcpus in [16, 1] {
            let report = instance.resize_vm(&VmResize {
                vcpus: Some(vcpus),
                timeout_ms: Some(60_000),
                ..VmResize::default()
            });
            assert_eq!(
                report.outcome,
                Outcome::Applied,
                "Round {round}: {report:?}"
            );
            until_online(&mut shell, vcpus);
        }
        until_the_threads_are(pid, &before);
    }
}

/// Linux finds vCPUs by their status when it scans its ACPI tables, and starts them some time later: the
/// deadline may come before, between, or after.
#[test]
fn a_deadline_in_the_middle_of_the_boot_takes_nothing_from_the_guest() {
    for (name, series, timeout_ms) in [
        ("early-a", Series::V6_12, 1000),
        ("early-b", Series::V6_1, 2500),
        ("early-c", Series::V6_12, 20_000),
        ("early-d", Series::V6_1, 20_000),
    ] {
        let files = guest(series);
        let instance = Launch::new(name)
            .kernel(&files.bzimage, &files.initramfs)
            .cpus("1..3")
            .start();
        let size = |timeout_ms| VmResize {
            vcpus: Some(3),
            timeout_ms: Some(timeout_ms),
            ..VmResize::default()
        };
        let first = instance.resize_vm(&size(timeout_ms));
        let mut shell = instance.shell();
        let report = instance.resize_vm(&size(60_000));
        assert_eq!(report.outcome, Outcome::Applied, "{first:?} {report:?}");
        until_online(&mut shell, 3);
        assert_eq!(instance.vm().vcpus.online, 3);
        for vcpu in 0..3 {
            shell.run(&format!("taskset -c {vcpu} true"));
        }
        if timeout_ms == 20_000 {
            assert_eq!(first.outcome, Outcome::Applied, "{first:?}");
        }
    }
}

/// The host knows that a vCPU was started a moment before the guest lists it.
#[track_caller]
fn until_online(shell: &mut Shell, vcpus: u32) {
    until(
        &format!("{vcpus} processors in the guest"),
        STEP_LIMIT,
        || (shell.online_cpus() == u64::from(vcpus)).then_some(()),
    );
}

/// The threads when no connection to the VM's API, each of which has one, is about to end.
#[track_caller]
fn settled_threads(pid: i32) -> Vec<proc::Thread> {
    until("threads that stay as they are", STEP_LIMIT, || {
        let seen = own_threads(pid);
        std::thread::sleep(Duration::from_millis(500));
        (own_threads(pid) == seen).then_some(seen)
    })
}

/// All but those of connections to the VM's API: there is one as long as its client keeps it.
fn own_threads(pid: i32) -> Vec<proc::Thread> {
    let mut threads = proc::threads(pid);
    threads.retain(|thread| thread.name != "http");
    threads
}

#[track_caller]
fn until_the_threads_are(pid: i32, before: &[proc::Thread]) {
    until(
        "the threads of before, no more and no less",
        STEP_LIMIT,
        || (own_threads(pid) == before).then_some(()),
    );
}

#[test]
fn the_last_vcpu_is_never_removed() {
    let (instance, mut shell) = Launch::new("last").cpus("1..2").boot();
    let report = instance.resize_vm(&VmResize {
        vcpus: Some(2),
        ..VmResize::default()
    });
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    let error = concertina_http::client::put_json::<_, serde_json::Value>(
        &instance.file("vmm.sock"),
        "/v1/vm/resize",
        &VmResize {
            vcpus: Some(0),
            ..VmResize::default()
        },
        STEP_LIMIT,
    );
    let refused = match &error {
        Err(_) => true,
        Ok(report) => report["outcome"] == "refused",
    };
    assert!(refused, "{error:?}");
    assert_eq!(shell.online_cpus(), 2);
}

#[test]
fn a_guest_that_never_answers_gives_timed_out_within_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("halting");
    // cli; hlt; jmp back: a guest that lives and does nothing.
    std::fs::write(&kernel, pvh_kernel(&[0xfa, 0xf4, 0xeb, 0xfc])).unwrap();
    let instance = Launch::new("mute")
        .kernel(&kernel, &guest(Series::V6_12).initramfs)
        .cpus("1..2")
        .start();
    for _ in 0..2 {
        let started = Instant::now();
        let report = instance.resize(&["--cpus", "2", "--timeout", "3s"]);
        assert_eq!(report["outcome"], "timed_out", "{report:#}");
        assert_eq!(instance.vm().vcpus.online, 1);
        let took = started.elapsed();
        assert!(
            took < Duration::from_secs(8),
            "Took {took:?} with a deadline of 3 s"
        );
    }
}

#[test]
fn a_guest_that_refuses_is_believed_and_the_next_resize_works() {
    let (instance, mut shell) = Launch::new("refuse").cpus("1..3").boot();
    let ask = |vcpus| {
        instance.resize_vm(&VmResize {
            vcpus: Some(vcpus),
            ..VmResize::default()
        })
    };
    assert_eq!(ask(3).outcome, Outcome::Applied);
    // The guest's administrator forbids its kernel to give processors back: it says so by _OST.
    shell.run("echo 0 >/sys/firmware/acpi/hotplug/processor/enabled");
    let report = ask(2);
    assert_eq!(report.outcome, Outcome::Refused, "{report:?}");
    assert!(report.ost.is_some_and(|ost| ost != 0), "{report:?}");
    assert_eq!(report.got.vcpus, Some(3), "{report:?}");
    until_online(&mut shell, 3);
    // It keeps its vCPUs, and with them the quota that was to follow.
    let report = instance.resize_vm(&VmResize {
        vcpus: Some(1),
        quota: Some(Quota::Limited(Cpus(500))),
        ..VmResize::default()
    });
    assert_eq!(report.outcome, Outcome::Refused, "{report:?}");
    let got = (report.got.vcpus, report.got.quota);
    assert_eq!(got, (Some(3), Some(Quota::Max)), "{report:?}");
    shell.run("echo 1 >/sys/firmware/acpi/hotplug/processor/enabled");
    for vcpus in [2, 3, 1] {
        let report = ask(vcpus);
        assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
        until_online(&mut shell, vcpus);
    }
}

#[test]
fn a_vcpu_asked_for_while_the_guest_boots_is_there_in_the_end() {
    let instance = Launch::new("early").cpus("1..3").start();
    // Whatever comes of it: the guest has no driver for it yet.
    let report = instance.resize_vm(&VmResize {
        vcpus: Some(2),
        timeout_ms: Some(500),
        ..VmResize::default()
    });
    assert!(
        matches!(report.outcome, Outcome::Applied | Outcome::TimedOut),
        "{report:?}"
    );
    let mut shell = instance.shell();
    for vcpus in [2, 3, 1] {
        let report = instance.resize_vm(&VmResize {
            vcpus: Some(vcpus),
            ..VmResize::default()
        });
        assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
        until_online(&mut shell, vcpus);
    }
}

#[test]
fn the_same_size_again_is_applied_at_once() {
    let (instance, _shell) = Launch::new("same").cpus("1..2").memory("256M..512M").boot();
    for _ in 0..2 {
        let report = instance.resize_applied(&["--cpus", "2", "--memory", "512M"]);
        assert_eq!(report["got"]["cpus"], 2.0, "{report:#}");
    }
    let report = instance.resize_applied(&["--cpus", "2"]);
    let total = report["timeline_ms"]["total"].as_f64().unwrap();
    assert!(total < 1000.0, "{report:#}");
}
