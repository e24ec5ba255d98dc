//! The channel to the program in the guest: what it says is used, and never believed too much.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Instance, Launch, MIB, STEP_LIMIT, Series, Shell, until};

const SETTLE: Duration = Duration::from_secs(45);

/// Waits until the guest's program has said something that fits.
fn guest_says(instance: &Instance, what: &str, says: impl Fn(&Value) -> bool) -> Value {
    let status = instance.wait_for_status(what, SETTLE, |s| says(&s["guest"]));
    status["guest"].clone()
}

fn write_hook(shell: &mut Shell, moment: &str, script: &str) {
    let folder = format!("/etc/concertina/hooks/{moment}.d");
    shell.run(&format!("mkdir -p {folder}"));
    shell.run(&format!(
        "printf '#!/bin/sh\\n%s\\n' '{script}' >{folder}/10-test; chmod 755 {folder}/10-test"
    ));
}

#[test]
fn rules_follow_the_guests_own_numbers_and_hooks_have_a_say() {
    let (instance, mut shell) = Launch::new("channel")
        .cpus("1..2")
        .memory("256M..512M")
        .scale("custom.queue > 5 for 1s: +1 cpu")
        .boot();
    let guest = guest_says(&instance, "a report", |g| g["load1"].is_f64());
    assert_eq!(guest["memory_total"], shell.meminfo("MemTotal"));
    assert_eq!(
        (&guest["cpus_online"], &guest["cpus_present"]),
        (&1.into(), &1.into())
    );
    assert_eq!(guest["bad_lines"], 0, "{guest:#}");

    // A number of a program in the guest makes a rule fire; the growth hook hears of it.
    write_hook(
        &mut shell,
        "after-grow",
        "echo $CONCERTINA_AXIS $CONCERTINA_FROM $CONCERTINA_TO >>/tmp/grown",
    );
    shell.run("concertina-guest metric queue 9");
    instance.wait_for_status("2 CPUs", SETTLE, |s| s["cpus"]["online"] == 2);
    guest_says(&instance, "2 CPUs brought online", |g| {
        g["cpus_online"] == 2
    });
    until("the growth hook", STEP_LIMIT, || {
        (shell.try_run("cat /tmp/grown", STEP_LIMIT).1 == "cpu 1 2").then_some(())
    });
    shell.run("concertina-guest metric queue 0");

    // A hook refuses a shrink; nothing has changed on either side.
    write_hook(&mut shell, "before-shrink", "echo backup runs; exit 1");
    guest_says(&instance, "it has a hook", |g| g["shrink_hooks"] == true);
    instance.resize_applied(&["--memory", "512M"]);
    for size in [["--memory", "256M"], ["--cpus", "1"]] {
        let report = instance.resize(&size);
        assert_eq!(report["outcome"], "refused", "{report:#}");
        let reason = report["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("backup runs"), "{report:#}");
    }
    assert_eq!(instance.status()["memory"]["plugged"], 512 * MIB);
    assert_eq!(shell.online_cpus(), 2);
    write_hook(
        &mut shell,
        "before-shrink",
        "echo $CONCERTINA_AXIS $CONCERTINA_FROM $CONCERTINA_TO >>/tmp/shrunk",
    );
    instance.resize_applied(&["--cpus", "1"]);
    assert_eq!(shell.run("cat /tmp/shrunk"), "cpu 2 1");
    assert_eq!(shell.online_cpus(), 1);

    // Two busy programs on one processor: the guest knows that one of them waits, the host does not.
    shell.type_line("concertina-guest load --cpu 3 --for 20s >/dev/null &");
    guest_says(&instance, "pressure in the guest", |g| {
        g["cpu_pressure"].as_f64() > Some(30.0)
    });
}

#[test]
fn a_program_in_the_guest_that_dies_is_started_again_and_speaks_to_the_host() {
    let (instance, mut shell) = Launch::new("phoenix").boot();
    let pid = "ps | awk '/agent --no-onlin[e]/ {print $1}'";
    for _ in 0..2 {
        guest_says(&instance, "a report", |g| {
            g["load1"].is_f64() && g["age_ms"].as_u64() < Some(2500)
        });
        let before = shell.run(pid);
        shell.run(&format!("kill -KILL {before}"));
        let after = until("another process", STEP_LIMIT, || {
            let after = shell.run(pid);
            (!after.is_empty() && after != before).then_some(after)
        });
        assert_eq!(after.lines().count(), 1, "one of them: {after}");
        shell.run("concertina-guest metric back 1");
        guest_says(&instance, "a report of the new one", |g| {
            g["custom"]["back"] == 1.0
        });
        shell.run("concertina-guest metric back 0");
    }
}

#[test]
fn a_guest_that_lies_or_floods_gets_nothing_by_it() {
    let (instance, mut shell) = Launch::new("liar")
        .series(Series::V6_1)
        .cpus("1..3")
        .memory("256M..512M")
        .scale("custom.q < 1 for 1s: -1 cpu")
        .scale("load1 > 50 for 1s: +1 cpu")
        .scale("swap > 1M for 1s: +64M")
        .scale("set manual_hold 0s")
        .boot();
    guest_says(&instance, "a report", |g| g["load1"].is_f64());
    instance.resize_applied(&["--cpus", "2"]);

    // Another program speaks in the place of ours, which is held: it would come back if it ended.
    shell.run("kill -STOP $(ps | awk '/agent --no-onlin[e]/ {print $1}')");
    let lies = [
        r#"{"report":{"load1":1e300,"custom":{"q":-1e300},"pressure":{"cpu":-5,"memory":1e9}}}"#,
        r#"{"report":{"load1":-7,"custom":{"q":null},"memory":{"swap_total":1,"swap_used":9}}}"#,
        r#"{"report":{"load1":1e999,"custom":{"q":"low"}}}"#,
        r#"{"answer":{"id":1,"outcome":"vetoed"},"report":{"custom":{"Q":0,"q q":0}}}"#,
        "rubbish",
    ];
    for (i, lie) in lies.iter().enumerate() {
        let redirect = if i == 0 { ">" } else { ">>" };
        shell.run(&format!("echo '{lie}' {redirect}/tmp/lies"));
    }
    shell.type_line(
        "(for i in 1 2 3 4 5 6; do cat /tmp/lies; sleep 1; done) | concertina-guest vsock connect 1030 >/tmp/heard &",
    );
    guest_says(&instance, "bad lines", |g| {
        g["bad_lines"].as_u64() >= Some(8)
    });
    let status = instance.status();
    assert_eq!(status["cpus"]["online"], 2, "{status:#}");
    assert_eq!(status["memory"]["plugged"], 256 * MIB, "{status:#}");
    for threshold in status["thresholds"].as_array().expect("thresholds") {
        assert_ne!(threshold["state"], "fired", "{status:#}");
    }
    assert!(shell.run("cat /tmp/heard").contains("hello"));

    // What can be true is believed, and the bounds hold.
    shell.type_line(
        r#"(for i in 1 2 3 4 5 6 7 8; do echo '{"report":{"load1":999999}}'; sleep 1; done) | concertina-guest vsock connect 1030 >/dev/null &"#,
    );
    instance.wait_for_status("the upper bound", SETTLE, |s| s["cpus"]["online"] == 3);

    // A flood costs the host next to nothing.
    let agent = instance.status()["agent_pid"]
        .as_i64()
        .expect("a process id");
    shell.type_line(
        "yes '{\"report\":{\"load1\":1}}' | concertina-guest vsock connect 1030 >/dev/null &",
    );
    std::thread::sleep(Duration::from_secs(1));
    let before = cpu_ticks(agent);
    std::thread::sleep(Duration::from_secs(4));
    let used = cpu_ticks(agent) - before;
    assert!(used < 120, "{used} hundredths of a second in 4 s");
    assert_eq!(instance.status()["cpus"]["online"], 3);
    assert_eq!(instance.status()["state"], "running");
}

/// CPU time that a process has used, in ticks of a hundredth of a second.
fn cpu_ticks(pid: i64) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let field = |at: usize| fields[at].parse::<u64>().expect("a number");
    field(11) + field(12)
}
