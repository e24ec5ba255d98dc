//! The job that looks, decides, and lets resizes be carried out, for one life of the vmm.
//!
//! It runs once a period, and at once when the kernel's pressure trigger fires, the guest says that
//! something is urgent, a resize has ended, or the life is over. A resize runs in a thread of its own,
//! so that no axis makes another one wait, nor the looking; limits on I/O, which take no time, share one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use concertina_api::event::EventKind;
use concertina_api::instance::{InstanceState, ThresholdStatus};
use concertina_api::policy::{
    Axis, Device, Direction, Metric, Mode, Policy, Resource, Rule, Source,
};
use concertina_api::vm::{Publishing, RunState, VmDescription};

use super::core::{Core, InForce};
use super::disks::DiskWatch;
use super::needs;
use super::news::News;
use super::recommend::Recommendations;
use super::remember::remember;
use crate::clock::monotonic_ms;
use crate::measure::{Phase, Way};
use crate::plan::memory::Held as HeldMemory;
use crate::policy::window::STALE_PERIODS;
use crate::policy::{
    Decision, MemoryShort, Observations, PolicyState, Sample, Size, Wish, decide_in_place,
    rule_texts,
};
use crate::pool::{Events, Interest, Job, JobId, Watched};
use crate::resize::guest::Said;
use crate::resize::{Cause, Order};
use crate::signals::kvm::{DEBUGFS_KVM, KvmStatistics};
use crate::signals::psi::Trigger;
use crate::signals::published::Published;
use crate::signals::{IoSampler, Present, Sampler};

/// Deadline of growth that a rule asks for.
const GROW_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline of a shrink that a rule asks for: nobody waits for it.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(60);
/// A guest without any driver that would say so is taken to be up after this long.
const BOOT_GRACE: Duration = Duration::from_secs(30);
/// Shortest time between two looks: an early wake-up does not make a busy loop.
const LEAST_TICK: Duration = Duration::from_millis(20);
/// How long before a look the vmm asks its guest for what is looked at, at most.
const PUBLISH_LEAD: Duration = Duration::from_millis(100);
/// A record that was not written for so many periods is of a vmm that does not publish any more.
const PUBLISH_PERIODS: u64 = 3;
/// Share of its window that an instance has to wait before the kernel wakes us, in percent.
const TRIGGER_PERCENT: u64 = 10;

/// The watch over one life.
pub(super) struct Watch {
    core: Arc<Core>,
    over: Arc<AtomicBool>,
    job: Option<JobId>,
}

/// What wakes it besides the time.
const WAKEUP: u8 = 0;
const TRIGGER: u8 = 1;

impl Watch {
    /// Starts watching. Without it an instance runs on at the size that it has, and that is said.
    pub(super) fn begin(core: &Arc<Core>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let added = core.owner.pool.add(Box::new(Watching {
            core: Arc::clone(core),
            over: Arc::clone(&over),
            watcher: None,
        }));
        if let Err(error) = &added {
            eprintln!("concertina: Instance {} is not watched: {error}", core.name);
        }
        Self {
            core: Arc::clone(core),
            over,
            job: added.ok(),
        }
    }

    /// Ends it, with the resizes that it has begun.
    pub(super) fn end(self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(job) = self.job {
            drop(self.core.owner.pool.remove(job));
        }
    }
}

/// The job.
struct Watching {
    core: Arc<Core>,
    over: Arc<AtomicBool>,
    /// Absent until the vmm has said which threads to look at.
    watcher: Option<Watcher>,
}

impl Job for Watching {
    fn run(&mut self, events: Events, watched: &Watched<'_>) -> Option<Instant> {
        if self.over.load(Ordering::SeqCst) {
            return None;
        }
        let next = match &mut self.watcher {
            Some(watcher) => watcher.turn(events, watched),
            None => match Watcher::begin(&self.core) {
                None => Instant::now() + LEAST_TICK,
                Some(watcher) => {
                    watcher.watch(watched);
                    self.watcher.insert(watcher).next
                }
            },
        };
        Some(next)
    }

    fn took(&self, cpu: Duration) {
        self.core.measures.spent(cpu);
    }
}

/// A resize in its thread.
struct Running {
    thread: JoinHandle<()>,
    direction: Direction,
}

/// What the watch knows.
struct Watcher {
    core: Arc<Core>,
    in_force: Arc<InForce>,
    /// The rules in force as text, in their order.
    texts: Vec<String>,
    /// The shortest period of any of them.
    period_ms: u64,
    state: PolicyState,
    /// When the next period is over.
    next: Instant,
    sampler: Sampler,
    triggers: Vec<Trigger>,
    cpus: Option<Running>,
    memory: Option<Running>,
    /// Limits on I/O, all of them one after the other.
    io: Option<JoinHandle<()>>,
    disk_load: IoSampler,
    net_load: IoSampler,
    /// What the devices did up to the last look at them.
    io_samples: BTreeMap<Metric, Sample>,
    news: News,
    recommendations: Recommendations,
    began: Instant,
    guest_is_up: bool,
    is_braked: bool,
    balloon_before: u64,
    /// What the vmm publishes; `None`: it is asked.
    published: Option<Published>,
    /// When the size has changed last, by the clock of what is published.
    changed_ms: u64,
    disks: DiskWatch,
}

impl Watcher {
    /// Learns which threads to look at; `None` when the vmm does not say so.
    fn begin(core: &Arc<Core>) -> Option<Self> {
        let seen = core.vmm.describe().ok()?;
        core.answered(&seen);
        let mut sampler = sampler_of(Path::new("/proc"), &seen, core.group.path());
        sampler.rebase();
        let in_force = core.policy();
        core.set_thresholds(resting(&in_force.policy));
        let mut watcher = Self {
            core: Arc::clone(core),
            state: core.take_remembered().unwrap_or_default(),
            sampler,
            triggers: triggers(&in_force.policy, core.group.path()),
            texts: rule_texts(&in_force.policy),
            period_ms: in_force.policy.shortest_period_ms(),
            next: Instant::now() + tick(in_force.policy.shortest_period_ms()),
            in_force,
            cpus: None,
            memory: None,
            io: None,
            disk_load: IoSampler::new(Device::Disk),
            net_load: IoSampler::new(Device::Net),
            io_samples: BTreeMap::new(),
            news: News::default(),
            recommendations: Recommendations::default(),
            began: Instant::now(),
            guest_is_up: false,
            is_braked: false,
            balloon_before: 0,
            published: None,
            changed_ms: monotonic_ms(),
            disks: DiskWatch::new(&seen.disks),
        };
        watcher.have_published();
        Some(watcher)
    }

    /// Has the vmm publish what is looked at, a moment before each look. One that does not is asked.
    fn have_published(&mut self) {
        self.published = None;
        let bounds = self.policy().bounds;
        if bounds.memory.min == bounds.memory.max {
            return;
        }
        let period = tick(self.period_ms);
        let lead = PUBLISH_LEAD.min(period / 5);
        let mut first = self.next.saturating_duration_since(Instant::now());
        if first < lead {
            first += period;
        }
        let wish = Publishing {
            period_ms: millis(period),
            first_ms: millis(first.saturating_sub(lead)),
        };
        if self.core.vmm.publish(&wish).is_ok() {
            self.published = Some(Published::new(&self.core.paths.counters));
        }
    }

    /// Is woken by what cannot wait. Where the kernel does not tell, the periodic look sees the same a
    /// little later.
    fn watch(&self, watched: &Watched<'_>) {
        let wakeup = self.core.commit_wakeup.as_raw_fd();
        let _ = watched.watch(wakeup, Interest::Readable, WAKEUP);
        for trigger in &self.triggers {
            let _ = watched.watch(trigger.as_raw_fd(), Interest::Urgent, TRIGGER);
        }
    }

    /// Does what there is to do; gives the time of the next turn.
    fn turn(&mut self, events: Events, watched: &Watched<'_>) -> Instant {
        if events.has(WAKEUP) {
            self.core.commit_wakeup.clear();
        }
        let now = Instant::now();
        let due = now >= self.next;
        let period = tick(self.period_ms);
        while self.next <= now {
            self.next += period;
        }
        let changed = self.take_commits();
        if self.take_policy() {
            self.watch(watched);
            self.next = self.next.min(now + tick(self.period_ms));
            self.have_published();
        }
        if due {
            self.look_at_disks(now);
            self.look_at_networks(now);
        }
        let alarm = self.core.channel.take_alarm();
        if due || changed || alarm || events.has(TRIGGER) {
            self.look(due && !changed);
        }
        self.settle(now);
        self.core.keep_usage();
        let settle = self.core.resizer.settle_due();
        // What is due and has to wait for a resize is not asked for all the time.
        let settle = settle.map(|due| due.max(now + LEAST_TICK));
        settle.map_or(self.next, |due| due.min(self.next))
    }

    fn policy(&self) -> &Policy {
        &self.in_force.policy
    }

    /// Goes on by another policy when there is one. What is remembered of the rules that stay, stays.
    fn take_policy(&mut self) -> bool {
        let in_force = self.core.policy();
        if in_force.version == self.in_force.version {
            return false;
        }
        self.triggers = triggers(&in_force.policy, self.core.group.path());
        self.texts = rule_texts(&in_force.policy);
        self.period_ms = in_force.policy.shortest_period_ms();
        self.core.set_thresholds(resting(&in_force.policy));
        self.in_force = in_force;
        true
    }

    /// Looks at everything once, decides, and begins what was decided. `in_time`: what was published
    /// for this moment is good enough; else something has happened since.
    fn look(&mut self, in_time: bool) {
        if self.core.state() != InstanceState::Running {
            return;
        }
        if !self.guest_is_up && !self.sees_guest_up() {
            return;
        }
        let began = Instant::now();
        let now_ms = self.core.uptime_ms();
        let size = self.core.resizer.size();
        let present = self.core.resizer.present();
        let mut seen = self.sampler.look(&present, now_ms);
        if is_still(&seen) && self.is_paused() {
            // A guest that is held has no load that one could know.
            return;
        }
        self.look_at_ceiling();
        self.core.channel.observe(now_ms, &mut seen);
        let bounds = self.policy().bounds;
        if bounds.memory.min != bounds.memory.max {
            self.look_at_guest(&present, now_ms, in_time, &mut seen);
        }
        seen.cpus_busy = self.is_busy(Axis::Cpus);
        seen.memory_busy = self.is_busy(Axis::Memory);
        let io_runs = self.io.as_ref().is_some_and(|thread| !thread.is_finished());
        seen.io_busy = io_runs || self.core.resizer.is_busy(Resource::DiskBytes);
        seen.limits = self.core.resizer.limits();
        seen.samples.extend(self.io_samples.clone());
        let (policy, texts) = (&self.in_force.policy, &self.texts);
        let mut decision = decide_in_place(policy, texts, &mut self.state, &seen, &size, now_ms);
        self.core.measures.looked(&seen);
        let measures = &self.core.owner.measures;
        measures.look.observe(began.elapsed());
        measures.held(&decision.held);
        self.report(&mut decision, &size, &seen);
        needs::tell(self.core.resizer.books(), &seen, &size, &bounds);
        match self.policy().mode {
            Mode::Act => self.act(decision, &seen, began),
            Mode::Recommend => self.recommend(&decision, &size),
        }
        self.core
            .set_observed(seen.samples, self.period_ms * STALE_PERIODS);
    }

    /// Whether the guest has come so far that it can be resized. Before that its rules rest: a
    /// booting kernel is busy and takes no vCPU, and what it does says nothing about its load.
    fn sees_guest_up(&mut self) -> bool {
        let Ok(seen) = self.core.vmm.describe() else {
            return false;
        };
        let driver_says_so = seen.balloon.driver_ready || seen.memory.driver_ready;
        self.guest_is_up = driver_says_so || self.began.elapsed() >= BOOT_GRACE;
        if self.guest_is_up {
            self.sampler.rebase();
        }
        // The first look is a period later: there is no rate yet.
        false
    }

    /// Says when the kernel begins to slow the vmm down for taking more memory than was promised.
    fn look_at_ceiling(&mut self) {
        let braked = self.sampler.look_at_ceiling().unwrap_or(0);
        let began = braked > 0 && !self.is_braked;
        self.is_braked = braked > 0;
        if began {
            self.core.events.append(EventKind::Held {
                cause: "memory ceiling".into(),
                why: format!(
                    "braked: more memory is taken than was promised, and the cgroup's limits were \
                     met {braked} times since the last look"
                ),
            });
        }
    }

    /// Says when a disk's image or device begins to fail, and measures what the disks do.
    fn look_at_disks(&mut self, now: Instant) {
        if self.disks.is_empty() {
            return;
        }
        // What cannot be asked now is seen the next time: the counters only grow.
        let Ok(seen) = self.core.vmm.disks() else {
            return;
        };
        for event in self.disks.look(&seen, now) {
            self.core.events.append(event);
        }
        let load = self
            .disk_load
            .look_at_disks(&seen, now, self.core.uptime_ms());
        self.take_samples(Source::Disks, load);
    }

    /// What a look did not tell is unknown, whatever the look before has told.
    fn take_samples(&mut self, source: Source, load: BTreeMap<Metric, Sample>) {
        self.io_samples
            .retain(|metric, _| metric.source() != source);
        self.io_samples.extend(load);
    }

    /// Says when the program behind a network interface has ended, and measures what the interfaces do
    /// where a rule looks at that.
    fn look_at_networks(&mut self, now: Instant) {
        let looks = |rule: &Rule| rule.metric().source() == Source::Networks;
        if self.policy().rules.iter().any(looks)
            && let Ok(seen) = self.core.vmm.nets()
        {
            let load = self
                .net_load
                .look_at_nets(&seen, now, self.core.uptime_ms());
            self.take_samples(Source::Networks, load);
        }
        let ended = self.core.net_programs.ended();
        // It also ends when the vmm does, and that is said in another way.
        if ended.is_empty() || self.core.vmm.describe().is_err() {
            return;
        }
        for (net, reason) in ended {
            self.core.events.append(EventKind::NetDown { net, reason });
        }
    }

    fn is_paused(&self) -> bool {
        let seen = self.core.vmm.describe();
        seen.is_ok_and(|seen| seen.state == RunState::Paused)
    }

    fn look_at_guest(
        &mut self,
        present: &Present,
        now_ms: u64,
        in_time: bool,
        seen: &mut Observations,
    ) {
        let published = if in_time { self.published() } else { None };
        let (said, balloon) = match published {
            Some((said, balloon)) => (Some(said), Some(balloon)),
            None => {
                let answered = self.core.vmm.balloon_statistics().ok();
                (answered.as_ref().map(Said::from), None)
            }
        };
        self.sampler
            .look_at_guest(said.as_ref(), present, now_ms, seen);
        self.look_for_deflation(&present.held, balloon, seen);
        if let Some(short) = seen.memory_short {
            self.core.events.append(EventKind::GuestMemoryShort {
                evidence: short.as_str().into(),
            });
        }
    }

    /// What the vmm has published since the size has changed last: the guest's statistics, and the
    /// balloon in bytes. `None`: it has to be asked.
    fn published(&mut self) -> Option<(Said, u64)> {
        let is_changing = self.core.resizer.is_busy(Resource::Memory)
            || self
                .memory
                .as_ref()
                .is_some_and(|run| !run.thread.is_finished());
        if is_changing {
            return None;
        }
        let max_age_ms = self.period_ms * PUBLISH_PERIODS;
        let now_ms = monotonic_ms();
        let counters = self.published.as_mut()?.read(now_ms, max_age_ms)?;
        // Figures of two sizes would make a share of neither.
        if counters
            .statistics_ms
            .is_some_and(|at| at <= self.changed_ms)
        {
            return None;
        }
        let said = Said::published(&counters, now_ms);
        Some((said, counters.balloon.get()))
    }

    /// A balloon that got smaller while nobody asked for it was deflated by a guest out of memory.
    /// `published`: its size, if it is known without asking.
    fn look_for_deflation(
        &mut self,
        held: &HeldMemory,
        published: Option<u64>,
        seen: &mut Observations,
    ) {
        let balloon = held.balloon.get();
        let asked_for = self.balloon_before;
        self.balloon_before = balloon;
        if balloon == 0 || balloon != asked_for || self.is_busy(Axis::Memory) {
            return;
        }
        if published.is_some_and(|published| published >= balloon) {
            return;
        }
        let Ok(now) = self.core.vmm.describe() else {
            return;
        };
        if now.balloon.actual.get() < balloon {
            self.core.resizer.memory_was_seen(&now);
            self.balloon_before = now.balloon.actual.get();
            seen.memory_short = seen.memory_short.or(Some(MemoryShort::DeflateOnOom));
        }
    }

    /// A resize of this axis is under way that a further wish cannot interrupt. A shrink of memory
    /// can be: growth makes it give way.
    fn is_busy(&self, axis: Axis) -> bool {
        let running = match axis {
            Axis::Cpus => &self.cpus,
            Axis::Memory => &self.memory,
        };
        match running
            .as_ref()
            .filter(|running| !running.thread.is_finished())
        {
            Some(running) => axis == Axis::Cpus || running.direction == Direction::Grow,
            None => self.core.resizer.is_busy(axis),
        }
    }

    /// Begins the resizes that were decided.
    fn act(&mut self, decision: Decision, seen: &Observations, began: Instant) {
        if !seen.io_busy {
            self.act_on_io(decision.io, seen);
        }
        // What waits on the host for room is given up when it is not wanted any more.
        let grows = |direction: Option<Direction>| direction == Some(Direction::Grow);
        if !grows(decision.cpus.as_ref().map(|wish| wish.direction)) {
            self.core.resizer.books().content(Axis::Cpus);
        }
        if !grows(decision.memory.as_ref().map(|wish| wish.direction)) {
            self.core.resizer.books().content(Axis::Memory);
        }
        if let Some(wish) = decision.cpus.filter(|_| !seen.cpus_busy) {
            let (order, direction) =
                self.order(wish, seen, |order, target| order.cpus = Some(target));
            self.cpus = self.carry_out(order, (Axis::Cpus, direction), began);
        }
        if let Some(wish) = decision.memory.filter(|_| !seen.memory_busy) {
            let shrinking = self
                .memory
                .as_ref()
                .is_some_and(|run| !run.thread.is_finished());
            if shrinking && wish.direction == Direction::Shrink {
                return;
            }
            let (order, direction) =
                self.order(wish, seen, |order, target| order.memory = Some(target));
            self.memory = self.carry_out(order, (Axis::Memory, direction), began);
        }
    }

    /// Begins the changes of limits that were decided.
    fn act_on_io(&mut self, wishes: BTreeMap<Resource, Wish<u64>>, seen: &Observations) {
        let with = |(resource, wish): (Resource, Wish<u64>)| {
            self.order(wish, seen, |order, target| {
                order.io = Some((resource, target))
            })
            .0
        };
        let orders: Vec<Order> = wishes.into_iter().map(with).collect();
        if !orders.is_empty() {
            self.io = self.carry_out_all(orders);
        }
    }

    fn order<T>(
        &self,
        wish: Wish<T>,
        seen: &Observations,
        put: impl FnOnce(&mut Order, T),
    ) -> (Order, Direction) {
        let direction = wish.direction;
        let timeout = match direction {
            Direction::Grow => GROW_TIMEOUT,
            Direction::Shrink => SHRINK_TIMEOUT,
        };
        let causes = &wish.causes;
        let rules = self.policy().rules.iter();
        let samples = rules
            .filter(|rule| causes.contains(&rule.to_string()))
            .filter_map(|rule| Some((rule.metric(), seen.samples.get(rule.metric())?)))
            .map(|(metric, sample)| (metric.to_string(), sample.value))
            .collect();
        let mut order = Order {
            note: (!wish.notes.is_empty()).then(|| wish.notes.join("; ")),
            cause: Cause::Rules(wish.causes),
            samples,
            ..Order::manual(None, None, timeout).by_policy(self.in_force.version)
        };
        put(&mut order, wish.target);
        (order, direction)
    }

    /// Says what was decided, and does nothing.
    fn recommend(&mut self, decision: &Decision, size: &Size) {
        let rates = self.core.resizer.rates();
        for event in self.recommendations.of(decision, size, &rates) {
            self.say(event);
        }
        self.core.set_recommended(self.recommendations.size());
    }

    /// `began`: when the look began that led to this.
    fn carry_out(
        &self,
        mut order: Order,
        (axis, direction): (Axis, Direction),
        began: Instant,
    ) -> Option<Running> {
        order.sampled = Some(began);
        let way = Way::new(axis, direction);
        self.core
            .owner
            .measures
            .took(way, Phase::Decide, began.elapsed());
        let thread = self.carry_out_all(vec![order])?;
        Some(Running { thread, direction })
    }

    /// Carries out orders one after the other, in a thread of their own.
    fn carry_out_all(&self, orders: Vec<Order>) -> Option<JoinHandle<()>> {
        let core = Arc::clone(&self.core);
        let spawned = thread::Builder::new().name("resize".into()).spawn(move || {
            for order in orders {
                core.resizer.carry_out(&order);
            }
            core.commit_wakeup.set();
        });
        match spawned {
            Ok(thread) => Some(thread),
            // The rule goes on breaching, so the next look tries again.
            Err(error) => {
                eprintln!("concertina: A resize could not begin: {error}");
                None
            }
        }
    }

    /// Tells the decision how resizes ended. Says whether there were any.
    fn take_commits(&mut self) -> bool {
        let commits = self.core.resizer.take_commits();
        let now_ms = self.core.uptime_ms();
        let in_force = Arc::clone(&self.in_force);
        for commit in &commits {
            remember(&mut self.state, &in_force.policy, commit, now_ms);
        }
        if !commits.is_empty() {
            self.core
                .resizer
                .books()
                .remember(in_force.version, &self.state);
            self.sampler.rebase();
            self.changed_ms = monotonic_ms();
        }
        !commits.is_empty()
    }

    fn settle(&mut self, now: Instant) {
        let due = self.core.resizer.settle_due().is_some_and(|due| due <= now);
        if !due || self.is_busy(Axis::Cpus) {
            return;
        }
        let core = Arc::clone(&self.core);
        let spawned = thread::Builder::new().name("settle".into()).spawn(move || {
            core.resizer.settle(now);
            core.commit_wakeup.set();
        });
        self.cpus = spawned.ok().map(|thread| Running {
            thread,
            direction: Direction::Shrink,
        });
    }

    /// Puts what has changed into the events and the status.
    fn report(&mut self, decision: &mut Decision, size: &Size, seen: &Observations) {
        let policy = &self.in_force.policy;
        let is_least = |resource: Resource| {
            policy.bounds_of(resource).map(|bounds| bounds.min) == seen.present(size, resource)
        };
        for event in self.news.of(decision, is_least) {
            self.say(event);
        }
        self.core
            .set_thresholds(std::mem::take(&mut decision.thresholds));
        let scaling = self.state.scaling(self.policy(), self.core.uptime_ms());
        self.core.set_scaling(scaling);
    }

    /// An event that the policy has caused.
    fn say(&self, event: EventKind) {
        self.core
            .events
            .append_of(Some(self.in_force.version), event);
    }
}

impl Drop for Watcher {
    /// The resizes that it has begun end with it.
    fn drop(&mut self) {
        let resizes = [self.cpus.take(), self.memory.take()].into_iter().flatten();
        for thread in resizes.map(|running| running.thread).chain(self.io.take()) {
            let _ = thread.join();
        }
    }
}

/// Not a nanosecond of vCPU time since the look before: idle guests have some.
fn is_still(seen: &Observations) -> bool {
    let cpu = seen.samples.get(&Metric::Cpu);
    cpu.is_some_and(|sample| sample.value == 0.0)
}

/// How the rules stand before anything was looked at.
fn resting(policy: &Policy) -> Vec<ThresholdStatus> {
    let unknown = |rule: &Rule| ThresholdStatus {
        rule: rule.to_string(),
        state: "unknown".into(),
        ..ThresholdStatus::default()
    };
    policy.rules.iter().map(unknown).collect()
}

/// The time between two looks: the shortest period of any rule.
fn tick(period_ms: u64) -> Duration {
    Duration::from_millis(period_ms).max(LEAST_TICK)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn sampler_of(proc: &Path, seen: &VmDescription, group: &Path) -> Sampler {
    let mut threads = seen.vcpus.threads.clone();
    threads.sort_by_key(|thread| thread.vcpu);
    let tids: Vec<i32> = threads.iter().map(|thread| thread.tid).collect();
    let kvm = KvmStatistics::find(Path::new(DEBUGFS_KVM), seen.pid);
    Sampler::new(proc, seen.pid, &tids, group).with_kvm(kvm)
}

/// Pressure triggers for the metrics that rules look at. Where the kernel takes none, the periodic
/// look sees the same a little later.
fn triggers(policy: &Policy, group: &Path) -> Vec<Trigger> {
    let watched = |metric: Metric| policy.rules.iter().any(|rule| *rule.metric() == metric);
    let files = [
        (Metric::MemoryPressure, "memory.pressure"),
        (Metric::CpuPressure, "cpu.pressure"),
        (Metric::IoPressure, "io.pressure"),
    ];
    files
        .into_iter()
        .filter(|(metric, _)| watched(metric.clone()))
        .filter_map(|(_, file)| Trigger::new(&group.join(file), TRIGGER_PERCENT).ok())
        .collect()
}
