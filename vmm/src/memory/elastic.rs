//! The elastic region: plugging and unplugging ranges of blocks, on the host's side.
//!
//! Order (nothing that the guest can reach is ever without memory, nothing that it gave up stays):
//! plug = allow access → give the slot to KVM if it is its first block → mark;
//! unplug = unmark → take the slot from KVM if it was its last block → forbid access → discard.
//! Access goes before the pages do: a request of another device that is still under way in a block
//! (the kernel's, on our behalf) then fails, and cannot bring back a page that was just discarded.

use std::io;
use std::sync::Arc;

use super::{BLOCK_BYTES, Mapping, PluggedBlocks, SLOT_BYTES};

/// KVM's memory slots, or a stand-in in tests.
pub trait MemorySlots: Send {
    /// Maps `len` bytes of host memory at `host` to guest address `guest` in slot `slot`.
    ///
    /// # Errors
    /// What KVM says.
    fn add(&mut self, slot: u32, guest: u64, host: u64, len: u64) -> io::Result<()>;

    /// Takes slot `slot` away.
    ///
    /// # Errors
    /// What KVM says.
    fn remove(&mut self, slot: u32) -> io::Result<()>;
}

/// The host could not do it; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ElasticError {
    /// The range is not inside the region.
    #[error("Range of {count} blocks from block {first} is outside the elastic region")]
    OutOfRange {
        /// First block.
        first: u64,
        /// Number of blocks.
        count: u64,
    },
    /// The kernel refused.
    #[error("Host memory of the elastic region cannot be changed")]
    Host(#[from] io::Error),
}

/// The elastic region on the host's side. Block numbers count [`BLOCK_BYTES`] from its start.
pub struct ElasticMemory {
    start: u64,
    mapping: Arc<Mapping>,
    blocks: Arc<PluggedBlocks>,
    slots: Box<dyn MemorySlots>,
    first_slot: u32,
}

impl ElasticMemory {
    /// A region with nothing plugged. `first_slot` is the first of the KVM slots that are its own.
    pub fn new(
        start: u64,
        mapping: Arc<Mapping>,
        blocks: Arc<PluggedBlocks>,
        slots: Box<dyn MemorySlots>,
        first_slot: u32,
    ) -> Self {
        Self {
            start,
            mapping,
            blocks,
            slots,
            first_slot,
        }
    }

    /// Guest address of its first byte.
    pub fn start(&self) -> u64 {
        self.start
    }
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }
    /// No elastic memory at all.
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }
    /// Which blocks are plugged.
    pub fn blocks(&self) -> &PluggedBlocks {
        &self.blocks
    }

    fn check(&self, first: u64, count: u64) -> Result<(), ElasticError> {
        match first.checked_add(count) {
            Some(end) if end <= self.blocks.len() => Ok(()),
            _ => Err(ElasticError::OutOfRange { first, count }),
        }
    }

    fn slot_blocks() -> u64 {
        SLOT_BYTES / BLOCK_BYTES
    }

    fn slots_of(first: u64, count: u64) -> std::ops::Range<u64> {
        first / Self::slot_blocks()..(first + count).div_ceil(Self::slot_blocks())
    }

    fn add_slot(&mut self, slot: u64) -> io::Result<()> {
        let offset = slot * SLOT_BYTES;
        let len = SLOT_BYTES.min(self.len() - offset);
        let host = self.mapping.as_ptr() as u64 + offset;
        self.slots.add(
            self.first_slot + slot as u32,
            self.start + offset,
            host,
            len,
        )
    }

    /// Makes blocks usable; all of them must be unplugged.
    ///
    /// # Errors
    /// Outside the region, or the host refuses; then nothing has changed.
    pub fn plug(&mut self, first: u64, count: u64) -> Result<(), ElasticError> {
        self.check(first, count)?;
        let (offset, len) = (first * BLOCK_BYTES, count * BLOCK_BYTES);
        self.mapping.allow(offset, len)?;
        let mut added = Vec::new();
        for slot in Self::slots_of(first, count) {
            if self
                .blocks
                .count(slot * Self::slot_blocks(), Self::slot_blocks())
                > 0
            {
                continue;
            }
            if let Err(error) = self.add_slot(slot) {
                for slot in added {
                    let _ = self.slots.remove(self.first_slot + slot as u32);
                }
                let _ = self.mapping.forbid(offset, len);
                return Err(error.into());
            }
            added.push(slot);
        }
        self.blocks.set(first, count, true);
        Ok(())
    }

    /// Gives blocks back to the host; all of them must be plugged.
    ///
    /// # Errors
    /// Outside the region, or the host refuses; then the blocks stay plugged.
    pub fn unplug(&mut self, first: u64, count: u64) -> Result<(), ElasticError> {
        self.check(first, count)?;
        self.blocks.set(first, count, false);
        let mut removed = Vec::new();
        let result = self.release(first, count, &mut removed);
        if result.is_err() {
            self.blocks.set(first, count, true);
            for slot in removed {
                let _ = self.add_slot(slot);
            }
        }
        Ok(result?)
    }

    fn release(&mut self, first: u64, count: u64, removed: &mut Vec<u64>) -> io::Result<()> {
        for slot in Self::slots_of(first, count) {
            if self
                .blocks
                .count(slot * Self::slot_blocks(), Self::slot_blocks())
                == 0
            {
                self.slots.remove(self.first_slot + slot as u32)?;
                removed.push(slot);
            }
        }
        let (offset, len) = (first * BLOCK_BYTES, count * BLOCK_BYTES);
        self.mapping.forbid(offset, len)?;
        self.mapping.discard(offset, len).inspect_err(|_| {
            let _ = self.mapping.allow(offset, len);
        })
    }
}
