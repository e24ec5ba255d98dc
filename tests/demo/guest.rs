//! The guest's shell over the serial console: commands, and the lines that its load generator prints.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use concertina_api::units::Bytes;

use crate::instance::Instance;

const BOOT_LIMIT: Duration = Duration::from_secs(240);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What the load generator wants at a moment, and what it got.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Demand {
    /// CPUs.
    pub cpus: f64,
    /// Memory.
    pub memory: Bytes,
    /// Memory that it holds.
    pub held: Bytes,
}

/// A connection to the guest's shell.
pub struct Guest {
    console: Child,
    input: ChildStdin,
    output: Arc<Mutex<String>>,
    questions: u32,
}

impl Guest {
    /// Connects, and waits until the shell answers.
    pub fn connect(instance: &Instance) -> Result<Self> {
        let mut console = instance
            .command_on("console")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("Starting 'concertina console'")?;
        let input = console.stdin.take().context("The console has no input")?;
        let mut pipe = console.stdout.take().context("The console has no output")?;
        let output = Arc::new(Mutex::new(String::new()));
        let filled = Arc::clone(&output);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..read]);
                filled
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        let mut guest = Self {
            console,
            input,
            output,
            questions: 0,
        };
        let started = Instant::now();
        // What is typed before the shell reads is lost.
        while !guest.text().contains("# ") || guest.answer("true", Duration::from_secs(3)).is_none()
        {
            thread::sleep(Duration::from_millis(50));
            if started.elapsed() > BOOT_LIMIT {
                bail!(
                    "The guest's shell does not answer; its console says:\n{}",
                    guest.text()
                );
            }
        }
        Ok(guest)
    }

    fn text(&self) -> String {
        self.output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn type_line(&mut self, line: &str) {
        // When the console is gone, the missing answer is what is reported.
        let _ = self.input.write_all(format!("{line}\n").as_bytes());
        let _ = self.input.flush();
    }

    /// What a command prints in the guest.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.answer(command, ANSWER_LIMIT)
            .with_context(|| format!("The guest does not answer '{command}'"))
    }

    /// The typed form of the frame differs from the printed one, since the terminal echoes it.
    fn answer(&mut self, command: &str, limit: Duration) -> Option<String> {
        self.questions += 1;
        let n = self.questions;
        // With a blank: `$((` would begin a sum, to busybox's shell at least.
        self.type_line(&format!("echo \"@\"B{n}:$( {command} ):\"@\"E{n}"));
        let started = Instant::now();
        while started.elapsed() < limit {
            let text = self.text();
            let framed = text
                .split_once(&format!("@B{n}:"))
                .and_then(|(_, rest)| rest.split_once(&format!(":@E{n}")));
            if let Some((answer, _)) = framed {
                return Some(answer.trim().to_owned());
            }
            thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// Starts the load beside the shell.
    pub fn start_load(&mut self, command: &str) {
        self.type_line(&format!("{command} &"));
    }

    /// What the load wanted last; nothing before it has begun and after it has ended.
    pub fn demand(&self) -> Demand {
        let text = self.text();
        let last = text.lines().rev().map(str::trim).find_map(parse_load);
        last.unwrap_or_default()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.console.kill();
        let _ = self.console.wait();
    }
}

/// Reads a line like `load t=3.0 cpu=3.0 memory=512M used=1.98 held=487M`, or `load done t=5.0`.
fn parse_load(line: &str) -> Option<Demand> {
    if line.starts_with("load done") {
        return Some(Demand::default());
    }
    let rest = line.strip_prefix("load t=")?;
    let mut demand = Demand::default();
    for word in rest.split_whitespace().skip(1) {
        let (name, value) = word.split_once('=')?;
        match name {
            "cpu" => demand.cpus = value.parse().ok()?,
            "memory" => demand.memory = value.parse().ok()?,
            "held" => demand.held = value.parse().ok()?,
            _ => {}
        }
    }
    Some(demand)
}
