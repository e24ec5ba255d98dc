//! Instances are listed, watched and stopped; when a process dies, nothing of it stays behind.

use std::time::Duration;

use crate::support::{Launch, MIB, STEP_LIMIT, concertina, proc, require_host, until};

#[test]
fn status_has_the_fields_of_the_contract() {
    let (instance, _shell) = Launch::new("fields")
        .cpus("1..2")
        .memory("256M..512M")
        .scale("cpu > 75% for 5s: +1 cpu")
        .boot();
    let status = instance.wait_for_status("the guest's memory", STEP_LIMIT, |s| {
        s["memory"]["guest_total"].is_u64()
    });
    assert_eq!(status["name"], "fields");
    assert!(status["uptime_ms"].as_u64().unwrap() > 0);
    for field in ["min", "max", "target", "online"] {
        assert!(
            status["cpus"][field].is_number(),
            "cpus.{field}: {status:#}"
        );
    }
    let quota = &status["cpus"]["quota"];
    assert!(quota.is_number() || quota == "max", "{status:#}");
    for field in [
        "min",
        "max",
        "target",
        "plugged",
        "balloon",
        "guest_total",
        "guest_available",
        "host_resident",
    ] {
        assert!(
            status["memory"][field].is_u64(),
            "memory.{field}: {status:#}"
        );
    }
    assert!(status.get("last_resize").is_some(), "{status:#}");
    let threshold = &status["thresholds"][0];
    assert!(
        threshold["rule"].as_str().unwrap().contains("75%"),
        "{status:#}"
    );
    assert!(threshold["state"].is_string(), "{status:#}");
    assert!(threshold.get("last_value").is_some(), "{status:#}");
    instance.resize_applied(&["--memory", "512M"]);
    let status = instance.status();
    assert_eq!(status["last_resize"]["outcome"], "applied", "{status:#}");
    assert_eq!(
        status["last_resize"]["got"]["memory"],
        512 * MIB,
        "{status:#}"
    );
}

#[test]
fn ps_lists_what_runs() {
    let (instance, _shell) = Launch::new("listed").boot();
    let state = instance.state_dir().display().to_string();
    let finished = concertina(&["ps", "--state-dir", &state]).expect_success();
    assert!(finished.stdout.contains("listed"), "{finished:#?}");
    assert!(finished.stdout.contains("running"), "{finished:#?}");
}

#[test]
fn stop_lets_the_guest_power_off_and_leaves_nothing_running() {
    let (instance, shell) = Launch::new("polite").boot();
    drop(shell);
    let group = proc::cgroup_of(instance.vmm_pid(), instance.vcpu_tids()[0]);
    instance.stop(&[]).expect_success();
    until("the cgroup is gone", STEP_LIMIT, || {
        (!group.exists()).then_some(())
    });
    for socket in ["agent.sock", "vmm.sock", "console.sock"] {
        assert!(!instance.file(socket).exists(), "{socket} is left");
    }
    // The guest itself went down: its kernel says so last.
    let log = instance.console_log();
    assert!(log.contains("reboot: Power down"), "{log}");
    let ended = instance.events();
    assert!(
        ended
            .iter()
            .any(|e| e["event"] == "ended" && e["status"] == 0),
        "{ended:?}"
    );
}

#[test]
fn a_guest_that_is_asked_to_stop_while_it_boots_powers_off_when_it_can() {
    let instance = Launch::new("hasty").start();
    instance.stop(&[]).expect_success();
    let log = instance.console_log();
    assert!(log.contains("reboot: Power down"), "{log}");
    let events = instance.events();
    let ended = events.iter().find(|e| e["event"] == "ended");
    assert!(
        ended.is_some_and(|e| e["reason"].to_string().contains("the guest powered off")),
        "{events:?}"
    );
}

#[test]
fn forced_stop_ends_a_guest_that_does_not_listen() {
    let (instance, mut shell) = Launch::new("deaf").boot();
    shell.type_line("while :; do :; done");
    drop(shell);
    instance.stop(&["--force"]).expect_success();
}

#[test]
fn a_killed_vmm_is_reported_and_cleaned_up() {
    let (instance, shell) = Launch::new("killed").boot();
    drop(shell);
    let pid = instance.vmm_pid();
    let group = proc::cgroup_of(pid, instance.vcpu_tids()[0]);
    kill(pid);
    until("the cgroup is gone", STEP_LIMIT, || {
        (!group.exists()).then_some(())
    });
    let events = until("an 'ended' event", STEP_LIMIT, || {
        Some(instance.events()).filter(|all| all.iter().any(|e| e["event"] == "ended"))
    });
    let ended = events.iter().find(|e| e["event"] == "ended").unwrap();
    assert!(
        ended["reason"]
            .as_str()
            .unwrap()
            .to_lowercase()
            .contains("kill"),
        "{ended:#}"
    );
    // The name is free again.
    let line = Launch::new("killed").line(instance.state_dir());
    let mut line: Vec<&str> = line.iter().map(String::as_str).collect();
    line.push("--detach");
    concertina(&line).expect_success();
}

#[test]
fn a_killed_supervisor_takes_its_vm_along_and_the_next_start_cleans_up() {
    let (instance, shell) = Launch::new("orphan").boot();
    drop(shell);
    let vmm = instance.vmm_pid();
    let status = instance.status();
    let agent = i32::try_from(status["agent_pid"].as_i64().unwrap()).unwrap();
    kill(agent);
    until("the end of the VM", STEP_LIMIT, || {
        (!proc::exists(vmm)).then_some(())
    });
    let line = Launch::new("orphan").line(instance.state_dir());
    let mut line: Vec<&str> = line.iter().map(String::as_str).collect();
    line.push("--detach");
    concertina(&line).expect_success();
    let mut shell = instance.shell();
    assert_eq!(shell.run("echo up"), "up");
}

#[test]
fn a_paused_guest_does_not_run_and_a_resumed_one_does() {
    let (instance, mut shell) = Launch::new("pause").boot();
    shell.type_line("concertina-guest load --cpu 1 --for 30s >/dev/null &");
    std::thread::sleep(Duration::from_secs(1));
    let (pid, tids) = (instance.vmm_pid(), instance.vcpu_tids());
    let put = |action: &str| {
        let path = format!("/v1/vm/{action}");
        let socket = instance.file("vmm.sock");
        let method = concertina_http::Method::Put;
        let answer = concertina_http::client::send::<()>(&socket, method, &path, None, STEP_LIMIT);
        assert_eq!(answer.expect("an answer").status, 204, "{action}");
    };
    put("pause");
    let held = proc::cpus_used(pid, &tids, Duration::from_secs(1));
    assert!(held < 0.01, "A paused guest takes {held} of a processor");
    put("resume");
    let runs = proc::cpus_used(pid, &tids, Duration::from_secs(1));
    assert!(runs > 0.3, "A resumed guest takes {runs} of a processor");
    assert_eq!(shell.run("echo back"), "back");
}

#[test]
fn events_tell_the_story_in_order() {
    let (instance, _shell) = Launch::new("story").cpus("1..2").boot();
    instance.resize_applied(&["--cpus", "2"]);
    let events = instance.events();
    assert_eq!(events[0]["event"], "started", "{events:?}");
    let resized = events
        .iter()
        .find(|e| e["event"] == "resized")
        .expect("a resize");
    assert_eq!(resized["cause"], "manual", "{resized:#}");
    assert_eq!(resized["outcome"], "applied", "{resized:#}");
    assert!(resized["timeline_ms"].is_object(), "{resized:#}");
    let times: Vec<u64> = events
        .iter()
        .filter_map(|e| e["uptime_ms"].as_u64())
        .collect();
    assert_eq!(times.len(), events.len());
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn doctor_finds_this_host_fit() {
    require_host();
    let finished = concertina(&["doctor", "--json"]);
    assert_eq!(finished.status, 0, "{finished:#?}");
    assert!(finished.json().is_object() || finished.json().is_array());
}

fn kill(pid: i32) {
    assert!(proc::signal(pid, libc::SIGKILL), "kill {pid}");
}
