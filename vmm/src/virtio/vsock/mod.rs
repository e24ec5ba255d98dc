//! virtio-vsock (virtio 1.2 §5.10): byte streams between programs of the guest and of the host.
//!
//! The host's side is unix sockets beside one base path P, the convention of Firecracker and Cloud
//! Hypervisor: whoever connects to P and writes `CONNECT <port>\n` is connected to that port of the
//! guest, and reads `OK <host port>\n` first; a guest that connects to port N of the host (context
//! id 2) reaches whoever listens on `P_N`.
//!
//! ```text
//! queue 1 (from the guest) ─► request.rs ─► Muxer ─► Connection ─► unix socket
//! queue 0 (to the guest)   ◄─ request.rs ◄─ Muxer ◄─ Connection ◄─ unix socket
//! queue 2 (events)            no events: a guest that is moved or restored would get them
//! ```
//! Payload goes between socket and guest memory without a copy of ours; only bytes for a host that
//! reads slowly are held, as many as the guest was promised credit for. A turn of the event loop moves
//! a bounded number of packets.

mod connection;
mod credit;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod handshake;
#[cfg(test)]
mod model;
mod muxer;
mod pace;
mod packet;
mod request;
mod socket;
#[cfg(test)]
mod tests;
mod windows;

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use concertina_api::vm::VsockStatus;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};

use super::{Activation, DeviceConfig, DeviceInterrupt, VirtioDevice};
use crate::memory::GuestRam;
use muxer::Muxer;
use packet::HEADER_BYTES;

pub use muxer::{MAX_HANDSHAKES, SUFFIX_BYTES};
pub use socket::MAX_PATH_BYTES;
pub use windows::MAX_CONNECTIONS;

/// Device id of a socket device (§5.10.1).
pub const DEVICE_TYPE: u32 = 19;
/// Most packets that one turn of the event loop moves each way.
pub const TURN_PACKETS: usize = 64;

/// Each side says from which buffer on it wants to hear of more (§2.7.10): most packets of a busy
/// stream then need neither a notification nor an interrupt.
const F_EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

const TO_GUEST: u16 = 0;
const FROM_GUEST: u16 = 1;
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// What the device has done since it was made; but for `connections`, it only ever grows.
#[derive(Debug, Default)]
pub struct VsockCounters {
    /// Connections at the moment.
    pub connections: AtomicU64,
    /// Connections that programs of the host have asked for.
    pub opened_by_host: AtomicU64,
    /// Connections that the guest has asked for, and got.
    pub opened_by_guest: AtomicU64,
    /// Connections that were not made: nobody listens, wrong words, or too many.
    pub refused: AtomicU64,
    /// Bytes of payload to the guest.
    pub bytes_to_guest: AtomicU64,
    /// Bytes of payload from the guest.
    pub bytes_from_guest: AtomicU64,
    /// Connections that were reset because the guest sent more than it had credit for.
    pub credit_overruns: AtomicU64,
    /// Packets and buffers of the guest that break the protocol, those overruns among them.
    pub bad_requests: AtomicU64,
}

impl VsockCounters {
    /// Their values.
    pub fn status(&self) -> VsockStatus {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VsockStatus {
            connections: value(&self.connections),
            opened_by_host: value(&self.opened_by_host),
            opened_by_guest: value(&self.opened_by_guest),
            refused: value(&self.refused),
            bytes_to_guest: value(&self.bytes_to_guest),
            bytes_from_guest: value(&self.bytes_from_guest),
            credit_overruns: value(&self.credit_overruns),
            bad_requests: value(&self.bad_requests),
        }
    }
    fn add_from_guest(&self, bytes: usize) {
        self.bytes_from_guest
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
    fn add_to_guest(&self, bytes: usize) {
        self.bytes_to_guest
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Configuration space (§5.10.4): the guest's context id.
struct Config {
    guest_cid: u64,
}

impl DeviceConfig for Config {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.guest_cid.to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
            *byte = at.and_then(|at| bytes.get(at)).copied().unwrap_or(0);
        }
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
    fn generation(&self) -> u8 {
        0
    }
}

struct Active {
    ram: Arc<GuestRam>,
    to_guest: Queue,
    from_guest: Queue,
    interrupt: Arc<dyn DeviceInterrupt>,
}

/// The socket device.
pub struct Vsock {
    config: Arc<Config>,
    muxer: Muxer,
    active: Option<Active>,
    counters: Arc<VsockCounters>,
}

impl Vsock {
    /// A device without a driver, whose guest has context id `cid`; listens on `socket`.
    ///
    /// # Errors
    /// The socket cannot be made, or the host has no descriptors left.
    pub fn new(cid: u32, socket: &Path) -> io::Result<Self> {
        let counters = Arc::new(VsockCounters::default());
        Ok(Self {
            config: Arc::new(Config {
                guest_cid: u64::from(cid),
            }),
            muxer: Muxer::new(cid, socket, counters.clone())?,
            active: None,
            counters,
        })
    }

    /// The device's counters, readable from any thread.
    pub fn counters(&self) -> Arc<VsockCounters> {
        self.counters.clone()
    }

    fn serve(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let from_guest = active.serve_from_guest(&mut self.muxer, &self.counters);
        // What came from the guest may have an answer.
        let turn = from_guest.and_then(|from_guest| {
            let to_guest = active.serve_to_guest(&mut self.muxer, &self.counters)?;
            Ok(from_guest.and(to_guest))
        });
        match turn {
            Ok(Turn::Done) => {}
            Ok(Turn::MoreToDo) => self.muxer.wake(),
            Err(_) => {
                active.interrupt.needs_reset();
                self.reset();
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Done,
    MoreToDo,
}

impl Turn {
    fn and(self, other: Self) -> Self {
        if self == Self::Done { other } else { self }
    }
}

impl Active {
    fn serve_from_guest(
        &mut self,
        muxer: &mut Muxer,
        counters: &VsockCounters,
    ) -> Result<Turn, QueueError> {
        let mut used = 0;
        let mut turn = Turn::Done;
        while let Some(chain) = next_chain(&mut self.from_guest, &self.ram)? {
            let head = chain.head_index();
            match request::packet(&self.ram, chain) {
                Ok((header, payload)) => muxer.receive(&header, &payload),
                Err(_) => {
                    counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.from_guest.add_used(&*self.ram, head, 0)?;
            used += 1;
            if used == TURN_PACKETS {
                turn = Turn::MoreToDo;
                break;
            }
        }
        if used > 0 && self.from_guest.needs_notification(&*self.ram)? {
            self.interrupt.queue(FROM_GUEST);
        }
        Ok(turn)
    }

    fn serve_to_guest(
        &mut self,
        muxer: &mut Muxer,
        counters: &VsockCounters,
    ) -> Result<Turn, QueueError> {
        let mut used = 0;
        let mut turn = Turn::Done;
        while muxer.has_packets() {
            if used == TURN_PACKETS {
                turn = Turn::MoreToDo;
                break;
            }
            // Without room the packets wait; the driver notifies when it has given some.
            let Some(chain) = next_chain(&mut self.to_guest, &self.ram)? else {
                break;
            };
            let head = chain.head_index();
            let written = match request::room(&self.ram, chain) {
                Ok((front, room)) => match muxer.next_packet(&room) {
                    Some(header) => {
                        front.copy_from(&header.to_bytes());
                        HEADER_BYTES as u32 + header.len
                    }
                    None => {
                        self.to_guest.go_to_previous_position();
                        break;
                    }
                },
                Err(_) => {
                    counters.bad_requests.fetch_add(1, Ordering::Relaxed);
                    0
                }
            };
            self.to_guest.add_used(&*self.ram, head, written)?;
            used += 1;
        }
        if used > 0 && self.to_guest.needs_notification(&*self.ram)? {
            self.interrupt.queue(TO_GUEST);
        }
        Ok(turn)
    }
}

/// The next chain of a queue; when there is none, the driver notifies of the next one.
fn next_chain<'a>(
    queue: &mut Queue,
    ram: &'a GuestRam,
) -> Result<Option<DescriptorChain<&'a GuestRam>>, QueueError> {
    let chain = queue.iter(ram)?.next();
    if chain.is_some() || !queue.enable_notification(ram)? {
        return Ok(chain);
    }
    // One has come meanwhile. What is there and cannot be read never will be: its ring lies in memory
    // that was unplugged.
    let chain = queue.iter(ram)?.next();
    chain.map(Some).ok_or(QueueError::InvalidAvailRingIndex)
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        self.config.clone()
    }

    fn activate(&mut self, activation: Activation) {
        let Activation {
            acked_features,
            ram,
            queues,
            interrupt,
        } = activation;
        let mut queues = queues.into_iter();
        let (Some(mut to_guest), Some(mut from_guest)) = (queues.next(), queues.next()) else {
            return;
        };
        if !to_guest.ready() || !from_guest.ready() {
            return;
        }
        for queue in [&mut to_guest, &mut from_guest] {
            queue.set_event_idx(acked_features & F_EVENT_IDX != 0);
        }
        self.active = Some(Active {
            ram,
            to_guest,
            from_guest,
            interrupt,
        });
        self.muxer.guest_came();
        self.serve();
    }

    fn queue_notified(&mut self, _index: u16) {
        self.serve();
    }

    fn reset(&mut self) {
        self.active = None;
        self.muxer.guest_went();
    }

    fn wakeup(&self) -> Option<RawFd> {
        Some(self.muxer.descriptor())
    }

    fn host_event(&mut self) {
        self.muxer.look_at_sockets();
        self.serve();
    }
}
