//! `instance.json`: who supervises an instance, what it holds on the host, and how it ended.
//!
//! A process is named by its id and its start time (`/proc/<pid>/stat` field 22), because process
//! ids are used again. The file is replaced by rename, so a reader never sees half of it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::StateError;
use concertina_api::instance::{ExitReason, InstanceState};

/// One process, not to be mistaken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// When it began, in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// This process.
    pub fn of_self() -> Self {
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        Self::of(pid).unwrap_or(Self {
            pid,
            start_ticks: 0,
        })
    }

    /// A running process; `None` when there is none with this id, or only its zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(&stat).map(|start_ticks| Self { pid, start_ticks })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Ends this very process by `SIGKILL`, when it still runs.
    pub fn kill(&self) {
        if self.pid > 0 && self.is_alive() {
            // SAFETY: kill(2) takes two integers and touches no memory of ours.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }
}

/// The start time out of a `stat` line; `None` for a zombie or a line of another shape. The second
/// field is the program's name in parentheses and may itself hold blanks and parentheses.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    // `state` is field 3; the start time is field 22.
    fields.nth(18)?.parse().ok()
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// `stopped` or `failed`.
    pub state: InstanceState,
    /// Exit status of its supervisor.
    pub status: i32,
    /// A sentence, with the evidence.
    pub reason: String,
    /// The kind of ending in one word.
    #[serde(default)]
    pub exit_reason: ExitReason,
    /// Wall clock, RFC 3339.
    pub time: String,
}

/// Content of `instance.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its name.
    pub name: String,
    /// Its supervisor.
    pub agent: ProcessId,
    /// Its vmm, once started.
    #[serde(default)]
    pub vmm: Option<ProcessId>,
    /// Its cgroup, once made.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Where the agent listens that supervises it; absent: it has a socket of its own, and its vmm
    /// ends with its supervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// How it ended; absent while it runs, or when its supervisor died.
    #[serde(default)]
    pub ending: Option<Ending>,
}

impl InstanceRecord {
    /// A record at the beginning of an instance's life.
    pub fn new(name: &str, agent: ProcessId) -> Self {
        Self {
            name: name.to_owned(),
            agent,
            vmm: None,
            cgroup: None,
            socket: None,
            ending: None,
        }
    }

    /// Its vmm runs, though its supervisor may not: an agent died or was stopped.
    pub fn runs_on(&self) -> bool {
        self.socket.is_some() && self.ending.is_none() && self.vmm.is_some_and(|vmm| vmm.is_alive())
    }

    /// Reads a record; `None` when the file does not exist.
    pub fn read(path: &Path) -> Result<Option<Self>, StateError> {
        match fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes)
                    .map(Some)
                    .map_err(|source| StateError::Record {
                        path: path.display().to_string(),
                        source,
                    })
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(StateError::io("Reading", path, e)),
        }
    }

    /// Replaces the record.
    pub fn write(&self, path: &Path) -> Result<(), StateError> {
        write_json(path, self)
    }
}

/// Writes a value as JSON beside `path` and renames it into place.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StateError> {
    let beside = path.with_extension("json.new");
    let write = || -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        let mut file = fs::File::create(&beside)?;
        file.write_all(&bytes)?;
        drop(file);
        fs::rename(&beside, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&beside);
        StateError::io("Writing", path, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let tail = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse_stat(&format!("42 (a) b) {tail}")), Some(4711));
        assert_eq!(
            parse_stat(&format!("42 (x) {}", tail.replacen('S', "Z", 1))),
            None
        );
        assert_eq!(parse_stat("42 (x) S 1"), None);
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn this_process_is_alive_and_a_later_namesake_is_not() {
        let me = ProcessId::of_self();
        assert!(me.is_alive());
        assert!(
            !ProcessId {
                start_ticks: me.start_ticks + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn a_truncated_record_is_an_error_that_names_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("instance.json");
        fs::write(&path, "{\"name\":").unwrap();
        let error = InstanceRecord::read(&path).unwrap_err().to_string();
        assert!(error.contains("instance.json"), "{error}");
        assert_eq!(
            InstanceRecord::read(&temp.path().join("none")).unwrap(),
            None
        );
    }
}
