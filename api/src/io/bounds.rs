//! Least and most of a limit on I/O: `MIN..MAX`, two rates that limit the same things.
//!
//! `10M..100M`, `500iops..5000iops`, `10M,500iops..100M,5000iops`. An instance begins at the least.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::IoRate;
use crate::units::{Bounds, Bytes, UnitError};

/// Bounds of the limit of each of an instance's disks, or of each direction of its network
/// interfaces. At least one of the two is there; what is not is no matter of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RateBounds {
    /// Bytes a second, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<Bounds<Bytes>>,
    /// Requests or packets a second, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_s: Option<Bounds<u64>>,
}

impl RateBounds {
    /// Both ends, of which each was read by itself.
    ///
    /// # Errors
    /// They limit different things, nothing at all, or are inverted.
    pub fn between(min: IoRate, max: IoRate) -> Result<Self, UnitError> {
        let refuse = |why: &str| {
            Err(UnitError(format!(
                "Rate bounds '{min}..{max}' are not allowed: {why}"
            )))
        };
        if min.is_unlimited() || max.is_unlimited() {
            return refuse("each end is a limit, like 10M..100M or 500iops..5000iops");
        }
        let burst = |rate: &IoRate| rate.burst_bytes.get() > 0 || rate.burst_ops > 0;
        if burst(&min) || burst(&max) {
            return refuse(
                "bounds have no burst; it follows the limit, as a tenth of a second's worth",
            );
        }
        let same = |of: fn(&IoRate) -> u64| (of(&min) > 0) == (of(&max) > 0);
        if !same(|rate| rate.bytes_per_s.get()) || !same(|rate| rate.ops_per_s) {
            return refuse("both ends have to limit the same, bytes or requests or both");
        }
        if min.bytes_per_s > max.bytes_per_s || min.ops_per_s > max.ops_per_s {
            return refuse("they are inverted, the lower bound is above the upper one");
        }
        Ok(Self {
            bytes_per_s: (min.bytes_per_s.get() > 0).then_some(Bounds {
                min: min.bytes_per_s,
                max: max.bytes_per_s,
            }),
            ops_per_s: (min.ops_per_s > 0).then_some(Bounds {
                min: min.ops_per_s,
                max: max.ops_per_s,
            }),
        })
    }

    /// The limit that an instance begins with, and is guaranteed.
    pub fn min(&self) -> IoRate {
        self.end(|bytes| bytes.min, |ops| ops.min)
    }

    /// The highest limit.
    pub fn max(&self) -> IoRate {
        self.end(|bytes| bytes.max, |ops| ops.max)
    }

    fn end(&self, bytes: fn(Bounds<Bytes>) -> Bytes, ops: fn(Bounds<u64>) -> u64) -> IoRate {
        IoRate {
            bytes_per_s: self.bytes_per_s.map_or(Bytes(0), bytes),
            ops_per_s: self.ops_per_s.map_or(0, ops),
            ..IoRate::MAX
        }
    }

    /// The limit that somebody asks for, inside these bounds: what it does not name and is bounded
    /// stays as it is in `present`.
    ///
    /// # Errors
    /// A sentence that names the limit and what is allowed; `what` begins it.
    pub fn settle(&self, what: &str, asked: IoRate, present: IoRate) -> Result<IoRate, String> {
        let mut rate = asked;
        if rate.bytes_per_s.get() == 0 && self.bytes_per_s.is_some() {
            (rate.bytes_per_s, rate.burst_bytes) = (present.bytes_per_s, present.burst_bytes);
        }
        if rate.ops_per_s == 0 && self.ops_per_s.is_some() {
            (rate.ops_per_s, rate.burst_ops) = (present.ops_per_s, present.burst_ops);
        }
        let inside = self
            .bytes_per_s
            .is_none_or(|b| b.contains(rate.bytes_per_s))
            && self.ops_per_s.is_none_or(|b| b.contains(rate.ops_per_s));
        if asked.is_unlimited() || !inside {
            return Err(format!(
                "{what} {asked} is outside the bounds of this instance: {} to {} is allowed",
                self.min(),
                self.max()
            ));
        }
        Ok(rate)
    }
}

impl FromStr for RateBounds {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        Self::between(min.parse()?, max.parse()?)
    }
}

impl fmt::Display for RateBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min() == self.max() {
            return self.min().fmt(f);
        }
        write!(f, "{}..{}", self.min(), self.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(text: &str) -> RateBounds {
        text.parse().unwrap()
    }

    fn rate(text: &str) -> IoRate {
        text.parse().unwrap()
    }

    #[test]
    fn bounds_are_two_rates_that_limit_the_same() {
        let both = bounds("10M,500iops..100M,5000iops");
        assert_eq!(
            (both.min(), both.max()),
            (rate("10M,500iops"), rate("100M,5000iops"))
        );
        assert_eq!(both.to_string(), "10M,500iops..100M,5000iops");
        let fixed = bounds("50M");
        assert_eq!((fixed.min(), fixed.max()), (rate("50M"), rate("50M")));
        assert_eq!(fixed.to_string(), "50M");
        assert_eq!(bounds("2000iops..3000iops").bytes_per_s, None);
    }

    #[test]
    fn bounds_that_bound_nothing_are_refused_with_what_is_allowed() {
        for (text, word) in [
            ("max", "each end"),
            ("10M..max", "each end"),
            ("10M..500iops", "the same"),
            ("10M..100M,500iops", "the same"),
            ("100M..10M", "inverted"),
            ("1M,9iops..2M,8iops", "inverted"),
            ("1M,burst=2M..4M", "burst"),
            ("fast..faster", "fast"),
            ("..", "is not a rate"),
        ] {
            let error = text.parse::<RateBounds>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_limit_by_hand_keeps_what_it_does_not_name_and_stays_inside() {
        let both = bounds("10M,500iops..100M,5000iops");
        let present = rate("20M,600iops,burst=60iops");
        let settle = |asked: &str| both.settle("Disk rate", rate(asked), present);
        assert_eq!(
            settle("50M,burst=1M"),
            Ok(rate("50M,burst=1M,600iops,burst=60iops"))
        );
        assert_eq!(settle("700iops"), Ok(rate("20M,700iops")));
        for asked in ["max", "200M", "5M", "6000iops", "50M,1iops"] {
            let error = settle(asked).unwrap_err();
            let allowed = "10M,500iops to 100M,5000iops is allowed";
            assert!(error.contains(asked) && error.contains(allowed), "{error}");
        }
        // Requests are not bounded: any limit of them will do, or none.
        let bytes = bounds("10M..100M");
        let settled = bytes.settle("Disk rate", rate("50M,1iops"), rate("10M"));
        assert_eq!(settled, Ok(rate("50M,1iops")));
    }
}
