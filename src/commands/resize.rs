//! `concertina resize`: another size now, by hand; says what was reached.

use std::time::Duration;

use concertina_agent::client;
use concertina_agent::state_dir::StateDir;
use concertina_api::disk::DiskRate;
use concertina_api::instance::InstanceResize;
use concertina_api::net::NetRateChange;
use concertina_api::vm::Outcome;
use concertina_api::{Bytes, Cpus};

use crate::args::{as_ms, parse_duration};
use crate::commands::status::describe_resize;
use crate::{output, state};

const EXAMPLES: &str = "\
Examples:
  concertina resize web --cpus 2
  concertina resize web --cpus 1.5 --memory 768M
  concertina resize web --memory 256M --timeout 30s --json
  concertina resize web --disk-rate 50M,2000iops
  concertina resize web --disk-rate 1=max
  concertina resize web --net-rate 10M
  concertina resize web --net-rate 0.tx=5M,2000iops

The size has to be within the bounds that the instance was launched with, and so have limits that have
bounds (--disk-rate and --net-rate of 'run'); such a limit is the same for all disks, or for all network
interfaces and directions, and what the new one does not name stays as it is. Limits without bounds can be
anything. Thresholds of what was resized by hand pause for the policy's manual_hold (5 minutes by default).

JSON fields: outcome (applied, partial, refused, rolled_back, timed_out), asked, got, reason,
timeline_ms. Exit status: 0 applied, 1 any other outcome.";

/// Arguments of `resize`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("size").args(["cpus", "memory", "disk_rate", "net_rate"]).required(true).multiple(true))]
pub struct Args {
    /// Name of the instance
    name: String,
    /// CPUs, whole or with a fraction: 2, 0.5
    #[arg(long, value_name = "X")]
    cpus: Option<Cpus>,
    /// Memory: 512M, 1.5G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Limit of all disks, or of one by its number: 50M, 2000iops, 50M,2000iops, max, 1=50M
    #[arg(long, value_name = "[N=]RATE")]
    disk_rate: Option<DiskRate>,
    /// Limit of all network interfaces in both directions; before it which, and which direction, as
    /// the guest sees it: 10M, max, 0=10M, rx=10M, 0.tx=5M,2000iops
    #[arg(long, value_name = "[N][.][rx|tx][=]RATE")]
    net_rate: Option<NetRateChange>,
    /// How long the guest may take for each step: 10s, 500ms
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,
    /// Idempotency key: a request with the key of an earlier one gets that one's answer, and nothing
    /// is done again
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Resizes and prints the outcome.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let entry = state::find_running(state, &args.name)?;
    let wish = InstanceResize {
        cpus: args.cpus,
        memory: args.memory,
        disk_rate: args.disk_rate,
        net_rate: args.net_rate,
        timeout_ms: Some(as_ms(args.timeout)),
        key: args.key.clone(),
    };
    let report = client::resize(&entry.paths, &wish)?;
    if args.json {
        output::json(&report)?;
    } else {
        output::line(&format!("{}: {}", args.name, describe_resize(&report)))?;
    }
    Ok(if report.outcome == Outcome::Applied {
        0
    } else {
        1
    })
}
