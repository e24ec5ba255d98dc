//! Memory demand: so much of one reserved range of addresses that every page of it is written, and
//! written again slowly so that it stays in use.
//!
//! It grows by chunks of the size of a huge page, so that the guest's kernel can use these. A thread of its own follows the target, so that a large step holds up neither the plan nor the
//! status line. When too little memory is available it waits for more; demand stays what it is.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use concertina_api::Bytes;

use crate::guest::{status, sys};

const CHUNK_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;
const PAGES_PER_CHUNK: usize = CHUNK_BYTES / PAGE_BYTES;
/// How often the thread looks at memory that it holds or waits for.
const PERIOD: Duration = Duration::from_millis(100);
/// Every page is written again within so many periods (30 s).
const PERIODS_PER_ROUND: usize = 300;

/// Target in bytes, and a bell for when it changes.
#[derive(Default)]
struct Target {
    bytes: Mutex<u64>,
    changed: Condvar,
}

impl Target {
    fn get(&self) -> u64 {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for another value than `seen`, but not longer than a period; while nothing is held,
    /// for as long as it takes.
    fn wait(&self, seen: u64, nothing_held: bool) {
        let guard = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if *guard != seen {
            return;
        }
        if nothing_held && seen == 0 {
            drop(self.changed.wait(guard));
        } else {
            drop(self.changed.wait_timeout(guard, PERIOD));
        }
    }
}

/// Memory held. Given back when the process ends.
pub struct MemoryLoad {
    target: Arc<Target>,
    held_bytes: Arc<AtomicU64>,
}

impl MemoryLoad {
    /// Starts the thread; it holds nothing yet, may come to hold `peak_bytes`, and never takes the
    /// last `reserve` of what is available.
    pub fn start(peak_bytes: f64, reserve: Bytes) -> io::Result<Self> {
        let chunks = (peak_bytes / CHUNK_BYTES as f64).ceil() as usize;
        let memory = sys::Memory::reserve(chunks.saturating_mul(CHUNK_BYTES), CHUNK_BYTES)?;
        let load = Self {
            target: Arc::default(),
            held_bytes: Arc::default(),
        };
        let mut holder = Holder {
            target: Arc::clone(&load.target),
            held_bytes: Arc::clone(&load.held_bytes),
            reserve,
            memory,
            held_chunks: 0,
            allowed_chunks: 0,
            next_page: 0,
            waiting: false,
        };
        let thread = thread::Builder::new()
            .name("memory".into())
            .stack_size(64 << 10);
        thread.spawn(move || holder.run())?;
        Ok(load)
    }

    /// Sets the demand, in bytes; whole chunks of it are held.
    pub fn set(&self, bytes: f64) {
        let bytes = bytes as u64;
        let mut target = self
            .target
            .bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *target != bytes {
            *target = bytes;
            self.target.changed.notify_all();
        }
    }

    /// What is held now, every page of it written.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }
}

struct Holder {
    target: Arc<Target>,
    held_bytes: Arc<AtomicU64>,
    reserve: Bytes,
    memory: sys::Memory,
    held_chunks: usize,
    /// So many more may be taken before the guest's available memory is looked at again.
    allowed_chunks: usize,
    /// Where writing again goes on.
    next_page: usize,
    /// The shortage has been said.
    waiting: bool,
}

impl Holder {
    fn run(&mut self) {
        loop {
            let target = self.target.get();
            self.follow(target);
            self.write_again();
            self.target.wait(target, self.held_chunks == 0);
        }
    }

    fn follow(&mut self, target: u64) {
        let wanted = usize::try_from(target / CHUNK_BYTES as u64).unwrap_or(usize::MAX);
        if wanted < self.held_chunks {
            self.memory.give_back_from(wanted * CHUNK_BYTES);
            self.held_chunks = wanted;
            self.publish();
        }
        while self.held_chunks < wanted {
            if self.target.get() < target {
                return; // the plan has moved on in the meantime
            }
            if let Err(why) = self.check_allowance() {
                if !self.waiting {
                    let held = Bytes(self.held_bytes.load(Ordering::Relaxed));
                    sys::say(&format!(
                        "load: Memory waits at {held} of {}: {why}",
                        Bytes(target)
                    ));
                }
                self.waiting = true;
                return;
            }
            self.take_chunk();
        }
        self.waiting = false;
    }

    /// Looks at the guest's available memory once for many chunks: half of what is left above the
    /// reserve can be taken without looking again, whatever others take in the meantime.
    fn check_allowance(&mut self) -> Result<(), String> {
        if self.allowed_chunks == 0 {
            let available = match (self.reserve.get(), status::available_memory()) {
                (0, _) | (_, None) => u64::MAX,
                (_, Some(available)) => available,
            };
            let chunk = CHUNK_BYTES as u64;
            let chunks_left = available.saturating_sub(self.reserve.get()) / chunk;
            if chunks_left == 0 {
                let (available, reserve) = (Bytes(available), self.reserve);
                return Err(format!(
                    "{available} are available, {reserve} of them are kept back"
                ));
            }
            self.allowed_chunks = usize::try_from(chunks_left.div_ceil(2)).unwrap_or(usize::MAX);
        }
        self.allowed_chunks -= 1;
        Ok(())
    }

    fn take_chunk(&mut self) {
        let first = self.held_chunks * PAGES_PER_CHUNK;
        for page in first..first + PAGES_PER_CHUNK {
            self.write(page);
        }
        self.held_chunks += 1;
        self.publish();
    }

    fn write(&mut self, page: usize) {
        // Different in every page, so that no deduplication can fold them.
        let word = (page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        self.memory.touch(page * PAGE_BYTES, word);
    }

    fn publish(&self) {
        self.held_bytes
            .store((self.held_chunks * CHUNK_BYTES) as u64, Ordering::Relaxed);
    }

    fn write_again(&mut self) {
        let pages = self.held_chunks * PAGES_PER_CHUNK;
        for _ in 0..pages.div_ceil(PERIODS_PER_ROUND) {
            let page = self.next_page.checked_rem(pages).unwrap_or(0);
            self.write(page);
            self.next_page = page + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn wait_for_held(load: &MemoryLoad, bytes: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while load.held_bytes() != bytes {
            assert!(
                Instant::now() < deadline,
                "held {}, wanted {bytes}",
                load.held_bytes()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn held_memory_follows_the_target_up_and_down() {
        let load = MemoryLoad::start(1e8, Bytes(0)).unwrap();
        load.set(17e6);
        wait_for_held(&load, 16 << 20);
        load.set(3.5 * 1048576.0);
        wait_for_held(&load, 2 << 20);
        load.set(0.0);
        wait_for_held(&load, 0);
    }

    #[test]
    fn a_reserve_that_cannot_be_kept_holds_back_instead_of_taking() {
        let load = MemoryLoad::start(8e6, Bytes(1 << 60)).unwrap();
        load.set(8e6);
        thread::sleep(3 * PERIOD);
        assert_eq!(load.held_bytes(), 0);
    }
}
