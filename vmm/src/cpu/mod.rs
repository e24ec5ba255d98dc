//! Virtual CPUs: what they look like to the guest, their first state, their threads, and how they
//! come and go.

pub mod cpuid;
pub mod hotplug;
pub mod registers;
pub mod thread;
