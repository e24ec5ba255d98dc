//! The contract between the device and what stands behind it on the host.

use std::io;
use std::os::fd::RawFd;

use super::request::HEADER_BYTES;
use super::segments::Segments;

/// The host's side has ended: no frame will come or go any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// What became of a frame that the guest has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Taken,
    /// The host would not take it.
    Dropped,
}

/// The host's side of an interface. Never blocks.
pub trait Backend: Send {
    /// What is polled: readable when a frame may be there, writable when [`Backend::flush`] may help.
    fn fd(&self) -> RawFd;

    /// Features of §5.1.3 that it adds to those of the device.
    fn features(&self) -> u64;

    /// The driver has accepted these features, and frames follow.
    ///
    /// # Errors
    /// The host refuses; the interface is of no use.
    fn configure(&mut self, acked: u64) -> io::Result<()>;

    /// Sends a frame: `packet` behind its first [`HEADER_BYTES`], which are replaced by `header`. Not
    /// to be called while [`Backend::is_full`].
    ///
    /// # Errors
    /// The other side has ended.
    fn send(&mut self, header: &[u8; HEADER_BYTES], packet: &Segments<'_>) -> Result<Sent, Gone>;

    /// Whether a part of an earlier frame still waits for room.
    fn is_full(&self) -> bool {
        false
    }

    /// Passes on what waits, as far as there is room.
    ///
    /// # Errors
    /// The other side has ended.
    fn flush(&mut self) -> Result<(), Gone> {
        Ok(())
    }

    /// Receives one frame behind a header, and gives the length of both; `None`: there is none now.
    /// Its bytes fill `room`, and what is behind that goes into `spill` *at its own offset*. What is
    /// longer than both is cut, and its length says so.
    ///
    /// # Errors
    /// The other side has ended.
    fn receive(&mut self, room: &Segments<'_>, spill: &mut [u8]) -> Result<Option<usize>, Gone>;
}

/// Repeats a system call that was interrupted; a negative result is the last error.
pub(super) fn retried(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(done) = usize::try_from(call()) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// An entry of a list for `readv` and the like: bytes of our own.
pub(super) fn own_vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}
