//! How fast a guest is listened to.

use std::time::Instant;

/// A bucket of bytes that fills steadily.
#[derive(Debug)]
pub struct Limit {
    per_second: u64,
    most: u64,
    left: u64,
    at: Instant,
}

impl Limit {
    /// Full, with `most` bytes at once and `per_second` in the long run.
    pub fn new(per_second: u64, most: u64, now: Instant) -> Self {
        Self {
            per_second,
            most,
            left: most,
            at: now,
        }
    }

    /// Bytes that may be read now.
    pub fn left(&mut self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at);
        let grown = u128::from(self.per_second) * passed.as_millis() / 1000;
        if grown > 0 {
            self.at = now;
            let grown = u64::try_from(grown).unwrap_or(u64::MAX);
            self.left = self.left.saturating_add(grown).min(self.most);
        }
        self.left
    }

    /// So many were read.
    pub fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_never_gives_more_than_its_rate_and_its_burst() {
        let begin = Instant::now();
        let mut limit = Limit::new(1000, 500, begin);
        let mut given = 0;
        for ms in 0..5000 {
            let now = begin + Duration::from_millis(ms);
            let left = limit.left(now);
            limit.take(left);
            given += left;
        }
        assert!((5000..=5500).contains(&given), "{given}");
        assert_eq!(limit.left(begin + Duration::from_secs(1000)), 500);
    }
}
