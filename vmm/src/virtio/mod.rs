//! Virtio devices (virtio 1.2), and the contract between a device and its transport.
//!
//! A device is a folder with the same files: `mod.rs` (the device), `request.rs` (the one place where
//! guest input is parsed), and pure logic beside it. A transport ([`pci`]) owns registers, queue
//! addresses, feature negotiation and interrupts.
//!
//! Threads: configuration space is read and written on vCPU threads, through [`DeviceConfig`], which
//! takes only short locks. Everything else (activation, queues, reset) runs on the event loop thread.

pub mod balloon;
pub mod block;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod mem;
pub mod net;
pub mod pci;
pub mod rate;
pub mod rng;
pub mod vsock;

use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_queue::Queue;

use crate::memory::GuestRam;

/// `VIRTIO_F_VERSION_1`: every device here is a modern one. Offered by the transport.
pub const F_VERSION_1: u64 = 1 << 32;

/// A device's own configuration space (§2.5), accessed on vCPU threads: never blocks, never waits.
pub trait DeviceConfig: Send + Sync {
    /// Fills `data` from `offset`; bytes beyond the end read as zero.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the driver may write, ignores the rest.
    fn write(&self, offset: u64, data: &[u8]);
    /// Changes whenever fields change together (§2.5.3).
    fn generation(&self) -> u8;
}

/// Interrupts of one device. Cheap, never blocks, callable from any thread.
pub trait DeviceInterrupt: Send + Sync {
    /// "Buffers of queue `index` were used."
    fn queue(&self, index: u16);
    /// "Configuration space has changed."
    fn config(&self);
    /// Sets `DEVICE_NEEDS_RESET` and raises a configuration interrupt: the driver has broken the
    /// protocol so that the device cannot go on.
    fn needs_reset(&self);
}

/// What a device gets when its driver says `DRIVER_OK`.
pub struct Activation {
    /// Features that the driver has accepted.
    pub acked_features: u64,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    /// One per queue of [`VirtioDevice::queue_sizes`], in that order; check `ready()` before use.
    pub queues: Vec<Queue>,
    /// Where to raise interrupts.
    pub interrupt: Arc<dyn DeviceInterrupt>,
}

/// A device. All methods are called on the event loop thread.
pub trait VirtioDevice: Send {
    /// Device id (§5).
    fn device_type(&self) -> u32;
    /// Features offered, without [`F_VERSION_1`].
    fn features(&self) -> u64;
    /// Largest size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// Configuration space; the same object for the device's whole life.
    fn config(&self) -> Arc<dyn DeviceConfig>;
    /// The driver is ready.
    fn activate(&mut self, activation: Activation);
    /// The driver has put buffers into queue `index`. Only while active.
    fn queue_notified(&mut self, index: u16);
    /// Back to the state before [`VirtioDevice::activate`].
    fn reset(&mut self);
    /// A descriptor that is readable when the host's side (another thread, a back end, the device
    /// itself) wants [`VirtioDevice::host_event`] called. The same one for the device's whole life; a
    /// device that waits for several things gives an epoll descriptor.
    fn wakeup(&self) -> Option<RawFd> {
        None
    }
    /// Does what [`VirtioDevice::wakeup`] announced. Called in any state, active or not.
    fn host_event(&mut self) {}
}
