//! What an agent cannot choose: the host kills a VM for want of memory, a guest floods, the wall clock
//! jumps. Each is seen for what it is, and nobody else notices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::{
    Agent, BOOT_LIMIT, Instance, Launch, MIB, STEP_LIMIT, Shell, alone, proc, until,
};

fn small(name: &str) -> Launch {
    Launch::new(name).cpus("1..2").memory("256M..512M")
}

// --- the host's want of memory -------------------------------------------------------------------

/// The cgroup of a whole instance.
#[track_caller]
fn group_of(instance: &Instance) -> PathBuf {
    let group = proc::cgroup_of(instance.vmm_pid(), instance.vcpu_tids()[0]);
    let parent = group
        .parent()
        .expect("the vCPUs' group is in the instance's");
    parent.to_owned()
}

/// Lets the kernel's memory controller kill what is in the group; gives the moment at which the process
/// was gone.
#[track_caller]
fn starve(group: &Path, vmm: i32) -> Instant {
    fs::write(group.join("memory.max"), "16M").expect("memory.max can be written");
    let begun = Instant::now();
    while proc::exists(vmm) {
        assert!(begun.elapsed() < STEP_LIMIT, "the kernel does not kill it");
        std::thread::sleep(Duration::from_millis(2));
    }
    Instant::now()
}

/// Waits for an event in the instance's file itself, since a command takes its time to start.
#[track_caller]
fn told_within(instance: &Instance, since: Instant, limit: Duration, kind: &str) -> Value {
    let file = instance.file("events.jsonl");
    loop {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let events = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        if let Some(event) = events.into_iter().find(|e: &Value| e["event"] == kind) {
            return event;
        }
        assert!(
            since.elapsed() < limit,
            "no event '{kind}' within {limit:?}:\n{text}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_vm_that_the_host_kills_for_want_of_memory_is_explained_cleaned_up_and_started_again() {
    let agent = Agent::start("");
    let back = agent.launch(small("oom-back").scale("set restart on-failure"));
    let gone = agent.launch(small("oom-gone"));
    drop((back.shell(), gone.shell()));

    // One that is not to come back.
    let (group, vmm) = (group_of(&gone), gone.vmm_pid());
    let killed = starve(&group, vmm);
    let event = told_within(&gone, killed, Duration::from_secs(1), "ended");
    assert_eq!(event["exit_reason"], "oom_kill", "{event:#}");
    let reason = event["reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("oom_kill"),
        "the evidence is named: {reason}"
    );
    until("the agent is done with it", STEP_LIMIT, || {
        agent.host().filter(|host| host["instances"] == 1)
    });
    assert!(!group.exists(), "its cgroup is left");
    for left in [
        "vmm.sock",
        "vsock.sock",
        "console.sock",
        "counters",
        "launch.json",
    ] {
        assert!(!gone.file(left).exists(), "{left} is left");
    }
    let listed = agent.command(&["ps", "--all"]).expect_success();
    let line = listed.stdout.lines().find(|line| line.contains("oom-gone"));
    assert!(
        line.is_some_and(|line| line.contains("failed")),
        "{listed:#?}"
    );

    // One that is.
    let (group, vmm) = (group_of(&back), back.vmm_pid());
    let killed = starve(&group, vmm);
    let event = told_within(&back, killed, Duration::from_secs(1), "restarting");
    assert_eq!(event["exit_reason"], "oom_kill", "{event:#}");
    back.wait_for_status("another vmm", BOOT_LIMIT, |status| {
        status["restarts"] == 1
            && status["state"] == "running"
            && status["vmm_pid"]
                .as_i64()
                .is_some_and(|pid| pid != i64::from(vmm))
    });
    drop(back.shell());
    let ceiling: u64 = proc::cgroup_file(&group, "memory.max")
        .parse()
        .expect("a number");
    assert!(
        ceiling >= 256 * MIB,
        "its ceiling is its size's again: {ceiling}"
    );
    back.resize_applied(&["--memory", "512M"]);
}

// --- a guest that floods -------------------------------------------------------------------------

/// Everything that root of a guest can do to the host by its sockets, as fast as it can.
fn flood(shell: &mut Shell) {
    // Whole reports, all urgent, on connections that stay.
    for _ in 0..2 {
        shell.type_line(
            r#"yes '{"report":{"urgent":true,"load1":1,"custom":{"q":1}}}' | concertina-guest vsock connect 1030 >/dev/null 2>&1 &"#,
        );
    }
    // Connections that come and go.
    shell.type_line(
        "while :; do echo x | concertina-guest vsock connect 1030; done >/dev/null 2>&1 &",
    );
    // Numbers, by the guest's own agent.
    shell.type_line("while :; do concertina-guest metric q 1; done >/dev/null 2>&1 &");
}

#[test]
fn a_guest_that_floods_the_channel_does_not_make_another_ones_resize_wait() {
    let agent = Agent::start("");
    let (loud, quiet) = (agent.launch(small("loud")), agent.launch(small("quiet")));
    let (mut shell, _other) = (loud.shell(), quiet.shell());
    let resizes = || {
        let begun = Instant::now();
        for size in ["512M", "256M"] {
            quiet.resize_applied(&["--memory", size]);
        }
        begun.elapsed()
    };
    let calm = resizes();

    flood(&mut shell);
    let sockets = || loud.vm().vsock.expect("it has a socket device");
    let first = sockets();
    until("the flood has begun", STEP_LIMIT, || {
        let now = sockets();
        (now.opened_by_guest > first.opened_by_guest + 2
            && now.bytes_from_guest > first.bytes_from_guest + 16_384)
            .then_some(())
    });
    let pid = quiet.status()["agent_pid"].as_i64().expect("a process id");
    let pid = i32::try_from(pid).expect("a process id");
    let used = proc::cpus_used_by_all(pid, Duration::from_secs(4));
    assert!(
        used > 0.0 && used < 0.5,
        "the flood costs the agent {used} processors"
    );
    let flooded = resizes();
    // The flooding guest has a processor of its own; what it may cost is a share of the host's.
    assert!(
        flooded < 3 * calm + Duration::from_secs(2),
        "{flooded:?} under the flood, {calm:?} without"
    );
    let asked = Instant::now();
    assert_eq!(agent.host().unwrap()["instances"], 2);
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );

    let status = loud.status();
    assert_eq!(status["state"], "running", "{status:#}");
    assert_eq!(
        status["cpus"]["online"], 1,
        "a flood moves nothing: {status:#}"
    );
    let after = sockets();
    assert!(
        after.bytes_from_guest > first.bytes_from_guest + 65_536,
        "it goes on"
    );
    loud.stop(&["--force"]).expect_success();
}

// --- the wall clock ------------------------------------------------------------------------------

/// The host's wall clock, which is right again when this is dropped.
struct WallClock {
    wall: Duration,
    held: Instant,
}

impl WallClock {
    fn hold() -> Self {
        Self {
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("a time after 1970"),
            held: Instant::now(),
        }
    }

    /// Sets it to so many seconds before or after the right time.
    fn be_wrong_by(&self, seconds: i64) {
        let right = (self.wall + self.held.elapsed()).as_secs();
        let wrong = right
            .checked_add_signed(seconds)
            .expect("a time after 1970");
        let set = Command::new("date")
            .args(["-s", &format!("@{wrong}")])
            .output();
        let set = set.expect("date can be started");
        assert!(set.status.success(), "the clock can be set: {set:?}");
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        self.be_wrong_by(0);
    }
}

#[test]
fn a_wall_clock_that_jumps_changes_neither_a_cooldown_nor_the_bill() {
    const COOLDOWN: Duration = Duration::from_secs(10);
    let _alone = alone();
    let mut agent = Agent::start("");
    let clock = WallClock::hold();
    let before = Instant::now();
    let web = agent.launch(
        Launch::new("jumpy")
            .cpus("1..4")
            .memory("256M..512M")
            .scale("custom.q > 5 for 1s: +1 cpu, cooldown 10s"),
    );
    let launched = Instant::now();
    let mut shell = web.shell();
    shell.run("concertina-guest metric q 9");
    let grown_to = |cpus: u64| {
        web.wait_for_status("one more CPU", STEP_LIMIT, |s| s["cpus"]["online"] == cpus);
        Instant::now()
    };
    // The commit, from which a cooldown counts, is a moment before it is seen.
    let seen_late = Duration::from_secs(3);
    let least = COOLDOWN - seen_late;

    let second = grown_to(2);
    clock.be_wrong_by(3600);
    let third = grown_to(3);
    let passed = third - second;
    assert!(
        passed >= least,
        "an hour that did not pass ended the cooldown after {passed:?}"
    );
    // Backwards, and under an agent that has to read when the last change was.
    clock.be_wrong_by(-7200);
    agent.kill();
    agent.start_again();
    let fourth = grown_to(4);
    let passed = fourth - third;
    assert!(
        passed >= least,
        "the cooldown did not outlive the agent: {passed:?}"
    );

    // The bill has the time that has passed, and all of its records hang together.
    web.resize_applied(&["--memory", "512M"]);
    let bill = web.command("usage", &["--json"]).expect_success().json();
    let row = &bill[0];
    let held = row["seconds"].as_f64().expect("seconds");
    let (least, most) = (
        launched.elapsed().as_secs_f64(),
        before.elapsed().as_secs_f64(),
    );
    assert!(
        held > least - 10.0 && held <= most,
        "{held} s for {least} to {most} s: {bill:#}"
    );
    let cpus = row["vcpu_seconds"].as_f64().expect("vcpu_seconds") / held;
    assert!(
        (1.0..=4.0).contains(&cpus),
        "{cpus} CPUs on the average: {bill:#}"
    );
    web.command("usage", &["--verify"]).expect_success();
}
