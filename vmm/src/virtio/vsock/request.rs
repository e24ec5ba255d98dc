//! What the guest puts into the queues: packets to be read, and room for packets to be written.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::packet::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES};
use crate::memory::GuestRam;

/// Most descriptors looked at in one chain: no queue is longer.
pub const MAX_DESCRIPTORS: usize = 128;
const MAX_BYTES: usize = HEADER_BYTES + MAX_PAYLOAD_BYTES;

/// Why a chain is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// To be written where the device reads, or the other way round.
    #[error("The chain has a buffer of the wrong direction")]
    Direction,
    /// Too short for a header (and, where the device writes, one byte).
    #[error("The chain is too short for a packet")]
    Short,
    /// The header speaks of more payload than there is, or than a packet may have.
    #[error("The packet's payload is longer than its buffers, or than any packet")]
    Length,
    /// Not the guest's memory.
    #[error("The chain has a buffer outside the guest's memory")]
    OutsideRam,
}

/// Which way a chain goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromGuest,
    ToGuest,
}

/// Guest memory, in the order in which a chain names it. All of it is accessible.
#[derive(Debug, Default)]
pub struct Buffers<'a>(Vec<VolatileSlice<'a>>);

impl<'a> Buffers<'a> {
    fn of_chain(
        ram: &'a GuestRam,
        chain: DescriptorChain<&GuestRam>,
        direction: Direction,
    ) -> Result<Self, Malformed> {
        let mut slices = Vec::new();
        let mut left = MAX_BYTES;
        for descriptor in chain.take(MAX_DESCRIPTORS) {
            if descriptor.is_write_only() != (direction == Direction::ToGuest) {
                return Err(Malformed::Direction);
            }
            let len = left.min(descriptor.len() as usize);
            for slice in ram.get_slices(descriptor.addr(), len) {
                slices.push(slice.map_err(|_| Malformed::OutsideRam)?);
            }
            left -= len;
            if left == 0 {
                break;
            }
        }
        Ok(Self(slices))
    }

    /// The parts.
    pub fn slices(&self) -> &[VolatileSlice<'a>] {
        &self.0
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// The first `at` bytes, and the rest; all and nothing when there are fewer.
    pub fn split(self, at: usize) -> (Self, Self) {
        let (mut front, mut back) = (Vec::new(), Vec::new());
        let mut left = at;
        for slice in self.0 {
            let here = left.min(slice.len());
            left -= here;
            // Neither fails: `here` lies inside the slice.
            front.extend(slice.subslice(0, here).ok().filter(|s| !s.is_empty()));
            back.extend(slice.offset(here).ok().filter(|s| !s.is_empty()));
        }
        (Self(front), Self(back))
    }

    /// Reads into `bytes` as far as it goes.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let mut rest = bytes;
        for slice in &self.0 {
            let copied = slice.copy_to(rest);
            rest = rest.get_mut(copied..).unwrap_or_default();
        }
    }

    /// Writes `bytes` as far as it goes.
    pub fn copy_from(&self, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in &self.0 {
            let here = rest.len().min(slice.len());
            let (now, later) = rest.split_at_checked(here).unwrap_or_default();
            slice.copy_from(now);
            rest = later;
        }
    }

    /// Appends the bytes behind the first `skip` to `to`.
    pub fn append_to(&self, skip: usize, to: &mut std::collections::VecDeque<u8>) {
        let mut skip = skip;
        let mut chunk = [0u8; 1024];
        for slice in &self.0 {
            let mut at = skip.min(slice.len());
            skip -= at;
            while let Ok(rest) = slice.offset(at).map(|s| s.copy_to(&mut chunk)) {
                if rest == 0 {
                    break;
                }
                to.extend(chunk.iter().take(rest));
                at += rest;
            }
        }
    }
}

/// A packet of the guest: its header, and exactly as much payload as the header says.
///
/// # Errors
/// See [`Malformed`].
pub fn packet<'a>(
    ram: &'a GuestRam,
    chain: DescriptorChain<&GuestRam>,
) -> Result<(Header, Buffers<'a>), Malformed> {
    let buffers = Buffers::of_chain(ram, chain, Direction::FromGuest)?;
    let (front, back) = buffers.split(HEADER_BYTES);
    if front.len() < HEADER_BYTES {
        return Err(Malformed::Short);
    }
    let mut bytes = [0; HEADER_BYTES];
    front.copy_to(&mut bytes);
    let header = Header::from_bytes(&bytes);
    let len = header.len as usize;
    if len > back.len() {
        return Err(Malformed::Length);
    }
    Ok((header, back.split(len).0))
}

/// Room for a packet to the guest: for its header, and for at least one byte of payload.
///
/// # Errors
/// See [`Malformed`].
pub fn room<'a>(
    ram: &'a GuestRam,
    chain: DescriptorChain<&GuestRam>,
) -> Result<(Buffers<'a>, Buffers<'a>), Malformed> {
    let buffers = Buffers::of_chain(ram, chain, Direction::ToGuest)?;
    let (front, back) = buffers.split(HEADER_BYTES);
    if back.len() == 0 {
        return Err(Malformed::Short);
    }
    Ok((front, back))
}
