//! Writes the counters file ([`concertina_api::counters`]): who looks at many VMs reads it, and need not
//! ask each of their processes.
//!
//! ```text
//! due ──► ask the guest's balloon driver ──► its statistics come ──► write
//!   └─ no driver, or none that answered the last time: write at once, with what is known
//! ```
//! All of it happens on the event loop's thread. Only how often comes from elsewhere ([`Schedule`]).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::counters::Counters;
use concertina_api::vm::Publishing;

use crate::virtio::balloon::BalloonController;

/// When the file is written; set by the API's threads.
#[derive(Debug, Default)]
pub struct Schedule(Mutex<Option<Times>>);

#[derive(Debug, Clone, Copy)]
struct Times {
    due: Instant,
    period: Duration,
}

impl Schedule {
    /// From `now` on as this says.
    pub fn set(&self, wish: &Publishing, now: Instant) {
        *self.times() = Some(Times {
            due: now + Duration::from_millis(wish.first_ms),
            period: Duration::from_millis(wish.period_ms),
        });
    }

    /// Time from `now` until it is due; `None`: nobody has asked for it.
    fn left(&self, now: Instant) -> Option<Duration> {
        let due = (*self.times())?.due;
        Some(due.saturating_duration_since(now))
    }

    /// Whether it is due at `now`. If it is, it is due again a period later, in step with the first
    /// time, whatever was missed in between.
    fn take_due(&self, now: Instant) -> bool {
        let mut place = self.times();
        let Some(times) = place.as_mut().filter(|times| times.due <= now) else {
            return false;
        };
        let late = now.saturating_duration_since(times.due).as_nanos();
        let missed = late / times.period.as_nanos().max(1);
        let steps = u32::try_from(missed.saturating_add(1)).unwrap_or(u32::MAX);
        times.due += times.period * steps;
        true
    }

    fn times(&self) -> MutexGuard<'_, Option<Times>> {
        // Each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes it.
#[derive(Debug)]
pub struct Publisher<G = BalloonController> {
    file: File,
    schedule: Arc<Schedule>,
    guest: G,
    /// Statistics that had arrived when the guest was asked; it has not answered since.
    asked: Option<u64>,
}

/// Who knows what is published.
pub trait Source {
    /// Asks the guest for fresh statistics, and returns at once: how many had arrived before. `None`:
    /// there is nobody to ask.
    fn ask(&self) -> Option<u64>;
    /// How many have arrived.
    fn arrivals(&self) -> u64;
    /// What is known; `now_ms` is the present time.
    fn counters(&self, now_ms: u64) -> Counters;
}

impl<G: Source> Publisher<G> {
    /// Makes the file, without a record yet; one that is there is emptied.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(path: &Path, schedule: Arc<Schedule>, guest: G) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600);
        Ok(Self {
            file: file.open(path)?,
            schedule,
            guest,
            asked: None,
        })
    }

    /// Time until there is something to do; `None`: nobody has asked for anything. What the guest
    /// answers wakes the event loop by itself.
    pub fn left(&self) -> Option<Duration> {
        self.schedule.left(Instant::now())
    }

    /// Does what there is to do.
    pub fn look(&mut self) {
        self.look_at(Instant::now());
    }

    fn look_at(&mut self, now: Instant) {
        if self.asked.is_some_and(|seen| self.guest.arrivals() != seen) {
            self.asked = None;
            self.write();
        }
        if !self.schedule.take_due(now) {
            return;
        }
        // A guest that is silent does not look like a process that hangs.
        let is_silent = self.asked.is_some();
        self.asked = self.guest.ask();
        if is_silent || self.asked.is_none() {
            self.write();
        }
    }

    fn write(&self) {
        let record = self.guest.counters(monotonic_ms()).encode();
        // A record that cannot be written gets old, and whoever reads it asks instead.
        let _ = self.file.write_all_at(&record, 0);
    }
}

/// `CLOCK_MONOTONIC` in milliseconds.
fn monotonic_ms() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) writes one timespec, which `time` is, and does not keep the pointer. This
    // clock exists on every Linux, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use concertina_api::Bytes;
    use concertina_api::counters::Statistics;

    /// A guest with a driver that answers when it is told to.
    #[derive(Default)]
    struct Guest {
        has_driver: Cell<bool>,
        asked: Cell<u32>,
        arrivals: Cell<u64>,
    }

    impl Source for &Guest {
        fn ask(&self) -> Option<u64> {
            self.asked.set(self.asked.get() + 1);
            self.has_driver.get().then(|| self.arrivals.get())
        }
        fn arrivals(&self) -> u64 {
            self.arrivals.get()
        }
        fn counters(&self, now_ms: u64) -> Counters {
            Counters {
                published_ms: now_ms,
                statistics_ms: None,
                balloon: Bytes(self.arrivals.get()),
                statistics: Statistics::default(),
            }
        }
    }

    struct Bench<'a> {
        publisher: Publisher<&'a Guest>,
        path: std::path::PathBuf,
        start: Instant,
        _temp: tempfile::TempDir,
    }

    impl<'a> Bench<'a> {
        fn new(guest: &'a Guest) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("counters");
            std::fs::write(&path, "of another life").unwrap();
            let publisher = Publisher::new(&path, Arc::default(), guest).unwrap();
            Self {
                publisher,
                path,
                start: Instant::now(),
                _temp: temp,
            }
        }

        fn schedule(&self, period_ms: u64, first_ms: u64) {
            let wish = Publishing {
                period_ms,
                first_ms,
            };
            self.publisher.schedule.set(&wish, self.start);
        }

        /// Looks at this time; gives what stands in the file then.
        fn look(&mut self, at_ms: u64) -> Option<Counters> {
            let now = self.start + Duration::from_millis(at_ms);
            self.publisher.look_at(now);
            let bytes = std::fs::read(&self.path).unwrap();
            (!bytes.is_empty()).then(|| Counters::decode(&bytes).unwrap())
        }
    }

    #[test]
    fn nothing_is_published_until_somebody_asks_for_it() {
        let guest = Guest::default();
        let mut bench = Bench::new(&guest);
        assert_eq!(bench.look(0), None, "what another life has left is gone");
        assert_eq!(bench.publisher.left(), None);
        assert_eq!(bench.look(100_000), None);
        assert_eq!(guest.asked.get(), 0);
    }

    #[test]
    fn what_the_guest_answers_is_written_when_it_comes() {
        let guest = Guest::default();
        guest.has_driver.set(true);
        let mut bench = Bench::new(&guest);
        bench.schedule(1000, 300);
        assert_eq!(bench.look(299), None);
        assert_eq!(guest.asked.get(), 0);
        assert_eq!(bench.look(300), None, "it has been asked");
        assert_eq!(bench.look(301), None);
        guest.arrivals.set(1);
        assert_eq!(bench.look(302).unwrap().balloon, Bytes(1));
        guest.arrivals.set(2);
        assert_eq!(
            bench.look(900).unwrap().balloon,
            Bytes(1),
            "nobody asked for that"
        );
        assert_eq!(guest.asked.get(), 1);
        bench.look(1300);
        assert_eq!(guest.asked.get(), 2);
    }

    #[test]
    fn without_an_answer_it_is_written_nevertheless() {
        let guest = Guest::default();
        let mut bench = Bench::new(&guest);
        bench.schedule(100, 0);
        assert!(bench.look(0).is_some(), "there is no driver");
        guest.has_driver.set(true);
        bench.look(100);
        std::fs::write(&bench.path, "").unwrap();
        assert_eq!(bench.look(199), None);
        assert!(bench.look(200).is_some(), "the driver is silent");
    }

    #[test]
    fn what_was_missed_is_not_made_up_for_and_the_step_is_kept() {
        let guest = Guest::default();
        let mut bench = Bench::new(&guest);
        bench.schedule(100, 50);
        bench.look(777);
        assert_eq!(guest.asked.get(), 1);
        bench.look(849);
        assert_eq!(guest.asked.get(), 1);
        bench.look(850);
        assert_eq!(guest.asked.get(), 2);
        let now = bench.start + Duration::from_millis(851);
        assert_eq!(
            bench.publisher.schedule.left(now),
            Some(Duration::from_millis(99))
        );
    }
}
