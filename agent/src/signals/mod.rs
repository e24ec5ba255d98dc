//! What is known of an instance without asking its guest for help: host counters first, then what
//! the balloon driver says. A value that cannot be read, is stale or makes no sense is absent, never
//! zero.
//!
//! Read here: run time and run delay of the vCPU threads ([`procfs`]), throttling and pressure of
//! the cgroup ([`psi`]), KVM's own statistics where the host shows them ([`kvm`]), statistics of the
//! guest's balloon driver ([`published`]), and what the vmm's devices count ([`io`]).

pub mod counters;
pub mod io;
pub mod kvm;
pub mod procfs;
pub mod psi;
pub mod published;
pub mod sampler;

pub use io::IoSampler;
pub use sampler::{Present, Sampler};
