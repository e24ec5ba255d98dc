//! One virtual machine in a process, resizable in place.
//!
//! It builds the machine, runs it and changes its size on request. It has no opinion: no thresholds,
//! no policy. One event loop thread, one API thread, one thread per possible vCPU; no async runtime.
//!
//! Start with [`machine`] (how a VM is put together) and [`control`] (how it changes size).

pub mod acpi;
pub mod boot;
pub mod cgroup;
pub mod control;
pub mod counters;
pub mod cpu;
pub mod devices;
pub mod error;
pub mod event_loop;
pub mod exit;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod plan;
pub mod process;
pub mod server;
pub mod shed;
pub mod usage;
pub mod virtio;
