//! For tests: a guest's driver and its connections, a host with programs, and the device between them.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};
use super::{QUEUE_SIZES, Vsock, VsockCounters};
use crate::memory::GuestRam;
use crate::virtio::rng::driver::{Driver, Interrupts, WRITE, small_ram};
use crate::virtio::{Activation, VirtioDevice};

pub const CID: u32 = 3;
const RINGS: [u64; 3] = [0, 0x4000, 0x8000];
/// Where packets of the guest are put together, one at a time.
pub const PACKET: u64 = 0x10_0000;
const ROOM: u64 = 0x20_0000;
/// Bytes of each buffer for packets to the guest, as Linux has them.
const ROOM_BYTES: u64 = 4096;

pub struct Rig {
    pub ram: Arc<GuestRam>,
    pub interrupts: Arc<Interrupts>,
    pub to_guest: Driver,
    pub from_guest: Driver,
    pub device: Vsock,
    folder: tempfile::TempDir,
    rooms: u64,
    /// Rooms that the device has not used.
    pub waiting_rooms: u64,
    places: HashMap<u32, u64>,
}

impl Rig {
    /// A device with a driver that has given no buffers yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Vsock::new(CID, &folder.path().join("v")).unwrap();
        let ram = small_ram(4);
        let [to_guest, from_guest, _] =
            [0, 1, 2].map(|i| Driver::new(ram.clone(), RINGS[i], QUEUE_SIZES[i]));
        let mut rig = Self {
            interrupts: Arc::default(),
            to_guest,
            from_guest,
            ram,
            device,
            folder,
            rooms: 0,
            waiting_rooms: 0,
            places: HashMap::new(),
        };
        rig.activate();
        rig
    }

    /// The driver comes (again), with empty rings.
    pub fn activate(&mut self) {
        self.activate_with(0);
    }

    /// The same with features.
    pub fn activate_with(&mut self, acked_features: u64) {
        let [to_guest, from_guest, events] = [0, 1, 2].map(|i| {
            self.ram
                .write_slice(&[0; 0x2000], GuestAddress(RINGS[i]))
                .unwrap();
            Driver::new(self.ram.clone(), RINGS[i], QUEUE_SIZES[i])
        });
        let queues = [&to_guest, &from_guest, &events].map(Driver::queue).into();
        (self.to_guest, self.from_guest) = (to_guest, from_guest);
        self.places.clear();
        self.waiting_rooms = 0;
        self.device.activate(Activation {
            acked_features,
            ram: self.ram.clone(),
            queues,
            interrupt: self.interrupts.clone(),
        });
    }

    pub fn socket(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("v{suffix}"))
    }

    pub fn counter(&self, which: impl Fn(&VsockCounters) -> &AtomicU64) -> u64 {
        which(&self.device.counters).load(Ordering::Relaxed)
    }

    /// The guest gives `count` buffers.
    pub fn give_rooms(&mut self, count: u64) {
        for _ in 0..count {
            let place = ROOM + ROOM_BYTES * (self.rooms % u64::from(QUEUE_SIZES[0]));
            self.rooms += 1;
            let head = self.to_guest.add(&[(place, ROOM_BYTES as u32, WRITE)]);
            self.places.insert(u32::from(head), place);
        }
        self.waiting_rooms += count;
        self.device.queue_notified(0);
    }

    /// Lets the event loop run until it would wait.
    pub fn turns(&mut self) {
        for _ in 0..1000 {
            let mut polled = libc::pollfd {
                fd: self.device.wakeup().unwrap(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one valid pollfd.
            if unsafe { libc::poll(&mut polled, 1, 0) } == 0 {
                return;
            }
            self.device.host_event();
        }
        panic!("the device never comes to rest");
    }

    /// What the guest has received since the last call.
    pub fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        for (head, len) in self.to_guest.used() {
            let place = self.places[&head];
            self.waiting_rooms -= 1;
            let mut bytes = vec![0; len as usize];
            self.ram
                .read_slice(&mut bytes, GuestAddress(place))
                .unwrap();
            let header = Header::from_bytes(bytes[..HEADER_BYTES].try_into().unwrap());
            let payload = bytes.split_off(HEADER_BYTES);
            assert_eq!(header.len as usize, payload.len());
            packets.push((header, payload));
        }
        packets
    }

    /// Gives room, lets everything run, and gives what the guest has received.
    pub fn exchange(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.turns();
        self.give_rooms(8u64.saturating_sub(self.waiting_rooms));
        self.turns();
        self.packets()
    }

    /// The only packet of an exchange.
    #[track_caller]
    pub fn answer(&mut self) -> Header {
        let packets = self.exchange();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets[0].0
    }

    /// The guest sends a packet, in two buffers.
    pub fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..header
        };
        let bytes = header.to_bytes();
        self.ram.write_slice(&bytes, GuestAddress(PACKET)).unwrap();
        let at = PACKET + HEADER_BYTES as u64;
        self.ram.write_slice(payload, GuestAddress(at)).unwrap();
        self.from_guest.add(&[
            (PACKET, HEADER_BYTES as u32, 0),
            (at, payload.len() as u32, 0),
        ]);
        self.device.queue_notified(1);
        assert_eq!(self.from_guest.used().len(), 1);
    }

    /// A program of the host listens on `port`.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.socket(&format!("_{port}"))).unwrap()
    }

    /// A program of the guest connects to one of the host.
    #[track_caller]
    pub fn guest_connects(&mut self, listener: &UnixListener, port: u32) -> (Guest, UnixStream) {
        let mut guest = Guest::new(port, 5000);
        self.send(guest.header(op::REQUEST), &[]);
        guest.hear(&self.answer());
        let (host, _) = listener.accept().unwrap();
        host.set_nonblocking(true).unwrap();
        (guest, host)
    }

    /// A program of the host connects to port `port` of the guest, which accepts.
    #[track_caller]
    pub fn host_connects(&mut self, port: u32) -> (Guest, UnixStream) {
        let mut host = self.host_asks(&format!("CONNECT {port}\n"));
        let request = self.answer();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, port));
        let mut guest = Guest::new(request.src_port, port);
        guest.hear(&request);
        self.send(guest.header(op::RESPONSE), &[]);
        let mut line = vec![0; format!("OK {}\n", request.src_port).len()];
        host.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port).into_bytes());
        host.set_nonblocking(true).unwrap();
        (guest, host)
    }

    /// A program of the host connects to the base socket and says `line`.
    pub fn host_asks(&mut self, line: &str) -> UnixStream {
        let mut host = UnixStream::connect(self.socket("")).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        host.write_all(line.as_bytes()).unwrap();
        host
    }
}

/// The guest's end of a connection.
#[derive(Debug, Clone)]
pub struct Guest {
    pub host_port: u32,
    pub guest_port: u32,
    pub window: u32,
    pub taken: u32,
    pub sent: u32,
    host_window: u32,
    host_taken: u32,
}

impl Guest {
    pub fn new(host_port: u32, guest_port: u32) -> Self {
        Self {
            host_port,
            guest_port,
            window: 64 << 10,
            taken: 0,
            sent: 0,
            host_window: 0,
            host_taken: 0,
        }
    }

    pub fn header(&self, operation: u16) -> Header {
        Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: TYPE_STREAM,
            op: operation,
            buf_alloc: self.window,
            fwd_cnt: self.taken,
            ..Header::default()
        }
    }

    /// A SHUTDOWN.
    pub fn shutdown(&self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(op::SHUTDOWN)
        }
    }

    /// Takes note of the credit that a packet brings.
    pub fn hear(&mut self, header: &Header) {
        (self.host_window, self.host_taken) = (header.buf_alloc, header.fwd_cnt);
    }

    /// Bytes that it may send.
    pub fn credit(&self) -> u32 {
        self.host_window - self.sent.wrapping_sub(self.host_taken)
    }
}

/// What a program of the host can read without waiting, and whether the stream has ended.
pub fn read_some(host: &mut UnixStream, most: usize) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while all.len() < most {
        let mut chunk = vec![0; most - all.len()];
        match host.read(&mut chunk) {
            Ok(0) => return (all, true),
            Ok(n) => all.extend(&chunk[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return (all, true),
        }
    }
    (all, false)
}
