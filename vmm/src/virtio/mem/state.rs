//! The logic of virtio-mem, without host or queue: sizes, and what a request deserves (§5.15.6.4).

use super::request::{Answer, BlockState, NamedRange, Request};
use crate::memory::{BLOCK_BYTES, PluggedBlocks, SLOT_BYTES};

/// Room that the guest gets beyond what it is asked to use, so that it can finish a memory block of
/// its own (128 MiB) where unplugged blocks are scattered.
pub const SLACK_BYTES: u64 = 256 << 20;

/// A size that the device cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// Not a whole number of blocks.
    #[error(
        "Elastic memory of {bytes} bytes is not a multiple of its block of {BLOCK_BYTES} bytes"
    )]
    NotAligned {
        /// What was asked.
        bytes: u64,
    },
    /// More than there is.
    #[error("Elastic memory of {bytes} bytes is more than the region of {region_bytes} bytes")]
    TooLarge {
        /// What was asked.
        bytes: u64,
        /// Size of the region.
        region_bytes: u64,
    },
}

/// The device's sizes, all in bytes and multiples of [`BLOCK_BYTES`].
///
/// Always `plugged <= usable`, `requested <= usable <= region`. `plugged` may be above `requested`
/// after a wish to shrink: only the guest can give blocks back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Guest address of the region.
    pub start: u64,
    /// The whole region.
    pub region: u64,
    /// The part from its start in which the guest may plug.
    pub usable: u64,
    /// What the guest is asked to have.
    pub requested: u64,
    /// What it has.
    pub plugged: u64,
}

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Unplug whatever is plugged; takes as long as it takes.
    UnplugAll,
    /// Done in one step.
    Step(Step),
}

/// What can be done, and answered, at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Plug blocks; all of them are unplugged.
    Plug(BlockRange),
    /// Unplug blocks; all of them are plugged.
    Unplug(BlockRange),
    /// Nothing but this answer.
    Answer(Answer),
}

/// Blocks of the region, counted from its start; inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    /// First block.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl BlockRange {
    /// Bytes.
    pub fn bytes(self) -> u64 {
        self.count * BLOCK_BYTES
    }
}

impl Sizes {
    /// A region with nothing plugged and nothing asked for.
    pub fn new(start: u64, region: u64) -> Self {
        let mut sizes = Self {
            start,
            region,
            usable: 0,
            requested: 0,
            plugged: 0,
        };
        sizes.usable = sizes.usable_for(0);
        sizes
    }

    fn usable_for(&self, requested: u64) -> u64 {
        let wanted = requested.saturating_add(SLACK_BYTES);
        wanted
            .checked_next_multiple_of(SLOT_BYTES)
            .map_or(self.region, |wanted| wanted.min(self.region))
    }

    /// Asks the guest for another size; says whether anything that it can see has changed.
    ///
    /// # Errors
    /// Not a multiple of a block, or larger than the region; then nothing has changed.
    pub fn set_requested(&mut self, bytes: u64) -> Result<bool, MemError> {
        if !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(MemError::NotAligned { bytes });
        }
        if bytes > self.region {
            return Err(MemError::TooLarge {
                bytes,
                region_bytes: self.region,
            });
        }
        let before = (self.requested, self.usable);
        self.requested = bytes;
        // The usable part shrinks only when nothing is plugged in it.
        self.usable = self.usable.max(self.usable_for(bytes));
        Ok(before != (self.requested, self.usable))
    }

    /// Everything is unplugged: the usable part starts anew, never below what is asked for. Says
    /// whether it has changed.
    pub fn all_unplugged(&mut self) -> bool {
        let before = self.usable;
        self.plugged = 0;
        self.usable = self.usable_for(self.requested);
        before != self.usable
    }

    fn check(&self, range: NamedRange) -> Option<BlockRange> {
        let offset = range.address.checked_sub(self.start)?;
        let count = u64::from(range.blocks);
        let end = offset.checked_add(count.checked_mul(BLOCK_BYTES)?)?;
        let valid = count > 0 && offset.is_multiple_of(BLOCK_BYTES) && end <= self.usable;
        valid.then_some(BlockRange {
            first: offset / BLOCK_BYTES,
            count,
        })
    }

    /// What a request deserves, given which blocks are plugged.
    pub fn decide(&self, request: Request, blocks: &PluggedBlocks) -> Verdict {
        let error = Step::Answer(Answer::Error);
        let inspect = |named| {
            let range = self.check(named)?;
            Some((range, blocks.count(range.first, range.count)))
        };
        Verdict::Step(match request {
            Request::UnplugAll => return Verdict::UnplugAll,
            Request::Plug(named) => match inspect(named) {
                // The wish may have shrunk since the driver read it: not its fault.
                Some((range, 0)) if self.plugged + range.bytes() > self.requested => {
                    Step::Answer(Answer::Nack)
                }
                Some((range, 0)) => Step::Plug(range),
                _ => error,
            },
            Request::Unplug(named) => match inspect(named) {
                Some((range, plugged)) if plugged == range.count => Step::Unplug(range),
                _ => error,
            },
            Request::State(named) => match inspect(named) {
                Some((_, 0)) => Step::Answer(Answer::State(BlockState::Unplugged)),
                Some((range, plugged)) if plugged == range.count => {
                    Step::Answer(Answer::State(BlockState::Plugged))
                }
                Some(_) => Step::Answer(Answer::State(BlockState::Mixed)),
                None => error,
            },
        })
    }

    /// The device's configuration space (§5.15.4), little-endian.
    pub fn config_space(&self) -> [u8; 56] {
        let mut space = [0; 56];
        // The second field is the NUMA node: 0, as in the SRAT.
        let fields = [
            BLOCK_BYTES,
            0,
            self.start,
            self.region,
            self.usable,
            self.plugged,
            self.requested,
        ];
        for (place, field) in space.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        space
    }
}

/// The first run of plugged blocks at or after block `from`; none when there is none.
///
/// A run ends with its memory slot, so that giving back a whole region can be done in steps.
pub fn next_plugged_run(blocks: &PluggedBlocks, from: u64) -> Option<BlockRange> {
    let first = (from..blocks.len()).find(|index| blocks.is_plugged(*index))?;
    let slot_blocks = SLOT_BYTES / BLOCK_BYTES;
    let slot_end = (first / slot_blocks + 1) * slot_blocks;
    let end = (first..slot_end.min(blocks.len()))
        .find(|index| !blocks.is_plugged(*index))
        .unwrap_or(slot_end.min(blocks.len()));
    Some(BlockRange {
        first,
        count: end - first,
    })
}
