//! A program that process 1 starts again whenever it ends: the console's shell, and the agent.
//!
//! Between two starts lies a pause at least. A program that ends before its pause is over is broken:
//! the next pause is twice as long, up to a limit; one that has lived longer is started again at once.

use std::io;
use std::time::{Duration, Instant};

use super::console::Pid;
use super::sys;

/// Rest after a program could not be started at all.
const UNSTARTABLE_REST: Duration = Duration::from_secs(10);

/// Pauses between two starts.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// At first, and again after a life that was long enough.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

/// One such program.
pub struct Kept {
    /// What it is, for messages.
    name: &'static str,
    start: Box<dyn FnMut() -> io::Result<Pid>>,
    pauses: Pauses,
    pause: Duration,
    state: State,
}

enum State {
    Running { pid: Pid, since: Instant },
    Resting { until: Instant },
}

impl Kept {
    /// Starts it at `now`.
    pub fn start(
        name: &'static str,
        pauses: Pauses,
        now: Instant,
        start: impl FnMut() -> io::Result<Pid> + 'static,
    ) -> Self {
        let mut kept = Self {
            name,
            start: Box::new(start),
            pauses,
            pause: pauses.first,
            state: State::Resting { until: now },
        };
        kept.start_if_due(now);
        kept
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Resting { .. } => None,
        }
    }

    /// Starts it again when its rest is over.
    pub fn start_if_due(&mut self, now: Instant) {
        let State::Resting { until } = self.state else {
            return;
        };
        if now < until {
            return;
        }
        self.state = match (self.start)() {
            Ok(pid) => State::Running { pid, since: now },
            Err(error) => {
                sys::say(&format!(
                    "concertina-guest: Cannot start {}: {error}",
                    self.name
                ));
                State::Resting {
                    until: now + UNSTARTABLE_REST,
                }
            }
        };
    }

    /// To be told of each program that has ended.
    pub fn on_end(&mut self, ended: Pid, now: Instant) {
        let State::Running { pid, since } = self.state else {
            return;
        };
        if pid != ended {
            return;
        }
        let until = since + self.pause;
        self.pause = if now < until {
            (self.pause * 2).min(self.pauses.longest)
        } else {
            self.pauses.first
        };
        self.state = State::Resting { until };
        self.start_if_due(now);
    }

    /// How long `start_if_due` has nothing to do; `None`: until the program ends.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Running { .. } => None,
            State::Resting { until } => Some(until.saturating_duration_since(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    const PAUSES: Pauses = Pauses {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(8),
    };

    /// A program that is process 1, 2, 3 and so on, and cannot be started when told so.
    struct Bench {
        kept: Kept,
        starts: Rc<Cell<Pid>>,
        broken: Rc<Cell<bool>>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let (starts, broken) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
            let (count, fails) = (Rc::clone(&starts), Rc::clone(&broken));
            let now = Instant::now();
            let kept = Kept::start("it", PAUSES, now, move || {
                if fails.get() {
                    return Err(io::ErrorKind::NotFound.into());
                }
                count.set(count.get() + 1);
                Ok(count.get())
            });
            Self {
                kept,
                starts,
                broken,
                now,
            }
        }

        /// It ends after so many seconds; gives how long it then rests.
        fn dies_after(&mut self, seconds: u64) -> u64 {
            self.now += Duration::from_secs(seconds);
            self.kept.on_end(self.starts.get(), self.now);
            let rest = self.kept.due_in(self.now).unwrap_or_default();
            self.now += rest;
            self.kept.start_if_due(self.now);
            rest.as_secs()
        }
    }

    #[test]
    fn a_program_that_dies_at_once_is_started_ever_more_slowly() {
        let mut bench = Bench::new();
        let rests: Vec<u64> = (0..6).map(|_| bench.dies_after(0)).collect();
        assert_eq!(rests, [1, 2, 4, 8, 8, 8]);
        assert_eq!((bench.starts.get(), bench.kept.pid()), (7, Some(7)));
        // One that has lived is started at once, and has its first pause again.
        assert_eq!(bench.dies_after(100), 0);
        assert_eq!(bench.dies_after(0), 1);
    }

    #[test]
    fn others_that_end_and_time_that_passes_change_nothing() {
        let mut bench = Bench::new();
        bench.kept.on_end(99, bench.now);
        bench.kept.start_if_due(bench.now + Duration::from_secs(60));
        assert_eq!((bench.starts.get(), bench.kept.pid()), (1, Some(1)));
        assert_eq!(bench.kept.due_in(bench.now), None);
        // While it rests it is not started early.
        bench.kept.on_end(1, bench.now);
        bench.kept.start_if_due(bench.now);
        assert_eq!((bench.starts.get(), bench.kept.pid()), (1, None));
    }

    #[test]
    fn one_that_cannot_be_started_is_tried_again_after_a_rest() {
        let mut bench = Bench::new();
        bench.broken.set(true);
        assert_eq!(bench.dies_after(100), UNSTARTABLE_REST.as_secs());
        bench.broken.set(false);
        bench.now += UNSTARTABLE_REST;
        bench.kept.start_if_due(bench.now);
        assert_eq!(bench.kept.pid(), Some(2));
    }
}
