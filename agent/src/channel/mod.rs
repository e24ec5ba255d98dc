//! The host's end of the channel to the program in the guest (see [`concertina_guest::channel`]).
//!
//! ```text
//! guest ─► vsock.sock_1030 ─► Link (a job: limits, lines) ─► Reading (what is sane of it)
//!                                                                    │
//!     watch job    ◄── samples, a wake-up when a report is urgent ◄──┤
//!     resizes      ──► hooks, and their answers                   ◄──┘
//! ```
//! Everything that comes from the guest is untrusted. How fast it is read is limited, so that a guest
//! that floods the channel waits for itself; what is absurd is unknown; of pressure the guest may only
//! say more than the host sees. A guest that is silent costs nothing, and scaling goes on by what the
//! host counts.

mod limit;
mod link;
mod reading;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::instance::GuestStatus;
use concertina_api::policy::Axis;
use concertina_guest::channel::{
    self, Answer, AnswerOutcome, Change, ChangeAxis, FromGuest, Hooks, Moment, ToGuest,
};

use crate::policy::{Observations, Sample};
use crate::poll::Wakeup;
use crate::pool::{JobId, Pool};
use crate::resize::GuestHooks;
use link::Link;
use reading::Reading;

/// A report older than this is no longer known.
pub const FRESH: Duration = Duration::from_secs(3);
/// Time between two reports that the guest is asked for.
pub const PERIOD: Duration = Duration::from_secs(1);
/// Longest time that the guest's hooks may hold up a shrink.
const HOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How much longer than that their answer may be on its way.
const ANSWER_GRACE: Duration = Duration::from_millis(500);
/// Shortest time between two reports that wake the watch job: each costs a look at everything.
const ALARM_PAUSE: Duration = Duration::from_millis(200);
/// Most messages that wait for a guest that does not read; more are lost.
const MAX_OUTBOX: usize = 16;
/// Most characters of a hook's reason that are shown.
const REASON_CHARS: usize = 200;

/// What the threads share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// An answer has come, or will never come.
    answered: Condvar,
    /// An urgent report has come since the last look.
    alarm: AtomicBool,
    /// Wakes the link's job.
    link: Wakeup,
    /// Wakes the watch job.
    watch: Arc<Wakeup>,
}

#[derive(Debug, Default)]
struct State {
    connected: bool,
    /// The last report and when it came.
    last: Option<(Instant, Reading)>,
    /// Which hooks the guest has; `None`: it has not said so.
    hooks: Option<Hooks>,
    /// When an urgent report has last woken the watch job.
    alarmed: Option<Instant>,
    outbox: VecDeque<Vec<u8>>,
    last_id: u64,
    /// Changes that somebody waits for an answer to.
    waiting: BTreeMap<u64, Option<Answer>>,
    /// Lines that were no message, or too long.
    bad_lines: u64,
}

/// The channel of one instance, for all lives of its guest.
#[derive(Debug)]
pub struct Channel {
    shared: Arc<Shared>,
    /// The zero of the samples' clock.
    launched: Instant,
    job: Mutex<Option<(Arc<Pool>, JobId)>>,
}

impl Channel {
    /// A channel that nobody listens to yet. `launched` is the zero of the samples' clock; `watch` is
    /// set when a report is urgent.
    ///
    /// # Errors
    /// The host has no event descriptors left.
    pub fn new(launched: Instant, watch: Arc<Wakeup>) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                answered: Condvar::new(),
                alarm: AtomicBool::new(false),
                link: Wakeup::new()?,
                watch,
            }),
            launched,
            job: Mutex::new(None),
        })
    }

    /// Listens on `socket`, in a job of `pool`, until [`Channel::close`].
    ///
    /// # Errors
    /// The socket or the job cannot be made.
    pub fn listen(&self, socket: &Path, pool: &Arc<Pool>) -> io::Result<()> {
        let link = Link::bind(socket, Arc::clone(&self.shared))?;
        let job = pool.add(Box::new(link))?;
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(pool), job));
        Ok(())
    }

    /// Ends the job, and with it the listening.
    pub fn close(&self) {
        let job = self
            .job
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((pool, job)) = job {
            drop(pool.remove(job));
        }
    }

    /// Whether an urgent report has come since the last call.
    pub fn take_alarm(&self) -> bool {
        self.shared.alarm.swap(false, Ordering::SeqCst)
    }

    /// Adds what the guest says to what the host sees, if the guest has said it a moment ago. Of a
    /// pressure that both tell the larger one counts: the guest sees more waits than the host, and
    /// must not be able to hide those that the host sees.
    pub fn observe(&self, now_ms: u64, seen: &mut Observations) {
        let state = self.shared.state();
        let Some((arrived, reading)) = &state.last else {
            return;
        };
        let since_launch = arrived.saturating_duration_since(self.launched);
        let at_ms = u64::try_from(since_launch.as_millis()).unwrap_or(u64::MAX);
        if u128::from(now_ms.saturating_sub(at_ms)) > FRESH.as_millis() {
            return;
        }
        for (metric, value) in reading.pressures() {
            let sample = seen
                .samples
                .entry(metric)
                .or_insert(Sample { value, at_ms });
            if sample.value.is_nan() || value > sample.value {
                sample.value = value;
            }
        }
        for (metric, value) in reading.numbers() {
            seen.samples.insert(metric, Sample { value, at_ms });
        }
    }

    /// The guest's last report, for people; `None` when it is silent.
    pub fn status(&self) -> Option<GuestStatus> {
        let state = self.shared.state();
        let (arrived, reading) = state.last.as_ref()?;
        let mut status = reading.status(arrived.elapsed(), state.bad_lines);
        status.shrink_hooks = state.hooks.map(|hooks| hooks.before_shrink);
        Some(status)
    }

    /// Asks the guest to end itself cleanly; lost when it does not listen.
    pub fn power_off(&self) {
        let message = ToGuest {
            power_off: true,
            ..ToGuest::default()
        };
        self.shared.post(&mut self.shared.state(), &message);
    }

    /// Posts a change; gives its number, or `None` when the guest is silent, or has said that it runs
    /// nothing then.
    fn post_change(
        &self,
        moment: Moment,
        axis: Axis,
        sizes: (u64, u64),
        time: Duration,
    ) -> Option<u64> {
        let mut state = self.shared.state();
        let fresh = state
            .last
            .as_ref()
            .is_some_and(|last| last.0.elapsed() <= FRESH);
        let nothing_runs = state.hooks.is_some_and(|hooks| match moment {
            Moment::BeforeShrink => !hooks.before_shrink,
            Moment::AfterGrow => !hooks.after_grow,
            Moment::Unknown => false,
        });
        if !state.connected || !fresh || nothing_runs {
            return None;
        }
        state.last_id += 1;
        let change = Change {
            id: state.last_id,
            moment,
            axis: match axis {
                Axis::Cpus => ChangeAxis::Cpu,
                Axis::Memory => ChangeAxis::Memory,
            },
            from: sizes.0,
            to: sizes.1,
            deadline_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        };
        let (id, is_awaited) = (change.id, moment == Moment::BeforeShrink);
        let message = ToGuest {
            change: Some(change),
            ..ToGuest::default()
        };
        let is_posted = self.shared.post(&mut state, &message);
        if is_posted && is_awaited {
            // Under the same lock: the answer may be here before anybody waits for it.
            state.waiting.insert(id, None);
        }
        is_posted.then_some(id)
    }

    /// Waits for the answer to a change before a shrink; `None` when there is none in time.
    fn wait_for_answer(&self, id: u64, time: Duration) -> Option<Answer> {
        let until = Instant::now() + time;
        let mut state = self.shared.state();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answered = state.waiting.get(&id).is_some_and(Option::is_some);
            if answered || left.is_zero() || !state.connected {
                return state.waiting.remove(&id).flatten();
            }
            let waited = self.shared.answered.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl GuestHooks for Channel {
    fn before_shrink(&self, axis: Axis, from: u64, to: u64, left: Duration) -> Option<String> {
        let time = HOOK_DEADLINE.min(left);
        let id = self.post_change(Moment::BeforeShrink, axis, (from, to), time)?;
        let answer = self.wait_for_answer(id, time + ANSWER_GRACE)?;
        if answer.outcome != AnswerOutcome::Vetoed {
            return None;
        }
        let reason = answer.reason.unwrap_or_default();
        let shown: String = reason
            .chars()
            .filter(|c| !c.is_control())
            .take(REASON_CHARS)
            .collect();
        Some(format!("The guest refused to shrink: {shown}"))
    }

    fn after_grow(&self, axis: Axis, from: u64, to: u64) {
        let _ = self.post_change(Moment::AfterGrow, axis, (from, to), HOOK_DEADLINE);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message where the link finds it; false when it is lost.
    fn post(&self, state: &mut State, message: &ToGuest) -> bool {
        let Some(line) = channel::encode(message) else {
            return false;
        };
        if !state.connected || state.outbox.len() >= MAX_OUTBOX {
            return false;
        }
        state.outbox.push_back(line);
        self.link.set();
        true
    }

    /// A guest has connected, or has gone: nothing of the one before holds.
    fn set_connected(&self, connected: bool) {
        let mut state = self.state();
        state.connected = connected;
        state.last = None;
        state.hooks = None;
        state.outbox.clear();
        drop(state);
        self.answered.notify_all();
    }

    fn count_bad_line(&self) {
        let mut state = self.state();
        state.bad_lines = state.bad_lines.saturating_add(1);
    }

    fn take(&self, message: FromGuest) {
        let mut state = self.state();
        if let Some(answer) = message.answer
            && let Some(place) = state.waiting.get_mut(&answer.id)
        {
            *place = Some(answer);
            self.answered.notify_all();
        }
        state.hooks = message.hooks.or(state.hooks);
        if let Some(report) = message.report {
            let now = Instant::now();
            let rested = |at: Instant| now.duration_since(at) >= ALARM_PAUSE;
            let alarm = report.urgent && state.alarmed.is_none_or(rested);
            state.last = Some((now, Reading::of(report)));
            if alarm {
                state.alarmed = Some(now);
                self.alarm.store(true, Ordering::SeqCst);
                self.watch.set();
            }
        }
    }
}
