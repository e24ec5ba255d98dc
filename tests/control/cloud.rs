//! A control plane in a process of its own, on loopback.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_agent::control::simulated::SimulatedHost;
use concertina_agent::control::{ClientConfig, ControlClient, join};
use concertina_api::{Bytes, Cpus};
use tempfile::TempDir;

/// A loaded machine may take long.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Cloud {
    pub folder: TempDir,
    process: Option<Child>,
    api: u16,
    agents: u16,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Cloud {
    pub fn start() -> Self {
        let mut cloud = Self {
            folder: tempfile::tempdir().unwrap(),
            process: None,
            api: free_port(),
            agents: free_port(),
        };
        cloud.run();
        cloud
    }

    /// Starts the process, and returns when the API answers.
    pub fn run(&mut self) {
        let process = Command::new(env!("CARGO_BIN_EXE_concertina"))
            .arg("control")
            .arg("--data-dir")
            .arg(self.path("data"))
            .args(["--listen", &format!("127.0.0.1:{}", self.api)])
            .args(["--agents-listen", &format!("127.0.0.1:{}", self.agents)])
            .args(["--host-lease", "3s"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        let api = self.api;
        wait_until("the API listens", || {
            std::net::TcpStream::connect(("127.0.0.1", api)).is_ok()
        });
        wait_until("the first key is there", || {
            self.path("data/ca.pem").exists()
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api)
    }

    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.path("data/ca.pem")).unwrap()
    }

    pub fn operator_key(&self) -> String {
        let text = std::fs::read_to_string(self.path("data/operator.key")).unwrap();
        text.trim().to_owned()
    }

    /// Runs the command with a login in a file of this name.
    pub fn command(&self, login: &str, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_concertina"))
            .args(words)
            .env("CONCERTINA_LOGIN", self.path(login))
            .env_remove("CONCERTINA_STATE_DIR")
            .env_remove("CONCERTINA_KEY")
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap()
    }

    /// The standard output of a command that has to succeed.
    #[track_caller]
    pub fn ok(&self, login: &str, words: &[&str]) -> String {
        let output = self.command(login, words);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn login(&self, login: &str, key: &str) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_concertina"))
            .args(["login", &self.url(), "--ca"])
            .arg(self.path("data/ca.pem"))
            .env("CONCERTINA_LOGIN", self.path(login))
            .env("CONCERTINA_KEY", key)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// A simulated host with 64 CPUs and 256 GiB, joined with a token that the operator made.
    pub fn host(&self, name: &str) -> (Arc<SimulatedHost>, ControlClient) {
        let token = self.ok("operator", &["host", "token"]);
        let folder = self.path(name);
        let identity = join(&folder, &token.parse().unwrap(), name).unwrap();
        let host = Arc::new(SimulatedHost::new(Cpus::whole(64), Bytes(256 * Bytes::GIB)));
        let config = ClientConfig { folder };
        let client = ControlClient::start(&config, identity, host.clone()).unwrap();
        wait_until("the host is connected", || client.is_connected());
        (host, client)
    }

    /// An operator who is logged in, an image, and an account with a login of its name.
    pub fn account(&self, name: &str) {
        self.login("operator", &self.operator_key());
        let image = self.path("image.raw");
        if !image.exists() {
            std::fs::write(&image, "a disk").unwrap();
            self.ok(
                "operator",
                &[
                    "image",
                    "register",
                    "debian:12",
                    "--disk",
                    path_text(&image),
                ],
            );
        }
        self.ok(
            "operator",
            &[
                "account",
                "create",
                name,
                "--instances",
                "1000",
                "--cpus",
                "1000",
                "--memory",
                "4T",
                "--requests",
                "10000",
            ],
        );
        let key = self.ok(
            "operator",
            &[
                "key",
                "create",
                "first",
                "--account",
                name,
                "--scope",
                "admin",
            ],
        );
        self.login(name, &key);
    }
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.kill();
    }
}
