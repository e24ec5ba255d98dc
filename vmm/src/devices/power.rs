//! ACPI sleep control, sleep status and reset register in one I/O port (ACPI 6.5 §4.8.3.6-7).

use super::BusDevice;
use crate::exit::{Exit, ExitNotifier};

/// Value that the FADT gives for a reset.
pub const RESET_VALUE: u8 = 1;
/// Sleep type of S5 in the DSDT's `_S5_`.
pub const S5_SLEEP_TYPE: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The register.
pub struct PowerControl(pub ExitNotifier);

impl BusDevice for PowerControl {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        match data.first() {
            Some(&RESET_VALUE) => self.0.notify(Exit::Reset),
            Some(&value) if value == S5_SLEEP_TYPE << SLEEP_TYPE_SHIFT | SLEEP_ENABLE => {
                self.0.notify(Exit::PowerOff);
            }
            _ => {}
        }
    }
}

/// Port 0x61: without a PIT behind it, its gate status must read as "counted down", or a kernel that
/// calibrates its TSC by the PIT spins for ever.
pub struct SystemControlPortB;

impl BusDevice for SystemControlPortB {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0x20);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}
