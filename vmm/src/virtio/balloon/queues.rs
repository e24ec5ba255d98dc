//! The balloon's queues: which is which, and one turn of work on each.

use std::collections::VecDeque;

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};

use super::control::Shared;
use super::ranges::{Discarded, Range, coalesce, discard};
use super::{F_REPORTING, F_STATS_VQ, request};
use crate::memory::GuestRam;

/// Most bytes that one turn of the event loop discards.
pub const TURN_BYTES: u64 = 64 << 20;
/// Most chains that one turn takes from the queues.
pub const TURN_CHAINS: u64 = 256;
/// What each discard counts against [`TURN_BYTES`] beside its length: the system call.
const RANGE_COST_BYTES: u64 = 16 << 10;
/// Most page numbers gathered before they are joined into ranges, but for the last chain's.
const BATCH_PAGES: usize = 2048;
/// Most free ranges gathered before they are discarded, but for the last chain's.
const BATCH_RANGES: usize = 256;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Page numbers that the guest gives.
    Inflate,
    /// Page numbers that it takes back.
    Deflate,
    /// One buffer of statistics, which the device holds until it wants fresh ones.
    Statistics,
    /// Free memory.
    Reporting,
}

impl Role {
    /// The roles of queue 0, 1, … for a driver that has accepted these features.
    ///
    /// Linux numbers only the queues that exist, in the order of the specification: reporting is
    /// queue 2 for a driver that did not accept statistics, whatever the device has offered.
    pub fn of_queues(acked_features: u64) -> impl Iterator<Item = Self> {
        let acked = move |feature: u64| acked_features & feature != 0;
        [
            Some(Self::Inflate),
            Some(Self::Deflate),
            acked(F_STATS_VQ).then_some(Self::Statistics),
            acked(F_REPORTING).then_some(Self::Reporting),
        ]
        .into_iter()
        .flatten()
    }
}

/// How much one turn may still do.
#[derive(Debug)]
pub struct Budget {
    bytes: u64,
    chains: u64,
}

impl Budget {
    /// A whole turn's.
    pub fn of_a_turn() -> Self {
        Self {
            bytes: TURN_BYTES,
            chains: TURN_CHAINS,
        }
    }

    /// Nothing more in this turn.
    pub fn is_spent(&self) -> bool {
        self.bytes == 0 || self.chains == 0
    }
}

/// Ranges to be discarded, and the chains to be returned when that is done.
#[derive(Default)]
struct Work {
    ranges: VecDeque<Range>,
    heads: Vec<u16>,
}

impl Work {
    fn step(&mut self, ram: &GuestRam, budget: &mut Budget) -> Discarded {
        let mut total = Discarded::default();
        while budget.bytes > 0
            && let Some(range) = self.ranges.pop_front()
        {
            let (front, rest) = range.split(budget.bytes);
            if let Some(rest) = rest {
                self.ranges.push_front(rest);
            }
            let Discarded {
                bytes,
                refused_pieces,
            } = discard(ram, front);
            total.bytes += bytes;
            total.refused_pieces += refused_pieces;
            budget.bytes = budget.bytes.saturating_sub(front.len + RANGE_COST_BYTES);
        }
        total
    }
}

/// A queue with its role and its unfinished work.
pub struct Lane {
    role: Role,
    queue: Queue,
    work: Work,
    /// Statistics: the driver's buffer.
    held: Option<u16>,
}

impl Lane {
    /// A lane with nothing in it.
    pub fn new(role: Role, queue: Queue) -> Self {
        Self {
            role,
            queue,
            work: Work::default(),
            held: None,
        }
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Does what there is to do within the budget; says whether chains were returned.
    ///
    /// # Errors
    /// The driver has broken the queue.
    pub fn serve(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        budget: &mut Budget,
    ) -> Result<bool, QueueError> {
        match self.role {
            Role::Inflate | Role::Reporting => self.serve_discards(ram, shared, budget),
            Role::Deflate => self.serve_deflate(ram, budget),
            Role::Statistics => self.serve_statistics(ram, shared, budget),
        }
    }

    fn serve_discards(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        budget: &mut Budget,
    ) -> Result<bool, QueueError> {
        let mut returned = false;
        while !budget.is_spent() {
            if self.work.heads.is_empty() {
                self.work = match self.role {
                    Role::Inflate => self.gather_inflation(ram, shared, budget)?,
                    _ => self.gather_reports(ram, shared, budget)?,
                };
                if self.work.heads.is_empty() {
                    break;
                }
            }
            let discarded = self.work.step(ram, budget);
            match self.role {
                Role::Inflate => shared.note_inflated(discarded),
                _ => shared.note_reported(discarded),
            }
            if self.work.ranges.is_empty() {
                // Reported pages are free for reuse once they are returned: not before the discard.
                for head in std::mem::take(&mut self.work.heads) {
                    self.queue.add_used(ram, head, 0)?;
                    returned = true;
                }
            }
        }
        Ok(returned)
    }

    fn gather_inflation(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        budget: &mut Budget,
    ) -> Result<Work, QueueError> {
        let mut pages = Vec::new();
        let mut heads = Vec::new();
        while pages.len() < BATCH_PAGES && budget.chains > 0 {
            let Some(chain) = self.queue.iter(ram)?.next() else {
                break;
            };
            budget.chains -= 1;
            heads.push(chain.head_index());
            match request::page_numbers(chain, &mut pages) {
                Ok(0) => {}
                Ok(bad_items) => shared.note_bad(bad_items),
                Err(_) => shared.note_bad(1),
            }
        }
        Ok(Work {
            ranges: coalesce(&mut pages).into(),
            heads,
        })
    }

    fn gather_reports(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        budget: &mut Budget,
    ) -> Result<Work, QueueError> {
        let mut work = Work::default();
        // A guest that poisons free pages checks that they stay as they were: then keep them.
        let keep = shared.free_pages_have_content();
        while work.ranges.len() < BATCH_RANGES && budget.chains > 0 {
            let Some(chain) = self.queue.iter(ram)?.next() else {
                break;
            };
            budget.chains -= 1;
            work.heads.push(chain.head_index());
            let parsed = request::free_ranges(chain);
            if parsed.bad_items > 0 {
                shared.note_bad(parsed.bad_items);
            }
            if !keep {
                work.ranges.extend(parsed.value);
            }
        }
        Ok(work)
    }

    /// The guest may use its pages again without asking; memory comes back when it is touched.
    fn serve_deflate(&mut self, ram: &GuestRam, budget: &mut Budget) -> Result<bool, QueueError> {
        let mut returned = false;
        while budget.chains > 0 {
            let Some(chain) = self.queue.iter(ram)?.next() else {
                break;
            };
            budget.chains -= 1;
            self.queue.add_used(ram, chain.head_index(), 0)?;
            returned = true;
        }
        Ok(returned)
    }

    fn serve_statistics(
        &mut self,
        ram: &GuestRam,
        shared: &Shared,
        budget: &mut Budget,
    ) -> Result<bool, QueueError> {
        let mut returned = false;
        while budget.chains > 0 {
            let Some(chain) = self.queue.iter(ram)?.next() else {
                break;
            };
            budget.chains -= 1;
            let head = chain.head_index();
            match request::statistics(chain) {
                Ok(parsed) => {
                    if parsed.bad_items > 0 {
                        shared.note_bad(parsed.bad_items);
                    }
                    shared.statistics_arrived(parsed.value);
                }
                Err(_) => shared.note_bad(1),
            }
            // Only one buffer is ever held (§5.5.6.3): an older one goes back.
            if let Some(older) = self.held.replace(head) {
                self.queue.add_used(ram, older, 0)?;
                returned = true;
            }
        }
        if shared.statistics_wanted()
            && let Some(head) = self.held.take()
        {
            shared.statistics_asked();
            self.queue.add_used(ram, head, 0)?;
            returned = true;
        }
        Ok(returned)
    }
}
