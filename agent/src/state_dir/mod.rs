//! The folder where each instance has its own folder, and who owns it.
//!
//! ```text
//! <state>/<name>/instance.json   who supervises it (pid and start time), how it ended
//!               /vm.json         what its vmm was told
//!               /exit.json       how its vmm ended, in the vmm's own words
//!               /launch.json     what an agent needs to take it over from one that died
//!               /counters        what its vmm publishes of itself, while it runs
//!               /seed.img       the disk for its cloud-init, while it runs
//!               /agent.sock  vmm.sock  console.sock  vsock.sock      only while it runs
//!               /events.jsonl  console.log  agent.log  vmm.log
//!               /usage.jsonl     what it held: goes on over all launches of the name
//!               /lock            held by the supervisor as long as it lives
//! ```
//!
//! A supervisor that dies leaves its folder behind; the next start of the same name takes it over.
//! An instance that ended keeps its folder without sockets, so that its events and logs can be read,
//! until the same name is launched again or the folder is deleted.

mod lock;
mod record;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use lock::{LockError, NameLock};
pub(crate) use record::write_json;
pub use record::{Ending, InstanceRecord, ProcessId};

use concertina_api::instance::InstanceState;

/// Longest name of an instance, in bytes: a DNS label, so that it can become a host name.
pub const NAME_MAX: usize = 63;

/// Why a name or its folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The name breaks the rules.
    #[error(
        "Name '{0}' is not allowed: 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit"
    )]
    Name(String),
    /// The system refused something.
    #[error("{what} {path} failed")]
    Io {
        /// What was tried, as the beginning of a sentence.
        what: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of ours has other content than ours.
    #[error("{path} is not an instance record")]
    Record {
        /// The file.
        path: String,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl StateError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.display().to_string(),
            source,
        }
    }
}

/// Checks a name: `[a-z0-9][a-z0-9-]{0,62}`. It becomes a folder, a cgroup and a host name.
pub fn check_name(name: &str) -> Result<(), StateError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = !name.is_empty()
        && name.len() <= NAME_MAX
        && name.bytes().all(allowed)
        && !name.starts_with('-');
    if good {
        Ok(())
    } else {
        Err(StateError::Name(name.to_owned()))
    }
}

/// Where everything of one instance lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstancePaths {
    /// Its folder.
    pub dir: PathBuf,
    /// `instance.json`.
    pub record: PathBuf,
    /// `vm.json`, the words for the vmm.
    pub vm_spec: PathBuf,
    /// `exit.json`, the vmm's last words.
    pub exit: PathBuf,
    /// `launch.json`, for the agent after this one.
    pub launch: PathBuf,
    /// The disk from which its cloud-init is configured.
    pub seed: PathBuf,
    /// The agent's API of this instance.
    pub agent_socket: PathBuf,
    /// The vmm's API.
    pub vmm_socket: PathBuf,
    /// What the vmm publishes of itself, for whoever looks at many.
    pub counters: PathBuf,
    /// The serial console.
    pub console_socket: PathBuf,
    /// Sockets of the guest's ports; who listens to the guest on port N does it on this path with `_N`.
    pub vsock_socket: PathBuf,
    /// Where the program in the guest reaches the supervisor: its port of the sockets above.
    pub channel_socket: PathBuf,
    /// Copy of the serial output.
    pub console_log: PathBuf,
    /// Events, one JSON object a line.
    pub events: PathBuf,
    /// What it held, one record a line; kept for the bill whatever else is removed.
    pub usage: PathBuf,
    /// What the supervisor prints when it runs detached.
    pub agent_log: PathBuf,
    /// What the vmm prints.
    pub vmm_log: PathBuf,
    /// Lock file of the name.
    pub lock: PathBuf,
}

impl InstancePaths {
    /// All paths of an instance in `dir`.
    pub fn in_dir(dir: PathBuf) -> Self {
        Self {
            record: dir.join("instance.json"),
            vm_spec: dir.join("vm.json"),
            exit: dir.join("exit.json"),
            launch: dir.join("launch.json"),
            seed: dir.join("seed.img"),
            agent_socket: dir.join("agent.sock"),
            vmm_socket: dir.join("vmm.sock"),
            counters: dir.join("counters"),
            console_socket: dir.join("console.sock"),
            vsock_socket: dir.join("vsock.sock"),
            channel_socket: dir.join(format!("vsock.sock_{}", concertina_guest::channel::PORT)),
            console_log: dir.join("console.log"),
            events: dir.join("events.jsonl"),
            usage: dir.join("usage.jsonl"),
            agent_log: dir.join("agent.log"),
            vmm_log: dir.join("vmm.log"),
            lock: dir.join("lock"),
            dir,
        }
    }

    /// Removes what may only exist while the instance runs. Missing files are fine.
    pub fn remove_runtime_files(&self) {
        for path in [
            &self.agent_socket,
            &self.vmm_socket,
            &self.counters,
            &self.console_socket,
            &self.vsock_socket,
            &self.channel_socket,
            &self.vm_spec,
            &self.exit,
            &self.launch,
            &self.seed,
        ] {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes the logs of an earlier instance of the same name; the agent's own log stays, since
    /// a detached supervisor is writing to it.
    pub fn remove_old_logs(&self) {
        for path in [&self.console_log, &self.events, &self.vmm_log] {
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// The system refuses; what was written of it stays.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let write = || {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        file.open(path)?.write_all(bytes)
    };
    write().map_err(|e| StateError::io("Writing", path, e))
}

/// One instance found in the state folder.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceEntry {
    /// Its name.
    pub name: String,
    /// Its supervisor lives: `agent.sock` answers.
    pub alive: bool,
    /// State: as recorded when it ended; `failed` when its supervisor died without saying.
    pub state: InstanceState,
    /// Its agent is gone, and its VM runs on: this is the vmm's process id.
    pub left_vmm: Option<i32>,
    /// Where the agent listens that supervises it; absent: on the instance's own socket.
    pub socket: Option<PathBuf>,
    /// Process id of its supervisor, dead or alive.
    pub agent_pid: i32,
    /// How it ended, when it said so.
    pub ending: Option<Ending>,
    /// Where it lies.
    pub paths: InstancePaths,
}

/// The folder of all instances.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Names the folder; nothing is created.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Paths of one instance, whether it exists or not.
    pub fn paths(&self, name: &str) -> Result<InstancePaths, StateError> {
        check_name(name)?;
        Ok(InstancePaths::in_dir(self.root.join(name)))
    }

    /// The instances that have a readable record, by name. A folder without one is still being
    /// made, or is not ours: it is left out.
    pub fn instances(&self) -> Vec<InstanceEntry> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        let mut found: Vec<InstanceEntry> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| self.instance(&name).ok().flatten())
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// One instance; `None` when there is no such instance.
    pub fn instance(&self, name: &str) -> Result<Option<InstanceEntry>, StateError> {
        let paths = self.paths(name)?;
        let Some(record) = InstanceRecord::read(&paths.record)? else {
            return Ok(None);
        };
        let alive = record.ending.is_none() && record.agent.is_alive();
        let runs_on = !alive && record.runs_on();
        let state = match (&record.ending, alive || runs_on) {
            (Some(ending), _) => ending.state,
            (None, true) => InstanceState::Running,
            (None, false) => InstanceState::Failed,
        };
        Ok(Some(InstanceEntry {
            name: name.to_owned(),
            alive,
            state,
            left_vmm: record.vmm.map(|vmm| vmm.pid).filter(|_| runs_on),
            socket: record.socket,
            agent_pid: record.agent.pid,
            ending: record.ending,
            paths,
        }))
    }

    /// Takes a name for as long as the lock is held, making its folder (mode 0700) when it is not
    /// there. Fails at once when another supervisor holds it.
    pub fn claim(&self, name: &str) -> Result<(NameLock, InstancePaths), LockError> {
        let paths = self.paths(name)?;
        let make = |dir: &Path| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
        };
        make(&self.root).map_err(|e| StateError::io("Creating the state folder", &self.root, e))?;
        let lock = NameLock::acquire(&paths, || make(&paths.dir))?;
        Ok((lock, paths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels_in_lower_case() {
        for name in ["a", "web-1", "0", &"a".repeat(63)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "-a",
            "A",
            "a.b",
            "a/b",
            "..",
            "a b",
            "ä",
            &"a".repeat(64),
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_name_cannot_leave_the_state_folder() {
        let state = StateDir::new("/nonexistent".into());
        assert!(state.paths("../etc").is_err());
        assert!(state.instance("..").is_err());
    }

    #[test]
    fn a_folder_without_record_is_no_instance() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().into());
        fs::create_dir(temp.path().join("half")).unwrap();
        assert!(state.instances().is_empty());
        assert_eq!(state.instance("half").unwrap(), None);
    }

    #[test]
    fn a_dead_supervisor_without_ending_reads_as_failed() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().into());
        let (_lock, paths) = state.claim("web").unwrap();
        let mut me = ProcessId::of_self();
        InstanceRecord::new("web", me).write(&paths.record).unwrap();
        assert!(state.instances()[0].alive);
        // The same pid with another start time is another process.
        me.start_ticks += 1;
        InstanceRecord::new("web", me).write(&paths.record).unwrap();
        let entry = state.instance("web").unwrap().unwrap();
        assert!(!entry.alive);
        assert_eq!(entry.state, InstanceState::Failed);
    }
}
