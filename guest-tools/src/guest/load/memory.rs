//! Memory demand: mappings of one chunk each, every page of them written, and written again slowly
//! so that they stay in use.
//!
//! A thread of its own follows the target, so that a large step holds up neither the plan nor the
//! status line. When too little memory is available it waits for more; demand stays what it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use concertina_api::Bytes;

use crate::guest::{status, sys};

const CHUNK_BYTES: usize = 1 << 20;
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
    /// Starts the thread; it holds nothing yet and never takes the last `reserve` of what is
    /// available.
    pub fn start(reserve: Bytes) -> Self {
        let load = Self { target: Arc::default(), held_bytes: Arc::default() };
        let mut holder = Holder {
            target: Arc::clone(&load.target),
            held_bytes: Arc::clone(&load.held_bytes),
            reserve,
            chunks: Vec::new(),
            next_page: 0,
            waiting: false,
        };
        let thread = thread::Builder::new().name("memory".into()).stack_size(64 << 10);
        if let Err(error) = thread.spawn(move || holder.run()) {
            sys::say(&format!("load: Cannot start the memory thread: {error}; no memory load"));
        }
        load
    }

    /// Sets the demand, in bytes; whole chunks of it are held.
    pub fn set(&self, bytes: f64) {
        let bytes = bytes as u64;
        let mut target = self.target.bytes.lock().unwrap_or_else(PoisonError::into_inner);
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
    chunks: Vec<sys::Memory>,
    /// Where writing again goes on, counted over all chunks.
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
            self.target.wait(target, self.chunks.is_empty());
        }
    }

    fn follow(&mut self, target: u64) {
        let wanted = usize::try_from(target >> 20).unwrap_or(usize::MAX);
        if wanted < self.chunks.len() {
            self.chunks.truncate(wanted);
            self.publish();
        }
        while self.chunks.len() < wanted {
            if self.target.get() < target {
                return; // the plan has moved on in the meantime
            }
            if let Err(why) = self.take_chunk() {
                if !self.waiting {
                    let held = Bytes(self.held_bytes.load(Ordering::Relaxed));
                    sys::say(&format!(
                        "load: Memory waits at {held} of {}: {why}",
                        Bytes((wanted as u64) << 20)
                    ));
                }
                self.waiting = true;
                return;
            }
        }
        self.waiting = false;
    }

    fn take_chunk(&mut self) -> Result<(), String> {
        let needed = self.reserve.get().saturating_add(CHUNK_BYTES as u64);
        if self.reserve.get() > 0
            && let Some(available) = status::available_memory()
            && available < needed
        {
            let (available, reserve) = (Bytes(available), self.reserve);
            return Err(format!("{available} are available, {reserve} of them are kept back"));
        }
        let mut chunk = sys::Memory::map(CHUNK_BYTES).map_err(|error| error.to_string())?;
        for page in 0..PAGES_PER_CHUNK {
            chunk.touch(page * PAGE_BYTES, self.word(page));
        }
        self.chunks.push(chunk);
        self.publish();
        Ok(())
    }

    /// Different in every page, so that no deduplication can fold them.
    fn word(&self, page: usize) -> u64 {
        ((self.chunks.len() * PAGES_PER_CHUNK + page) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }

    fn publish(&self) {
        self.held_bytes.store((self.chunks.len() * CHUNK_BYTES) as u64, Ordering::Relaxed);
    }

    fn write_again(&mut self) {
        let pages = self.chunks.len() * PAGES_PER_CHUNK;
        for _ in 0..pages.div_ceil(PERIODS_PER_ROUND) {
            let page = self.next_page.checked_rem(pages).unwrap_or(0);
            if let Some(chunk) = self.chunks.get_mut(page / PAGES_PER_CHUNK) {
                chunk.touch((page % PAGES_PER_CHUNK) * PAGE_BYTES, page as u64 | 1);
            }
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
            assert!(Instant::now() < deadline, "held {}, wanted {bytes}", load.held_bytes());
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn held_memory_follows_the_target_up_and_down() {
        let load = MemoryLoad::start(Bytes(0));
        load.set(8e6);
        wait_for_held(&load, 7 << 20);
        load.set(2.5 * 1048576.0);
        wait_for_held(&load, 2 << 20);
        load.set(0.0);
        wait_for_held(&load, 0);
    }

    #[test]
    fn a_reserve_that_cannot_be_kept_holds_back_instead_of_taking() {
        let load = MemoryLoad::start(Bytes(1 << 60));
        load.set(8e6);
        thread::sleep(3 * PERIOD);
        assert_eq!(load.held_bytes(), 0);
    }
}
