//! What can be asked of a running VM: describe it, resize it, hold it, end it.
//!
//! A resize sets targets, waits for the guest, and answers with what was *reached*. The wishes of one
//! request are made at once, so that the guest works on them side by side; requests come one after
//! the other. Nothing of a failed request stays in the way of the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::disk::{DiskRate, DiskStatus};
use concertina_api::net::NetStatus;
use concertina_api::vm::{
    BalloonStatistics, BalloonStatus, MemoryStatus, Outcome, Publishing, ResizeReport, RunState,
    VcpuState, VcpuStatus, VcpuThread, VmDescription, VmResize, VmSize,
};
use concertina_api::{Bytes, Quota};

use crate::cgroup::Cgroup;
use crate::counters::Schedule;
use crate::cpu::hotplug::CpuHotplug;
use crate::cpu::thread::Vcpu;
use crate::devices::ged::{EVENT_POWER_BUTTON, EventDevice};
use crate::exit::{Exit, ExitNotifier};
use crate::machine::Machine;
use crate::memory::{BLOCK_BYTES, GuestRam};
use crate::plan::VmPlan;
use crate::usage;
use crate::virtio::balloon::BalloonController;
use crate::virtio::block::BlockController;
use crate::virtio::mem::MemController;
use crate::virtio::net::{self, NetController};
use crate::virtio::vsock::VsockCounters;

/// Deadline of a resize that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest deadline.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a vCPU thread may take to leave KVM.
const PARK_TIMEOUT: Duration = Duration::from_secs(2);

/// Handle of a running VM, for the API's threads.
pub struct Control {
    plan: VmPlan,
    started: Instant,
    vcpus: Vec<Arc<Vcpu>>,
    cpu_hotplug: Arc<CpuHotplug>,
    event_device: Arc<EventDevice>,
    mem: Option<MemController>,
    balloon: BalloonController,
    disks: Vec<BlockController>,
    vsock: Option<Arc<VsockCounters>>,
    nets: Vec<NetController>,
    cgroup: Option<Cgroup>,
    ram: Arc<GuestRam>,
    exit: ExitNotifier,
    /// When the counters file is written.
    schedule: Arc<Schedule>,
    state: Mutex<RunState>,
    resizing: Resizing,
}

/// Held for the whole of a resize, each by what it changes: a guest that does not answer for its vCPUs
/// holds up nothing else. Never taken by a vCPU thread or the event loop.
#[derive(Default)]
struct Resizing {
    cpus: Mutex<()>,
    memory: Mutex<()>,
    rates: Mutex<()>,
}

impl Resizing {
    /// Waits for what was begun before, in one order for all, so that no two wait for each other.
    fn hold(&self, wish: &VmResize) -> [Option<MutexGuard<'_, ()>>; 3] {
        let cpus = wish.vcpus.is_some() || wish.quota.is_some();
        let memory = wish.memory.is_some() || wish.balloon.is_some();
        let rates = wish.disk_rate.is_some() || wish.net_rate.is_some();
        [
            (&self.cpus, cpus),
            (&self.memory, memory),
            (&self.rates, rates),
        ]
        .map(|(lock, wanted)| wanted.then(|| lock.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// How one part of a resize ended.
struct Part {
    outcome: Outcome,
    reason: Option<String>,
    ost: Option<u32>,
}

impl Part {
    fn applied() -> Self {
        Self {
            outcome: Outcome::Applied,
            reason: None,
            ost: None,
        }
    }
    fn is_applied(&self) -> bool {
        self.outcome == Outcome::Applied
    }
    fn failed(outcome: Outcome, reason: String) -> Self {
        Self {
            outcome,
            reason: Some(reason),
            ost: None,
        }
    }
}

/// Milliseconds of each step since the request.
struct Timeline {
    begin: Instant,
    steps: BTreeMap<String, f64>,
}

impl Timeline {
    /// Notes a step the first time it is seen.
    fn note(&mut self, step: &str) {
        let elapsed_ms = self.begin.elapsed().as_secs_f64() * 1000.0;
        self.steps
            .entry(step.into())
            .or_insert((elapsed_ms * 1000.0).round() / 1000.0);
    }
}

impl Control {
    /// Takes what it needs of the machine.
    pub fn new(
        plan: VmPlan,
        machine: &Machine,
        cgroup: Option<Cgroup>,
        exit: ExitNotifier,
    ) -> Self {
        Self {
            plan,
            started: Instant::now(),
            vcpus: machine.vcpus.iter().map(|v| v.vcpu.clone()).collect(),
            cpu_hotplug: machine.cpu_hotplug.clone(),
            event_device: machine.event_device.clone(),
            mem: machine.mem.clone(),
            balloon: machine.balloon.clone(),
            disks: machine.disks.clone(),
            vsock: machine.vsock.clone(),
            nets: machine.nets.clone(),
            cgroup,
            ram: machine.ram.clone(),
            exit,
            schedule: Arc::default(),
            state: Mutex::new(RunState::Running),
            resizing: Resizing::default(),
        }
    }

    fn vcpu_status(&self) -> VcpuStatus {
        let progress = self.cpu_hotplug.progress();
        let thread = |(vcpu, state): (Arc<Vcpu>, VcpuState)| VcpuThread {
            vcpu: vcpu.id(),
            tid: vcpu.tid(),
            state,
        };
        VcpuStatus {
            max: self.plan.spec.max_vcpus,
            target: self.cpu_hotplug.target(),
            present: progress.present,
            online: progress.online,
            threads: self.cpu_hotplug.states().into_iter().map(thread).collect(),
        }
    }

    fn memory_status(&self) -> MemoryStatus {
        let boot = self.plan.spec.boot_memory;
        let status = self.mem.as_ref().map(MemController::status);
        let with = |bytes: Option<u64>| Bytes(boot.get() + bytes.unwrap_or(0));
        MemoryStatus {
            boot,
            max: self.plan.spec.max_memory,
            target: with(status.as_ref().map(|s| s.requested)),
            plugged: with(status.as_ref().map(|s| s.plugged)),
            block: Bytes(BLOCK_BYTES),
            driver_ready: status.as_ref().is_some_and(|s| s.driver_ready),
            bad_requests: status.as_ref().map_or(0, |s| s.bad_requests),
        }
    }

    /// The VM as it is.
    pub fn describe(&self) -> VmDescription {
        let resident = usage::resident(&self.ram).unwrap_or_default();
        VmDescription {
            name: self.plan.spec.name.clone(),
            pid: std::process::id() as i32,
            uptime_ms: self.started.elapsed().as_millis() as u64,
            state: *self.state.lock().unwrap_or_else(PoisonError::into_inner),
            vcpus: self.vcpu_status(),
            quota: self.cgroup.as_ref().and_then(Cgroup::quota),
            memory: self.memory_status(),
            balloon: self.balloon_status(),
            disks: self.disks(),
            vsock: self.vsock.as_ref().map(|counters| counters.status()),
            nets: self.nets(),
            guest_resident: Bytes(resident.guest_bytes),
            vmm_resident: Bytes(resident.vmm_bytes),
        }
    }

    /// The disks as they are.
    pub fn disks(&self) -> Vec<DiskStatus> {
        self.disks.iter().map(BlockController::status).collect()
    }

    /// The network interfaces as they are.
    pub fn nets(&self) -> Vec<NetStatus> {
        self.nets.iter().map(NetController::status).collect()
    }

    /// The disks that a wish names.
    fn named_disks(&self, wish: &DiskRate) -> &[BlockController] {
        match wish.disk {
            None => &self.disks,
            Some(number) => self.disks.get(number..=number).unwrap_or_default(),
        }
    }

    fn balloon_status(&self) -> BalloonStatus {
        self.balloon.status().status
    }

    /// Statistics of the guest's balloon driver, at most `max_age` old if it answers in time.
    pub fn balloon_statistics(&self, max_age: Duration, timeout: Duration) -> BalloonStatistics {
        self.balloon.statistics(max_age, timeout)
    }

    /// When the counters file is written.
    pub fn schedule(&self) -> Arc<Schedule> {
        Arc::clone(&self.schedule)
    }

    /// Writes the counters file from here on as often as this says.
    ///
    /// # Errors
    /// A sentence: the wish is not possible.
    pub fn publish(&self, wish: &Publishing) -> Result<(), String> {
        wish.check()?;
        if self.plan.spec.counters_file.is_none() {
            return Err("Counters cannot be published: this VM has no file for them".into());
        }
        self.schedule.set(wish, Instant::now());
        // The event loop may sleep until something else is due.
        self.balloon.wake();
        Ok(())
    }

    /// Changes the size; answers with what was reached. Of two for the same resource the second one waits.
    pub fn resize(&self, wish: &VmResize) -> ResizeReport {
        let _one_at_a_time = self.resizing.hold(wish);
        let mut timeline = Timeline {
            begin: Instant::now(),
            steps: BTreeMap::new(),
        };
        let asked = VmSize {
            vcpus: wish.vcpus,
            quota: wish.quota,
            memory: wish.memory,
            balloon: wish.balloon,
            disk_rate: wish.disk_rate,
            net_rate: wish.net_rate,
        };
        let before = self.size_of(&asked);
        let parts = match self.check(wish) {
            Err(reason) => vec![Part::failed(Outcome::Refused, reason)],
            Ok(()) => self.carry_out(wish, &mut timeline),
        };
        timeline.note("total");
        let got = self.size_of(&asked);
        let outcome = merge(&parts, before != got);
        let reasons: Vec<_> = parts.iter().filter_map(|p| p.reason.clone()).collect();
        ResizeReport {
            outcome,
            asked,
            got,
            reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
            ost: parts.iter().find_map(|p| p.ost),
            timeline_ms: timeline.steps,
        }
    }

    /// The present size in the parts that `asked` names.
    fn size_of(&self, asked: &VmSize) -> VmSize {
        VmSize {
            vcpus: asked.vcpus.map(|_| self.cpu_hotplug.progress().online),
            quota: asked.quota.and_then(|_| self.cgroup.as_ref()?.quota()),
            memory: asked.memory.map(|_| self.memory_status().plugged),
            balloon: asked.balloon.map(|_| self.balloon_status().actual),
            disk_rate: asked.disk_rate.and_then(|wish| {
                let first = self.named_disks(&wish).first()?;
                let (disk, rate) = (wish.disk, first.rate());
                Some(DiskRate { disk, rate })
            }),
            net_rate: asked
                .net_rate
                .and_then(|change| net::rates_in_force(&self.nets, &change)),
        }
    }

    fn check(&self, wish: &VmResize) -> Result<(), String> {
        let spec = &self.plan.spec;
        if let Some(vcpus) = wish.vcpus
            && !(1..=spec.max_vcpus).contains(&vcpus)
        {
            return Err(format!(
                "{vcpus} vCPUs are not possible: this VM has 1 to {}",
                spec.max_vcpus
            ));
        }
        if let Some(memory) = wish.memory
            && !(spec.boot_memory..=spec.max_memory).contains(&memory)
        {
            return Err(format!(
                "Memory {memory} is not possible: this VM has {} to {}",
                spec.boot_memory, spec.max_memory
            ));
        }
        if let Some(wish) = wish.disk_rate
            && self.named_disks(&wish).is_empty()
        {
            let disks = self.disks.len();
            return Err(match (wish.disk, disks) {
                (Some(number), 1..) => format!(
                    "Disk {number} is not there: this VM has disks 0 to {}",
                    disks - 1
                ),
                _ => "A disk rate is not possible: this VM has no disks".into(),
            });
        }
        if wish.quota.is_some() && self.cgroup.is_none() {
            return Err("A quota is not possible: this VM has no cgroup".into());
        }
        if let Some(balloon) = wish.balloon
            && balloon > self.memory_status().plugged.max(spec.max_memory)
        {
            return Err(format!(
                "A balloon of {balloon} is not possible: this VM has at most {}",
                spec.max_memory
            ));
        }
        if let Some(change) = &wish.net_rate {
            net::check_change(change, self.nets.len())?;
        }
        Ok(())
    }

    fn carry_out(&self, wish: &VmResize, timeline: &mut Timeline) -> Vec<Part> {
        let timeout = wish
            .timeout_ms
            .map_or(DEFAULT_TIMEOUT, Duration::from_millis);
        let deadline = timeline.begin + timeout.min(MAX_TIMEOUT);
        let mut parts = Vec::new();
        let vcpus_before = self.cpu_hotplug.progress();
        // A guest that must let go of vCPUs has all its time for it: the quota follows.
        let quota_follows = wish.vcpus.is_some_and(|vcpus| vcpus < vcpus_before.online);
        if let Some(quota) = wish.quota.filter(|_| !quota_follows) {
            parts.push(self.set_quota(quota, timeline));
        }
        if let Some(wish) = wish.disk_rate {
            for disk in self.named_disks(&wish) {
                disk.set_rate(wish.rate);
            }
            timeline.note("disk_rate");
            parts.push(Part::applied());
        }
        if let Some(change) = &wish.net_rate {
            net::change_rates(&self.nets, change);
            timeline.note("net_rate");
        }
        // All wishes first, then all waits.
        let settled = |target: u32| {
            (
                vcpus_before.present,
                vcpus_before.online,
                self.cpu_hotplug.target(),
            ) == (target, target, target)
        };
        if let Some(vcpus) = wish.vcpus.filter(|target| !settled(*target)) {
            self.cpu_hotplug.request(vcpus);
            timeline.note("vcpus_announced");
        }
        if let Some(memory) = wish.memory {
            parts.extend(self.request_memory(memory, timeline).err());
        }
        if let Some(balloon) = wish.balloon {
            match self.balloon.set_target(balloon.get()) {
                Ok(()) => timeline.note("balloon_requested"),
                Err(error) => parts.push(Part::failed(Outcome::Refused, error.to_string())),
            }
        }
        if let Some(vcpus) = wish.vcpus {
            let part = self.wait_vcpus(vcpus, deadline, timeline);
            // Where the guest keeps its vCPUs, it keeps its quota, too: the size is what it was.
            let quota = wish.quota.filter(|_| quota_follows && part.is_applied());
            parts.push(part);
            parts.extend(quota.map(|quota| self.set_quota(quota, timeline)));
        }
        if let Some(memory) = wish.memory {
            parts.push(self.wait_memory(memory, deadline, timeline));
        }
        if let Some(balloon) = wish.balloon {
            parts.push(self.wait_balloon(balloon, deadline, timeline));
        }
        parts
    }

    fn set_quota(&self, quota: Quota, timeline: &mut Timeline) -> Part {
        let Some(cgroup) = &self.cgroup else {
            return Part::applied();
        };
        match cgroup.set_quota(quota) {
            Ok(()) => {
                timeline.note("quota");
                Part::applied()
            }
            Err(error) => Part::failed(Outcome::Refused, chain(&error)),
        }
    }

    fn wait_vcpus(&self, target: u32, deadline: Instant, timeline: &mut Timeline) -> Part {
        let (progress, timed_out) = self.cpu_hotplug.wait(deadline, |progress| {
            if progress.present == target {
                timeline.note("vcpus_present");
            }
            (progress.present, progress.online) == (target, target)
        });
        if let Some(status) = progress.refused {
            self.cpu_hotplug.withdraw();
            let reason = format!(
                "The guest refused with _OST status {status:#x} ({})",
                ost(status)
            );
            return Part {
                outcome: Outcome::Refused,
                reason: Some(reason),
                ost: Some(status),
            };
        }
        if timed_out {
            // What the guest has not begun is taken back, so that the next resize starts clean.
            self.cpu_hotplug.withdraw();
            let reason = format!(
                "The guest has {} vCPUs present and {} started of {target} within the deadline",
                progress.present, progress.online
            );
            return Part::failed(Outcome::TimedOut, reason);
        }
        timeline.note("vcpus_online");
        let parked = |vcpu: &&Arc<Vcpu>| vcpu.id() < target || vcpu.wait_settled(PARK_TIMEOUT);
        if self.vcpus.iter().all(|vcpu| parked(&vcpu)) {
            timeline.note("vcpus_parked");
            Part::applied()
        } else {
            Part::failed(
                Outcome::Partial,
                "A removed vCPU's thread does not leave KVM".into(),
            )
        }
    }

    fn request_memory(&self, memory: Bytes, timeline: &mut Timeline) -> Result<(), Part> {
        let Some(mem) = &self.mem else { return Ok(()) };
        let elastic = memory.get() - self.plan.spec.boot_memory.get();
        let requested = elastic - elastic % BLOCK_BYTES;
        mem.set_requested(requested)
            .map_err(|error| Part::failed(Outcome::Refused, error.to_string()))?;
        timeline.note("memory_requested");
        Ok(())
    }

    fn wait_memory(&self, memory: Bytes, deadline: Instant, timeline: &mut Timeline) -> Part {
        let Some(mem) = &self.mem else {
            return Part::applied();
        };
        match mem.wait_until(deadline, |s| s.driver_ready && s.plugged == s.requested) {
            Ok(status) => {
                timeline.note("memory_plugged");
                let rest = memory.get() - self.plan.spec.boot_memory.get() - status.plugged;
                match rest {
                    0 => Part::applied(),
                    _ => Part {
                        outcome: Outcome::Applied,
                        reason: Some(format!(
                            "Memory was rounded down to a multiple of {}",
                            Bytes(BLOCK_BYTES)
                        )),
                        ost: None,
                    },
                }
            }
            Err(status) if !status.driver_ready => Part::failed(
                Outcome::TimedOut,
                "The guest's virtio-mem driver is not up".into(),
            ),
            Err(status) => Part::failed(
                Outcome::TimedOut,
                format!(
                    "The guest has plugged {} of {} elastic memory within the deadline, and goes on",
                    Bytes(status.plugged),
                    Bytes(status.requested)
                ),
            ),
        }
    }

    fn wait_balloon(&self, balloon: Bytes, deadline: Instant, timeline: &mut Timeline) -> Part {
        // Whole pages.
        let target = balloon.get() & !0xfff;
        let deflations = self.balloon.status().oom_deflations;
        let reached = self.balloon.wait_until(deadline, |s| {
            let there = s.status.driver_ready && s.status.actual.get() == target;
            there || s.oom_deflations != deflations
        });
        match reached {
            Ok(reading) if reading.status.actual.get() != target => Part::failed(
                Outcome::Refused,
                format!(
                    "The guest ran out of memory and took pages back: the balloon holds {} of {balloon}",
                    reading.status.actual
                ),
            ),
            Ok(_) => {
                timeline.note("balloon");
                Part::applied()
            }
            Err(status) if !status.status.driver_ready => Part::failed(
                Outcome::TimedOut,
                "The guest's balloon driver is not up".into(),
            ),
            Err(status) => Part::failed(
                Outcome::TimedOut,
                format!(
                    "The balloon holds {} of {balloon} within the deadline",
                    status.status.actual
                ),
            ),
        }
    }

    /// Holds all vCPUs between two instructions. Again: no change.
    pub fn pause(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.vcpus.iter().for_each(|vcpu| vcpu.pause());
        for vcpu in &self.vcpus {
            vcpu.wait_settled(PARK_TIMEOUT);
        }
        *state = RunState::Paused;
    }

    /// Lets them go on. Again: no change.
    pub fn resume(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.vcpus.iter().for_each(|vcpu| vcpu.resume());
        *state = RunState::Running;
    }

    /// Presses the power button: a request to the guest.
    pub fn power_button(&self) {
        self.event_device.raise(EVENT_POWER_BUTTON);
    }

    /// Ends the VM without asking the guest.
    pub fn stop(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = RunState::Stopping;
        self.exit.notify(Exit::Stopped);
    }
}

/// What a guest means by an `_OST` status (ACPI 6.5 tables 6.19 and 6.20).
fn ost(status: u32) -> &'static str {
    match status {
        1 => "failed, no reason given",
        2 => "it does not know the request",
        0x80 => "ejection is not supported",
        0x81 => "the processor is in use",
        0x82 => "the processor is busy",
        0x83 => "other processors depend on it",
        _ => "a status that ACPI does not name",
    }
}

/// One outcome of several parts. `moved`: the size is another than before.
fn merge(parts: &[Part], moved: bool) -> Outcome {
    let bad = parts.iter().find(|p| p.outcome != Outcome::Applied);
    match bad {
        None => Outcome::Applied,
        // A guest's "no" is an answer, not a partial success.
        Some(part) if parts.len() == 1 && part.outcome == Outcome::Refused => Outcome::Refused,
        Some(_) if moved => Outcome::Partial,
        Some(part) => part.outcome,
    }
}

/// An error with its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_waits_for_those_of_the_same_resource_alone() {
        let resizing = Resizing::default();
        let vcpus = VmResize {
            vcpus: Some(2),
            ..VmResize::default()
        };
        let memory = VmResize {
            memory: Some(Bytes(1 << 30)),
            ..VmResize::default()
        };
        let both = VmResize {
            memory: memory.memory,
            ..vcpus.clone()
        };
        let held = resizing.hold(&vcpus);
        assert!(resizing.cpus.try_lock().is_err());
        drop(resizing.hold(&memory));
        drop(held);
        let _held = resizing.hold(&both);
        assert!(resizing.cpus.try_lock().is_err() && resizing.memory.try_lock().is_err());
        assert!(resizing.rates.try_lock().is_ok());
    }
}
