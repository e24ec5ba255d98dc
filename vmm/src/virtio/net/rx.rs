//! To the guest: frames of the host go into buffers of the receive queue.
//!
//! Without a limit a frame is read into the guest's buffers directly. How long it is shows only then,
//! so buffers are looked at ahead, enough for a frame like those before; what does not fit lands in a
//! buffer of our own (`spill`) and is moved. With a limit each frame is read into our own buffer, as it
//! may have to wait there. Buffers that were looked at and not used are the queue's again at the end
//! of the turn.

use std::ops::RangeInclusive;

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::backend::Backend;
use super::control::Shared;
use super::lane::{Budget, Stop, Wait};
use super::request::{self, HEADER_BYTES, MAX_PACKET_BYTES, MIN_FRAME_BYTES};
use super::segments::Segments;
use super::{features, ring};
use crate::memory::GuestRam;

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS_AT: usize = 10;
/// Parts of guest memory that are enough to receive into; the kernel takes 1024 in one call, and one
/// buffer of the driver adds some more than [`request::MAX_DESCRIPTORS`].
const MAX_PARTS: usize = 512;
/// Lengths of what is received.
const FRAME_WITH_HEADER: RangeInclusive<usize> = HEADER_BYTES + MIN_FRAME_BYTES..=MAX_PACKET_BYTES;

/// The receive queue.
pub struct Rx {
    queue: Queue,
    /// A frame may be spread over several buffers.
    mergeable: bool,
    spill: Vec<u8>,
    /// Bytes of a frame, with its header, that wait in `spill`; 0: none.
    waiting: usize,
    /// For how long a frame buffers are looked at ahead.
    expected: usize,
}

/// What one turn works with.
struct Turn<'a, 't> {
    ram: &'a GuestRam,
    shared: &'t Shared,
    ahead: &'t mut Ahead<'a>,
    budget: &'t mut Budget,
}

/// Buffers looked at and not used yet, in the order of the ring.
#[derive(Default)]
struct Ahead<'a> {
    buffers: Vec<Buffer>,
    segments: Segments<'a>,
}

#[derive(Clone, Copy)]
struct Buffer {
    head: u16,
    bytes: usize,
    parts: usize,
}

impl Rx {
    /// Over the driver's queue, which is ready.
    pub fn new(queue: Queue, acked: u64) -> Self {
        Self {
            queue,
            mergeable: acked & features::MRG_RXBUF != 0,
            // Zeroed by the kernel when touched, not before.
            spill: vec![0; MAX_PACKET_BYTES],
            waiting: 0,
            expected: 0,
        }
    }

    /// Receives what the host has, as far as a turn, the limit and the driver's buffers go. Gives
    /// whether the driver wants an interrupt.
    pub fn serve(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        backend: &mut (dyn Backend + '_),
    ) -> (Result<Wait, Stop>, bool) {
        let before = self.queue.next_used();
        let mut ahead = Ahead::default();
        let served = self.turn(ram, shared, backend, &mut ahead);
        let unused = ahead.buffers.len() as u16;
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(unused));
        match ring::wants_interrupt(&self.queue, ram, before) {
            Ok(wanted) => (served, wanted),
            Err(error) => (Err(error.into()), false),
        }
    }

    fn turn<'a>(
        &mut self,
        ram: &'a GuestRam,
        shared: &Shared,
        backend: &mut (dyn Backend + '_),
        ahead: &mut Ahead<'a>,
    ) -> Result<Wait, Stop> {
        let mut budget = Budget::of_a_turn();
        self.queue.disable_notification(ram)?;
        while !budget.is_spent() {
            let mut turn = Turn {
                ram,
                shared,
                ahead: &mut *ahead,
                budget: &mut budget,
            };
            let wait = if self.waiting > 0 {
                self.deliver_waiting(&mut turn)?
            } else if shared.rx.throttle.rate().is_unlimited() {
                self.receive_directly(&mut turn, backend)?
            } else {
                self.receive_aside(shared, backend)?
            };
            if let Some(wait) = wait {
                return Ok(wait);
            }
        }
        Ok(Wait::Turn)
    }

    /// Receives one frame into the driver's buffers.
    fn receive_directly(
        &mut self,
        turn: &mut Turn<'_, '_>,
        backend: &mut (dyn Backend + '_),
    ) -> Result<Option<Wait>, Stop> {
        self.look_ahead(turn, self.expected)?;
        if turn.ahead.buffers.is_empty() {
            return self.wait_for_driver(turn);
        }
        let room = &turn.ahead.segments;
        let Some(len) = backend.receive(room, &mut self.spill)? else {
            return Ok(Some(Wait::Host));
        };
        self.expected = len.max(self.expected - self.expected / 8);
        if !FRAME_WITH_HEADER.contains(&len) || (len > room.len() && !self.mergeable) {
            turn.shared.rx.dropped();
        } else if len > room.len() {
            room.read(0, &mut self.spill);
            self.waiting = len;
        } else {
            self.complete(turn, len)?;
        }
        Ok(None)
    }

    /// Receives one frame into our own buffer.
    fn receive_aside(
        &mut self,
        shared: &Shared,
        backend: &mut (dyn Backend + '_),
    ) -> Result<Option<Wait>, Stop> {
        let Some(len) = backend.receive(&Segments::default(), &mut self.spill)? else {
            return Ok(Some(Wait::Host));
        };
        if FRAME_WITH_HEADER.contains(&len) {
            self.waiting = len;
        } else {
            shared.rx.dropped();
        }
        Ok(None)
    }

    /// Moves the frame that waits in our own buffer into the driver's.
    fn deliver_waiting(&mut self, turn: &mut Turn<'_, '_>) -> Result<Option<Wait>, Stop> {
        if !self.look_ahead(turn, self.waiting)? {
            if self.mergeable || turn.ahead.buffers.is_empty() {
                return self.wait_for_driver(turn);
            }
            self.waiting = 0;
            turn.shared.rx.dropped();
            return Ok(None);
        }
        let frame_bytes = self.waiting - HEADER_BYTES;
        if !turn.shared.rx.throttle.admit(frame_bytes as u64) {
            return Ok(Some(Wait::Limit));
        }
        let packet = self.spill.get(..self.waiting).unwrap_or_default();
        turn.ahead.segments.write(0, packet);
        let len = std::mem::take(&mut self.waiting);
        self.complete(turn, len)?;
        Ok(None)
    }

    /// Looks at the driver's buffers until there is one, and room for so many bytes; false: it has
    /// given too few, or the turn is over.
    fn look_ahead<'a>(
        &mut self,
        turn: &mut Turn<'a, '_>,
        wanted_bytes: usize,
    ) -> Result<bool, Stop> {
        loop {
            let (bytes, parts) = (turn.ahead.segments.len(), turn.ahead.segments.count());
            if !turn.ahead.buffers.is_empty() {
                if bytes >= wanted_bytes {
                    return Ok(true);
                }
                let enough_to_receive = parts >= MAX_PARTS && self.waiting == 0;
                if !self.mergeable || enough_to_receive {
                    return Ok(false);
                }
            }
            if turn.budget.is_spent() {
                return Ok(false);
            }
            let Some(chain) = self.queue.iter(turn.ram)?.next() else {
                return Ok(false);
            };
            let head = chain.head_index();
            if request::room(turn.ram, chain, &mut turn.ahead.segments).is_ok() {
                turn.ahead.buffers.push(Buffer {
                    head,
                    bytes: turn.ahead.segments.len() - bytes,
                    parts: turn.ahead.segments.count() - parts,
                });
            } else {
                // Those before it go back empty as well: unused buffers are taken back by their
                // number, so they have to be the last of the ring.
                turn.shared.bad_request();
                let heads = turn.ahead.buffers.drain(..).map(|buffer| buffer.head);
                let used: Vec<_> = heads.chain([head]).map(|head| (head, 0)).collect();
                turn.ahead.segments.clear();
                ring::publish(&mut self.queue, turn.ram, &used)?;
                turn.budget.spend(HEADER_BYTES);
            }
        }
    }

    /// All buffers were looked at. Asks to be notified of more, unless there are some already.
    fn wait_for_driver(&mut self, turn: &mut Turn<'_, '_>) -> Result<Option<Wait>, Stop> {
        if ring::has_more(&mut self.queue, turn.ram)? {
            turn.budget.spend(HEADER_BYTES);
            return Ok(None);
        }
        Ok(Some(Wait::Driver))
    }

    /// Gives the buffers that hold a frame to the driver; there is room for it.
    fn complete(&mut self, turn: &mut Turn<'_, '_>, len: usize) -> Result<(), Stop> {
        let (mut left, mut parts) = (len, 0);
        let mut used = Vec::new();
        for buffer in &turn.ahead.buffers {
            let here = left.min(buffer.bytes);
            used.push((buffer.head, here as u32));
            left -= here;
            parts += buffer.parts;
            if left == 0 {
                break;
            }
        }
        let count = (used.len() as u16).to_le_bytes();
        turn.ahead.segments.write(NUM_BUFFERS_AT, &count);
        turn.ahead.segments.remove_front(parts);
        turn.ahead.buffers.drain(..used.len());
        ring::publish(&mut self.queue, turn.ram, &used)?;
        turn.shared.rx.passed(len - HEADER_BYTES);
        turn.budget.spend(len);
        Ok(())
    }
}
