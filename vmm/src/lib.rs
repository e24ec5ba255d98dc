//! One virtual machine in a process, resizable in place.
//!
//! It builds the machine, runs it and changes its size on request. It has no opinion: no thresholds,
//! no policy. One event loop thread, one API thread, one thread per possible vCPU; no async runtime.

pub mod layout;
pub mod memory;
pub mod virtio;
