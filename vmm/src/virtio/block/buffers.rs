//! Guest memory as the host's kernel takes it: a list of addresses in our own address space.
//!
//! # A block that is unplugged while a request is under way
//!
//! The list is made through [`GuestRam`]'s checked access, on the event loop thread, on which blocks
//! come and go as well. What is under way later is not checked again: a guest may unplug a block of
//! memory that it has just named as a buffer. That harms nobody but the guest:
//!
//! - The addresses stay ours. Unplugging takes access and pages away, but never the mapping, which
//!   lives as long as any [`GuestRam`] does, and the list holds one. Nothing else of this process can
//!   come to lie there.
//! - Only the host's kernel follows these addresses, and for it an inaccessible page is an error of
//!   the request (`EFAULT`), not a fault of this process.
//! - Pages that the kernel has already taken for direct I/O are counted as in use until it ends, so
//!   what still arrives in them arrives in pages that nobody else has.
//! - Access is taken away before the pages are (see `ElasticMemory`), so a request cannot bring pages
//!   back into a block that has been emptied.
//!
//! A balloon that is inflated over a buffer is harmless for the same reasons: its pages are dropped,
//! and come back as the guest's own when they are touched.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use crate::memory::GuestRam;

/// Most entries of a list that the kernel takes (`IOV_MAX`).
const ENTRIES_MAX: usize = 1024;

/// Memory of one request.
#[derive(Debug)]
pub struct HostBuffers {
    entries: Vec<libc::iovec>,
    bytes: u64,
    ram: Arc<GuestRam>,
}

// SAFETY: the entries point into mappings that `ram` keeps alive, and that any thread may access: the
// guest changes what is in them at any time anyway.
unsafe impl Send for HostBuffers {}

impl HostBuffers {
    /// Nothing yet.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
            ram,
        }
    }

    /// Adds a range of guest memory at the end.
    ///
    /// # Errors
    /// A part of the range is not there now, or the list is full.
    pub fn push(&mut self, address: GuestAddress, len: u64) -> Result<(), GuestMemoryError> {
        let count = usize::try_from(len).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        let ram: &GuestRam = &self.ram;
        for slice in GuestMemory::get_slices(ram, address, count, Permissions::ReadWrite)? {
            let slice = slice?;
            if slice.is_empty() {
                continue;
            }
            if self.entries.len() == ENTRIES_MAX {
                return Err(GuestMemoryError::InvalidBackendAddress);
            }
            self.entries.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        self.bytes = self.bytes.saturating_add(len);
        Ok(())
    }

    /// All bytes together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all addresses and all lengths are multiples.
    pub fn is_aligned(&self, address: u64, length: u64) -> bool {
        self.entries.iter().all(|entry| {
            (entry.iov_base as u64).is_multiple_of(address)
                && (entry.iov_len as u64).is_multiple_of(length)
        })
    }

    /// Address and number of the entries. Valid until the list is changed or dropped.
    pub fn as_iovecs(&self) -> (*const libc::iovec, u32) {
        (self.entries.as_ptr(), self.entries.len() as u32)
    }

    /// Takes bytes off the front that have been moved.
    pub fn advance(&mut self, bytes: u64) {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.entries.retain_mut(|entry| {
            let part = left.min(entry.iov_len);
            left -= part;
            entry.iov_base = entry.iov_base.wrapping_byte_add(part);
            entry.iov_len -= part;
            entry.iov_len > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::rng::driver::small_ram;

    #[test]
    fn what_was_moved_is_taken_off_the_front() {
        let ram = small_ram(2);
        let mut buffers = HostBuffers::new(ram);
        buffers.push(GuestAddress(0x1000), 0x1000).unwrap();
        buffers.push(GuestAddress(0x8000), 0x1000).unwrap();
        assert_eq!((buffers.bytes(), buffers.as_iovecs().1), (0x2000, 2));
        buffers.advance(0x1800);
        assert_eq!((buffers.bytes(), buffers.as_iovecs().1), (0x800, 1));
        buffers.advance(u64::MAX);
        assert_eq!((buffers.bytes(), buffers.as_iovecs().1), (0, 0));
    }

    #[test]
    fn memory_that_is_not_there_is_refused() {
        let mut buffers = HostBuffers::new(small_ram(2));
        for (address, len) in [
            (2 << 20, 1),
            ((2 << 20) - 1, 2),
            (u64::MAX, 1),
            (0, u64::MAX),
        ] {
            assert!(
                buffers.push(GuestAddress(address), len).is_err(),
                "{address:#x}"
            );
        }
        assert_eq!(buffers.push(GuestAddress(0), 0).ok(), Some(()));
    }
}
