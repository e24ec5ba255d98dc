//! What the guest asks of the entropy device: buffers to be filled, and nothing to be read.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory};

/// Most descriptors looked at in one request.
pub const MAX_DESCRIPTORS: usize = 64;
/// What the smallest request counts against the budget of a turn, bytes.
pub const MIN_COST_BYTES: usize = 64;

/// A part of the guest's memory to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// First byte.
    pub address: GuestAddress,
    /// Bytes.
    pub len: usize,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A buffer that the device may not write.
    #[error("The request has a buffer that is not device-writable")]
    NotWritable,
    /// Nothing to fill.
    #[error("The request has no room for a single byte")]
    Empty,
    /// More than was asked to be handed out.
    #[error("The request is larger than its budget")]
    TooLarge,
    /// Not the guest's memory.
    #[error("The request has a buffer outside the guest's memory")]
    OutsideRam,
}

/// The buffers of one request, cut to at most `max_bytes` together.
///
/// # Errors
/// There is a buffer for reading, or no room at all.
pub fn buffers<M>(chain: DescriptorChain<M>, max_bytes: usize) -> Result<Vec<Buffer>, Malformed>
where
    M: Deref,
    M::Target: GuestMemory,
{
    let mut left = max_bytes;
    let mut buffers = Vec::new();
    for descriptor in chain.take(MAX_DESCRIPTORS) {
        if !descriptor.is_write_only() {
            return Err(Malformed::NotWritable);
        }
        let len = left.min(descriptor.len() as usize);
        if len > 0 {
            buffers.push(Buffer {
                address: descriptor.addr(),
                len,
            });
            left -= len;
        }
        if left == 0 {
            break;
        }
    }
    if buffers.is_empty() {
        Err(Malformed::Empty)
    } else {
        Ok(buffers)
    }
}
