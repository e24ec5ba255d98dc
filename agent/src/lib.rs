//! What one host decides about its instances: it launches a vmm for each, watches it, and changes
//! its size within its customer's bounds and thresholds.
//!
//! The core knows no globals and nothing of "the one VM": everything hangs off an
//! [`launch::Instance`], so that a process may hold one of them or many.

pub mod cgroup;
pub mod channel;
pub mod client;
pub mod clock;
pub mod control;
pub mod events;
mod fault;
pub mod host;
mod instance;
pub mod journal;
pub mod launch;
pub mod ledger;
pub mod measure;
pub mod net;
pub mod plan;
pub mod policy;
mod poll;
pub(crate) mod pool;
pub mod replay;
pub mod resize;
mod sentence;
pub mod signals;
pub mod state_dir;
#[cfg(test)]
mod testing;

pub mod usage;
pub mod vmm;

pub use sentence::sentence;
