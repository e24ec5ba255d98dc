//! `concertina console`: the serial console of a running instance, for a person or for a script.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use concertina_agent::state_dir::StateDir;

use crate::args::parse_duration;
use crate::pump::{self, End, Input};
use crate::signals::Signals;
use crate::state;
use crate::terminal::RawMode;

const EXAMPLES: &str = "\
Examples:
  concertina console web
  printf 'cat /proc/loadavg\\n' | concertina console web
  concertina console web < /dev/null

On a terminal every key goes to the guest, Ctrl-C too; Ctrl-] leaves the console, and the instance
runs on. The last output from before is shown first. With input from a pipe or a file, all of it is
sent as it is, and the command ends when the guest has then been silent for --linger. The whole
output since launch lies in console.log in the instance's folder.";

/// Arguments of `console`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance
    name: String,
    /// After the end of piped input, how long the guest has to be silent
    #[arg(long, value_name = "T", value_parser = parse_duration, default_value = "2s")]
    linger: Duration,
}

/// Connects the terminal until one side ends it.
pub fn run(args: &Args, state: &StateDir) -> anyhow::Result<i32> {
    let entry = state::find_running(state, &args.name)?;
    let path = &entry.paths.console_socket;
    let socket = UnixStream::connect(path)
        .with_context(|| format!("Cannot connect to console socket '{}'", path.display()))?;
    let mut signals = Signals::catch().context("Catching signals failed")?;
    let raw = RawMode::enter().context("The terminal does not take raw mode")?;
    if raw.is_some() {
        eprint!(
            "Connected to the console of '{}'; Ctrl-] leaves it.\r\n",
            args.name
        );
    }
    let mut input = Input::stdin(raw.is_some(), Some(args.linger))?;
    let end = pump::run(&socket, &mut input, Some(&mut signals));
    let was_raw = raw.is_some();
    drop(raw);
    match end? {
        // As a shell reports a program that a signal ended.
        End::Signal(signal) => Ok(128 + signal),
        End::Closed => {
            eprintln!(
                "{}The console of '{}' is closed.",
                newline(was_raw),
                args.name
            );
            Ok(0)
        }
        End::Detached | End::Drained => {
            eprint!("{}", newline(was_raw));
            Ok(0)
        }
    }
}

/// The cursor may stand behind a prompt of the guest.
fn newline(was_raw: bool) -> &'static str {
    if was_raw { "\n" } else { "" }
}
