//! `concertina events`: what happened to an instance, from its `events.jsonl`, also while it happens.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use concertina_agent::client;
use concertina_agent::state_dir::StateDir;
use concertina_api::Bytes;
use concertina_api::event::{Event, EventKind};
use concertina_api::instance::InstanceSize;
use concertina_api::vm::ResizeReport;

use crate::commands::status::{describe_resize, describe_size};
use crate::follow::{Follower, Lines};
use crate::{output, state};

const EXAMPLES: &str = "\
Examples:
  concertina events web
  concertina events web --follow
  concertina events web --json | jq 'select(.event == \"resized\")'

JSON: one object a line with time (RFC 3339), uptime_ms, event (started, threshold, resized, held,
recommended, guest_memory_short, disk_error, net_down, policy_replaced, adopted, recovered,
restarting, rebooted, ended), policy_version where a policy caused it, and the fields of that kind.
Events of an instance that ended can be read until its name is launched again. --follow ends with the instance.";

/// How often --follow looks whether an instance that is silent still has its supervisor.
const LIFE_CHECK: Duration = Duration::from_secs(1);

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance
    name: String,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Go on with what happens, until the instance ends
    #[arg(short, long)]
    follow: bool,
}

/// Prints the events.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let entry = state::find(state, &args.name)?;
    // Its agent has them first-hand; without one they are in its file.
    if let Some(agent) = entry.socket.as_deref().filter(|_| entry.alive) {
        return from_agent(args, agent);
    }
    let failed = || format!("Reading {} failed", entry.paths.events.display());
    let mut follower = Follower::new(&entry.paths.events).with_context(failed)?;
    let mut lines = Lines::default();
    let mut alive = true;
    loop {
        let chunk = follower.read().with_context(failed)?;
        for line in lines.push(&chunk) {
            print(&line, args.json)?;
            if args.follow && is_end(&line) {
                return Ok(0);
            }
        }
        if !chunk.is_empty() {
            continue;
        }
        // One more read after its supervisor was seen dead: it may have written just before.
        if !args.follow || !alive {
            return Ok(0);
        }
        follower.wait(LIFE_CHECK).with_context(failed)?;
        alive = state::find(state, &args.name).is_ok_and(|entry| entry.alive);
    }
}

/// Prints the events as its agent tells them.
fn from_agent(args: &Args, agent: &Path) -> anyhow::Result<i32> {
    let mut lines = Lines::default();
    let mut printed = Ok(());
    client::events(agent, &args.name, args.follow, |bytes| {
        for line in lines.push(bytes) {
            printed = print(&line, args.json);
            if printed.is_err() || (args.follow && is_end(&line)) {
                return false;
            }
        }
        true
    })?;
    printed.map(|()| 0)
}

fn is_end(line: &str) -> bool {
    serde_json::from_str::<Event>(line)
        .is_ok_and(|event| matches!(event.kind, EventKind::Ended { .. }))
}

fn print(line: &str, as_json: bool) -> anyhow::Result<()> {
    match serde_json::from_str::<Event>(line) {
        Ok(event) if !as_json => output::line(&describe(&event)),
        // A kind that a later version wrote is shown as it is.
        _ => output::line(line),
    }
}

/// What a resize came to. `resident`: before and after, in bytes.
fn describe_resized(
    cause: &str,
    note: Option<&str>,
    before: &InstanceSize,
    report: &ResizeReport<InstanceSize>,
    resident: [u64; 2],
) -> String {
    let note = note.map(|note| format!("; {note}")).unwrap_or_default();
    let [from, to] = resident.map(Bytes);
    format!(
        "{cause}: from {}: {} (resident {from} -> {to}{note})",
        describe_size(before),
        describe_resize(report)
    )
}

/// An event on one line for people: seconds since launch, kind, what happened.
fn describe(event: &Event) -> String {
    let (kind, text) = kind_and_text(event);
    let seconds = event.uptime_ms as f64 / 1000.0;
    format!("{seconds:>10.3}  {kind:<12}  {text}")
}

/// The kind of an event in a word or two, and what happened.
pub fn kind_and_text(event: &Event) -> (&'static str, String) {
    match &event.kind {
        EventKind::Started { vmm_pid } => ("started", format!("vmm is process {vmm_pid}")),
        EventKind::Threshold { rule, state, value } => {
            let value = value
                .map(|value| format!(" at {value:.1}"))
                .unwrap_or_default();
            ("threshold", format!("{rule}: {state}{value}"))
        }
        EventKind::Resized {
            cause,
            note,
            before,
            report,
            resident_before,
            resident_after,
            ..
        } => {
            let resident = [*resident_before, *resident_after];
            let text = describe_resized(cause, note.as_deref(), before, report, resident);
            ("resized", text)
        }
        EventKind::Held { cause, why } => ("held", format!("{cause}: {why}")),
        EventKind::Recommended {
            cause,
            note,
            present,
            recommended,
        } => {
            let note = note.as_ref().map(|note| format!(" ({note})"));
            let (wanted, has) = (describe_size(recommended), describe_size(present));
            let note = note.unwrap_or_default();
            let text = format!("{cause}: {wanted} instead of {has}{note}; nothing is done");
            ("recommended", text)
        }
        EventKind::GuestMemoryShort { evidence } => ("memory short", evidence.clone()),
        EventKind::DiskError { disk, error, count } => (
            "disk error",
            format!("{}: {error} ({count} failed)", disk.display()),
        ),
        EventKind::NetDown { net, reason } => (
            "net down",
            format!("interface {net}, until the guest restarts: {reason}"),
        ),
        EventKind::PolicyReplaced { version, rules } => (
            "policy",
            format!("version {version} is in force: {}", rules.join("; ")),
        ),
        EventKind::Adopted { agent_pid, vmm_pid } => (
            "adopted",
            format!("agent process {agent_pid} has taken over vmm process {vmm_pid}"),
        ),
        EventKind::Recovered {
            intent,
            outcome,
            reason,
        } => {
            let outcome = outcome.as_str();
            (
                "recovered",
                format!("intent #{intent}: {outcome}: {reason}"),
            )
        }
        EventKind::Restarting {
            reason,
            attempt,
            wait_ms,
            ..
        } => {
            let wait = output::span_ms(*wait_ms);
            ("restarting", format!("{reason}; start {attempt} in {wait}"))
        }
        EventKind::Rebooted => (
            "rebooted",
            "the guest starts again at its first size".to_owned(),
        ),
        EventKind::Ended { status, reason, .. } => {
            let status = status
                .map(|status| format!(" (status {status})"))
                .unwrap_or_default();
            ("ended", format!("{reason}{status}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_as_sentences() {
        let line = r#"{"time":"2026-11-22T10:00:00.000Z","uptime_ms":12345,"event":"resized",
            "cause":"cpu > 75% for 5s: +1 cpu","before":{"cpus":0.5},"outcome":"applied",
            "asked":{"cpus":1.5},"got":{"cpus":1.5},"timeline_ms":{"total":31.6},
            "resident_before":94371840,"resident_after":96468992}"#;
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(
            describe(&event),
            "    12.345  resized       cpu > 75% for 5s: +1 cpu: from 0.5 CPUs: applied: asked 1.5 \
             CPUs, in 32 ms (resident 90M -> 92M)"
        );
    }

    #[test]
    fn the_end_is_recognised_and_nothing_else_is() {
        let ended = r#"{"time":"t","uptime_ms":1,"event":"ended","status":0,"reason":"Power off"}"#;
        assert!(is_end(ended));
        for line in [
            r#"{"time":"t","uptime_ms":1,"event":"rebooted"}"#,
            "{\"event\":\"ended\"}",
            "",
        ] {
            assert!(!is_end(line), "{line}");
        }
    }
}
