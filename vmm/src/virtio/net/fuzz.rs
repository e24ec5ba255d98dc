//! Entry for fuzzers: whatever a driver and a host do to a network interface, the device settles, and
//! works for the next driver.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use concertina_api::IoRate;
use concertina_api::net::{MacAddr, NetLink, NetRateChange, NetRates};
use vm_memory::{Bytes, GuestAddress};

use super::backend::{Gone, Sent};
use super::request::HEADER_BYTES;
use super::segments::Segments;
use super::stream::Stream;
use super::tap::Tap;
use super::*;
use crate::virtio::fuzzing::{Guest, HEADERS, Input};

/// Where frames lie that are well placed.
const DATA: u64 = 0x1_0000;
/// Turns of the event loop after which the device has to be still.
const TURNS_MAX: usize = 10_000;
/// A frame that is sent when all is over.
const LAST_FRAME: [u8; 60] = [0x5a; 60];

/// The code of a tap over a socket that keeps the borders of packets.
pub(super) struct Packets(Tap);

impl Packets {
    /// Takes over a datagram socket.
    pub fn over(socket: OwnedFd) -> io::Result<Self> {
        Tap::over(socket, "packets".into()).map(Self)
    }
}

impl Backend for Packets {
    fn fd(&self) -> RawFd {
        self.0.fd()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn configure(&mut self, _acked: u64) -> io::Result<()> {
        Ok(())
    }
    fn send(&mut self, header: &[u8; HEADER_BYTES], packet: &Segments<'_>) -> Result<Sent, Gone> {
        self.0.send(header, packet)
    }
    fn receive(&mut self, room: &Segments<'_>, spill: &mut [u8]) -> Result<Option<usize>, Gone> {
        self.0.receive(room, spill)
    }
}

/// The other end.
enum Host {
    Packets(UnixDatagram),
    Stream(UnixStream),
}

impl Host {
    /// Sends bytes as they are, as far as there is room.
    fn send(&mut self, bytes: &[u8]) {
        let _ = match self {
            Self::Packets(socket) => socket.send(bytes),
            Self::Stream(socket) => socket.write(bytes),
        };
    }

    /// Reads all that is there; whether it ends with `last`.
    fn drain(&mut self, last: &[u8]) -> bool {
        let (mut seen, mut chunk) = (Vec::new(), [0; 1 << 16]);
        loop {
            let len = match self {
                Self::Packets(socket) => socket.recv(&mut chunk),
                Self::Stream(socket) => socket.read(&mut chunk),
            };
            let Some(bytes) = len.ok().and_then(|len| chunk.get(..len)) else {
                return seen.ends_with(last);
            };
            if bytes.is_empty() {
                return seen.ends_with(last);
            }
            seen.extend_from_slice(bytes);
        }
    }
}

struct Rig {
    device: Net,
    host: Host,
    guest: Guest,
}

impl Rig {
    fn new(link: NetLink) -> Self {
        let settings = Settings {
            link,
            tap: None,
            mac: MacAddr::stable("fuzz", 0),
            mtu: None,
            rates: NetRates::default(),
        };
        let (backend, host): (Box<dyn Backend>, _) = match link {
            NetLink::Tap => {
                let (ours, theirs) = UnixDatagram::pair().expect("sockets");
                theirs.set_nonblocking(true).expect("a mode");
                let packets = Packets::over(ours.into()).expect("a socket");
                (Box::new(packets), Host::Packets(theirs))
            }
            NetLink::Stream => {
                let (ours, theirs) = UnixStream::pair().expect("sockets");
                theirs.set_nonblocking(true).expect("a mode");
                let stream = Stream::new(ours.into()).expect("a socket");
                (Box::new(stream), Host::Stream(theirs))
            }
        };
        Self {
            device: Net::new(backend, settings).expect("a device"),
            host,
            guest: Guest::new(),
        }
    }

    fn run(&mut self, input: &mut Input) {
        self.start(u64::MAX, 4);
        while !input.is_empty() {
            match input.byte() % 16 {
                0 => self.device.queue_notified(RX_QUEUE),
                1 => self.device.queue_notified(TX_QUEUE),
                2 => self.device.host_event(),
                3 => {
                    self.device.reset();
                    let features = u64::from(input.long());
                    let order = input.byte();
                    let offered = self.device.features();
                    self.guest
                        .activate(&mut self.device, features & offered, order);
                }
                4 => self.limit(input),
                5 => self.host_sends(input),
                6 => {
                    self.host.drain(&[]);
                }
                7 => self.guest.select(usize::from(input.byte() % 2)),
                8 | 9 => self.frame(input),
                10 => self.room(input),
                _ => self.guest.act(input),
            }
        }
        self.check();
    }

    fn start(&mut self, features: u64, order: u8) {
        self.device.reset();
        self.change_rates(IoRate::MAX);
        self.guest.clear();
        let acked = features & self.device.features() & !features::EVENT_IDX;
        self.guest.activate(&mut self.device, acked, order);
    }

    fn change_rates(&self, rate: IoRate) {
        let change = NetRateChange {
            index: None,
            rx: Some(rate),
            tx: Some(rate),
        };
        change_rates(&[self.device.controller()], &change);
    }

    fn limit(&mut self, input: &mut Input) {
        self.change_rates(IoRate {
            bytes_per_s: concertina_api::Bytes(u64::from(input.word()) << 8),
            ops_per_s: u64::from(input.word()),
            ..Default::default()
        });
    }

    /// The host sends a frame as it should, or some bytes.
    fn host_sends(&mut self, input: &mut Input) {
        let len = usize::from(input.word());
        let frame = vec![input.byte(); len];
        let good = input.byte() > 0;
        let front: Vec<u8> = match self.host {
            _ if !good => Vec::new(),
            Host::Packets(_) => vec![0; HEADER_BYTES],
            Host::Stream(_) => (len as u32).to_be_bytes().into(),
        };
        self.host.send(&[front, frame].concat());
    }

    /// A header and a chain as a driver makes them: the header, two parts, the last one writable at
    /// times.
    fn frame(&mut self, input: &mut Input) {
        let at = HEADERS + u64::from(input.byte() % 16) * 16;
        let mut header = [0; HEADER_BYTES];
        if input.byte() % 2 == 1 {
            header.fill_with(|| input.byte());
        }
        let _ = self.guest.ram.write_slice(&header, GuestAddress(at));
        let first = u16::from(input.byte() % 14);
        let data = DATA + u64::from(input.byte()) * 64;
        let (a, b) = (u32::from(input.byte()), u32::from(input.word()));
        let flags = u16::from(input.byte() == 1) * 2;
        self.guest.select(usize::from(TX_QUEUE));
        self.guest.put_descriptor(first, (at, 12), 1, first + 1);
        self.guest
            .put_descriptor(first + 1, (data, a), 1, first + 2);
        self.guest
            .put_descriptor(first + 2, (data + 4096, b), flags, 0);
        self.guest.offer(first);
    }

    /// A buffer as a driver gives it.
    fn room(&mut self, input: &mut Input) {
        let index = u16::from(input.byte() % 16);
        let data = DATA + u64::from(input.byte()) * 256;
        let len = u32::from(input.word());
        self.guest.select(usize::from(RX_QUEUE));
        self.guest.put_descriptor(index, (data, len), 2, 0);
        self.guest.offer(index);
    }

    /// Turns of the event loop until the device has nothing to do but to wait for a timer.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let mut ready = [EpollEvent::default(); 1];
            if self.device.epoll.wait(0, &mut ready).unwrap_or(0) == 0 {
                return;
            }
            self.device.host_event();
        }
        panic!("the device keeps the event loop busy");
    }

    fn check(&mut self) {
        self.settle();
        if !self.device.controller().status().link_up {
            return;
        }
        // Another driver finds a device that works.
        self.start(0, 4);
        self.host.drain(&[]);
        self.settle();
        self.host.drain(&[]);
        let bytes = [&[0; HEADER_BYTES][..], &LAST_FRAME].concat();
        let _ = self.guest.ram.write_slice(&bytes, GuestAddress(DATA));
        self.guest.select(usize::from(TX_QUEUE));
        self.guest
            .put_descriptor(0, (DATA, bytes.len() as u32), 0, 0);
        self.guest.offer(0);
        self.device.queue_notified(TX_QUEUE);
        assert!(self.host.drain(&LAST_FRAME), "the frame is lost");
        self.settle();
    }
}

thread_local! {
    /// One of each kind for all inputs, as a machine has one; another one when its host has ended.
    static RIGS: RefCell<[Rig; 2]> =
        RefCell::new([Rig::new(NetLink::Tap), Rig::new(NetLink::Stream)]);
}

/// Does to a network interface what `data` says.
///
/// # Panics
/// The device has not survived it as it should.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let stream = input.byte() % 2 == 1;
    RIGS.with_borrow_mut(|[tap, other]| {
        let (rig, link) = if stream {
            (other, NetLink::Stream)
        } else {
            (tap, NetLink::Tap)
        };
        rig.run(&mut input);
        // What the host has left in a stream would be the next input's.
        if stream || !rig.device.controller().status().link_up {
            *rig = Rig::new(link);
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]
        #[test]
        fn random_programs_are_survived(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::run(&data);
        }
    }

    /// Inputs that were worth keeping: seeds, and what has once found a fault.
    #[test]
    fn the_corpus_is_survived() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/net");
        let mut inputs = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus is there") {
            super::run(&std::fs::read(entry.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{folder} is empty");
    }
}
