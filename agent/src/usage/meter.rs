//! Adds up what is held over time. Pure: it is told the time.

use concertina_api::Bytes;

use crate::clock::Moment;
use crate::policy::Size;

/// What was held over a span, in the units of a [`super::UsageRecord`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Length of the span.
    pub span_ms: u64,
    /// Millionths of a CPU-second.
    pub vcpu_us: u64,
    /// KiB-milliseconds.
    pub promised_kib_ms: u64,
    /// KiB-milliseconds.
    pub resident_kib_ms: u64,
}

/// The meter of one instance.
#[derive(Debug, Clone)]
pub struct Meter {
    at: Moment,
    size: Size,
    resident: Bytes,
    held: Held,
}

impl Meter {
    /// Begins at a moment, at this size.
    pub fn begin(at: Moment, size: Size, resident: Bytes) -> Self {
        Self {
            at,
            size,
            resident,
            held: Held::default(),
        }
    }

    /// Adds the time until `now` at the size held so far; from then on it is `size`. A moment that is
    /// before the last one, or of another boot, adds nothing: the time between is not known.
    pub fn advance(&mut self, now: &Moment, size: Size, resident: Bytes) {
        let ms = now.since(&self.at).unwrap_or(0);
        let kib = |bytes: Bytes| bytes.get() / 1024;
        let held = &mut self.held;
        let add = |sum: &mut u64, rate: u64| *sum = sum.saturating_add(rate.saturating_mul(ms));
        add(&mut held.span_ms, 1);
        // Thousandths of a CPU x thousandths of a second.
        add(&mut held.vcpu_us, self.size.cpus.milli().into());
        add(&mut held.promised_kib_ms, kib(self.size.memory));
        let mean = kib(self.resident).saturating_add(kib(resident)) / 2;
        add(&mut held.resident_kib_ms, mean);
        if ms > 0 || now.boot != self.at.boot {
            self.at = now.clone();
        }
        self.size = size;
        self.resident = resident;
    }

    /// What was added up since the last time that it was taken; it stays until [`Self::settle`].
    pub fn held(&self) -> Held {
        self.held
    }

    /// What was added up is written down.
    pub fn settle(&mut self) {
        self.held = Held::default();
    }

    /// The last moment.
    pub fn at(&self) -> &Moment {
        &self.at
    }

    /// What is held at present.
    pub fn size(&self) -> Size {
        self.size
    }

    /// What was resident at the last look.
    pub fn resident(&self) -> Bytes {
        self.resident
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concertina_api::Cpus;

    fn at(monotonic_ms: u64, wall_ms: u64) -> Moment {
        Moment {
            boot: "boot".into(),
            monotonic_ms,
            wall_ms,
        }
    }

    fn size(milli: u32, mib: u64) -> Size {
        Size {
            cpus: Cpus(milli),
            memory: Bytes::mib(mib),
        }
    }

    #[test]
    fn each_size_counts_for_as_long_as_it_was_held() {
        let mut meter = Meter::begin(at(1000, 0), size(1000, 512), Bytes::mib(100));
        meter.advance(&at(11_000, 0), size(2500, 1024), Bytes::mib(300));
        meter.advance(&at(13_000, 0), size(500, 256), Bytes::mib(300));
        let held = meter.held();
        assert_eq!(held.span_ms, 12_000);
        assert_eq!(held.vcpu_us, (10_000 * 1000) + (2000 * 2500));
        assert_eq!(held.promised_kib_ms, (10_000 * 512 + 2000 * 1024) * 1024);
        assert_eq!(held.resident_kib_ms, (10_000 * 200 + 2000 * 300) * 1024);
        meter.settle();
        assert_eq!(meter.held(), Held::default());
    }

    #[test]
    fn jumps_of_the_wall_clock_change_nothing() {
        let mut steady = Meter::begin(at(0, 1_000_000), size(1000, 512), Bytes(0));
        let mut jumping = steady.clone();
        for (ms, wall) in [(1000, 9_000_000), (2000, 5), (3000, u64::MAX)] {
            steady.advance(&at(ms, 1_000_000 + ms), size(1000, 512), Bytes(0));
            jumping.advance(&at(ms, wall), size(1000, 512), Bytes(0));
        }
        assert_eq!(steady.held(), jumping.held());
        assert_eq!(steady.held().vcpu_us, 3_000_000);
    }

    #[test]
    fn an_unknown_time_adds_nothing() {
        let mut meter = Meter::begin(at(5000, 0), size(1000, 512), Bytes(0));
        meter.advance(&at(4000, 0), size(1000, 512), Bytes(0));
        let other = Moment {
            boot: "other".into(),
            ..at(9000, 0)
        };
        meter.advance(&other, size(1000, 512), Bytes(0));
        assert_eq!(meter.held().span_ms, 0);
        assert_eq!(meter.at(), &other);
    }

    #[test]
    fn absurd_sizes_and_times_do_not_wrap() {
        let huge = Size {
            cpus: Cpus(u32::MAX),
            memory: Bytes(u64::MAX),
        };
        let mut meter = Meter::begin(at(0, 0), huge, Bytes(u64::MAX));
        meter.advance(&at(u64::MAX, 0), huge, Bytes(u64::MAX));
        assert_eq!(meter.held().promised_kib_ms, u64::MAX);
    }
}
