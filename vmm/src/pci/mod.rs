//! PCI Express, one bus: configuration space by ECAM, the host bridge, and functions with their BARs.
//!
//! PCI Local Bus 3.0 chapter 6, PCI Express Base 4.0 §7. No I/O space, no INTx, no hotplug.

mod bus;
mod config;
pub mod msix;

pub use bus::{Ecam, PciBus, PciFunction, PciWindow};
pub use config::{Bar, Capability, ConfigSpace, Identity};
