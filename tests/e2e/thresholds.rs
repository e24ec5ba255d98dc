//! The main job: the customer's thresholds resize the instance, up under load and down after it.

use std::time::{Duration, Instant};

use crate::support::{
    Instance, Launch, MIB, STEP_LIMIT, alone, caused_by, concertina, guest, require_host, until,
};

const SETTLE: Duration = Duration::from_secs(60);

#[test]
fn cpu_follows_the_load_up_and_down() {
    let _alone = alone();
    let (instance, mut shell) = Launch::new("elastic")
        .cpus("1..3")
        .scale("cpu > 75% for 2s: +1 cpu, cooldown 1s")
        .scale("cpu < 20% for 3s: -1 cpu, cooldown 1s")
        .scale("set shrink_window 3s")
        .boot();
    assert_eq!(instance.status()["cpus"]["online"], 1);
    shell.type_line("concertina-guest load --cpu 3 --for 25s >/dev/null &");
    instance.wait_for_status("3 CPUs under load", SETTLE, |s| s["cpus"]["online"] == 3);
    assert_eq!(shell.online_cpus(), 3);
    instance.wait_for_status("1 CPU after the load", SETTLE, |s| s["cpus"]["online"] == 1);
    assert_eq!(shell.online_cpus(), 1);
    let causes: Vec<String> = instance
        .events()
        .iter()
        .filter(|e| e["event"] == "resized" && e["outcome"] == "applied")
        .map(|e| e["cause"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert!(causes.iter().any(|c| c.contains("cpu > 75%")), "{causes:?}");
    assert!(causes.iter().any(|c| c.contains("cpu < 20%")), "{causes:?}");
}

#[test]
fn memory_follows_the_load_up_and_down() {
    let (instance, mut shell) = Launch::new("tide")
        .memory("256M..1G")
        .scale("memory > 70% for 1s: +256M, cooldown 1s")
        .scale("memory < 30% for 3s: -256M, cooldown 1s")
        .scale("set shrink_window 3s")
        .boot();
    shell.type_line("concertina-guest load --memory 100M..500M/10s,500M:10s >/dev/null &");
    instance.wait_for_status("768 MiB under load", SETTLE, |s| {
        s["memory"]["plugged"].as_u64() >= Some(768 * MIB)
    });
    let status = instance.wait_for_status("256 MiB after the load", SETTLE, |s| {
        s["memory"]["plugged"] == 256 * MIB
    });
    assert_eq!(status["memory"]["balloon"], 0, "{status:#}");
    assert!(!shell.run("dmesg").contains("Out of memory: Killed"));
}

#[test]
fn the_extra_vcpu_is_there_one_and_a_half_seconds_after_its_second() {
    let _alone = alone();
    let (instance, mut shell) = Launch::new("prompt")
        .cpus("1..2")
        .scale("cpu > 75% for 1s: +1 cpu")
        .boot();
    // The guest is idle for a while, so that the step is a step.
    std::thread::sleep(Duration::from_secs(3));
    shell.type_line("concertina-guest load --cpu 1 --for 15s >/dev/null &");
    let step = Instant::now();
    until("the extra vCPU", STEP_LIMIT, || {
        (instance.vm().vcpus.online == 2).then_some(())
    });
    let took = step.elapsed();
    // Half a second more for the guest's shell to start the load.
    assert!(took < Duration::from_millis(3000), "Took {took:?}");
}

/// Bytes that a guest's loop of direct reads moved in a while, a second.
fn read_speed(instance: &Instance, over: Duration) -> f64 {
    let read = || {
        let bytes = instance.vm().disks[0].read_bytes;
        (Instant::now(), bytes)
    };
    let (began, before) = read();
    std::thread::sleep(over);
    let (ended, after) = read();
    (after - before) as f64 / (ended - began).as_secs_f64()
}

#[test]
fn a_disks_limit_follows_the_load_up_and_down_and_outlives_a_reboot() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("data.img");
    std::fs::File::create(&image)
        .and_then(|file| file.set_len(256 * MIB))
        .expect("an image");
    let (instance, mut shell) = Launch::new("flow")
        .arguments(&["--disk", &image.display().to_string()])
        .arguments(&["--disk-rate", "1M..4M"])
        .scale("disk > 80% for 2s: +1 disk.mbps, cooldown 1s")
        .scale("disk < 20% for 3s: -50%, cooldown 1s")
        .scale("set shrink_window 3s")
        .boot();
    let status = instance.status();
    assert_eq!(status["io"]["disk_rate"]["max"]["bytes_per_s"], 4 * MIB);
    assert_eq!(status["io"]["disks"][0]["rate"]["bytes_per_s"], MIB);
    shell.type_line(
        "(while [ ! -e /tmp/enough ]; do dd if=/dev/vda of=/dev/null bs=64k count=2048 iflag=direct \
         2>/dev/null; done) &",
    );
    let low = read_speed(&instance, Duration::from_secs(1));
    assert!(low < 1.6 * MIB as f64, "{low} bytes/s at 1 MiB/s");
    instance.wait_for_status("the upper bound under load", SETTLE, |s| {
        s["io"]["disks"][0]["rate"]["bytes_per_s"] == 4 * MIB
    });
    let high = read_speed(&instance, Duration::from_secs(3));
    assert!(high > 2.5 * MIB as f64, "{high} bytes/s at 4 MiB/s");
    shell.run("touch /tmp/enough");
    instance.wait_for_status("the lower bound when idle", SETTLE, |s| {
        s["io"]["disk_rate"]["target"]["bytes_per_s"] == MIB
            && s["io"]["disks"][0]["rate"]["bytes_per_s"] == MIB
    });
    let rules: Vec<_> = instance.status()["thresholds"].as_array().unwrap().clone();
    assert!(
        rules.iter().all(|rule| rule["last_value"].is_number()),
        "{rules:#?}"
    );

    // By hand inside the bounds, and kept for the guest that starts again.
    let refused = instance.resize(&["--disk-rate", "8M"]);
    assert_eq!(refused["outcome"], "refused", "{refused:#}");
    let reason = refused["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("1M to 4M"), "{reason}");
    instance.resize_applied(&["--disk-rate", "3M"]);
    shell.type_line("reboot");
    instance.wait_for_event("a reboot", SETTLE, |event| event["event"] == "rebooted");
    let status = instance.wait_for_status("a second life", SETTLE, |s| {
        s["state"] == "running" && s["io"]["disks"][0]["path"].is_string()
    });
    assert_eq!(
        status["io"]["disks"][0]["rate"]["bytes_per_s"],
        3 * MIB,
        "{status:#}"
    );
    let resized = instance.applied_resizes();
    let caused = |word: &str| caused_by(&resized, word);
    // A guest that stalls under its load may have cost a step down and up again.
    assert!(caused("disk > 80%") >= 3, "{resized:#?}");
    assert!(caused("disk < 20%") >= 2, "{resized:#?}");
    assert_eq!(caused("manual"), 1, "{resized:#?}");
    assert!(
        resized[0]["before"]["disk_rate"]["rate"]["bytes_per_s"] == MIB,
        "{resized:#?}"
    );
}

#[test]
fn a_policy_file_says_the_same_as_rules() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policy.toml");
    std::fs::write(
        &file,
        "[bounds]\ncpus = { min = 1, max = 2 }\nmemory = { min = \"256M\", max = \"512M\" }\n\n\
         [[threshold]]\nmetric = \"cpu\"\nabove = \"75%\"\nfor = \"2s\"\nadd = { cpus = 1 }\n\
         cooldown = \"10s\"\n",
    )
    .unwrap();
    let path = file.display().to_string();
    let (instance, mut shell) = Launch::new("filed")
        .cpus("1..2")
        .memory("256M..512M")
        .arguments(&["--policy", &path])
        .boot();
    let status = instance.status();
    assert_eq!(status["cpus"]["max"], 2.0, "{status:#}");
    assert_eq!(status["memory"]["max"], 512 * MIB, "{status:#}");
    let thresholds = status["thresholds"].as_array().expect("thresholds");
    assert_eq!(thresholds.len(), 1, "{status:#}");
    assert!(thresholds[0]["rule"].is_string() && thresholds[0]["state"].is_string());
    shell.type_line("concertina-guest load --cpu 2 --for 15s >/dev/null &");
    instance.wait_for_status("2 CPUs", SETTLE, |s| s["cpus"]["online"] == 2);
}

#[test]
fn a_manual_resize_wins_over_thresholds() {
    let (instance, mut shell) = Launch::new("manual")
        .cpus("1..2")
        .scale("cpu < 50% for 1s: -1 cpu, cooldown 1s")
        .scale("set shrink_window 1s")
        .boot();
    instance.resize_applied(&["--cpus", "2"]);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(instance.status()["cpus"]["online"], 2);
    assert_eq!(shell.online_cpus(), 2);
}

#[test]
fn wrong_rules_are_refused_with_a_sentence_and_status_2() {
    require_host();
    let files = guest(crate::support::Series::V6_12);
    let kernel = files.bzimage.display().to_string();
    let initrd = files.initramfs.display().to_string();
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().display().to_string();
    let cases: [(&[&str], &str); 9] = [
        (&["--scale", "cpus_used > 75% for 5s: +1 cpu"], "cpus_used"),
        (&["--scale", "cpu > 175% for 5s: +1 cpu"], "175"),
        (&["--scale", "cpu > 75%: add one"], "add one"),
        (
            &[
                "--scale",
                "cpu > 30% for 1s: +1 cpu",
                "--scale",
                "cpu < 60% for 1s: -1 cpu",
            ],
            "60%",
        ),
        (&["--scale", "memory > 80% for 1s: +512M"], "memory"),
        (&["--cpus", "4..2"], "4"),
        (&["--scale", "net > 80%: +50 net.mbps"], "--net"),
        (&["--disk-rate", "10M..100M"], "add --disk"),
        (&["--net-rate", "10M..max"], "each end is a limit"),
    ];
    for (arguments, named) in cases {
        let mut line = vec![
            "run",
            "--name",
            "wrong",
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--memory",
            "256M",
            "--state-dir",
            &state_dir,
            "--detach",
        ];
        if !arguments.contains(&"--cpus") {
            line.extend(["--cpus", "1..4"]);
        }
        line.extend(arguments);
        let finished = concertina(&line);
        assert_eq!(finished.status, 2, "{finished:#?}");
        assert!(finished.stderr.contains(named), "{finished:#?}");
        assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
    }
}
