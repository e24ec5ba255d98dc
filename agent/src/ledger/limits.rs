//! What a host has to give away.

use concertina_api::policy::Axis;
use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};

use crate::policy::Size;

/// How much more is promised than there is, in thousandths: 1000 promises exactly what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Overcommit(u32);

/// Largest factor: beyond it a host is not overcommitted, it is misconfigured.
const OVERCOMMIT_MAX: f64 = 64.0;

impl Overcommit {
    /// No more than there is.
    pub const NONE: Self = Self(1000);

    /// So many thousandths.
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl TryFrom<f64> for Overcommit {
    type Error = String;

    fn try_from(factor: f64) -> Result<Self, String> {
        if (0.1..=OVERCOMMIT_MAX).contains(&factor) {
            // In range by the check before; rounded to what a person can mean.
            return Ok(Self((factor * 1000.0).round() as u32));
        }
        Err(format!(
            "Overcommit factor {factor} is not allowed: 0.1 to {OVERCOMMIT_MAX}, where 1 promises \
             what there is"
        ))
    }
}

impl From<Overcommit> for f64 {
    fn from(factor: Overcommit) -> Self {
        Self::from(factor.0) / 1000.0
    }
}

/// What a host has to give away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// What the host has.
    pub capacity: Size,
    /// What it keeps for itself.
    pub reserve: Size,
    /// How much more CPU is promised than there is.
    pub overcommit_cpus: Overcommit,
    /// How much more memory is promised than there is.
    pub overcommit_memory: Overcommit,
    /// Memory that each instance costs the host beside its own: the vmm, page tables.
    pub overhead: Bytes,
}

impl Limits {
    /// A host that promises what it has, all of it.
    pub fn exact(capacity: Size) -> Self {
        Self {
            capacity,
            reserve: Size {
                cpus: Cpus(0),
                memory: Bytes(0),
            },
            overcommit_cpus: Overcommit::NONE,
            overcommit_memory: Overcommit::NONE,
            overhead: Bytes(0),
        }
    }

    /// The most that may be promised on an axis: (capacity - reserve) x overcommit, in thousandths
    /// of a CPU or bytes.
    pub fn of(&self, axis: Axis) -> u64 {
        let own = self.capacity.of(axis).saturating_sub(self.reserve.of(axis));
        let factor = match axis {
            Axis::Cpus => self.overcommit_cpus,
            Axis::Memory => self.overcommit_memory,
        };
        let limit = u128::from(own) * u128::from(factor.thousandths()) / 1000;
        u64::try_from(limit).unwrap_or(u64::MAX)
    }

    /// What each instance costs beside its size.
    pub(super) fn overhead(&self, axis: Axis) -> u64 {
        match axis {
            Axis::Cpus => 0,
            Axis::Memory => self.overhead.get(),
        }
    }
}

/// An amount of an axis as people read it.
pub(super) fn amount(axis: Axis, value: u64) -> String {
    match axis {
        Axis::Cpus => Cpus(u32::try_from(value).unwrap_or(u32::MAX)).to_string(),
        Axis::Memory => Bytes(value).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_is_left_after_the_reserve_times_the_factor() {
        let limits = Limits {
            capacity: Size {
                cpus: Cpus::whole(8),
                memory: Bytes::mib(16 << 10),
            },
            reserve: Size {
                cpus: Cpus::whole(1),
                memory: Bytes::mib(2 << 10),
            },
            overcommit_cpus: Overcommit::try_from(4.0).unwrap(),
            overcommit_memory: Overcommit::NONE,
            overhead: Bytes(0),
        };
        assert_eq!(limits.of(Axis::Cpus), 28_000);
        assert_eq!(limits.of(Axis::Memory), 14 << 30);
        let huge = Limits {
            capacity: Size {
                cpus: Cpus(u32::MAX),
                memory: Bytes(u64::MAX),
            },
            overcommit_memory: Overcommit::try_from(64.0).unwrap(),
            ..limits
        };
        assert_eq!(huge.of(Axis::Memory), u64::MAX);
    }

    #[test]
    fn absurd_factors_are_refused() {
        for factor in [0.0, -1.0, f64::NAN, f64::INFINITY, 65.0] {
            assert!(Overcommit::try_from(factor).is_err(), "{factor}");
        }
        let factor: Overcommit = serde_json::from_str("1.5").unwrap();
        assert_eq!(factor.thousandths(), 1500);
    }
}
