//! virtio-net (virtio 1.2 §5.1): one Ethernet interface with one pair of queues.
//!
//! ```text
//! driver ─► transmit queue ─► tx.rs ─► Backend (tap.rs, stream.rs) ─► host
//!        ◄─ receive queue  ◄─ rx.rs ◄─
//! ```
//! Guest input passes through `request.rs`; frames stay in guest memory (`segments.rs`) where the
//! host's side allows it. Nothing blocks: a direction that cannot go on says what it waits for
//! (`lane.rs`), and only that is polled, through one epoll descriptor that is the device's wakeup.

mod backend;
mod control;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod lane;
mod request;
mod ring;
mod rx;
mod segments;
mod setup;
mod stream;
mod tap;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, DeviceConfig, DeviceInterrupt, VirtioDevice};
use crate::memory::GuestRam;
use backend::Backend;
use control::Shared;
use lane::{QUEUE_SIZE, Stop, Wait};
use rx::Rx;
use tx::Tx;

pub use control::{NetController, Settings, change_rates, check_change, rates_in_force};
pub use setup::open;

/// Device id of a network card (§5.1.1).
pub const DEVICE_TYPE: u32 = 1;

/// Feature bits (§5.1.3, §6).
pub mod features {
    /// Frames of the driver may lack their checksum.
    pub const CSUM: u64 = 1 << 0;
    /// The driver takes frames without their checksum.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device tells an MTU.
    pub const MTU: u64 = 1 << 3;
    /// The device tells its address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP segments over IPv4 that are larger than the MTU.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The same over IPv6.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The same with explicit congestion notification.
    pub const GUEST_ECN: u64 = 1 << 9;
    /// The driver may send TCP segments over IPv4 that are larger than the MTU.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The same over IPv6.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The same with explicit congestion notification.
    pub const HOST_ECN: u64 = 1 << 13;
    /// A frame may be spread over several buffers of the driver.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device tells whether its link is up.
    pub const STATUS: u64 = 1 << 16;
    /// A descriptor may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say from which index on they want to be notified.
    pub const EVENT_IDX: u64 = 1 << 29;
}

const QUEUE_SIZES: [u16; 2] = [QUEUE_SIZE; 2];
const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;

/// What a descriptor in the device's epoll stands for.
const HOST: u64 = 0;
const RX_LIMIT: u64 = 1;
const TX_LIMIT: u64 = 2;
const AGAIN: u64 = 3;

/// One direction at work.
struct Lane<T> {
    lane: T,
    wait: Wait,
}

struct Active {
    ram: Arc<GuestRam>,
    interrupt: Arc<dyn DeviceInterrupt>,
    status_negotiated: bool,
    rx: Lane<Rx>,
    tx: Lane<Tx>,
}

/// The network device.
pub struct Net {
    shared: Arc<Shared>,
    /// `None`: the host's side has ended.
    backend: Option<Box<dyn Backend>>,
    features: u64,
    active: Option<Active>,
    epoll: Epoll,
    /// What of the host's side is polled.
    interest: EventSet,
    /// Another turn is needed.
    again: EventFd,
}

impl Net {
    /// A device without a driver, over the host's side.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn new(backend: Box<dyn Backend>, settings: Settings) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(settings)?);
        let again = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        for (fd, events, meaning) in [
            (backend.fd(), EventSet::empty(), HOST),
            (shared.rx.throttle.as_raw_fd(), EventSet::IN, RX_LIMIT),
            (shared.tx.throttle.as_raw_fd(), EventSet::IN, TX_LIMIT),
            (again.as_raw_fd(), EventSet::IN, AGAIN),
        ] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, meaning))?;
        }
        let of_device = features::MAC
            | features::STATUS
            | features::MRG_RXBUF
            | features::INDIRECT_DESC
            | features::EVENT_IDX;
        let mtu = shared.mtu().map_or(0, |_| features::MTU);
        Ok(Self {
            features: of_device | mtu | backend.features(),
            shared,
            backend: Some(backend),
            active: None,
            epoll,
            interest: EventSet::empty(),
            again,
        })
    }

    /// The handle by which other threads look at it and limit it.
    pub fn controller(&self) -> NetController {
        NetController(self.shared.clone())
    }

    fn serve_rx(&mut self) {
        let (Some(active), Some(backend)) = (&mut self.active, &mut self.backend) else {
            return;
        };
        let rx = &mut active.rx;
        let (served, interrupt) = rx.lane.serve(&active.ram, &self.shared, &mut **backend);
        if interrupt {
            active.interrupt.queue(RX_QUEUE);
        }
        match served {
            Ok(wait) => self.waits(RX_QUEUE, wait),
            Err(stop) => self.stop(&stop),
        }
    }

    fn serve_tx(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let backend = self
            .backend
            .as_mut()
            .map(|host| &mut **host as &mut dyn Backend);
        let (served, interrupt) = active.tx.lane.serve(&active.ram, &self.shared, backend);
        if interrupt {
            active.interrupt.queue(TX_QUEUE);
        }
        match served {
            Ok(wait) => self.waits(TX_QUEUE, wait),
            Err(stop) => self.stop(&stop),
        }
    }

    /// Serves the lanes whose turn was over before their work was; and those who wait for a host that
    /// is gone.
    fn another_turn(&mut self) {
        let is_due = |wait: Wait| wait == Wait::Turn || self.backend.is_none();
        let Some(active) = &self.active else {
            return;
        };
        let (rx, tx) = (is_due(active.rx.wait), is_due(active.tx.wait));
        if tx {
            self.serve_tx();
        }
        if rx {
            self.serve_rx();
        }
    }

    fn waits(&mut self, queue: u16, wait: Wait) {
        if wait == Wait::Turn {
            // A full event counter means that the next turn is certain already.
            let _ = self.again.write(1);
        }
        if let Some(active) = &mut self.active {
            match queue {
                RX_QUEUE => active.rx.wait = wait,
                _ => active.tx.wait = wait,
            }
        }
    }

    fn stop(&mut self, stop: &Stop) {
        match stop {
            Stop::Gone => self.host_gone(),
            Stop::Queue => {
                self.shared.bad_request();
                if let Some(active) = &self.active {
                    active.interrupt.needs_reset();
                }
                self.driver_gone();
            }
        }
    }

    fn driver_gone(&mut self) {
        self.active = None;
        self.shared.set_driver_ready(false);
        self.shared.rx.throttle.idle();
        self.shared.tx.throttle.idle();
    }

    /// The interface stays, with its link down; what is sent from now on is lost.
    fn host_gone(&mut self) {
        let Some(backend) = self.backend.take() else {
            return;
        };
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            backend.fd(),
            EpollEvent::default(),
        );
        self.shared.link_down();
        if let Some(active) = &self.active {
            if active.status_negotiated {
                active.interrupt.config();
            }
            // What waits in the transmit queue is given back.
            let _ = self.again.write(1);
        }
    }

    /// Passes on the rest of a frame that the host had no room for.
    fn flush(&mut self) {
        if let Some(backend) = &mut self.backend
            && backend.is_full()
            && backend.flush().is_err()
        {
            self.host_gone();
        }
    }

    /// Polls the host's side for what is waited for, and for nothing else: else a frame that the
    /// guest has no room for would keep the event loop busy.
    fn poll_host(&mut self) {
        let Some(backend) = &self.backend else {
            return;
        };
        let mut wanted = EventSet::empty();
        if self
            .active
            .as_ref()
            .is_some_and(|a| a.rx.wait == Wait::Host)
        {
            wanted |= EventSet::IN;
        }
        if backend.is_full() {
            wanted |= EventSet::OUT;
        }
        if wanted != self.interest {
            let event = EpollEvent::new(wanted, HOST);
            match self
                .epoll
                .ctl(ControlOperation::Modify, backend.fd(), event)
            {
                Ok(()) => self.interest = wanted,
                Err(_) => self.host_gone(),
            }
        }
    }

    fn host_events(&mut self, events: EventSet) {
        if events.contains(EventSet::OUT) {
            self.flush();
            self.serve_tx();
        }
        if events.contains(EventSet::IN) {
            self.serve_rx();
        }
        // These are reported whether they are wanted or not.
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.host_gone();
        }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        self.shared.clone()
    }

    fn activate(&mut self, activation: Activation) {
        let Activation {
            acked_features: acked,
            ram,
            queues,
            interrupt,
        } = activation;
        let queues: Result<[_; 2], _> = queues.try_into();
        let Some([mut rx, mut tx]) = queues.ok().filter(|q| q.iter().all(QueueT::ready)) else {
            return;
        };
        for queue in [&mut rx, &mut tx] {
            queue.set_event_idx(acked & features::EVENT_IDX != 0);
        }
        self.active = Some(Active {
            ram,
            interrupt,
            status_negotiated: acked & features::STATUS != 0,
            rx: Lane {
                lane: Rx::new(rx, acked),
                wait: Wait::Turn,
            },
            tx: Lane {
                lane: Tx::new(tx, acked),
                wait: Wait::Turn,
            },
        });
        self.shared.set_driver_ready(true);
        if let Some(backend) = &mut self.backend
            && let Err(error) = backend.configure(acked)
        {
            eprintln!(
                "The network interface cannot be used: the host refuses its offloads: {error}"
            );
            self.host_gone();
        }
        self.serve_tx();
        self.serve_rx();
        self.poll_host();
    }

    fn queue_notified(&mut self, index: u16) {
        match index {
            RX_QUEUE => self.serve_rx(),
            _ => self.serve_tx(),
        }
        self.poll_host();
    }

    fn reset(&mut self) {
        self.driver_gone();
        self.poll_host();
    }

    fn wakeup(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }

    fn host_event(&mut self) {
        let mut ready = [EpollEvent::default(); 4];
        // An error means that there is nothing now: the descriptor is ours, and so is the list.
        let count = self.epoll.wait(0, &mut ready).unwrap_or(0);
        for event in ready.iter().take(count) {
            match event.data() {
                HOST => self.host_events(event.event_set()),
                RX_LIMIT => {
                    self.shared.rx.throttle.acknowledge();
                    self.serve_rx();
                }
                TX_LIMIT => {
                    self.shared.tx.throttle.acknowledge();
                    self.serve_tx();
                }
                _ => {
                    let _ = self.again.read();
                    self.another_turn();
                }
            }
        }
        self.poll_host();
    }
}

/// No call on this descriptor waits.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: fcntl with F_GETFL and F_SETFL takes and gives integers.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
