//! What an instance held, for how long: the numbers of a bill, and the proof that nobody changed
//! them.
//!
//! ```text
//! launch ── size A ──► resize committed ── size B ──► minute ── size B ──► end
//!     record 0           record 1: A x time             record 2: B x time   record 3: B x time
//! ```
//! A record says what was held since the record before it: CPU by quota, memory by promised size and
//! by what was resident on the host. What was asked for and not reached is not held. Lengths of time
//! come from the monotonic clock; the wall clock only labels. Records form a chain: each has the hash
//! of itself and of the one before, so that a change, a gap or a record out of place shows. Only the
//! end of a chain can be cut without a trace in the file itself: the journal keeps marks of it, and a
//! running instance writes a record each minute.

mod chain;
mod log;
mod meter;
#[cfg(test)]
mod tests;
mod totals;

pub use chain::{Broken, Chain, ChainError, GENESIS, Gap, read_chain, seal_line};
pub use log::{TICK, UsageLog};
pub use meter::{Held, Meter};
pub use totals::{Totals, total};

use std::sync::Arc;

use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};

/// Why a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The guest has begun to run: nothing was held before.
    Launch,
    /// A change of size was committed.
    Resize,
    /// A minute has passed.
    Minute,
    /// An agent has taken the instance over from one that died; the instance ran on meanwhile.
    Adopt,
    /// The instance has ended: nothing is held after it.
    End,
}

/// One record: what was held from `from_ms` to `to_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageRecord {
    /// Its number in the chain, from 0.
    pub sequence: u64,
    /// Name of the instance.
    pub instance: String,
    /// Why it was written.
    pub reason: Reason,
    /// Wall clock at its end, RFC 3339: a label.
    pub time: String,
    /// Boot of the host that the times below belong to.
    pub boot: Arc<str>,
    /// Beginning and end on the host's monotonic clock, in milliseconds.
    pub from_ms: u64,
    /// See `from_ms`.
    pub to_ms: u64,
    /// CPU quota held x time, in millionths of a CPU-second.
    pub vcpu_us: u64,
    /// Promised memory x time, in KiB-milliseconds.
    pub promised_kib_ms: u64,
    /// Memory resident on the host x time, in KiB-milliseconds; between two looks a straight line.
    pub resident_kib_ms: u64,
    /// What is held from here on.
    pub cpus: Cpus,
    /// See `cpus`.
    pub memory: Bytes,
    /// Resident on the host at the end.
    pub resident: Bytes,
    /// Hash of the record before; of the first: zeros.
    pub previous: String,
}
