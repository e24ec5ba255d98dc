//! The guest channel: what the program in the guest and the agent on the host say to each other, over
//! a byte stream (vsock, host port [`PORT`]) that the guest opens.
//!
//! Each message is one JSON object on a line of at most [`MAX_LINE_BYTES`]. An object has one field a
//! subject; a receiver ignores fields that it does not know, so that either side may be the newer one.
//! Both begin with `hello`, and then speak the lower of the two versions.
//!
//! ```text
//! guest ──hello, hooks, report, report (urgent), … , answer──► host
//! guest ◄──hello, change, … , power_off────────────────────── host
//! ```
//! The host trusts nothing of it: see the agent's side.

mod gauge;
mod lines;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use gauge::{Gauge, MAX_GAUGES, MAX_NAME_BYTES, is_gauge_name, parse_gauge};
pub use lines::{LineTooLong, Lines};

/// The host's port.
pub const PORT: u32 = 1030;
/// The version that this code speaks; every later one will speak it too.
pub const VERSION: u32 = 1;
/// Longest line, with its newline.
pub const MAX_LINE_BYTES: usize = 16 << 10;

/// What the guest says; each subject may be absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FromGuest {
    /// The first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello: Option<GuestHello>,
    /// How the guest is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Which hooks there are, when that has changed, and after `hello`. A guest that has never said so is
    /// asked before each change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// How a [`Change`] was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// Which hooks there are: nobody has to wait for the answer of one that is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Some run before the guest gets smaller.
    pub before_shrink: bool,
    /// Some run after the guest has got larger.
    pub after_grow: bool,
}

/// Who speaks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestHello {
    /// Highest version that it speaks.
    pub version: u32,
    /// Its name and release, for people.
    pub program: String,
}

/// How the guest is. What it does not know is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Sent out of turn, because something has to wait.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub urgent: bool,
    /// Pressure since the report before.
    pub pressure: Pressure,
    /// Load average of the last minute.
    pub load1: Option<f64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// The root file system.
    pub root: Option<Disk>,
    /// Processors: what came of bringing them online.
    pub cpus: Option<Processors>,
    /// What programs of the guest say, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, Option<f64>>,
}

/// Shares of the time in which something waited, percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// For a processor.
    pub cpu: Option<f64>,
    /// For memory.
    pub memory: Option<f64>,
    /// For a device.
    pub io: Option<f64>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// All that the kernel manages.
    pub total: u64,
    /// What programs can have without swapping.
    pub available: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Swap space in use.
    pub swap_used: u64,
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// Its size.
    pub total: u64,
    /// What programs without privileges can still write.
    pub available: u64,
}

/// Processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Processors {
    /// At work.
    pub online: u32,
    /// In the machine.
    pub present: u32,
}

/// What came of a [`Change`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Number of the change.
    pub id: u64,
    /// How it was taken.
    pub outcome: AnswerOutcome,
    /// Which hook, and what it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a [`Change`] was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerOutcome {
    /// All hooks ran, or there were none.
    Done,
    /// A hook before a shrink says no.
    Vetoed,
    /// A hook did not end within the deadline.
    TimedOut,
    /// Something that this code does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What the host says; each subject may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToGuest {
    /// The first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello: Option<HostHello>,
    /// The size changes, or has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// End the guest, cleanly.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub power_off: bool,
}

/// What the host expects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostHello {
    /// Highest version that it speaks.
    pub version: u32,
    /// Milliseconds between two reports.
    pub period_ms: u64,
}

/// A change of size, for the guest's hooks. It is answered, by an [`Answer`] of the same number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Its number.
    pub id: u64,
    /// Before or after.
    pub moment: Moment,
    /// What changes.
    pub axis: ChangeAxis,
    /// Size before: thousandths of a CPU, or bytes.
    pub from: u64,
    /// Size after.
    pub to: u64,
    /// How long the hooks may take, in milliseconds.
    pub deadline_ms: u64,
}

/// When hooks run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Before the guest gets smaller: a hook may say no.
    BeforeShrink,
    /// After it got larger.
    AfterGrow,
    /// Something that this code does not know: nothing runs.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAxis {
    /// CPUs.
    Cpu,
    /// Memory.
    Memory,
    /// Something that this code does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The line of a message; `None` when it would be too long, or holds what JSON cannot say.
pub fn encode<T: Serialize>(message: &T) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(message).ok()?;
    line.push(b'\n');
    (line.len() <= MAX_LINE_BYTES).then_some(line)
}

/// The message of a line, with or without its newline; `None` when it is none.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    serde_json::from_slice(line).ok()
}
