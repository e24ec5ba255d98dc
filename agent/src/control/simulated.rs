//! A host without VMs: launches take no time, sizes change as asked, events and usage are written down in
//! memory as a real host writes them to its files. For tests and for load.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use concertina_api::event::{Event, EventKind};
use concertina_api::instance::{
    CpuStatus, ExitReason, InstanceResize, InstanceSize, InstanceState, InstanceStatus, IoStatus,
    MemoryStatus,
};
use concertina_api::link::{
    CapacityShort, HostCapacity, HostInstance, HostPhase, LaunchOrder, Placement,
};
use concertina_api::policy::Policy;
use concertina_api::vm::{Outcome, ResizeReport};
use concertina_api::{Bytes, Cpus, Quota};

use super::Host;
use crate::clock::{Moment, wall_text};
use crate::usage::{GENESIS, Reason, UsageRecord, seal_line};

/// An instance that is not there.
#[derive(Debug, Clone)]
struct Simulated {
    phase: HostPhase,
    policy: Policy,
    policy_version: u64,
    cpus: Cpus,
    memory: Bytes,
    begun: Moment,
    counted: Moment,
    events: Vec<Event>,
    usage: Vec<String>,
    head: String,
    capacity_short: Option<CapacityShort>,
    resizes: BTreeMap<String, ResizeReport<InstanceSize>>,
}

#[derive(Debug, Default)]
struct Inner {
    instances: BTreeMap<Placement, Simulated>,
    launches: BTreeMap<Placement, u32>,
    disks: BTreeMap<String, u64>,
    /// Why the next launches fail.
    failing: Option<String>,
}

/// The host.
#[derive(Debug)]
pub struct SimulatedHost {
    capacity: HostCapacity,
    inner: Mutex<Inner>,
}

impl SimulatedHost {
    /// A host that can promise so much.
    pub fn new(cpus: Cpus, memory: Bytes) -> Self {
        Self {
            capacity: HostCapacity {
                cpus,
                memory,
                free_cpus: cpus,
                free_memory: memory,
                ..HostCapacity::default()
            },
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets launches fail with this sentence, or succeed again.
    pub fn fail_launches(&self, why: Option<&str>) {
        self.inner().failing = why.map(str::to_owned);
    }

    /// How often each placement was launched.
    pub fn launches(&self) -> BTreeMap<Placement, u32> {
        self.inner().launches.clone()
    }

    /// Placements whose guest runs.
    pub fn running(&self) -> Vec<Placement> {
        let inner = self.inner();
        let runs = inner
            .instances
            .iter()
            .filter(|(_, i)| i.phase == HostPhase::Running);
        runs.map(|(placement, _)| placement.clone()).collect()
    }

    /// Placements of one instance that have a trace here, in any phase.
    pub fn instances_of(&self, id: &str) -> usize {
        self.inner()
            .instances
            .keys()
            .filter(|placement| placement.id == id)
            .count()
    }

    /// Whether nothing of any placement is left, no disk either.
    pub fn is_clean(&self) -> bool {
        let inner = self.inner();
        inner.instances.is_empty() && inner.disks.is_empty()
    }

    /// All VMs have died, and the host knows nothing of them: as after a power cut with a state folder
    /// in memory.
    pub fn lose_all(&self) {
        self.inner().instances.clear();
    }

    /// The guest ends by itself.
    pub fn end(&self, placement: &Placement, status: i32, reason: &str) {
        if let Some(instance) = self.inner().instances.get_mut(placement) {
            instance.end(placement, status, reason);
        }
    }

    /// Something happens to an instance.
    pub fn happen(&self, placement: &Placement, kind: EventKind) {
        if let Some(instance) = self.inner().instances.get_mut(placement) {
            instance.event(kind);
        }
    }

    /// Lets time pass in the usage of an instance.
    pub fn count(&self, placement: &Placement) {
        if let Some(instance) = self.inner().instances.get_mut(placement) {
            instance.record(placement, Reason::Minute);
        }
    }

    /// The host is short of what an instance wants, or no longer.
    pub fn set_short(&self, placement: &Placement, why: Option<&str>) {
        if let Some(instance) = self.inner().instances.get_mut(placement) {
            instance.capacity_short = why.map(|why| CapacityShort { why: why.into() });
        }
    }

    /// The chain of usage of an instance.
    pub fn chain(&self, placement: &Placement) -> Vec<String> {
        let inner = self.inner();
        inner
            .instances
            .get(placement)
            .map(|i| i.usage.clone())
            .unwrap_or_default()
    }
}

impl Simulated {
    fn event(&mut self, kind: EventKind) {
        let now = Moment::now();
        self.events.push(Event {
            time: wall_text(now.wall_ms),
            uptime_ms: now.since(&self.begun).unwrap_or(0),
            policy_version: None,
            kind,
        });
    }

    fn record(&mut self, placement: &Placement, reason: Reason) {
        let now = Moment::now();
        let span_ms = now.since(&self.counted).unwrap_or(0);
        let kib = self.memory.get() / 1024;
        let record = UsageRecord {
            sequence: self.usage.len() as u64,
            instance: placement.name(),
            reason,
            time: wall_text(now.wall_ms),
            boot: now.boot.clone(),
            from_ms: self.counted.monotonic_ms,
            to_ms: now.monotonic_ms,
            vcpu_us: u64::from(self.cpus.milli()) * span_ms,
            promised_kib_ms: kib * span_ms,
            resident_kib_ms: kib / 2 * span_ms,
            cpus: self.cpus,
            memory: self.memory,
            resident: Bytes(self.memory.get() / 2),
            previous: self.head.clone(),
        };
        self.counted = now;
        if let Ok((line, hash)) = seal_line(&record) {
            self.usage.push(line);
            self.head = hash;
        }
    }

    fn end(&mut self, placement: &Placement, status: i32, reason: &str) {
        if self.phase != HostPhase::Running {
            return;
        }
        self.record(placement, Reason::End);
        self.event(EventKind::Ended {
            status: Some(status),
            reason: reason.into(),
            exit_reason: ExitReason::Stopped,
        });
        self.phase = HostPhase::Ended {
            status,
            reason: reason.into(),
        };
    }

    fn status(&self, placement: &Placement) -> InstanceStatus {
        let bounds = self.policy.bounds;
        InstanceStatus {
            name: placement.name(),
            state: InstanceState::Running,
            uptime_ms: Moment::now().since(&self.begun).unwrap_or(0),
            agent_pid: 1,
            vmm_pid: Some(2),
            cpus: CpuStatus {
                min: bounds.cpus.min,
                max: bounds.cpus.max,
                target: self.cpus,
                online: self.cpus.vcpus(),
                quota: Quota::Limited(self.cpus),
            },
            memory: MemoryStatus {
                min: bounds.memory.min,
                max: bounds.memory.max,
                target: self.memory,
                plugged: self.memory,
                balloon: Bytes(0),
                guest_total: None,
                guest_available: None,
                host_resident: Bytes(self.memory.get() / 2),
            },
            io: IoStatus::default(),
            guest: None,
            last_resize: None,
            policy_version: self.policy_version,
            waiting: None,
            restarts: 0,
            recommended: None,
            thresholds: Vec::new(),
            scaling: None,
            observed: BTreeMap::new(),
        }
    }
}

impl Host for SimulatedHost {
    fn capacity(&self) -> HostCapacity {
        self.capacity
    }

    fn instances(&self) -> Vec<HostInstance> {
        let inner = self.inner();
        let seen = |(placement, instance): (&Placement, &Simulated)| {
            let runs = instance.phase == HostPhase::Running;
            HostInstance {
                placement: placement.clone(),
                phase: instance.phase.clone(),
                policy_version: Some(instance.policy_version),
                status: runs.then(|| instance.status(placement)),
                metrics: [("cpu".to_owned(), 25.0)].into(),
                capacity_short: instance.capacity_short.clone(),
                policy_problem: None,
            }
        };
        inner.instances.iter().map(seen).collect()
    }

    fn launch(
        &self,
        placement: &Placement,
        order: &LaunchOrder,
        policy_version: u64,
    ) -> Result<(), String> {
        let mut inner = self.inner();
        *inner.launches.entry(placement.clone()).or_default() += 1;
        if let Some(why) = &inner.failing {
            return Err(why.clone());
        }
        let now = Moment::now();
        let bounds = order.policy.bounds;
        let mut instance = Simulated {
            phase: HostPhase::Running,
            policy: order.policy.clone(),
            policy_version,
            cpus: bounds.cpus.min,
            memory: bounds.memory.min,
            begun: now.clone(),
            counted: now,
            events: Vec::new(),
            usage: Vec::new(),
            head: GENESIS.into(),
            capacity_short: None,
            resizes: BTreeMap::new(),
        };
        instance.event(EventKind::Started { vmm_pid: 2 });
        instance.record(placement, Reason::Launch);
        *inner.disks.entry(placement.id.clone()).or_default() += 1;
        inner.instances.insert(placement.clone(), instance);
        Ok(())
    }

    fn stop(&self, placement: &Placement, _force: bool, _timeout_ms: u64) -> Result<(), String> {
        self.end(placement, 0, "Stopped on request");
        Ok(())
    }

    fn remove(&self, placement: &Placement, with_disk: bool) -> Result<(), String> {
        let mut inner = self.inner();
        let runs = inner
            .instances
            .get(placement)
            .is_some_and(|i| i.phase == HostPhase::Running);
        if runs {
            return Err("It still runs".into());
        }
        inner.instances.remove(placement);
        if with_disk {
            inner.disks.remove(&placement.id);
        }
        Ok(())
    }

    fn replace_policy(
        &self,
        placement: &Placement,
        policy: &Policy,
        version: u64,
    ) -> Result<(), String> {
        let mut inner = self.inner();
        let instance = inner.instances.get_mut(placement).ok_or("It is not here")?;
        instance.policy = policy.clone();
        instance.policy_version = version;
        Ok(())
    }

    fn resize(
        &self,
        placement: &Placement,
        command: &str,
        wish: &InstanceResize,
    ) -> Result<ResizeReport<InstanceSize>, String> {
        let mut inner = self.inner();
        let instance = inner.instances.get_mut(placement).ok_or("It is not here")?;
        if let Some(report) = instance.resizes.get(command) {
            return Ok(report.clone());
        }
        let size = InstanceSize {
            cpus: wish.cpus,
            memory: wish.memory,
            ..InstanceSize::default()
        };
        let before = InstanceSize {
            cpus: Some(instance.cpus),
            memory: Some(instance.memory),
            ..InstanceSize::default()
        };
        instance.cpus = wish.cpus.unwrap_or(instance.cpus);
        instance.memory = wish.memory.unwrap_or(instance.memory);
        let report = ResizeReport {
            outcome: Outcome::Applied,
            asked: size,
            got: size,
            reason: None,
            ost: None,
            timeline_ms: [("total".to_owned(), 1.0)].into(),
        };
        instance.event(EventKind::Resized {
            cause: "manual".into(),
            note: None,
            intents: Vec::new(),
            samples: BTreeMap::new(),
            reserved: None,
            before,
            report: report.clone(),
            resident_before: 0,
            resident_after: 0,
        });
        instance.record(placement, Reason::Resize);
        instance.resizes.insert(command.to_owned(), report.clone());
        Ok(report)
    }

    fn lengths(&self, placement: &Placement) -> (u64, u64) {
        let inner = self.inner();
        inner.instances.get(placement).map_or((0, 0), |instance| {
            (instance.events.len() as u64, instance.usage.len() as u64)
        })
    }

    fn events(&self, placement: &Placement, from: u64, limit: usize) -> Vec<Event> {
        let inner = self.inner();
        let instance = inner.instances.get(placement);
        let events = instance.map(|instance| instance.events.iter());
        events
            .into_iter()
            .flatten()
            .skip(at(from))
            .take(limit)
            .cloned()
            .collect()
    }

    fn usage(&self, placement: &Placement, from: u64, limit: usize) -> Vec<String> {
        let inner = self.inner();
        let instance = inner.instances.get(placement);
        let lines = instance.map(|instance| instance.usage.iter());
        lines
            .into_iter()
            .flatten()
            .skip(at(from))
            .take(limit)
            .cloned()
            .collect()
    }
}

fn at(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
