//! For fuzzers of devices: a guest whose driver does what a string of bytes says.
//!
//! The bytes are read as acts on the driver's side: write memory, fill in descriptors, offer chains,
//! move the ring's index, notify, reset. They are dense, so that random bytes reach the device, and
//! each act costs few bytes, so that a fuzzer's mutations keep their meaning.
//!
//! ```text
//! 0x0000 rings     0x8000 headers and status     0x10000 data     1 MiB end     4 GiB elastic
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Activation, DeviceInterrupt, VirtioDevice};
use crate::memory::{BLOCK_BYTES, GuestRam, Mapping, PluggedBlocks, RamRegion};

/// Where the elastic region starts; its first block can be plugged and unplugged, its second is away.
pub const ELASTIC: u64 = 4 << 30;
/// Where headers and status bytes are put.
pub const HEADERS: u64 = 0x8000;
const RAM_BYTES: u64 = 1 << 20;
/// Addresses around which buffers lie.
const PLACES: [u64; 8] = [
    0,
    HEADERS,
    0x1_0000,
    0x2_0000,
    RAM_BYTES,
    ELASTIC,
    ELASTIC + BLOCK_BYTES,
    u64::MAX,
];
/// Largest ring of the driver.
const RING_MAX: u16 = 32;
/// Most queues of a device: their rings end before the headers.
const QUEUES_MAX: usize = 8;

/// The rest of an input. What is missing reads as zero.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }
    /// The next two.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
    /// The next four.
    pub fn long(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }
    /// The next eight.
    pub fn quad(&mut self) -> u64 {
        u64::from(self.long()) | u64::from(self.long()) << 32
    }
}

/// Counts requests for a reset.
#[derive(Default)]
pub struct Interrupts(AtomicU64);

impl DeviceInterrupt for Interrupts {
    fn queue(&self, _index: u16) {}
    fn config(&self) {}
    fn needs_reset(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The guest: its memory and its driver's state.
pub struct Guest {
    /// Its memory.
    pub ram: Arc<GuestRam>,
    boot: Arc<Mapping>,
    elastic: Arc<Mapping>,
    blocks: Arc<PluggedBlocks>,
    /// The queue that acts are for.
    queue: usize,
    avail: [u16; QUEUES_MAX],
    size: u16,
}

impl Guest {
    /// With the first elastic block plugged.
    ///
    /// # Panics
    /// The host has no memory.
    pub fn new() -> Self {
        let map = |bytes, access| Arc::new(Mapping::new(bytes, access).expect("memory"));
        let boot = map(RAM_BYTES as usize, true);
        let elastic = map(2 * BLOCK_BYTES as usize, false);
        let blocks = Arc::new(PluggedBlocks::new(2));
        let regions = vec![
            RamRegion::fixed(0, boot.clone()),
            RamRegion::elastic(ELASTIC, elastic.clone(), blocks.clone()),
        ];
        let guest = Self {
            ram: Arc::new(GuestRam::from_regions(regions).expect("regions")),
            boot,
            elastic,
            blocks,
            queue: 0,
            avail: [0; QUEUES_MAX],
            size: 16,
        };
        guest.plug(true);
        guest
    }

    /// Memory as at the start.
    pub fn clear(&mut self) {
        let _ = self.boot.discard(0, RAM_BYTES);
        self.plug(false);
        self.plug(true);
        self.queue = 0;
        self.avail = [0; QUEUES_MAX];
        self.size = 16;
    }

    /// Acts from now on are for this queue.
    pub fn select(&mut self, queue: usize) {
        self.queue = queue % QUEUES_MAX;
    }

    /// Where the rings of a queue lie.
    fn base(queue: usize) -> u64 {
        queue as u64 * 0x1000
    }

    /// Plugs or unplugs the first elastic block, in the order in which it is done elsewhere.
    fn plug(&self, plugged: bool) {
        if plugged {
            let _ = self.elastic.allow(0, BLOCK_BYTES);
            self.blocks.set(0, 1, true);
        } else {
            self.blocks.set(0, 1, false);
            let _ = self.elastic.forbid(0, BLOCK_BYTES);
            let _ = self.elastic.discard(0, BLOCK_BYTES);
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.ram.write_slice(bytes, GuestAddress(at));
    }

    fn available(queue: usize) -> u64 {
        Self::base(queue) + 16 * u64::from(RING_MAX)
    }

    fn queue(&self, number: usize) -> Queue {
        let base = Self::base(number);
        let mut queue = Queue::new(256).expect("a power of two");
        queue.set_size(self.size);
        let low = |address: u64| Some(address as u32);
        let high = |address: u64| Some((address >> 32) as u32);
        let available = Self::available(number);
        queue.set_desc_table_address(low(base), high(base));
        queue.set_avail_ring_address(low(available), high(available));
        queue.set_used_ring_address(low(available + 0x100), high(available + 0x100));
        queue.set_ready(true);
        queue
    }

    /// Lets the device meet its driver, which has this much of a ring.
    pub fn activate(&mut self, device: &mut dyn VirtioDevice, acked_features: u64, order: u8) {
        self.size = (1 << (order % 6)).min(RING_MAX);
        self.avail = [0; QUEUES_MAX];
        let queues = device.queue_sizes().len();
        for queue in 0..queues {
            self.put(Self::available(queue), &[0; 4]);
        }
        let activation = Activation {
            acked_features,
            ram: self.ram.clone(),
            queues: (0..queues).map(|n| self.queue(n)).collect(),
            interrupt: Arc::new(Interrupts::default()),
        };
        device.activate(activation);
    }

    /// One act of the driver that has to do with memory alone.
    pub fn act(&mut self, input: &mut Input) {
        match input.byte() % 8 {
            0 => {
                let (at, len) = (u64::from(input.word()), input.byte() % 64);
                let bytes: Vec<u8> = (0..len).map(|_| input.byte()).collect();
                self.put(at, &bytes);
            }
            1 | 2 => self.descriptor(input),
            3 | 4 => {
                // Seldom outside the table: that ends everything until the next reset.
                let head = u16::from(input.byte()) % (self.size + u16::from(input.byte() == 0));
                self.offer(head);
            }
            5 => {
                let step = u16::from(input.byte() % 8);
                self.set_index(self.index().wrapping_add(step));
            }
            // Far jumps end everything until the next reset: seldom.
            6 if input.byte() == 0 => {
                let index = input.word();
                self.set_index(index);
            }
            6 => {}
            _ => self.plug(input.byte().is_multiple_of(2)),
        }
    }

    /// Makes a chain available.
    pub fn offer(&mut self, head: u16) {
        let index = self.index();
        let slot = Self::available(self.queue) + 4 + 2 * u64::from(index % self.size.max(1));
        self.put(slot, &head.to_le_bytes());
        self.set_index(index.wrapping_add(1));
    }

    fn index(&self) -> u16 {
        self.avail.get(self.queue).copied().unwrap_or(0)
    }

    fn set_index(&mut self, index: u16) {
        if let Some(avail) = self.avail.get_mut(self.queue) {
            *avail = index;
        }
        self.put(Self::available(self.queue) + 2, &index.to_le_bytes());
    }

    fn descriptor(&mut self, input: &mut Input) {
        let index = u16::from(input.byte()) % RING_MAX;
        let place = PLACES.get(usize::from(input.byte() % 8)).copied();
        let address = place
            .unwrap_or(0)
            .wrapping_add_signed(i64::from(input.word() as i16));
        let len = match input.byte() % 8 {
            0 => input.long(),
            1 => u32::from(input.byte()),
            2 => 16,
            3 => 1,
            n => u32::from(n - 3) * 512,
        };
        // Bits: continued, writable, indirect.
        let flags = u16::from(input.byte() % 8);
        let next = u16::from(input.byte() % (RING_MAX as u8 + 2));
        self.put_descriptor(index, (address, len), flags, next);
    }

    /// Writes one descriptor as it is.
    pub fn put_descriptor(&self, index: u16, (address, len): (u64, u32), flags: u16, next: u16) {
        let at = Self::base(self.queue) + 16 * u64::from(index);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}
