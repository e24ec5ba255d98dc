//! `concertina status`: one instance, once or again and again, for people or for programs.

use std::io::IsTerminal;
use std::time::Duration;

use concertina_agent::client;
use concertina_agent::state_dir::{Ending, InstanceEntry, StateDir};
use concertina_api::instance::{
    CpuStatus, InstanceSize, InstanceState, InstanceStatus, MemoryStatus, ThresholdStatus,
};
use concertina_api::vm::ResizeReport;
use concertina_api::{Bytes, Cpus, Quota};
use serde::Serialize;

use crate::{output, state};

const EXAMPLES: &str = "\
Examples:
  concertina status web
  concertina status web --watch
  concertina status web --json | jq .cpus.online

JSON fields: name, state, uptime_ms, cpus {min,max,target,online,quota}, memory {min,max,target,
plugged,balloon,guest_total,guest_available,host_resident} in bytes, last_resize, thresholds
[{rule,state,last_value}], recommended {cpus,memory} where a policy with mode = \"recommend\" wants
another size. An unknown value is null. Of an instance that ended only name, state
and ending {status,reason,time} are known. States: starting, running, paused, stopping, stopped,
failed.";

/// Pause between two lines or pictures of `--watch`.
const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance
    name: String,
    /// Print JSON; with --watch one object a line
    #[arg(long)]
    json: bool,
    /// Show it again each second until the instance ends
    #[arg(short, long)]
    watch: bool,
}

/// Prints the status.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let mut entry = state::find(state, &args.name)?;
    while args.watch && entry.alive {
        let status = match client::status(&entry.paths) {
            Ok(status) => status,
            // It ended between the look and the question.
            Err(_) if !state::find(state, &args.name)?.alive => break,
            Err(error) => return Err(error.into()),
        };
        if args.json {
            output::json_line(&status)?;
        } else {
            // A new picture in the same place on a terminal, one below the other elsewhere.
            let clear = if std::io::stdout().is_terminal() {
                "\x1b[H\x1b[J"
            } else {
                ""
            };
            output::line(&format!("{clear}{}", describe(&status)))?;
        }
        std::thread::sleep(WATCH_PERIOD);
        entry = state::find(state, &args.name)?;
    }
    if args.watch {
        entry = state::find(state, &args.name)?;
    }
    if !entry.alive {
        return print_ended(args, &entry);
    }
    let status = client::status(&entry.paths)?;
    if args.json {
        output::json(&status)?;
    } else {
        output::line(&describe(&status))?;
    }
    Ok(0)
}

fn print_ended(args: &Args, entry: &InstanceEntry) -> anyhow::Result<i32> {
    if args.json {
        let value = EndedStatus::of(entry);
        if args.watch {
            output::json_line(&value)?
        } else {
            output::json(&value)?
        }
        return Ok(0);
    }
    let how = match &entry.ending {
        Some(ending) => format!(
            "{} ({}, exit status {})",
            ending.reason, ending.time, ending.status
        ),
        None => "its supervisor died without a word".to_owned(),
    };
    output::line(&format!(
        "{}: {}: {how}",
        entry.name,
        state_word(entry.state)
    ))?;
    Ok(0)
}

/// An instance that ended, in the shape of a status whose values are unknown.
#[derive(Serialize)]
struct EndedStatus<'a> {
    name: &'a str,
    state: InstanceState,
    uptime_ms: Option<u64>,
    agent_pid: i32,
    vmm_pid: Option<i32>,
    cpus: Option<CpuStatus>,
    memory: Option<MemoryStatus>,
    last_resize: Option<ResizeReport<InstanceSize>>,
    thresholds: [ThresholdStatus; 0],
    ending: Option<&'a Ending>,
}

impl<'a> EndedStatus<'a> {
    fn of(entry: &'a InstanceEntry) -> Self {
        Self {
            name: &entry.name,
            state: entry.state,
            uptime_ms: None,
            agent_pid: entry.agent_pid,
            vmm_pid: None,
            cpus: None,
            memory: None,
            last_resize: None,
            thresholds: [],
            ending: entry.ending.as_ref(),
        }
    }
}

/// The word of a state, as in JSON.
pub fn state_word(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Starting => "starting",
        InstanceState::Running => "running",
        InstanceState::Paused => "paused",
        InstanceState::Stopping => "stopping",
        InstanceState::Stopped => "stopped",
        InstanceState::Failed => "failed",
    }
}

/// What the guest can use: vCPUs online, limited by the quota.
pub fn cpus_in_force(cpus: &CpuStatus) -> Cpus {
    let online = Cpus(cpus.online.saturating_mul(1000));
    match cpus.quota {
        Quota::Max => online,
        Quota::Limited(quota) => quota.min(online),
    }
}

/// The status for people.
fn describe(status: &InstanceStatus) -> String {
    let mut text = format!(
        "{}  {}  up {}  (process {}{})\n\n",
        status.name,
        state_word(status.state),
        output::span_ms(status.uptime_ms),
        status.agent_pid,
        status
            .vmm_pid
            .map(|pid| format!(", vmm {pid}"))
            .unwrap_or_default(),
    );
    text.push_str(&size_table(&status.cpus, &status.memory));
    text.push_str("\n\n");
    if let Some(report) = &status.last_resize {
        text.push_str(&format!("Last resize: {}\n", describe_resize(report)));
    }
    if let Some(size) = &status.recommended {
        text.push_str(&format!("Recommended: {}\n", describe_size(size)));
    }
    if status.thresholds.is_empty() {
        text.push_str("No thresholds");
        return text;
    }
    let rows: Vec<Vec<String>> = status
        .thresholds
        .iter()
        .map(|threshold| {
            let value = match threshold.last_value {
                Some(value) => format!("{value:.1}"),
                None => "unknown".to_owned(),
            };
            vec![threshold.rule.clone(), threshold.state.clone(), value]
        })
        .collect();
    text.push_str(&output::table(
        &["THRESHOLD", "STATE", "LAST VALUE"],
        &rows,
        &[2],
    ));
    text
}

fn size_table(cpus: &CpuStatus, memory: &MemoryStatus) -> String {
    let unknown = |bytes: Option<Bytes>| bytes.map_or("unknown".to_owned(), output::size);
    let rows = [
        vec![
            "cpus".to_owned(),
            cpus.min.to_string(),
            cpus.max.to_string(),
            cpus.target.to_string(),
            cpus_in_force(cpus).to_string(),
            format!("{} online, quota {}", cpus.online, cpus.quota),
        ],
        vec![
            "memory".to_owned(),
            memory.min.to_string(),
            memory.max.to_string(),
            memory.target.to_string(),
            Bytes(memory.plugged.get().saturating_sub(memory.balloon.get())).to_string(),
            format!(
                "{} plugged, {} balloon, {} resident; guest: {} of {} available",
                memory.plugged,
                memory.balloon,
                output::size(memory.host_resident),
                unknown(memory.guest_available),
                unknown(memory.guest_total),
            ),
        ],
    ];
    output::table(
        &["", "MIN", "MAX", "TARGET", "HAS", ""],
        &rows,
        &[1, 2, 3, 4],
    )
}

/// A size in words: `2 CPUs and 512M`.
pub fn describe_size(size: &InstanceSize) -> String {
    let cpus = size.cpus.map(|cpus| {
        format!(
            "{cpus} CPU{}",
            if cpus == Cpus::whole(1) { "" } else { "s" }
        )
    });
    let memory = size.memory.map(|memory| memory.to_string());
    match (cpus, memory) {
        (Some(cpus), Some(memory)) => format!("{cpus} and {memory}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "nothing".to_owned(),
    }
}

/// How a resize ended, in one sentence.
pub fn describe_resize(report: &ResizeReport<InstanceSize>) -> String {
    let mut text = format!(
        "{}: asked {}",
        report.outcome.as_str(),
        describe_size(&report.asked)
    );
    if report.got != report.asked {
        text.push_str(&format!(", got {}", describe_size(&report.got)));
    }
    if let Some(total) = report.timeline_ms.get("total") {
        text.push_str(&format!(", in {total:.0} ms"));
    }
    if let Some(reason) = &report.reason {
        text.push_str(&format!(": {reason}"));
    }
    text
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use concertina_api::vm::Outcome;
    use serde_json::json;

    use super::*;

    /// An instance with 2 vCPUs at a quota of 1.5 and 512 MiB less a balloon of 64 MiB.
    pub fn example() -> InstanceStatus {
        let size = |cpus| InstanceSize {
            cpus: Some(Cpus(cpus)),
            memory: None,
        };
        InstanceStatus {
            name: "web".into(),
            state: InstanceState::Running,
            uptime_ms: 61_500,
            agent_pid: 70,
            vmm_pid: Some(71),
            cpus: CpuStatus {
                min: Cpus(500),
                max: Cpus(4000),
                target: Cpus(2000),
                online: 2,
                quota: Quota::Limited(Cpus(1500)),
            },
            memory: MemoryStatus {
                min: Bytes::mib(256),
                max: Bytes::mib(1024),
                target: Bytes::mib(448),
                plugged: Bytes::mib(512),
                balloon: Bytes::mib(64),
                guest_total: None,
                guest_available: Some(Bytes::mib(100)),
                host_resident: Bytes::mib(90),
            },
            last_resize: Some(ResizeReport {
                outcome: Outcome::Partial,
                asked: size(2000),
                got: size(1500),
                reason: Some("the guest is slow".into()),
                ost: None,
                timeline_ms: BTreeMap::from([("total".to_owned(), 12.4)]),
            }),
            recommended: Some(size(2500)),
            thresholds: vec![ThresholdStatus {
                rule: "cpu > 75% for 5s: +1 cpu".into(),
                state: "unknown".into(),
                last_value: None,
            }],
        }
    }

    #[test]
    fn json_has_the_fields_of_the_contract() {
        let value = serde_json::to_value(example()).unwrap();
        for path in [
            "/name",
            "/state",
            "/uptime_ms",
            "/cpus/min",
            "/cpus/max",
            "/cpus/target",
            "/cpus/online",
            "/cpus/quota",
            "/memory/min",
            "/memory/max",
            "/memory/target",
            "/memory/plugged",
            "/memory/balloon",
            "/memory/guest_total",
            "/memory/guest_available",
            "/memory/host_resident",
            "/last_resize/outcome",
            "/thresholds/0/rule",
            "/thresholds/0/state",
            "/thresholds/0/last_value",
        ] {
            assert!(
                value.pointer(path).is_some(),
                "{path} is missing in {value}"
            );
        }
        assert_eq!(value.pointer("/memory/plugged"), Some(&json!(512 << 20)));
        assert_eq!(value.pointer("/cpus/quota"), Some(&json!(1.5)));
    }

    #[test]
    fn people_read_bounds_target_and_what_is_there() {
        let text = describe(&example());
        for word in [
            "web",
            "running",
            "1m 01s",
            "0.5",
            "448M",
            "quota 1.5",
            "unknown",
            "90M",
        ] {
            assert!(text.contains(word), "{word} is missing in:\n{text}");
        }
        assert!(text.contains("partial: asked 2 CPUs, got 1.5 CPUs, in 12 ms: the guest is slow"));
        assert!(text.contains("Recommended: 2.5 CPUs"), "{text}");
    }
}
