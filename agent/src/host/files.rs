//! The agent's own files in the state folder: a lock, so that there is one agent, and a record by which
//! the commands find it. Their names have a dot, as no instance's name has.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::state_dir::{ProcessId, write_json};

/// Where the API listens, unless it is told otherwise.
pub fn default_socket(state_dir: &Path) -> PathBuf {
    state_dir.join("daemon.sock")
}

/// Where the journal lies, unless it is told otherwise.
pub fn default_journal(state_dir: &Path) -> PathBuf {
    state_dir.join("host.journal")
}

/// Where the record lies by which the commands find the agent.
pub fn record_path(state_dir: &Path) -> PathBuf {
    state_dir.join("daemon.json")
}

/// Content of `daemon.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The agent.
    pub agent: ProcessId,
    /// Where its API listens.
    pub socket: PathBuf,
}

impl HostRecord {
    /// The agent of a state folder, when it lives.
    pub fn find(state_dir: &Path) -> Option<Self> {
        let bytes = fs::read(record_path(state_dir)).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        record.agent.is_alive().then_some(record)
    }
}

pub(super) fn write_record(state_dir: &Path, socket: &Path) -> Result<(), String> {
    let record = HostRecord {
        agent: ProcessId::of_self(),
        socket: socket.to_owned(),
    };
    write_json(&record_path(state_dir), &record).map_err(|error| crate::sentence(&error))
}

pub(super) fn remove_record(state_dir: &Path) {
    // Only a living agent is found by it.
    let _ = fs::remove_file(record_path(state_dir));
}

/// How long a lock that is taken is tried again: where an agent died in the midst of starting a program,
/// that one has the lock, too, until it has begun.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// One agent a state folder, as long as it lives.
#[derive(Debug)]
pub(super) struct HostLock {
    /// Held open: closing it releases the lock.
    _file: File,
}

impl HostLock {
    /// Takes the lock, making the folder (mode 0700) when it is not there.
    pub fn acquire(state_dir: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!(
                "State folder {} cannot be used: {error}",
                state_dir.display()
            )
        };
        let mut folder = DirBuilder::new();
        folder.recursive(true).mode(0o700);
        folder.create(state_dir).map_err(failed)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(state_dir.join("daemon.lock"))
            .map_err(failed)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            if begun.elapsed() >= LOCK_PATIENCE {
                break;
            }
            std::thread::sleep(LOCK_PATIENCE / 20);
        }
        let who = match HostRecord::find(state_dir) {
            Some(record) => format!("process {}", record.agent.pid),
            None => "another process".into(),
        };
        Err(format!(
            "State folder {} has an agent already ({who}): stop that one, or choose another folder",
            state_dir.display()
        ))
    }
}
