//! `concertina-guest agent`: the guest's end of the channel to the host (see
//! [`concertina_guest::channel`]), as a child of our own init or as a service of any other.
//!
//! One thread waits for everything: messages of the host, the kernel's pressure triggers, numbers
//! from programs, and the time of the next report. Hooks run in threads of their own. A host that does
//! not listen is asked again, ever more slowly.

mod gauges;
mod hooks;
mod report;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use concertina_guest::channel::{
    self, Change, FromGuest, GuestHello, HostHello, Lines, PORT, ToGuest, VERSION,
};
use serde::Serialize;

use super::command::Problem;
use super::onliner;
use super::power;
use super::sys::vsock::VsockSocket;
use super::sys::{self, Ending};
use gauges::Gauges;
use hooks::HookWatch;
use report::{Reporter, Triggers};

pub use gauges::send as send_gauge;

const HELP: &str = "\
Usage: concertina-guest agent [--no-online]

Brings hot-added vCPUs and memory online as they come (not with --no-online), and keeps a channel to
the host: it reports pressure, load, memory, disk and swap each second, and at once when something
has to wait; it runs the hooks below; and it shuts the guest down when the host asks for it.

Numbers for the host's rules: programs write statsd gauges, 'name:value|g', to the unix datagram
socket /run/concertina/metrics.sock; a rule sees one as custom.NAME. One that is not repeated for a
minute is unknown again. 'concertina-guest metric NAME VALUE' writes one.

Hooks: executables in /etc/concertina/hooks/before-shrink.d and after-grow.d, in the order of their
names, with CONCERTINA_AXIS (cpu or memory), CONCERTINA_FROM and CONCERTINA_TO (CPUs, or bytes) and
CONCERTINA_DEADLINE_MS in their environment. One before a shrink that ends with another status than
0 refuses the shrink; what it prints is the reason.";

/// Time between two tries to connect: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Time between two reports that the host may ask for.
const SHORTEST_PERIOD: Duration = Duration::from_millis(200);
const LONGEST_PERIOD: Duration = Duration::from_secs(60);
const USUAL_PERIOD: Duration = Duration::from_secs(1);
/// Shortest time between two reports out of turn.
const URGENT_PAUSE: Duration = Duration::from_millis(200);

/// Runs `agent` with its options; does not return unless they are wrong.
pub fn run(options: &[&str]) -> Result<(), Problem> {
    match options {
        [] => onliner::spawn(),
        ["--no-online"] => {}
        ["help" | "--help" | "-h"] => {
            sys::say(HELP);
            return Ok(());
        }
        [word, ..] => {
            return Err(Problem::Usage(format!(
                "'{word}' is not known here: see agent --help"
            )));
        }
    }
    let mut agent = Agent {
        gauges: Gauges::open(),
        triggers: Triggers::open(),
        hooks: HookWatch::open(),
        reporter: Reporter::new(),
    };
    let mut pause = FIRST_PAUSE;
    loop {
        if let Ok(socket) = VsockSocket::connect(PORT) {
            // However it ended: the host is asked again.
            let _ = agent.serve(&socket);
            pause = FIRST_PAUSE;
        }
        agent.rest(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Agent {
    gauges: Gauges,
    triggers: Triggers,
    hooks: Option<HookWatch>,
    reporter: Reporter,
}

/// Where messages to the host go, from any thread.
#[derive(Clone)]
struct Outbox(Arc<Mutex<File>>);

impl Outbox {
    fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let line = channel::encode(message).ok_or(io::ErrorKind::InvalidData)?;
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line)
    }
}

impl Agent {
    /// Waits while there is no host; programs' numbers are still taken.
    fn rest(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            sys::wait_readable(&[self.gauges.as_raw_fd()], Some(left));
            self.gauges.receive();
        }
    }

    /// Tells the host which hooks there are, when it does not know.
    fn tell_hooks(&mut self, outbox: &Outbox) -> io::Result<()> {
        match self.hooks.as_mut().and_then(HookWatch::news) {
            None => Ok(()),
            hooks => outbox.send(&FromGuest {
                hooks,
                ..FromGuest::default()
            }),
        }
    }

    /// Speaks with a host until it has gone.
    fn serve(&mut self, socket: &VsockSocket) -> io::Result<()> {
        let outbox = Outbox(Arc::new(Mutex::new(socket.stream()?)));
        outbox.send(&FromGuest {
            hello: Some(GuestHello {
                version: VERSION,
                program: concat!("concertina-guest ", env!("CARGO_PKG_VERSION")).into(),
            }),
            ..FromGuest::default()
        })?;
        if let Some(hooks) = &mut self.hooks {
            hooks.forget();
        }
        self.tell_hooks(&outbox)?;
        let mut input = socket.stream()?;
        let mut lines = Lines::default();
        let mut period = USUAL_PERIOD;
        let mut reported: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let due = reported.map_or(now, |at| at + period);
            let mut files: Vec<(RawFd, libc::c_short)> = vec![
                (socket.as_raw_fd(), libc::POLLIN),
                (self.gauges.as_raw_fd(), libc::POLLIN),
            ];
            // One that the kernel passes over is in the place of a watch that there is not.
            let hooks = self.hooks.as_ref().map_or(-1, HookWatch::as_raw_fd);
            files.push((hooks, libc::POLLIN));
            files.extend(self.triggers.files());
            let ready = sys::wait_for(&files, Some(due.saturating_duration_since(now)));
            self.gauges.receive();
            if ready.get(2) == Some(&true) {
                self.tell_hooks(&outbox)?;
            }
            if ready.first() == Some(&true) {
                let mut chunk = [0; 2048];
                let got = input.read(&mut chunk)?;
                if got == 0 {
                    return Ok(());
                }
                let mut messages = Vec::new();
                lines.feed(chunk.get(..got).unwrap_or_default(), |line| {
                    messages.extend(line.ok().and_then(channel::decode::<ToGuest>));
                });
                for message in messages {
                    obey(message, &outbox, &mut period);
                }
            }
            let now = Instant::now();
            let stalled = ready.iter().skip(3).any(|ready| *ready);
            let rested = reported.is_none_or(|at| now.duration_since(at) >= URGENT_PAUSE);
            if now >= due || (stalled && rested) {
                reported = Some(now);
                let mut report = self.reporter.report(self.gauges.values(now));
                report.urgent = stalled;
                outbox.send(&FromGuest {
                    report: Some(report),
                    ..FromGuest::default()
                })?;
            }
        }
    }
}

/// Does what the host says.
fn obey(message: ToGuest, outbox: &Outbox, period: &mut Duration) {
    if let Some(HostHello { period_ms, .. }) = message.hello {
        *period = Duration::from_millis(period_ms).clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
    }
    if let Some(change) = message.change {
        answer_hooks(change, outbox.clone());
    }
    if message.power_off {
        power_off();
    }
}

/// Where there is nothing to run the host hears so at once: a shrink waits for it.
fn answer_hooks(change: Change, outbox: Outbox) {
    if hooks::none_for(&change) {
        answer(&change, &outbox);
        return;
    }
    let thread = std::thread::Builder::new()
        .name("hooks".into())
        .stack_size(128 << 10);
    let started = thread.spawn(move || answer(&change, &outbox));
    if let Err(error) = started {
        eprintln!("concertina-guest: Hooks cannot run: {error}");
    }
}

fn answer(change: &Change, outbox: &Outbox) {
    // A host that has gone meanwhile has stopped waiting too.
    let _ = outbox.send(&FromGuest {
        answer: Some(hooks::run(change)),
        ..FromGuest::default()
    });
}

/// Through our own init, or by the command that every other one has.
fn power_off() {
    if power::request(Ending::PowerOff, false).is_ok() {
        return;
    }
    let started = Command::new("poweroff")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    match started {
        // It is reaped when it has ended; this process ends with the guest.
        Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
        Err(error) => eprintln!("concertina-guest: Cannot power off: {error}"),
    }
}
