//! What the guest puts into the balloon's queues: page numbers, statistics, free ranges (§5.5.6).

use std::ops::Deref;

pub use concertina_api::counters::Statistics;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory};

use super::ranges::Range;

/// Most page numbers in one chain; Linux sends 256.
pub const MAX_CHAIN_PAGES: usize = 4096;
/// Most statistics in one chain; Linux 6.12 sends 16.
pub const MAX_STATISTICS: usize = 256;
/// Most descriptors looked at in one chain; Linux's largest has 32.
pub const MAX_DESCRIPTORS: usize = 256;

const STATISTIC_BYTES: usize = 10;
const PAGE_NUMBER_BYTES: usize = 4;

/// Why a chain is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Device-writable where it should be readable.
    #[error("The chain has a device-writable buffer where there is something to read")]
    Writable,
    /// Longer than anything that makes sense, or nothing at all.
    #[error("The chain has no content or more than the device takes")]
    Size,
    /// Not the guest's memory.
    #[error("The chain has a buffer outside the guest's memory")]
    OutsideRam,
}

/// Something that was understood, and whether a part of it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    /// What was understood.
    pub value: T,
    /// Items that were not, and bytes too few for an item count as one.
    pub bad_items: u64,
}

fn read<M>(chain: DescriptorChain<M>, max_bytes: usize) -> Result<Vec<u8>, Malformed>
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    let ram = chain.clone();
    let ram = ram.memory();
    let mut bytes = Vec::new();
    for descriptor in chain.take(MAX_DESCRIPTORS) {
        if descriptor.is_write_only() {
            return Err(Malformed::Writable);
        }
        let start = bytes.len();
        let end = start.saturating_add(descriptor.len() as usize);
        if end > max_bytes {
            return Err(Malformed::Size);
        }
        bytes.resize(end, 0);
        let part = bytes.get_mut(start..).unwrap_or_default();
        ram.read_slice(part, descriptor.addr())
            .map_err(|_| Malformed::OutsideRam)?;
    }
    if bytes.is_empty() {
        Err(Malformed::Size)
    } else {
        Ok(bytes)
    }
}

/// Page numbers of an inflation, appended to `pages`; gives the number of bad items.
///
/// # Errors
/// The chain cannot be read as page numbers; then none is appended.
pub fn page_numbers<M>(chain: DescriptorChain<M>, pages: &mut Vec<u32>) -> Result<u64, Malformed>
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    let bytes = read(chain, MAX_CHAIN_PAGES * PAGE_NUMBER_BYTES)?;
    let (numbers, tail) = bytes.as_chunks::<PAGE_NUMBER_BYTES>();
    pages.extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
    Ok(u64::from(!tail.is_empty()))
}

/// The guest's memory statistics. Unknown tags are skipped; of a repeated tag the last one counts.
///
/// # Errors
/// The chain cannot be read as statistics.
pub fn statistics<M>(chain: DescriptorChain<M>) -> Result<Parsed<Statistics>, Malformed>
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    Ok(parse_statistics(&read(
        chain,
        MAX_STATISTICS * STATISTIC_BYTES,
    )?))
}

/// Packed entries of a tag (16 bits) and a value (64 bits), little-endian.
pub fn parse_statistics(bytes: &[u8]) -> Parsed<Statistics> {
    let mut value = Statistics::default();
    let (entries, tail) = bytes.as_chunks::<STATISTIC_BYTES>();
    for [t0, t1, v0, v1, v2, v3, v4, v5, v6, v7] in entries {
        let tag = usize::from(u16::from_le_bytes([*t0, *t1]));
        if let Some(place) = value.get_mut(tag) {
            *place = Some(u64::from_le_bytes([*v0, *v1, *v2, *v3, *v4, *v5, *v6, *v7]));
        }
    }
    Parsed {
        value,
        bad_items: u64::from(!tail.is_empty()),
    }
}

/// Free ranges that the guest reports: each device-writable buffer *is* free memory, nothing in it
/// is read or written.
pub fn free_ranges<M>(chain: DescriptorChain<M>) -> Parsed<Vec<Range>>
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    let mut parsed = Parsed {
        value: Vec::new(),
        bad_items: 0,
    };
    for descriptor in chain.take(MAX_DESCRIPTORS) {
        let range = Range::of_whole_pages(descriptor.addr().0, u64::from(descriptor.len()));
        match range.filter(|_| descriptor.is_write_only()) {
            Some(range) => parsed.value.push(range),
            None => parsed.bad_items += 1,
        }
    }
    parsed
}
