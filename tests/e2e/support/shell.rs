//! The guest's shell over the serial console, through `concertina console` with pipes.
//!
//! A command's output is framed by two markers. The terminal in the guest echoes what is typed, so
//! the typed form of a marker differs from the printed one: the shell joins `@''B7` to `@B7`.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{BOOT_LIMIT, STEP_LIMIT};

#[derive(Default)]
struct Output {
    text: Mutex<String>,
    grew: Condvar,
}

/// A connection to the shell of a guest.
pub struct Shell {
    child: Child,
    input: ChildStdin,
    output: Arc<Output>,
    serial: u32,
}

impl Shell {
    /// Connects, and waits until the shell answers.
    #[track_caller]
    pub fn connect(state_dir: &Path, name: &str) -> Self {
        Self::connect_within(state_dir, name, BOOT_LIMIT)
    }

    /// The same for a guest that takes longer.
    #[track_caller]
    pub fn connect_within(state_dir: &Path, name: &str, limit: Duration) -> Self {
        let started = Instant::now();
        let mut shell = Self::attach(state_dir, name);
        loop {
            // A guest that restarts has no console for a moment, so it is asked for again.
            if shell.answers() {
                return shell;
            }
            assert!(
                started.elapsed() < limit,
                "The guest's shell does not answer; the console says:\n{}",
                shell.tail()
            );
            if !matches!(shell.child.try_wait(), Ok(None)) {
                shell = Self::attach(state_dir, name);
            }
        }
    }

    fn attach(state_dir: &Path, name: &str) -> Self {
        let mut child = Command::new("concertina")
            .arg("console")
            .arg(name)
            .arg("--state-dir")
            .arg(state_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("'concertina console' can be started");
        let input = child.stdin.take().expect("its input is a pipe");
        let mut pipe = child.stdout.take().expect("its output is a pipe");
        let output = Arc::new(Output::default());
        let filled = Arc::clone(&output);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read) = pipe.read(&mut chunk) {
                if read == 0 {
                    break;
                }
                let text = String::from_utf8_lossy(&chunk[..read]);
                filled.text.lock().unwrap().push_str(&text);
                filled.grew.notify_all();
            }
        });
        Self {
            child,
            input,
            output,
            serial: 0,
        }
    }

    /// Types once there is a prompt: what is typed before the shell reads is lost.
    fn answers(&mut self) -> bool {
        if self.sees("# ", 0, Duration::from_secs(3)).is_none() {
            return false;
        }
        self.serial += 1;
        let hello = format!("@H{}-{}", self.child.id(), self.serial);
        self.type_line(&format!("echo @''{}", &hello[1..]));
        self.sees(&hello, 0, Duration::from_secs(3)).is_some()
    }

    /// Runs a command in the guest and gives what it printed, trimmed; fails when it fails.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let (status, text) = self.try_run(command, STEP_LIMIT);
        assert_eq!(status, 0, "In the guest, '{command}' failed:\n{text}");
        text
    }

    /// The same as a number.
    #[track_caller]
    pub fn number(&mut self, command: &str) -> u64 {
        let text = self.run(command);
        text.parse()
            .unwrap_or_else(|_| panic!("In the guest, '{command}' gave no number:\n{text}"))
    }

    /// Runs a command in the guest; gives its exit status and what it printed, trimmed.
    #[track_caller]
    pub fn try_run(&mut self, command: &str, limit: Duration) -> (i32, String) {
        self.serial += 1;
        let n = self.serial;
        let from = self.output.text.lock().unwrap().len();
        self.type_line(&format!("echo @''B{n}; {command}; echo @''E{n} $?."));
        let begin = self.expect(&format!("@B{n}"), from, limit, command);
        let end = self.expect(&format!("@E{n} "), begin, limit, command);
        let stop = self.expect(".", end, limit, command);
        let text = self.output.text.lock().unwrap();
        let body = &text[begin..end - format!("@E{n} ").len()];
        let status = text[end..stop - 1].trim().parse().unwrap_or(-1);
        (status, body.replace('\r', "").trim().to_owned())
    }

    /// Types a line and does not wait for anything.
    pub fn type_line(&mut self, line: &str) {
        let typed = self.input.write_all(format!("{line}\n").as_bytes());
        typed.and_then(|()| self.input.flush()).ok();
    }

    /// Memory of the guest as its kernel counts it, from `/proc/meminfo`, in bytes.
    #[track_caller]
    pub fn meminfo(&mut self, field: &str) -> u64 {
        let text = self.run("cat /proc/meminfo");
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .unwrap_or_else(|| panic!("No {field} in the guest's meminfo:\n{text}"))
            * 1024
    }

    /// Number of processors online in the guest.
    #[track_caller]
    pub fn online_cpus(&mut self) -> u64 {
        self.number("grep -c ^processor /proc/cpuinfo")
    }

    #[track_caller]
    fn expect(&self, marker: &str, from: usize, limit: Duration, command: &str) -> usize {
        self.sees(marker, from, limit).unwrap_or_else(|| {
            panic!(
                "In the guest, '{command}' did not end within {} s; the console says:\n{}",
                limit.as_secs(),
                self.tail()
            )
        })
    }

    /// Position after the first `marker` at or after `from`, once it is there.
    fn sees(&self, marker: &str, from: usize, limit: Duration) -> Option<usize> {
        let deadline = Instant::now() + limit;
        let mut text = self.output.text.lock().unwrap();
        loop {
            if let Some(at) = text.get(from..).and_then(|rest| rest.find(marker)) {
                return Some(from + at + marker.len());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            text = self.output.grew.wait_timeout(text, left).unwrap().0;
        }
    }

    fn tail(&self) -> String {
        let text = self.output.text.lock().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
