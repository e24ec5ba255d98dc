//! virtio-block (virtio 1.2 §5.2): a disk for the guest, on an image file or a block device.
//!
//! ```text
//! queue ─► parse (request.rs) ─► limit (rate.rs) ─► begin ─► backend ─► reap ─► status, used ring
//!                                  │ no tokens: stays here, and all behind it in the queue
//! ```
//! Parsing, limiting and answering happen on the event loop, the operations themselves elsewhere
//! (`backend`). What the backing store fails fails the guest's request, and is counted; the device
//! goes on.
//!
//! Memory: at most [`DEPTH`] requests are under way, and one waits; the rest stays in the queue.

mod backend;
mod buffers;
mod control;
mod disk;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use concertina_api::IoRate;
use concertina_api::disk::{DiskSpec, SERIAL_MAX_BYTES};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use self::backend::{Backend, Done, Engine, Files, Operation};
use self::control::{Shared, count};
use self::disk::Disk;
use self::request::{Limits, Piece, Refusal, Request, Work};
use super::rate::Throttle;
use super::{Activation, DeviceConfig, DeviceInterrupt, VirtioDevice};
use crate::error::VmmError;
use crate::memory::GuestRam;

pub use self::control::BlockController;

/// Device id of a block device (§5.2.1).
pub const DEVICE_TYPE: u32 = 2;
/// Most requests under way.
pub const DEPTH: u16 = 128;
/// Most requests taken in one turn of the event loop.
const TURN_REQUESTS: usize = 256;
/// How long a reset waits for requests under way. What takes longer is left alone, and goes on in
/// memory of the guest that the driver has named for it.
const RESET_LIMIT: Duration = Duration::from_secs(2);
/// How often an operation that was interrupted is begun again.
const RETRIES_MAX: u8 = 8;

const QUEUE_SIZES: [u16; 1] = [256];
const STATUS_OK: u8 = VIRTIO_BLK_S_OK as u8;
const STATUS_IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const STATUS_UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;

/// A request under way.
#[derive(Debug)]
struct Flight {
    head: u16,
    status_at: GuestAddress,
    /// Bytes of data that it moves.
    bytes: u64,
    /// What to try where the store cannot do the operation.
    otherwise: Option<Operation>,
    retries: u8,
    /// The driver it belonged to is gone: nobody waits for an answer.
    abandoned: bool,
}

/// What is in front of the queue.
enum Next {
    Nothing,
    /// It was given back.
    Unanswerable,
    Request(Request),
}

struct Active {
    ram: Arc<GuestRam>,
    queue: Queue,
    interrupt: Arc<dyn DeviceInterrupt>,
    /// The driver does not flush, so every write goes through.
    write_through: bool,
    used_any: bool,
}

/// A disk.
pub struct Block {
    limits: Limits,
    is_device: bool,
    serial: [u8; SERIAL_MAX_BYTES],
    shared: Arc<Shared>,
    backend: Backend,
    flights: Vec<Option<Flight>>,
    free: Vec<u16>,
    /// The request that waits for the limit, in front of the queue.
    waiting: Option<Request>,
    active: Option<Active>,
    /// Readable when the backend or the limit wants us.
    wakeup: Epoll,
}

impl Block {
    /// A disk without a driver.
    ///
    /// # Errors
    /// The backing store cannot be used, with a sentence that says why.
    pub fn new(spec: &DiskSpec) -> Result<Self, VmmError> {
        Self::with_engine(spec, Engine::Best)
    }

    fn with_engine(spec: &DiskSpec, engine: Engine) -> Result<Self, VmmError> {
        let (disk, files) = Disk::open(spec)?;
        let failed = format!("Disk '{}' cannot be set up", spec.path.display());
        Self::assemble(&disk, files, spec.rate, engine).map_err(VmmError::host(failed))
    }

    fn assemble(disk: &Disk, files: Files, rate: IoRate, engine: Engine) -> io::Result<Self> {
        let backend = Backend::new(files, DEPTH, engine)?;
        let throttle = Throttle::new(rate)?;
        let wakeup = Epoll::new()?;
        for fd in [backend.as_raw_fd(), throttle.as_raw_fd()] {
            wakeup.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        let mut serial = [0; SERIAL_MAX_BYTES];
        for (to, from) in serial
            .iter_mut()
            .zip(disk.serial.iter().flat_map(|s| s.bytes()))
        {
            *to = from;
        }
        Ok(Self {
            limits: Limits {
                sectors: disk.sectors,
                read_only: disk.read_only,
            },
            is_device: disk.is_device,
            serial,
            shared: Arc::new(Shared::new(disk, &backend, throttle)),
            backend,
            flights: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            waiting: None,
            active: None,
            wakeup,
        })
    }

    /// The handle by which other threads look at it and limit it.
    pub fn controller(&self) -> BlockController {
        BlockController(self.shared.clone())
    }

    fn serve(&mut self) {
        // Out of `self` while it is served, as serving needs the rest of it, too.
        let Some(mut active) = self.active.take() else {
            return;
        };
        match self.turn(&mut active) {
            Ok(()) => self.active = Some(active),
            Err(_) => {
                active.interrupt.needs_reset();
                self.abandon();
            }
        }
    }

    fn turn(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let begun = self.take_requests(active);
        let finished = self.finish(active);
        begun.and(finished)?;
        if std::mem::take(&mut active.used_any) && active.queue.needs_notification(&*active.ram)? {
            active.interrupt.queue(0);
        }
        Ok(())
    }

    /// Hands over what was begun, and answers what the kernel has done at once: another turn of the
    /// event loop for that would cost more than the work itself.
    fn finish(&mut self, active: &mut Active) -> Result<(), QueueError> {
        loop {
            self.backend.kick();
            let mut done = Vec::new();
            self.backend.reap(&mut done);
            if done.is_empty() {
                return Ok(());
            }
            if self.free.is_empty() {
                // What is left in the queue has room now.
                self.backend.wake();
            }
            self.answer_all(active, done)?;
        }
    }

    /// Begins requests until there are none, or no room, or no tokens, or enough for one turn.
    fn take_requests(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let mut left = TURN_REQUESTS;
        let mut promised = false;
        loop {
            active.queue.disable_notification(&*active.ram)?;
            // Without room the end of any request brings us back here.
            while !self.free.is_empty() {
                if left == 0 {
                    self.backend.wake();
                    return Ok(());
                }
                left -= 1;
                let request = match self.next_request(active)? {
                    // What is there and cannot be read never will be: its ring lies in memory that
                    // was unplugged.
                    Next::Nothing if promised => return Err(QueueError::InvalidAvailRingIndex),
                    Next::Nothing => break,
                    Next::Unanswerable => {
                        promised = false;
                        continue;
                    }
                    Next::Request(request) => request,
                };
                promised = false;
                if !self.shared.throttle.admit(cost(&request)) {
                    self.waiting = Some(request);
                    return Ok(());
                }
                self.begin(active, request)?;
            }
            if self.free.is_empty() || !active.queue.enable_notification(&*active.ram)? {
                return Ok(());
            }
            promised = true;
        }
    }

    /// The one that waits, or the next of the queue.
    fn next_request(&mut self, active: &mut Active) -> Result<Next, QueueError> {
        if let Some(request) = self.waiting.take() {
            return Ok(Next::Request(request));
        }
        let ram = active.ram.clone();
        let Some(chain) = active.queue.iter(&*ram)?.next() else {
            return Ok(Next::Nothing);
        };
        let head = chain.head_index();
        match request::parse(chain, &ram, &self.limits) {
            Ok(request) => Ok(Next::Request(request)),
            Err(_) => {
                count(&self.shared.counters.bad_requests, 1);
                active.use_up(head, 0)?;
                Ok(Next::Unanswerable)
            }
        }
    }

    fn begin(&mut self, active: &mut Active, request: Request) -> Result<(), QueueError> {
        let Request {
            head,
            status_at,
            work,
        } = request;
        let (operation, otherwise) = match work {
            Ok(Work::GetId(pieces)) => {
                let written = active.fill(&pieces, &self.serial);
                let status = if written.is_some() {
                    STATUS_OK
                } else {
                    STATUS_IOERR
                };
                return self.answer(active, (head, status_at), status, written.unwrap_or(0));
            }
            Ok(work) => self.operation(work, active.write_through),
            Err(refusal) => {
                let status = match refusal {
                    Refusal::Unsupported => STATUS_UNSUPP,
                    _ => {
                        count(&self.shared.counters.bad_requests, 1);
                        STATUS_IOERR
                    }
                };
                return self.answer(active, (head, status_at), status, 0);
            }
        };
        let flight = Flight {
            head,
            status_at,
            bytes: bytes_of(&operation),
            otherwise,
            retries: 0,
            abandoned: false,
        };
        // There is a free slot: nothing is taken from the queue otherwise.
        let Some(slot) = self.free.pop() else {
            return Ok(());
        };
        self.launch(active, slot, flight, operation)
    }

    /// What a request means for the store, and what to try where it cannot do that.
    fn operation(&self, work: Work, write_through: bool) -> (Operation, Option<Operation>) {
        match work {
            Work::Read(offset, buffers) => (Operation::Read(offset, buffers), None),
            Work::Write(offset, buffers) if write_through => {
                (Operation::WriteThrough(offset, buffers), None)
            }
            Work::Write(offset, buffers) => (Operation::Write(offset, buffers), None),
            Work::Discard(range) if self.is_device => (Operation::DeviceDiscard(range), None),
            Work::Discard(range) => (Operation::Punch(range), None),
            Work::WriteZeroes { range, unmap: true } => {
                (Operation::Punch(range), Some(Operation::Zero(range)))
            }
            // Some file systems can only punch; what is read is the same.
            Work::WriteZeroes { range, .. } => {
                (Operation::Zero(range), Some(Operation::Punch(range)))
            }
            // A serial number needs no operation, and was answered before.
            Work::Flush | Work::GetId(_) => (Operation::Sync, None),
        }
    }

    fn launch(
        &mut self,
        active: &mut Active,
        slot: u16,
        flight: Flight,
        operation: Operation,
    ) -> Result<(), QueueError> {
        if let Some(place) = self.flights.get_mut(usize::from(slot)) {
            *place = Some(flight);
        }
        match self.backend.submit(slot, operation) {
            Ok(()) => Ok(()),
            Err(done) => self.ended(active, done),
        }
    }

    /// Answers what has ended. Where that fails, the driver is beyond answers.
    fn answer_all(&mut self, active: &mut Active, done: Vec<Done>) -> Result<(), QueueError> {
        let mut done = done.into_iter();
        while let Some(ended) = done.next() {
            if let Err(error) = self.ended(active, ended) {
                self.release(done.as_slice());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes what has ended while there is no driver to be answered.
    fn reap_unanswered(&mut self) {
        let mut done = Vec::new();
        self.backend.kick();
        self.backend.reap(&mut done);
        self.release(&done);
    }

    /// Frees the places of what has ended and needs no answer.
    fn release(&mut self, done: &[Done]) {
        for ended in done {
            if self.take_flight(ended.slot).is_some() {
                self.free.push(ended.slot);
            }
        }
    }

    fn take_flight(&mut self, slot: u16) -> Option<Flight> {
        self.flights
            .get_mut(usize::from(slot))
            .and_then(Option::take)
    }

    /// One operation has ended: goes on with the rest of it, tries another way, or answers.
    fn ended(&mut self, active: &mut Active, done: Done) -> Result<(), QueueError> {
        let Some(mut flight) = self.take_flight(done.slot) else {
            return Ok(());
        };
        if flight.abandoned {
            self.free.push(done.slot);
            return Ok(());
        }
        let (slot, name) = (done.slot, done.operation.name());
        let error = match outcome(done, &mut flight) {
            Outcome::Done(operation) => {
                self.free.push(slot);
                self.note(&operation, &flight);
                let written = match operation {
                    Operation::Read(..) => flight.bytes,
                    _ => 0,
                };
                let to = (flight.head, flight.status_at);
                return self.answer(active, to, STATUS_OK, written);
            }
            Outcome::Again(operation) => return self.launch(active, slot, flight, operation),
            Outcome::Failed(error) => error,
        };
        self.free.push(slot);
        let to = (flight.head, flight.status_at);
        if is_unsupported(&error) {
            return self.answer(active, to, STATUS_UNSUPP, 0);
        }
        if error.raw_os_error() == Some(libc::EFAULT) {
            // Memory that was unplugged while the store was at it: the driver's fault, not the store's.
            count(&self.shared.counters.bad_requests, 1);
        } else {
            self.shared.failed(format!("{name}: {error}"));
        }
        self.answer(active, to, STATUS_IOERR, 0)
    }

    fn note(&self, operation: &Operation, flight: &Flight) {
        let counters = &self.shared.counters;
        match operation {
            Operation::Read(..) => {
                count(&counters.reads, 1);
                count(&counters.read_bytes, flight.bytes);
            }
            Operation::Write(..) | Operation::WriteThrough(..) => {
                count(&counters.writes, 1);
                count(&counters.written_bytes, flight.bytes);
            }
            Operation::Sync => count(&counters.flushes, 1),
            Operation::Punch(_) | Operation::Zero(_) | Operation::DeviceDiscard(_) => {
                count(&counters.discards, 1);
            }
        }
    }

    /// Writes the status and gives the chain back; `written` bytes of data were put before it.
    fn answer(
        &self,
        active: &mut Active,
        (head, status_at): (u16, GuestAddress),
        status: u8,
        written: u64,
    ) -> Result<(), QueueError> {
        // Memory that was there when the request came may have been unplugged meanwhile.
        if active.ram.write_obj(status, status_at).is_err() {
            count(&self.shared.counters.bad_requests, 1);
        }
        // No truncation: at most `DATA_MAX_BYTES`.
        active.use_up(head, written as u32 + 1)
    }

    /// Forgets the driver: what is under way ends unanswered.
    fn abandon(&mut self) {
        self.active = None;
        self.waiting = None;
        self.shared.throttle.idle();
        for flight in self.flights.iter_mut().flatten() {
            flight.abandoned = true;
        }
    }

    /// Waits until nothing is under way, for a while. Says whether that is so.
    fn settle(&mut self, limit: Duration) -> bool {
        let mut done = Vec::new();
        let settled = self.backend.settle(limit, &mut done);
        self.release(&done);
        settled
    }
}

impl Active {
    fn use_up(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.used_any = true;
        self.queue.add_used(&*self.ram, head, written)
    }

    /// Writes `data` to pieces of memory, as far as there is room; gives the number of bytes, or
    /// nothing if there is no such memory.
    fn fill(&self, pieces: &[Piece], data: &[u8]) -> Option<u64> {
        let mut rest = data;
        for piece in pieces {
            let part = usize::try_from(piece.len)
                .unwrap_or(usize::MAX)
                .min(rest.len());
            let (now, later) = rest.split_at(part);
            self.ram.write_slice(now, piece.address).ok()?;
            rest = later;
        }
        Some((data.len() - rest.len()) as u64)
    }
}

/// Bytes for which a request is limited.
fn cost(request: &Request) -> u64 {
    match &request.work {
        Ok(Work::Read(_, buffers) | Work::Write(_, buffers)) => buffers.bytes(),
        _ => 0,
    }
}

fn bytes_of(operation: &Operation) -> u64 {
    match operation {
        Operation::Read(_, buffers)
        | Operation::Write(_, buffers)
        | Operation::WriteThrough(_, buffers) => buffers.bytes(),
        Operation::Sync
        | Operation::Punch(_)
        | Operation::Zero(_)
        | Operation::DeviceDiscard(_) => 0,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY))
}

/// What comes after an operation.
enum Outcome {
    Done(Operation),
    Again(Operation),
    Failed(io::Error),
}

fn outcome(done: Done, flight: &mut Flight) -> Outcome {
    let mut operation = done.operation;
    let moved = match done.result {
        Ok(moved) => moved,
        Err(error) => {
            let again = matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
            if again && flight.retries < RETRIES_MAX {
                flight.retries += 1;
                return Outcome::Again(operation);
            }
            return match flight.otherwise.take().filter(|_| is_unsupported(&error)) {
                Some(otherwise) => Outcome::Again(otherwise),
                None => Outcome::Failed(error),
            };
        }
    };
    let (Operation::Read(offset, buffers)
    | Operation::Write(offset, buffers)
    | Operation::WriteThrough(offset, buffers)) = &mut operation
    else {
        return Outcome::Done(operation);
    };
    if moved >= buffers.bytes() {
        return Outcome::Done(operation);
    }
    if moved == 0 {
        // Behind the end of a file that is shorter than it was.
        return Outcome::Failed(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the image has become shorter",
        ));
    }
    // No overflow: inside the disk, as the whole request is.
    *offset += moved;
    buffers.advance(moved);
    Outcome::Again(operation)
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        let access: &[u32] = if self.limits.read_only {
            &[VIRTIO_BLK_F_RO]
        } else {
            &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
        };
        let bits = always.iter().chain(access);
        bits.fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<dyn DeviceConfig> {
        self.shared.clone()
    }

    fn activate(&mut self, activation: Activation) {
        let Activation {
            acked_features,
            ram,
            queues,
            interrupt,
        } = activation;
        let Some(mut queue) = queues.into_iter().next().filter(QueueT::ready) else {
            return;
        };
        queue.set_event_idx(acked_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        self.active = Some(Active {
            ram,
            queue,
            interrupt,
            write_through: acked_features & (1 << VIRTIO_BLK_F_FLUSH) == 0,
            used_any: false,
        });
        self.serve();
    }

    fn queue_notified(&mut self, _index: u16) {
        // While a request waits for the limit, the queue waits with it.
        if self.waiting.is_none() {
            self.serve();
        }
    }

    fn reset(&mut self) {
        self.abandon();
        self.settle(RESET_LIMIT);
    }

    fn wakeup(&self) -> Option<RawFd> {
        Some(self.wakeup.as_raw_fd())
    }

    fn host_event(&mut self) {
        self.backend.acknowledge();
        // What has ended makes room for what waits.
        if let Some(mut active) = self.active.take() {
            match self.finish(&mut active) {
                Ok(()) => self.active = Some(active),
                Err(_) => {
                    active.interrupt.needs_reset();
                    self.abandon();
                }
            }
        }
        self.serve();
        if self.active.is_none() {
            self.reap_unanswered();
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.settle(RESET_LIMIT);
    }
}
