//! I/O rates: how many bytes and how many requests a disk or a network interface may move a second.
//!
//! People write `100M` (bytes a second), `2000iops`, both as `100M,2000iops`, and `max` for no limit.
//! `burst=` says how much may pass at once after a quiet time: `100M,burst=20M`,
//! `2000iops,burst=500iops`. For networks there are `400mbit` (millions of bits a second) and `2000pps`
//! (packets), which are the same numbers in other words.

pub mod bounds;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, UnitError};

/// Bytes a second of one megabit a second.
pub const MBIT_BYTES: u64 = 125_000;
/// Default burst: what the rate gives in this many milliseconds.
const DEFAULT_BURST_MS: u128 = 100;

/// A limit on a device's I/O. The default is no limit at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct IoRate {
    /// Bytes a second; 0 is no limit.
    #[serde(default)]
    pub bytes_per_s: Bytes,
    /// Requests (disk) or packets (network) a second; 0 is no limit.
    #[serde(default)]
    pub ops_per_s: u64,
    /// Bytes that may pass at once after a quiet time; 0 is a tenth of a second's worth.
    #[serde(default)]
    pub burst_bytes: Bytes,
    /// Requests that may pass at once after a quiet time; 0 is a tenth of a second's worth.
    #[serde(default)]
    pub burst_ops: u64,
}

impl IoRate {
    /// No limit.
    pub const MAX: Self = Self {
        bytes_per_s: Bytes(0),
        ops_per_s: 0,
        burst_bytes: Bytes(0),
        burst_ops: 0,
    };

    /// Neither bytes nor requests are limited.
    pub fn is_unlimited(&self) -> bool {
        self.bytes_per_s.get() == 0 && self.ops_per_s == 0
    }

    /// Rate and burst of bytes; absent without a limit. Both at least 1.
    pub fn bytes(&self) -> Option<(u64, u64)> {
        limit(self.bytes_per_s.get(), self.burst_bytes.get())
    }

    /// Rate and burst of requests; absent without a limit. Both at least 1.
    pub fn ops(&self) -> Option<(u64, u64)> {
        limit(self.ops_per_s, self.burst_ops)
    }
}

fn limit(rate: u64, burst: u64) -> Option<(u64, u64)> {
    if rate == 0 {
        return None;
    }
    let default = u128::from(rate) * DEFAULT_BURST_MS / 1000;
    let burst = match burst {
        0 => u64::try_from(default).unwrap_or(u64::MAX).max(1),
        burst => burst,
    };
    Some((rate, burst))
}

/// One number of a rate: bytes or requests.
enum Amount {
    Bytes(Bytes),
    Ops(u64),
}

fn amount(text: &str, bad: impl Fn() -> UnitError) -> Result<Amount, UnitError> {
    let whole = |number: &str| {
        let digits = number.bytes().all(|b| b.is_ascii_digit());
        number
            .parse::<u64>()
            .ok()
            .filter(|_| digits)
            .ok_or_else(&bad)
    };
    let ops = text
        .strip_suffix("iops")
        .or_else(|| text.strip_suffix("pps"));
    let amount = match (ops, text.strip_suffix("mbit")) {
        (Some(number), _) => Amount::Ops(whole(number)?),
        (None, Some(number)) => {
            let bytes = whole(number)?.checked_mul(MBIT_BYTES);
            Amount::Bytes(Bytes(bytes.ok_or_else(&bad)?))
        }
        (None, None) => {
            let number = text.strip_suffix("/s").unwrap_or(text);
            Amount::Bytes(number.parse().map_err(|_| bad())?)
        }
    };
    match amount {
        Amount::Bytes(Bytes(0)) | Amount::Ops(0) => Err(UnitError(format!(
            "Rate '{text}' is not allowed: at least 1, or max for no limit"
        ))),
        amount => Ok(amount),
    }
}

/// Sets a field that nobody has set yet.
fn set_once<T: Default + PartialEq>(field: &mut T, value: T, text: &str) -> Result<(), UnitError> {
    if *field != T::default() {
        return Err(UnitError(format!(
            "Rate '{text}' names the same limit twice"
        )));
    }
    *field = value;
    Ok(())
}

impl FromStr for IoRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let text = text.trim();
        if text == "max" {
            return Ok(Self::MAX);
        }
        let bad = || {
            UnitError(format!(
                "Rate '{text}' is not a rate: write bytes a second like 100M, requests a second \
                 like 2000iops, both as 100M,2000iops, with burst=20M if need be, or max"
            ))
        };
        let mut rate = Self::MAX;
        for part in text.split(',').map(str::trim) {
            match part.strip_prefix("burst=") {
                Some(burst) => match amount(burst, bad)? {
                    Amount::Bytes(bytes) => set_once(&mut rate.burst_bytes, bytes, text)?,
                    Amount::Ops(ops) => set_once(&mut rate.burst_ops, ops, text)?,
                },
                None => match amount(part, bad)? {
                    Amount::Bytes(bytes) => set_once(&mut rate.bytes_per_s, bytes, text)?,
                    Amount::Ops(ops) => set_once(&mut rate.ops_per_s, ops, text)?,
                },
            }
        }
        let burst_alone = (rate.burst_bytes.get() > 0 && rate.bytes_per_s.get() == 0)
            || (rate.burst_ops > 0 && rate.ops_per_s == 0);
        if burst_alone {
            return Err(UnitError(format!(
                "Rate '{text}' has a burst without its limit: write the limit before it, like \
                 100M,burst=20M or 2000iops,burst=500iops"
            )));
        }
        Ok(rate)
    }
}

impl fmt::Display for IoRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unlimited() {
            return f.write_str("max");
        }
        let mut separator = "";
        let mut part = |text: String| {
            let written = write!(f, "{separator}{text}");
            separator = ",";
            written
        };
        if self.bytes_per_s.get() > 0 {
            part(exact(self.bytes_per_s))?;
            if self.burst_bytes.get() > 0 {
                part(format!("burst={}", exact(self.burst_bytes)))?;
            }
        }
        if self.ops_per_s > 0 {
            part(format!("{}iops", self.ops_per_s))?;
            if self.burst_ops > 0 {
                part(format!("burst={}iops", self.burst_ops))?;
            }
        }
        Ok(())
    }
}

/// A number of bytes that reads back as itself: sizes are printed rounded for people. What is a round
/// number of bits alone was given in bits.
fn exact(bytes: Bytes) -> String {
    let text = bytes.to_string();
    let short = text.ends_with(|c: char| c.is_ascii_alphabetic());
    match text.parse::<Bytes>() {
        Ok(same) if same == bytes && short => text,
        _ if bytes.get().is_multiple_of(MBIT_BYTES) => format!("{}mbit", bytes.get() / MBIT_BYTES),
        _ => bytes.get().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_written_as_bytes_requests_or_both() {
        let rate = |text: &str| text.parse::<IoRate>().unwrap();
        assert!(rate("max").is_unlimited());
        assert_eq!(rate("100M").bytes(), Some((100 << 20, 10 << 20)));
        assert_eq!(rate("100M/s"), rate("100M"));
        assert_eq!(rate("100M").ops(), None);
        assert_eq!(rate("2000iops").ops(), Some((2000, 200)));
        assert_eq!(rate("3iops").ops(), Some((3, 1)));
        let both = rate("100M,burst=20M,2000iops,burst=50iops");
        assert_eq!(both.bytes(), Some((100 << 20, 20 << 20)));
        assert_eq!(both.ops(), Some((2000, 50)));
        let net = rate("400mbit,2000pps");
        assert_eq!(net.bytes(), Some((50_000_000, 5_000_000)));
        assert_eq!(net.ops(), Some((2000, 200)));
        assert_eq!(net.to_string(), "400mbit,2000iops");
    }

    #[test]
    fn what_is_no_rate_is_refused_with_what_is_allowed() {
        for text in [
            "",
            "0",
            "0iops",
            "iops",
            "+5iops",
            "fast",
            "mbit",
            "1.5mbit",
            "+1mbit",
            "1e3pps",
            "1M,2M",
            "5iops,6iops",
            "burst=1M",
            "5iops,burst=1M",
            "1M,",
            "max,1M",
            "1M,burst=0",
        ] {
            let error = text.parse::<IoRate>().unwrap_err().to_string();
            assert!(error.starts_with("Rate '"), "{text}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn a_rate_prints_as_what_it_is_read_from(
            bytes in any::<u64>(), ops in any::<u64>(), burst in any::<(u64, u64)>(),
        ) {
            let rate = IoRate {
                bytes_per_s: Bytes(bytes),
                ops_per_s: ops,
                burst_bytes: Bytes(if bytes > 0 { burst.0 } else { 0 }),
                burst_ops: if ops > 0 { burst.1 } else { 0 },
            };
            prop_assert_eq!(rate.to_string().parse::<IoRate>().unwrap(), rate);
        }
    }
}
