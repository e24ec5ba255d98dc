//! What the rest of the machine sees of a disk: its configuration space, its counters, its limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use concertina_api::disk::DiskStatus;
use concertina_api::{Bytes, IoRate};

use super::backend::{Backend, Files};
use super::disk::Disk;
use super::request::{RANGE_MAX_SECTORS, SECTOR_BYTES, SEGMENTS_MAX};
use crate::virtio::DeviceConfig;
use crate::virtio::rate::Throttle;

/// Bytes of `struct virtio_blk_config` (§5.2.4), up to the fields that we have.
const CONFIG_BYTES: usize = 60;
/// Block sizes of the host's file systems, for the guest to align to: 4096 bytes are 2^3 sectors.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// What the device has done since it was made. Only ever grows.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes read by the guest.
    pub read_bytes: AtomicU64,
    /// Bytes written by the guest.
    pub written_bytes: AtomicU64,
    /// Reads done.
    pub reads: AtomicU64,
    /// Writes done.
    pub writes: AtomicU64,
    /// Flushes done.
    pub flushes: AtomicU64,
    /// Discards and writes of zeroes done.
    pub discards: AtomicU64,
    /// Requests that the backing store failed.
    pub errors: AtomicU64,
    /// Requests refused because they are invalid.
    pub bad_requests: AtomicU64,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Shared by the device and everybody else.
pub(super) struct Shared {
    config: [u8; CONFIG_BYTES],
    pub counters: Counters,
    pub throttle: Throttle,
    files: Arc<Files>,
    last_error: Mutex<Option<String>>,
    fixed: DiskStatus,
}

impl Shared {
    pub fn new(disk: &Disk, backend: &Backend, throttle: Throttle) -> Self {
        Self {
            config: config(disk),
            counters: Counters::default(),
            fixed: DiskStatus {
                path: disk.path.clone(),
                capacity: Bytes(disk.sectors * SECTOR_BYTES),
                read_only: disk.read_only,
                serial: disk.serial.clone(),
                rate: throttle.rate(),
                engine: backend.engine().to_owned(),
                direct: backend.files().is_direct(),
                read_bytes: 0,
                written_bytes: 0,
                reads: 0,
                writes: 0,
                flushes: 0,
                discards: 0,
                throttled: 0,
                errors: 0,
                last_error: None,
                bad_requests: 0,
            },
            throttle,
            files: backend.files(),
            last_error: Mutex::new(None),
        }
    }

    /// The backing store has failed a request.
    pub fn failed(&self, what: String) {
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(what);
        count(&self.counters.errors, 1);
    }
}

fn config(disk: &Disk) -> [u8; CONFIG_BYTES] {
    let mut fields = Vec::with_capacity(CONFIG_BYTES);
    fields.extend(disk.sectors.to_le_bytes());
    fields.extend(0u32.to_le_bytes()); // size_max: not offered
    fields.extend((SEGMENTS_MAX as u32).to_le_bytes());
    fields.extend([0; 4]); // geometry: not offered
    fields.extend((SECTOR_BYTES as u32).to_le_bytes());
    fields.extend([PHYSICAL_BLOCK_EXP, 0]);
    fields.extend(1u16.to_le_bytes()); // least I/O, in blocks
    fields.extend(0u32.to_le_bytes()); // best I/O: nothing to say
    fields.extend([0, 0]); // write-back cannot be switched
    fields.extend(1u16.to_le_bytes()); // queues
    fields.extend(RANGE_MAX_SECTORS.to_le_bytes());
    fields.extend(1u32.to_le_bytes()); // ranges in one discard
    fields.extend((1u32 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    fields.extend(RANGE_MAX_SECTORS.to_le_bytes());
    fields.extend(1u32.to_le_bytes()); // ranges in one write of zeroes
    fields.extend([1, 0, 0, 0]); // writes of zeroes may give space back
    let mut config = [0; CONFIG_BYTES];
    for (to, from) in config.iter_mut().zip(fields) {
        *to = from;
    }
    config
}

impl DeviceConfig for Shared {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let fields = self.config.get(start..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(fields) {
            *to = *from;
        }
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
    fn generation(&self) -> u8 {
        0
    }
}

/// The handle by which other threads look at a disk and limit it.
#[derive(Clone)]
pub struct BlockController(pub(super) Arc<Shared>);

impl BlockController {
    /// The disk as it is.
    pub fn status(&self) -> DiskStatus {
        let shared = &self.0;
        let counters = &shared.counters;
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let last_error = shared.last_error.lock();
        DiskStatus {
            rate: shared.throttle.rate(),
            direct: shared.files.is_direct(),
            read_bytes: value(&counters.read_bytes),
            written_bytes: value(&counters.written_bytes),
            reads: value(&counters.reads),
            writes: value(&counters.writes),
            flushes: value(&counters.flushes),
            discards: value(&counters.discards),
            throttled: shared.throttle.waits(),
            errors: value(&counters.errors),
            last_error: last_error.unwrap_or_else(PoisonError::into_inner).clone(),
            bad_requests: value(&counters.bad_requests),
            ..shared.fixed.clone()
        }
    }

    /// Another limit, at once.
    pub fn set_rate(&self, rate: IoRate) {
        self.0.throttle.set(rate);
    }

    /// The limit in force.
    pub fn rate(&self) -> IoRate {
        self.0.throttle.rate()
    }
}

impl std::fmt::Debug for BlockController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.status().fmt(f)
    }
}
