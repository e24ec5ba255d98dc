//! The bus: who answers at which device number, and at which address of the memory window.

use std::sync::Arc;

use super::config::{ConfigSpace, Identity};
use crate::devices::BusDevice;

/// One function (function 0 of a device). Called on vCPU threads.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space.
    fn config_read(&self, offset: u64, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: u64, data: &[u8]);
    /// Address and size of its BAR while it is decoded.
    fn bar(&self) -> Option<(u64, u64)>;
    /// Reads its BAR.
    fn bar_read(&self, offset: u64, data: &mut [u8]);
    /// Writes its BAR.
    fn bar_write(&self, offset: u64, data: &[u8]);
}

/// The host bridge: nothing but its identity.
struct HostBridge(ConfigSpace);

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn config_write(&self, _: u64, _: &[u8]) {}
    fn bar(&self) -> Option<(u64, u64)> {
        None
    }
    fn bar_read(&self, _: u64, _: &mut [u8]) {}
    fn bar_write(&self, _: u64, _: &[u8]) {}
}

/// Devices by number; 0 is the host bridge. Fixed once the VM is built.
pub struct PciBus {
    functions: Vec<Arc<dyn PciFunction>>,
}

impl Default for PciBus {
    fn default() -> Self {
        let bridge = ConfigSpace::new(&Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: [6, 0, 0],
            subsystem: (0, 0),
        });
        Self {
            functions: vec![Arc::new(HostBridge(bridge))],
        }
    }
}

impl PciBus {
    /// Adds a device with the next number.
    pub fn add(&mut self, function: Arc<dyn PciFunction>) {
        self.functions.push(function);
    }
}

/// Configuration space of the bus in memory: device in bits 15 to 19, function in bits 12 to 14.
pub struct Ecam(pub Arc<PciBus>);

impl Ecam {
    fn find(&self, offset: u64) -> Option<(&dyn PciFunction, u64)> {
        let (bus, device, function) = (offset >> 20, offset >> 15 & 0x1f, offset >> 12 & 7);
        if bus != 0 || function != 0 {
            return None;
        }
        self.0
            .functions
            .get(device as usize)
            .map(|f| (&**f, offset & 0xfff))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, register)) = self.find(offset) {
            function.config_read(register, data);
        }
    }
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.find(offset) {
            function.config_write(register, data);
        }
    }
}

/// The window of memory in which BARs lie; `base` is its guest address.
pub struct PciWindow {
    /// The devices.
    pub bus: Arc<PciBus>,
    /// Guest address of the window.
    pub base: u64,
}

impl PciWindow {
    fn find(&self, offset: u64, count: usize) -> Option<(&dyn PciFunction, u64)> {
        let addr = self.base.checked_add(offset)?;
        self.bus.functions.iter().find_map(|function| {
            let (base, len) = function.bar()?;
            let inside = addr.checked_sub(base)?;
            (inside.checked_add(count as u64)? <= len).then_some((&**function, inside))
        })
    }
}

impl BusDevice for PciWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, inside)) = self.find(offset, data.len()) {
            function.bar_read(inside, data);
        }
    }
    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, inside)) = self.find(offset, data.len()) {
            function.bar_write(inside, data);
        }
    }
}
