//! Our own VM under measurement, asked through the agent, as a user does; for a balloon, which is the
//! agent's own tool, the VM's process is asked.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use concertina_api::instance::{InstanceResize, InstanceSize, InstanceStatus};
use concertina_api::units::{Bytes, Cpus};
use concertina_api::vm::{Outcome, ResizeReport, VmDescription, VmResize, VmSize};
use concertina_http::client;

use crate::Options;
use crate::machine::{Machine, Wish};

const NAME: &str = "bench";
const LIMIT: Duration = Duration::from_secs(60);

/// A launched instance; stopped by force when dropped.
pub struct Ours {
    state: tempfile::TempDir,
    pid: i32,
    agent_pid: i32,
}

impl Ours {
    /// Launches an instance with these bounds and rules.
    pub fn launch(options: &Options, cpus: &str, memory: &str, rules: &[&str]) -> Result<Self> {
        let scale: Vec<&str> = rules.iter().flat_map(|rule| ["--scale", *rule]).collect();
        Self::launch_with(options, cpus, memory, &scale)
    }

    /// Launches an instance with these bounds and further options of `concertina run`.
    pub fn launch_with(
        options: &Options,
        cpus: &str,
        memory: &str,
        further: &[&str],
    ) -> Result<Self> {
        let mut ours = Self {
            state: tempfile::tempdir()?,
            pid: 0,
            agent_pid: 0,
        };
        let mut command = ours.command("run");
        command.args([
            "--name", NAME, "--cpus", cpus, "--memory", memory, "--detach",
        ]);
        command
            .arg("--kernel")
            .arg(&options.kernel)
            .arg("--initrd")
            .arg(&options.initrd)
            .args(further);
        let output = command.output().context("Starting 'concertina'")?;
        ensure!(
            output.status.success(),
            "The instance does not start: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let status = ours.status()?;
        ours.agent_pid = status.agent_pid;
        ours.pid = status.vmm_pid.context("The instance has no VM")?;
        Ok(ours)
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new("concertina");
        command
            .arg(subcommand)
            .arg("--state-dir")
            .arg(self.state.path());
        command
    }

    /// A file in the instance's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(NAME).join(name)
    }

    /// The instance as the agent sees it.
    pub fn status(&self) -> Result<InstanceStatus> {
        client::get_json(&self.file("agent.sock"), "/v1/instance", LIMIT)
            .context("Asking the agent")
    }

    /// The VM as its process sees it.
    pub fn vm(&self) -> Result<VmDescription> {
        client::get_json(&self.file("vmm.sock"), "/v1/vm", LIMIT).context("Asking the VM's process")
    }

    /// The last that the VM's process, its guest and the agent have said: for when something fails.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for name in ["vmm.log", "console.log", "events.jsonl"] {
            let all = std::fs::read(self.file(name)).unwrap_or_default();
            let tail = &all[all.len().saturating_sub(8000)..];
            text += &format!("--- {name}\n{}\n", String::from_utf8_lossy(tail));
        }
        text
    }

    /// Process of the agent.
    pub fn agent_pid(&self) -> i32 {
        self.agent_pid
    }

    /// Asks for a CPU size in fractions, through the agent.
    pub fn ask_cpus(&self, cpus: Cpus) -> Result<ResizeReport<InstanceSize>> {
        self.ask_agent(&InstanceResize {
            cpus: Some(cpus),
            ..InstanceResize::default()
        })
    }

    fn ask_agent(&self, wish: &InstanceResize) -> Result<ResizeReport<InstanceSize>> {
        let socket = self.file("agent.sock");
        let report: ResizeReport<InstanceSize> =
            client::put_json(&socket, "/v1/instance/resize", wish, LIMIT)
                .context("Asking the agent")?;
        ensure!(
            report.outcome == Outcome::Applied,
            "A resize was not applied: {report:?}"
        );
        Ok(report)
    }

    fn ask_vm(&self, wish: &VmResize) -> Result<()> {
        let socket = self.file("vmm.sock");
        let report: ResizeReport<VmSize> = client::put_json(&socket, "/v1/vm/resize", wish, LIMIT)
            .context("Asking the VM's process")?;
        ensure!(
            report.outcome == Outcome::Applied,
            "A resize was not applied: {report:?}"
        );
        Ok(())
    }
}

impl Machine for Ours {
    fn name(&self) -> &'static str {
        "concertina"
    }

    fn pid(&self) -> i32 {
        self.pid
    }

    fn console(&self) -> PathBuf {
        self.file("console.sock")
    }

    fn ask(&self, wish: Wish) -> Result<()> {
        let size = match wish {
            Wish::Vcpus(vcpus) => InstanceResize {
                cpus: Some(Cpus::whole(vcpus)),
                ..InstanceResize::default()
            },
            Wish::MemoryMib(mib) => InstanceResize {
                memory: Some(Bytes::mib(mib)),
                ..InstanceResize::default()
            },
            Wish::BalloonMib(mib) => {
                return self.ask_vm(&VmResize {
                    balloon: Some(Bytes::mib(mib)),
                    timeout_ms: Some(LIMIT.as_millis() as u64),
                    ..VmResize::default()
                });
            }
        };
        self.ask_agent(&size).map(drop)
    }

    fn reached(&self, wish: Wish) -> Result<bool> {
        let vm = self.vm()?;
        Ok(match wish {
            Wish::Vcpus(vcpus) => vm.vcpus.online == vcpus,
            Wish::MemoryMib(mib) => vm.memory.plugged == Bytes::mib(mib),
            Wish::BalloonMib(mib) => vm.balloon.actual == Bytes::mib(mib),
        })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // The measurement is over: how the instance ends does not matter here.
        let _ = self.command("stop").args([NAME, "--force"]).output();
    }
}
