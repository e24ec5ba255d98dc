//! The device's side of a split queue (§2.7), where `virtio-queue` has no word for it: several used
//! buffers that become visible at once, both ways in which a driver asks for no interrupt, and a queue
//! that says that there is more and has lost it.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::memory::GuestRam;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;

fn at(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    let address = GuestAddress(ring).checked_add(offset);
    address.ok_or(QueueError::AddressOverflow)
}

/// Gives buffers back, as (head, bytes written). The driver sees all of them or none: it takes the
/// buffers of one frame together, and loses the frame when one of them is not there yet (§5.1.6.4).
///
/// # Errors
/// A head that is no descriptor's, or a ring that is no longer the guest's memory.
pub fn publish(queue: &mut Queue, ram: &GuestRam, used: &[(u16, u32)]) -> Result<(), QueueError> {
    let (ring, size) = (queue.used_ring(), queue.size());
    let mut next = queue.next_used();
    for (head, len) in used {
        if *head >= size {
            return Err(QueueError::InvalidDescriptorIndex);
        }
        let slot = u64::from(next.checked_rem(size).ok_or(QueueError::InvalidSize)?);
        let entry = u64::from(*head) | u64::from(*len) << 32;
        ram.write_obj(entry.to_le(), at(ring, 4 + 8 * slot)?)
            .map_err(QueueError::GuestMemory)?;
        next = next.wrapping_add(1);
    }
    ram.store(next.to_le(), at(ring, 2)?, Ordering::Release)
        .map_err(QueueError::GuestMemory)?;
    queue.set_next_used(next);
    Ok(())
}

/// Asks the driver to notify of the next buffer. True: there is one already, and it does not notify.
///
/// # Errors
/// What is there cannot be read, and never will be: its ring lies in memory that was unplugged.
pub fn has_more(queue: &mut Queue, ram: &GuestRam) -> Result<bool, QueueError> {
    if !queue.enable_notification(ram)? {
        return Ok(false);
    }
    queue.disable_notification(ram)?;
    if queue.iter(ram)?.next().is_none() {
        return Err(QueueError::InvalidAvailRingIndex);
    }
    queue.go_to_previous_position();
    Ok(true)
}

/// Whether the driver wants an interrupt for what was given back since the used index was `before`.
///
/// # Errors
/// The ring is no longer the guest's memory.
pub fn wants_interrupt(queue: &Queue, ram: &GuestRam, before: u16) -> Result<bool, QueueError> {
    let now = queue.next_used();
    if now == before {
        return Ok(false);
    }
    // What the driver wants is read after it can see what was given back.
    fence(Ordering::SeqCst);
    let load = |offset| {
        let word = ram.load::<u16>(at(queue.avail_ring(), offset)?, Ordering::Relaxed);
        word.map(u16::from_le).map_err(QueueError::GuestMemory)
    };
    if queue.event_idx_enabled() {
        let event = load(4 + 2 * u64::from(queue.size()))?;
        let behind_event = now.wrapping_sub(event).wrapping_sub(1);
        Ok(behind_event < now.wrapping_sub(before))
    } else {
        Ok(load(0)? & NO_INTERRUPT == 0)
    }
}
