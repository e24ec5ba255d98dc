//! Memory grows and shrinks through virtio-mem; the host's resident memory is the proof.

use concertina_api::units::Bytes;
use concertina_api::vm::{Outcome, VmResize};

use crate::support::{Launch, MIB, STEP_LIMIT, Series, Shell, proc, until};

/// Makes the guest touch that much memory and give it back to its kernel.
fn touch_and_free(shell: &mut Shell, mib: u64) {
    shell.run("mkdir -p /touched; mount -t tmpfs -o size=95% touched /touched");
    shell.run(&format!(
        "dd if=/dev/zero of=/touched/file bs=1M count={mib} 2>/dev/null"
    ));
    shell.run("rm /touched/file; umount /touched");
}

#[test]
fn memory_added_to_a_running_guest_is_usable_there() {
    for (name, series) in [("grow61", Series::V6_1), ("grow612", Series::V6_12)] {
        let (instance, mut shell) = Launch::new(name).series(series).memory("256M..1G").boot();
        let before = shell.meminfo("MemTotal");
        let report = instance.resize_applied(&["--memory", "768M"]);
        assert_eq!(report["got"]["memory"], 768 * MIB, "{report:#}");
        let grown = until("the memory in the guest", STEP_LIMIT, || {
            let grown = shell.meminfo("MemTotal") - before;
            (grown >= 490 * MIB).then_some(grown)
        });
        assert!(grown <= 512 * MIB, "{grown}");
        // It is there: a file that would not fit into 256 MiB does.
        shell.run("mkdir /big; mount -t tmpfs -o size=95% big /big");
        shell.run("dd if=/dev/zero of=/big/file bs=1M count=400 2>/dev/null");
        let resident = instance.status()["memory"]["host_resident"]
            .as_u64()
            .unwrap();
        assert!(resident > 400 * MIB, "{resident}");
    }
}

#[test]
fn shrinking_gives_memory_back_to_the_host() {
    let (instance, mut shell) = Launch::new("shrink").memory("256M..1G").boot();
    let pid = instance.vmm_pid();
    instance.resize_applied(&["--memory", "1G"]);
    until("the memory in the guest", STEP_LIMIT, || {
        (shell.meminfo("MemTotal") > 900 * MIB).then_some(())
    });
    shell.run("mkdir /held; mount -t tmpfs -o size=95% held /held");
    shell.run("dd if=/dev/zero of=/held/file bs=1M count=500 2>/dev/null");
    let full = proc::resident_bytes(pid);
    assert!(
        full > 500 * MIB,
        "Resident {full} with 500 MiB held by the guest"
    );
    shell.run("rm /held/file; umount /held");
    let report = instance.resize_applied(&["--memory", "256M"]);
    assert_eq!(report["got"]["memory"], 256 * MIB, "{report:#}");
    let left = proc::resident_bytes(pid);
    assert!(
        left < 256 * MIB,
        "Resident {left} after the shrink to 256 MiB"
    );
    assert!(shell.meminfo("MemTotal") <= 256 * MIB);
    let status = instance.status();
    assert_eq!(status["memory"]["plugged"], 256 * MIB);
    assert!(status["memory"]["host_resident"].as_u64().unwrap() < 256 * MIB);
}

#[test]
fn a_guest_that_needs_its_memory_keeps_it() {
    let (instance, mut shell) = Launch::new("keep").memory("256M..1G").boot();
    instance.resize_applied(&["--memory", "1G"]);
    until("the memory in the guest", STEP_LIMIT, || {
        (shell.meminfo("MemTotal") > 900 * MIB).then_some(())
    });
    shell.run("mkdir /held; mount -t tmpfs -o size=95% held /held");
    // Not zeros, which is what lost memory reads as.
    shell.run("tr '\\0' x </dev/zero | head -c 10m >/block");
    shell.run("for i in $(seq 45); do cat /block; done >/held/file");
    let sum = shell.run("md5sum /held/file");
    let report = instance.resize(&["--memory", "256M", "--timeout", "5s"]);
    let outcome = report["outcome"].as_str().unwrap_or_default();
    assert!(
        ["partial", "refused", "timed_out", "rolled_back"].contains(&outcome),
        "{report:#}"
    );
    let got = report["got"]["memory"].as_u64().unwrap();
    assert!(got >= 450 * MIB, "{report:#}");
    assert_eq!(shell.run("md5sum /held/file"), sum);
    // And the next resize works.
    instance.resize_applied(&["--memory", "1G"]);
}

#[test]
fn grow_and_shrink_can_be_repeated() {
    let (instance, mut shell) = Launch::new("repeat").memory("256M..512M").boot();
    for _ in 0..5 {
        instance.resize_applied(&["--memory", "512M"]);
        touch_and_free(&mut shell, 100);
        instance.resize_applied(&["--memory", "256M"]);
    }
    assert_eq!(instance.vm().memory.bad_requests, 0);
}

#[test]
fn an_upper_bound_of_64_gib_costs_next_to_nothing() {
    let (instance, mut shell) = Launch::new("vast").memory("256M..64G").boot();
    let resident = proc::resident_bytes(instance.vmm_pid());
    assert!(resident < 256 * MIB, "Resident {resident}");
    let report = instance.resize_applied(&["--memory", "1G"]);
    assert_eq!(report["got"]["memory"], 1024 * MIB, "{report:#}");
    until("the memory in the guest", STEP_LIMIT, || {
        (shell.meminfo("MemTotal") > 900 * MIB).then_some(())
    });
}

#[test]
fn sizes_between_blocks_are_rounded_and_the_answer_says_so() {
    let (instance, _shell) = Launch::new("odd").memory("256M..1G").boot();
    let report = instance.resize_vm(&VmResize {
        memory: Some(Bytes(300 * MIB + 12_345)),
        ..VmResize::default()
    });
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    let got = report.got.memory.unwrap().get();
    assert_eq!(got % (2 * MIB), 0, "{report:?}");
    assert!(got.abs_diff(300 * MIB) <= 2 * MIB, "{report:?}");
}
