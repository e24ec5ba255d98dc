//! Requests a second: one bucket for each account, which fills at its rate and holds twice as much.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Buckets that are kept; full ones are forgotten first, since they say nothing.
const BUCKETS_MAX: usize = 10_000;

/// A bucket of tokens, a pure thing: time goes in.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, rate: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(2.0 * rate);
        self.at = now;
    }
}

/// Buckets by account.
#[derive(Debug, Default)]
pub struct Limiter {
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Limiter {
    /// Takes one token of `who`.
    ///
    /// # Errors
    /// There is none: how long until there is one.
    pub fn take(&self, who: &str, per_second: u32) -> Result<(), Duration> {
        self.take_at(who, per_second, Instant::now())
    }

    fn take_at(&self, who: &str, per_second: u32, now: Instant) -> Result<(), Duration> {
        let rate = f64::from(per_second.max(1));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(who) {
            let second = Duration::from_secs(2);
            buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < second);
        }
        let full = Bucket {
            tokens: 2.0 * rate,
            at: now,
        };
        let bucket = buckets.entry(who.to_owned()).or_insert(full);
        bucket.fill(rate, now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_twice_the_rate_passes_and_then_the_rate() {
        let limiter = Limiter::default();
        let begun = Instant::now();
        for _ in 0..20 {
            limiter.take_at("a", 10, begun).unwrap();
        }
        let wait = limiter.take_at("a", 10, begun).unwrap_err();
        assert!((0.09..0.11).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(limiter.take_at("b", 10, begun).is_ok(), "each has its own");
        let later = begun + Duration::from_millis(250);
        assert!(limiter.take_at("a", 10, later).is_ok());
        assert!(limiter.take_at("a", 10, later).is_ok());
        assert!(limiter.take_at("a", 10, later).is_err());
    }
}
