//! The `concertina` command: parses what a person typed, calls the library that does it, prints.
//!
//! Exit statuses: 0 done, 1 failed, 2 the command line or a value in it is wrong; `run` passes on
//! how its instance ended. Errors are one sentence on standard error.

mod args;
mod cache;
mod commands;
mod event_tail;
mod failure;
mod follow;
mod guest;
mod meminfo;
mod output;
mod policy;
mod poll;
mod progress;
mod pump;
mod remote;
mod signals;
mod state;
mod terminal;
mod text;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    // The VM's own process. It is dispatched before anything of the command line is touched: each
    // instance pays for every page that is used here.
    if let [_, verb, spec] = words.as_slice()
        && verb == "vmm"
    {
        return exit_code(concertina_vmm::process::main(Path::new(spec)));
    }
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return failure::report_parse(&error),
    };
    match dispatch(cli) {
        Ok(status) => exit_code(status),
        Err(error) => failure::report(&error),
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<i32> {
    if let Some(done) = remote::dispatch(&cli) {
        return done;
    }
    // Where the state lies is asked only by those who need it: `doctor` has to work without.
    let state = || state::open(cli.state_dir.as_deref());
    match cli.command {
        Command::Run(args) => commands::run::run(*args, state()?),
        Command::Ps(args) => commands::ps::run(&args, &state()?),
        Command::Status(args) => commands::status::run(&args, &state()?),
        Command::Top(args) => commands::top::run(&args, &state()?),
        Command::Resize(args) => commands::resize::run(&args, &state()?),
        Command::Events(args) => commands::events::run(&args, &state()?),
        Command::Usage(args) => commands::usage::run(&args, &state()?),
        Command::Console(args) => commands::console::run(&args, &state()?),
        Command::Stop(args) => commands::stop::run(&args, &state()?),
        Command::Agent(args) => commands::agent::run(&args, cli.state_dir.as_deref()),
        Command::Up(args) => commands::up::run(&args, cli.state_dir.as_deref()),
        Command::Control(args) => commands::control::run(&args),
        Command::Login(args) => commands::login::run(&args),
        Command::Account(args) => commands::account::run(&args),
        Command::Key(args) => commands::key::run(&args),
        Command::Host(args) => commands::host::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Image(args) => commands::image::run(&args),
        Command::Replay(args) => commands::replay::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
    }
}

/// Exit statuses are bytes; whatever is not is a failure.
fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
