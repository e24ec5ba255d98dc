//! An agent of a host under test: a process of its own, which owns a state folder.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::instance::state_dir;
use super::{Finished, Instance, Launch, STEP_LIMIT, concertina, proc, until};

/// A running agent, or one that was killed and may be started again.
#[derive(Debug)]
pub struct Agent {
    state: Arc<tempfile::TempDir>,
    child: Option<Child>,
}

impl Agent {
    /// Starts one with this configuration (TOML); returns when it serves.
    #[track_caller]
    pub fn start(configuration: &str) -> Self {
        let state = Arc::new(state_dir());
        fs::write(state.path().join("agent.toml"), configuration).expect("a configuration file");
        let mut agent = Self { state, child: None };
        agent.start_again();
        agent
    }

    /// Starts it again after it was killed or stopped.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the agent runs");
        let log = self.state.path().join("agent.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log of the agent");
        let child = Command::new("concertina")
            .args(["agent", "--state-dir"])
            .arg(self.state.path())
            .arg("--config")
            .arg(self.state.path().join("agent.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent can be started");
        let pid = child.id();
        self.child = Some(child);
        until("the agent serves", STEP_LIMIT, || {
            self.host()
                .filter(|host| host["agent_pid"] == pid)
                .map(|_| ())
        });
    }

    /// What it says of its host; `None` while it does not answer.
    pub fn host(&self) -> Option<Value> {
        let socket = self.state.path().join("daemon.sock");
        concertina_http::client::get_json(&socket, "/v1/host", Duration::from_secs(5)).ok()
    }

    /// Kills it at once.
    #[track_caller]
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the agent runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it can be waited for");
    }

    /// Asks it to end; its exit status.
    #[track_caller]
    pub fn stop(&mut self) -> i32 {
        let mut child = self.child.take().expect("the agent runs");
        let pid = child.id().cast_signed();
        assert!(proc::signal(pid, libc::SIGTERM), "kill -TERM {pid}");
        let status = until("the agent's end", STEP_LIMIT, || {
            child.try_wait().expect("it can be waited for")
        });
        status.code().unwrap_or(-1)
    }

    /// Launches an instance by it.
    #[track_caller]
    pub fn launch(&self, launch: Launch) -> Instance {
        launch.start_in(Arc::clone(&self.state))
    }

    /// Runs `concertina ARGUMENTS… --state-dir DIR`.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> Finished {
        let state = self.state.path().display().to_string();
        let mut line = arguments.to_vec();
        line.extend(["--state-dir", &state]);
        concertina(&line)
    }

    /// The state folder.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Waits until nothing that was begun is without its outcome.
    #[track_caller]
    pub fn wait_for_outcomes(&self) -> Value {
        until("every intent has its outcome", STEP_LIMIT, || {
            self.host().filter(|host| host["open_intents"] == 0)
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.state.path().join("agent.log"));
            eprintln!("--- the agent's log\n{}", log.unwrap_or_default());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Instances that a failed scenario left: they would go on for ever.
        for entry in fs::read_dir(self.state.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let record = fs::read(entry.path().join("instance.json")).unwrap_or_default();
            let record: Value = serde_json::from_slice(&record).unwrap_or_default();
            let pid = record["vmm"]["pid"].as_i64();
            if let (Some(pid), true) = (pid, record["ending"].is_null()) {
                proc::signal(pid.try_into().expect("a process id"), libc::SIGKILL);
            }
        }
    }
}
