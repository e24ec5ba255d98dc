//! What the guest says of its memory, made usable. It is a claim: it may keep a guest from being
//! shrunk, and it may confirm what the devices say, but it never makes anything larger than the
//! devices allow.

use std::time::Duration;

use concertina_api::Bytes;
use concertina_api::counters::Counters;
use concertina_api::vm::BalloonStatistics;

use crate::plan::memory::{GuestMemory, Held};

/// Statistics older than this are unknown.
pub const STALE_AFTER: Duration = Duration::from_secs(3);

/// What of the statistics is of use, as the guest said it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// Milliseconds since it was said; `None`: it was not.
    pub age_ms: Option<u64>,
    total: Option<u64>,
    available: Option<u64>,
    major_faults: Option<u64>,
    alloc_stalls: Option<u64>,
    oom_kills: Option<u64>,
}

impl Said {
    fn new(age_ms: Option<u64>, value: impl Fn(&str) -> Option<u64>) -> Self {
        Self {
            age_ms,
            total: value("total_memory"),
            available: value("available_memory"),
            major_faults: value("major_faults"),
            alloc_stalls: value("alloc_stall"),
            oom_kills: value("oom_kill"),
        }
    }

    /// As the vmm has published it; `now_ms` is the present time by the clock of the record. What comes
    /// from the future was not said.
    pub fn published(counters: &Counters, now_ms: u64) -> Self {
        let age_ms = counters.statistics_ms.and_then(|at| now_ms.checked_sub(at));
        Self::new(age_ms, |name| counters.statistic(name))
    }
}

impl From<&BalloonStatistics> for Said {
    fn from(statistics: &BalloonStatistics) -> Self {
        Self::new(statistics.age_ms, |name| {
            statistics.values.get(name).copied()
        })
    }
}

/// Reads the statistics of a guest that holds `held`. `None`: none yet, stale, or absurd (more
/// available than there is, more than was ever given).
///
/// A driver that may deflate on OOM counts the balloon into its total, another one does not (Linux,
/// `adjust_balloon_managed_page_count`). Which one it is shows where both cannot be true: a total
/// without the balloon is at most what is plugged less the balloon. Here the balloon is never in.
pub fn read(said: &Said, held: Held) -> Option<GuestMemory> {
    if said
        .age_ms
        .is_none_or(|age| u128::from(age) > STALE_AFTER.as_millis())
    {
        return None;
    }
    let (total, available) = (said.total?, said.available?);
    let (plugged, balloon) = (held.plugged.get(), held.balloon.get());
    if total == 0 || total > plugged || available > total {
        return None;
    }
    let with_balloon = total.saturating_add(balloon) > plugged;
    let total = if with_balloon {
        total.checked_sub(balloon)?
    } else {
        total
    };
    Some(GuestMemory {
        total: Bytes(total),
        available: Bytes(available.min(total)),
        major_faults: said.major_faults.unwrap_or(0),
        alloc_stalls: said.alloc_stalls.unwrap_or(0),
        oom_kills: said.oom_kills.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(age_ms: Option<u64>, total_mib: u64, available_mib: u64) -> BalloonStatistics {
        let mib = |n: u64| n << 20;
        let values = [
            ("total_memory".to_owned(), mib(total_mib)),
            ("available_memory".to_owned(), mib(available_mib)),
        ];
        BalloonStatistics {
            age_ms,
            values: values.into(),
        }
    }

    fn used(s: &BalloonStatistics, plugged: u64, balloon: u64) -> Option<Bytes> {
        let held = Held {
            plugged: Bytes::mib(plugged),
            balloon: Bytes::mib(balloon),
        };
        read(&Said::from(s), held).map(|guest| guest.used())
    }

    #[test]
    fn missing_stale_and_absurd_statistics_are_unknown() {
        assert_eq!(used(&statistics(None, 1000, 800), 1024, 0), None);
        assert_eq!(used(&statistics(Some(60_000), 1000, 800), 1024, 0), None);
        assert_eq!(used(&statistics(Some(1), 0, 0), 1024, 0), None);
        assert_eq!(used(&statistics(Some(1), 1000, 1001), 1024, 0), None);
        assert_eq!(used(&statistics(Some(1), 2000, 100), 1024, 0), None);
        assert_eq!(used(&BalloonStatistics::default(), 1024, 0), None);
    }

    #[test]
    fn what_is_published_is_what_is_answered() {
        let mut counters = Counters {
            published_ms: 1000,
            statistics_ms: Some(990),
            balloon: Bytes(0),
            statistics: Default::default(),
        };
        counters.statistics[5] = Some(1000 << 20);
        counters.statistics[6] = Some(800 << 20);
        let answered = Said::from(&statistics(Some(20), 1000, 800));
        assert_eq!(Said::published(&counters, 1010), answered);
        assert_eq!(
            Said::published(&counters, 989).age_ms,
            None,
            "from the future"
        );
        counters.statistics_ms = None;
        assert_eq!(Said::published(&counters, 1010).age_ms, None);
    }

    #[test]
    fn the_balloon_is_not_used_memory_whichever_way_the_guest_counts() {
        // 1000 of 1024 managed, 300 used by programs, 200 in the balloon.
        assert_eq!(
            used(&statistics(Some(1), 1000, 700), 1024, 0),
            Some(Bytes::mib(300))
        );
        assert_eq!(
            used(&statistics(Some(1), 1000, 500), 1024, 200),
            Some(Bytes::mib(300))
        );
        assert_eq!(
            used(&statistics(Some(1), 800, 500), 1024, 200),
            Some(Bytes::mib(300))
        );
    }
}
