//! The control side of virtio-mem: a handle for other threads, and the configuration space.
//!
//! Both share one small state behind a lock that is held only to copy numbers. Waiting is done on a
//! condition variable, which gives the lock back; interrupts are raised after it is released.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::state::{MemError, Sizes};
use crate::memory::BLOCK_BYTES;
use crate::virtio::{DeviceConfig, DeviceInterrupt};

/// The elastic memory as it is. Sizes are in bytes and without boot RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemStatus {
    /// What the guest is asked to have.
    pub requested: u64,
    /// What it has.
    pub plugged: u64,
    /// The part of the region in which it may plug.
    pub usable: u64,
    /// The whole region.
    pub region: u64,
    /// Unit of plugging.
    pub block: u64,
    /// A driver that leaves unplugged memory alone is up.
    pub driver_ready: bool,
    /// Requests that were refused because they are invalid.
    pub bad_requests: u64,
    /// Requests that were put off because they are above the requested size; harmless.
    pub nacked_requests: u64,
    /// Requests that were put off because the host could not serve them.
    pub host_failures: u64,
    /// When `plugged` last changed, or another size was asked for.
    pub last_progress: Instant,
}

struct Inner {
    sizes: Sizes,
    interrupt: Option<Arc<dyn DeviceInterrupt>>,
    /// Sizes have changed while there was nobody to interrupt.
    unannounced: bool,
    bad_requests: u64,
    nacked_requests: u64,
    host_failures: u64,
    last_progress: Instant,
    generation: u8,
}

impl Inner {
    fn status(&self) -> MemStatus {
        MemStatus {
            requested: self.sizes.requested,
            plugged: self.sizes.plugged,
            usable: self.sizes.usable,
            region: self.sizes.region,
            block: BLOCK_BYTES,
            driver_ready: self.interrupt.is_some(),
            bad_requests: self.bad_requests,
            nacked_requests: self.nacked_requests,
            host_failures: self.host_failures,
            last_progress: self.last_progress,
        }
    }
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// What became of a request, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    Bad,
    Nacked,
    HostFailure,
}

impl Shared {
    pub fn new(sizes: Sizes) -> Self {
        let inner = Inner {
            sizes,
            interrupt: None,
            unannounced: false,
            bad_requests: 0,
            nacked_requests: 0,
            host_failures: 0,
            last_progress: Instant::now(),
            generation: 0,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The numbers are consistent between any two statements that could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn sizes(&self) -> Sizes {
        self.lock().sizes
    }

    pub fn driver_ready(&self, interrupt: Arc<dyn DeviceInterrupt>) {
        let mut inner = self.lock();
        inner.interrupt = Some(interrupt.clone());
        // The driver may have read the sizes before they changed.
        let announce = std::mem::take(&mut inner.unannounced);
        drop(inner);
        self.changed.notify_all();
        if announce {
            interrupt.config();
        }
    }

    pub fn driver_gone(&self) {
        self.lock().interrupt = None;
        self.changed.notify_all();
    }

    pub fn note(&self, noted: Noted) {
        let mut inner = self.lock();
        let counter = match noted {
            Noted::Bad => &mut inner.bad_requests,
            Noted::Nacked => &mut inner.nacked_requests,
            Noted::HostFailure => &mut inner.host_failures,
        };
        *counter = counter.saturating_add(1);
        drop(inner);
        self.changed.notify_all();
    }

    /// The guest has plugged, or unplugged, so many bytes. No interrupt: the driver did it itself.
    pub fn plugged_changed(&self, bytes: u64, plugged: bool) {
        let mut inner = self.lock();
        let before = inner.sizes.plugged;
        inner.sizes.plugged = if plugged {
            before.saturating_add(bytes)
        } else {
            before.saturating_sub(bytes)
        };
        inner.last_progress = Instant::now();
        inner.generation = inner.generation.wrapping_add(1);
        drop(inner);
        self.changed.notify_all();
    }

    /// Nothing is plugged any more; the driver is told if the usable part has changed by it.
    pub fn all_unplugged(&self) {
        let mut inner = self.lock();
        let usable_changed = inner.sizes.all_unplugged();
        inner.last_progress = Instant::now();
        inner.generation = inner.generation.wrapping_add(1);
        let interrupt = inner.interrupt.clone().filter(|_| usable_changed);
        drop(inner);
        self.changed.notify_all();
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }

    fn set_requested(&self, bytes: u64) -> Result<(), MemError> {
        let mut inner = self.lock();
        if !inner.sizes.set_requested(bytes)? {
            return Ok(());
        }
        inner.last_progress = Instant::now();
        inner.generation = inner.generation.wrapping_add(1);
        let interrupt = inner.interrupt.clone();
        inner.unannounced = interrupt.is_none();
        drop(inner);
        self.changed.notify_all();
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
        Ok(())
    }
}

impl DeviceConfig for Shared {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let space = self.lock().sizes.config_space();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(space.len());
        let bytes = space
            .iter()
            .skip(start)
            .copied()
            .chain(std::iter::repeat(0));
        for (place, byte) in data.iter_mut().zip(bytes) {
            *place = byte;
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}

    fn generation(&self) -> u8 {
        self.lock().generation
    }
}

/// Sizes the elastic memory from any thread. Clones drive the same device.
#[derive(Clone)]
pub struct MemController(pub(super) Arc<Shared>);

impl MemController {
    /// Asks the guest to have `bytes` of elastic memory; the same size again is fine and does
    /// nothing. Returns at once: see [`MemController::wait_until`].
    ///
    /// # Errors
    /// `bytes` is not a multiple of the block or more than the region.
    pub fn set_requested(&self, bytes: u64) -> Result<(), MemError> {
        self.0.set_requested(bytes)
    }

    /// How it is.
    pub fn status(&self) -> MemStatus {
        self.0.lock().status()
    }

    /// Waits until `done` holds, looking at each change.
    ///
    /// # Errors
    /// `deadline` has passed first: how it is then.
    pub fn wait_until(
        &self,
        deadline: Instant,
        mut done: impl FnMut(&MemStatus) -> bool,
    ) -> Result<MemStatus, MemStatus> {
        let mut inner = self.0.lock();
        loop {
            let status = inner.status();
            if done(&status) {
                return Ok(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(status);
            }
            let woken = self.0.changed.wait_timeout(inner, left);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
