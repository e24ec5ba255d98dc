//! Moments that mean the same to every process of one boot of the host: what has to outlive an
//! agent (usage, cooldowns) is timed by these, not by the time since some process began.
//!
//! The monotonic clock decides how long something lasted. The wall clock is a label for people: it
//! may jump in either direction, and nothing is computed from the difference of two labels.

use std::fs;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Where the kernel tells one boot from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The boot of the host that `monotonic_ms` counts from; empty: unknown.
    pub boot: Arc<str>,
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970-01-01 UTC as the wall clock had it: a label.
    pub wall_ms: u64,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        static BOOT: OnceLock<Arc<str>> = OnceLock::new();
        let boot = BOOT.get_or_init(|| {
            let text = fs::read_to_string(BOOT_ID).unwrap_or_default();
            text.trim().into()
        });
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            boot: Arc::clone(boot),
            monotonic_ms: monotonic_ms(),
            wall_ms: millis(wall.unwrap_or_default()),
        }
    }

    /// Milliseconds from an earlier moment to this one; `None` when they do not belong to the same
    /// boot, or are not in this order: then nothing is known about the time between them.
    pub fn since(&self, earlier: &Self) -> Option<u64> {
        if self.boot.is_empty() || self.boot != earlier.boot {
            return None;
        }
        self.monotonic_ms.checked_sub(earlier.monotonic_ms)
    }
}

/// Milliseconds since 1970 as RFC 3339 with milliseconds.
pub fn wall_text(wall_ms: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(wall_ms))
        .filter(|_| wall_ms <= LAST_WALL_MS)
        .map(|time| humantime::format_rfc3339_millis(time).to_string())
        .unwrap_or_else(|| format!("{wall_ms} ms after 1970"))
}

/// Last millisecond of the year 9999, the last one that RFC 3339 can write.
const LAST_WALL_MS: u64 = 253_402_300_799_999;

/// `CLOCK_MONOTONIC` in milliseconds.
pub fn monotonic_ms() -> u64 {
    millis(read_clock(libc::CLOCK_MONOTONIC))
}

/// CPU time of the thread that made it: it tells nothing of another one's, so that it stays there.
#[derive(Debug)]
pub struct ThreadCpu {
    last: Duration,
    stays: PhantomData<*const ()>,
}

impl ThreadCpu {
    /// Begins a first lap.
    pub fn begin() -> Self {
        Self {
            last: read_clock(libc::CLOCK_THREAD_CPUTIME_ID),
            stays: PhantomData,
        }
    }

    /// What the thread has used since the last lap ended. One call of the system a lap: unlike most
    /// clocks, this one is not to be had without.
    pub fn lap(&mut self) -> Duration {
        let now = read_clock(libc::CLOCK_THREAD_CPUTIME_ID);
        now.saturating_sub(std::mem::replace(&mut self.last, now))
    }
}

fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) writes one timespec, which `time` is; it does not keep the pointer. The
    // clocks that are asked for here exist on every Linux, so it cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    let ns = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(time.tv_sec.unsigned_abs(), ns)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_come_from_the_monotonic_clock_whatever_the_wall_clock_does() {
        let first = Moment::now();
        std::thread::sleep(Duration::from_millis(20));
        let mut second = Moment::now();
        second.wall_ms = 0;
        let elapsed = second.since(&first).unwrap();
        assert!((20..10_000).contains(&elapsed), "{elapsed}");
    }

    #[test]
    fn nothing_is_known_about_the_time_between_two_boots() {
        let first = Moment::now();
        let mut second = first.clone();
        second.monotonic_ms += 5;
        assert_eq!(second.since(&first), Some(5));
        assert_eq!(first.since(&second), None);
        second.boot = "another".into();
        assert_eq!(second.since(&first), None);
    }

    #[test]
    fn a_thread_that_works_uses_its_own_time() {
        let mut cpu = ThreadCpu::begin();
        let mut sum = 0u64;
        while cpu.lap().is_zero() {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        let asleep = cpu.lap();
        assert!(asleep < Duration::from_millis(40), "{asleep:?}");
    }

    #[test]
    fn every_label_can_be_written() {
        assert_eq!(wall_text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(wall_text(1_764_111_600_123), "2025-11-25T23:00:00.123Z");
        assert!(wall_text(LAST_WALL_MS).starts_with("9999-12-31"));
        assert!(wall_text(u64::MAX).contains("after 1970"));
    }
}
