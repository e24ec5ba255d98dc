//! virtio-rng (virtio 1.2 §5.4): random bytes from the host's kernel for the guest's pool.
//!
//! One queue of buffers that the device fills. A turn of the event loop hands out a bounded number of
//! bytes, so that a guest which asks for ever does not starve the other devices of its machine; the
//! rest is done in the next turn.

#[cfg(test)]
pub(super) mod driver;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, DeviceConfig, DeviceInterrupt, VirtioDevice};
use crate::memory::GuestRam;

/// Device id of an entropy source (§5.4.1).
pub const DEVICE_TYPE: u32 = 4;
/// Most bytes that one turn of the event loop hands out.
pub const TURN_BYTES: usize = 64 << 10;
/// Most bytes for one request; the specification lets the device fill less than the whole buffer.
pub const REQUEST_BYTES: usize = 4 << 10;

const QUEUE_SIZES: [u16; 1] = [64];

/// What the device has done since it was made. Only ever grows.
#[derive(Debug, Default)]
pub struct RngCounters {
    /// Bytes handed to the guest.
    pub bytes: AtomicU64,
    /// Requests refused: no writable buffer, or a buffer outside the guest's memory.
    pub bad_requests: AtomicU64,
}

struct NoConfig;

impl DeviceConfig for NoConfig {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
    fn generation(&self) -> u8 {
        0
    }
}

struct Active {
    ram: Arc<GuestRam>,
    queue: Queue,
    interrupt: Arc<dyn DeviceInterrupt>,
}

/// The entropy device.
pub struct Rng {
    active: Option<Active>,
    counters: Arc<RngCounters>,
    wakeup: EventFd,
}

impl Rng {
    /// A device without a driver.
    ///
    /// # Errors
    /// The host has no event descriptors left.
    pub fn new() -> io::Result<Self> {
        let wakeup = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self {
            active: None,
            counters: Arc::default(),
            wakeup,
        })
    }

    /// The device's counters, readable from any thread.
    pub fn counters(&self) -> Arc<RngCounters> {
        self.counters.clone()
    }

    fn serve(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        match active.serve(&self.counters) {
            Ok(Turn::Done) => {}
            // A full event counter means that the wakeup is pending already.
            Ok(Turn::MoreToDo) => {
                let _ = self.wakeup.write(1);
            }
            Err(_) => {
                active.interrupt.needs_reset();
                self.active = None;
            }
        }
    }
}

enum Turn {
    Done,
    MoreToDo,
}

impl Active {
    fn serve(&mut self, counters: &RngCounters) -> Result<Turn, QueueError> {
        let mut left = TURN_BYTES;
        let mut used_any = false;
        let mut turn = Turn::Done;
        while let Some(chain) = self.queue.iter(&*self.ram)?.next() {
            let head = chain.head_index();
            let filled = match request::buffers(chain, REQUEST_BYTES.min(left)) {
                Ok(buffers) => fill(&self.ram, &buffers),
                Err(error) => Err(error),
            };
            let filled = filled.unwrap_or_else(|_| {
                counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                0
            });
            counters.bytes.fetch_add(filled as u64, Ordering::Relaxed);
            self.queue.add_used(&*self.ram, head, filled as u32)?;
            used_any = true;
            // A request costs work even when it gets nothing.
            left = left.saturating_sub(filled.max(request::MIN_COST_BYTES));
            if left == 0 {
                turn = Turn::MoreToDo;
                break;
            }
        }
        if used_any {
            self.interrupt.queue(0);
        }
        Ok(turn)
    }
}

fn fill(ram: &GuestRam, buffers: &[request::Buffer]) -> Result<usize, request::Malformed> {
    let mut random = [0u8; REQUEST_BYTES];
    let mut total = 0;
    for buffer in buffers {
        let part = random
            .get_mut(..buffer.len)
            .ok_or(request::Malformed::TooLarge)?;
        // The host's kernel refuses only before its own pool is ready, at boot: then the guest gets
        // what was filled so far, and asks again.
        if host_random(part).is_err() {
            break;
        }
        ram.write_slice(part, buffer.address)
            .map_err(|_| request::Malformed::OutsideRam)?;
        total += buffer.len;
    }
    Ok(total)
}

fn host_random(out: &mut [u8]) -> io::Result<()> {
    let mut rest = out;
    while !rest.is_empty() {
        // SAFETY: the pointer and length describe `rest`, which is ours and writable.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => rest = rest.get_mut(got..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        Arc::new(NoConfig)
    }

    fn activate(&mut self, activation: Activation) {
        let Activation {
            ram,
            queues,
            interrupt,
            ..
        } = activation;
        let queue = queues.into_iter().next().filter(QueueT::ready);
        self.active = queue.map(|queue| Active {
            ram,
            queue,
            interrupt,
        });
        self.serve();
    }

    fn queue_notified(&mut self, _index: u16) {
        self.serve();
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn wakeup(&self) -> Option<RawFd> {
        Some(self.wakeup.as_raw_fd())
    }

    fn host_event(&mut self) {
        // Nothing to read means that another turn has already taken the wakeup.
        let _ = self.wakeup.read();
        self.serve();
    }
}
