//! One contiguous range of guest memory as devices see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use super::{BLOCK_BYTES, Mapping};

/// One bit a block: is it plugged?
///
/// Written by the virtio-mem device, read by every device that follows an address of the guest. Both
/// run on the event loop thread, so a block cannot go away between the check and the access. What the
/// host's kernel is given to do later is another matter, of which `virtio::block::buffers` tells.
#[derive(Debug)]
pub struct PluggedBlocks {
    words: Vec<AtomicU64>,
    blocks: u64,
}

impl PluggedBlocks {
    /// So many blocks, none plugged.
    pub fn new(blocks: u64) -> Self {
        let words = (0..blocks.div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        Self { words, blocks }
    }

    /// Number of blocks.
    pub fn len(&self) -> u64 {
        self.blocks
    }
    /// No blocks at all.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Whether block `index` is plugged; false beyond the end.
    pub fn is_plugged(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64)
            .ok()
            .and_then(|i| self.words.get(i));
        word.is_some_and(|w| w.load(Ordering::Relaxed) & (1 << (index % 64)) != 0)
    }

    /// Marks `count` blocks from `first`; blocks beyond the end are ignored.
    pub fn set(&self, first: u64, count: u64, plugged: bool) {
        for index in first..first.saturating_add(count).min(self.blocks) {
            if let Some(word) = self.words.get((index / 64) as usize) {
                let bit = 1 << (index % 64);
                if plugged {
                    word.fetch_or(bit, Ordering::Relaxed);
                } else {
                    word.fetch_and(!bit, Ordering::Relaxed);
                }
            }
        }
    }

    /// How many of `count` blocks from `first` are plugged.
    pub fn count(&self, first: u64, count: u64) -> u64 {
        let end = first.saturating_add(count).min(self.blocks);
        (first..end).filter(|i| self.is_plugged(*i)).count() as u64
    }
}

/// One contiguous range of guest memory.
#[derive(Debug)]
pub struct RamRegion {
    start: GuestAddress,
    mapping: Arc<Mapping>,
    plugged: Option<Arc<PluggedBlocks>>,
}

impl RamRegion {
    /// Memory that is always there.
    pub fn fixed(start: u64, mapping: Arc<Mapping>) -> Self {
        Self {
            start: GuestAddress(start),
            mapping,
            plugged: None,
        }
    }

    /// Memory of which only the plugged blocks are there.
    pub fn elastic(start: u64, mapping: Arc<Mapping>, plugged: Arc<PluggedBlocks>) -> Self {
        Self {
            start: GuestAddress(start),
            mapping,
            plugged: Some(plugged),
        }
    }

    /// The mapping behind it.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Whether every byte of a range (offsets into the region) may be touched.
    pub fn is_accessible(&self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else {
            return false;
        };
        if end > self.mapping.len() as u64 {
            return false;
        }
        match &self.plugged {
            None => true,
            Some(_) if len == 0 => true,
            Some(blocks) => {
                let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
                (first..=last).all(|block| blocks.is_plugged(block))
            }
        }
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.len() as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.get_slice(addr, 1)
            .map(|slice| slice.ptr_guard_mut().as_ptr())
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        if !self.is_accessible(offset.0, count as u64) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        // SAFETY: the range lies inside the mapping and all of it is accessible (checked above); the
        // mapping lives as long as `self`, and the slice borrows `self`.
        Ok(unsafe { VolatileSlice::new(self.mapping.as_ptr().add(offset.0 as usize), count) })
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use vm_memory::Bytes;

    #[test]
    fn an_unplugged_block_cannot_be_read_written_or_spanned() {
        let mapping = Arc::new(Mapping::new(4 * BLOCK_BYTES as usize, false).unwrap());
        let blocks = Arc::new(PluggedBlocks::new(4));
        let base = 1 << 32;
        let region = RamRegion::elastic(base, mapping.clone(), blocks.clone());
        let ram = GuestRam::from_regions(vec![region]).unwrap();
        assert!(ram.write_obj(7u32, GuestAddress(base)).is_err());

        mapping.allow(BLOCK_BYTES, BLOCK_BYTES).unwrap();
        blocks.set(1, 1, true);
        let inside = GuestAddress(base + BLOCK_BYTES);
        ram.write_obj(7u32, inside).unwrap();
        assert_eq!(ram.read_obj::<u32>(inside).unwrap(), 7);
        let spanning = GuestAddress(base + 2 * BLOCK_BYTES - 2);
        assert!(ram.write_obj(7u32, spanning).is_err());
        assert!(
            ram.read_obj::<u32>(GuestAddress(base + 4 * BLOCK_BYTES - 2))
                .is_err()
        );
    }
}
