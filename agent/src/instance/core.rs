//! What the threads of one instance share: its fixed words, its present state, and its traces on
//! the host (cgroup, sockets, record), which are made and removed here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::instance::{
    CpuStatus, InstanceSize, InstanceState, InstanceStatus, IoStatus, MemoryStatus, RateStatus,
    ScalingStatus, ThresholdStatus,
};
use concertina_api::net::{NetSpec, NetWish};
use concertina_api::policy::{Device, Metric, Policy};
use concertina_api::vm::{BalloonStatistics, RunState, VmDescription, VmSpec};
use concertina_api::{Bytes, Quota};

use super::ExitReport;
use super::stop::StopSignal;
use crate::cgroup::{Hierarchy, InstanceGroup};
use crate::channel::Channel;
use crate::clock::Moment;
use crate::events::{EventLog, wall_clock};
use crate::launch::{BootSource, LaunchError, LaunchSpec};
use crate::net::{NetPrograms, Networks};
use crate::policy::{Observations, Sample};
use crate::poll::Wakeup;
use crate::resize::Resizer;
use crate::resize::capacity::HostMemory;
use crate::resize::io::IoRates;
use crate::sentence;
use crate::state_dir::{Ending, InstancePaths, InstanceRecord, ProcessId, StateError};
use crate::usage::UsageLog;
use crate::vmm::VmmClient;

/// What changes while the instance lives.
#[derive(Debug)]
struct Live {
    state: InstanceState,
    vmm: Option<ProcessId>,
    /// The last that the vmm said of itself.
    description: Option<VmDescription>,
    guest: Option<BalloonStatistics>,
    recommended: Option<InstanceSize>,
    thresholds: Vec<ThresholdStatus>,
    scaling: Option<ScalingStatus>,
    observed: Observed,
    ended: bool,
}

/// What was measured last.
#[derive(Debug, Default)]
struct Observed {
    samples: BTreeMap<Metric, Sample>,
    stale_ms: u64,
}

impl Observed {
    /// What is still known at `now_ms`, by name.
    fn fresh(&self, now_ms: u64) -> BTreeMap<String, f64> {
        let known = self.samples.iter().filter(|(_, sample)| {
            sample.value.is_finite() && now_ms.saturating_sub(sample.at_ms) <= self.stale_ms
        });
        known
            .map(|(metric, sample)| (metric.to_string(), sample.value))
            .collect()
    }
}

/// One instance.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) name: String,
    pub(super) policy: Policy,
    pub(super) vmm_command: Vec<OsString>,
    boot_source: Option<BootSource>,
    pub(super) paths: InstancePaths,
    pub(super) launched: Instant,
    pub(super) stop: Arc<StopSignal>,
    pub(super) vmm: VmmClient,
    pub(super) events: Arc<EventLog>,
    pub(super) resizer: Resizer,
    pub(super) group: InstanceGroup,
    pub(super) channel: Arc<Channel>,
    pub(super) networks: Networks,
    pub(super) net_programs: NetPrograms,
    /// What the vmm is told; its network interfaces have other descriptors in each life.
    vm: Mutex<VmSpec>,
    pub(super) usage: Arc<UsageLog>,
    /// Set when a resize has ended, or the guest has something urgent to say.
    pub(super) commit_wakeup: Arc<Wakeup>,
    live: Mutex<Live>,
}

impl Core {
    /// Makes the instance's cgroup, its record and its event log. What a failure leaves is removed.
    pub(super) fn new(
        spec: LaunchSpec,
        vm: VmSpec,
        paths: InstancePaths,
        tree: &Hierarchy,
    ) -> Result<Self, LaunchError> {
        let group =
            InstanceGroup::create(tree, &spec.name).inspect_err(|_| discard(&paths, None))?;
        Self::assemble(spec, vm, paths.clone(), group.clone())
            .inspect_err(|_| discard(&paths, Some(&group)))
    }

    fn assemble(
        spec: LaunchSpec,
        mut vm: VmSpec,
        paths: InstancePaths,
        group: InstanceGroup,
    ) -> Result<Self, LaunchError> {
        let launched = Instant::now();
        let system =
            |e: io::Error| LaunchError::Vmm(format!("The supervisor cannot be set up: {e}"));
        group.set_fixed_limits(vm.max_vcpus)?;
        vm.cgroup = Some(group.path().to_owned());
        let networks = Networks::open(&spec.nets)?;
        let events = Arc::new(EventLog::open(&paths.events, launched).map_err(system)?);
        let usage = Arc::new(UsageLog::open(&paths.usage, &spec.name).map_err(system)?);
        let vmm = VmmClient::new(&paths.vmm_socket);
        let commit_wakeup = Arc::new(Wakeup::new().map_err(system)?);
        let channel = Channel::new(launched, Arc::clone(&commit_wakeup)).map_err(system)?;
        let channel = Arc::new(channel);
        let resizer = Resizer::new(
            spec.policy.bounds,
            Duration::from_millis(spec.policy.shrink_window_ms),
            vmm.clone(),
            group.clone(),
            Arc::clone(&events),
            Box::new(HostMemory::new(Path::new("/proc/meminfo"))),
        )
        .with_io(spec.policy.io, first_rates(&vm, &spec.nets))
        .with_hooks(channel.clone())
        .with_usage(Arc::clone(&usage));
        let core = Self {
            name: spec.name,
            policy: spec.policy,
            vmm_command: spec.vmm_command,
            boot_source: spec.boot_source,
            launched,
            stop: Arc::new(StopSignal::new().map_err(system)?),
            vmm,
            events,
            resizer,
            group,
            channel,
            commit_wakeup,
            networks,
            net_programs: NetPrograms::default(),
            vm: Mutex::new(vm),
            usage,
            live: Mutex::new(Live {
                state: InstanceState::Starting,
                vmm: None,
                description: None,
                guest: None,
                recommended: None,
                thresholds: Vec::new(),
                scaling: None,
                observed: Observed::default(),
                ended: false,
            }),
            paths,
        };
        core.record(None)?;
        Ok(core)
    }

    /// Lets a guest that starts again boot what it has installed in the meantime. Where that cannot
    /// be booted, it boots what it has booted before.
    pub(super) fn renew_boot_files(&self) {
        let Some(source) = &self.boot_source else {
            return;
        };
        let mut vm = self.vm_spec();
        match source.renew(&mut vm) {
            Ok(()) => *self.vm.lock().unwrap_or_else(PoisonError::into_inner) = vm,
            Err(why) => eprintln!("concertina: The guest boots the kernel of before: {why}"),
        }
    }

    fn vm_spec(&self) -> VmSpec {
        let vm = self.vm.lock().unwrap_or_else(PoisonError::into_inner);
        vm.clone()
    }

    /// What the vmm of the next life is told, with these network interfaces. Limits on I/O are those
    /// that were set last: the guest that starts again has not asked for others.
    pub(super) fn spec_of_life(&self, nets: Vec<NetSpec>) -> VmSpec {
        let rates = self.resizer.rates();
        let mut vm = VmSpec {
            nets,
            ..self.vm_spec()
        };
        for (disk, rate) in vm.disks.iter_mut().zip(rates.disks) {
            disk.rate = rate;
        }
        for (net, rates) in vm.nets.iter_mut().zip(rates.nets) {
            net.rates = rates;
        }
        vm
    }

    /// Takes back a launch that did not come to a running guest.
    pub(super) fn discard(&self) {
        self.live().ended = true;
        discard(&self.paths, Some(&self.group));
    }

    /// Ends the instance's presence on the host; its folder stays, to be read.
    pub(super) fn end(&self, report: &ExitReport) {
        let state = if report.status == 0 {
            InstanceState::Stopped
        } else {
            InstanceState::Failed
        };
        {
            let mut live = self.live();
            live.state = state;
            live.vmm = None;
            live.ended = true;
        }
        self.usage.ended(&Moment::now());
        if let Err(error) = self.group.remove() {
            eprintln!("concertina: {}", sentence(&error));
        }
        self.paths.remove_runtime_files();
        let ending = Ending {
            state,
            status: report.status,
            reason: report.reason.clone(),
            time: wall_clock(),
        };
        if let Err(error) = self.record(Some(ending)) {
            eprintln!("concertina: {}", sentence(&error));
        }
    }

    /// Whether nothing of it is left to end.
    pub(super) fn has_ended(&self) -> bool {
        self.live().ended
    }

    fn record(&self, ending: Option<Ending>) -> Result<(), StateError> {
        let record = InstanceRecord {
            vmm: self.live().vmm,
            cgroup: Some(self.group.path().to_owned()),
            ending,
            ..InstanceRecord::new(&self.name, ProcessId::of_self())
        };
        record.write(&self.paths.record)
    }

    /// A vmm process was started, or has ended.
    pub(super) fn set_vmm(&self, vmm: Option<ProcessId>, state: InstanceState) {
        {
            let mut live = self.live();
            live.vmm = vmm;
            live.state = state;
            live.description = None;
            live.guest = None;
            live.scaling = None;
            live.observed = Observed::default();
        }
        self.resizer.set_vmm_pid(vmm.map_or(0, |vmm| vmm.pid));
        // Only serves a later supervisor in finding a vmm that outlived this one.
        if let Err(error) = self.record(None) {
            eprintln!("concertina: {}", sentence(&error));
        }
    }

    /// The guest runs: from here on it holds its size.
    pub(super) fn begin_usage(&self) {
        let resident = Bytes(self.resizer.resident());
        self.usage
            .launched(&Moment::now(), self.resizer.size(), resident);
    }

    /// Writes down what was held, once a minute.
    pub(super) fn keep_usage(&self) {
        let now = Moment::now();
        if self.usage.is_due(&now) {
            self.usage.passed(&now, Bytes(self.resizer.resident()));
        }
    }

    /// Milliseconds since launch: the clock of samples and decisions.
    pub(super) fn uptime_ms(&self) -> u64 {
        u64::try_from(self.launched.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Where the instance is in its life.
    pub(super) fn state(&self) -> InstanceState {
        self.live().state
    }

    /// Goes on to another part of its life.
    pub(super) fn set_state(&self, state: InstanceState) {
        self.live().state = state;
    }

    /// How the rules stand.
    pub(super) fn set_thresholds(&self, thresholds: Vec<ThresholdStatus>) {
        self.live().thresholds = thresholds;
    }

    /// What bears on all rules.
    pub(super) fn set_scaling(&self, scaling: ScalingStatus) {
        self.live().scaling = Some(scaling);
    }

    /// What was measured; a sample older than `stale_ms` is unknown.
    pub(super) fn set_observed(&self, seen: &Observations, stale_ms: u64) {
        let mut live = self.live();
        live.observed.samples.clone_from(&seen.samples);
        live.observed.stale_ms = stale_ms;
    }

    /// What the rules want of an instance that is not resized by them.
    pub(super) fn set_recommended(&self, recommended: Option<InstanceSize>) {
        self.live().recommended = recommended;
    }

    /// The instance as it is. What the vmm does not answer in time is what it said last.
    pub(super) fn status(&self) -> InstanceStatus {
        if self.live().vmm.is_some() {
            let description = self.vmm.describe();
            let guest = self.vmm.balloon_statistics();
            let mut live = self.live();
            if let Ok(description) = description {
                live.description = Some(description);
                live.guest = guest.ok();
            }
        }
        let live = self.live();
        let seen = live.description.as_ref();
        let paused = seen.is_some_and(|vm| vm.state == RunState::Paused);
        let guest = |name: &str| {
            let statistics = live.guest.as_ref().filter(|s| s.age_ms.is_some())?;
            statistics.values.get(name).copied().map(Bytes)
        };
        let (bounds, target) = (self.policy.bounds, self.resizer.target());
        InstanceStatus {
            name: self.name.clone(),
            state: match live.state {
                InstanceState::Running if paused => InstanceState::Paused,
                state => state,
            },
            uptime_ms: self.uptime_ms(),
            agent_pid: ProcessId::of_self().pid,
            vmm_pid: live.vmm.map(|vmm| vmm.pid),
            cpus: CpuStatus {
                min: bounds.cpus.min,
                max: bounds.cpus.max,
                target: target.cpus,
                online: seen.map_or(0, |vm| vm.vcpus.online),
                quota: seen.and_then(|vm| vm.quota).unwrap_or(Quota::Max),
            },
            memory: MemoryStatus {
                min: bounds.memory.min,
                max: bounds.memory.max,
                target: target.memory,
                plugged: seen.map_or(Bytes(0), |vm| vm.memory.plugged),
                balloon: seen.map_or(Bytes(0), |vm| vm.balloon.actual),
                guest_total: guest("total_memory"),
                guest_available: guest("available_memory"),
                host_resident: seen.map_or(Bytes(0), |vm| vm.guest_resident),
            },
            io: IoStatus {
                disks: seen.map_or_else(Vec::new, |vm| vm.disks.clone()),
                nets: seen.map_or_else(Vec::new, |vm| vm.nets.clone()),
                disk_rate: self.rate_status(Device::Disk),
                net_rate: self.rate_status(Device::Net),
            },
            guest: self.channel.status(),
            last_resize: self.resizer.last_report(),
            recommended: live.recommended,
            thresholds: live.thresholds.clone(),
            scaling: live.scaling.clone(),
            observed: live.observed.fresh(self.uptime_ms()),
        }
    }

    /// Bounds and target of the limits of one kind of devices, where they have bounds.
    fn rate_status(&self, device: Device) -> Option<RateStatus> {
        let bounds = self.policy.io.of(device)?;
        Some(RateStatus {
            min: bounds.min(),
            max: bounds.max(),
            target: self.resizer.rates().of(device)?,
        })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The limits that the devices of an instance start with.
fn first_rates(vm: &VmSpec, nets: &[NetWish]) -> IoRates {
    IoRates {
        disks: vm.disks.iter().map(|disk| disk.rate).collect(),
        nets: nets.iter().map(|wish| wish.rates).collect(),
    }
}

/// Removes every trace of a launch. Nothing more can be done about what cannot be removed: the next
/// start of the same name tries again.
fn discard(paths: &InstancePaths, group: Option<&InstanceGroup>) {
    if let Some(group) = group {
        let _ = group.remove();
    }
    // What earlier instances of the name held has still to be billed.
    if fs::metadata(&paths.usage).is_ok_and(|usage| usage.len() > 0) {
        for entry in fs::read_dir(&paths.dir).into_iter().flatten().flatten() {
            if entry.path() != paths.usage {
                let _ = fs::remove_file(entry.path());
            }
        }
    } else {
        let _ = fs::remove_dir_all(&paths.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stale_or_no_number_is_not_known() {
        let sample = |value, at_ms| Sample { value, at_ms };
        let observed = Observed {
            samples: BTreeMap::from([
                (Metric::Cpu, sample(75.0, 7000)),
                (Metric::Memory, sample(40.0, 6999)),
                (Metric::CpuSteal, sample(f64::NAN, 9000)),
            ]),
            stale_ms: 3000,
        };
        let known = observed.fresh(10_000);
        assert_eq!(known, BTreeMap::from([("cpu".to_owned(), 75.0)]));
    }
}
