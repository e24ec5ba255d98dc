//! The agent of a host: the commands talk to it, and it shares out what the host has.

use std::time::{Duration, Instant};

use concertina_api::counters::Counters;

use crate::support::{Agent, BOOT_LIMIT, Launch, MIB, STEP_LIMIT, proc, until};

/// A host that gives away this much memory and eight CPUs, exactly.
fn exactly(memory: &str) -> String {
    format!(
        "overhead = \"0M\"\n[capacity]\ncpus = 8\nmemory = \"{memory}\"\n[overcommit]\ncpus = 1\n"
    )
}

fn small(name: &str) -> Launch {
    Launch::new(name).cpus("1..2").memory("256M..512M")
}

#[test]
fn the_commands_talk_to_the_agent_and_a_clean_stop_leaves_the_vms() {
    let mut agent = Agent::start("");
    let web = agent.launch(small("agent-web"));
    let mut shell = web.shell();
    let agent_pid = agent.host().unwrap()["agent_pid"].clone();
    let status = web.status();
    assert_eq!(status["agent_pid"], agent_pid, "{status:#}");
    assert_eq!(status["policy_version"], 1, "{status:#}");
    let listed = agent.command(&["ps"]).expect_success();
    assert!(
        listed.stdout.contains("agent-web") && listed.stdout.contains("running"),
        "{listed:#?}"
    );
    let taken = agent.command(&[
        "run",
        "--name",
        "agent-web",
        "--cpus",
        "1",
        "--memory",
        "256M",
    ]);
    assert_eq!(taken.status, 1, "{taken:#?}");
    assert!(taken.stderr.contains("'agent-web' is in use"), "{taken:#?}");
    web.resize_applied(&["--memory", "512M", "--cpus", "2"]);

    let vmm = web.vmm_pid();
    assert_eq!(agent.stop(), 0);
    assert!(proc::exists(vmm));
    // Without an agent it runs on, and the commands say how it stands.
    shell.run("echo alive");
    let listed = agent.command(&["ps"]).expect_success();
    assert!(listed.stdout.contains("running"), "{listed:#?}");
    let refused = web.command("resize", &["--memory", "256M"]);
    assert!(refused.stderr.contains("concertina agent"), "{refused:#?}");
    let taken = agent.command(&[
        "run",
        "--name",
        "agent-web",
        "--cpus",
        "1",
        "--memory",
        "256M",
    ]);
    assert!(taken.stderr.contains("concertina agent"), "{taken:#?}");
    assert!(proc::exists(vmm));

    agent.start_again();
    let status = web.status();
    assert_eq!(status["vmm_pid"], vmm, "{status:#}");
    assert_eq!(status["memory"]["target"], 512 * MIB, "{status:#}");
    assert_eq!(status["cpus"]["online"], 2, "{status:#}");
    web.resize_applied(&["--memory", "256M"]);
    let kinds: Vec<_> = web.events().iter().map(|e| e["event"].clone()).collect();
    assert!(kinds.iter().any(|kind| kind == "adopted"), "{kinds:?}");
    drop(shell);
    web.stop(&[]).expect_success();
    assert_eq!(agent.host().unwrap()["memory"]["held"], 0);
}

#[test]
fn what_a_vm_publishes_is_what_its_guest_has_before_and_after_a_resize() {
    let mut agent = Agent::start("");
    let web = agent.launch(small("published"));
    let mut shell = web.shell();
    let record = || Counters::decode(&std::fs::read(web.file("counters")).ok()?).ok();
    let until_total = |what: &str, total: u64| {
        until(what, STEP_LIMIT, || {
            record().filter(|record| record.statistic("total_memory") == Some(total))
        })
    };
    let first = until_total("the guest's memory", shell.meminfo("MemTotal"));
    // Again and again, also when nobody reads it.
    let mut last_ms = first.published_ms;
    for agent_lives in [true, false] {
        if !agent_lives {
            agent.kill();
        }
        let next = until("more records", STEP_LIMIT, || {
            record().filter(|record| record.published_ms >= last_ms + 2000)
        });
        last_ms = next.published_ms;
    }
    agent.start_again();
    web.resize_applied(&["--memory", "512M"]);
    let later = until_total("more memory", shell.meminfo("MemTotal"));
    assert!(later.statistics_ms > first.statistics_ms);
    // The rules see the same.
    let seen = web.wait_for_status("what the rules look at", STEP_LIMIT, |status| {
        status["observed"]["memory"].is_number()
    });
    let used = seen["observed"]["memory"].as_f64().expect("a number");
    let total = later.statistic("total_memory").expect("a total") as f64;
    let available = later
        .statistic("available_memory")
        .expect("what is available") as f64;
    let published = (total - available) / total * 100.0;
    assert!(
        (used - published).abs() < 10.0,
        "{used} % and {published} %"
    );
}

#[test]
fn two_race_for_the_last_256_mib() {
    let agent = Agent::start(&exactly("768M"));
    let (a, b) = (agent.launch(small("race-a")), agent.launch(small("race-b")));
    let (_shell_a, _shell_b) = (a.shell(), b.shell());
    let (of_a, of_b) = std::thread::scope(|scope| {
        let of_a = scope.spawn(|| a.resize(&["--memory", "512M"]));
        let of_b = scope.spawn(|| b.resize(&["--memory", "512M"]));
        (of_a.join().unwrap(), of_b.join().unwrap())
    });
    let (winner, loser, told) = match (&of_a["outcome"], &of_b["outcome"]) {
        (x, y) if x == "applied" && y == "refused" => (&a, &b, &of_b),
        (x, y) if x == "refused" && y == "applied" => (&b, &a, &of_a),
        _ => panic!("{of_a:#} {of_b:#}"),
    };
    let reason = told["reason"].as_str().unwrap();
    for word in ["host_short_of_memory", "256M", "768M"] {
        assert!(reason.contains(word), "{reason}");
    }
    assert_eq!(loser.status()["waiting"]["memory"], 512 * MIB);
    // The winner has no need of all of it, and its host may ask it to give some back already: the loser is
    // looked at first, so that what moves between the two looks only makes the sum smaller.
    let (of_loser, of_winner) = (loser.vm().memory.plugged, winner.vm().memory.plugged);
    assert!(of_loser.get() < 512 * MIB, "{of_loser}");
    assert!(
        of_loser.get() + of_winner.get() <= 768 * MIB,
        "{of_loser} {of_winner}"
    );
    winner.resize_applied(&["--memory", "256M"]);
    loser.wait_for_status("what it waited for", STEP_LIMIT, |status| {
        status["memory"]["plugged"] == 512 * MIB && status["waiting"].is_null()
    });
    loser.wait_for_event("an event that says so", STEP_LIMIT, |event| {
        event["note"]
            .as_str()
            .is_some_and(|note| note.contains("waited"))
    });
    // A third one has no room for its lower bound.
    let launch = Launch::new("race-c");
    let line = launch.line(agent.state_dir());
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    let refused = crate::support::concertina(&line);
    assert_eq!(refused.status, 1, "{refused:#?}");
    assert!(
        refused.stderr.contains("host_short_of_memory"),
        "{refused:#?}"
    );
}

#[test]
fn a_vmm_that_is_killed_and_a_guest_that_panics_are_explained_and_started_again() {
    let agent = Agent::start("");
    let web = agent.launch(small("agent-killed").scale("set restart on-failure"));
    let shell = web.shell();
    let vmm = web.vmm_pid();
    drop(shell);
    kill(libc::SIGKILL, vmm);
    let killed = Instant::now();
    let event = web.wait_for_event("the restart is told", STEP_LIMIT, |event| {
        event["event"] == "restarting"
    });
    assert!(
        killed.elapsed() < Duration::from_secs(5),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(event["exit_reason"], "killed", "{event:#}");
    let again = |status: &serde_json::Value| {
        status["vmm_pid"]
            .as_i64()
            .is_some_and(|pid| pid != i64::from(vmm))
            && status["state"] == "running"
    };
    web.wait_for_status("another vmm", BOOT_LIMIT, again);

    let mut shell = web.shell();
    shell.type_line("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger");
    let event = web.wait_for_event("the panic is told", STEP_LIMIT, |event| {
        event["event"] == "restarting" && event["exit_reason"] == "guest_panic"
    });
    let reason = event["reason"].as_str().unwrap();
    assert!(reason.contains("Kernel panic - not syncing"), "{reason}");
    drop(shell);
    web.wait_for_status("it starts again", BOOT_LIMIT, |status| {
        status["restarts"] == 2 && status["state"] == "running"
    });
}

#[test]
fn a_vmm_that_hangs_holds_nobody_else_up() {
    let agent = Agent::start("");
    let (hung, well) = (agent.launch(small("hung")), agent.launch(small("well")));
    let (_shell_a, _shell_b) = (hung.shell(), well.shell());
    let vmm = hung.vmm_pid();
    kill(libc::SIGSTOP, vmm);
    let asked = Instant::now();
    well.resize_applied(&["--memory", "512M"]);
    assert_eq!(agent.host().unwrap()["instances"], 2);
    agent.command(&["ps"]).expect_success();
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "{:?}",
        asked.elapsed()
    );
    kill(libc::SIGCONT, vmm);
    until("it answers again", STEP_LIMIT, || {
        (hung.resize(&["--memory", "512M"])["outcome"] == "applied").then_some(())
    });
}

fn kill(signal: i32, pid: i32) {
    assert!(proc::signal(pid, signal), "kill -{signal} {pid}");
}
