//! Programs on the console: the shell that is there whenever it ends, and commands of the kernel
//! command line.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::kept::{Kept, Pauses};
use super::{bootargs, command, sys};

const SHELL: &str = "/bin/sh";
const SELF: &str = "/proc/self/exe";
/// Where the image builder puts this program; needed in shell lines, which know only the `PATH`.
const NAME: &str = "concertina-guest";
const SEARCH_PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";
/// A shell that ends sooner than this is broken, and is given a rest before it is tried again.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// Process id of a started program.
pub type Pid = libc::pid_t;

/// Starts the shell on the console, which is there again whenever it ends.
pub fn start_shell() -> Kept {
    let pauses = Pauses {
        first: SHORTEST_LIFE,
        longest: SHORTEST_LIFE,
    };
    let start = || spawn_on_console(shell_command());
    Kept::start("a shell", pauses, Instant::now(), start)
}

fn shell_command() -> Command {
    if fs::exists(SHELL).unwrap_or(false) {
        let mut shell = Command::new(SHELL);
        // A leading dash makes it a login shell.
        shell.arg0("-sh").current_dir("/root");
        shell
    } else {
        let mut prompt = Command::new(SELF);
        prompt.arg("prompt");
        prompt
    }
}

/// Starts a command of the kernel command line on the console.
pub fn run(command: &bootargs::Command) -> io::Result<Pid> {
    spawn_on_console(prepare(command)?)
}

/// Starts a command of the kernel command line beside the console's shell; its output goes there
/// too.
pub fn run_in_background(command: &bootargs::Command) -> io::Result<Pid> {
    let mut command = prepare(command)?;
    command.stdin(Stdio::null()).process_group(0);
    spawn(command)
}

fn prepare(command: &bootargs::Command) -> io::Result<Command> {
    let words: Vec<&str> = match command {
        bootargs::Command::Words(words) => words.iter().map(String::as_str).collect(),
        bootargs::Command::Line(line) => line.split_ascii_whitespace().collect(),
    };
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| io::Error::other("the command is empty"))?;
    let ours = command::is_subcommand(program);
    if let bootargs::Command::Line(line) = command
        && fs::exists(SHELL).unwrap_or(false)
    {
        let mut shell = Command::new(SHELL);
        shell.arg("-c").arg(if ours {
            format!("{NAME} {line}")
        } else {
            line.clone()
        });
        return Ok(shell);
    }
    let mut prepared = Command::new(if ours { SELF } else { program });
    if ours {
        prepared.arg(program);
    }
    prepared.args(arguments);
    Ok(prepared)
}

fn spawn_on_console(mut command: Command) -> io::Result<Pid> {
    let terminal = open_terminal()?;
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(move || sys::adopt_terminal(terminal.as_fd())) };
    spawn(command)
}

fn spawn(mut command: Command) -> io::Result<Pid> {
    command
        .env("PATH", SEARCH_PATH)
        .env("HOME", "/root")
        .env("TERM", "vt220");
    // SAFETY: between fork and exec only a system call is made, and nothing is allocated.
    unsafe { command.pre_exec(sys::unblock_signals) };
    // Process 1 reaps every child by itself: the handle is not waited for.
    let child = command.spawn()?;
    Pid::try_from(child.id()).map_err(io::Error::other)
}

/// The terminal behind /dev/console. That name itself cannot be a controlling terminal, and without
/// one there is no Ctrl-C.
fn open_terminal() -> io::Result<File> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let name = active
        .split_ascii_whitespace()
        .next_back()
        .unwrap_or("ttyS0");
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
    open(&format!("/dev/{name}")).or_else(|_| open("/dev/console"))
}
