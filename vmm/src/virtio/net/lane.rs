//! What both directions have in common: why a lane stops, and how its queue is served in turns.

use virtio_queue::Error as QueueError;

use super::backend::Gone;

/// Most frames that one turn of the event loop moves in one direction.
pub const TURN_FRAMES: usize = 256;
/// A turn ends, too, when so many bytes were moved in one direction.
pub const TURN_BYTES: usize = 1 << 20;
/// Queue sizes: what Linux and its peers are used to.
pub const QUEUE_SIZE: u16 = 256;

/// What a lane waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The driver: for a frame to send, or for room to receive.
    Driver,
    /// The host's side: for a frame, or for room.
    Host,
    /// The rate limit.
    Limit,
    /// Its next turn.
    Turn,
}

/// Why a lane cannot go on.
#[derive(Debug)]
pub enum Stop {
    /// The driver has broken the queue.
    Queue,
    /// The host's side has ended.
    Gone,
}

impl From<QueueError> for Stop {
    fn from(_: QueueError) -> Self {
        Self::Queue
    }
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// What is left of a turn.
#[derive(Debug)]
pub struct Budget {
    frames: usize,
    bytes: usize,
}

impl Budget {
    /// A whole turn.
    pub fn of_a_turn() -> Self {
        Self {
            frames: TURN_FRAMES,
            bytes: TURN_BYTES,
        }
    }

    /// One request of so many bytes was served.
    pub fn spend(&mut self, bytes: usize) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The turn is over.
    pub fn is_spent(&self) -> bool {
        self.frames == 0 || self.bytes == 0
    }
}
