//! A device between a driver's queues and a socket that plays the host.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;

use concertina_api::net::{MacAddr, NetLink, NetRates, NetStatus};
use vm_memory::{Bytes, GuestAddress};

use super::super::fuzz::Packets;
use super::super::request::HEADER_BYTES;
use super::super::stream::Stream;
use super::super::*;
use crate::virtio::rng::driver::{Driver, Interrupts, WRITE, small_ram};

pub const RX_RING: u64 = 0;
pub const TX_RING: u64 = 0x4000;
pub const QUEUE: u16 = 64;
/// Where received frames go, one buffer behind the other.
pub const RX_BUFFERS: u64 = 0x10_0000;
/// Where frames to be sent lie.
pub const TX_BUFFERS: u64 = 0x20_0000;
pub const RAM_MIB: usize = 4;

/// The other end.
pub enum Host {
    Packets(UnixDatagram),
    Stream(UnixStream),
    Nobody,
}

pub struct Rig {
    pub ram: Arc<GuestRam>,
    pub interrupts: Arc<Interrupts>,
    pub rx: Driver,
    pub tx: Driver,
    pub device: Net,
    pub host: Host,
    pub acked: u64,
    next_buffer: u64,
}

fn settings(link: NetLink, rates: NetRates) -> Settings {
    Settings {
        link,
        tap: None,
        mac: MacAddr::stable("test", 0),
        mtu: None,
        rates,
    }
}

/// Like a tap, everything negotiated.
pub fn tap_rig() -> Rig {
    tap_rig_with(small_ram(RAM_MIB), NetRates::default(), u64::MAX)
}

pub fn tap_rig_with(ram: Arc<GuestRam>, rates: NetRates, acked: u64) -> Rig {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let tap = Packets::over(OwnedFd::from(ours)).unwrap();
    let device = Net::new(Box::new(tap), settings(NetLink::Tap, rates)).unwrap();
    Rig::new(ram, device, Host::Packets(theirs), acked)
}

/// Like passt.
pub fn stream_rig() -> Rig {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let stream = Box::new(Stream::new(OwnedFd::from(ours)).unwrap());
    let device = Net::new(stream, settings(NetLink::Stream, NetRates::default())).unwrap();
    Rig::new(small_ram(RAM_MIB), device, Host::Stream(theirs), u64::MAX)
}

impl Rig {
    fn new(ram: Arc<GuestRam>, device: Net, host: Host, acked: u64) -> Self {
        let mut rig = Self {
            interrupts: Arc::default(),
            rx: Driver::new(ram.clone(), RX_RING, QUEUE),
            tx: Driver::new(ram.clone(), TX_RING, QUEUE),
            acked: acked & device.features() & !features::EVENT_IDX,
            ram,
            device,
            host,
            next_buffer: 0,
        };
        rig.activate();
        rig
    }

    pub fn activate(&mut self) {
        self.device.activate(Activation {
            acked_features: self.acked,
            ram: self.ram.clone(),
            queues: vec![self.rx.queue(), self.tx.queue()],
            interrupt: self.interrupts.clone(),
        });
        self.settle();
    }

    /// The driver comes again, with empty rings.
    pub fn reset(&mut self) {
        self.device.reset();
        let zeroes = [0; 0x2000];
        for (ring, driver) in [(RX_RING, &mut self.rx), (TX_RING, &mut self.tx)] {
            self.ram.write_slice(&zeroes, GuestAddress(ring)).unwrap();
            *driver = Driver::new(self.ram.clone(), ring, QUEUE);
        }
        self.interrupts.take();
        self.activate();
    }

    pub fn status(&self) -> NetStatus {
        self.device.controller().status()
    }

    /// Turns of the event loop until nothing is to be done, which has to come soon.
    pub fn settle(&mut self) {
        for _ in 0..5000 {
            if !is_readable(self.device.wakeup().unwrap()) {
                return;
            }
            self.device.host_event();
        }
        panic!("the device keeps the event loop busy");
    }

    /// Gives the device so many buffers of so many bytes.
    pub fn offer_room(&mut self, count: usize, bytes: u32) {
        for _ in 0..count {
            let at = RX_BUFFERS + self.next_buffer;
            self.next_buffer = (self.next_buffer + u64::from(bytes)) % 0xe_0000;
            self.rx.add(&[(at, bytes, WRITE)]);
        }
        self.device.queue_notified(RX_QUEUE);
        self.settle();
    }

    /// Lays a packet (header and frame) into parts of these sizes, the last one open, and sends it.
    pub fn transmit(&mut self, packet: &[u8], parts: &[usize]) {
        self.ram
            .write_slice(packet, GuestAddress(TX_BUFFERS))
            .unwrap();
        let mut at = 0;
        let mut chain = Vec::new();
        for part in parts.iter().copied().chain([usize::MAX]) {
            let len = part.min(packet.len() - at);
            chain.push((TX_BUFFERS + at as u64, len as u32, 0));
            at += len;
        }
        self.tx.add(&chain);
        self.device.queue_notified(TX_QUEUE);
        self.settle();
    }

    /// What the host got, if anything: header and frame, or the frame alone.
    pub fn host_got(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 100_000];
        let len = match &mut self.host {
            Host::Packets(socket) => socket.recv(&mut bytes).ok()?,
            Host::Stream(socket) => {
                let mut length = [0; 4];
                socket.read_exact(&mut length).ok()?;
                let len = u32::from_be_bytes(length) as usize;
                socket.read_exact(&mut bytes[..len]).unwrap();
                len
            }
            Host::Nobody => return None,
        };
        bytes.truncate(len);
        Some(bytes)
    }

    /// The host sends a frame, behind an empty header where there are headers.
    pub fn host_sends(&mut self, frame: &[u8]) {
        match &mut self.host {
            Host::Packets(socket) => {
                let packet = [&[0; HEADER_BYTES], frame].concat();
                assert_eq!(socket.send(&packet).unwrap(), packet.len());
            }
            Host::Stream(socket) => {
                let length = (frame.len() as u32).to_be_bytes();
                socket.write_all(&[&length, frame].concat()).unwrap();
            }
            Host::Nobody => {}
        }
        self.settle();
    }

    /// Frames that the driver got: header and frame, put together from `num_buffers` buffers.
    pub fn guest_got(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut used = self.rx.used().into_iter();
        while let Some((head, len)) = used.next() {
            let mut packet = self.buffer(head, len);
            let count = u16::from_le_bytes([packet[10], packet[11]]);
            for _ in 1..count {
                let (head, len) = used.next().expect("all buffers of a frame come at once");
                packet.extend(self.buffer(head, len));
            }
            frames.push(packet);
        }
        frames
    }

    fn buffer(&self, head: u32, len: u32) -> Vec<u8> {
        let address: u64 = self
            .ram
            .read_obj(GuestAddress(RX_RING + 16 * u64::from(head)))
            .unwrap();
        let mut bytes = vec![0; len as usize];
        self.ram
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}

pub fn is_readable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// A frame of so many bytes that differ.
pub fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// The same behind an empty header.
pub fn packet(len: usize) -> Vec<u8> {
    [vec![0; HEADER_BYTES], frame(len)].concat()
}

/// Makes the other end's buffer small, so that it is soon full.
pub fn shrink_buffers(socket: &impl AsRawFd) {
    let bytes: libc::c_int = 4096;
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        // SAFETY: the option is an integer.
        let status = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as libc::socklen_t,
            )
        };
        assert_eq!(status, 0);
    }
}
