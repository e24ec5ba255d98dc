//! The command line of the program when it is not process 1. By the names `poweroff`, `reboot` and
//! `halt` it is those commands.

use std::process::ExitCode;

use super::onliner::{self, Voice};
use super::status::Status;
use super::sys::{self, Ending};
use super::{agent, load, power, prompt, vsock};

const HELP: &str = "\
concertina-guest: the program inside a Concertina guest

Usage: concertina-guest COMMAND [OPTION]...

Commands:
  online [--once]     bring hot-added vCPUs and memory online as they come (a service: stays in
                      the foreground), or once what is offline now
  load [OPTION]...    make CPU and memory load; 'load --help' tells how
  status [--json]     vCPUs, memory, uptime and kernel modules of this guest
  agent               the channel to the host, and 'online' (a service); 'agent --help' tells more
  metric NAME VALUE   gives the host's rules a number, custom.NAME
  vsock …             byte streams to and from the host; 'vsock --help' tells how
  poweroff, reboot    end the guest; --force: at once, without telling its programs
  prompt              the console of a guest without a shell

As process 1 it is the init of the default guest and obeys these on the kernel command line:
  concertina.run=TEXT      run TEXT, print its exit status, power off; -- WORD... does the same
  concertina.start=TEXT    run TEXT beside everything else
  concertina.dhcp=ETH      ask for an address on the interface ETH
  concertina.poweroff      power off as soon as the init is up; concertina.reboot reboots
  concertina.console=no    no shell on the console
TEXT is quoted by double quotes or written with %XX for blanks and the like.";

/// Whether a word is one of the commands that may stand alone on the kernel command line.
pub fn is_subcommand(word: &str) -> bool {
    matches!(
        word,
        "online" | "agent" | "metric" | "load" | "status" | "vsock" | "prompt"
    )
}

/// Runs what the words ask for; the first is the name that the program was called by.
pub fn run(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (called, arguments) = words.split_first().unwrap_or((&"", &[]));
    let name = called.rsplit('/').next().unwrap_or_default();
    let result = match (name, arguments) {
        ("poweroff" | "halt", options) => end(Ending::PowerOff, options),
        ("reboot", options) => end(Ending::Reboot, options),
        (_, ["poweroff" | "halt", options @ ..]) => end(Ending::PowerOff, options),
        (_, ["reboot", options @ ..]) => end(Ending::Reboot, options),
        (_, ["online", options @ ..]) => online(options),
        (_, ["load", options @ ..]) => load::run(options),
        (_, ["status", options @ ..]) => status(options),
        (_, ["agent", options @ ..]) => agent::run(options),
        (_, ["metric", name, value]) => agent::send_gauge(name, value).map_err(Problem::Failed),
        (_, ["metric", ..]) => Err(Problem::Usage("Say metric NAME VALUE".into())),
        (_, ["vsock", options @ ..]) => vsock::run(options),
        (_, ["prompt"]) => prompt::run().map_err(|error| Problem::Failed(error.to_string())),
        (_, ["help" | "--help" | "-h"]) => {
            sys::say(HELP);
            Ok(())
        }
        (_, ["--version" | "-V"]) => {
            sys::say(concat!("concertina-guest ", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        (_, []) => Err(Problem::Usage("Say what to do: see --help".into())),
        (_, [word, ..]) => Err(unknown(word)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let (text, status) = match problem {
                Problem::Usage(text) => (text, 2),
                Problem::Failed(text) => (text, 1),
            };
            eprintln!("concertina-guest: {text}");
            ExitCode::from(status)
        }
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// It was asked wrongly.
    Usage(String),
    /// It could not be done.
    Failed(String),
}

fn unknown(word: &str) -> Problem {
    Problem::Usage(format!("'{word}' is not known here: see --help"))
}

fn end(how: Ending, options: &[&str]) -> Result<(), Problem> {
    let force = match options {
        [] => false,
        ["-f" | "--force"] => true,
        [word, ..] => return Err(unknown(word)),
    };
    power::request(how, force).map_err(Problem::Failed)
}

fn online(options: &[&str]) -> Result<(), Problem> {
    match options {
        [] => onliner::run(Voice::Verbose)
            .map_err(|error| Problem::Failed(format!("Cannot receive kernel events: {error}"))),
        ["--once"] => {
            onliner::scan_once(Voice::Verbose);
            Ok(())
        }
        [word, ..] => Err(unknown(word)),
    }
}

fn status(options: &[&str]) -> Result<(), Problem> {
    match options {
        [] => sys::say(&Status::read().to_text()),
        ["--json"] => sys::say(&Status::read().to_json()),
        [word, ..] => return Err(unknown(word)),
    }
    Ok(())
}
