//! Runs many small recurring jobs on few threads: the looks at all instances of a host.
//!
//! ```text
//! poller thread: epoll (wake-ups, triggers, sockets), and the clock
//!      │ ready                          ▲ next time
//!      ▼                                │
//! workers: one job each, without any lock; as many as jobs that wait for something at a time
//! ```
//! A job may wait: a vmm that hangs costs it its deadline. It then has its worker for itself, and whoever
//! finds none free after [`PATIENCE`] gets another one, so that nobody waits for one that hangs. Workers
//! that are not needed any more end. A thread for each job would do the same, and cost each job its
//! stack and its share of the allocator.
//!
//! ```text
//! Asleep ──time, or an event──► Ready ──a worker──► Running ──► Asleep, or Ready when something came
//!    └──────────── remove ──────────┴─────────────────── remove waits ┘
//! ```

mod epoll;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::epoll::Epoll;
pub use self::epoll::Interest;
use crate::clock::ThreadCpu;
use crate::poll::Wakeup;

/// So much later than it asked for a job may run, so that those that are due one after the other run
/// together: each wake-up of a thread costs more than most jobs do.
const SLACK: Duration = Duration::from_millis(5);
/// How long a job may be ready and find no worker until there is another one.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a worker waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// Workers that stay.
const LEAST_WORKERS: usize = 1;
/// Most workers.
const MOST_WORKERS: usize = 512;
/// Stack of a thread; only the pages that it touches become resident.
const STACK_BYTES: usize = 512 << 10;
/// The poller's own wake-up; jobs have smaller numbers.
const POKE: u64 = u64::MAX;
/// Kinds of events that a job can tell apart: the lowest bits of a token.
const KIND_BITS: u32 = 2;

/// Something that runs again and again.
pub trait Job: Send {
    /// Runs once. `events`: what has happened since the last run, by the kinds of [`Watched::watch`];
    /// 0: it is time. Gives the time of the next run; `None`: only an event makes it run.
    fn run(&mut self, events: Events, watched: &Watched<'_>) -> Option<Instant>;

    /// After each run: the CPU time that it took, with its share of the pool's own.
    fn took(&self, _cpu: Duration) {}
}

/// What has happened since a job ran last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// Whether this kind is among it.
    pub fn has(self, kind: u8) -> bool {
        self.0 & (1 << kind) != 0
    }
}

/// Whom a job tells which descriptors wake it.
pub struct Watched<'a> {
    epoll: &'a Epoll,
    id: u64,
}

impl Watched<'_> {
    /// Wakes the job with an event of this kind (0 to 3) each time that something comes, until the
    /// descriptor's file is closed or watched by another job: what was there and was left is not told
    /// again.
    ///
    /// # Errors
    /// The system refuses: the job is not woken by it.
    pub fn watch(&self, fd: RawFd, interest: Interest, kind: u8) -> io::Result<()> {
        let token = self.id << KIND_BITS | u64::from(kind & ((1 << KIND_BITS) - 1));
        self.epoll.watch(fd, interest, token)
    }
}

/// A number by which a job is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobId(u64);

/// Runs jobs. It has no threads and no descriptors before its first job. It ends with the jobs that are
/// left when it is dropped.
#[derive(Default)]
pub struct Pool {
    shared: Mutex<Option<Arc<Shared>>>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something ready.
    work: Condvar,
    /// A job has stopped running.
    rested: Condvar,
    epoll: Epoll,
    poke: Wakeup,
}

#[derive(Default)]
struct State {
    jobs: HashMap<u64, Slot>,
    /// Entries whose time is not that of their job any more are passed over.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    ready: VecDeque<(Instant, u64)>,
    /// Until when the poller sleeps at the most.
    sleeps_until: Option<Instant>,
    next_id: u64,
    workers: usize,
    idle: usize,
    /// Threads that wait for a job to stop running.
    removers: usize,
    closed: bool,
}

struct Slot {
    /// Absent while it runs.
    job: Option<Box<dyn Job>>,
    at: Option<Instant>,
    events: Events,
    is_ready: bool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// Runs a job from here on, at once for the first time.
    ///
    /// # Errors
    /// The system has no descriptors or threads left.
    pub fn add(&self, job: Box<dyn Job>) -> io::Result<JobId> {
        let shared = self.begun()?;
        let mut state = shared.state();
        let id = state.next_id;
        state.next_id += 1;
        state.jobs.insert(
            id,
            Slot {
                job: Some(job),
                at: None,
                events: Events::default(),
                is_ready: false,
            },
        );
        state.make_ready(id, Instant::now());
        if state.idle == 0 {
            // All may be waiting for something: the poller sees to it that there is another one.
            shared.poke.set();
        }
        drop(state);
        shared.work.notify_one();
        Ok(JobId(id))
    }

    /// Takes a job out; one that runs is waited for. `None`: it is gone already, since it panicked.
    pub fn remove(&self, id: JobId) -> Option<Box<dyn Job>> {
        let shared = self.shared()?;
        let mut state = shared.state();
        while state.jobs.get(&id.0).is_some_and(|slot| slot.job.is_none()) {
            state.removers += 1;
            let waited = shared.rested.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.removers -= 1;
        }
        state.jobs.remove(&id.0)?.job
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        lock(&self.shared).clone()
    }

    /// With its first threads.
    fn begun(&self) -> io::Result<Arc<Shared>> {
        let mut place = lock(&self.shared);
        if let Some(shared) = &*place {
            return Ok(Arc::clone(shared));
        }
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            rested: Condvar::new(),
            epoll: Epoll::new()?,
            poke: Wakeup::new()?,
        });
        let poke = shared.poke.as_raw_fd();
        shared.epoll.watch(poke, Interest::Readable, POKE)?;
        Shared::hire(&shared, &mut shared.state())?;
        let poller = Arc::clone(&shared);
        if let Err(error) = spawn("poller", move || poller.poll()) {
            shared.close();
            return Err(error);
        }
        *place = Some(Arc::clone(&shared));
        Ok(shared)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(shared) = lock(&self.shared).take() {
            shared.close();
        }
    }
}

impl State {
    fn make_ready(&mut self, id: u64, now: Instant) {
        if let Some(slot) = self.jobs.get_mut(&id)
            && !slot.is_ready
        {
            slot.is_ready = true;
            // One that runs is put into the queue when it has ended.
            if slot.job.is_some() {
                self.ready.push_back((now, id));
            }
        }
    }

    /// Makes ready what is due, and gives the time of what is due next.
    fn tell_time(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse((at, id))) = self.due.peek().copied() {
            let holds = self.jobs.get(&id).is_some_and(|slot| slot.at == Some(at));
            if holds && at > now {
                return Some(at + SLACK);
            }
            self.due.pop();
            if holds {
                self.make_ready(id, now);
            }
        }
        None
    }
}

/// A thread that panicked leaves its data whole: no job runs under a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Ends its threads, and the jobs that do not run.
    fn close(&self) {
        let jobs = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        self.work.notify_all();
        self.poke.set();
        // Not under the lock: what ends with a job may take its time.
        drop(jobs);
    }

    /// Another worker.
    fn hire(shared: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let worker = Arc::clone(shared);
        spawn("watch", move || worker.work())?;
        state.workers += 1;
        Ok(())
    }

    /// The poller's thread.
    fn poll(self: Arc<Self>) {
        let mut tokens = Vec::new();
        loop {
            let time = {
                let mut state = self.state();
                if state.closed {
                    return;
                }
                let now = Instant::now();
                let mut until = state.tell_time(now);
                if let Some((since, _)) = state.ready.front().copied() {
                    let waited = now.saturating_duration_since(since);
                    if waited >= PATIENCE && state.idle == 0 && state.workers < MOST_WORKERS {
                        // Where the system gives none, those that are there have to do.
                        let _ = Self::hire(&self, &mut state);
                    }
                    let look_again = now + PATIENCE;
                    until = Some(until.map_or(look_again, |until| until.min(look_again)));
                    self.wake_workers(&state);
                }
                state.sleeps_until = until;
                until.map(|until| until.saturating_duration_since(now))
            };
            let waited = self.epoll.wait(time, |token| tokens.push(token));
            if waited.is_err() {
                // Without events the clock still ticks.
                thread::sleep(PATIENCE);
            }
            let mut state = self.state();
            let now = Instant::now();
            for token in tokens.drain(..) {
                if token == POKE {
                    self.poke.clear();
                    continue;
                }
                let (id, kind) = (token >> KIND_BITS, token & ((1 << KIND_BITS) - 1));
                if let Some(slot) = state.jobs.get_mut(&id) {
                    slot.events.0 |= 1 << kind;
                }
                state.make_ready(id, now);
            }
        }
    }

    /// One is enough while it keeps up; the next one is woken when there is more than that.
    fn wake_workers(&self, state: &State) {
        if state.idle > 0 && !state.ready.is_empty() {
            self.work.notify_one();
        }
    }

    /// A worker's thread.
    fn work(self: Arc<Self>) {
        let mut cpu = ThreadCpu::begin();
        let mut state = self.state();
        loop {
            let Some((since, id)) = state.ready.pop_front() else {
                match self.rest(state) {
                    Some(woken) => state = woken,
                    None => return,
                }
                continue;
            };
            if since.elapsed() >= PATIENCE {
                // There is more than one can do.
                self.wake_workers(&state);
            }
            let Some(slot) = state.jobs.get_mut(&id) else {
                continue;
            };
            let Some(mut job) = slot.job.take() else {
                continue;
            };
            slot.is_ready = false;
            slot.at = None;
            let events = std::mem::take(&mut slot.events);
            drop(state);
            let running = Running {
                shared: &self,
                id,
                done: false,
            };
            let watched = Watched {
                epoll: &self.epoll,
                id,
            };
            let next = job.run(events, &watched);
            running.end();
            job.took(cpu.lap());
            state = self.state();
            if state.closed {
                state.workers -= 1;
                drop(state);
                return;
            }
            self.put_back(&mut state, id, job, next);
        }
    }

    fn put_back(&self, state: &mut State, id: u64, job: Box<dyn Job>, next: Option<Instant>) {
        let Some(slot) = state.jobs.get_mut(&id) else {
            return;
        };
        slot.job = Some(job);
        slot.at = next;
        if slot.is_ready {
            state.ready.push_back((Instant::now(), id));
        }
        if let Some(at) = next {
            state.due.push(Reverse((at, id)));
            let latest = at + SLACK;
            if state.sleeps_until.is_none_or(|until| latest < until) {
                state.sleeps_until = Some(latest);
                self.poke.set();
            }
        }
        if state.removers > 0 {
            self.rested.notify_all();
        }
    }

    /// Waits for something to do; `None`: there is no need for this worker any more.
    fn rest<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Option<MutexGuard<'a, State>> {
        state.idle += 1;
        let (mut state, waited) = self
            .work
            .wait_timeout_while(state, IDLE, |state| state.ready.is_empty() && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        let is_spare = waited.timed_out() && state.workers > LEAST_WORKERS;
        if state.closed || is_spare {
            state.workers -= 1;
            return None;
        }
        Some(state)
    }
}

/// A job that runs. One that panics is gone, and nobody waits for it for ever.
struct Running<'a> {
    shared: &'a Shared,
    id: u64,
    done: bool,
}

impl Running<'_> {
    fn end(mut self) {
        self.done = true;
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.shared.state();
        state.jobs.remove(&self.id);
        // This worker ends with it; the poller hires another one when somebody waits.
        state.workers -= 1;
        drop(state);
        self.shared.rested.notify_all();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.into());
    thread.stack_size(STACK_BYTES).spawn(body).map(|_| ())
}

#[cfg(test)]
mod tests;
