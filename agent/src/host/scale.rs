//! What an agent costs its host with many instances. Numbers, not a test: run by hand, optimised.
//!
//! ```text
//! cargo test --release -p concertina-agent -- --ignored --nocapture host::scale::an_agent_of_many
//! ```
//! The instances are simulated: one process answers as all their vmms, on the real protocol. The agent is
//! a process of its own, which takes all of them over, and looks at each once a second.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use concertina_api::policy::{Policy, PolicyBounds};
use concertina_api::vm::VmSpec;
use concertina_api::{Bytes, Quota};

use super::tests::{Bench, bench};
use super::*;
use crate::clock::Moment;
use crate::state_dir::ProcessId;
use crate::testing::{FakeVm, FakeVmm, Faults};

/// How long is measured.
const MEASURED: Duration = Duration::from_secs(20);

fn count() -> usize {
    let count = std::env::var("CONCERTINA_SCALE").unwrap_or_default();
    count.parse().unwrap_or(1000)
}

fn policy(period_ms: u64) -> Policy {
    let mut policy = Policy::new(PolicyBounds {
        cpus: "1..4".parse().unwrap(),
        memory: "256M..1G".parse().unwrap(),
    });
    policy.period_ms = period_ms;
    for rule in [
        "cpu > 95% for 5s: +1 cpu",
        "memory > 95% for 2s: +128M",
        "memory < 1% for 60s: -128M",
    ] {
        policy.scale(rule).unwrap();
    }
    policy
}

/// Writes what an agent would have left of an instance.
fn leave_instance(bench: &Bench, number: usize, vmm: ProcessId, period_ms: u64) {
    let name = format!("vm{number}");
    let paths = bench.paths(&name);
    let group = bench.cgroup().join("concertina").join(&name);
    fs::create_dir_all(&paths.dir).unwrap();
    fs::create_dir_all(group.join("vcpu")).unwrap();
    let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
    for file in ["cpu.pressure", "memory.pressure", "io.pressure"] {
        fs::write(group.join(file), pressure).unwrap();
    }
    fs::write(
        group.join("memory.events"),
        "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
    )
    .unwrap();
    fs::write(
        group.join("vcpu/cpu.stat"),
        "usage_usec 1\nthrottled_usec 0\n",
    )
    .unwrap();
    let vm = VmSpec {
        name: name.clone(),
        kernel: "/kernel".into(),
        initrd: None,
        cmdline: String::new(),
        boot_vcpus: 1,
        max_vcpus: 4,
        quota: Quota::Max,
        boot_memory: Bytes::mib(256),
        max_memory: Bytes::mib(1024),
        api_socket: paths.vmm_socket.clone(),
        console_socket: None,
        console_log: None,
        disks: Vec::new(),
        vsock: None,
        cgroup: Some(group.clone()),
        nets: Vec::new(),
        exit_file: Some(paths.exit.clone()),
        counters_file: None,
    };
    fs::write(&paths.vm_spec, serde_json::to_vec(&vm).unwrap()).unwrap();
    let launch = LaunchRecord {
        policy: policy(period_ms),
        policy_version: 1,
        launched: Moment::now(),
        vm,
        nets: Vec::new(),
        boot_image: None,
    };
    launch.write(&paths.launch).unwrap();
    let record = InstanceRecord {
        vmm: Some(vmm),
        cgroup: Some(group),
        socket: Some(bench.socket()),
        ..InstanceRecord::new(
            &name,
            ProcessId {
                pid: 1,
                start_ticks: 1,
            },
        )
    };
    record.write(&paths.record).unwrap();
}

/// Not a test: the body of the process that answers as all vmms. It gets their folder.
#[test]
#[ignore = "the body of a process that a measurement starts"]
fn fleet_process() {
    let Some(folder) = std::env::var_os("CONCERTINA_TEST_FLEET") else {
        return;
    };
    let folder = Path::new(&folder);
    let vmms: Vec<FakeVmm> = (0..count())
        .map(|number| {
            let boot = Bytes::mib(256);
            let faults = Faults {
                used: 64 << 20,
                ..Faults::default()
            };
            let mut vm = FakeVm::new(boot, Bytes::mib(1024), 1, faults);
            // SAFETY: gettid(2) has no preconditions.
            vm.tid = unsafe { libc::gettid() };
            FakeVmm::listen(&folder.join(format!("vm{number}/vmm.sock")), vm)
        })
        .collect();
    fs::write(folder.join("fleet.ready"), "").unwrap();
    while folder.exists() {
        std::thread::sleep(Duration::from_millis(100));
    }
    std::process::exit(i32::from(vmms.is_empty()));
}

fn start(test: &str, variables: &[(&str, &Path)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--ignored", "--nocapture"])
        .stdout(Stdio::null());
    for (name, value) in variables {
        command.env(name, value);
    }
    command.spawn().unwrap()
}

/// CPU seconds that a process has used, and its resident memory in MiB.
fn cost(pid: u32) -> (f64, f64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (ticks / 100.0, kib / 1024.0)
}

fn measure(period_ms: u64) {
    let bench = bench("obey");
    let folder = bench.state_dir();
    for number in 0..count() {
        fs::create_dir_all(folder.join(format!("vm{number}"))).unwrap();
    }
    let mut fleet = start(
        "host::scale::fleet_process",
        &[("CONCERTINA_TEST_FLEET", &folder)],
    );
    while !folder.join("fleet.ready").exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let vmm = ProcessId::of(fleet.id() as i32).unwrap();
    for number in 0..count() {
        leave_instance(&bench, number, vmm, period_ms);
    }
    let told = bench.write_told();
    let begun = Instant::now();
    let mut agent = start(
        "host::tests::agent_process",
        &[("CONCERTINA_TEST_AGENT", &told)],
    );
    while HostRecord::find(&folder).is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let adopted = begun.elapsed();
    assert_eq!(bench.host_status().instances as usize, count());
    std::thread::sleep(Duration::from_secs(5));
    let (before, _) = cost(agent.id());
    let measured = Instant::now();
    std::thread::sleep(MEASURED);
    let (after, resident) = cost(agent.id());
    let share = (after - before) / measured.elapsed().as_secs_f64() * 100.0;
    println!(
        "{} instances each {period_ms} ms: adopted in {:.2} s, {share:.1} % of a core, {resident:.1} MiB",
        count(),
        adopted.as_secs_f64()
    );
    agent.kill().unwrap();
    fleet.kill().unwrap();
    let _ = (agent.wait(), fleet.wait());
}

#[test]
#[ignore = "a measurement: see above"]
fn an_agent_of_many() {
    measure(1000);
}
