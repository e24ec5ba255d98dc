//! `passt` (Debian package of that name): a program that speaks Ethernet to the guest and ordinary
//! sockets to the host, so that a guest reaches what its user reaches, without root.
//!
//! It gets its end of a socket pair, and ends by itself when the vmm's end is closed: so it outlives
//! neither the vmm nor, when that is killed, this supervisor.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use concertina_api::net::Forward;

use super::NetError;
use crate::vmm::process;

/// Name of the program, and of its package.
pub const PROGRAM: &str = "passt";
/// As whom it runs when we are root, which it refuses to be: nobody, by numbers, which every host has.
const NOBODY: &str = "65534:65534";
/// How long it may take until it serves. Longer than that it is not waited for.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
const READY_PAUSE: Duration = Duration::from_millis(2);

/// Where the program is.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    places.find(|program| program.is_file())
}

/// Whether the program is there.
pub fn check_installed() -> Result<(), NetError> {
    match find() {
        Some(_) => Ok(()),
        None => Err(NetError::Host(format!(
            "--net user needs the program {PROGRAM}, which is not installed: apt-get install \
             {PROGRAM}"
        ))),
    }
}

fn arguments(forwards: &[Forward], fd: i32, root: bool) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--quiet",
        "--stderr",
        // Else a guest reaches what listens on the host's loopback only, by its gateway's address.
        "--no-map-gw",
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(["--fd".into(), fd.to_string()]);
    for Forward { host, guest } in forwards {
        let loopback = Ipv4Addr::LOCALHOST;
        arguments.extend(["--tcp-ports".into(), format!("{loopback}/{host}:{guest}")]);
    }
    if root {
        arguments.extend(["--runas".into(), NOBODY.into()]);
    }
    arguments
}

/// A running `passt`. It is ended and reaped when this is dropped.
#[derive(Debug)]
pub(crate) struct Passt {
    /// Number of its interface.
    index: usize,
    child: Child,
    /// What it says; only read when it has ended.
    words: UnixStream,
    left: bool,
}

impl Passt {
    /// Starts one inside the group whose `cgroup.procs` is given; gives the vmm's end of its socket as
    /// well.
    pub fn start(
        index: usize,
        forwards: &[Forward],
        procs: File,
    ) -> Result<(Self, OwnedFd), NetError> {
        let system = |what: &str, source| NetError::System {
            what: format!("{what} of {PROGRAM} cannot be made"),
            source,
        };
        check_installed()?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| system("The socket", e))?;
        let (words, their_words) = UnixStream::pair().map_err(|e| system("The output", e))?;
        // Nobody reads while it runs: what finds no room any more is lost, and nobody waits.
        their_words
            .set_nonblocking(true)
            .and_then(|()| words.set_nonblocking(true))
            .map_err(|e| system("The output", e))?;
        // SAFETY: geteuid(2) has no preconditions.
        let root = unsafe { libc::geteuid() } == 0;
        let fd = theirs.as_raw_fd();
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments(forwards, fd, root))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(OwnedFd::from(their_words))
            // Ctrl-C in the terminal is for the supervisor.
            .process_group(0);
        let prepare = move || process::enter(&procs).and_then(|()| process::inherit(fd));
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().map_err(|source| NetError::System {
            what: format!("Starting {PROGRAM} failed"),
            source,
        })?;
        let started = Self {
            index,
            child,
            words,
            left: false,
        };
        Ok((started, OwnedFd::from(ours)))
    }

    /// Waits until it serves, which is when its ports are bound; an error is what it said.
    ///
    /// It says nothing then, but the last thing that it does before is to give up all system calls
    /// but a few, and that can be seen.
    pub fn wait_until_ready(&mut self) -> Result<(), NetError> {
        let began = Instant::now();
        loop {
            if let Some(words) = self.ended() {
                return Err(NetError::Host(format!(
                    "{PROGRAM}, which connects the guest to the host's networks, gave up: {words}"
                )));
            }
            if is_confined(self.child.id()) || began.elapsed() > READY_TIMEOUT {
                return Ok(());
            }
            thread::sleep(READY_PAUSE);
        }
    }

    /// It goes on without us, as long as its vmm.
    pub fn leave(mut self) {
        self.left = true;
    }

    /// Number of its interface.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its last words, when it has ended.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        let mut text = Vec::new();
        // Ends with an error where there is nothing more: what was read before stays.
        let _ = self.words.read_to_end(&mut text);
        Some(last_words(&String::from_utf8_lossy(&text)).unwrap_or_else(|| status.to_string()))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // Only fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process has more filters of system calls than we have, who may run inside a container.
fn is_confined(pid: u32) -> bool {
    let filters = |process: &str| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        filter_count(&status)
    };
    filters(&pid.to_string()) > filters("self")
}

/// How many filters a `status` tells of. Before Linux 5.9 there is only a mode, larger with a filter.
fn filter_count(status: &str) -> Option<u32> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let count = field("Seccomp_filters:").or_else(|| field("Seccomp:"))?;
    count.trim().parse().ok()
}

/// The last line with words, without control characters.
fn last_words(text: &str) -> Option<String> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().filter(|c| !c.is_control()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_bound_to_loopback_and_the_hosts_loopback_is_closed_to_the_guest() {
        let forwards = [Forward {
            host: 8080,
            guest: 80,
        }];
        let line = arguments(&forwards, 7, false).join(" ");
        assert!(line.contains("--tcp-ports 127.0.0.1/8080:80"), "{line}");
        assert!(line.contains("--fd 7"), "{line}");
        assert!(line.contains("--no-map-gw"), "{line}");
        assert!(!line.contains("runas"), "{line}");
        assert!(
            arguments(&[], 7, true)
                .join(" ")
                .ends_with("--runas 65534:65534")
        );
    }

    #[test]
    fn the_last_line_is_what_it_died_of() {
        let text = "No external routable interface for IPv6\nFailed to bind \u{1b}port 80\n\n";
        assert_eq!(last_words(text).as_deref(), Some("Failed to bind port 80"));
        assert_eq!(last_words("\n"), None);
    }

    #[test]
    fn a_process_is_confined_when_it_has_more_filters_than_we() {
        assert!(!is_confined(u32::MAX));
        assert!(!is_confined(std::process::id()));
        assert_eq!(filter_count("Seccomp:\t2\nSeccomp_filters:\t3\n"), Some(3));
        assert_eq!(filter_count("Seccomp:\t2\n"), Some(2));
        assert_eq!(filter_count("Name:\tx\n"), None);
    }
}
