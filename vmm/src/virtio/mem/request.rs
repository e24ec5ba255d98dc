//! What the guest asks of the memory device: 24 bytes to read, 10 bytes to answer (§5.15.6).

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::memory::GuestRam;

/// Bytes of a request.
pub const REQUEST_BYTES: usize = 24;
/// Bytes of an answer.
pub const ANSWER_BYTES: usize = 10;
/// Most descriptors of one request: with one byte in each it still fits.
pub const MAX_DESCRIPTORS: usize = REQUEST_BYTES + ANSWER_BYTES;

/// A range as the guest names it, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedRange {
    /// Guest address of the first block.
    pub address: u64,
    /// Number of blocks.
    pub blocks: u16,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Make these blocks usable.
    Plug(NamedRange),
    /// Take these blocks back.
    Unplug(NamedRange),
    /// Take all blocks back.
    UnplugAll,
    /// Say whether these blocks are plugged.
    State(NamedRange),
}

/// What a range of blocks looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// Every block is plugged.
    Plugged,
    /// No block is plugged.
    Unplugged,
    /// Some are.
    Mixed,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// The state that was asked for.
    State(BlockState),
    /// Not at this size; the driver asks again when the size has changed.
    Nack,
    /// The host cannot at this moment; the driver asks again soon.
    Busy,
    /// Invalid: Linux gives the device up after this, so it is never the answer to a race.
    Error,
}

impl Answer {
    /// As it is written to the guest.
    pub fn to_bytes(self) -> [u8; ANSWER_BYTES] {
        let (kind, state) = match self {
            Self::Ack => (0u8, 0u8),
            Self::State(BlockState::Plugged) => (0, 0),
            Self::State(BlockState::Unplugged) => (0, 1),
            Self::State(BlockState::Mixed) => (0, 2),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}

/// Why a chain of descriptors is not a request with room for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Wrong number of bytes to read, or less room for the answer than it takes.
    #[error("A request is {REQUEST_BYTES} bytes to read and {ANSWER_BYTES} bytes to write")]
    Size,
    /// The request lies outside the guest's memory.
    #[error("The request lies outside the guest's memory")]
    OutsideRam,
}

/// Where the answer goes: places in the guest's memory, in order.
///
/// Addresses, not host memory: a request may unplug the very block in which its answer lies, so each
/// place is looked up only when the answer is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerPlace(Vec<(GuestAddress, usize)>);

impl AnswerPlace {
    /// Writes an answer; gives the number of bytes written, 0 when the place is no longer there.
    pub fn write(&self, ram: &GuestRam, answer: Answer) -> u32 {
        let bytes = answer.to_bytes();
        let mut rest = bytes.as_slice();
        for (address, len) in &self.0 {
            let Some((part, tail)) = rest.split_at_checked(*len) else {
                return 0;
            };
            if ram.write_slice(part, *address).is_err() {
                return 0;
            }
            rest = tail;
        }
        (ANSWER_BYTES - rest.len()) as u32
    }
}

/// Takes a chain apart: the request's bytes, and where the answer goes.
///
/// # Errors
/// It is not framed as a request, or cannot be read.
pub fn frame<M>(chain: DescriptorChain<M>) -> Result<([u8; REQUEST_BYTES], AnswerPlace), Malformed>
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    let ram = chain.clone();
    let ram = ram.memory();
    let mut bytes = [0u8; REQUEST_BYTES];
    let mut unread = bytes.as_mut_slice();
    let mut unanswered = ANSWER_BYTES;
    let mut places = Vec::new();
    for descriptor in chain.take(MAX_DESCRIPTORS) {
        let len = descriptor.len() as usize;
        if descriptor.is_write_only() {
            let part = len.min(unanswered);
            places.push((descriptor.addr(), part));
            unanswered -= part;
        } else {
            let (part, tail) = unread.split_at_mut_checked(len).ok_or(Malformed::Size)?;
            ram.read_slice(part, descriptor.addr())
                .map_err(|_| Malformed::OutsideRam)?;
            unread = tail;
        }
    }
    if !unread.is_empty() || unanswered > 0 {
        return Err(Malformed::Size);
    }
    Ok((bytes, AnswerPlace(places)))
}

/// The meaning of a request's bytes; none for a type that does not exist.
pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Request> {
    let [
        t0,
        t1,
        _,
        _,
        _,
        _,
        _,
        _,
        a0,
        a1,
        a2,
        a3,
        a4,
        a5,
        a6,
        a7,
        n0,
        n1,
        ..,
    ] = *bytes;
    let range = NamedRange {
        address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        blocks: u16::from_le_bytes([n0, n1]),
    };
    match u16::from_le_bytes([t0, t1]) {
        0 => Some(Request::Plug(range)),
        1 => Some(Request::Unplug(range)),
        2 => Some(Request::UnplugAll),
        3 => Some(Request::State(range)),
        _ => None,
    }
}
