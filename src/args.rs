//! The command line's shape. What belongs to one subcommand lies in that subcommand's file.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::commands::{
    account, agent, completions, console, control, doctor, events, host, image, key, login, ps,
    replay, resize, run, status, stop, top, up, usage,
};

const EXAMPLES: &str = "\
Examples:
  concertina doctor
  concertina run --name web --cpus 0.5..4 --memory 256M..1G \\
      --scale 'cpu > 75% for 5s: +1 cpu' --scale 'cpu < 20% for 60s: -1 cpu' --detach
  concertina status web
  concertina resize web --cpus 2 --memory 512M
  concertina events web --follow
  concertina stop web

Exit status: 0 done, 1 failed, 2 wrong command line or value. 'run' in the foreground ends with
the exit status of its instance.";

/// Virtual machines that grow and shrink in place with their load.
#[derive(Debug, Parser)]
#[command(name = "concertina", version, about, after_help = EXAMPLES, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// Folder with one folder per instance: sockets, logs, events. Default: /run/concertina for
    /// root, $XDG_RUNTIME_DIR/concertina for others
    #[arg(long, global = true, env = "CONCERTINA_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// At the control plane that this person is logged in to
    #[arg(long, global = true, conflicts_with_all = ["local", "state_dir"])]
    pub remote: bool,
    /// On this host, although this person is logged in to a control plane
    #[arg(long, global = true)]
    pub local: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Launch an instance that keeps itself within bounds by its thresholds
    Run(Box<run::Args>),
    /// List instances
    Ps(ps::Args),
    /// Show one instance: state, size, target, thresholds
    Status(status::Args),
    /// Show all instances on one screen, live: sizes, load, pressure, events; resize by hand
    Top(top::Args),
    /// Give an instance another size now, within its bounds
    Resize(resize::Args),
    /// Show what happened to an instance
    Events(events::Args),
    /// Show what instances held and for how long, or check the records of it
    Usage(usage::Args),
    /// Connect the terminal to an instance's serial console
    Console(console::Args),
    /// End an instance
    Stop(stop::Args),
    /// Own all instances of this host: decide, account, survive
    Agent(agent::Args),
    /// A whole cloud on this machine: control plane and agent, an account and an image
    Up(up::Args),
    /// Serve customers and hosts: accounts, API, placement
    Control(Box<control::Args>),
    /// Remember where the control plane is, and the key
    Login(login::Args),
    /// Accounts of the control plane, for its operator
    Account(account::Args),
    /// API keys of an account
    Key(key::Args),
    /// Hosts of the control plane, for its operator
    Host(host::Args),
    /// Check whether this host can run instances, and say what mends it
    Doctor(doctor::Args),
    /// Build, import and inspect disk images; build the default guest's kernel and initramfs
    Image(image::Args),
    /// Replay a recorded load against a policy and others' ways to scale
    Replay(replay::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// A duration: `250ms`, `10s`, `2m 30s`, or a plain number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    humantime::parse_duration(text).map_err(|_| {
        format!("'{text}' is not a duration: write a number with ms, s, m or h, like 500ms or 10s")
    })
}

/// A duration as the milliseconds of a request.
pub fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_ascii_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_how_it_is_used_with_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("concertina "),
                "{} has no example",
                command.get_name()
            );
        }
    }

    #[test]
    fn the_contract_of_run_is_understood() {
        let line = "concertina run --name web --kernel k --initrd i --append a=b --cpus 0.5..4 \
                    --memory 256M..1G --scale x --scale y --policy p --detach --state-dir d";
        let Cli {
            command: Command::Run(args),
            state_dir,
            ..
        } = parse(line).unwrap()
        else {
            panic!("not run");
        };
        assert_eq!(args.cpus.unwrap().to_string(), "0.5..4");
        assert_eq!(args.memory.unwrap().to_string(), "256M..1G");
        assert_eq!(args.scale, ["x", "y"]);
        assert_eq!(state_dir.unwrap(), PathBuf::from("d"));
    }

    #[test]
    fn wrong_values_are_usage_errors() {
        for line in [
            "concertina run --cpus 1 --memory 256M",
            "concertina run --name a --cpus 4..1 --memory 256M",
            "concertina run --name a --cpus 1 --memory lots",
            "concertina run --name a --cpus 1 --memory 256M --console --detach",
            "concertina run --name a --cpus 1 --memory 256M --net bridge",
            "concertina run --name a --cpus 1 --memory 256M --net tap,mac=01:00:00:00:00:00",
            "concertina run --name a --cpus 1 --memory 256M --net user,forward=80",
            "concertina resize web",
            "concertina resize web --cpus -1",
            "concertina resize web --cpus 1 --timeout soon",
            "concertina frobnicate",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn durations_are_seconds_or_carry_their_unit() {
        assert_eq!(parse_duration("10").unwrap(), Duration::from_secs(10));
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_duration("2m 30s").unwrap(), Duration::from_secs(150));
        for text in ["", "-1", "1.5", "soon"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
