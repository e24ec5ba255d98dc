//! Entry for fuzzers: whatever a driver does to the sockets, and programs of the host meanwhile, the
//! device comes to rest, holds no more than it promised, and works for the next driver.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress};

use super::packet::{HOST_CID, Header, TYPE_STREAM};
use super::windows::{MAX_CONNECTIONS, MOST_PROMISED};
use super::*;
use crate::virtio::fuzzing::{Guest, HEADERS, Input};

const CID: u32 = 3;
/// The host's port that somebody listens on; there is nobody on the others.
const PORT: u32 = 1;
/// Where data lie that are well placed.
const DATA: u64 = 0x1_0000;
/// The ring that the bytes do not drive, and its room for packets.
const OTHER_RING: u64 = 0x1000;
const ROOMS: u64 = 0x4_0000;
/// Most programs of the host at once.
const MAX_PROGRAMS: usize = 8;

/// The device with its first two queues exchanged, since the bytes drive the first.
struct Exchanged(Vsock);

impl VirtioDevice for Exchanged {
    fn device_type(&self) -> u32 {
        self.0.device_type()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes()
    }
    fn config(&self) -> Arc<dyn DeviceConfig> {
        self.0.config()
    }
    fn activate(&mut self, mut activation: Activation) {
        activation.queues.swap(0, 1);
        self.0.activate(activation);
    }
    fn queue_notified(&mut self, index: u16) {
        self.0.queue_notified(index ^ 1);
    }
    fn reset(&mut self) {
        self.0.reset();
    }
}

struct Rig {
    device: Exchanged,
    guest: Guest,
    listener: UnixListener,
    programs: Vec<UnixStream>,
    base: PathBuf,
    /// Index of the other queue's available ring, and how many entries it has.
    rooms: u16,
    room_entries: u16,
    /// The bytes drive the queue to the guest, not the one from it.
    drives_rooms: bool,
}

impl Rig {
    fn new() -> Self {
        let thread = std::thread::current().id();
        let name = format!("vsock-fuzz-{}-{thread:?}", std::process::id());
        let base = std::env::temp_dir().join(name);
        let suffixed = base.with_file_name(format!(
            "{}_{PORT}",
            base.file_name().unwrap_or_default().to_string_lossy()
        ));
        let _ = std::fs::remove_file(&suffixed);
        let listener = UnixListener::bind(&suffixed).expect("somebody listens");
        listener.set_nonblocking(true).expect("a socket");
        // Connections to a socket whose name is gone are refused: the name stays for this process.
        Self {
            device: Exchanged(Vsock::new(CID, &base).expect("the base socket")),
            guest: Guest::new(),
            listener,
            programs: Vec::new(),
            base,
            rooms: 0,
            room_entries: 0,
            drives_rooms: false,
        }
    }

    fn run(&mut self, input: &mut Input) {
        self.guest.clear();
        self.programs.clear();
        self.restart(0, 4);
        while !input.is_empty() {
            match input.byte() % 20 {
                0 => self.device.0.queue_notified(input.byte().into()),
                1 | 2 => self.device.0.host_event(),
                3 => self.restart(input.byte(), input.byte()),
                4 | 5 => self.give_rooms(),
                6 => self.host_connects(input),
                7 => self.host_accepts(),
                8 => self.host_writes(input),
                9 => self.host_reads(input),
                10 => {
                    self.programs.pop();
                }
                11..=14 => self.packet(input),
                _ => self.guest.act(input),
            }
        }
        self.check();
    }

    /// Another driver comes.
    fn restart(&mut self, how: u8, order: u8) {
        self.device.reset();
        self.drives_rooms = how & 2 != 0;
        let features = if how & 1 != 0 { F_EVENT_IDX } else { 0 };
        let zeroes = [0; 0x800];
        let _ = self
            .guest
            .ram
            .write_slice(&zeroes, GuestAddress(OTHER_RING));
        self.rooms = 0;
        self.room_entries = 1 << (order % 6);
        if self.drives_rooms {
            self.guest.activate(&mut self.device.0, features, order);
        } else {
            self.guest.activate(&mut self.device, features, order);
        }
    }

    /// The driver gives as much room as the other ring holds.
    fn give_rooms(&mut self) {
        if self.drives_rooms {
            return;
        }
        for index in 0..self.room_entries {
            let at = u64::from(index);
            let mut descriptor = [0u8; 16];
            let address = ROOMS + at * 0x400;
            let fields = address
                .to_le_bytes()
                .into_iter()
                .chain(0x400u32.to_le_bytes())
                .chain([2, 0]);
            for (to, from) in descriptor.iter_mut().zip(fields) {
                *to = from;
            }
            let ram = &self.guest.ram;
            let _ = ram.write_slice(&descriptor, GuestAddress(OTHER_RING + 16 * at));
            let slot = OTHER_RING + 16 * 32 + 4 + 2 * at;
            let _ = ram.write_obj(index, GuestAddress(slot));
        }
        self.rooms = self.rooms.wrapping_add(self.room_entries);
        let at = GuestAddress(OTHER_RING + 16 * 32 + 2);
        let _ = self.guest.ram.write_obj(self.rooms, at);
        self.device.0.queue_notified(TO_GUEST);
    }

    /// A packet as a driver makes it, offered in two descriptors.
    fn packet(&mut self, input: &mut Input) {
        let kinds = input.byte();
        let at = HEADERS + u64::from(input.byte() % 16) * 64;
        let length = u32::from(input.byte()) << (input.byte() % 9);
        let header = Header {
            src_cid: if kinds & 0xc0 == 0xc0 { 9 } else { CID.into() },
            dst_cid: if kinds & 0x38 == 0x38 { 9 } else { HOST_CID },
            src_port: u32::from(input.byte() % 4),
            dst_port: match input.byte() % 8 {
                0 => 2,
                n @ 1..=3 => (1 << 30) + u32::from(n) - 1,
                7 => input.long(),
                _ => PORT,
            },
            len: length,
            kind: TYPE_STREAM,
            op: u16::from(input.byte() % 9),
            flags: u32::from(input.byte() % 5),
            buf_alloc: u32::from(input.byte()) << (input.byte() % 25),
            fwd_cnt: u32::from(input.byte()),
        };
        let _ = self
            .guest
            .ram
            .write_slice(&header.to_bytes(), GuestAddress(at));
        let first = u16::from(input.byte() % 15);
        self.guest
            .put_descriptor(first, (at, HEADER_BYTES as u32), 1, first + 1);
        self.guest.put_descriptor(first + 1, (DATA, length), 0, 0);
        self.guest.offer(first);
        self.device.0.queue_notified(FROM_GUEST);
    }

    fn host_connects(&mut self, input: &mut Input) {
        if self.programs.len() >= MAX_PROGRAMS {
            return;
        }
        let Ok(mut program) = UnixStream::connect(&self.base) else {
            return;
        };
        let _ = program.set_nonblocking(true);
        let line = match input.byte() % 4 {
            0 => String::new(),
            1 => "HELLO\n".to_owned(),
            _ => format!("CONNECT {}\n", input.byte() % 4),
        };
        let _ = program.write(line.as_bytes());
        self.programs.push(program);
    }

    fn host_accepts(&mut self) {
        while let Ok((program, _)) = self.listener.accept() {
            if self.programs.len() < MAX_PROGRAMS {
                let _ = program.set_nonblocking(true);
                self.programs.push(program);
            }
        }
    }

    fn host_writes(&mut self, input: &mut Input) {
        let bytes = vec![7; usize::from(input.byte()) << (input.byte() % 9)];
        let which = usize::from(input.byte());
        let count = self.programs.len().max(1);
        if let Some(program) = self.programs.get_mut(which % count) {
            let _ = program.write(&bytes);
        }
    }

    fn host_reads(&mut self, input: &mut Input) {
        let mut bytes = vec![0; usize::from(input.byte()) << (input.byte() % 9)];
        let which = usize::from(input.byte());
        let count = self.programs.len().max(1);
        if let Some(program) = self.programs.get_mut(which % count) {
            let _ = program.read(&mut bytes);
        }
    }

    /// The device comes to rest, and has held no more than it promised.
    fn check(&mut self) {
        let muxer = &self.device.0.muxer;
        assert!(
            muxer.backlog_bytes() <= MOST_PROMISED,
            "more held than promised"
        );
        let connections = self.device.0.counters.connections.load(Ordering::Relaxed);
        assert!(
            connections <= MAX_CONNECTIONS as u64,
            "too many connections"
        );
        let mut turns = 0;
        while is_readable(self.device.0.muxer.descriptor()) {
            self.device.0.host_event();
            turns += 1;
            assert!(turns < 10_000, "the device does not come to rest");
        }
        self.device.reset();
        let connections = self.device.0.counters.connections.load(Ordering::Relaxed);
        assert_eq!(connections, 0, "a connection has outlived its driver");
        self.host_accepts();
    }
}

fn is_readable(fd: RawFd) -> bool {
    let mut polled = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd for the duration of the call.
    unsafe { libc::poll(&mut polled, 1, 0) > 0 }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let mut suffixed = self.base.clone().into_os_string();
        suffixed.push(format!("_{PORT}"));
        let _ = std::fs::remove_file(suffixed);
    }
}

thread_local! {
    /// One for all inputs, as a machine has one.
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Does to the sockets what `data` says.
///
/// # Panics
/// The device has not survived it as it should.
pub fn run(data: &[u8]) {
    RIG.with_borrow_mut(|rig| rig.run(&mut Input(data)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]
        #[test]
        fn random_programs_are_survived(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::run(&data);
        }
    }

    /// Inputs that were worth keeping: seeds, and what has once found a fault.
    #[test]
    fn the_corpus_is_survived() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/vsock");
        let mut inputs = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus is there") {
            super::run(&std::fs::read(entry.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{folder} is empty");
        // They still mean what they were made for.
        let seen = super::RIG.with_borrow(|rig| rig.device.0.counters.status());
        let reached = [
            seen.opened_by_guest,
            seen.opened_by_host,
            seen.refused,
            seen.bytes_from_guest,
            seen.bytes_to_guest,
            seen.credit_overruns,
        ];
        assert!(reached.iter().all(|count| *count > 0), "{seen:?}");
    }
}
