//! ACPI generic event device (ACPI 6.5 §5.6.9): one byte that says what happened, cleared by reading,
//! and an edge interrupt.

use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::BusDevice;

/// "Scan the CPUs."
pub const EVENT_CPU: u8 = 1 << 0;
/// "The power button was pressed."
pub const EVENT_POWER_BUTTON: u8 = 1 << 3;

/// The device.
pub struct EventDevice {
    pending: AtomicU8,
    interrupt: EventFd,
}

impl EventDevice {
    /// `interrupt` is an irqfd of [`crate::layout::GED_IRQ`].
    pub fn new(interrupt: EventFd) -> Self {
        Self {
            pending: AtomicU8::new(0),
            interrupt,
        }
    }

    /// Tells the guest.
    pub fn raise(&self, event: u8) {
        self.pending.fetch_or(event, Ordering::SeqCst);
        let _ = self.interrupt.write(1);
    }
}

impl BusDevice for EventDevice {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.pending.swap(0, Ordering::SeqCst);
        }
    }
    fn write(&self, _: u64, _: &[u8]) {}
}
