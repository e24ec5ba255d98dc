//! The one thread on which devices work: epoll over descriptors, each with what it stands for.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Polls descriptors that stand for values of `T`.
pub struct Poller<T> {
    epoll: Epoll,
    meanings: Vec<Option<(RawFd, T)>>,
}

impl<T: Copy> Poller<T> {
    /// Nothing polled yet.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            meanings: Vec::new(),
        })
    }

    /// Polls `fd` for input.
    ///
    /// # Errors
    /// The kernel refuses the descriptor.
    pub fn add(&mut self, fd: RawFd, meaning: T) -> io::Result<()> {
        let at = self
            .meanings
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.meanings.len());
        let event = EpollEvent::new(EventSet::IN | EventSet::READ_HANG_UP, at as u64);
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        match self.meanings.get_mut(at) {
            Some(free) => *free = Some((fd, meaning)),
            None => self.meanings.push(Some((fd, meaning))),
        }
        Ok(())
    }

    /// Forgets `fd`, which may be closed already: closing took it out of the kernel's list.
    pub fn forget(&mut self, fd: RawFd) {
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        for slot in &mut self.meanings {
            if slot.as_ref().is_some_and(|(f, _)| *f == fd) {
                *slot = None;
            }
        }
    }

    /// Waits, at most for `timeout`, and gives what became readable.
    ///
    /// # Errors
    /// The kernel's, except for interruptions.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<T>) -> io::Result<()> {
        ready.clear();
        let mut events = [EpollEvent::default(); 16];
        // Rounded up: a wait that ends a little early would be followed by a busy one.
        let timeout = timeout.map_or(-1, |t| t.as_micros().div_ceil(1000).min(60_000) as i32);
        let count = match self.epoll.wait(timeout, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in events.iter().take(count) {
            let meaning = self.meanings.get(event.data() as usize);
            ready.extend(
                meaning
                    .and_then(|m| m.as_ref())
                    .map(|(_, meaning)| *meaning),
            );
        }
        Ok(())
    }
}
