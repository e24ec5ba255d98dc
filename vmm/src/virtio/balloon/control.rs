//! The control side of the balloon: a handle for other threads, and the configuration space.
//!
//! Both share one small state behind a lock that is held only to copy numbers. Waiting is done on a
//! condition variable, which gives the lock back; interrupts are raised after it is released.
//!
//! Deflate-on-OOM: the driver takes pages back by itself and says so by writing a smaller `actual`.
//! Left alone it would then inflate to the target again, run out of memory again, and so on. So the
//! size that the guest is *offered* follows `actual` down until the host sets a target again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::counters::{Counters, STATISTIC_NAMES};
use concertina_api::units::Bytes;
use concertina_api::vm::{BalloonStatistics, BalloonStatus};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ranges::{Discarded, PAGE_BYTES};
use super::request::Statistics;
use crate::counters::Source;
use crate::virtio::{DeviceConfig, DeviceInterrupt};

/// Place of `actual` in the configuration space: the guest writes how much it has given.
const ACTUAL: std::ops::Range<usize> = 4..8;
/// Place of `poison_val`: the guest writes what it fills free pages with.
const POISON: std::ops::Range<usize> = 12..16;

/// A target that the balloon cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// More than the guest has.
    #[error("Balloon of {bytes} bytes is larger than the guest's memory of {max_bytes} bytes")]
    TooLarge {
        /// What was asked.
        bytes: u64,
        /// Most that can be asked.
        max_bytes: u64,
    },
}

/// The balloon as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonReading {
    /// What the API shows.
    pub status: BalloonStatus,
    /// What the guest is asked for: the target, or less after the guest ran out of memory.
    pub offered: Bytes,
    /// How often the driver took pages back that it was asked for: the guest was out of memory. (A
    /// driver that is unloaded looks the same, once.)
    pub oom_deflations: u64,
}

struct Inner {
    max_pages: u32,
    target_pages: u32,
    offered_pages: u32,
    actual_pages: u32,
    poison: u32,
    /// The next write of `actual` may still follow an older, smaller target.
    settling: bool,
    /// The offer has changed while there was nobody to interrupt.
    unannounced: bool,
    interrupt: Option<Arc<dyn DeviceInterrupt>>,
    statistics_ready: bool,
    statistics_wanted: bool,
    statistics: Statistics,
    statistics_at: Option<Instant>,
    /// Counts arrivals of statistics.
    arrivals: u64,
    reported_bytes: u64,
    inflated_bytes: u64,
    bad_requests: u64,
    oom_deflations: u64,
    generation: u8,
}

fn bytes_of(pages: u32) -> Bytes {
    Bytes(u64::from(pages) * PAGE_BYTES)
}

impl Inner {
    fn reading(&self) -> BalloonReading {
        let status = BalloonStatus {
            target: bytes_of(self.target_pages),
            actual: bytes_of(self.actual_pages),
            driver_ready: self.interrupt.is_some(),
            reported_total: Bytes(self.reported_bytes),
            inflated_total: Bytes(self.inflated_bytes),
            bad_requests: self.bad_requests,
        };
        let offered = bytes_of(self.offered_pages);
        BalloonReading {
            status,
            offered,
            oom_deflations: self.oom_deflations,
        }
    }

    fn statistics(&self) -> BalloonStatistics {
        let age = self.statistics_at.map(|at| at.elapsed().as_millis());
        let known = STATISTIC_NAMES.iter().zip(self.statistics);
        let values: BTreeMap<String, u64> = known
            .filter_map(|(name, value)| Some(((*name).to_owned(), value?)))
            .collect();
        BalloonStatistics {
            age_ms: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            values,
        }
    }

    fn config_space(&self) -> [u8; 16] {
        let mut space = [0; 16];
        // The third field belongs to free page hinting, which is not offered.
        let fields = [self.offered_pages, self.actual_pages, 0, self.poison];
        for (place, field) in space.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        space
    }

    fn offer(&mut self, pages: u32) {
        self.offered_pages = pages;
        self.generation = self.generation.wrapping_add(1);
    }

    fn guest_wrote_actual(&mut self, pages: u32) {
        if pages > self.max_pages {
            self.bad_requests = self.bad_requests.saturating_add(1);
        }
        let pages = pages.min(self.max_pages);
        let fell = pages < self.actual_pages;
        if fell && pages < self.offered_pages && !self.settling {
            self.oom_deflations = self.oom_deflations.saturating_add(1);
            self.offer(pages);
        }
        self.settling = false;
        self.actual_pages = pages;
    }
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Wakes the event loop: queues are touched on its thread only.
    pub wakeup: EventFd,
}

impl Shared {
    pub fn new(max_bytes: u64) -> io::Result<Self> {
        let inner = Inner {
            max_pages: u32::try_from(max_bytes / PAGE_BYTES).unwrap_or(u32::MAX),
            target_pages: 0,
            offered_pages: 0,
            actual_pages: 0,
            poison: 0,
            settling: false,
            unannounced: false,
            interrupt: None,
            statistics_ready: false,
            statistics_wanted: false,
            statistics: Statistics::default(),
            statistics_at: None,
            arrivals: 0,
            reported_bytes: 0,
            inflated_bytes: 0,
            bad_requests: 0,
            oom_deflations: 0,
            generation: 0,
        };
        let wakeup = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            wakeup,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The numbers are consistent between any two statements that could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has [`super::Balloon::host_event`] called soon.
    pub fn wake(&self) {
        // A full event counter means that the wakeup is pending already.
        let _ = self.wakeup.write(1);
    }

    pub fn driver_ready(&self, interrupt: Arc<dyn DeviceInterrupt>, statistics: bool) {
        let mut inner = self.lock();
        inner.interrupt = Some(interrupt.clone());
        inner.statistics_ready = statistics;
        // The driver may have read the offer before it changed.
        let announce = std::mem::take(&mut inner.unannounced);
        drop(inner);
        self.changed.notify_all();
        if announce {
            interrupt.config();
        }
    }

    /// Without a driver nothing is in the balloon: its pages are ordinary memory again.
    pub fn driver_gone(&self) {
        let mut inner = self.lock();
        inner.interrupt = None;
        inner.statistics_ready = false;
        inner.statistics_wanted = false;
        inner.actual_pages = 0;
        inner.poison = 0;
        inner.settling = false;
        let target = inner.target_pages;
        inner.offer(target);
        drop(inner);
        self.changed.notify_all();
    }

    /// Whether the guest expects free pages to keep a content other than zeroes.
    pub fn free_pages_have_content(&self) -> bool {
        self.lock().poison != 0
    }

    pub fn note_inflated(&self, discarded: Discarded) {
        let mut inner = self.lock();
        inner.inflated_bytes = inner.inflated_bytes.saturating_add(discarded.bytes);
        inner.bad_requests = inner.bad_requests.saturating_add(discarded.refused_pieces);
        drop(inner);
        self.changed.notify_all();
    }

    pub fn note_reported(&self, discarded: Discarded) {
        let mut inner = self.lock();
        inner.reported_bytes = inner.reported_bytes.saturating_add(discarded.bytes);
        inner.bad_requests = inner.bad_requests.saturating_add(discarded.refused_pieces);
        drop(inner);
        self.changed.notify_all();
    }

    pub fn note_bad(&self, items: u64) {
        let mut inner = self.lock();
        inner.bad_requests = inner.bad_requests.saturating_add(items);
        drop(inner);
        self.changed.notify_all();
    }

    pub fn statistics_wanted(&self) -> bool {
        self.lock().statistics_wanted
    }

    /// The driver has been asked: whatever arrives from now on is the answer.
    pub fn statistics_asked(&self) {
        self.lock().statistics_wanted = false;
    }

    pub fn statistics_arrived(&self, statistics: Statistics) {
        let mut inner = self.lock();
        inner.statistics = statistics;
        inner.statistics_at = Some(Instant::now());
        inner.statistics_wanted = false;
        inner.arrivals = inner.arrivals.wrapping_add(1);
        drop(inner);
        self.changed.notify_all();
    }
}

impl DeviceConfig for Shared {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let space = self.lock().config_space();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(space.len());
        let bytes = space
            .iter()
            .skip(start)
            .copied()
            .chain(std::iter::repeat(0));
        for (place, byte) in data.iter_mut().zip(bytes) {
            *place = byte;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let mut space = inner.config_space();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let (mut actual_written, mut poison_written) = (false, false);
        for (place, byte) in data.iter().enumerate() {
            let at = start.saturating_add(place);
            let written = match at {
                _ if ACTUAL.contains(&at) => &mut actual_written,
                _ if POISON.contains(&at) => &mut poison_written,
                _ => continue,
            };
            *written = true;
            if let Some(target) = space.get_mut(at) {
                *target = *byte;
            }
        }
        let [_, _, _, _, a0, a1, a2, a3, _, _, _, _, p0, p1, p2, p3] = space;
        if poison_written {
            inner.poison = u32::from_le_bytes([p0, p1, p2, p3]);
        }
        if actual_written {
            inner.guest_wrote_actual(u32::from_le_bytes([a0, a1, a2, a3]));
            drop(inner);
            self.changed.notify_all();
        }
    }

    fn generation(&self) -> u8 {
        self.lock().generation
    }
}

/// Drives the balloon from any thread. Clones drive the same device.
#[derive(Clone)]
pub struct BalloonController(pub(super) Arc<Shared>);

impl BalloonController {
    /// Asks the guest to give `bytes` (rounded down to pages of 4 KiB). The same target again is fine:
    /// it renews the offer after the guest ran out of memory. Returns at once: see
    /// [`BalloonController::wait_until`].
    ///
    /// # Errors
    /// `bytes` is more than the guest can have.
    pub fn set_target(&self, bytes: u64) -> Result<(), BalloonError> {
        let mut inner = self.0.lock();
        let pages = u32::try_from(bytes / PAGE_BYTES)
            .ok()
            .filter(|p| *p <= inner.max_pages);
        let Some(pages) = pages else {
            let max_bytes = bytes_of(inner.max_pages).get();
            return Err(BalloonError::TooLarge { bytes, max_bytes });
        };
        inner.target_pages = pages;
        if inner.offered_pages == pages {
            return Ok(());
        }
        // A driver on its way down takes one more step before it reads the new offer.
        inner.settling = inner.offered_pages < inner.actual_pages;
        inner.offer(pages);
        let interrupt = inner.interrupt.clone();
        inner.unannounced = interrupt.is_none();
        drop(inner);
        self.0.changed.notify_all();
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
        Ok(())
    }

    /// How it is.
    pub fn status(&self) -> BalloonReading {
        self.0.lock().reading()
    }

    /// Waits until `done` holds, looking at each change.
    ///
    /// # Errors
    /// `deadline` has passed first: how it is then.
    pub fn wait_until(
        &self,
        deadline: Instant,
        mut done: impl FnMut(&BalloonReading) -> bool,
    ) -> Result<BalloonReading, BalloonReading> {
        let mut inner = self.0.lock();
        loop {
            let reading = inner.reading();
            if done(&reading) {
                return Ok(reading);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(reading);
            }
            let woken = self.0.changed.wait_timeout(inner, left);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks the driver for fresh statistics and returns at once.
    pub fn request_statistics(&self) {
        self.0.lock().statistics_wanted = true;
        self.0.wake();
    }

    /// Wakes the event loop.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// The guest's statistics, not older than `max_age` if the driver answers within `timeout`;
    /// otherwise the last ones, with their age.
    pub fn statistics(&self, max_age: Duration, timeout: Duration) -> BalloonStatistics {
        let start = Instant::now();
        let mut inner = self.0.lock();
        let fresh = inner
            .statistics_at
            .is_some_and(|at| at.elapsed() <= max_age);
        if fresh || !inner.statistics_ready {
            return inner.statistics();
        }
        let seen = inner.arrivals;
        inner.statistics_wanted = true;
        self.0.wake();
        while inner.arrivals == seen && inner.statistics_ready {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            let woken = self.0.changed.wait_timeout(inner, left);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.statistics()
    }
}

impl Source for BalloonController {
    fn ask(&self) -> Option<u64> {
        let mut inner = self.0.lock();
        if !inner.statistics_ready {
            return None;
        }
        inner.statistics_wanted = true;
        let arrivals = inner.arrivals;
        drop(inner);
        self.0.wake();
        Some(arrivals)
    }

    fn arrivals(&self) -> u64 {
        self.0.lock().arrivals
    }

    fn counters(&self, now_ms: u64) -> Counters {
        let inner = self.0.lock();
        let age = inner.statistics_at.map(|at| at.elapsed().as_millis());
        let age_ms = age.map(|age| u64::try_from(age).unwrap_or(u64::MAX));
        Counters {
            published_ms: now_ms,
            statistics_ms: age_ms.and_then(|age| now_ms.checked_sub(age)),
            balloon: bytes_of(inner.actual_pages),
            statistics: inner.statistics,
        }
    }
}
