//! From page numbers to ranges, and from ranges to the pieces of memory that may be discarded.
//!
//! A discard of the host costs the same for a page as for a gigabyte, so neighbouring pages are
//! joined first. What is not the guest's memory (a hole, an unplugged block, the space behind the
//! end) is left out and counted.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{BLOCK_BYTES, GuestRam, RamRegion};

/// Unit of the balloon, bytes, whatever the guest's page size (§5.5.6.1).
pub const PAGE_BYTES: u64 = 4096;

/// A range of guest memory, whole pages, not empty, not past the end of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Range {
    /// The whole pages inside `len` bytes from `address`; none when there is no whole page.
    pub fn of_whole_pages(address: u64, len: u64) -> Option<Self> {
        let end = address.checked_add(len)?;
        let start = address.checked_next_multiple_of(PAGE_BYTES)?;
        let len = (end / PAGE_BYTES * PAGE_BYTES).checked_sub(start)?;
        (len > 0).then_some(Self { start, len })
    }

    fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Cuts at most `len` bytes (whole pages) off the front; gives the front and what is left.
    pub fn split(self, len: u64) -> (Self, Option<Self>) {
        let front = len.max(PAGE_BYTES) / PAGE_BYTES * PAGE_BYTES;
        match self.len.checked_sub(front) {
            None | Some(0) => (self, None),
            Some(rest) => {
                let rest = Self {
                    start: self.start.saturating_add(front),
                    len: rest,
                };
                (
                    Self {
                        start: self.start,
                        len: front,
                    },
                    Some(rest),
                )
            }
        }
    }
}

/// The fewest ranges that hold exactly these pages. The order of `pages` is lost.
pub fn coalesce(pages: &mut Vec<u32>) -> Vec<Range> {
    pages.sort_unstable();
    pages.dedup();
    let mut ranges: Vec<Range> = Vec::new();
    for page in pages.iter() {
        let start = u64::from(*page) * PAGE_BYTES;
        match ranges.last_mut() {
            Some(last) if last.end() == start => last.len += PAGE_BYTES,
            _ => ranges.push(Range {
                start,
                len: PAGE_BYTES,
            }),
        }
    }
    ranges
}

/// What became of a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes given back to the host.
    pub bytes: u64,
    /// Pieces that are not the guest's to give.
    pub refused_pieces: u64,
}

/// Gives the memory behind a range back to the host, as far as it is the guest's.
pub fn discard(ram: &GuestRam, range: Range) -> Discarded {
    let mut result = Discarded::default();
    let mut at = range.start;
    while at < range.end() {
        let left = range.end() - at;
        let Some((region, offset)) = ram.to_region_addr(vm_memory::GuestAddress(at)) else {
            result.refused_pieces += 1;
            at = next_region_start(ram, at).map_or(range.end(), |next| next.min(range.end()));
            continue;
        };
        let len = left.min(region.len().saturating_sub(offset.0));
        discard_in_region(region, offset.0, len, &mut result);
        at = at.saturating_add(len.max(1));
    }
    result
}

fn next_region_start(ram: &GuestRam, address: u64) -> Option<u64> {
    ram.iter()
        .map(|region| region.start_addr().0)
        .filter(|start| *start > address)
        .min()
}

/// Runs of blocks that are alike in being accessible are treated as one piece.
fn discard_in_region(region: &RamRegion, offset: u64, len: u64, result: &mut Discarded) {
    let end = offset.saturating_add(len);
    let mut start = offset;
    while start < end {
        let block_end = |at: u64| ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(end);
        let accessible = region.is_accessible(start, block_end(start) - start);
        let mut piece_end = block_end(start);
        while piece_end < end
            && region.is_accessible(piece_end, block_end(piece_end) - piece_end) == accessible
        {
            piece_end = block_end(piece_end);
        }
        if accessible && region.mapping().discard(start, piece_end - start).is_ok() {
            result.bytes += piece_end - start;
        } else {
            result.refused_pieces += 1;
        }
        start = piece_end;
    }
}
