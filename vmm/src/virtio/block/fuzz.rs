//! Entry for fuzzers: whatever a driver does to a disk, the device settles, keeps count of what is
//! under way, stays inside its image, and works for the next driver.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Instant;

use super::*;
use crate::virtio::fuzzing::{Guest, HEADERS, Input};

const IMAGE_BYTES: u64 = 64 << 10;
/// Where data lie that are well placed.
const DATA: u64 = 0x1_0000;
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

struct Rig {
    image: File,
    device: Block,
    guest: Guest,
}

impl Rig {
    fn new() -> Self {
        // SAFETY: a name that ends with NUL, and no flags.
        let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), 0) };
        assert!(fd >= 0, "there is no memory file");
        // SAFETY: a descriptor that was just made, for this owner alone.
        let image = unsafe { File::from_raw_fd(fd) };
        image.set_len(IMAGE_BYTES).expect("the image has a length");
        let spec = DiskSpec::new(format!("/proc/self/fd/{}", image.as_raw_fd()));
        let device = Block::new(&spec).expect("the image is a disk");
        Self {
            image,
            device,
            guest: Guest::new(),
        }
    }

    fn run(&mut self, input: &mut Input) {
        self.device.reset();
        self.device
            .controller()
            .set_rate(concertina_api::IoRate::MAX);
        self.guest.clear();
        self.guest.activate(&mut self.device, u64::MAX, 4);
        while !input.is_empty() {
            match input.byte() % 16 {
                0 => self.device.queue_notified(0),
                1 => self.device.host_event(),
                2 => {
                    self.device.reset();
                    let (features, order) = (input.byte(), input.byte());
                    // Flush, event index, both or neither.
                    let features = u64::from(features & 1) << VIRTIO_BLK_F_FLUSH
                        | u64::from(features >> 1 & 1) << VIRTIO_RING_F_EVENT_IDX;
                    self.guest.activate(&mut self.device, features, order);
                }
                3 => self.device.controller().set_rate(rate(input)),
                4 | 5 => {
                    self.header(input);
                }
                6 | 7 => self.request(input),
                _ => self.guest.act(input),
            }
        }
        self.check();
    }

    /// A header, or the range of a discard, as a driver writes it; gives its address.
    fn header(&mut self, input: &mut Input) -> u64 {
        let at = HEADERS + u64::from(input.byte() % 16) * 16;
        let kind = input.byte() % 16;
        let sector = match input.byte() {
            255 => input.quad(),
            n => u64::from(n),
        };
        let mut header = [0; 16];
        header[0] = kind;
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let _ = self.guest.ram.write_slice(&header, GuestAddress(at));
        at
    }

    /// A whole chain as a driver makes it, but for its data: three descriptors from this one on.
    fn request(&mut self, input: &mut Input) {
        let at = self.header(input);
        let first = u16::from(input.byte() % 14);
        let flags = u16::from(input.byte() % 2) * 2;
        let data = DATA + u64::from(input.byte()) * 64;
        let bytes = match input.byte() {
            0 => 16,
            n => u32::from(n % 40) * 512,
        };
        let guest = &mut self.guest;
        guest.put_descriptor(first, (at, 16), 1, first + 1);
        guest.put_descriptor(first + 1, (data, bytes), flags | 1, first + 2);
        guest.put_descriptor(first + 2, (at + 0x400, 1), 2, 0);
        guest.offer(first);
    }

    /// Serves the device until nothing is under way.
    fn settle(&mut self) {
        let deadline = Instant::now() + SETTLE_LIMIT;
        self.device.queue_notified(0);
        self.device
            .controller()
            .set_rate(concertina_api::IoRate::MAX);
        while self.device.waiting.is_some() || self.device.free.len() < usize::from(DEPTH) {
            assert!(Instant::now() < deadline, "requests do not end");
            self.device.host_event();
        }
    }

    fn check(&mut self) {
        self.settle();
        assert_eq!(self.device.free.len(), usize::from(DEPTH));
        assert!(self.device.flights.iter().all(Option::is_none));
        let bytes = self.image.metadata().map(|image| image.len());
        assert_eq!(
            bytes.ok(),
            Some(IMAGE_BYTES),
            "the image has another length"
        );
        assert_eq!(
            self.device.controller().status().errors,
            0,
            "the store failed"
        );
    }
}

fn rate(input: &mut Input) -> concertina_api::IoRate {
    concertina_api::IoRate {
        bytes_per_s: concertina_api::Bytes(u64::from(input.word()) << 8),
        ops_per_s: u64::from(input.word()),
        ..Default::default()
    }
}

thread_local! {
    /// One for all inputs, as a machine has one: each input ends with a device that another driver
    /// finds as it was.
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// Does to a disk what `data` says.
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
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]
        #[test]
        fn random_programs_are_survived(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::run(&data);
        }
    }

    /// Inputs that were worth keeping: seeds, and what has once found a fault.
    #[test]
    fn the_corpus_is_survived() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/block");
        let mut inputs = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus is there") {
            super::run(&std::fs::read(entry.unwrap().path()).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{folder} is empty");
    }
}
