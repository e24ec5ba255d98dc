//! Turns the error counters of disks into events: one for errors that follow each other closely.

use std::time::{Duration, Instant};

use concertina_api::disk::DiskStatus;
use concertina_api::event::EventKind;

/// Errors closer to the last one than this belong to the same burst, which has been told.
const BURST: Duration = Duration::from_secs(30);

/// What was seen of the disks of one life.
pub(super) struct DiskWatch {
    disks: Vec<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Errors that were told.
    told: u64,
    /// Errors that were seen.
    errors: u64,
    /// When the last one was seen.
    last: Option<Instant>,
}

impl DiskWatch {
    /// For these disks, of which nothing was told.
    pub(super) fn new(disks: &[DiskStatus]) -> Self {
        Self {
            disks: disks.iter().map(|_| Seen::default()).collect(),
        }
    }

    /// There is nothing to look at.
    pub(super) fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// Events for what has happened since the last look.
    pub(super) fn look(&mut self, disks: &[DiskStatus], now: Instant) -> Vec<EventKind> {
        let looks = self.disks.iter_mut().zip(disks);
        looks
            .filter_map(|(seen, disk)| seen.look(disk, now))
            .collect()
    }
}

impl Seen {
    fn look(&mut self, disk: &DiskStatus, now: Instant) -> Option<EventKind> {
        if disk.errors <= self.errors {
            return None;
        }
        self.errors = disk.errors;
        let is_same_burst = self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < BURST);
        self.last = Some(now);
        if is_same_burst {
            return None;
        }
        let count = disk.errors - self.told;
        self.told = disk.errors;
        Some(EventKind::DiskError {
            disk: disk.path.clone(),
            error: disk.last_error.clone().unwrap_or_default(),
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concertina_api::Bytes;
    use concertina_api::IoRate;

    fn disk(errors: u64) -> DiskStatus {
        DiskStatus {
            path: "/srv/a.img".into(),
            capacity: Bytes::mib(1),
            read_only: false,
            serial: None,
            rate: IoRate::MAX,
            engine: "thread".into(),
            direct: false,
            read_bytes: 0,
            written_bytes: 0,
            reads: 0,
            writes: 0,
            flushes: 0,
            discards: 0,
            throttled: 0,
            errors,
            last_error: (errors > 0).then(|| format!("error {errors}")),
            bad_requests: 0,
        }
    }

    #[test]
    fn a_burst_of_errors_is_one_event_and_the_next_burst_tells_what_came_since() {
        let mut watch = DiskWatch::new(&[disk(0), disk(0)]);
        let start = Instant::now();
        let mut look = |errors, at_s| {
            let now = start + Duration::from_secs(at_s);
            watch.look(&[disk(0), disk(errors)], now)
        };
        let told = |error: &str, count| {
            vec![EventKind::DiskError {
                disk: "/srv/a.img".into(),
                error: error.into(),
                count,
            }]
        };
        assert_eq!(look(0, 0), []);
        assert_eq!(look(3, 1), told("error 3", 3));
        assert_eq!(look(3, 2), []);
        // Still failing each 20 s: the same burst.
        assert_eq!(look(5, 21), []);
        assert_eq!(look(6, 41), []);
        assert_eq!(look(6, 100), []);
        assert_eq!(look(8, 101), told("error 8", 5));
    }
}
