//! How long a change of size takes until the guest can use it, or until the host has it back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

/// Times of the ways to change a size, in milliseconds.
///
/// The defaults are medians that `scripts/demo` measured in the nested host (an emulated processor:
/// slower than hardware), as the README's table has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Actuation {
    /// Growth that adds vCPUs: each of them, one after the other.
    pub cpu_up_ms: u64,
    /// Shrinking; the quota alone.
    pub cpu_down_ms: u64,
    /// Growth within the vCPUs that are online; the quota alone.
    pub cpu_quota_ms: u64,
    /// Growth of memory.
    pub memory_up_ms: u64,
    /// One probe step of a shrink of memory.
    pub memory_down_ms: u64,
}

impl Default for Actuation {
    fn default() -> Self {
        Self {
            cpu_up_ms: 225,
            cpu_down_ms: 17,
            cpu_quota_ms: 17,
            memory_up_ms: 422,
            memory_down_ms: 681,
        }
    }
}

/// Longest time that can be given.
const MOST: Duration = Duration::from_secs(24 * 3600);

impl Actuation {
    /// Every change at once.
    pub const ZERO: Self = Self {
        cpu_up_ms: 0,
        cpu_down_ms: 0,
        cpu_quota_ms: 0,
        memory_up_ms: 0,
        memory_down_ms: 0,
    };

    fn named(&mut self) -> [(&'static str, &mut u64); 5] {
        [
            ("cpu-up", &mut self.cpu_up_ms),
            ("cpu-down", &mut self.cpu_down_ms),
            ("cpu-quota", &mut self.cpu_quota_ms),
            ("memory-up", &mut self.memory_up_ms),
            ("memory-down", &mut self.memory_down_ms),
        ]
    }
}

/// `cpu-up=225ms,memory-down=1s`: what is not named keeps its default.
impl FromStr for Actuation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut times = Self::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| {
                format!("'{part}' is not of the form NAME=TIME, like cpu-up=225ms")
            })?;
            let time = humantime::parse_duration(value.trim())
                .ok()
                .filter(|time| *time <= MOST)
                .ok_or_else(|| {
                    format!("'{value}' is not a time from 0ms to 24h, like 225ms or 1s")
                })?;
            let mut fields = times.named();
            let names = fields.each_ref().map(|(name, _)| *name).join(", ");
            let field = fields
                .iter_mut()
                .find(|(field, _)| *field == name.trim())
                .ok_or_else(|| format!("'{name}' is no way to change a size: they are {names}"))?;
            *field.1 = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        }
        Ok(times)
    }
}

impl fmt::Display for Actuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = *self;
        let parts = times.named().map(|(name, ms)| format!("{name}={ms}ms"));
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_replaces_a_default() {
        let times: Actuation = "cpu-up=1s, memory-down=0ms".parse().unwrap();
        let expected = Actuation {
            cpu_up_ms: 1000,
            memory_down_ms: 0,
            ..Actuation::default()
        };
        assert_eq!(times, expected);
        assert_eq!(times.to_string().parse(), Ok(times));
    }

    #[test]
    fn a_wrong_time_or_name_is_refused() {
        for (text, word) in [
            ("cpu-up", "NAME=TIME"),
            ("cpu-up=soon", "'soon'"),
            ("cpu-up=48h", "24h"),
            ("cpu=1s", "memory-up"),
        ] {
            let error = text.parse::<Actuation>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
