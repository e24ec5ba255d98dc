//! Operations by plain system calls, one after the other, on a thread of their own.

use std::io;
use std::os::fd::RawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use vmm_sys_util::eventfd::EventFd;

use super::{Done, Files, Operation};

/// `fallocate`: give the space back.
pub const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// `fallocate`: keep it.
pub const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
/// `BLKDISCARD` of `linux/fs.h`: `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// The thread makes system calls and little else.
const STACK_BYTES: usize = 64 << 10;

/// The thread, from outside. It ends when this is dropped and its work is done.
pub struct Worker {
    jobs: Sender<(u16, Operation)>,
    done: Arc<Mutex<Vec<Done>>>,
}

impl Worker {
    /// Starts it; it announces each end by `event`.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn new(files: Arc<Files>, event: Arc<EventFd>) -> io::Result<Self> {
        let (jobs, received) = channel();
        let done = Arc::default();
        let ended = Arc::clone(&done);
        thread::Builder::new()
            .name("block-io".into())
            .stack_size(STACK_BYTES)
            .spawn(move || work(&files, &received, &ended, &event))?;
        Ok(Self { jobs, done })
    }

    /// Gives it an operation.
    ///
    /// # Errors
    /// The operation, if the thread is gone.
    pub fn submit(&self, slot: u16, operation: Operation) -> Result<(), Operation> {
        self.jobs
            .send((slot, operation))
            .map_err(|refused| refused.0.1)
    }

    /// Takes what has ended.
    pub fn reap(&self, done: &mut Vec<Done>) {
        done.append(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn work(
    files: &Files,
    jobs: &Receiver<(u16, Operation)>,
    done: &Mutex<Vec<Done>>,
    event: &EventFd,
) {
    for (slot, operation) in jobs {
        let result = carry_out(files.fd(&operation), &operation);
        let ended = Done {
            slot,
            operation,
            result,
        };
        done.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(ended);
        // A full counter means that it is readable already.
        let _ = event.write(1);
    }
}

fn carry_out(fd: RawFd, operation: &Operation) -> io::Result<u64> {
    let bytes = match operation {
        Operation::Read(offset, buffers) => {
            let (list, len) = buffers.as_iovecs();
            // SAFETY: the list is the operation's own, and names memory that it keeps alive.
            unsafe { libc::preadv(fd, list, len as i32, *offset as i64) as i64 }
        }
        Operation::Write(offset, buffers) => {
            let (list, len) = buffers.as_iovecs();
            // SAFETY: as above.
            unsafe { libc::pwritev(fd, list, len as i32, *offset as i64) as i64 }
        }
        Operation::WriteThrough(offset, buffers) => {
            let (list, len) = buffers.as_iovecs();
            // SAFETY: as above.
            unsafe { libc::pwritev2(fd, list, len as i32, *offset as i64, libc::RWF_DSYNC) as i64 }
        }
        Operation::Sync => {
            // SAFETY: has no preconditions.
            unsafe { libc::fdatasync(fd).into() }
        }
        Operation::Punch(range) => {
            // SAFETY: has no preconditions.
            unsafe { libc::fallocate(fd, PUNCH, range.offset as i64, range.len as i64).into() }
        }
        Operation::Zero(range) => {
            // SAFETY: has no preconditions.
            unsafe { libc::fallocate(fd, ZERO, range.offset as i64, range.len as i64).into() }
        }
        Operation::DeviceDiscard(range) => {
            let words = [range.offset, range.len];
            // SAFETY: the call reads two numbers of 64 bits.
            unsafe { libc::ioctl(fd, BLKDISCARD, words.as_ptr()).into() }
        }
    };
    u64::try_from(bytes).map_err(|_| io::Error::last_os_error())
}
