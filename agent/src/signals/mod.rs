//! What is known of an instance without asking its guest for help: host counters first, then what
//! the balloon driver says. A value that cannot be read, is stale or makes no sense is absent, never
//! zero.
//!
//! Read here: run time and run delay of the vCPU threads ([`procfs`]), throttling and pressure of
//! the cgroup ([`psi`]), statistics of the guest's balloon driver. KVM's own statistics belong to
//! whoever holds the VM's descriptors, the vmm.

pub mod counters;
pub mod procfs;
pub mod psi;
pub mod sampler;

pub use sampler::{Present, Sampler};
