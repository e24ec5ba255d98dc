//! Anonymous private memory, 2 MiB aligned so that huge pages can back it.

use std::io;
use std::ptr::NonNull;

/// A mapping that is unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that any thread may access; all accesses go through volatile
// slices or system calls, as the guest changes it at any time anyway.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

const ALIGN: usize = 2 << 20;

impl Mapping {
    /// Reserves `len` bytes. Without `access`, no byte may be touched until [`Mapping::allow`].
    ///
    /// # Errors
    /// What `mmap` says, for example that the address space is limited.
    pub fn new(len: usize, access: bool) -> io::Result<Self> {
        let over = len.checked_add(ALIGN).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = if access {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_NONE
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nothing of ours.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), over, protection, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = raw as usize;
        let aligned = start.next_multiple_of(ALIGN);
        let (head, tail) = (aligned - start, start + over - (aligned + len));
        // SAFETY: both ranges are parts of the mapping just made that nobody knows of yet.
        unsafe {
            if head > 0 {
                libc::munmap(raw, head);
            }
            if tail > 0 {
                libc::munmap((aligned + len) as *mut libc::c_void, tail);
            }
        }
        let base = NonNull::new(aligned as *mut u8).ok_or(io::ErrorKind::Other)?;
        Ok(Self { base, len })
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }
    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Never: a mapping of nothing cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn range(&self, offset: u64, len: u64) -> io::Result<(*mut libc::c_void, usize)> {
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.len as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: offset lies inside the mapping, as checked above.
        let start = unsafe { self.base.as_ptr().add(offset as usize) };
        Ok((start.cast(), len as usize))
    }

    fn protect(&self, offset: u64, len: u64, protection: i32) -> io::Result<()> {
        let (start, len) = self.range(offset, len)?;
        // SAFETY: the range is ours; whoever makes it inaccessible has first seen to it that no
        // device touches it (see `PluggedBlocks`).
        match unsafe { libc::mprotect(start, len, protection) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes a range accessible.
    ///
    /// # Errors
    /// The range is outside, or the kernel cannot split the mapping further.
    pub fn allow(&self, offset: u64, len: u64) -> io::Result<()> {
        self.protect(offset, len, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Makes a range inaccessible.
    ///
    /// # Errors
    /// As [`Mapping::allow`].
    pub fn forbid(&self, offset: u64, len: u64) -> io::Result<()> {
        self.protect(offset, len, libc::PROT_NONE)
    }

    /// Gives the memory behind a range back to the host; it reads as zeroes afterwards.
    ///
    /// # Errors
    /// The range is outside.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let (start, len) = self.range(offset, len)?;
        // SAFETY: the range is inside an anonymous private mapping of ours; dropping its pages changes
        // guest memory only, which the guest has given up.
        match unsafe { libc::madvise(start, len, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not unmapped by anyone else; users hold an `Arc` of us.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
