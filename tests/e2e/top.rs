//! Looking at an instance while it is resized: the screen, the lines, and the reasons.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::{BOOT_LIMIT, Launch, MIB, STEP_LIMIT, concertina, until};

#[test]
fn a_resize_is_seen_on_the_screen_in_lines_and_with_its_reason() {
    let instance = Launch::new("seen")
        .cpus("1..2")
        .memory("256M..512M")
        .scale("cpu > 95% for 60s: +1 cpu")
        .start();
    let state = instance.state_dir().display().to_string();
    let screen = || {
        let finished = concertina(&["top", "--once", "--state-dir", &state]).expect_success();
        let line = finished.stdout.lines().find(|line| line.contains("seen  "));
        line.unwrap_or_else(|| panic!("{finished:#?}")).to_owned()
    };
    let why = || {
        instance
            .command("status", &["--why"])
            .expect_success()
            .stdout
    };

    // What is measured is there without a rule that looks at it; the memory is told by a guest that is up.
    let status = instance.wait_for_status("what is measured", 2 * BOOT_LIMIT, |status| {
        status["observed"]["cpu"].is_number() && status["observed"]["memory"].is_number()
    });
    assert_eq!(status["thresholds"][0]["window"]["need"], 60, "{status:#}");
    assert!(
        screen().contains("1/2") && screen().contains("256M/512M"),
        "{}",
        screen()
    );
    let before = why();
    assert!(before.contains("CPU: 1 CPU, as at launch"), "{before}");
    assert!(
        before.contains("cpu over 95% for 1m makes it 2 CPUs"),
        "{before}"
    );

    let mut watch = Command::new("concertina")
        .args([
            "status",
            "seen",
            "--watch",
            "--interval",
            "200ms",
            "--state-dir",
            &state,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("concertina starts");
    let lines = BufReader::new(watch.stdout.take().expect("its output is a pipe")).lines();
    let mut lines = lines.map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    assert!(
        first.contains("cpus 1 quota") && first.contains("memory 256M target 256M"),
        "{first}"
    );

    instance.resize_applied(&["--cpus", "2", "--memory", "384M"]);
    let line = lines.find(|line| line.contains("resized: manual: from 1 CPU"));
    let line = line.expect("the resize is told, in a pipe, while it is watched");
    assert!(line.contains("applied: asked 2 CPUs"), "{line}");
    let line = until("the screen shows the new size", STEP_LIMIT, || {
        Some(screen()).filter(|line| line.contains("2/2") && line.contains("384M/512M"))
    });
    assert!(line.contains("grew"), "{line}");
    let after = why();
    assert!(after.contains("CPU: 2 CPUs, set by hand"), "{after}");
    assert!(after.contains("Memory: 384M, set by hand"), "{after}");
    assert!(after.contains("its rules pause for another 4m"), "{after}");
    assert!(
        after.contains("2 CPUs, its upper bound, which is there already"),
        "{after}"
    );
    let value = instance
        .command("status", &["--why", "--json"])
        .expect_success()
        .json();
    assert_eq!(value["axes"][1]["size"], 384 * MIB, "{value:#}");
    assert_eq!(value["axes"][1]["set_by"]["by"], "hand", "{value:#}");

    instance.stop(&["--force"]);
    let last = lines.last().expect("a last line");
    assert!(last.starts_with("seen: stopped: "), "{last}");
    let status = until("the watch ends with the instance", STEP_LIMIT, || {
        watch.try_wait().ok().flatten()
    });
    assert_eq!(status.code(), Some(0));
}
