//! Carries out a change of size, whoever wants it: act, read back, commit.
//!
//! ```text
//! order ─► bounds, capacity ─► act (cpu axis ∥ memory axis) ─► read back ─► event, commit
//! ```
//! Each axis is changed by one at a time; the axes do not wait for each other. An order for growth
//! makes a shrink that is under way stop at its next step, and a newer order by hand makes any change
//! stop: the newer target wins, and the older one is told so. Success means that the
//! device, the guest and the host agree; the report says what was reached, never what was sent.

pub mod books;
pub mod capacity;
pub mod cpu;
pub mod guest;
pub mod hooks;
pub mod io;
pub mod memory;
mod order;
pub mod report;
#[cfg(test)]
mod tests;
mod timed;
mod turn;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use concertina_api::event::EventKind;
use concertina_api::instance::InstanceSize;
use concertina_api::policy::step::MEMORY_STEP;
use concertina_api::policy::{Axis, IoBounds, PolicyBounds, Resource};
use concertina_api::vm::{Outcome, ResizeReport, VmDescription};
use concertina_api::{Bounds, Bytes, Cpus};

use self::books::Books;
use self::cpu::CpuAxis;
pub use self::hooks::GuestHooks;
use self::io::{IoRates, IoReports, IoWish};
use self::memory::{Claim, MemoryAxis, Pace};
use self::order::Run;
pub use self::order::{Cause, Commit, Order};
use self::report::{Axes, AxisReport, Timeline, combine};
use self::timed::Acting;
use self::turn::Turns;
use crate::cgroup::{CgroupError, InstanceGroup};
use crate::clock::Moment;
use crate::events::EventLog;
use crate::journal::IntentId;
use crate::measure::Measures;
use crate::plan::cpu::rung;
use crate::plan::memory::{Held, fit};
use crate::policy::Size;
use crate::signals::{Present, procfs};
use crate::usage::UsageLog;
use crate::vmm::VmmClient;

/// How long a guest may take to give back vCPUs that it has not needed for a while.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Changes the size of one instance.
#[derive(Debug)]
pub struct Resizer {
    bounds: Mutex<PolicyBounds>,
    /// Size at which a life of the vmm begins.
    first: Size,
    /// How long a smaller size holds before a rule's vCPUs are removed.
    hold: Mutex<Duration>,
    events: Arc<EventLog>,
    books: Arc<dyn Books>,
    turns: Turns,
    vmm: VmmClient,
    hooks: Option<Arc<dyn GuestHooks>>,
    cpu: Mutex<CpuAxis>,
    memory: Mutex<MemoryAxis>,
    io_bounds: Mutex<IoBounds>,
    /// Limits on I/O are changed by one at a time.
    io: Mutex<()>,
    /// Limits on I/O, as the last change left them.
    rates: Mutex<IoRates>,
    /// Orders that want the memory axis more than a shrink does.
    memory_claims: AtomicU32,
    /// Sizes in force, readable while an axis is being changed.
    size: Mutex<Size>,
    target: Mutex<Size>,
    last: Mutex<Option<ResizeReport<InstanceSize>>>,
    commits: Mutex<Vec<Commit>>,
    /// vCPUs online or coming, and what the memory devices hold: as the last change left them.
    vcpus: Mutex<u32>,
    held: Mutex<Held>,
    /// Process id of the vmm; 0: there is none.
    vmm_pid: AtomicI32,
    /// Where it is written down what is held.
    usage: Option<Arc<UsageLog>>,
    measures: Arc<Measures>,
}

impl Resizer {
    /// For an instance that starts at the lower bounds.
    pub fn new(
        bounds: PolicyBounds,
        hold: Duration,
        vmm: VmmClient,
        group: InstanceGroup,
        events: Arc<EventLog>,
        books: Arc<dyn Books>,
    ) -> Self {
        let first = Size {
            cpus: bounds.cpus.min,
            memory: bounds.memory.min,
        };
        Self {
            bounds: Mutex::new(bounds),
            first,
            hold: Mutex::new(hold),
            events,
            books,
            turns: Turns::default(),
            hooks: None,
            cpu: Mutex::new(CpuAxis::new(vmm.clone(), first.cpus)),
            memory: Mutex::new(MemoryAxis::new(vmm.clone(), group, bounds.memory)),
            vmm,
            io_bounds: Mutex::default(),
            io: Mutex::new(()),
            rates: Mutex::new(IoRates::default()),
            memory_claims: AtomicU32::new(0),
            size: Mutex::new(first),
            target: Mutex::new(first),
            last: Mutex::new(None),
            commits: Mutex::new(Vec::new()),
            vcpus: Mutex::new(rung(first.cpus).vcpus),
            held: Mutex::new(Held {
                plugged: first.memory,
                balloon: Bytes(0),
            }),
            vmm_pid: AtomicI32::new(0),
            usage: None,
            measures: Arc::default(),
        }
    }

    /// How long changes take, and how they end, is counted there.
    pub fn with_measures(self, measures: Arc<Measures>) -> Self {
        Self { measures, ..self }
    }

    /// Limits on I/O: least and most, and those that the devices start with.
    pub fn with_io(self, bounds: IoBounds, first: IoRates) -> Self {
        Self {
            io_bounds: Mutex::new(bounds),
            rates: Mutex::new(first),
            ..self
        }
    }

    /// Each change of the size is written down there.
    pub fn with_usage(self, usage: Arc<UsageLog>) -> Self {
        Self {
            usage: Some(usage),
            ..self
        }
    }

    /// A new life of the vmm begins at the lower bounds, with the ceiling that belongs to them. Limits
    /// on I/O stay: the guest has no part in them.
    pub fn begin_life(&self) -> Result<(), CgroupError> {
        let first = self.first;
        lock(&self.cpu).restart(first.cpus);
        *lock(&self.vcpus) = rung(first.cpus).vcpus;
        let mut memory = lock(&self.memory);
        memory.restart()?;
        *lock(&self.size) = first;
        *lock(&self.target) = first;
        self.keep_memory(&memory);
        self.books.seen(first);
        Ok(())
    }

    /// Takes over a vmm that is at work: its size is what it says of itself.
    pub fn take_over(&self, seen: &VmDescription) {
        let mut cpu = lock(&self.cpu);
        cpu.was_seen(seen);
        *lock(&self.vcpus) = cpu.vcpus();
        let mut memory = lock(&self.memory);
        memory.was_seen(seen);
        *lock(&self.size) = Size {
            cpus: cpu.size(),
            memory: memory.size(),
        };
        *lock(&self.target) = self.size();
        *lock(&self.held) = memory.held();
        *lock(&self.rates) = IoRates::seen(seen);
    }

    /// Takes over a vmm that does not answer: its size is what was last known.
    pub fn assume(&self, size: Size) {
        *lock(&self.size) = size;
        *lock(&self.target) = size;
    }

    /// Other bounds, those of sizes within what the VM was built for, and another time to hold.
    pub fn set_policy(&self, bounds: PolicyBounds, io: IoBounds, hold: Duration) {
        *lock(&self.bounds) = bounds;
        *lock(&self.io_bounds) = io;
        *lock(&self.hold) = hold;
        lock(&self.memory).set_bounds(bounds.memory);
    }

    /// The agent is ending: what is under way stops where it is, and nothing else begins.
    pub fn close(&self) {
        self.turns.close();
    }

    /// The books that it asks.
    pub(crate) fn books(&self) -> &dyn Books {
        self.books.as_ref()
    }

    fn bounds(&self) -> PolicyBounds {
        *lock(&self.bounds)
    }

    fn io_bounds(&self) -> IoBounds {
        *lock(&self.io_bounds)
    }

    fn hold(&self) -> Duration {
        *lock(&self.hold)
    }

    /// Tells which process holds the guest's memory; 0: none.
    pub fn set_vmm_pid(&self, pid: i32) {
        self.vmm_pid.store(pid, Ordering::SeqCst);
    }

    /// What the instance shall have: what an order under way asks for, else what it has.
    pub fn target(&self) -> Size {
        *lock(&self.target)
    }

    /// What the last resize reached.
    pub fn size(&self) -> Size {
        *lock(&self.size)
    }

    /// What the instance has, for a look at its counters.
    pub fn present(&self) -> Present {
        Present {
            cpus: self.size().cpus,
            vcpus: *lock(&self.vcpus),
            held: *lock(&self.held),
        }
    }

    /// Whether a change of this axis is under way; of limits on I/O, of any.
    pub fn is_busy(&self, axis: impl Into<Resource>) -> bool {
        fn is_locked<T>(mutex: &Mutex<T>) -> bool {
            matches!(mutex.try_lock(), Err(TryLockError::WouldBlock))
        }
        match axis.into() {
            Resource::Cpus => is_locked(&self.cpu),
            Resource::Memory => is_locked(&self.memory),
            _ => is_locked(&self.io),
        }
    }

    /// The limits that devices shall have.
    pub fn rates(&self) -> IoRates {
        lock(&self.rates).clone()
    }

    /// Limits that have bounds, for whoever decides.
    pub fn limits(&self) -> BTreeMap<Resource, u64> {
        lock(&self.rates).bounded(&self.io_bounds())
    }

    /// The devices hold something else than the last change reached: the guest has deflated its
    /// balloon by itself.
    pub fn memory_was_seen(&self, seen: &VmDescription) {
        let Ok(mut memory) = self.memory.try_lock() else {
            return;
        };
        memory.was_seen(seen);
        self.keep_memory(&memory);
        self.books.seen(self.size());
    }

    fn keep_memory(&self, memory: &MemoryAxis) {
        lock(&self.size).memory = memory.size();
        lock(&self.target).memory = memory.size();
        *lock(&self.held) = memory.held();
        self.meter();
    }

    /// The size in force is held from here on.
    fn meter(&self) {
        if let Some(usage) = &self.usage {
            usage.resized(&Moment::now(), self.size(), Bytes(self.resident()));
        }
    }

    /// How the last resize ended.
    pub fn last_report(&self) -> Option<ResizeReport<InstanceSize>> {
        lock(&self.last).clone()
    }

    /// Changes that have ended since the last call.
    pub fn take_commits(&self) -> Vec<Commit> {
        std::mem::take(&mut lock(&self.commits))
    }

    /// Carries out an order and waits for its end.
    pub fn carry_out(&self, order: &Order) -> ResizeReport<InstanceSize> {
        let timeline = Timeline::begin();
        let mut asked = InstanceSize {
            cpus: order.cpus,
            memory: order.memory,
            disk_rate: order.disk_rate,
            net_rate: order.net_rate,
        };
        let io_turn = order.is_about_io().then(|| lock(&self.io));
        let wish = match self.check(order) {
            Ok(wish) => wish,
            Err(reason) => return self.refuse(asked, reason, timeline),
        };
        (asked.disk_rate, asked.net_rate) = (wish.disk, wish.net);
        let run = &Run {
            order,
            turn: self.turns.take(order),
            intents: Mutex::default(),
        };
        let before = self.before(&asked);
        let resident_before = self.resident();
        let limits = self.change_rates(order, wish, &timeline);
        drop(io_turn);
        let (cpu, memory) = thread::scope(|scope| {
            // Where it is the only one nobody has to wait for it in another thread.
            if let (Some(target), None) = (order.cpus, order.memory) {
                return (
                    Some(Ok(self.change_cpus(target, run, timeline.clone()))),
                    None,
                );
            }
            let cpu = order.cpus.map(|target| {
                let timeline = timeline.clone();
                thread::Builder::new()
                    .name("resize-cpu".into())
                    .spawn_scoped(scope, move || self.change_cpus(target, run, timeline))
            });
            let memory = order
                .memory
                .map(|target| self.change_memory(target, run, timeline.clone()));
            let cpu = cpu.map(|spawned| match spawned {
                Ok(thread) => thread.join().map_err(|_| "the thread failed".to_owned()),
                Err(error) => Err(error.to_string()),
            });
            (cpu, memory)
        });
        let cpu = cpu.map(|ended| {
            ended.unwrap_or_else(|why| {
                let reason = format!("CPUs could not be changed: {why}");
                AxisReport::refused(self.size().cpus, reason, timeline.clone())
            })
        });
        let axes = Axes {
            cpu,
            memory,
            disk: limits.disk,
            net: limits.net,
        };
        self.count(order, &before, &axes);
        let report = combine(asked, axes, timeline);
        self.finish(run, before, resident_before, report)
    }

    /// Removes vCPUs that a smaller size has not needed for long enough.
    pub fn settle(&self, now: Instant) {
        let mut cpu = lock(&self.cpu);
        let resident = self.resident();
        let vcpus_before = cpu.vcpus();
        let Some(report) = cpu.settle(now, self.hold(), SETTLE_TIMEOUT, Timeline::begin()) else {
            return;
        };
        let vcpus = cpu.vcpus();
        let size = cpu.size();
        drop(cpu);
        lock(&self.size).cpus = size;
        *lock(&self.vcpus) = vcpus;
        let asked = InstanceSize {
            cpus: Some(size),
            memory: None,
            disk_rate: None,
            net_rate: None,
        };
        let timeline = report.timeline.clone();
        let axes = Axes {
            cpu: Some(report),
            ..Axes::default()
        };
        let report = combine(asked, axes, timeline);
        self.events.append(EventKind::Resized {
            cause: "shrink_window".into(),
            note: Some(format!(
                "the smaller size has held: vCPUs {vcpus_before} -> {vcpus}, size unchanged"
            )),
            intents: Vec::new(),
            samples: BTreeMap::new(),
            reserved: None,
            before: asked,
            report,
            resident_before: resident,
            resident_after: resident,
        });
    }

    /// When vCPUs are to be removed next.
    pub fn settle_due(&self) -> Option<Instant> {
        self.cpu.try_lock().ok()?.removal_due()
    }

    /// What there is of that which an order asks for.
    fn before(&self, asked: &InstanceSize) -> InstanceSize {
        let (size, rates) = (self.size(), self.rates());
        InstanceSize {
            cpus: asked.cpus.map(|_| size.cpus),
            memory: asked.memory.map(|_| size.memory),
            disk_rate: asked.disk_rate.and_then(|wish| rates.disk_before(wish)),
            net_rate: asked.net_rate.and_then(|wish| rates.net_before(wish)),
        }
    }

    fn change_rates(&self, order: &Order, wish: IoWish, timeline: &Timeline) -> IoReports {
        if wish == IoWish::default() {
            return IoReports::default();
        }
        let before = self.rates();
        let mut after = before.clone();
        let reports = io::change(&self.vmm, wish, &mut after, timeline);
        let commits = io::commits(order, &wish, &self.io_bounds(), (&before, &after));
        *lock(&self.rates) = after;
        lock(&self.commits).extend(commits);
        reports
    }

    fn change_cpus(&self, target: Cpus, run: &Run<'_>, mut timeline: Timeline) -> AxisReport<Cpus> {
        let order = run.order;
        let asked = u64::from(target.milli());
        let refused = |why, timeline| {
            let size = self.size().cpus;
            let milli = u64::from(size.milli());
            self.commit(Axis::Cpus, order, None, [milli, asked, milli]);
            AxisReport::refused(size, why, timeline)
        };
        let left = order.timeout.saturating_sub(timeline.began().elapsed());
        if let Some(why) = self.objection(Axis::Cpus, asked, left, &mut timeline) {
            return refused(why, timeline);
        }
        let mut cpu = lock(&self.cpu);
        if let Some(why) = self.turns.overtaken(Axis::Cpus, run.turn) {
            return refused(why, timeline);
        }
        let before = cpu.size();
        let from = u64::from(before.milli());
        let intent = match self.begin(Axis::Cpus, from, asked, run) {
            Ok(intent) => intent,
            Err(why) => return refused(why, timeline),
        };
        lock(&self.target).cpus = target;
        {
            let mut vcpus = lock(&self.vcpus);
            *vcpus = (*vcpus).max(rung(target).vcpus);
        }
        let hold = (!order.is_manual()).then(|| self.hold());
        let left = order.timeout.saturating_sub(timeline.began().elapsed());
        let acting = Acting::begin(Axis::Cpus, from, asked, &timeline);
        let report = cpu.go_to(target, hold, left, timeline);
        acting.end(&self.measures, &report.timeline);
        lock(&self.size).cpus = report.got;
        lock(&self.target).cpus = report.got;
        let got = u64::from(report.got.milli());
        self.end(intent, Axis::Cpus, [from, asked, got], &report);
        self.meter();
        *lock(&self.vcpus) = cpu.vcpus();
        self.commit(Axis::Cpus, order, intent, [from, asked, got]);
        self.tell_guest(Axis::Cpus, from, got);
        report
    }

    fn change_memory(
        &self,
        target: Bytes,
        run: &Run<'_>,
        mut timeline: Timeline,
    ) -> AxisReport<Bytes> {
        let order = run.order;
        let refused = |why, timeline| {
            let size = self.size().memory;
            let sizes = [size.get(), target.get(), size.get()];
            self.commit(Axis::Memory, order, None, sizes);
            AxisReport::refused(size, why, timeline)
        };
        let left = order.timeout.saturating_sub(timeline.began().elapsed());
        if let Some(why) = self.objection(Axis::Memory, target.get(), left, &mut timeline) {
            return refused(why, timeline);
        }
        // A shrink under way looks at the claims after each step, and gives way.
        let claim = order.is_manual() || target > self.size().memory;
        if claim {
            self.memory_claims.fetch_add(1, Ordering::SeqCst);
        }
        let mut memory = lock(&self.memory);
        if claim {
            self.memory_claims.fetch_sub(1, Ordering::SeqCst);
        }
        if let Some(why) = self.turns.overtaken(Axis::Memory, run.turn) {
            return refused(why, timeline);
        }
        let before = memory.size();
        let fitted = fit(target, &self.bounds().memory, Bytes(MEMORY_STEP));
        let (from, to) = (before.get(), fitted.size.get());
        let intent = match self.begin(Axis::Memory, from, to, run) {
            Ok(intent) => intent,
            Err(why) => return refused(why, timeline),
        };
        lock(&self.target).memory = fitted.size;
        let pace = if order.is_manual() {
            Pace::AtOnce
        } else {
            Pace::InSteps
        };
        let left = order.timeout.saturating_sub(timeline.began().elapsed());
        let deadline = Instant::now() + left;
        let claim = || self.memory_claim(run.turn);
        let acting = Acting::begin(Axis::Memory, from, to, &timeline);
        let mut report = memory.go_to(fitted.size, pace, deadline, &claim, timeline);
        acting.end(&self.measures, &report.timeline);
        if let Some(note) = fitted.note {
            report.reason = Some(
                report
                    .reason
                    .map_or(note.clone(), |why| format!("{note}; {why}")),
            );
        }
        // What the devices hold: the guest may count less of it as its own.
        let got = memory.size().get();
        self.end(intent, Axis::Memory, [from, to, got], &report);
        self.keep_memory(&memory);
        self.commit(Axis::Memory, order, intent, [from, target.get(), got]);
        self.tell_guest(Axis::Memory, from, got);
        report
    }

    /// Who wants the memory axis more than the change of this turn.
    fn memory_claim(&self, turn: u64) -> Claim {
        if self.turns.is_closed() {
            Claim::Closing
        } else if self.turns.overtaken(Axis::Memory, turn).is_some() {
            Claim::Newer
        } else if self.memory_claims.load(Ordering::SeqCst) > 0 {
            Claim::Larger
        } else {
            Claim::None
        }
    }

    /// For whoever decides. `sizes`: before, asked for, after.
    fn commit(&self, axis: Axis, order: &Order, intent: Option<IntentId>, sizes: [u64; 3]) {
        let [before, asked, after] = sizes;
        lock(&self.commits).push(Commit {
            axis: axis.into(),
            cause: order.cause.clone(),
            before,
            asked,
            after,
            intent,
        });
    }

    /// An order outside the bounds is refused whole; nothing of it is begun.
    fn check(&self, order: &Order) -> Result<IoWish, String> {
        fn inside<T: Ord + Copy + std::fmt::Display>(
            what: &str,
            asked: Option<T>,
            bounds: Bounds<T>,
        ) -> Result<(), String> {
            match asked {
                Some(size) if !bounds.contains(size) => Err(format!(
                    "{what} {size} is outside the bounds of this instance: {} to {} is allowed",
                    bounds.min, bounds.max
                )),
                _ => Ok(()),
            }
        }
        let bounds = self.bounds();
        inside("CPU count", order.cpus, bounds.cpus)?;
        inside("Memory", order.memory, bounds.memory)?;
        IoWish::of(order, &self.io_bounds(), &self.rates())
    }

    fn refuse(
        &self,
        asked: InstanceSize,
        reason: String,
        mut timeline: Timeline,
    ) -> ResizeReport<InstanceSize> {
        let size = self.size();
        timeline.note("total");
        let report = ResizeReport {
            outcome: Outcome::Refused,
            asked,
            got: InstanceSize {
                cpus: asked.cpus.map(|_| size.cpus),
                memory: asked.memory.map(|_| size.memory),
                disk_rate: None,
                net_rate: None,
            },
            reason: Some(reason),
            ost: None,
            timeline_ms: timeline.into_steps(),
        };
        *lock(&self.last) = Some(report.clone());
        report
    }

    /// Says what happened, once, to the events and to whoever asks for the last resize.
    fn finish(
        &self,
        run: &Run<'_>,
        before: InstanceSize,
        resident_before: u64,
        report: ResizeReport<InstanceSize>,
    ) -> ResizeReport<InstanceSize> {
        let order = run.order;
        let kind = EventKind::Resized {
            cause: order.cause.text(),
            note: order.note.clone(),
            before,
            intents: run.numbers(),
            samples: order.samples.clone(),
            reserved: run.reserved(),
            report: report.clone(),
            resident_before,
            resident_after: self.resident(),
        };
        let version = matches!(order.cause, Cause::Rules(_)).then_some(order.policy_version);
        self.events.append_of(version, kind);
        *lock(&self.last) = Some(report.clone());
        report
    }

    /// Anonymous memory of the vmm that is resident on the host, in bytes, of which all but some
    /// MiB is guest RAM; 0 when there is no vmm.
    pub(crate) fn resident(&self) -> u64 {
        procfs::resident_anonymous(self.vmm_pid.load(Ordering::SeqCst)).unwrap_or(0)
    }
}

/// A thread that panicked leaves its data whole: each change of a size is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
