//! One instance under test: launched detached in a state folder of its own, stopped when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use concertina_api::vm::{ResizeReport, VmDescription, VmResize, VmSize};

use super::turn::Shared;
use super::{
    BOOT_LIMIT, Finished, STEP_LIMIT, Series, Shell, concertina, concertina_with, guest, proc,
    require_host, until,
};

/// What to launch. Unless told otherwise: the 6.12 bzImage, 1 CPU, 256 MiB, no thresholds.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    kernel: PathBuf,
    initrd: PathBuf,
    image: Option<PathBuf>,
    cpus: String,
    memory: String,
    more: Vec<String>,
}

impl Launch {
    /// An instance of that name. Fails the test on a host where it cannot run.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        require_host();
        let files = guest(Series::V6_12);
        Self {
            name: name.to_owned(),
            kernel: files.bzimage,
            initrd: files.initramfs,
            image: None,
            cpus: "1".to_owned(),
            memory: "256M".to_owned(),
            more: Vec::new(),
        }
    }

    /// Another kernel, with the initramfs that has its modules.
    pub fn kernel(mut self, kernel: &Path, initrd: &Path) -> Self {
        self.kernel = kernel.to_owned();
        self.initrd = initrd.to_owned();
        self
    }

    /// The bzImage of a series.
    pub fn series(self, series: Series) -> Self {
        let files = guest(series);
        self.kernel(&files.bzimage, &files.initramfs)
    }

    /// A disk image with a distribution, in place of kernel and initramfs.
    pub fn image(mut self, image: &Path) -> Self {
        self.image = Some(image.to_owned());
        self
    }

    /// `--cpus`.
    pub fn cpus(mut self, cpus: &str) -> Self {
        cpus.clone_into(&mut self.cpus);
        self
    }

    /// `--memory`.
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// `--scale`, once more.
    pub fn scale(self, rule: &str) -> Self {
        self.arguments(&["--scale", rule])
    }

    /// Any other arguments of `concertina run`.
    pub fn arguments(mut self, more: &[&str]) -> Self {
        self.more.extend(more.iter().map(|s| (*s).to_owned()));
        self
    }

    /// The whole command line after `concertina`, without `--detach`.
    pub fn line(&self, state_dir: &Path) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let mut line: Vec<String> = ["run", "--name", &self.name].map(str::to_owned).into();
        match &self.image {
            Some(image) => line.extend(["--image".to_owned(), text(image)]),
            None => {
                line.extend(["--kernel".to_owned(), text(&self.kernel)]);
                line.extend(["--initrd".to_owned(), text(&self.initrd)]);
            }
        }
        line.extend(["--cpus".to_owned(), self.cpus.clone()]);
        line.extend(["--memory".to_owned(), self.memory.clone()]);
        line.extend(self.more.iter().cloned());
        line.extend(["--state-dir".to_owned(), text(state_dir)]);
        line
    }

    /// Runs it in the foreground until it ends by itself.
    #[track_caller]
    pub fn run_to_end(&self) -> Finished {
        let _shared = Shared::take();
        let state = state_dir();
        let line = self.line(state.path());
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        concertina_with(&line, BOOT_LIMIT)
    }

    /// Launches it detached. Its guest has begun to run, and need not be up yet.
    #[track_caller]
    pub fn start(self) -> Instance {
        self.start_in(Arc::new(state_dir()))
    }

    /// Launches it detached in a state folder that it shares, and that an agent may own.
    #[track_caller]
    pub fn start_in(self, state: Arc<tempfile::TempDir>) -> Instance {
        let shared = Shared::take();
        let mut line = self.line(state.path());
        line.push("--detach".to_owned());
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        concertina_with(&line, BOOT_LIMIT).expect_success();
        Instance {
            name: self.name,
            state,
            _shared: shared,
        }
    }

    /// Launches it, and waits until the guest's shell answers.
    #[track_caller]
    pub fn boot(self) -> (Instance, Shell) {
        let instance = self.start();
        let shell = instance.shell();
        (instance, shell)
    }
}

pub(super) fn state_dir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("concertina-e2e-")
        .tempdir()
        .expect("a folder for the state of this test")
}

/// A launched instance.
#[derive(Debug)]
pub struct Instance {
    name: String,
    state: Arc<tempfile::TempDir>,
    _shared: Shared,
}

impl Instance {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state folder, which it has for itself unless it was launched in another one's.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// A file of the instance's own folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.path().join(&self.name).join(name)
    }

    /// Runs `concertina SUBCOMMAND NAME ARGUMENTS… --state-dir DIR`.
    #[track_caller]
    pub fn command(&self, subcommand: &str, arguments: &[&str]) -> Finished {
        let state = self.state.path().display().to_string();
        let mut line = vec![subcommand, &self.name];
        line.extend(arguments);
        line.extend(["--state-dir", &state]);
        concertina(&line)
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.command("status", &["--json"]).expect_success().json()
    }

    /// `resize ARGUMENTS… --json`, whatever came of it.
    #[track_caller]
    pub fn resize(&self, arguments: &[&str]) -> Value {
        let mut line = arguments.to_vec();
        line.push("--json");
        self.command("resize", &line).json()
    }

    /// The same; fails the test unless the outcome is `applied`.
    #[track_caller]
    pub fn resize_applied(&self, arguments: &[&str]) -> Value {
        let report = self.resize(arguments);
        assert_eq!(report["outcome"], "applied", "{report:#}");
        report
    }

    /// Resizes that were applied, in order.
    #[track_caller]
    pub fn applied_resizes(&self) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["event"] == "resized" && event["outcome"] == "applied");
        events
    }

    /// `events --json`, one value a line.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let finished = self.command("events", &["--json"]).expect_success();
        finished
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    }

    /// Waits until an event says what it should.
    #[track_caller]
    pub fn wait_for_event(
        &self,
        what: &str,
        limit: Duration,
        says: impl Fn(&Value) -> bool,
    ) -> Value {
        until(what, limit, || self.events().into_iter().find(|e| says(e)))
    }

    /// Waits until `status --json` says what it should, and gives it.
    #[track_caller]
    pub fn wait_for_status(
        &self,
        what: &str,
        limit: Duration,
        says: impl Fn(&Value) -> bool,
    ) -> Value {
        until(what, limit, || Some(self.status()).filter(|s| says(s)))
    }

    /// The guest's shell.
    #[track_caller]
    pub fn shell(&self) -> Shell {
        Shell::connect(self.state.path(), &self.name)
    }

    /// The shell of a guest that takes longer to come up, as a whole distribution does.
    #[track_caller]
    pub fn shell_within(&self, limit: Duration) -> Shell {
        Shell::connect_within(self.state.path(), &self.name, limit)
    }

    /// All that the guest has printed on its console.
    pub fn console_log(&self) -> String {
        let bytes = fs::read(self.file("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the VM's own process says of it.
    #[track_caller]
    pub fn vm(&self) -> VmDescription {
        concertina_http::client::get_json(&self.file("vmm.sock"), "/v1/vm", STEP_LIMIT)
            .expect("the VM's process describes it")
    }

    /// Resizes the VM itself, beside the agent: for what the agent has no word for.
    #[track_caller]
    pub fn resize_vm(&self, wish: &VmResize) -> ResizeReport<VmSize> {
        let socket = self.file("vmm.sock");
        concertina_http::client::put_json(&socket, "/v1/vm/resize", wish, 2 * STEP_LIMIT)
            .expect("the VM's process answers a resize")
    }

    /// Process id of the VM.
    #[track_caller]
    pub fn vmm_pid(&self) -> i32 {
        let status = self.status();
        status["vmm_pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .unwrap_or_else(|| panic!("status has no vmm_pid: {status:#}"))
    }

    /// Thread ids of all possible vCPUs, by number.
    #[track_caller]
    pub fn vcpu_tids(&self) -> Vec<i32> {
        self.vm().vcpus.threads.iter().map(|t| t.tid).collect()
    }

    /// `stop`, and waits until nothing of it runs.
    #[track_caller]
    pub fn stop(&self, arguments: &[&str]) -> Finished {
        let pid = self.vmm_pid();
        let finished = self.command("stop", arguments);
        until("the end of the VM's process", STEP_LIMIT, || {
            (!proc::exists(pid)).then_some(())
        });
        finished
    }

    fn tail_of(&self, file: &str) -> String {
        let bytes = fs::read(self.file(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for file in ["agent.log", "vmm.log", "events.jsonl", "console.log"] {
                eprintln!("--- end of {file}\n{}", self.tail_of(file));
            }
        }
        let state = self.state.path().display().to_string();
        // What has already ended needs no stop: its status does not matter here.
        let _ = std::process::Command::new("concertina")
            .args(["stop", &self.name, "--force", "--state-dir", &state])
            .output();
    }
}

/// How many of these resizes were caused by what has this word.
pub fn caused_by(resizes: &[Value], word: &str) -> usize {
    let by = |event: &&Value| event["cause"].as_str().is_some_and(|c| c.contains(word));
    resizes.iter().filter(by).count()
}
