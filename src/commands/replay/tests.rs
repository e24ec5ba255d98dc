//! The command over small traces, and the default policy over recorded ones.

use std::fs;
use std::path::PathBuf;

use clap::Parser;

use super::*;
use crate::args::{Cli, Command};
use crate::failure;

fn args(words: &[&str]) -> Args {
    let words = ["concertina", "replay"].iter().chain(words);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Replay(args) => args,
        other => panic!("not replay: {other:?}"),
    }
}

/// A folder with a trace in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn with(name: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), text).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

const TRACE: &str = "timestamp,value\n\
2014-02-14 14:30:00,10\n2014-02-14 14:35:00,80\n2014-02-14 14:40:00,20\n";

fn report(args: &Args) -> Report {
    let file = policy::read(&args.policy).unwrap();
    let traces = replay_all(args, &file).unwrap();
    Report::new(args.actuation, args.interpolate, traces)
}

#[test]
fn a_trace_gives_a_table_json_and_a_chart() {
    let folder = Folder::with("a.csv", TRACE);
    let trace = folder.path("a.csv");
    let args = args(&[
        "--policy",
        "default",
        "--trace",
        &trace,
        &trace,
        "--baseline",
        "all",
    ]);
    let report = report(&args);
    let text = table::text(&report);
    for word in [
        "policy",
        "load-average",
        "UNSERVED CPU-S",
        "0.5..4",
        "cpu-up=225ms",
        "POLICY HAS LESS",
    ] {
        assert!(text.contains(word), "'{word}' is not in:\n{text}");
    }
    assert!(
        !text.contains("MIB-S"),
        "the trace tells nothing of memory:\n{text}"
    );
    let json = serde_json::to_value(&report).unwrap();
    for path in [
        "/actuation/cpu_up_ms",
        "/interpolation",
        "/traces/0/bounds/cpus/min",
        "/traces/0/machine/cpus",
        "/traces/1/results/7/name",
        "/traces/0/results/0/cpu/unserved",
        "/traces/0/results/0/cpu/cover_median_ms",
        "/total/7/cpu/slack",
    ] {
        assert!(json.pointer(path).is_some(), "{path} is missing in {json}");
    }
    assert_eq!(
        json.pointer("/traces/0/results/0/memory"),
        Some(&serde_json::Value::Null)
    );
    let svg = chart::draw(&report);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches(">naive<").count(), 2);
}

#[test]
fn bounds_are_the_policys_or_typed_or_those_of_the_machine() {
    let folder = Folder::with("a.csv", TRACE);
    let file = folder.path("p.toml");
    fs::write(&file, "[bounds]\ncpus = { min = 1, max = 2 }\n").unwrap();
    let trace = folder.path("a.csv");
    let bounds = |more: &[&str]| {
        let mut words = vec!["--trace", trace.as_str()];
        words.extend(more);
        let report = report(&args(&words));
        let trace = report.traces.into_iter().next().unwrap();
        (
            trace.bounds.cpus.to_string(),
            trace.bounds.memory.to_string(),
            trace.machine.cpus,
        )
    };
    let expected = |cpus: &str, memory: &str, machine| (cpus.into(), memory.into(), machine);
    assert_eq!(
        bounds(&["--policy", "default"]),
        expected("0.5..4", "512M..4G", 4.0)
    );
    assert_eq!(
        bounds(&["--policy", &file]),
        expected("1..2", "512M..4G", 2.0)
    );
    let typed = [
        "--policy",
        "default",
        "--cpus",
        "1..8",
        "--memory",
        "1G..2G",
        "--trace-cpus",
        "16",
    ];
    assert_eq!(bounds(&typed), expected("1..8", "1G..2G", 16.0));
}

#[test]
fn what_a_trace_cannot_tell_is_said() {
    let folder = Folder::with("a.csv", TRACE);
    let trace = folder.path("a.csv");
    let words = [
        "--policy",
        "default",
        "--trace",
        &trace,
        "--scale",
        "io.pressure > 10%: +1 cpu",
        "--scale",
        "set mode recommend",
    ];
    let text = table::text(&report(&args(&words)));
    assert!(text.contains("'io.pressure > 10%: +1 cpu' rests"), "{text}");
    assert!(text.contains("mode is recommend"), "{text}");
}

#[test]
fn wrong_values_are_usage_errors_that_name_them() {
    let folder = Folder::with("a.csv", "timestamp,value\n1,2\n2,many\n");
    let bad = folder.path("a.csv");
    for (words, named) in [
        (["--policy", "default", "--trace", &bad], "'many'"),
        (
            ["--policy", "default", "--trace", "/nonexistent.csv"],
            "/nonexistent.csv",
        ),
    ] {
        let args = args(&words);
        let error = run(&args).unwrap_err();
        assert_eq!(failure::status(&error), failure::USAGE);
        let text = failure::sentence(error.as_ref());
        assert!(text.contains(named), "{text}");
    }
    for line in [
        "concertina replay --trace a",
        "concertina replay --policy p",
        "concertina replay --policy p --trace a --baseline best",
        "concertina replay --policy p --trace a --actuation cpu-up=soon",
        "concertina replay --policy p --trace a --interpolate cubic",
        "concertina replay --policy p --trace a --full 0",
        "concertina replay --policy p --trace a --trace-cpus 0",
    ] {
        let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(failure::USAGE), "{line}");
    }
}

/// The recorded loads beside the repository. They are not part of it: without them this fails.
fn recorded() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("Traces are missing at {}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut traces: Vec<String> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "csv"))
        .map(|path| path.display().to_string())
        .collect();
    traces.sort();
    assert!(traces.len() >= 8, "{traces:?}");
    traces
}

#[test]
fn every_recorded_trace_can_be_read() {
    let traces = recorded();
    let mut words = vec!["--policy", "default", "--trace"];
    words.extend(traces.iter().map(String::as_str));
    let args = args(&words);
    let file = policy::read(&args.policy).unwrap();
    for path in &args.trace {
        let load = Load::read(&args, &file, path).unwrap();
        assert!(load.trace.samples.len() > 4000);
    }
}

/// Static, hoster, load average, VPA and naive: of each more CPU time is unserved, and more is held
/// in vain. Of memory that is so for three of them; NeonVM's form and VPA hold so much more that less
/// is unserved, as even an oracle has more than VPA that pays for actuation.
#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "takes minutes without optimisation: cargo test --release"
)]
fn the_default_policy_beats_the_baselines_over_the_recorded_traces() {
    let traces = recorded();
    let mut words = vec!["--policy", "default", "--baseline", "all", "--trace"];
    words.extend(traces.iter().map(String::as_str));
    for interpolation in ["hold", "linear"] {
        let mut words = words.clone();
        words.extend(["--interpolate", interpolation]);
        let total = report(&args(&words)).total;
        let of = |name: &str| total.iter().find(|total| total.name == name).unwrap();
        let policy = of(report::POLICY);
        let is_beaten = |name: &str, axis: Axis| {
            let (ours, theirs) = (policy.of(axis).unwrap(), of(name).of(axis).unwrap());
            ours.unserved < theirs.unserved && ours.slack < theirs.slack
        };
        for name in ["static", "hoster", "load-average", "vpa", "naive"] {
            assert!(
                is_beaten(name, Axis::Cpus),
                "{name}, {interpolation}: {total:?}"
            );
        }
        for name in ["static", "hoster", "naive"] {
            assert!(
                is_beaten(name, Axis::Memory),
                "{name}, {interpolation}: {total:?}"
            );
        }
    }
}
