//! `concertina completions`: scripts for the shells' completion.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  concertina completions bash > /etc/bash_completion.d/concertina
  concertina completions zsh > ~/.zfunc/_concertina";

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> anyhow::Result<i32> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "concertina", &mut script);
    output::write(&script)?;
    Ok(0)
}
