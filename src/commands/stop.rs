//! `concertina stop`: asks the guest to power off, waits, and ends the VM when it does not.

pub mod remote;

use std::time::{Duration, Instant};

use anyhow::bail;
use concertina_agent::client;
use concertina_agent::state_dir::StateDir;
use concertina_api::instance::StopRequest;

use crate::args::{as_ms, parse_duration};
use crate::failure::Usage;
use crate::{output, state};

const EXAMPLES: &str = "\
Examples:
  concertina stop web
  concertina stop web --timeout 2m
  concertina stop web --force

Returns when the instance has ended. An instance that has ended already is no error.";

/// How often to look whether it has ended.
const LOOK_PERIOD: Duration = Duration::from_millis(20);
/// How much longer than the guest's time its supervisor may take to end the VM and tidy up.
const TIDY_UP: Duration = Duration::from_secs(20);

/// Arguments of `stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance
    name: String,
    /// Do not ask the guest: end the VM now
    #[arg(short, long)]
    force: bool,
    /// Remove what is left of it, too, its disk with it: an instance of a control plane's only
    #[arg(long)]
    terminate: bool,
    /// How long the guest may take to power off; then the VM is ended
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "30s")]
    timeout: Duration,
}

/// Stops and waits for the end.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    if args.terminate {
        let why = "Option --terminate is for instances of a control plane: log in to it first, or \
                   leave out --local";
        return Err(Usage(why.into()).into());
    }
    let entry = state::find(state, &args.name)?;
    if entry.left_vmm.is_some() {
        state::find_running(state, &args.name)?;
    }
    if entry.alive {
        let request = StopRequest {
            force: args.force,
            timeout_ms: Some(as_ms(args.timeout)),
        };
        if let Err(error) = client::stop(&entry.paths, &request)
            && state::find(state, &args.name)?.alive
        {
            return Err(error.into());
        }
        let patience = if args.force {
            TIDY_UP
        } else {
            args.timeout.saturating_add(TIDY_UP)
        };
        let begun = Instant::now();
        while state::find(state, &args.name)?.alive {
            if begun.elapsed() > patience {
                bail!(
                    "Instance '{}' still runs {} after it was asked to stop: its supervisor is \
                     process {}",
                    args.name,
                    output::span(begun.elapsed()),
                    entry.agent_pid
                );
            }
            std::thread::sleep(LOOK_PERIOD);
        }
    }
    let reason = state::find(state, &args.name)?
        .ending
        .map(|ending| ending.reason);
    output::line(&format!(
        "{}: {}",
        args.name,
        reason.as_deref().unwrap_or("ended")
    ))?;
    Ok(0)
}
