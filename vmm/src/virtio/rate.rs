//! Rate limits of devices: token buckets for bytes and requests, whose rates change while running.
//!
//! [`RateLimiter`] is the arithmetic alone: no clock, no descriptor. [`Throttle`] is what a device and
//! the control side share: the device asks [`Throttle::admit`] for each request in turn, and when the
//! answer is no it leaves the request (and all behind it) in the queue until the throttle's
//! descriptor becomes readable, which belongs to the device's wakeup.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::IoRate;
use vmm_sys_util::timerfd::TimerFd;

const NS_PER_S: i128 = 1_000_000_000;

/// One bucket. Its level is kept in tokens times 1e9, so that refilling needs no division and loses
/// nothing however often it is done.
#[derive(Debug, Clone)]
struct Bucket {
    /// Tokens a second, at least 1.
    rate: u64,
    /// Most tokens that gather in a quiet time, at least 1.
    capacity: u64,
    /// Negative: debt of a request that was larger than the bucket.
    level: i128,
    filled_at: Instant,
}

impl Bucket {
    fn full(rate: u64, capacity: u64, now: Instant) -> Self {
        Self {
            rate,
            capacity,
            level: i128::from(capacity) * NS_PER_S,
            filled_at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed_ns = now.saturating_duration_since(self.filled_at).as_nanos();
        let elapsed_ns = i128::try_from(elapsed_ns).unwrap_or(i128::MAX);
        let gained = elapsed_ns.saturating_mul(i128::from(self.rate));
        let full = i128::from(self.capacity) * NS_PER_S;
        self.level = self.level.saturating_add(gained).min(full);
        self.filled_at = self.filled_at.max(now);
    }

    /// Nanoseconds until a request of so many tokens may pass: when they are there or, for one larger
    /// than the bucket, when the bucket is full.
    fn wait_ns(&self, tokens: u64) -> i128 {
        let needed = i128::from(tokens.min(self.capacity)) * NS_PER_S;
        let missing = (needed - self.level).max(0);
        let rate = i128::from(self.rate);
        // Rounded up, so that the tokens are there when the time is over.
        missing / rate + i128::from(missing % rate != 0)
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * NS_PER_S);
    }

    /// Another rate. What has gathered stays, as far as it fits. A debt is paid off at the higher of the
    /// two rates: nobody waits longer for a change, and a raise counts at once.
    fn change(&mut self, rate: u64, capacity: u64, now: Instant) {
        self.refill(now);
        if self.level < 0 && rate < self.rate {
            let owed_ns = self.level / i128::from(self.rate);
            self.level = owed_ns.saturating_mul(i128::from(rate));
        }
        (self.rate, self.capacity) = (rate, capacity);
        self.level = self.level.min(i128::from(capacity) * NS_PER_S);
    }
}

/// Two buckets, one for bytes and one for requests; each may be absent. A request takes from both.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
}

impl RateLimiter {
    /// With full buckets.
    pub fn new(rate: &IoRate, now: Instant) -> Self {
        let full = |(rate, burst)| Bucket::full(rate, burst, now);
        Self {
            bytes: rate.bytes().map(full),
            ops: rate.ops().map(full),
        }
    }

    /// Another rate from `now` on.
    pub fn set(&mut self, rate: &IoRate, now: Instant) {
        let change = |bucket: &mut Option<Bucket>, limit: Option<(u64, u64)>| match limit {
            None => *bucket = None,
            Some((rate, burst)) => match bucket {
                Some(bucket) => bucket.change(rate, burst, now),
                None => *bucket = Some(Bucket::full(rate, burst, now)),
            },
        };
        change(&mut self.bytes, rate.bytes());
        change(&mut self.ops, rate.ops());
    }

    /// Lets one request of so many bytes pass, or says how long it has to wait. Over any time, what
    /// passes is at most the rate times that time plus the burst; a request larger than the burst
    /// passes when the bucket is full, and those behind it wait until it is paid off.
    ///
    /// # Errors
    /// The time until the same request passes, if nothing else passes before it and no rate changes.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut buckets = [(&mut self.bytes, bytes), (&mut self.ops, 1)];
        let mut wait_ns = 0;
        for (bucket, tokens) in &mut buckets {
            if let Some(bucket) = bucket.as_mut() {
                bucket.refill(now);
                wait_ns = bucket.wait_ns(*tokens).max(wait_ns);
            }
        }
        if wait_ns > 0 {
            return Err(Duration::from_nanos(
                u64::try_from(wait_ns).unwrap_or(u64::MAX),
            ));
        }
        for (bucket, tokens) in &mut buckets {
            if let Some(bucket) = bucket.as_mut() {
                bucket.take(*tokens);
            }
        }
        Ok(())
    }
}

/// A rate limiter that a device and the control side share.
pub struct Throttle {
    state: Mutex<State>,
    timer_fd: RawFd,
    waits: AtomicU64,
}

struct State {
    rate: IoRate,
    limiter: RateLimiter,
    timer: TimerFd,
    waiting: bool,
}

impl State {
    /// Makes the descriptor readable after `wait`, and not before.
    fn wake_in(&mut self, wait: Duration) {
        // Zero would switch the timer off. The kernel refuses only values that a duration cannot
        // have, and times beyond what it counts: a day is more than any request has to wait without
        // being looked at again.
        let wait = wait.clamp(Duration::from_nanos(1), Duration::from_secs(86_400));
        let _ = self.timer.reset(wait, None);
    }
}

impl Throttle {
    /// With full buckets.
    ///
    /// # Errors
    /// The host has no timer descriptors left.
    pub fn new(rate: IoRate) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        let timer_fd = timer.as_raw_fd();
        let limiter = RateLimiter::new(&rate, Instant::now());
        let state = Mutex::new(State {
            rate,
            limiter,
            timer,
            waiting: false,
        });
        Ok(Self {
            state,
            timer_fd,
            waits: AtomicU64::new(0),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rate in force.
    pub fn rate(&self) -> IoRate {
        self.state().rate
    }

    /// Another rate at once: a device that waits is woken to ask again. From any thread.
    pub fn set(&self, rate: IoRate) {
        let mut state = self.state();
        state.limiter.set(&rate, Instant::now());
        state.rate = rate;
        if state.waiting {
            state.wake_in(Duration::ZERO);
        }
    }

    /// Whether a request of so many bytes may pass now. If not, the descriptor becomes readable when
    /// it is worth to ask again, and asking again makes it unreadable.
    pub fn admit(&self, bytes: u64) -> bool {
        let mut state = self.state();
        match state.limiter.take(bytes, Instant::now()) {
            Ok(()) => {
                // A rate that was raised just now may have wound the timer up once more.
                if std::mem::take(&mut state.waiting) {
                    let _ = state.timer.clear();
                }
                true
            }
            Err(wait) => {
                // Only the first refusal of a request counts, not each look at it.
                if !state.waiting {
                    state.waiting = true;
                    self.waits.fetch_add(1, Ordering::Relaxed);
                }
                state.wake_in(wait);
                false
            }
        }
    }

    /// Makes the descriptor unreadable, for a device that will not ask [`Throttle::admit`] at once.
    /// Never blocks.
    pub fn acknowledge(&self) {
        // Switching the timer off takes its expirations away, too; reading them instead would block
        // when `set` has just wound it up again.
        let _ = self.state().timer.clear();
    }

    /// The device has nothing that waits (a reset, for example).
    pub fn idle(&self) {
        let mut state = self.state();
        state.waiting = false;
        let _ = state.timer.clear();
    }

    /// How many requests had to wait since the start.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}

impl AsRawFd for Throttle {
    /// Readable when a request that was refused should be asked for again.
    fn as_raw_fd(&self) -> RawFd {
        self.timer_fd
    }
}

#[cfg(test)]
mod tests {
    use concertina_api::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn rate(bytes_per_s: u64, burst: u64, ops_per_s: u64, burst_ops: u64) -> IoRate {
        IoRate {
            bytes_per_s: Bytes(bytes_per_s),
            ops_per_s,
            burst_bytes: Bytes(burst),
            burst_ops,
        }
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(&IoRate::MAX, now);
        for _ in 0..1000 {
            assert_eq!(limiter.take(u64::MAX, now), Ok(()));
        }
    }

    #[test]
    fn a_request_larger_than_the_bucket_goes_into_debt_that_the_next_one_waits_for() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(&rate(1000, 100, 0, 0), start);
        assert_eq!(limiter.take(2100, start), Ok(()));
        assert_eq!(limiter.take(0, start), Err(Duration::from_secs(2)));
        assert_eq!(limiter.take(100, start), Err(Duration::from_millis(2100)));
        let later = start + Duration::from_millis(2100);
        assert_eq!(limiter.take(100, later), Ok(()));
    }

    #[test]
    fn a_changed_rate_counts_from_now_and_a_debt_is_paid_at_the_higher_one() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(&rate(1000, 100, 0, 0), start);
        assert_eq!(limiter.take(1100, start), Ok(()));
        limiter.set(&rate(10, 10, 0, 0), start);
        assert_eq!(limiter.take(10, start), Err(Duration::from_secs(2)));
        limiter.set(&rate(1000, 10, 0, 0), start);
        assert_eq!(limiter.take(10, start), Err(Duration::from_millis(20)));
        limiter.set(&IoRate::MAX, start);
        assert_eq!(limiter.take(1 << 40, start), Ok(()));
        limiter.set(&rate(0, 0, 5, 2), start);
        assert_eq!(limiter.take(1 << 40, start), Ok(()));
        assert_eq!(limiter.take(1, start), Ok(()));
        assert_eq!(limiter.take(1, start), Err(Duration::from_millis(200)));
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut limiter = RateLimiter::new(&rate(0, 0, 10, 1), start);
        assert_eq!(limiter.take(0, start), Ok(()));
        let earlier = start - Duration::from_secs(5);
        assert_eq!(limiter.take(0, earlier), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(limiter.take(0, later), Ok(()));
    }

    fn is_readable(fd: RawFd, timeout_ms: i32) -> bool {
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, timeout_ms) == 1 }
    }

    #[test]
    fn a_throttle_wakes_its_device_in_time_and_at_once_when_the_rate_is_raised() {
        let throttle = Throttle::new(rate(0, 0, 20, 1)).unwrap();
        let fd = throttle.as_raw_fd();
        assert!(throttle.admit(1));
        assert!(!is_readable(fd, 0));
        assert!(!throttle.admit(1));
        assert!(!throttle.admit(1));
        assert_eq!(throttle.waits(), 1);
        assert!(is_readable(fd, 10_000));
        throttle.acknowledge();
        assert!(!is_readable(fd, 0));
        assert!(throttle.admit(1));

        throttle.set("1iops,burst=1iops".parse().unwrap());
        assert!(!throttle.admit(1));
        assert!(!is_readable(fd, 0));
        throttle.set(IoRate::MAX);
        assert!(is_readable(fd, 100));
        throttle.acknowledge();
        // A second acknowledgement finds nothing, and does not block.
        throttle.acknowledge();
        assert!(throttle.admit(u64::MAX));
        assert_eq!(throttle.waits(), 2);
    }

    #[test]
    fn a_request_that_passes_leaves_the_descriptor_unreadable() {
        let throttle = Throttle::new(rate(0, 0, 20, 1)).unwrap();
        assert!(throttle.admit(1) && !throttle.admit(1));
        throttle.set(IoRate::MAX);
        assert!(is_readable(throttle.as_raw_fd(), 100));
        assert!(throttle.admit(1));
        assert!(!is_readable(throttle.as_raw_fd(), 0));
    }

    #[test]
    fn an_idle_throttle_wakes_nobody() {
        let throttle = Throttle::new(rate(0, 0, 50, 1)).unwrap();
        assert!(throttle.admit(1) && !throttle.admit(1));
        throttle.idle();
        assert!(!is_readable(throttle.as_raw_fd(), 60));
        throttle.set(IoRate::MAX);
        assert!(!is_readable(throttle.as_raw_fd(), 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// In each window between two requests: at most rate times time plus burst, where a request
        /// that is larger than the bucket counts as the bucket.
        #[test]
        fn never_more_than_rate_times_time_plus_burst(
            per_s in 1u64..1 << 40, burst in 1u64..1 << 32,
            asks in prop::collection::vec((0u64..1 << 33, 0u64..2_000_000_000), 1..60),
        ) {
            let start = Instant::now();
            let mut limiter = RateLimiter::new(&rate(per_s, burst, 0, 0), start);
            let mut now = start;
            let mut passed: Vec<(Instant, u64)> = Vec::new();
            for (bytes, pause_ns) in asks {
                now += Duration::from_nanos(pause_ns);
                if limiter.take(bytes, now).is_ok() {
                    passed.push((now, bytes));
                }
            }
            for (i, (from, _)) in passed.iter().enumerate() {
                let mut sum = 0u128;
                for (until, bytes) in &passed[i..] {
                    let elapsed = until.duration_since(*from).as_nanos();
                    let allowed = u128::from(per_s) * elapsed / 1_000_000_000 + u128::from(burst);
                    prop_assert!(sum + u128::from((*bytes).min(burst)) <= allowed);
                    sum += u128::from(*bytes);
                }
            }
        }

        /// Whoever waits as long as it was told passes, whatever came before.
        #[test]
        fn never_starves(
            per_s in 1u64..u64::MAX, burst in 1u64..u64::MAX, ops in 1u64..1_000_000,
            asks in prop::collection::vec(0u64..u64::MAX, 1..20),
            change in any::<Option<(u64, u64)>>(),
        ) {
            let mut now = Instant::now();
            let mut limiter = RateLimiter::new(&rate(per_s, burst, ops, 0), now);
            for (i, bytes) in asks.into_iter().enumerate() {
                if let (3, Some((per_s, burst))) = (i, change) {
                    limiter.set(&rate(per_s, burst, ops, 0), now);
                }
                if let Err(wait) = limiter.take(bytes, now) {
                    prop_assert!(wait > Duration::ZERO);
                    let Some(then) = now.checked_add(wait) else { return Ok(()) };
                    if wait > Duration::from_secs(1 << 32) { return Ok(()) }
                    now = then;
                    prop_assert_eq!(limiter.take(bytes, now), Ok(()));
                }
            }
        }

        /// Somebody who always asks gets the rate, not less.
        #[test]
        fn who_always_asks_gets_the_whole_rate(per_s in 1000u64..1 << 40, size in 1u64..1 << 20) {
            let start = Instant::now();
            let mut limiter = RateLimiter::new(&rate(per_s, 0, 0, 0), start);
            let (mut now, mut passed) = (start, 0u128);
            for _ in 0..200 {
                match limiter.take(size, now) {
                    Ok(()) => passed += u128::from(size),
                    Err(wait) => now += wait,
                }
            }
            let elapsed = now.duration_since(start).as_nanos();
            prop_assert!(passed + u128::from(size) >= u128::from(per_s) * elapsed / 1_000_000_000);
        }
    }
}
