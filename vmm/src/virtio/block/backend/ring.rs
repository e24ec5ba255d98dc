//! Operations through io_uring: begun in batches by one system call, and done by the kernel, on its
//! own threads where they would wait.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::{Done, Files, Operation};

/// Most kernel threads for one disk, for each of the two kinds that the kernel tells apart.
const KERNEL_THREADS_MAX: u32 = 4;

/// One ring.
pub struct Ring {
    ring: IoUring,
    files: Arc<Files>,
    /// What is under way, by slot.
    flying: Vec<Option<Operation>>,
}

impl Ring {
    /// A ring for `depth` operations that announces their ends by `event`.
    ///
    /// # Errors
    /// The kernel has no io_uring, does not allow it, or lacks one of the operations.
    pub fn new(files: Arc<Files>, depth: u16, event: &EventFd) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(depth.into())?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // Not its kind "async": that keeps silent of all that is not done by the kernel's own threads.
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let mut most = [KERNEL_THREADS_MAX; 2];
        // Older kernels have no such limit; then it is the number of entries.
        let _ = ring.submitter().register_iowq_max_workers(&mut most);
        Ok(Self {
            ring,
            files,
            flying: (0..depth).map(|_| None).collect(),
        })
    }

    /// Puts an operation into the ring.
    ///
    /// # Errors
    /// The operation, if io_uring has no such one or has no room.
    pub fn submit(&mut self, slot: u16, operation: Operation) -> Result<(), Operation> {
        let Some(entry) = entry(&operation, types::Fd(self.files.fd(&operation))) else {
            return Err(operation);
        };
        let entry = entry.user_data(slot.into());
        let Some(place) = self
            .flying
            .get_mut(usize::from(slot))
            .filter(|place| place.is_none())
        else {
            return Err(operation);
        };
        // SAFETY: the files are open as long as we are, and what the entry points to is owned by
        // `flying` until the kernel has ended the operation: moving it there moves no buffer list.
        match unsafe { self.ring.submission().push(&entry) } {
            Ok(()) => {
                *place = Some(operation);
                Ok(())
            }
            Err(_) => Err(operation),
        }
    }

    /// Hands over what was put in.
    ///
    /// # Errors
    /// The kernel could not take it now; it is still in the ring.
    pub fn kick(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.ring.submit().map(|_| ())
    }

    /// Takes out what has ended.
    pub fn reap(&mut self, done: &mut Vec<Done>) {
        for ended in self.ring.completion() {
            let slot = ended.user_data() as u16;
            let place = self.flying.get_mut(usize::from(slot));
            let Some(operation) = place.and_then(Option::take) else {
                continue;
            };
            let result = match ended.result() {
                error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                bytes => Ok(bytes as u64),
            };
            done.push(Done {
                slot,
                operation,
                result,
            });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What is still under way may go on after the ring is closed, and so must its memory.
        for operation in self.flying.drain(..).flatten() {
            std::mem::forget(operation);
        }
    }
}

/// The ring's entry for an operation; none for what io_uring cannot do.
fn entry(operation: &Operation, file: types::Fd) -> Option<squeue::Entry> {
    let fallocate = |mode, range: &super::Range| {
        opcode::Fallocate::new(file, range.len)
            .offset(range.offset)
            .mode(mode)
            .build()
    };
    Some(match operation {
        Operation::Read(offset, buffers) => {
            let (list, len) = buffers.as_iovecs();
            opcode::Readv::new(file, list, len).offset(*offset).build()
        }
        Operation::Write(offset, buffers) => {
            let (list, len) = buffers.as_iovecs();
            opcode::Writev::new(file, list, len).offset(*offset).build()
        }
        Operation::WriteThrough(offset, buffers) => {
            let (list, len) = buffers.as_iovecs();
            opcode::Writev::new(file, list, len)
                .offset(*offset)
                .rw_flags(libc::RWF_DSYNC)
                .build()
        }
        Operation::Sync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Operation::Punch(range) => fallocate(super::worker::PUNCH, range),
        Operation::Zero(range) => fallocate(super::worker::ZERO, range),
        Operation::DeviceDiscard(_) => return None,
    })
}
