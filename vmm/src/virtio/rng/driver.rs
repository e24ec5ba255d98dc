//! For tests of all devices: the driver's side of a split queue, in guest memory, without manners.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{GuestRam, Mapping, RamRegion};
use crate::virtio::DeviceInterrupt;

/// The buffer is for the device to write.
pub const WRITE: u16 = 2;
/// The descriptor is continued by another.
pub const NEXT: u16 = 1;

/// Guest memory of `mib` mebibytes from address 0.
pub fn small_ram(mib: usize) -> Arc<GuestRam> {
    let mapping = Arc::new(Mapping::new(mib << 20, true).unwrap());
    Arc::new(GuestRam::from_regions(vec![RamRegion::fixed(0, mapping)]).unwrap())
}

/// Counts interrupts.
#[derive(Default)]
pub struct Interrupts {
    /// Of queues.
    pub queue: AtomicUsize,
    /// Of configuration space.
    pub config: AtomicUsize,
    /// Requests to be reset.
    pub needs_reset: AtomicUsize,
}

impl Interrupts {
    /// Since the last call: (queue, config, needs_reset).
    pub fn take(&self) -> (usize, usize, usize) {
        let take = |counter: &AtomicUsize| counter.swap(0, Ordering::Relaxed);
        (
            take(&self.queue),
            take(&self.config),
            take(&self.needs_reset),
        )
    }
}

impl DeviceInterrupt for Interrupts {
    fn queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::Relaxed);
    }
    fn config(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::Relaxed);
    }
}

/// One queue: rings at `base`, descriptors used round-robin.
pub struct Driver {
    ram: Arc<GuestRam>,
    base: u64,
    size: u16,
    next_descriptor: u16,
    avail: u16,
    seen_used: u16,
}

impl Driver {
    /// Rings of `size` entries in one 8 KiB area at `base`.
    pub fn new(ram: Arc<GuestRam>, base: u64, size: u16) -> Self {
        Self {
            ram,
            base,
            size,
            next_descriptor: 0,
            avail: 0,
            seen_used: 0,
        }
    }

    fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// The device's side of the queue.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(self.base);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.avail_ring());
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used_ring());
        queue.set_used_ring_address(low, high);
        queue.set_ready(true);
        queue
    }

    /// Writes one descriptor as it is.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index);
        self.ram.write_obj(address, GuestAddress(at)).unwrap();
        self.ram.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.ram.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain available whose first descriptor is `head`.
    pub fn offer(&mut self, head: u16) {
        let slot = self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size);
        self.ram.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail(self.avail.wrapping_add(1));
    }

    /// Sets the index of the available ring, also where it lies.
    pub fn set_avail(&mut self, index: u16) {
        self.avail = index;
        self.ram
            .write_obj(index, GuestAddress(self.avail_ring() + 2))
            .unwrap();
    }

    /// Offers a well-formed chain of (address, length, flags); gives its head.
    pub fn add(&mut self, buffers: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_descriptor;
        for (i, (address, len, flags)) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(index, *address, *len, flags | more, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// Used entries that were not seen before: (head, length).
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let ring = self.used_ring();
        let index: u16 = self.ram.read_obj(GuestAddress(ring + 2)).unwrap();
        let mut entries = Vec::new();
        while self.seen_used != index {
            let at = ring + 4 + 8 * u64::from(self.seen_used % self.size);
            let head = self.ram.read_obj(GuestAddress(at)).unwrap();
            entries.push((head, self.ram.read_obj(GuestAddress(at + 4)).unwrap()));
            self.seen_used = self.seen_used.wrapping_add(1);
        }
        entries
    }
}

/// Something that a hostile driver does to a queue.
#[derive(Debug, Clone)]
pub enum Mischief {
    /// Writes a descriptor: index, address, length, flags, next.
    Descriptor(u16, u64, u32, u16, u16),
    /// Offers a chain.
    Offer(u16),
    /// Sets the index of the available ring.
    Index(u16),
}

/// Mischief that is near enough to good manners to reach the device: addresses around `places`,
/// small and huge lengths, all flags.
pub fn mischief(places: &'static [u64]) -> impl Strategy<Value = Mischief> {
    let address = (prop::sample::select(places), -5000i64..5000)
        .prop_map(|(place, offset)| place.wrapping_add_signed(offset));
    let len = prop_oneof![0u32..40, 0u32..20_000, any::<u32>()];
    let descriptor = (0u16..16, address, len, 0u16..8, 0u16..18);
    prop_oneof![
        6 => descriptor.prop_map(|(i, a, l, f, n)| Mischief::Descriptor(i, a, l, f, n)),
        6 => (0u16..17).prop_map(Mischief::Offer),
        1 => any::<u16>().prop_map(Mischief::Index),
    ]
}

impl Driver {
    /// Does it.
    pub fn misbehave(&mut self, mischief: &Mischief) {
        match mischief {
            Mischief::Descriptor(index, address, len, flags, next) => {
                self.descriptor(*index, *address, *len, *flags, *next);
            }
            Mischief::Offer(head) => self.offer(*head),
            Mischief::Index(index) => self.set_avail(*index),
        }
    }
}
