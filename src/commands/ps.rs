//! `concertina ps`: the instances of a state folder, as a table or as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use concertina_agent::client;
use concertina_agent::state_dir::{InstanceEntry, StateDir};
use concertina_api::Bytes;
use concertina_api::instance::{InstanceState, InstanceStatus};
use serde::Serialize;

use crate::commands::status::state_word;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  concertina ps
  concertina ps --all
  concertina ps --json | jq -r '.[].name'

CPUS is what the guest has online, limited by the quota; MEMORY what it holds: plugged less balloon.";

/// How long one instance may take to answer before it is listed without its size.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `ps`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// List instances that ended, too
    #[arg(short, long)]
    all: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// One instance of the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    state: InstanceState,
    agent_pid: i32,
    /// Absent when it does not run, or does not answer.
    status: Option<InstanceStatus>,
    /// Why it ended, when it said so.
    reason: Option<String>,
}

/// Prints the list.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let mut entries = state.instances();
    entries.retain(|entry| args.all || entry.alive || entry.left_vmm.is_some());
    let rows = ask_all(entries);
    if args.json {
        output::json(&rows)?;
    } else {
        output::line(&table(&rows))?;
    }
    Ok(0)
}

/// Asks all supervisors at the same time, so that one that hangs delays the list only once: the agent of
/// a host for all of its instances, and each other instance's own.
fn ask_all(entries: Vec<InstanceEntry>) -> Vec<Row> {
    let (of_agents, others): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .partition(|entry| entry.alive && entry.socket.is_some());
    let agents: BTreeSet<PathBuf> = of_agents
        .iter()
        .filter_map(|entry| entry.socket.clone())
        .collect();
    let ask = |entry: InstanceEntry| {
        let status = entry
            .alive
            .then(|| client::status_within(&entry.paths, ANSWER_TIMEOUT).ok());
        row(entry, status.flatten())
    };
    std::thread::scope(|scope| {
        let known: Vec<_> = agents
            .into_iter()
            .map(|agent| scope.spawn(move || client::statuses(&agent).unwrap_or_default()))
            .collect();
        let threads: Vec<_> = others
            .into_iter()
            .map(|entry| scope.spawn(move || ask(entry)))
            .collect();
        let known = known.into_iter().filter_map(|thread| thread.join().ok());
        let mut known: BTreeMap<String, InstanceStatus> = known
            .flatten()
            .map(|status| (status.name.clone(), status))
            .collect();
        let of_agents = of_agents.into_iter().map(|entry| {
            let status = known.remove(&entry.name);
            row(entry, status)
        });
        let mut rows: Vec<Row> = of_agents.collect();
        rows.extend(threads.into_iter().filter_map(|thread| thread.join().ok()));
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    })
}

fn row(entry: InstanceEntry, status: Option<InstanceStatus>) -> Row {
    Row {
        name: entry.name,
        state: status.as_ref().map_or(entry.state, |status| status.state),
        agent_pid: entry.agent_pid,
        status,
        reason: entry.ending.map(|ending| ending.reason),
    }
}

fn table(rows: &[Row]) -> String {
    let header = [
        "NAME", "STATE", "CPUS", "OF", "MEMORY", "OF", "RESIDENT", "UPTIME", "PID",
    ];
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    output::table(&header, &rows, &[2, 4, 6, 7, 8])
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.name.clone(), state_word(row.state).to_owned()];
    match &row.status {
        Some(status) => {
            let (cpus, memory) = (&status.cpus, &status.memory);
            let held = memory.plugged.get().saturating_sub(memory.balloon.get());
            cells.extend([
                super::status::cpus_in_force(cpus).to_string(),
                format!("{}..{}", cpus.min, cpus.max),
                output::size(Bytes(held)),
                format!("{}..{}", memory.min, memory.max),
                output::size(memory.host_resident),
                output::span_ms(status.uptime_ms),
            ]);
        }
        None => cells.extend(std::iter::repeat_n("-".to_owned(), 6)),
    }
    cells.push(row.agent_pid.to_string());
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::tests::example;

    #[test]
    fn an_instance_that_does_not_answer_is_listed_without_its_size() {
        let row = Row {
            name: "web".into(),
            state: InstanceState::Failed,
            agent_pid: 7,
            status: None,
            reason: None,
        };
        let text = table(&[row]);
        assert!(
            text.contains("web") && text.contains("failed") && text.contains('-'),
            "{text}"
        );
    }

    #[test]
    fn cpus_are_limited_by_quota_and_memory_by_balloon() {
        let status = example();
        let row = Row {
            name: status.name.clone(),
            state: status.state,
            agent_pid: status.agent_pid,
            status: Some(status),
            reason: None,
        };
        let cells = cells(&row);
        assert_eq!(
            cells.get(2..6).unwrap(),
            ["1.5", "0.5..4", "448M", "256M..1G"]
        );
    }
}
