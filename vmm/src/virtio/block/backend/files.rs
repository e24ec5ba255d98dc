//! Two ways to the same store: around the host's page cache, and through it.
//!
//! Around it is the way to go where it is possible: the guest has a cache of its own, and pages that
//! the host caches for a guest count as memory of its instance, which they would fill up to the
//! ceiling. What direct I/O does not take (other alignments, some file systems) goes through the
//! cache; the host's kernel keeps both in agreement.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Operation;
use crate::virtio::block::buffers::HostBuffers;

/// A descriptor for direct I/O, and what it takes.
#[derive(Debug)]
pub struct Direct {
    file: File,
    /// Offsets on the store, and lengths, are multiples of this.
    offset_align: u64,
    /// Addresses in memory are multiples of this.
    memory_align: u64,
}

impl Direct {
    /// Opens the store once more; nothing where it does not do direct I/O, or does not say how
    /// (before Linux 6.1).
    pub fn open(path: &Path, read_only: bool) -> Option<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        let file = options.custom_flags(libc::O_DIRECT).open(path).ok()?;
        let (offset_align, memory_align) = alignment(&file).ok()??;
        Some(Self {
            file,
            offset_align,
            memory_align,
        })
    }

    fn takes(&self, offset: u64, buffers: &HostBuffers) -> bool {
        offset.is_multiple_of(self.offset_align)
            && buffers.is_aligned(self.memory_align, self.offset_align)
    }
}

/// What direct I/O on a file needs: alignment on the store, and in memory.
fn alignment(file: &File) -> io::Result<Option<(u64, u64)>> {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut seen: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, an empty name that ends with NUL, and a structure to fill.
    let got = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut seen,
        )
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    let said = seen.stx_mask & libc::STATX_DIOALIGN != 0;
    let (offset, memory) = (seen.stx_dio_offset_align, seen.stx_dio_mem_align);
    Ok((said && offset > 0 && memory > 0).then_some((offset.into(), memory.into())))
}

/// The store as the engines see it.
#[derive(Debug)]
pub struct Files {
    cached: File,
    direct: Option<Direct>,
    direct_works: AtomicBool,
}

impl Files {
    /// With or without a way around the cache.
    pub fn new(cached: File, direct: Option<Direct>) -> Self {
        let direct_works = AtomicBool::new(direct.is_some());
        Self {
            cached,
            direct,
            direct_works,
        }
    }

    /// Reads and writes go around the cache where they can.
    pub fn is_direct(&self) -> bool {
        self.direct_works.load(Ordering::Relaxed)
    }

    /// The way around the cache does not work, whatever it said.
    pub fn give_up_direct(&self) {
        self.direct_works.store(false, Ordering::Relaxed);
    }

    /// The descriptor for an operation.
    pub fn fd(&self, operation: &Operation) -> RawFd {
        let (Operation::Read(offset, buffers)
        | Operation::Write(offset, buffers)
        | Operation::WriteThrough(offset, buffers)) = operation
        else {
            return self.cached.as_raw_fd();
        };
        let direct = self.direct.as_ref().filter(|_| self.is_direct());
        match direct.filter(|direct| direct.takes(*offset, buffers)) {
            Some(direct) => direct.file.as_raw_fd(),
            None => self.cached.as_raw_fd(),
        }
    }
}
