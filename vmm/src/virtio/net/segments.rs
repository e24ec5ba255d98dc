//! Parts of guest memory, one behind the other, that together hold a frame or have room for one.
//!
//! Every part was checked to be the guest's when it was added. Blocks of elastic memory are unplugged
//! on the same thread, so parts are good until the end of the turn in which they were added, and are
//! not kept for longer.

use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::request::Malformed;
use crate::memory::GuestRam;

/// Parts of guest memory in order.
#[derive(Debug, Default)]
pub struct Segments<'a> {
    parts: Vec<VolatileSlice<'a>>,
    len: usize,
}

impl<'a> Segments<'a> {
    /// Bytes of all parts.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of parts.
    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// Adds `len` bytes from `address`.
    ///
    /// # Errors
    /// A byte of them is not the guest's memory; parts before it may have been added.
    pub fn push(
        &mut self,
        ram: &'a GuestRam,
        address: GuestAddress,
        len: usize,
    ) -> Result<(), Malformed> {
        let outside = |_| Malformed::OutsideRam;
        let slices = ram.get_slices(address, len, Permissions::ReadWrite);
        for part in slices.map_err(outside)? {
            let part = part.map_err(outside)?;
            self.len += part.len();
            self.parts.push(part);
        }
        Ok(())
    }

    /// Takes back what was added since there were so many parts.
    pub fn truncate(&mut self, count: usize) {
        self.parts.truncate(count);
        self.len = self.parts.iter().map(VolatileSlice::len).sum();
    }

    /// Takes away the first `count` parts.
    pub fn remove_front(&mut self, count: usize) {
        let count = count.min(self.parts.len());
        self.len -= self
            .parts
            .drain(..count)
            .map(|part| part.len())
            .sum::<usize>();
    }

    /// Takes away all parts.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.len = 0;
    }

    /// What is left behind the first `offset` bytes.
    fn behind(&self, offset: usize) -> impl Iterator<Item = VolatileSlice<'a>> {
        let mut skip = offset;
        self.parts.iter().filter_map(move |part| {
            let here = skip.min(part.len());
            skip -= here;
            part.offset(here).ok().filter(|rest| !rest.is_empty())
        })
    }

    /// Copies from `offset` on into `out`; gives the number of bytes.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let mut done = 0;
        for part in self.behind(offset) {
            match out.get_mut(done..) {
                Some(rest) if !rest.is_empty() => done += part.copy_to(rest),
                _ => break,
            }
        }
        done
    }

    /// Copies `data` to `offset` and on, as far as there is room.
    pub fn write(&self, offset: usize, data: &[u8]) {
        let mut rest = data;
        for part in self.behind(offset) {
            part.copy_from(rest);
            match rest.get(part.len()..) {
                Some(more) if !more.is_empty() => rest = more,
                _ => break,
            }
        }
    }

    /// Adds what is behind the first `offset` bytes to `list`, for a system call that is made before
    /// this borrow of guest memory ends.
    pub fn io_vectors(&self, offset: usize, list: &mut Vec<libc::iovec>) {
        list.extend(self.behind(offset).map(|part| libc::iovec {
            iov_base: part.ptr_guard_mut().as_ptr().cast(),
            iov_len: part.len(),
        }));
    }
}
