//! CPU demand: one thread for each CPU of the plan's peak, not pinned, so that the kernel spreads
//! them over whatever vCPUs are online, later ones too.
//!
//! Thread `i` makes the demand between `i` and `i + 1` CPUs. A whole CPU spins; a part of one works
//! for its share of each slice and sleeps for the rest; none at all sleeps until the level changes.

use std::hint::black_box;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::sys;

/// Short against every period at which load is looked at.
const SLICE: Duration = Duration::from_millis(20);
/// Rounds of arithmetic between two looks at the clock.
const ROUNDS: u32 = 2000;
const STACK_BYTES: usize = 64 << 10;

#[derive(Default)]
struct Level {
    cpus: Mutex<f64>,
    changed: Condvar,
}

impl Level {
    /// The part that falls to thread `index`; waits while it is nothing.
    fn wait_for_share(&self, index: u32) -> f64 {
        let mut cpus = self.cpus.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let share = share_of(*cpus, index);
            if share > 0.0 {
                return share;
            }
            cpus = self
                .changed
                .wait(cpus)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn share_of(cpus: f64, index: u32) -> f64 {
    (cpus - f64::from(index)).clamp(0.0, 1.0)
}

/// Busy threads. They end with the process.
pub struct CpuLoad(Arc<Level>);

impl CpuLoad {
    /// Starts as many threads as the peak needs, all of them idle.
    pub fn start(peak_cpus: f64) -> Self {
        let level = Arc::new(Level::default());
        // The plan's parser has limited the peak.
        for index in 0..peak_cpus.ceil() as u32 {
            let level = Arc::clone(&level);
            let thread = thread::Builder::new()
                .stack_size(STACK_BYTES)
                .name(format!("load{index}"));
            if let Err(error) = thread.spawn(move || work(&level, index)) {
                sys::say(&format!(
                    "load: Cannot start a thread for CPU {index}: {error}; going on with {index}"
                ));
                break;
            }
        }
        Self(level)
    }

    /// Sets the demand, in CPUs.
    pub fn set(&self, cpus: f64) {
        let mut level = self.0.cpus.lock().unwrap_or_else(PoisonError::into_inner);
        if *level != cpus {
            *level = cpus;
            self.0.changed.notify_all();
        }
    }
}

fn work(level: &Level, index: u32) {
    let mut seed = u64::from(index).wrapping_add(1);
    loop {
        let share = level.wait_for_share(index);
        let begin = Instant::now();
        let used_before = sys::thread_cpu_time();
        let goal = SLICE.mul_f64(share);
        while begin.elapsed() < SLICE
            && (share >= 1.0 || sys::thread_cpu_time().saturating_sub(used_before) < goal)
        {
            burn(&mut seed);
        }
        if share < 1.0 {
            thread::sleep(SLICE.saturating_sub(begin.elapsed()));
        }
    }
}

fn burn(seed: &mut u64) {
    for _ in 0..ROUNDS {
        // A step of a linear congruential generator: nothing that a compiler can leave out.
        *seed = black_box(*seed)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_is_shared_out_from_the_first_thread_on() {
        let shares = |cpus| [0, 1, 2].map(|index| share_of(cpus, index));
        assert_eq!(shares(0.0), [0.0, 0.0, 0.0]);
        assert_eq!(shares(0.5), [0.5, 0.0, 0.0]);
        assert_eq!(shares(2.25), [1.0, 1.0, 0.25]);
        assert_eq!(shares(9.0), [1.0, 1.0, 1.0]);
    }
}
