//! Waiting for descriptors, and an event that wakes whoever waits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Waits until one of the descriptors is readable, or the time is over; -1 stands for none.
/// Says which are. A signal ends the wait early, with none.
pub fn wait_readable(fds: &[RawFd], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let wanted: Vec<(RawFd, libc::c_short)> = fds.iter().map(|fd| (*fd, libc::POLLIN)).collect();
    wait(&wanted, timeout)
}

/// Waits until one of the descriptors has one of its events, or the time is over.
pub fn wait(fds: &[(RawFd, libc::c_short)], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|(fd, events)| libc::pollfd {
            fd: *fd,
            events: *events,
            revents: 0,
        })
        .collect();
    let millis = match timeout {
        None => -1,
        // Rounded up: a wait that ends a little early would be followed by a busy one.
        Some(time) => i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
    };
    // SAFETY: the pointer and the length describe `polled`, which outlives the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok(vec![false; fds.len()]);
    }
    Ok(polled.iter().map(|p| p.revents != 0).collect())
}

/// An eventfd: set from any thread, seen by whoever polls it.
#[derive(Debug)]
pub struct Wakeup(File);

impl Wakeup {
    /// Not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd(2) takes two integers and returns a descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel gave this descriptor to us alone just now.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes whoever waits, now or later.
    pub fn set(&self) {
        // Fails only when the counter is full, and then it is set already.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Forgets that it was set; says whether it was.
    pub fn clear(&self) -> bool {
        let mut count = [0; 8];
        (&self.0).read(&mut count).is_ok()
    }

    /// Its descriptor, for polling.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wakeup_is_kept_until_it_is_seen_and_then_forgotten() {
        let wakeup = Wakeup::new().unwrap();
        assert!(!wakeup.clear());
        wakeup.set();
        wakeup.set();
        assert_eq!(
            wait_readable(&[-1, wakeup.as_raw_fd()], None).unwrap(),
            [false, true]
        );
        assert!(wakeup.clear());
        assert!(!wakeup.clear());
    }
}
