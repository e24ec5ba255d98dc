//! poll(2) on a handful of descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Something to wait for: a descriptor, and `POLLIN`, `POLLOUT` or both; 0 watches for errors only.
pub type Watched<'a> = (BorrowedFd<'a>, libc::c_short);

/// Waits until one of the descriptors is ready, a signal came, or `timeout` passed (`None`: for
/// ever). Gives what each is ready for; all 0 where nothing is.
pub fn wait<const N: usize>(
    watched: [Watched<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[libc::c_short; N]> {
    let mut entries = watched.map(|(fd, events)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    });
    // Rounded up, so that a wait for less than a millisecond is not a busy loop.
    let milliseconds = timeout.map_or(-1, |timeout| {
        libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: `entries` are N valid pollfds that outlive the call; the descriptors are borrowed.
    if unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, milliseconds) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([0; N]);
    }
    Ok(entries.map(|entry| entry.revents))
}
