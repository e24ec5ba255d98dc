//! A few words on the console of a guest without a shell, so that it can be used anyway.

use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::sys::{self, Ending};
use super::{command, power};

const HELP: &str = "\
help                     this text
load [OPTION]...         make load; 'load --help' tells how; Ctrl-C ends it
status [--json]          what this guest has
online                   bring offline vCPUs and memory online, once
poweroff, reboot         end the guest";

/// Reads and obeys lines until the end of input.
pub fn run() -> io::Result<()> {
    // Ctrl-C is for the program that the line has started.
    sys::ignore_signal(libc::SIGINT, true);
    sys::say("No shell in this guest; 'help' lists what there is.");
    let mut lines = io::stdin().lock().lines();
    loop {
        print!("concertina> ");
        io::stdout().flush()?;
        let Some(line) = lines.next() else {
            return Ok(());
        };
        let line = line?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.split_first() {
            None => {}
            Some((&("help" | "?"), _)) => sys::say(HELP),
            Some((&"poweroff" | &"halt", _)) => end(Ending::PowerOff),
            Some((&"reboot", _)) => end(Ending::Reboot),
            Some((&"online", _)) => run_self(&["online", "--once"]),
            Some((word, _)) if command::is_subcommand(word) => run_self(&words),
            Some((word, _)) => sys::say(&format!("'{word}' is not known here; try 'help'")),
        }
    }
}

fn end(how: Ending) {
    if let Err(problem) = power::request(how, false) {
        sys::say(&problem);
    }
}

fn run_self(words: &[&str]) {
    let mut command = Command::new("/proc/self/exe");
    command.args(words);
    // SAFETY: between fork and exec only one system call is made, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            sys::ignore_signal(libc::SIGINT, false);
            Ok(())
        })
    };
    if let Err(error) = command.status() {
        sys::say(&format!("Cannot run {}: {error}", words.join(" ")));
    }
}
