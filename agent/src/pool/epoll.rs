//! epoll(7): many descriptors, one that waits. Edge-triggered, so that nobody has to take an event away
//! who only wants to know of it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What happens to a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// It becomes readable.
    Readable,
    /// It has something urgent: a pressure trigger fires.
    Urgent,
}

/// Most events that are taken at a time.
const BATCH: usize = 64;

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Watches nothing.
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1(2) takes an integer and returns a descriptor or -1.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel gave this descriptor to us alone just now.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches a descriptor until its file is closed; its events have this `token`. One that was watched
    /// before has another token from here on.
    pub fn watch(&self, fd: RawFd, interest: Interest, token: u64) -> io::Result<()> {
        let what = match interest {
            Interest::Readable => libc::EPOLLIN | libc::EPOLLRDHUP,
            Interest::Urgent => libc::EPOLLPRI,
        };
        let mut event = libc::epoll_event {
            events: (what | libc::EPOLLET).cast_unsigned(),
            u64: token,
        };
        let mut set = |how| {
            // SAFETY: epoll_ctl(2) reads one epoll_event, which `event` is, and does not keep the pointer.
            match unsafe { libc::epoll_ctl(self.0.as_raw_fd(), how, fd, &mut event) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        match set(libc::EPOLL_CTL_ADD) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => set(libc::EPOLL_CTL_MOD),
            done => done,
        }
    }

    /// Waits for events, or until the time is over; gives their tokens to `take`.
    pub fn wait(&self, time: Option<Duration>, mut take: impl FnMut(u64)) -> io::Result<()> {
        let millis = match time {
            None => -1,
            // Rounded up: a wait that ends a little early would be followed by a busy one.
            Some(time) => i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
        };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: the pointer and the length describe `events`, which outlives the call.
        let count = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                BATCH as libc::c_int,
                millis,
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        };
        events.iter().take(count).for_each(|event| take(event.u64));
        Ok(())
    }
}
