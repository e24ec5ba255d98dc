//! What the threads of one instance share: its fixed words, its present state, and its traces on
//! the host (cgroup, sockets, record), which are made and removed here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::event::EventKind;
use concertina_api::instance::{InstanceSize, InstanceState, ScalingStatus, ThresholdStatus};
use concertina_api::net::{NetSpec, NetWish};
use concertina_api::policy::{Metric, Policy, PolicyBounds};
use concertina_api::vm::{BalloonStatistics, Outcome, ResizeReport, VmDescription, VmSpec};
use concertina_api::{Bounds, Bytes, Cpus, Quota};

use super::answers::Answers;
use super::kept::LaunchRecord;
use super::owner::Owner;
use super::remember::remembered;
use super::status::Observed;
use super::stop::StopSignal;
use super::{Adoption, ExitReport};
use crate::cgroup::{Hierarchy, InstanceGroup};
use crate::channel::Channel;
use crate::clock::Moment;
use crate::events::{EventLog, wall_clock};
use crate::launch::{BootSource, LaunchError, LaunchSpec};
use crate::measure::InstanceMeasures;
use crate::net::{NetPrograms, Networks};
use crate::policy::{PolicyState, Sample};
use crate::poll::Wakeup;
use crate::resize::Resizer;
use crate::resize::io::IoRates;
use crate::sentence;
use crate::state_dir::{Ending, InstancePaths, InstanceRecord, NameLock, ProcessId, StateError};
use crate::usage::UsageLog;
use crate::vmm::{Bond, VmmClient};

/// What changes while the instance lives.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) state: InstanceState,
    pub(super) vmm: Option<ProcessId>,
    /// The last that the vmm said of itself.
    pub(super) description: Option<VmDescription>,
    pub(super) guest: Option<BalloonStatistics>,
    pub(super) recommended: Option<InstanceSize>,
    pub(super) thresholds: Vec<ThresholdStatus>,
    pub(super) scaling: Option<ScalingStatus>,
    pub(super) observed: Observed,
    pub(super) restarts: u64,
    /// The vmm was taken over and has not answered yet.
    pub(super) unseen: bool,
    pub(super) ended: bool,
}

/// The policy in force.
#[derive(Debug, PartialEq)]
pub(crate) struct InForce {
    /// 1 at launch, one more with each replacement.
    pub version: u64,
    /// Bounds and rules.
    pub policy: Policy,
}

/// One instance.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) name: String,
    policy: Mutex<Arc<InForce>>,
    pub(super) vmm_command: Vec<OsString>,
    boot_source: Option<BootSource>,
    pub(super) paths: InstancePaths,
    pub(super) launched: Instant,
    launched_at: Moment,
    pub(super) owner: Owner,
    pub(super) stop: Arc<StopSignal>,
    pub(super) vmm: VmmClient,
    pub(super) events: Arc<EventLog>,
    pub(super) resizer: Resizer,
    pub(super) group: InstanceGroup,
    pub(super) channel: Arc<Channel>,
    pub(super) networks: Networks,
    pub(super) net_programs: NetPrograms,
    nets: Vec<NetWish>,
    /// What the vmm is told; its network interfaces have other descriptors in each life.
    vm: Mutex<VmSpec>,
    pub(super) usage: Arc<UsageLog>,
    /// Set when a resize has ended, or the guest has something urgent to say.
    pub(super) commit_wakeup: Arc<Wakeup>,
    /// Answers of requests with an idempotency key.
    pub(super) answers: Answers,
    /// What is counted of it.
    pub(crate) measures: InstanceMeasures,
    live: Mutex<Live>,
    /// What the decision remembered when the agent before this one ended.
    remembered: Mutex<Option<PolicyState>>,
    /// Held until the very end: only then the name is free.
    lock: Mutex<Option<NameLock>>,
}

/// What a core is made of.
struct Parts {
    name: String,
    in_force: InForce,
    vmm_command: Vec<OsString>,
    boot_source: Option<BootSource>,
    launched: Instant,
    launched_at: Moment,
    nets: Vec<NetWish>,
    networks: Networks,
    vm: VmSpec,
    paths: InstancePaths,
    group: InstanceGroup,
    owner: Owner,
    remembered: Option<PolicyState>,
    lock: NameLock,
}

impl Core {
    /// Makes the instance's cgroup, its record and its event log. What a failure leaves is removed.
    pub(super) fn new(
        spec: LaunchSpec,
        vm: VmSpec,
        paths: InstancePaths,
        tree: &Hierarchy,
        (owner, lock): (Owner, NameLock),
    ) -> Result<Self, LaunchError> {
        let group =
            InstanceGroup::create(tree, &spec.name).inspect_err(|_| discard(&paths, None))?;
        let kept = (paths.clone(), group.clone());
        let make = || {
            group.set_fixed_limits(vm.max_vcpus)?;
            let networks = Networks::open(&spec.nets)?;
            let core = Self::assemble(Parts {
                name: spec.name,
                in_force: InForce {
                    version: 1,
                    policy: spec.policy,
                },
                vmm_command: spec.vmm_command,
                boot_source: spec.boot_source,
                launched: Instant::now(),
                launched_at: Moment::now(),
                nets: spec.nets,
                networks,
                vm: VmSpec {
                    cgroup: Some(group.path().to_owned()),
                    exit_file: Some(paths.exit.clone()),
                    ..vm
                },
                paths,
                group,
                owner,
                remembered: None,
                lock,
            })?;
            core.record(None)?;
            core.keep_launch()?;
            Ok(core)
        };
        make().inspect_err(|_| discard(&kept.0, Some(&kept.1)))
    }

    /// Takes over an instance, and the interfaces of its vmm when that is at work. Nothing is removed
    /// when that fails.
    pub(super) fn adopt(
        adoption: Adoption,
        vmm: Option<BorrowedFd<'_>>,
    ) -> Result<Self, LaunchError> {
        let Adoption {
            name,
            launch,
            paths,
            group,
            vmm_command,
            boot_source,
            owner,
            lock,
        } = adoption;
        let now = Moment::now();
        let age = Duration::from_millis(now.since(&launch.launched).unwrap_or(0));
        let books = owner.books.as_ref();
        let remembered = remembered(books, &launch.launched, &launch.policy);
        let networks = match vmm {
            Some(vmm) => Networks::take_over(&launch.nets, &read_spec(&paths)?.nets, vmm)?,
            None => Networks::open(&launch.nets)?,
        };
        Self::assemble(Parts {
            name,
            in_force: InForce {
                version: launch.policy_version,
                policy: launch.policy,
            },
            vmm_command,
            boot_source,
            launched: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            remembered: Some(remembered),
            launched_at: launch.launched,
            nets: launch.nets,
            networks,
            vm: launch.vm,
            paths,
            group,
            owner,
            lock,
        })
    }

    fn assemble(parts: Parts) -> Result<Self, LaunchError> {
        let Parts {
            name,
            in_force,
            launched,
            paths,
            group,
            ..
        } = parts;
        let system =
            |e: io::Error| LaunchError::Vmm(format!("The supervisor cannot be set up: {e}"));
        let events = EventLog::open(&paths.events, launched).map_err(system)?;
        let events = Arc::new(events.with_hub(&name, parts.owner.hub.clone()));
        let usage = Arc::new(UsageLog::open(&paths.usage, &name).map_err(system)?);
        let vmm = VmmClient::new(&paths.vmm_socket);
        let commit_wakeup = Arc::new(Wakeup::new().map_err(system)?);
        let channel = Channel::new(launched, Arc::clone(&commit_wakeup)).map_err(system)?;
        let channel = Arc::new(channel);
        let policy = &in_force.policy;
        // Each life begins at the size that the VM was built for, whatever the bounds are by then.
        let resizer = Resizer::new(
            built_for(&parts.vm),
            Duration::from_millis(policy.shrink_window_ms),
            vmm.clone(),
            group.clone(),
            Arc::clone(&events),
            Arc::clone(&parts.owner.books),
        )
        .with_io(policy.io, first_rates(&parts.vm, &parts.nets))
        .with_hooks(channel.clone())
        .with_measures(Arc::clone(&parts.owner.measures))
        .with_usage(Arc::clone(&usage));
        resizer.set_policy(
            policy.bounds,
            policy.io,
            Duration::from_millis(policy.shrink_window_ms),
        );
        Ok(Self {
            name,
            policy: Mutex::new(Arc::new(in_force)),
            vmm_command: parts.vmm_command,
            boot_source: parts.boot_source,
            launched,
            launched_at: parts.launched_at,
            owner: parts.owner,
            stop: Arc::new(StopSignal::new().map_err(system)?),
            vmm,
            events,
            resizer,
            group,
            channel,
            commit_wakeup,
            networks: parts.networks,
            net_programs: NetPrograms::default(),
            nets: parts.nets,
            vm: Mutex::new(parts.vm),
            usage,
            answers: Answers::default(),
            measures: InstanceMeasures::default(),
            live: Mutex::new(Live {
                state: InstanceState::Starting,
                vmm: None,
                description: None,
                guest: None,
                recommended: None,
                thresholds: Vec::new(),
                scaling: None,
                observed: Observed::default(),
                restarts: 0,
                unseen: false,
                ended: false,
            }),
            paths,
            remembered: Mutex::new(parts.remembered),
            lock: Mutex::new(Some(parts.lock)),
        })
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Arc<InForce> {
        Arc::clone(&lock(&self.policy))
    }

    /// Puts another policy in force, which was found to be possible.
    ///
    /// # Errors
    /// It could not be written down; the one before stays in force.
    pub(crate) fn replace_policy(&self, policy: Policy) -> Result<Arc<InForce>, StateError> {
        let mut place = lock(&self.policy);
        let next = Arc::new(InForce {
            version: place.version + 1,
            policy,
        });
        self.launch_record(&next).write(&self.paths.launch)?;
        *place = Arc::clone(&next);
        drop(place);
        let bounds = next.policy.bounds;
        self.resizer.set_policy(
            bounds,
            next.policy.io,
            Duration::from_millis(next.policy.shrink_window_ms),
        );
        self.events.append(EventKind::PolicyReplaced {
            version: next.version,
            rules: next.policy.rules.iter().map(ToString::to_string).collect(),
        });
        self.commit_wakeup.set();
        Ok(next)
    }

    /// How the request with this key ended, when an earlier agent has carried it out.
    pub(super) fn answered_before(&self, key: &str) -> Option<ResizeReport<InstanceSize>> {
        let answers = self.owner.books.answers(key);
        let worst = answers.iter().map(|answer| answer.outcome);
        let outcome = worst.reduce(|all, one| if all == one { all } else { Outcome::Partial })?;
        let mut got = InstanceSize::default();
        for answer in &answers {
            got.cpus = answer.after.cpus.or(got.cpus);
            got.memory = answer.after.memory.or(got.memory);
        }
        let reasons: Vec<String> = answers.into_iter().filter_map(|a| a.reason).collect();
        Some(ResizeReport {
            outcome,
            asked: got,
            got,
            reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
            ost: None,
            timeline_ms: BTreeMap::new(),
        })
    }

    /// What the decision remembered when the agent before this one ended; once.
    pub(super) fn take_remembered(&self) -> Option<PolicyState> {
        lock(&self.remembered).take()
    }

    /// Bounds that the VM was built for: no policy can leave them while it runs.
    pub(crate) fn built_for(&self) -> PolicyBounds {
        built_for(&lock(&self.vm))
    }

    /// Writes down what the next agent needs.
    fn keep_launch(&self) -> Result<(), StateError> {
        if self.owner.bond == Bond::DiesWithUs {
            return Ok(());
        }
        self.launch_record(&self.policy()).write(&self.paths.launch)
    }

    fn launch_record(&self, in_force: &InForce) -> LaunchRecord {
        LaunchRecord {
            policy: in_force.policy.clone(),
            policy_version: in_force.version,
            launched: self.launched_at.clone(),
            vm: self.vm_spec(),
            nets: self.nets.clone(),
            boot_image: self
                .boot_source
                .as_ref()
                .and_then(|source| source.image().cloned()),
        }
    }

    /// Lets a guest that starts again boot what it has installed in the meantime. Where that cannot
    /// be booted, it boots what it has booted before.
    pub(super) fn renew_boot_files(&self) {
        let Some(source) = &self.boot_source else {
            return;
        };
        let mut vm = self.vm_spec();
        match source.renew(&mut vm) {
            Ok(()) => *lock(&self.vm) = vm,
            Err(why) => eprintln!("concertina: The guest boots the kernel of before: {why}"),
        }
    }

    fn vm_spec(&self) -> VmSpec {
        lock(&self.vm).clone()
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
        self.free_name();
    }

    /// Another one may have the name.
    fn free_name(&self) {
        *lock(&self.lock) = None;
    }

    /// Lets go of an instance whose VM runs on; its files stay as they are.
    pub(super) fn leave(&self) {
        self.live().ended = true;
        self.free_name();
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
            exit_reason: report.exit_reason,
            time: wall_clock(),
        };
        if let Err(error) = self.record(Some(ending)) {
            eprintln!("concertina: {}", sentence(&error));
        }
        self.free_name();
    }

    /// Whether nothing of it is left to end.
    pub(crate) fn has_ended(&self) -> bool {
        self.live().ended
    }

    /// Writes down who supervises it, and its processes.
    pub(super) fn record(&self, ending: Option<Ending>) -> Result<(), StateError> {
        let record = InstanceRecord {
            vmm: self.live().vmm,
            cgroup: Some(self.group.path().to_owned()),
            socket: self.owner.socket.clone(),
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

    /// A vmm that is at work was found, and is as it says.
    pub(super) fn take_over_at(&self, seen: &VmDescription) {
        self.resizer.take_over(seen);
        self.owner.books.seen(self.resizer.size());
    }

    /// A vmm that is at work was found, and does not answer.
    pub(super) fn take_over_unseen(&self) {
        if let Some(size) = self.owner.books.size() {
            self.resizer.assume(size);
        }
        self.live().unseen = true;
    }

    /// A vmm has answered; the first answer of one that was taken over unseen says what it has.
    pub(super) fn answered(&self, seen: &VmDescription) {
        let unseen = std::mem::take(&mut self.live().unseen);
        if unseen {
            self.take_over_at(seen);
        }
    }

    /// The guest ran before we came: what it held since the last record is counted.
    pub(super) fn go_on_with_usage(&self) {
        let known = self.owner.books.usage().map(|mark| mark.sequence);
        if known > self.usage.mark().map(|mark| mark.sequence) {
            eprintln!(
                "concertina: The usage file of {} is shorter than it was: records of it are gone",
                self.name
            );
        }
        let resident = Bytes(self.resizer.resident());
        self.usage
            .adopted(&Moment::now(), self.resizer.size(), resident);
    }

    /// How often its vmm was started again after a failure, by this agent.
    pub(crate) fn restarts(&self) -> u64 {
        self.live().restarts
    }

    /// It is started again after a failure.
    pub(super) fn count_restart(&self) {
        self.live().restarts += 1;
    }

    /// Writes down what was held, once a minute.
    pub(super) fn keep_usage(&self) {
        let now = Moment::now();
        if self.usage.is_due(&now) {
            self.usage.passed(&now, Bytes(self.resizer.resident()));
            if let Some(mark) = self.usage.mark() {
                self.owner.books.used(mark);
            }
        }
    }

    /// Milliseconds since launch: the clock of samples and decisions.
    pub(super) fn uptime_ms(&self) -> u64 {
        u64::try_from(self.launched.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Where the instance is in its life.
    pub(crate) fn state(&self) -> InstanceState {
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
    pub(super) fn set_observed(&self, samples: BTreeMap<Metric, Sample>, stale_ms: u64) {
        let mut live = self.live();
        live.observed.samples = samples;
        live.observed.stale_ms = stale_ms;
    }

    /// What the rules want of an instance that is not resized by them.
    pub(super) fn set_recommended(&self, recommended: Option<InstanceSize>) {
        self.live().recommended = recommended;
    }

    /// What the rules want of an instance that is not resized by them.
    pub(crate) fn recommended(&self) -> Option<InstanceSize> {
        self.live().recommended
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.live)
    }
}

/// A thread that panicked leaves its data whole: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`Core::built_for`].
fn built_for(vm: &VmSpec) -> PolicyBounds {
    PolicyBounds {
        cpus: Bounds {
            min: match vm.quota {
                Quota::Limited(cpus) => cpus,
                Quota::Max => Cpus::whole(vm.boot_vcpus),
            },
            max: Cpus::whole(vm.max_vcpus),
        },
        memory: Bounds {
            min: vm.boot_memory,
            max: vm.max_memory,
        },
    }
}

/// What the vmm that is at work was told.
fn read_spec(paths: &InstancePaths) -> Result<VmSpec, LaunchError> {
    let path = &paths.vm_spec;
    let bytes = fs::read(path).map_err(|error| StateError::io("Reading", path, error))?;
    let spec = serde_json::from_slice(&bytes).map_err(|source| StateError::Record {
        path: path.display().to_string(),
        source,
    })?;
    Ok(spec)
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
