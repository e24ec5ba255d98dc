//! How to get from one size to another: pure arithmetic between a decision and the requests to the
//! vmm. The [`cpu`] ladder turns CPUs into vCPUs and a quota; the [`memory`] planner says how far an
//! instance may shrink, through which sizes, with which device, and when to stop.

pub mod cpu;
pub mod memory;
