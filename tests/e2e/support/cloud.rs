//! A control plane under test, with the people who use it: each has a login in a file of their name.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use concertina_control::client::{Client, ClientError};
use concertina_control::http_method::Method;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::command::concertina_env;
use super::instance::state_dir;
use super::turn::Shared;
use super::{Agent, BOOT_LIMIT, Finished, STEP_LIMIT, Series, guest, require_host, until};

/// The image that everybody may use: the small guest of the scenarios.
pub const IMAGE: &str = "small:1";

/// A running control plane, or one that was killed.
pub struct Cloud {
    folder: tempfile::TempDir,
    process: Option<Child>,
    api: u16,
    agents: u16,
    runtime: Arc<Runtime>,
    _shared: Shared,
}

/// Somebody who asks the API, from any thread and whether it is there or not.
pub struct Asker {
    client: Client,
    runtime: Arc<Runtime>,
}

impl Asker {
    /// One request.
    pub fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        self.runtime.block_on(self.client.send(method, path, body))
    }

    /// Asks for a launch until it is answered, in the same words each time; gives its id.
    #[track_caller]
    pub fn launch(&self, body: &Value) -> String {
        until("the answer to a launch", BOOT_LIMIT, || {
            match self.send(Method::POST, "/v1/instances", Some(body)) {
                Ok(launched) => Some(launched["id"].as_str().expect("an id").to_owned()),
                // It is not there; or it is, and its hosts are not back yet.
                Err(ClientError::Unreachable { .. }) => None,
                Err(ClientError::Problem { code, .. })
                    if code == "no_capacity" || code == "busy" =>
                {
                    None
                }
                Err(other) => panic!("{other}"),
            }
        })
    }
}

/// A port of loopback that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
    listener.local_addr().expect("its number").port()
}

impl Cloud {
    /// Starts one, with an operator who is logged in and [`IMAGE`].
    #[track_caller]
    pub fn start() -> Self {
        require_host();
        let mut cloud = Self {
            _shared: Shared::take(),
            folder: state_dir(),
            process: None,
            api: free_port(),
            agents: free_port(),
            runtime: Arc::new(Runtime::new().expect("threads for requests")),
        };
        cloud.start_again();
        let key = std::fs::read_to_string(cloud.path("data/operator.key")).expect("a first key");
        cloud.login("operator", &key);
        let files = guest(Series::V6_12);
        let text = |path: &PathBuf| path.display().to_string();
        let (kernel, initrd) = (text(&files.bzimage), text(&files.initramfs));
        cloud.ok(
            "operator",
            &[
                "image", "register", IMAGE, "--kernel", &kernel, "--initrd", &initrd,
            ],
        );
        cloud
    }

    /// Starts it again after it was killed; returns when it serves.
    #[track_caller]
    pub fn start_again(&mut self) {
        let process = Command::new("concertina")
            .args(["control", "--data-dir"])
            .arg(self.path("data"))
            .args(["--listen", &format!("127.0.0.1:{}", self.api)])
            .args(["--agents-listen", &format!("127.0.0.1:{}", self.agents)])
            .args(["--host-lease", "4s"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the control plane can be started");
        self.process = Some(process);
        let (api, ca) = (self.api, self.path("data/ca.pem"));
        until("the API listens", STEP_LIMIT, || {
            let connected = std::net::TcpStream::connect(("127.0.0.1", api));
            (connected.is_ok() && ca.exists()).then_some(())
        });
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api)
    }

    fn login(&self, who: &str, key: &str) {
        let ca = self.path("data/ca.pem").display().to_string();
        let line = ["login", &self.url(), "--ca", &ca];
        let login = self.path(who).display().to_string();
        let env = [
            ("CONCERTINA_LOGIN", login.as_str()),
            ("CONCERTINA_KEY", key.trim()),
        ];
        concertina_env(&line, &env, STEP_LIMIT).expect_success();
    }

    /// Makes an account, and logs somebody of its name in.
    #[track_caller]
    pub fn account(&self, name: &str) {
        self.ok("operator", &["account", "create", name]);
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
        self.login(name, &key.stdout);
    }

    /// A host that has joined, and takes instances; `more` is put into its agent's configuration.
    #[track_caller]
    pub fn host(&self, name: &str, more: &str) -> Agent {
        let token = self.ok("operator", &["host", "token"]);
        // A tree of its own, as another host has.
        let agent = Agent::start(&format!(
            "cgroup = \"/sys/fs/cgroup/{name}\"\n{more}\n[control]\njoin = \"{}\"\nname = \"{name}\"\n",
            token.stdout.trim()
        ));
        self.wait_for_host(name, "ready");
        agent
    }

    /// Waits until a host is in a state.
    #[track_caller]
    pub fn wait_for_host(&self, name: &str, state: &str) {
        until(&format!("host {name} is {state}"), STEP_LIMIT, || {
            let hosts = self.ok("operator", &["host", "list", "--json"]).json();
            let found = hosts
                .as_array()?
                .iter()
                .find(|host| host["name"] == name)?
                .clone();
            (found["state"] == state).then_some(())
        });
    }

    /// Runs a command as somebody.
    #[track_caller]
    pub fn command(&self, who: &str, line: &[&str]) -> Finished {
        let login = self.path(who).display().to_string();
        concertina_env(line, &[("CONCERTINA_LOGIN", &login)], BOOT_LIMIT)
    }

    /// The same, which has to succeed.
    #[track_caller]
    pub fn ok(&self, who: &str, line: &[&str]) -> Finished {
        self.command(who, line).expect_success()
    }

    /// A request to the API as somebody.
    pub fn request(
        &self,
        who: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        self.asker(who).send(method, path, body)
    }

    /// Somebody who is logged in, as one who asks the API.
    #[track_caller]
    pub fn asker(&self, who: &str) -> Asker {
        let login = std::fs::read(self.path(who)).expect("a login");
        let login: Value = serde_json::from_slice(&login).expect("a login is JSON");
        let word = |field: &str| login[field].as_str().unwrap_or_default();
        let client = Client::new(word("url"), word("key"), Some(word("authorities")));
        Asker {
            client: client.expect("a client of the API"),
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// An instance as the API describes it.
    #[track_caller]
    pub fn instance(&self, who: &str, id: &str) -> Value {
        let path = format!("/v1/instances/{id}");
        let described = self.request(who, Method::GET, &path, None);
        described.unwrap_or_else(|error| panic!("{id}: {error}"))
    }

    /// Waits until an instance is as it should be, and gives it.
    #[track_caller]
    pub fn wait_for(
        &self,
        (who, id): (&str, &str),
        what: &str,
        limit: std::time::Duration,
        is_so: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let started = std::time::Instant::now();
        while !is_so(&last) {
            assert!(started.elapsed() < limit, "not in time: {what}: {last:#}");
            std::thread::sleep(std::time::Duration::from_millis(100));
            let path = format!("/v1/instances/{id}");
            // While the control plane is away there is no answer.
            last = self
                .request(who, Method::GET, &path, None)
                .unwrap_or_default();
        }
        last
    }

    /// Launches an instance from a request's body; its id.
    #[track_caller]
    pub fn launch(&self, who: &str, body: &Value) -> String {
        let launched = self.request(who, Method::POST, "/v1/instances", Some(body));
        let launched = launched.unwrap_or_else(|error| panic!("{error}"));
        launched["id"].as_str().expect("an id").to_owned()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.kill();
    }
}
