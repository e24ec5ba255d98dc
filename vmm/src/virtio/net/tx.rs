//! From the guest: frames of the transmit queue go to the host, in order, none kept.

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::backend::{Backend, Sent};
use super::control::Shared;
use super::lane::{Budget, Stop, Wait};
use super::request::{self, HEADER_BYTES, Malformed};
use super::ring;
use super::segments::Segments;
use crate::memory::GuestRam;

/// The transmit queue.
pub struct Tx {
    queue: Queue,
    acked: u64,
}

impl Tx {
    /// Over the driver's queue, which is ready.
    pub fn new(queue: Queue, acked: u64) -> Self {
        Self { queue, acked }
    }

    /// Sends what the driver has put into the queue, as far as a turn, the limit and the host go.
    /// Without a host's side every frame is lost. Gives whether the driver wants an interrupt.
    pub fn serve(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        backend: Option<&mut (dyn Backend + '_)>,
    ) -> (Result<Wait, Stop>, bool) {
        let before = self.queue.next_used();
        let served = self.turn(ram, shared, backend);
        match ring::wants_interrupt(&self.queue, ram, before) {
            Ok(wanted) => (served, wanted),
            Err(error) => (Err(error.into()), false),
        }
    }

    fn turn(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        mut backend: Option<&mut (dyn Backend + '_)>,
    ) -> Result<Wait, Stop> {
        let mut budget = Budget::of_a_turn();
        let mut packet = Segments::default();
        let mut found_some = false;
        self.queue.disable_notification(ram)?;
        loop {
            if backend.as_ref().is_some_and(|host| host.is_full()) {
                return Ok(Wait::Host);
            }
            if budget.is_spent() {
                return Ok(Wait::Turn);
            }
            let Some(chain) = self.queue.iter(ram)?.next() else {
                if found_some {
                    // A driver in full flow puts in the next ones while these are sent. Looking once
                    // more costs less than the exits by which it would announce them.
                    return Ok(Wait::Turn);
                }
                if ring::has_more(&mut self.queue, ram)? {
                    // A driver that moves its index to and fro comes to the end of the turn as well.
                    budget.spend(HEADER_BYTES);
                    continue;
                }
                return Ok(Wait::Driver);
            };
            found_some = true;
            let head = chain.head_index();
            packet.clear();
            let header =
                request::frame(ram, chain, &mut packet).and_then(|()| self.header(&packet));
            match header {
                Err(_) => shared.bad_request(),
                Ok(header) => {
                    let frame_bytes = packet.len() - HEADER_BYTES;
                    if !shared.tx.throttle.admit(frame_bytes as u64) {
                        self.queue.go_to_previous_position();
                        return Ok(Wait::Limit);
                    }
                    let sent = match backend.as_deref_mut() {
                        Some(host) => host.send(&header, &packet)?,
                        None => Sent::Dropped,
                    };
                    match sent {
                        Sent::Taken => shared.tx.passed(frame_bytes),
                        Sent::Dropped => shared.tx.dropped(),
                    }
                }
            }
            ring::publish(&mut self.queue, ram, &[(head, 0)])?;
            budget.spend(packet.len());
        }
    }

    fn header(&self, packet: &Segments<'_>) -> Result<[u8; HEADER_BYTES], Malformed> {
        let mut header = [0; HEADER_BYTES];
        packet.read(0, &mut header);
        request::checked_header(header, packet.len() - HEADER_BYTES, self.acked)
    }
}
