//! The agent under test: started, asked, and looked at from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use concertina_api::host::HostStatus;
use concertina_http::{Method, client};

/// How long an agent may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Deadline of one request.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at an agent that starts.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A running agent. It is killed when this is dropped; what it watches goes on.
pub struct Agent {
    process: Child,
    socket: PathBuf,
    /// From its start to its first answer.
    pub started_in: Duration,
}

/// What a process has cost so far.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    at: Instant,
    cpu_ticks: u64,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Threads.
    pub threads: u64,
}

impl Cost {
    /// Percent of one core from an earlier look to this one.
    pub fn percent_since(&self, earlier: &Self, ticks_per_second: f64) -> f64 {
        let passed = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        let ticks = self.cpu_ticks.saturating_sub(earlier.cpu_ticks) as f64;
        ticks / ticks_per_second / passed.max(1e-9) * 100.0
    }
}

impl Agent {
    /// Starts one and waits until it has `vms` instances.
    pub fn start(state_dir: &Path, vms: usize) -> Result<Self> {
        let config = state_dir.join("bench.toml");
        // Room for everybody, whatever this machine has: the ledger is not what is measured.
        let text = "overhead = \"0M\"\n[capacity]\ncpus = 100000\nmemory = \"64T\"\n";
        fs::write(&config, text)?;
        let log = fs::File::create(state_dir.join("bench-agent.log"))?;
        let begun = Instant::now();
        let mut process = Command::new("concertina")
            .args(["agent", "--config"])
            .arg(&config)
            .arg("--state-dir")
            .arg(state_dir)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("Starting 'concertina agent' (is it on the PATH?)")?;
        let socket = state_dir.join("daemon.sock");
        loop {
            if let Some(status) = process.try_wait()? {
                let log = fs::read_to_string(state_dir.join("bench-agent.log"))?;
                bail!("The agent ended with {status}: {log}");
            }
            let status: Result<HostStatus, _> = client::get_json(&socket, "/v1/host", ASK_TIMEOUT);
            match status {
                Ok(status) if status.instances == vms as u64 => break,
                Ok(status) => {
                    let log = fs::read_to_string(state_dir.join("bench-agent.log"))?;
                    let last = log.lines().last().unwrap_or_default().to_owned();
                    let _ = process.kill();
                    let _ = process.wait();
                    bail!(
                        "The agent took over {} of {vms} VMs: {last}",
                        status.instances
                    );
                }
                Err(_) if begun.elapsed() < START_TIMEOUT => thread::sleep(LOOK_AGAIN),
                Err(error) => bail!("The agent does not answer: {error}"),
            }
        }
        Ok(Self {
            process,
            socket,
            started_in: begun.elapsed(),
        })
    }

    /// What it has cost so far.
    pub fn cost(&self) -> Result<Cost> {
        let proc = PathBuf::from(format!("/proc/{}", self.process.id()));
        let stat = fs::read_to_string(proc.join("stat"))?;
        let (_, fields) = stat
            .rsplit_once(')')
            .context("A stat line without a name")?;
        // The first one here is field 3; user and system time are fields 14 and 15.
        let ticks: Vec<u64> = fields
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse().ok())
            .collect();
        let status = fs::read_to_string(proc.join("status"))?;
        let number = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let text = line.with_context(|| format!("No {name} in a status"))?;
            Ok(text.trim().trim_end_matches(" kB").parse()?)
        };
        Ok(Cost {
            at: Instant::now(),
            cpu_ticks: ticks.iter().sum(),
            resident: number("VmRSS:")? * 1024,
            threads: number("Threads:")?,
        })
    }

    /// Its numbers in Prometheus' text format.
    pub fn metrics(&self) -> Result<String> {
        let answer = client::send::<()>(&self.socket, Method::Get, "/metrics", None, ASK_TIMEOUT)?;
        Ok(String::from_utf8(answer.body)?)
    }

    /// Ends it as a crash would.
    pub fn crash(self) {
        drop(self);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
