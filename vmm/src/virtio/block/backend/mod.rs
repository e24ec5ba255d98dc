//! Carries out operations on the backing store, off the event loop: through io_uring where the kernel
//! has it ([`Ring`]), else on a thread ([`Worker`]), which also does what io_uring cannot.
//!
//! Whoever carries an operation out owns it, with the guest memory that it names, until it has ended.

mod files;
mod ring;
mod worker;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::files::{Direct, Files};
use self::ring::Ring;
use self::worker::Worker;
use super::buffers::HostBuffers;
use super::request::Range;

/// Something to be done to the backing store.
#[derive(Debug)]
pub enum Operation {
    /// From the store, at this offset, to the guest.
    Read(u64, HostBuffers),
    /// From the guest to the store, at this offset.
    Write(u64, HostBuffers),
    /// The same, and it is on stable storage when it is done.
    WriteThrough(u64, HostBuffers),
    /// All that was written is on stable storage when it is done.
    Sync,
    /// A range reads as zeroes, and its space is given back.
    Punch(Range),
    /// A range reads as zeroes, and keeps its space.
    Zero(Range),
    /// The content of a range of a device does not matter any more.
    DeviceDiscard(Range),
}

impl Operation {
    /// What an operator calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Read(..) => "Read",
            Self::Write(..) | Self::WriteThrough(..) => "Write",
            Self::Sync => "Flush",
            Self::Punch(_) | Self::DeviceDiscard(_) => "Discard",
            Self::Zero(_) => "Write of zeroes",
        }
    }
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Done {
    /// What it was submitted as.
    pub slot: u16,
    /// What it was.
    pub operation: Operation,
    /// Bytes moved, or why not.
    pub result: io::Result<u64>,
}

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, or the thread where it is not to be had.
    Best,
    /// The thread, to test it on kernels that have io_uring.
    #[cfg(test)]
    Thread,
}

/// The two engines and what they share.
pub struct Backend {
    files: Arc<Files>,
    ring: Option<Ring>,
    /// Made when it is needed first.
    worker: Option<Worker>,
    event: Arc<EventFd>,
    flying: usize,
}

impl Backend {
    /// For operations on `files`, of which at most `depth` are under way at a time.
    ///
    /// # Errors
    /// The host has no event descriptors left.
    pub fn new(files: Files, depth: u16, engine: Engine) -> io::Result<Self> {
        let files = Arc::new(files);
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        // Not every kernel has it, and where it is, it may be forbidden.
        let ring = match engine {
            Engine::Best => Ring::new(files.clone(), depth, &event).ok(),
            #[cfg(test)]
            Engine::Thread => None,
        };
        Ok(Self {
            files,
            ring,
            worker: None,
            event,
            flying: 0,
        })
    }

    /// Name of the engine that reads and writes.
    pub fn engine(&self) -> &'static str {
        match self.ring {
            Some(_) => "io_uring",
            None => "thread",
        }
    }

    /// The store.
    pub fn files(&self) -> Arc<Files> {
        self.files.clone()
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        // A full counter means that it is readable already.
        let _ = self.event.write(1);
    }

    /// Makes it unreadable. To be called before [`Backend::reap`].
    pub fn acknowledge(&self) {
        // Nothing to read means that another turn has already taken the wakeup.
        let _ = self.event.read();
    }

    /// Begins an operation, at the latest with the next [`Backend::kick`]; its end is announced by
    /// the descriptor.
    ///
    /// # Errors
    /// It was not begun: no thread to be had.
    pub fn submit(&mut self, slot: u16, operation: Operation) -> Result<(), Done> {
        let rejected = match &mut self.ring {
            Some(ring) => ring.submit(slot, operation),
            None => Err(operation),
        };
        if let Err(operation) = rejected {
            let failed = |operation, error| Done {
                slot,
                operation,
                result: Err(error),
            };
            let worker = match &mut self.worker {
                Some(worker) => worker,
                empty => match Worker::new(self.files.clone(), self.event.clone()) {
                    Ok(worker) => empty.insert(worker),
                    Err(error) => return Err(failed(operation, error)),
                },
            };
            if let Err(operation) = worker.submit(slot, operation) {
                return Err(failed(operation, io::ErrorKind::BrokenPipe.into()));
            }
        }
        self.flying += 1;
        Ok(())
    }

    /// Hands what was submitted to the kernel. What that does at once can be reaped right after it.
    pub fn kick(&mut self) {
        // The kernel may be short of something; what it did not take stays in the ring.
        if self.ring.as_mut().is_some_and(|ring| ring.kick().is_err()) {
            self.wake();
        }
    }

    /// Gives what has ended.
    pub fn reap(&mut self, done: &mut Vec<Done>) {
        let before = done.len();
        if let Some(ring) = &mut self.ring {
            ring.reap(done);
        }
        if let Some(worker) = &self.worker {
            worker.reap(done);
        }
        self.flying -= done.len() - before;
        for ended in done.iter_mut().skip(before) {
            self.try_cached(ended);
        }
    }

    /// What is well formed and still not taken by direct I/O is worth another try, through the cache.
    fn try_cached(&self, ended: &mut Done) {
        let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
        if self.files.is_direct() && ended.result.as_ref().is_err_and(refused) {
            self.files.give_up_direct();
            ended.result = Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
    }

    /// Waits for the end of all operations, at most for `limit`. Says whether all have ended.
    pub fn settle(&mut self, limit: Duration, done: &mut Vec<Done>) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            self.kick();
            self.reap(done);
            if self.flying == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut poll = libc::pollfd {
                fd: self.event.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let left_ms = left.as_millis().clamp(1, 1000) as i32;
            // SAFETY: one valid pollfd. Its failure only makes the next look come earlier.
            unsafe { libc::poll(&raw mut poll, 1, left_ms) };
            self.acknowledge();
        }
    }
}

impl AsRawFd for Backend {
    /// Readable when operations have ended.
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
