//! Devices that are not virtio: the bus that finds them, serial port, power control, event device.

mod bus;
pub mod ged;
pub mod power;
pub mod serial;

pub use bus::{Bus, BusDevice, BusError};
