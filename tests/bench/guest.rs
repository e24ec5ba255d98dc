//! The guest's side: a shell over the console socket, and a watch that says when a size is seen.
//!
//! The watch is a loop of shell built-ins that starts no process: once a period it reads the online
//! processors and the total memory, and prints them when they differ from before.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const BOOT_LIMIT: Duration = Duration::from_secs(240);
const STEP_LIMIT: Duration = Duration::from_secs(60);

const WATCH: &str = "mkfifo /w; (exec 9<>/w; c=; m=; while :; do read n </sys/devices/system/cpu/online; \
                     read a b d </proc/meminfo; [ \"$n$b\" = \"$c$m\" ] || { c=$n; m=$b; echo \"@w $n $b.\"; }; \
                     read -t @PERIOD x <&9; done) &";

#[derive(Default)]
struct Output {
    text: Mutex<String>,
    grew: Condvar,
}

/// What the guest sees of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Processors online; the numbers are without holes.
    pub cpus: u32,
    /// Total memory in KiB.
    pub memory_kib: u64,
}

/// A connection to a guest's shell.
pub struct Guest {
    socket: UnixStream,
    output: Arc<Output>,
    questions: u32,
}

impl Guest {
    /// Connects, and waits until the shell answers.
    pub fn connect(console: &Path) -> Result<Self> {
        let started = Instant::now();
        let socket = loop {
            match UnixStream::connect(console) {
                Ok(socket) => break socket,
                Err(_) if started.elapsed() < STEP_LIMIT => {
                    thread::sleep(Duration::from_millis(50))
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("Connecting to {}", console.display()));
                }
            }
        };
        let output = Arc::new(Output::default());
        let (filled, mut reader) = (Arc::clone(&output), socket.try_clone()?);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..read]);
                filled
                    .text
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
                filled.grew.notify_all();
            }
        });
        let mut guest = Self {
            socket,
            output,
            questions: 0,
        };
        // What is typed before the shell reads is lost.
        while guest.find("# ", Duration::from_secs(3)).is_none()
            || guest.answer("true", Duration::from_secs(3)).is_none()
        {
            if started.elapsed() > BOOT_LIMIT {
                let text = guest
                    .output
                    .text
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                bail!("The guest's shell does not answer; its console says:\n{text}");
            }
        }
        Ok(guest)
    }

    /// The same, and starts the watch, which looks once a `period`.
    pub fn watched(console: &Path, period: Duration) -> Result<Self> {
        let mut guest = Self::connect(console)?;
        let period = format!("{:.3}", period.as_secs_f64());
        guest.type_line(&WATCH.replace("@PERIOD", &period))?;
        guest.wait_for_size("the watch in the guest", 0, |_| true)?;
        Ok(guest)
    }

    fn type_line(&mut self, line: &str) -> Result<()> {
        self.socket
            .write_all(format!("{line}\n").as_bytes())
            .context("Typing on the guest's console")
    }

    /// Runs a command in the guest to its end.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.answer(command, STEP_LIMIT)
            .with_context(|| format!("The guest does not answer '{command}'"))
    }

    /// Starts a command in the guest, and waits until the guest's shell has read it.
    pub fn start(&mut self, command: &str) -> Result<()> {
        self.questions += 1;
        let n = self.questions;
        self.type_line(&format!("echo \"@\"S{n}; {command} >/dev/null &"))?;
        self.find(&format!("@S{n}"), STEP_LIMIT)
            .with_context(|| format!("The guest does not start '{command}'"))
    }

    /// The typed form of the frame differs from the printed one, since the terminal echoes it.
    fn answer(&mut self, command: &str, limit: Duration) -> Option<String> {
        self.questions += 1;
        let n = self.questions;
        self.type_line(&format!("echo \"@\"B{n}:$({command}):\"@\"E{n}"))
            .ok()?;
        self.find(&format!(":@E{n}"), limit)?;
        let text = self
            .output
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (_, rest) = text.split_once(&format!("@B{n}:"))?;
        Some(rest.split_once(&format!(":@E{n}"))?.0.trim().to_owned())
    }

    fn find(&self, what: &str, limit: Duration) -> Option<()> {
        self.wait(limit, |text| text.contains(what).then_some(()))
    }

    fn wait<T>(&self, limit: Duration, look: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut text = self
            .output
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&text) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.output.grew.wait_timeout(text, left);
            text = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Position in the console's output; sizes seen before it can be left out.
    pub fn mark(&self) -> usize {
        self.output
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// The size that the watch has seen last.
    pub fn size(&self) -> Result<Size> {
        self.wait_for_size("any size", 0, |_| true)
    }

    /// Waits until the last size that the watch has printed after `mark` is one that is wanted.
    pub fn wait_for_size(
        &self,
        what: &str,
        mark: usize,
        wanted: impl Fn(Size) -> bool,
    ) -> Result<Size> {
        self.wait(STEP_LIMIT, |text| {
            let tail = text.get(mark..)?;
            let size = tail
                .rmatch_indices("@w ")
                .find_map(|(at, word)| parse_size(&tail[at + word.len()..]))?;
            wanted(size).then_some(size)
        })
        .with_context(|| format!("The guest does not see {what}"))
    }
}

/// Reads `0-2 1012345.`, as far as it is whole.
fn parse_size(text: &str) -> Option<Size> {
    let (line, _) = text.split_once('.')?;
    let (online, memory) = line.split_once(' ')?;
    let last = online.rsplit(['-', ',']).next()?;
    Some(Size {
        cpus: last.parse::<u32>().ok()?.checked_add(1)?,
        memory_kib: memory.parse().ok()?,
    })
}
