//! The vocabulary that every part of Concertina shares: units, bounds, what a virtual machine is
//! asked to be, what it is, and how a resize ended. Plain serde types, no behaviour beyond parsing
//! and printing, nothing of ours underneath.
#![forbid(unsafe_code)]

pub mod counters;
pub mod disk;
pub mod event;
pub mod host;
pub mod instance;
pub mod io;
pub mod link;
pub mod net;
pub mod policy;
#[cfg(feature = "schema")]
mod schema;
pub mod units;
pub mod vm;

pub use io::IoRate;
pub use io::bounds::RateBounds;
pub use units::{Bounds, Bytes, Cpus, Quota, UnitError};
