//! The control plane that this person is logged in to: where it is, and requests to it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use concertina_control::client::Client;
use concertina_control::http_method::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::args::{Cli, Command};
use crate::commands;
use crate::failure::Usage;

/// What `login` stores, readable by its owner alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// `https://HOST:PORT`.
    pub url: String,
    /// The API key.
    pub key: String,
    /// Certificates to trust, PEM; absent: those that this machine trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
}

/// Requests to the control plane, one after the other.
pub struct Remote {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

/// Where the login is stored.
pub fn path() -> anyhow::Result<PathBuf> {
    if let Some(file) = std::env::var_os("CONCERTINA_LOGIN").filter(|file| !file.is_empty()) {
        return Ok(file.into());
    }
    let folder = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let folder = folder.map(PathBuf::from).or_else(home);
    let folder = folder.ok_or_else(|| {
        Usage("No place for the login: neither HOME nor CONCERTINA_LOGIN is set".into())
    })?;
    Ok(folder.join("concertina").join("login.json"))
}

impl Login {
    /// The login of this person, if there is one. `CONCERTINA_URL` and `CONCERTINA_KEY` come first.
    pub fn read() -> anyhow::Result<Option<Self>> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let (Some(url), Some(key)) = (variable("CONCERTINA_URL"), variable("CONCERTINA_KEY")) {
            let authorities = variable("CONCERTINA_CA")
                .map(fs::read_to_string)
                .transpose();
            return Ok(Some(Self {
                url,
                key,
                authorities: authorities.context("CONCERTINA_CA")?,
            }));
        }
        let path = path()?;
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is no login", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("Reading {} failed", path.display())),
        }
    }

    /// Stores it.
    pub fn write(&self) -> anyhow::Result<PathBuf> {
        let path = path()?;
        let failed = || format!("Writing {} failed", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(failed)?;
        }
        let fresh = path.with_extension("new");
        let _ = fs::remove_file(&fresh);
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .with_context(failed)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)
            .with_context(failed)?;
        fs::rename(&fresh, &path).with_context(failed)?;
        Ok(path)
    }
}

impl Remote {
    /// The control plane of a login. Nothing is asked yet.
    pub fn of(login: &Login) -> anyhow::Result<Self> {
        let client = Client::new(&login.url, &login.key, login.authorities.as_deref())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("Starting the client failed")?;
        Ok(Self { client, runtime })
    }

    /// The control plane of this person.
    pub fn here() -> anyhow::Result<Self> {
        let login = Login::read()?;
        let login = login
            .ok_or_else(|| Usage("Not logged in: 'concertina login URL' comes first".into()))?;
        Self::of(&login)
    }

    /// Reads a value.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.runtime.block_on(self.client.get(path))?)
    }

    /// Everything of a list.
    pub fn all(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        Ok(self.runtime.block_on(self.client.all(path))?)
    }

    /// Sends a request with a body.
    pub fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        Ok(self
            .runtime
            .block_on(self.client.send(method, path, body))?)
    }

    /// `POST` with a body.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(Method::POST, path, Some(body))
    }

    /// The instance of a name (or an id): of those that are not terminated, else the last one.
    pub fn instance(&self, name: &str) -> anyhow::Result<Value> {
        let all = self.all("/v1/instances")?;
        let is_it = |i: &&Value| text(i, "name") == name || text(i, "id") == name;
        let found: Vec<&Value> = all.iter().filter(is_it).collect();
        let lives = found.iter().find(|i| text(i, "state") != "terminated");
        let found = lives.or(found.last()).copied().cloned();
        found.ok_or_else(|| {
            anyhow!(
                "No instance '{name}': 'concertina ps --remote --all' lists those that are there"
            )
        })
    }

    /// The path of an instance in the API.
    pub fn path(&self, name: &str) -> anyhow::Result<String> {
        let instance = self.instance(name)?;
        Ok(format!("/v1/instances/{}", text(&instance, "id")))
    }
}

/// A field that is a text; else nothing.
pub fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

/// Does a command at the control plane, where that is meant: with `--remote`, or after a login without
/// `--local` and without a state folder. `None`: it is this host's.
pub fn dispatch(cli: &Cli) -> Option<anyhow::Result<i32>> {
    let can = matches!(
        cli.command,
        Command::Run(_)
            | Command::Ps(_)
            | Command::Status(_)
            | Command::Resize(_)
            | Command::Events(_)
            | Command::Usage(_)
            | Command::Stop(_)
    );
    if cli.local || (!can && !cli.remote) {
        return None;
    }
    let remote = match (cli.remote, Login::read()) {
        (true, _) => Remote::here(),
        (false, Ok(Some(login))) if cli.state_dir.is_none() => Remote::of(&login),
        // A login that cannot be read must not keep anybody from the instances of this host.
        (false, _) => return None,
    };
    Some(remote.and_then(|remote| at(cli, &remote)))
}

fn at(cli: &Cli, remote: &Remote) -> anyhow::Result<i32> {
    match &cli.command {
        Command::Run(args) => commands::run::remote::run(args, remote),
        Command::Ps(args) => commands::ps::remote::run(args, remote),
        Command::Status(args) => commands::status::remote::run(args, remote),
        Command::Resize(args) => commands::resize::remote::run(args, remote),
        Command::Events(args) => commands::events::remote::run(args, remote),
        Command::Usage(args) => commands::usage::remote::run(args, remote),
        Command::Stop(args) => commands::stop::remote::run(args, remote),
        _ => bail!(Usage("This command has no --remote".into())),
    }
}
