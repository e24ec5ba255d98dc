use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_api::IoRate;
use concertina_api::disk::DiskStatus;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{BLOCK_BYTES, Mapping, PluggedBlocks, RamRegion};
use crate::virtio::rng::driver::{Driver, Interrupts, Mischief, NEXT, WRITE, mischief};

const ENGINES: [Engine; 2] = [Engine::Best, Engine::Thread];
/// Elastic memory of the test's guest; block 0 is plugged, block 1 is not.
const ELASTIC: u64 = 4 << 30;
const HEADER: u64 = 0x10000;
const DATA: u64 = 0x20000;
const STATUS: u64 = 0x11000;
const SECTORS: u64 = 2048;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const ALL: u64 = u64::MAX;

/// Address, length and flags of a descriptor.
type Buffer = (u64, u32, u16);

struct Rig {
    ram: Arc<GuestRam>,
    elastic: (Arc<Mapping>, Arc<PluggedBlocks>),
    interrupts: Arc<Interrupts>,
    driver: Driver,
    device: Block,
    image: PathBuf,
    _folder: tempfile::TempDir,
}

fn rig_of(engine: Engine, adapt: impl FnOnce(&mut DiskSpec)) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    let file = File::create(&image).unwrap();
    file.set_len(SECTORS * SECTOR).unwrap();
    let mut spec = DiskSpec::new(&image);
    adapt(&mut spec);
    let device = Block::with_engine(&spec, engine).unwrap();
    let boot = Arc::new(Mapping::new(4 << 20, true).unwrap());
    let mapping = Arc::new(Mapping::new(2 * BLOCK_BYTES as usize, false).unwrap());
    let blocks = Arc::new(PluggedBlocks::new(2));
    mapping.allow(0, BLOCK_BYTES).unwrap();
    blocks.set(0, 1, true);
    let regions = vec![
        RamRegion::fixed(0, boot),
        RamRegion::elastic(ELASTIC, mapping.clone(), blocks.clone()),
    ];
    let ram = Arc::new(GuestRam::from_regions(regions).unwrap());
    let mut rig = Rig {
        driver: Driver::new(ram.clone(), 0, 256),
        ram,
        elastic: (mapping, blocks),
        interrupts: Arc::default(),
        device,
        image,
        _folder: folder,
    };
    // Without the index of events, so that each turn interrupts.
    rig.activate(ALL & !(1 << VIRTIO_RING_F_EVENT_IDX));
    rig
}

fn rig() -> Rig {
    rig_of(Engine::Best, |_| {})
}

const SECTOR: u64 = request::SECTOR_BYTES;

fn is_readable(fd: RawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, timeout.as_millis() as i32) == 1 }
}

impl Rig {
    fn activate(&mut self, acked_features: u64) {
        self.device.activate(Activation {
            acked_features,
            ram: self.ram.clone(),
            queues: vec![self.driver.queue()],
            interrupt: self.interrupts.clone(),
        });
    }

    fn header(&self, at: u64, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.write_slice(&header, GuestAddress(at)).unwrap();
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Serves until nothing is under way and nothing waits.
    fn settle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let fd = self.device.wakeup().unwrap();
        // A turn in which all that was begun has ended at once may have left some in the queue, and is
        // followed by another one.
        loop {
            let busy = self.device.free.len() < usize::from(DEPTH) || self.device.waiting.is_some();
            let patience = Duration::from_millis(if busy { 100 } else { 0 });
            assert!(Instant::now() < deadline, "the device does not settle");
            if is_readable(fd, patience) {
                self.device.host_event();
            } else if !busy {
                return;
            }
        }
    }

    /// Offers a request with data buffers and a status; gives the status.
    fn send(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
        self.header(HEADER, kind, sector);
        self.put(STATUS, &[0xee]);
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend(data);
        chain.push((STATUS, 1, WRITE));
        self.driver.add(&chain);
        self.device.queue_notified(0);
        self.settle();
        assert_eq!(self.driver.used().len(), 1);
        self.get(STATUS, 1)[0]
    }

    /// A discard or a write of zeroes.
    fn send_range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.put(DATA, &range);
        self.send(kind, 0, &[(DATA, 16, 0)])
    }

    fn status(&self) -> DiskStatus {
        self.device.controller().status()
    }

    /// Bytes that the image takes on the host.
    fn allocated(&self) -> u64 {
        fs::metadata(&self.image).unwrap().blocks() * 512
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ seed).collect()
}

#[test]
fn what_is_written_is_in_the_image_and_can_be_read_back() {
    for engine in ENGINES {
        let mut rig = rig_of(engine, |_| {});
        let bytes = pattern(0x3000, 3);
        rig.put(DATA, &bytes);
        let status = rig.send(1, 8, &[(DATA, 0x1000, 0), (DATA + 0x1000, 0x2000, 0)]);
        assert_eq!(status, OK);
        let mut host = vec![0; 0x3000];
        let file = File::open(&rig.image).unwrap();
        file.read_exact_at(&mut host, 8 * SECTOR).unwrap();
        assert!(host == bytes, "{engine:?}");
        // The other way round, into elastic memory as well.
        let parts = [(0x80000, 0x200, WRITE), (ELASTIC, 0x2e00, WRITE)];
        assert_eq!(rig.send(0, 8, &parts), OK);
        let mut read = rig.get(0x80000, 0x200);
        read.extend(rig.get(ELASTIC, 0x2e00));
        assert!(read == bytes, "{engine:?}");
        assert_eq!(rig.send(4, 0, &[]), OK);
        let seen = rig.status();
        assert_eq!((seen.reads, seen.writes, seen.flushes), (1, 1, 1));
        assert_eq!((seen.read_bytes, seen.written_bytes), (0x3000, 0x3000));
        assert_eq!((seen.errors, seen.bad_requests), (0, 0));
        assert!(rig.interrupts.take().0 >= 3);
    }
}

#[test]
fn what_direct_io_does_not_take_goes_through_the_cache_and_both_agree() {
    for engine in ENGINES {
        for cached in [false, true] {
            let mut rig = rig_of(engine, |spec| spec.cached = cached);
            // The file system of the tests may have no direct I/O; then both runs are the same.
            assert!(!(cached && rig.status().direct));
            for (i, address) in [DATA, DATA + 1, DATA + 2, DATA + 512]
                .into_iter()
                .enumerate()
            {
                let bytes = pattern(4096, i as u8);
                rig.put(address, &bytes);
                assert_eq!(rig.send(1, 16, &[(address, 4096, 0)]), OK);
                // Read by the other way.
                for (place, first) in [(0x80000u64, 512), (0x90001, 700)] {
                    let parts = [(place, first, WRITE), (0xa0000, 4096 - first, WRITE)];
                    assert_eq!(rig.send(0, 16, &parts), OK);
                    let mut read = rig.get(place, first as usize);
                    read.extend(rig.get(0xa0000, 4096 - first as usize));
                    assert!(read == bytes, "{engine:?} {cached} {address:#x} {place:#x}");
                }
            }
            assert_eq!((rig.status().errors, rig.status().bad_requests), (0, 0));
        }
    }
}

#[test]
fn borders_of_descriptors_mean_nothing() {
    let mut rig = rig();
    rig.put(DATA, &pattern(512, 9));
    rig.header(HEADER, 1, 5);
    // The header in three pieces, the last with data behind it.
    rig.put(0x30000, &rig.get(HEADER, 16)[..3]);
    rig.put(0x31000, &rig.get(HEADER, 16)[3..10]);
    let mut tail = rig.get(HEADER, 16)[10..].to_vec();
    tail.extend(pattern(512, 9));
    rig.put(0x32000, &tail);
    let chain = [
        (0x30000, 3, 0),
        (0x31000, 7, 0),
        (0x32000, 518, 0),
        (STATUS, 1, WRITE),
    ];
    rig.driver.add(&chain);
    // A read whose data and status share a descriptor, with an empty one behind.
    rig.header(HEADER, 0, 5);
    rig.driver
        .add(&[(HEADER, 16, 0), (0x40000, 513, WRITE), (0x50000, 0, WRITE)]);
    rig.device.queue_notified(0);
    rig.settle();
    let used = rig.driver.used();
    assert_eq!(used.len(), 2);
    // The two ran side by side: read once more what the first has written.
    rig.driver.add(&[(HEADER, 16, 0), (0x40000, 513, WRITE)]);
    rig.device.queue_notified(0);
    rig.settle();
    assert_eq!(rig.driver.used(), [(7, 513)]);
    assert!(rig.get(0x40000, 512) == pattern(512, 9));
    assert_eq!(rig.get(0x40000 + 512, 1), [OK]);
    assert_eq!(rig.status().bad_requests, 0);
}

#[test]
fn a_driver_that_does_not_flush_gets_writes_that_are_through() {
    for engine in ENGINES {
        let mut rig = rig_of(engine, |_| {});
        rig.device.reset();
        rig.driver = Driver::new(rig.ram.clone(), 0x4000, 64);
        rig.activate(0);
        assert!(rig.device.active.as_ref().unwrap().write_through);
        rig.put(DATA, &pattern(512, 1));
        assert_eq!(rig.send(1, 0, &[(DATA, 512, 0)]), OK);
        assert_eq!(fs::read(&rig.image).unwrap()[..512], pattern(512, 1));
    }
}

#[test]
fn the_serial_number_is_told_and_cut_to_its_room() {
    let mut rig = rig_of(Engine::Best, |spec| spec.serial = Some("vol-7".into()));
    assert_eq!(rig.send(8, 0, &[(DATA, 20, WRITE)]), OK);
    assert_eq!(rig.get(DATA, 20), *b"vol-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    rig.put(DATA, &[0xaa; 8]);
    assert_eq!(rig.send(8, 0, &[(DATA, 3, WRITE)]), OK);
    assert_eq!(rig.get(DATA, 4), *b"vol\xaa");
}

#[test]
fn the_configuration_says_what_the_disk_is() {
    let rig = rig();
    let config = rig.device.config();
    let mut bytes = [0xff; 64];
    config.read(0, &mut bytes);
    assert_eq!(bytes[..8], SECTORS.to_le_bytes());
    assert_eq!(bytes[12..16], 254u32.to_le_bytes());
    assert_eq!(bytes[20..24], 512u32.to_le_bytes());
    assert_eq!(bytes[36..40], request::RANGE_MAX_SECTORS.to_le_bytes());
    assert_eq!(bytes[56..], [1, 0, 0, 0, 0, 0, 0, 0]);
    let mut far = [0xff; 8];
    config.read(u64::MAX, &mut far);
    assert_eq!(far, [0; 8]);
}

#[test]
fn a_discard_gives_space_back_and_the_range_reads_as_zeroes() {
    for engine in ENGINES {
        let mut rig = rig_of(engine, |_| {});
        for sector in (0..SECTORS).step_by(512) {
            rig.put(0x100000, &pattern(512 * 512, 5));
            assert_eq!(rig.send(1, sector, &[(0x100000, 512 * 512, 0)]), OK);
        }
        rig.send(4, 0, &[]);
        let full = rig.allocated();
        assert!(full >= SECTORS * SECTOR, "{full}");
        assert_eq!(rig.send_range(11, 0, 1024, 0), OK);
        let half = rig.allocated();
        assert!(half <= full - 1024 * SECTOR, "{half} of {full}");
        // Zeroes that may give space back do so; others read as zeroes all the same.
        assert_eq!(rig.send_range(13, 1024, 512, 1), OK);
        assert!(rig.allocated() <= half - 512 * SECTOR);
        assert_eq!(rig.send_range(13, 1536, 256, 0), OK);
        let bytes = fs::read(&rig.image).unwrap();
        let border = (1536 + 256) * SECTOR as usize;
        assert!(bytes[..border].iter().all(|b| *b == 0));
        assert!(bytes[border..].iter().any(|b| *b != 0));
        assert_eq!(rig.status().discards, 3);
    }
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let mut rig = rig_of(Engine::Best, |spec| spec.read_only = true);
    assert_ne!(rig.device.features() & (1 << VIRTIO_BLK_F_RO), 0);
    assert_eq!(rig.device.features() & (1 << VIRTIO_BLK_F_DISCARD), 0);
    assert_eq!(rig.send(1, 0, &[(DATA, 512, 0)]), IOERR);
    assert_eq!(rig.send_range(11, 0, 8, 0), IOERR);
    assert_eq!(rig.send_range(13, 0, 8, 1), IOERR);
    assert_eq!(rig.send(0, 0, &[(DATA, 512, WRITE)]), OK);
    assert_eq!(rig.send(4, 0, &[]), OK);
    assert_eq!(rig.status().bad_requests, 3);
}

#[test]
fn requests_that_cannot_be_are_refused_and_counted() {
    let mut rig = rig();
    let one = [(DATA, 512, WRITE)];
    let reads: [(u64, &[Buffer]); 12] = [
        (SECTORS, &one),
        (SECTORS - 1, &[(DATA, 1024, WRITE)]),
        (u64::MAX, &one),
        (u64::MAX / 512, &one),
        (0, &[]),
        (0, &[(DATA, 511, WRITE)]),
        (0, &[(DATA, u32::MAX - 511, WRITE)]),
        (0, &[(4 << 20, 512, WRITE)]),
        (0, &[((4 << 20) - 256, 512, WRITE)]),
        (0, &[(ELASTIC + BLOCK_BYTES, 512, WRITE)]),
        (0, &[(ELASTIC + BLOCK_BYTES - 256, 512, WRITE)]),
        (0, &[(u64::MAX - 100, 512, WRITE)]),
    ];
    for (i, (sector, data)) in reads.into_iter().enumerate() {
        assert_eq!(rig.send(0, sector, data), IOERR, "{i}");
        assert_eq!(rig.status().bad_requests, i as u64 + 1);
    }
    // A write whose data are where a read's belong, and the other way round.
    assert_eq!(rig.send(1, 0, &one), IOERR);
    assert_eq!(rig.send(0, 0, &[(DATA, 512, 0)]), IOERR);
    assert_eq!(rig.status().errors, 0);
    assert_eq!(rig.interrupts.take().2, 0);
}

#[test]
fn ranges_that_cannot_be_discarded_are_refused() {
    let mut rig = rig();
    for (sector, sectors) in [
        (SECTORS, 1),
        (0, SECTORS as u32 + 1),
        (u64::MAX, 1),
        (u64::MAX - 3, u32::MAX),
        (0, u32::MAX),
        (0, 0),
    ] {
        assert_eq!(rig.send_range(11, sector, sectors, 0), IOERR, "{sector}");
        assert_eq!(rig.send_range(13, sector, sectors, 1), IOERR, "{sector}");
    }
    assert_eq!(rig.status().bad_requests, 12);
    // More ranges than configured, and half a range.
    assert_eq!(rig.send(11, 0, &[(DATA, 32, 0)]), IOERR);
    assert_eq!(rig.send(11, 0, &[(DATA, 15, 0)]), IOERR);
    // What was not offered is no mistake, only unsupported.
    assert_eq!(rig.send_range(11, 0, 8, 1), UNSUPP);
    assert_eq!(rig.send_range(13, 0, 8, 2), UNSUPP);
    assert_eq!(rig.send(0x1234, 0, &[]), UNSUPP);
    assert_eq!(rig.status().bad_requests, 14);
}

#[test]
fn chains_without_a_place_for_an_answer_are_counted_and_given_back() {
    let mut rig = rig();
    rig.header(HEADER, 0, 0);
    rig.driver.add(&[(HEADER, 16, 0)]);
    rig.driver.add(&[(HEADER, 16, 0), (1 << 40, 1, WRITE)]);
    rig.driver.add(&[(HEADER, 16, 0), (DATA, 0, WRITE)]);
    rig.driver.add(&[(HEADER, 16, 0), (u64::MAX, 2, WRITE)]);
    rig.driver.add(&[(STATUS, 1, WRITE), (HEADER, 16, 0)]);
    // A loop, an index outside the table, and a table outside memory.
    rig.driver.descriptor(100, DATA, 512, WRITE | NEXT, 101);
    rig.driver.descriptor(101, DATA, 512, WRITE | NEXT, 100);
    rig.driver.offer(100);
    rig.driver.descriptor(110, HEADER, 16, NEXT, 9999);
    rig.driver.offer(110);
    rig.driver.descriptor(120, 1 << 40, 32, 4, 0);
    rig.driver.offer(120);
    rig.device.queue_notified(0);
    rig.settle();
    let used = rig.driver.used();
    assert_eq!(used.len(), 8);
    assert!(used.iter().all(|(_, len)| *len == 0), "{used:?}");
    assert_eq!(rig.status().bad_requests, 8);
    assert_eq!(rig.interrupts.take().2, 0);
}

#[test]
fn an_index_that_jumps_asks_for_a_reset_and_after_it_the_disk_works() {
    let mut rig = rig();
    rig.header(HEADER, 0, 0);
    for _ in 0..3 {
        rig.driver
            .add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    }
    rig.device.queue_notified(0);
    rig.driver.set_avail(1000);
    rig.device.queue_notified(0);
    assert_eq!(rig.interrupts.take().2, 1);
    rig.settle();
    rig.device.queue_notified(0);
    assert_eq!(rig.interrupts.take().2, 0);
    rig.device.reset();
    rig.driver = Driver::new(rig.ram.clone(), 0x4000, 64);
    rig.activate(0);
    assert_eq!(rig.send(0, 0, &[(DATA, 512, WRITE)]), OK);
}

#[test]
fn a_reset_waits_for_what_is_under_way_and_nobody_is_answered() {
    for engine in ENGINES {
        let mut rig = rig_of(engine, |_| {});
        rig.header(HEADER, 0, 0);
        for _ in 0..50 {
            rig.driver
                .add(&[(HEADER, 16, 0), (DATA, 0x8000, WRITE), (STATUS, 1, WRITE)]);
        }
        rig.device.queue_notified(0);
        rig.device.reset();
        assert_eq!(rig.device.free.len(), usize::from(DEPTH));
        let used = rig.driver.used().len();
        rig.settle();
        assert_eq!(rig.driver.used().len(), 0, "{used} before");
    }
}

#[test]
fn more_requests_than_places_are_all_answered() {
    for engine in ENGINES {
        let mut rig = rig_of(engine, |_| {});
        rig.header(HEADER, 0, 0);
        // One descriptor each in an indirect table of its own, so that the queue can be full.
        for i in 0..256u64 {
            let table = 0x100000 + i * 64;
            for (n, (address, len, flags, next)) in [
                (HEADER, 16u32, NEXT, 1u16),
                (DATA, 4096, WRITE | NEXT, 2),
                (0x200000 + i, 1, WRITE, 0),
            ]
            .into_iter()
            .enumerate()
            {
                let at = table + 16 * n as u64;
                rig.put(at, &address.to_le_bytes());
                rig.put(at + 8, &len.to_le_bytes());
                rig.put(at + 12, &flags.to_le_bytes());
                rig.put(at + 14, &next.to_le_bytes());
            }
            rig.driver.add(&[(table, 48, 4)]);
        }
        rig.put(0x200000, &[0xee; 256]);
        rig.device.queue_notified(0);
        rig.settle();
        assert_eq!(rig.driver.used().len(), 256, "{engine:?}");
        assert_eq!(rig.get(0x200000, 256), [OK; 256]);
        assert_eq!(rig.status().reads, 256);
    }
}

#[test]
fn an_image_that_became_shorter_fails_requests_and_not_the_device() {
    for engine in ENGINES {
        let mut rig = rig_of(engine, |_| {});
        File::options()
            .write(true)
            .open(&rig.image)
            .unwrap()
            .set_len(512 * 3)
            .unwrap();
        assert_eq!(rig.send(0, 8, &[(DATA, 4096, WRITE)]), IOERR);
        // Half of it is there.
        assert_eq!(rig.send(0, 2, &[(DATA, 1024, WRITE)]), IOERR);
        assert_eq!(rig.send(0, 2, &[(DATA, 512, WRITE)]), OK);
        let seen = rig.status();
        assert_eq!((seen.errors, seen.bad_requests), (2, 0));
        let error = seen.last_error.unwrap();
        assert_eq!(error, "Read: the image has become shorter");
    }
}

#[test]
fn a_store_that_refuses_writes_fails_requests_and_not_the_device() {
    // SAFETY: a name that ends with NUL, and flags.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0);
    // SAFETY: a descriptor that was just made, for this owner alone.
    let store = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    store.set_len(SECTORS * SECTOR).unwrap();
    for engine in ENGINES {
        let mut rig = rig_of(engine, |spec| {
            spec.path = format!("/proc/self/fd/{fd}").into()
        });
        // SAFETY: has no preconditions.
        let sealed = unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        assert_eq!(sealed, 0);
        assert_eq!(rig.send(1, 0, &[(DATA, 512, 0)]), IOERR);
        assert_eq!(rig.send(0, 0, &[(DATA, 512, WRITE)]), OK);
        let seen = rig.status();
        assert_eq!((seen.errors, seen.reads, seen.writes), (1, 1, 0));
        let error = seen.last_error.unwrap();
        assert!(
            error.starts_with("Write: Operation not permitted"),
            "{error}"
        );
    }
}

#[test]
fn a_limit_holds_requests_back_until_there_are_tokens_or_it_is_raised() {
    let slow: IoRate = "1iops,burst=1iops".parse().unwrap();
    let mut rig = rig_of(Engine::Best, |spec| spec.rate = slow);
    rig.header(HEADER, 0, 0);
    for _ in 0..5 {
        rig.driver
            .add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    }
    rig.device.queue_notified(0);
    let fd = rig.device.wakeup().unwrap();
    while rig.status().reads == 0 {
        assert!(is_readable(fd, Duration::from_secs(10)));
        rig.device.host_event();
    }
    // One has passed, and its announcement is taken as well; the second waits, and does not wake anybody
    // before its time.
    rig.device.host_event();
    rig.device.queue_notified(0);
    assert!(rig.device.waiting.is_some());
    assert!(!is_readable(fd, Duration::from_millis(50)));
    assert_eq!(rig.driver.used().len(), 1);
    rig.device.controller().set_rate(IoRate::MAX);
    assert!(is_readable(fd, Duration::from_millis(1000)));
    rig.settle();
    assert_eq!(rig.driver.used().len(), 4);
    assert_eq!(rig.status().throttled, 1);
    assert!(rig.status().rate.is_unlimited());
}

#[test]
fn a_rate_of_bytes_is_kept() {
    let mut rig = rig_of(Engine::Best, |spec| {
        spec.rate = "1M,burst=64K".parse().unwrap()
    });
    rig.header(HEADER, 0, 0);
    let start = Instant::now();
    for _ in 0..10 {
        rig.driver
            .add(&[(HEADER, 16, 0), (DATA, 0x8000, WRITE), (STATUS, 1, WRITE)]);
    }
    rig.device.queue_notified(0);
    rig.settle();
    // 320 KiB, of which 64 KiB come at once: a quarter of a second.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(245), "{took:?}");
    assert_eq!(rig.status().reads, 10);
}

#[test]
fn memory_that_is_unplugged_under_a_request_fails_it_and_stays_away() {
    for engine in ENGINES {
        let slow: IoRate = "1iops,burst=1iops".parse().unwrap();
        let mut rig = rig_of(engine, |spec| spec.rate = slow);
        rig.header(HEADER, 0, 0);
        rig.put(ELASTIC, &[0xaa; 512]);
        rig.driver
            .add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
        rig.driver.add(&[
            (HEADER, 16, 0),
            (ELASTIC, 512, WRITE),
            (STATUS + 1, 1, WRITE),
        ]);
        rig.device.queue_notified(0);
        assert!(rig.device.waiting.is_some());
        // As `ElasticMemory` unplugs a block.
        let (mapping, blocks) = rig.elastic.clone();
        blocks.set(0, 1, false);
        mapping.forbid(0, BLOCK_BYTES).unwrap();
        mapping.discard(0, BLOCK_BYTES).unwrap();
        rig.device.controller().set_rate(IoRate::MAX);
        rig.settle();
        assert_eq!(rig.get(STATUS, 2), [OK, IOERR]);
        let seen = rig.status();
        assert_eq!((seen.errors, seen.bad_requests), (0, 1), "{engine:?}");
        mapping.allow(0, BLOCK_BYTES).unwrap();
        blocks.set(0, 1, true);
        assert_eq!(rig.get(ELASTIC, 512), [0; 512]);
    }
}

const PLACES: [u64; 6] = [0, HEADER, DATA, 4 << 20, ELASTIC + BLOCK_BYTES, u64::MAX];

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]
    #[test]
    fn any_mischief_is_survived(
        acts in prop::collection::vec(mischief(&PLACES), 1..80),
        headers in prop::collection::vec((0u64..512, 0u32..16, 0u64..4096), 0..8),
        thread in any::<bool>(),
    ) {
        let engine = if thread { Engine::Thread } else { Engine::Best };
        let mut rig = rig_of(engine, |_| {});
        for (at, kind, sector) in headers {
            rig.header(HEADER + at, kind, sector);
        }
        for act in &acts {
            rig.driver.misbehave(act);
            if !matches!(act, Mischief::Descriptor(..)) {
                rig.device.queue_notified(0);
                rig.device.host_event();
            }
        }
        rig.settle();
        // Whatever it was: after a reset the disk works.
        rig.device.reset();
        rig.ram.write_slice(&[0; 0x4000], GuestAddress(0)).unwrap();
        rig.driver = Driver::new(rig.ram.clone(), 0x4000, 64);
        rig.put(0x4000, &[0; 0x2000]);
        rig.activate(0);
        prop_assert_eq!(rig.send(0, 0, &[(DATA, 512, WRITE)]), OK);
    }
}
