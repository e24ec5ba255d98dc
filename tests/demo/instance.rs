//! The instance of the demo, through the `concertina` command.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use concertina_api::event::Event;
use concertina_api::instance::InstanceStatus;

use crate::scenario::{Scenario, Source};
use crate::web::PORT;

const NAME: &str = "demo";
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A launched instance; stopped by force when dropped.
pub struct Instance {
    state: tempfile::TempDir,
}

impl Instance {
    /// `concertina run … --detach`.
    pub fn launch(source: &Source, scenario: &Scenario) -> Result<Self> {
        let state = tempfile::tempdir().context("Making a folder for the instance's state")?;
        let instance = Self { state };
        let mut command = instance.command("run");
        command.args(["--name", NAME, "--detach"]);
        command.args(["--cpus", scenario.cpus, "--memory", scenario.memory]);
        match source {
            Source::Kernel { kernel, initrd } => {
                command.arg("--kernel").arg(kernel);
                command.arg("--initrd").arg(initrd);
            }
            Source::Image(image) => {
                command.arg("--image").arg(image);
                command.args(["--net", &format!("user,forward={PORT}:80")]);
            }
        }
        for rule in &scenario.rules {
            command.args(["--scale", rule]);
        }
        let output = command.output().context("Starting 'concertina'")?;
        ensure!(
            output.status.success(),
            "The instance does not start: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(instance)
    }

    /// `concertina SUBCOMMAND` for the state folder of this instance.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new("concertina");
        command
            .arg(subcommand)
            .arg("--state-dir")
            .arg(self.state.path());
        command
    }

    /// The same with the instance's name.
    pub fn command_on(&self, subcommand: &str) -> Command {
        let mut command = self.command(subcommand);
        command.arg(NAME);
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(NAME).join(name)
    }

    /// What `concertina status --json` prints, from the socket that it asks: one process less a
    /// second on a host whose processors are emulated.
    pub fn status(&self) -> Result<InstanceStatus> {
        concertina_http::client::get_json(&self.file("agent.sock"), "/v1/instance", ANSWER_LIMIT)
            .context("Asking for the instance's status")
    }

    /// All events so far, which `concertina events --json` prints.
    pub fn events(&self) -> Result<Vec<Event>> {
        let file = self.file("events.jsonl");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("Reading the events {}", file.display()))?;
        // The last line may be in the middle of being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("Reading the event {line}"))
            })
            .collect()
    }

    /// `concertina stop`: the guest powers off.
    pub fn stop(&self) -> Result<()> {
        let output = self
            .command_on("stop")
            .output()
            .context("Starting 'concertina'")?;
        ensure!(
            output.status.success(),
            "The instance does not stop: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // After a regular stop there is nothing to end, and this says so: that is not of interest.
        let _ = self.command_on("stop").arg("--force").output();
    }
}
