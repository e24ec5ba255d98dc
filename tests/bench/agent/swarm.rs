//! Many VMs without a VM behind them: their sockets speak the vmm's protocol, their processes are real
//! and have a little work, and their cgroups are real where this host has cgroup v2. What a vmm publishes
//! is written by the vmm's own code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use concertina_agent::clock::Moment;
use concertina_agent::state_dir::{InstancePaths, InstanceRecord, ProcessId};
use concertina_api::counters::{Counters, STATISTIC_NAMES};
use concertina_api::policy::Policy;
use concertina_api::vm::*;
use concertina_api::{Bytes, Quota};
use concertina_http::{Handler, Method, Request, Response, Server, Stopper};
use concertina_vmm::counters::{Publisher, Schedule, Source};

/// Memory that each guest has at first, its lower bound.
const LEAST: Bytes = Bytes::mib(512);
/// Upper bounds.
const MOST: Bytes = Bytes::mib(4096);
const MOST_VCPUS: u32 = 4;
/// Memory that a guest's kernel keeps from its own total.
const KERNEL: Bytes = Bytes::mib(16);
/// Share of a guest's memory that is used: at rest, and when it wants more.
const USED_AT_REST: u64 = 60;
const USED_WHEN_FULL: u64 = 92;
/// Longest sleep of the thread that publishes, which does not hear of a new wish.
const PUBLISH_PAUSE: Duration = Duration::from_millis(5);
/// Stack of a thread that waits for connections.
const STACK_BYTES: usize = 64 << 10;

/// How many there are, and how often the rules look at them.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub vms: usize,
    pub period: Duration,
}

/// All of them. They end when this is dropped.
pub struct Swarm {
    vms: Vec<Vm>,
    publishing: Arc<AtomicBool>,
    /// Folder of cgroups that was made, if it is a real one.
    group: Option<PathBuf>,
}

struct Vm {
    state: Arc<State>,
    process: Child,
    stopper: Stopper,
}

/// What changes of one.
struct State {
    pid: i32,
    size: Mutex<VmSizes>,
    /// Percent of its memory that is used.
    used: AtomicU64,
    /// When it publishes.
    schedule: Arc<Schedule>,
}

/// What a simulated VM publishes.
struct Shown(Arc<State>);

#[derive(Clone, Copy)]
struct VmSizes {
    vcpus: u32,
    quota: Quota,
    memory: Bytes,
    balloon: Bytes,
}

impl Swarm {
    /// Starts them below `state_dir`, as an agent that died would have left them.
    pub fn start(state_dir: &Path, shape: Shape) -> Result<Self> {
        let group = real_group();
        let groups = match &group {
            Some(group) => group.clone(),
            None => state_dir.join("cgroups"),
        };
        let mut swarm = Self {
            vms: Vec::new(),
            publishing: Arc::new(AtomicBool::new(true)),
            group,
        };
        let mut publishers = Vec::new();
        for number in 0..shape.vms {
            let name = format!("vm-{number:04}");
            let paths = InstancePaths::in_dir(state_dir.join(&name));
            let vm = Vm::start(&name, &paths, &groups.join(&name), shape)
                .with_context(|| format!("Simulating {name}"))?;
            let (schedule, shown) = (Arc::clone(&vm.state.schedule), Shown(Arc::clone(&vm.state)));
            publishers.push(Publisher::new(&paths.counters, schedule, shown)?);
            swarm.vms.push(vm);
        }
        let goes_on = Arc::clone(&swarm.publishing);
        thread::spawn(move || {
            while goes_on.load(Ordering::Relaxed) {
                let lefts = publishers.iter().filter_map(Publisher::left);
                thread::sleep(lefts.min().unwrap_or(PUBLISH_PAUSE).min(PUBLISH_PAUSE));
                publishers.iter_mut().for_each(Publisher::look);
            }
        });
        Ok(swarm)
    }

    /// Whether their cgroups are the kernel's.
    pub fn has_real_groups(&self) -> bool {
        self.group.is_some()
    }

    /// One of them needs more memory, until it has got it.
    pub fn fill(&self, number: usize) {
        if let Some(vm) = self.vms.get(number % self.vms.len().max(1)) {
            vm.state.used.store(USED_WHEN_FULL, Ordering::Relaxed);
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.publishing.store(false, Ordering::Relaxed);
        for vm in &mut self.vms {
            vm.stopper.stop();
            let _ = vm.process.kill();
        }
        for vm in &mut self.vms {
            let _ = vm.process.wait();
        }
        if let Some(group) = &self.group {
            remove_groups(group);
        }
    }
}

impl Vm {
    fn start(name: &str, paths: &InstancePaths, group: &Path, shape: Shape) -> Result<Self> {
        fs::create_dir_all(&paths.dir)?;
        fs::create_dir_all(group.join("vcpu"))?;
        let process = Command::new(std::env::current_exe()?)
            .arg("vcpu")
            .arg(shape.period.as_millis().to_string())
            .stdin(Stdio::null())
            .spawn()?;
        let pid = i32::try_from(process.id())?;
        fill_group(group, pid)?;
        let state = Arc::new(State {
            pid,
            size: Mutex::new(VmSizes {
                vcpus: 1,
                quota: Quota::Max,
                memory: LEAST,
                balloon: Bytes(0),
            }),
            used: AtomicU64::new(USED_AT_REST),
            schedule: Arc::default(),
        });
        write_records(name, paths, group, pid, shape)?;
        let server = Server::bind(&paths.vmm_socket)?;
        let stopper = server.stopper();
        let answering = Arc::clone(&state);
        let handler: Arc<Handler> = Arc::new(move |request| answering.answer(request));
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || server.serve(handler))?;
        Ok(Self {
            state,
            process,
            stopper,
        })
    }
}

impl State {
    fn answer(&self, request: &Request) -> Response {
        match (request.method, request.path.as_str()) {
            (Method::Get, "/v1/vm") => Response::json(200, &self.describe()),
            (Method::Get, "/v1/vm/balloon/statistics") => Response::json(200, &self.statistics()),
            (Method::Put, "/v1/vm/counters") => match request.json::<Publishing>() {
                Ok(wish) => {
                    self.schedule.set(&wish, Instant::now());
                    Response::empty(204)
                }
                Err(response) => response,
            },
            (Method::Put, "/v1/vm/resize") => match request.json::<VmResize>() {
                Ok(wish) => Response::json(200, &self.resize(&wish)),
                Err(response) => response,
            },
            _ => Response::not_found(request),
        }
    }

    fn size(&self) -> VmSizes {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> VmDescription {
        let VmSizes {
            vcpus,
            quota,
            memory,
            balloon,
        } = self.size();
        let thread = |vcpu| VcpuThread {
            vcpu,
            tid: self.pid,
            state: if vcpu < vcpus {
                VcpuState::Online
            } else {
                VcpuState::Parked
            },
        };
        VmDescription {
            name: "simulated".into(),
            pid: self.pid,
            uptime_ms: 60_000,
            state: RunState::Running,
            vcpus: VcpuStatus {
                max: MOST_VCPUS,
                target: vcpus,
                present: vcpus,
                online: vcpus,
                threads: (0..MOST_VCPUS).map(thread).collect(),
            },
            quota: Some(quota),
            memory: MemoryStatus {
                boot: LEAST,
                max: MOST,
                target: memory,
                plugged: memory,
                block: Bytes::mib(2),
                driver_ready: true,
                bad_requests: 0,
            },
            vsock: None,
            balloon: BalloonStatus {
                target: balloon,
                actual: balloon,
                driver_ready: true,
                reported_total: Bytes(0),
                inflated_total: Bytes(0),
                bad_requests: 0,
            },
            disks: Vec::new(),
            nets: Vec::new(),
            guest_resident: Bytes(memory.get().saturating_sub(balloon.get())),
            vmm_resident: Bytes::mib(3),
        }
    }

    /// As many as a Linux 6.12 guest gives.
    fn statistics(&self) -> BalloonStatistics {
        let size = self.size();
        let total = size.memory.get().saturating_sub(KERNEL.get());
        let free = total / 100 * (100 - self.used.load(Ordering::Relaxed));
        let values = [
            ("swap_in", 0),
            ("swap_out", 0),
            ("major_faults", 812),
            ("minor_faults", 1_204_112),
            ("free_memory", free / 2),
            ("total_memory", total),
            ("available_memory", free.saturating_sub(size.balloon.get())),
            ("disk_caches", free / 2),
            ("hugetlb_allocations", 0),
            ("hugetlb_failures", 0),
            ("oom_kill", 0),
            ("alloc_stall", 0),
            ("async_scan", 0),
            ("direct_scan", 0),
            ("async_reclaim", 0),
            ("direct_reclaim", 0),
        ];
        BalloonStatistics {
            age_ms: Some(20),
            values: values
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect(),
        }
    }

    fn resize(&self, wish: &VmResize) -> ResizeReport {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        size.vcpus = wish.vcpus.unwrap_or(size.vcpus);
        size.quota = wish.quota.unwrap_or(size.quota);
        let memory = wish.memory.unwrap_or(size.memory);
        if memory > size.memory {
            self.used.store(USED_AT_REST, Ordering::Relaxed);
        }
        size.memory = memory;
        size.balloon = wish.balloon.unwrap_or(size.balloon);
        let asked = VmSize {
            vcpus: wish.vcpus,
            quota: wish.quota,
            memory: wish.memory,
            balloon: wish.balloon,
            disk_rate: None,
            net_rate: None,
        };
        ResizeReport {
            outcome: Outcome::Applied,
            got: asked.clone(),
            asked,
            reason: None,
            ost: None,
            timeline_ms: [
                ("memory_requested".to_owned(), 0.1),
                ("total".to_owned(), 0.2),
            ]
            .into(),
        }
    }
}

impl Source for Shown {
    fn ask(&self) -> Option<u64> {
        // Its answer is there already.
        None
    }

    fn arrivals(&self) -> u64 {
        0
    }

    fn counters(&self, now_ms: u64) -> Counters {
        let said = self.0.statistics();
        Counters {
            published_ms: now_ms,
            statistics_ms: Some(now_ms),
            balloon: self.0.size().balloon,
            statistics: STATISTIC_NAMES.map(|name| said.values.get(name).copied()),
        }
    }
}

/// What an agent finds of an instance that another one has launched.
fn write_records(
    name: &str,
    paths: &InstancePaths,
    group: &Path,
    pid: i32,
    shape: Shape,
) -> Result<()> {
    let spec = VmSpec {
        name: name.to_owned(),
        kernel: "bzImage".into(),
        initrd: None,
        cmdline: "console=ttyS0".into(),
        boot_vcpus: 1,
        max_vcpus: MOST_VCPUS,
        quota: Quota::Max,
        boot_memory: LEAST,
        max_memory: MOST,
        api_socket: paths.vmm_socket.clone(),
        console_socket: None,
        console_log: None,
        disks: Vec::new(),
        vsock: None,
        cgroup: Some(group.to_owned()),
        nets: Vec::new(),
        exit_file: Some(paths.exit.clone()),
        counters_file: Some(paths.counters.clone()),
    };
    let launch = serde_json::json!({
        "policy": policy(shape)?,
        "policy_version": 1,
        "launched": Moment::now(),
        "vm": spec,
    });
    fs::write(&paths.vm_spec, serde_json::to_vec(&spec)?)?;
    fs::write(&paths.launch, serde_json::to_vec(&launch)?)?;
    let agent = ProcessId {
        pid: i32::MAX,
        start_ticks: 0,
    };
    let record = InstanceRecord {
        vmm: ProcessId::of(pid),
        cgroup: Some(group.to_owned()),
        socket: Some(paths.dir.join("agent-that-died.sock")),
        ..InstanceRecord::new(name, agent)
    };
    record.write(&paths.record)?;
    Ok(())
}

/// Rules for both axes, as a customer would write them.
fn policy(shape: Shape) -> Result<Policy> {
    let cpus = format!("1..{MOST_VCPUS}")
        .parse()
        .map_err(|e| anyhow!("{e}"))?;
    let memory = "512M..4G".parse().map_err(|e| anyhow!("{e}"))?;
    let mut policy = Policy::new(concertina_api::policy::PolicyBounds { cpus, memory });
    let every = match shape.period.as_millis() {
        1000 => String::new(),
        period_ms => format!(" every {period_ms}ms"),
    };
    for rule in [
        format!("cpu > 75% 5 of 5{every}: +1 cpu"),
        format!("cpu < 20% 60 of 60{every}: -1 cpu"),
        format!("memory > 80% 1 of 1{every}: +25%"),
        format!("memory < 30% 60 of 60{every}: -10%"),
        format!("memory.pressure > 10% 1 of 1{every}: +25%"),
    ] {
        policy.scale(&rule).map_err(|error| anyhow!("{error}"))?;
    }
    Ok(policy)
}

/// Puts the process into the group, or makes the files that a group would have.
fn fill_group(group: &Path, pid: i32) -> Result<()> {
    let procs = group.join("vcpu/cgroup.procs");
    if procs.exists() {
        return Ok(fs::write(procs, pid.to_string())?);
    }
    let stat = "usage_usec 1\nuser_usec 1\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n";
    fs::write(group.join("vcpu/cpu.stat"), stat)?;
    let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
    for file in ["cpu.pressure", "memory.pressure", "io.pressure"] {
        fs::write(group.join(file), pressure)?;
    }
    fs::write(
        group.join("memory.events"),
        "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
    )?;
    for file in ["memory.high", "memory.max"] {
        fs::write(group.join(file), "max\n")?;
    }
    Ok(())
}

/// A cgroup v2 folder of our own with the memory controller, if this host lets us have one.
fn real_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (folder, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(folder))
    })?;
    let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).ok()?;
    let needed = ["cpu", "memory"];
    if !needed
        .iter()
        .all(|name| controllers.split_whitespace().any(|has| has == *name))
    {
        return None;
    }
    let group = root.join(format!("concertina-bench-{}", std::process::id()));
    fs::create_dir(&group).ok()?;
    let enabled = fs::write(group.join("cgroup.subtree_control"), "+cpu +memory");
    if enabled.is_err() {
        let _ = fs::remove_dir(&group);
        return None;
    }
    Some(group)
}

fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            let _ = fs::remove_dir(entry.path().join("vcpu"));
            let _ = fs::remove_dir(entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// The body of a process that plays a vCPU: a little work in each period, until its parent is gone.
pub fn play_vcpu(period_ms: u64) {
    const WORK: Duration = Duration::from_micros(20);
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        let begun = Instant::now();
        while begun.elapsed() < WORK {
            std::hint::spin_loop();
        }
        thread::sleep(Duration::from_millis(period_ms.max(2) * 2 / 3));
    }
}
