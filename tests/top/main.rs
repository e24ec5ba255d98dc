//! `concertina top` on a terminal of its own, and what `status` prints into pipes, against instances
//! that are played here: no KVM, no guest. What a person sees is read with a terminal emulator.

mod fake;
mod pty;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use fake::{Host, Play};
use pty::{Pty, until};

fn concertina(host: &Host, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concertina"));
    command
        .args(arguments)
        .env("CONCERTINA_STATE_DIR", host.folder())
        .env("LC_ALL", "C")
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR");
    command
}

fn top(host: &Host, arguments: &[&str]) -> Pty {
    let mut line = vec!["top", "--interval", "100ms"];
    line.extend(arguments);
    Pty::run(&mut concertina(host, &line))
}

#[test]
fn the_screen_shows_sorts_opens_and_leaves() {
    let host = Host::new();
    let web = host.launch("web", Play::of(75.0, 2));
    let _db = host.launch("db", Play::of(10.0, 4));
    web.happens(
        &json!({"time": "2026-11-22T10:00:03.000Z", "uptime_ms": 31_000, "event": "resized",
        "cause": "cpu > 75% for 5s: +1 cpu", "before": {"cpus": 1.0}, "outcome": "applied",
        "asked": {"cpus": 2.0}, "got": {"cpus": 2.0}, "timeline_ms": {}, "resident_before": 1,
        "resident_after": 1}),
    );
    let mut top = top(&host, &[]);
    top.sees("both instances and the event", |screen| {
        screen.row(5).starts_with(">db")
            && screen.row(6).contains("75%")
            && screen.row(6).contains("grew")
    });
    let screen = top.screen();
    assert!(
        screen.row(0).starts_with("concertina top   2 instances"),
        "{screen}"
    );
    assert!(
        screen.row(3).starts_with("Book    no host agent"),
        "{screen}"
    );
    // 2 of 4 CPUs, 1 of them the lower bound, in nine characters.
    assert!(screen.row(6).contains("##===.... 2/4"), "{screen}");
    assert!(screen.is_full && screen.hides_cursor, "{screen}");

    top.types("s");
    top.sees("the order by CPU", |screen| {
        screen.row(0).ends_with("sort: cpu") && screen.row(5).starts_with(" web")
    });
    top.types("\x1b[A\r");
    top.sees("the timeline", |screen| {
        screen.row(0).ends_with("timeline of web")
            && screen.rows.iter().any(|row| row.contains("1 > 2 cpu"))
    });
    top.types("\x1b");
    top.sees("the list", |screen| screen.row(0).ends_with("sort: cpu"));
    top.types("?");
    top.sees("the help", |screen| {
        screen.rows.iter().any(|row| row.contains("Any key: back"))
    });
    top.types("q");
    assert_eq!(top.end(), Some(0));
    top.is_restored();
}

#[test]
fn a_resize_by_hand_is_confirmed_and_told_and_the_screen_goes_on_meanwhile() {
    let host = Host::new();
    let web = host.launch("web", Play::of(75.0, 2).slow_to_resize());
    let mut top = top(&host, &[]);
    top.sees("the instance", |screen| screen.row(5).contains("75%"));
    top.types("+M");
    top.sees("the question", |screen| {
        screen
            .row(23)
            .starts_with("Resize web to 2.5 CPUs and 640M? Enter: yes")
    });
    assert!(web.wishes().is_empty());
    top.types("\r");
    until("the wish arrives", || {
        (!web.wishes().is_empty()).then_some(())
    });
    assert_eq!(web.wishes(), [json!({"cpus": 2.5, "memory": 640 << 20})]);
    // While it is under way, the screen lives.
    web.play(Play::of(33.0, 2).slow_to_resize());
    top.sees("another load", |screen| {
        screen.row(5).contains("33%") && screen.row(23).starts_with("web: asked for 2.5 CPUs")
    });
    web.finish_resize();
    top.sees("the outcome", |screen| {
        screen.row(23) == "web: applied: asked 2.5 CPUs and 640M"
    });
    top.types("q");
    assert_eq!(top.end(), Some(0));
}

#[test]
fn an_instance_that_hangs_is_said_not_to_answer_and_hinders_nobody() {
    let host = Host::new();
    let _stuck = host.launch("stuck", Play::of(1.0, 1).that_hangs());
    let web = host.launch("web", Play::of(75.0, 2));
    let mut top = top(&host, &[]);
    top.sees("the other", |screen| screen.row(6).contains("75%"));
    top.sees("the silence", |screen| {
        screen.row(5).contains("no answer") && screen.row(0).contains("1 gives no answer")
    });
    web.play(Play::of(12.0, 2));
    top.sees("the other's news", |screen| screen.row(6).contains("12%"));
    top.types("+");
    top.sees("why not", |screen| {
        screen.row(23).starts_with("stuck does not run")
    });
    top.types("\x03");
    assert_eq!(top.end(), Some(0));
    top.is_restored();
}

#[test]
fn instances_come_and_go() {
    let host = Host::new();
    let mut top = top(&host, &[]);
    top.sees("how to get one", |screen| {
        screen
            .rows
            .iter()
            .any(|row| row.contains("No instance runs here"))
    });
    let web = host.launch("web", Play::of(75.0, 2));
    top.sees("the instance", |screen| screen.row(5).contains("75%"));
    web.ends("Power off");
    top.sees("its end", |screen| screen.row(5).contains("stopped"));
    assert!(top.screen().rows.iter().any(|row| row == "Power off"));
    top.types("q");
    assert_eq!(top.end(), Some(0));
}

#[test]
fn signals_restore_the_terminal() {
    for (signal, status) in [(libc::SIGTERM, 143), (libc::SIGHUP, 129)] {
        let host = Host::new();
        let _web = host.launch("web", Play::of(75.0, 2));
        let mut top = top(&host, &[]);
        top.sees("the instance", |screen| screen.row(5).contains("75%"));
        top.signal(signal);
        assert_eq!(top.end(), Some(status));
        top.is_restored();
    }
}

#[test]
fn it_stops_as_a_shell_expects_and_comes_back() {
    let host = Host::new();
    let _web = host.launch("web", Play::of(75.0, 2));
    // A shell with job control, which waits for it, and then lets it go on twice.
    let script = "set -m; \"$0\" top --interval 100ms; echo stopped by $?; read key; fg >/dev/null; \
                  echo stopped again by $?; read key; fg >/dev/null; echo ended with $?";
    let mut shell = Command::new("sh");
    let template = concertina(&host, &[]);
    for (name, value) in template.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut top = Pty::run(shell.args(["-c", script]).arg(template.get_program()));
    let sees_list = |top: &Pty| {
        top.sees("the list", |screen| {
            screen.row(5).contains("75%") && screen.is_full && screen.hides_cursor
        });
    };
    let stopped = format!("by {}", 128 + libc::SIGTSTP);
    let sees_shell = |top: &Pty, word: &str| {
        top.sees("the shell", |screen| {
            let said = |row: &String| row.contains(word) && row.contains(&stopped);
            screen.rows.iter().any(said) && !screen.is_full
        });
        top.is_restored();
    };
    sees_list(&top);
    top.types("\x1a");
    sees_shell(&top, "stopped");
    top.types("\r");
    sees_list(&top);
    // A question is still there when it comes back.
    top.types("+");
    let question = "Resize web to 2.5 CPUs? Enter: yes";
    top.sees("the question", |screen| {
        screen.row(23).starts_with(question)
    });
    top.types("\x1a");
    sees_shell(&top, "again");
    top.types("\r");
    top.sees("the question again", |screen| {
        screen.row(23).starts_with(question)
    });
    top.types("q");
    top.sees("the end", |screen| {
        screen.rows.iter().any(|row| row.contains("ended with 0"))
    });
    assert_eq!(top.end(), Some(0));
    top.is_restored();
}

#[test]
fn a_window_may_change_its_size() {
    let host = Host::new();
    let _web = host.launch("web", Play::of(75.0, 2));
    let mut top = top(&host, &[]);
    top.sees("the instance", |screen| screen.row(5).contains("75%"));
    top.resize(14, 80);
    top.sees("that it is too small", |screen| {
        screen
            .row(0)
            .starts_with("This window is too small: 80 x 14")
    });
    top.resize(30, 100);
    top.sees("the list again", |screen| {
        screen.row(5).contains("75%") && screen.row(29).starts_with("q quit")
    });
    top.types("q");
    assert_eq!(top.end(), Some(0));
}

#[test]
fn colours_are_there_and_are_turned_off_by_no_color() {
    let host = Host::new();
    let _web = host.launch("web", Play::of(75.0, 2));
    for (no_color, colours) in [(None, true), (Some("1"), false)] {
        let mut command = concertina(&host, &["top", "--interval", "100ms"]);
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        let mut top = Pty::run(&mut command);
        top.sees("the instance", |screen| screen.row(5).contains("75%"));
        assert_eq!(top.screen().is_coloured, colours, "NO_COLOR {no_color:?}");
        top.types("q");
        assert_eq!(top.end(), Some(0));
    }
}

#[test]
fn without_a_terminal_it_is_a_usage_error_and_once_is_text() {
    let host = Host::new();
    let web = host.launch("web", Play::of(75.0, 2));
    web.happens(&json!({"time": "t", "uptime_ms": 31_000, "event": "rebooted"}));
    let _stuck = host.launch("stuck", Play::of(1.0, 1).that_hangs());
    let run = |arguments: &[&str]| {
        let mut command = concertina(&host, arguments);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let refused = run(&["top"]);
    assert_eq!(refused.status.code(), Some(2));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(
        error.contains("have to be a terminal") && error.contains("--once"),
        "{error}"
    );
    assert!(refused.stdout.is_empty());
    let wrong = run(&["top", "--interval", "1ms"]);
    assert_eq!(wrong.status.code(), Some(2));

    // On a machine that is very busy, the other one may be late, too: once.
    let text = until("the one that answers", || {
        let once = run(&["top", "--once"]);
        assert_eq!(once.status.code(), Some(0), "{once:?}");
        let text = String::from_utf8(once.stdout).unwrap();
        text.contains("75%").then_some(text)
    });
    assert!(!text.contains('\x1b'), "{text:?}");
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    let line = |name: &str| {
        let named = |line: &&str| line.get(1..).is_some_and(|line| line.starts_with(name));
        text.lines().find(named).unwrap_or_default()
    };
    assert!(
        line("web").contains("75%") && line("web").contains("rebooted"),
        "{text}"
    );
    assert!(line("stuck").contains("no answer"), "{text}");
}

#[test]
fn watch_prints_a_line_when_something_changes_and_ends_with_the_instance() {
    let host = Host::new();
    let web = host.launch("web", Play::of(75.0, 2));
    let mut command = concertina(&host, &["status", "web", "--watch", "--interval", "100ms"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    // The lines come one by one through a pipe, not when it is full.
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let first = lines.next().unwrap();
    assert!(
        first.contains("running  load 75%  cpus 2 quota max target 2  memory 512M"),
        "{first}"
    );
    assert!(first.contains("pressure cpu 3% memory 0% io -"), "{first}");
    web.play(Play::of(90.0, 3));
    let second = lines.next().unwrap();
    assert!(second.contains("load 90%  cpus 3"), "{second}");
    web.happens(&json!({"time": "t", "uptime_ms": 40_000, "event": "rebooted"}));
    let third = lines.next().unwrap();
    assert!(
        third.contains("load 90%") && third.contains("rebooted: the guest starts"),
        "{third}"
    );
    web.ends("Power off");
    let last = lines.next().unwrap();
    assert!(last.starts_with("web: stopped: Power off"), "{last}");
    assert_eq!(lines.next(), None);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn watch_in_json_is_an_object_a_line() {
    let host = Host::new();
    let web = host.launch("web", Play::of(75.0, 2));
    let mut command = concertina(
        &host,
        &["status", "web", "--watch", "--json", "--interval", "100ms"],
    );
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut next = || -> serde_json::Value {
        let line = lines.next().expect("a further line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    };
    for _ in 0..3 {
        let look = next();
        assert_eq!(look["cpus"]["online"], 2, "{look}");
        assert!(
            look["time"].is_string() && look["events"].is_array(),
            "{look}"
        );
    }
    web.ends("Power off");
    let last = std::iter::from_fn(|| Some(next())).find(|look| look["ending"].is_object());
    assert_eq!(last.unwrap()["ending"]["reason"], "Power off");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn why_tells_rules_with_values_and_who_set_the_size() {
    let host = Host::new();
    let web = host.launch("web", Play::of(60.0, 2));
    web.happens(&json!({"time": "t", "uptime_ms": 1000, "event": "started", "vmm_pid": 1}));
    let run = |arguments: &[&str]| {
        let output = concertina(&host, arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&["status", "web", "--why"]);
    assert!(
        text.starts_with("CPU: 2 CPUs, as at launch 33.0s ago; bounds 1 CPU to 4 CPUs."),
        "{text}"
    );
    assert!(text.contains("cpu is 60% (ok)"), "{text}");
    assert!(
        text.contains("cpu over 75% for 5s makes it 3 CPUs."),
        "{text}"
    );
    let value: serde_json::Value =
        serde_json::from_str(&run(&["status", "web", "--why", "--json"])).unwrap();
    assert_eq!(value["axes"][0]["rules"][0]["would_make"], 3.0, "{value}");
    let both = concertina(&host, &["status", "web", "--why", "--watch"])
        .output()
        .unwrap();
    assert_eq!(both.status.code(), Some(2));
}

/// Long enough for a loaded machine; nothing waits for it that succeeds.
const LIMIT: Duration = Duration::from_secs(60);
