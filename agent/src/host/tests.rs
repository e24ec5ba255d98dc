//! An agent with fake vmm processes, in this process or in one of its own that is killed: what it owns,
//! what goes on without it, and what the next one makes of that.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_api::event::{Event, EventKind};
use concertina_api::host::{HostStatus, LaunchRequest};
use concertina_api::instance::{ExitReason, InstanceResize, InstanceStatus, StopRequest};
use concertina_api::policy::{Axis, Policy, PolicyBounds, Restart};
use concertina_api::vm::Outcome;
use concertina_api::{Bytes, Cpus};
use concertina_http::{Method, client as http};
use serde::{Deserialize, Serialize};

use super::*;
use crate::cgroup::{Hierarchy, fake_hierarchy};
use crate::client;
use crate::launch::{BootFiles, small_bzimage};
use crate::ledger::Overcommit;
use crate::policy::Size;
use crate::state_dir::ProcessId;
use crate::testing::process_command;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A host in temporary folders.
pub(super) struct Bench {
    temp: tempfile::TempDir,
    cgroup: tempfile::TempDir,
    behaviour: &'static str,
    memory: Bytes,
}

/// What an agent in a process of its own is told.
#[derive(Serialize, Deserialize)]
struct Told {
    state_dir: PathBuf,
    cgroup: PathBuf,
    kvm: PathBuf,
    behaviour: String,
    memory: Bytes,
}

pub(super) fn bench(behaviour: &'static str) -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let (cgroup, _tree) = fake_hierarchy();
    fs::write(temp.path().join("kernel"), small_bzimage()).unwrap();
    fs::write(temp.path().join("kvm"), "").unwrap();
    Bench {
        temp,
        cgroup,
        behaviour,
        memory: Bytes::mib(4096),
    }
}

fn setup_of(told: &Told) -> (Setup, LaunchHost) {
    let capacity = Size {
        cpus: Cpus::whole(8),
        memory: told.memory,
    };
    let kernel = told.kvm.with_file_name("kernel");
    let setup = Setup {
        socket: default_socket(&told.state_dir),
        journal: default_journal(&told.state_dir),
        state_dir: told.state_dir.clone(),
        limits: Limits {
            overcommit_cpus: Overcommit::NONE,
            ..Limits::exact(capacity)
        },
        vmm_command: process_command(&told.behaviour),
        cgroup: None,
        boot_sources: Arc::new(move |image| {
            let files = BootFiles {
                kernel: kernel.clone(),
                initrd: None,
            };
            BootSource::new(move || Ok(files.clone())).of_image(image)
        }),
    };
    let host = LaunchHost {
        kvm: told.kvm.clone(),
        pressure: told.kvm.clone(),
        cgroups: Some(Hierarchy::at(told.cgroup.clone(), None).unwrap()),
    };
    (setup, host)
}

/// An agent that serves, in this process.
pub(super) struct Agent {
    host: Arc<Host>,
    stopper: concertina_http::Stopper,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    fn start(told: &Told) -> Self {
        let (setup, launch_host) = setup_of(told);
        let host = Host::start_on(setup, launch_host).unwrap();
        let server = api::bind(&host).unwrap();
        host.announce().unwrap();
        let stopper = server.stopper();
        let handler = api::handler(Arc::clone(&host));
        let thread = std::thread::spawn(move || server.serve(handler).unwrap());
        Self {
            host,
            stopper,
            thread: Some(thread),
        }
    }

    /// Its core.
    pub(super) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    pub(super) fn leave(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopper.stop();
        self.host.leave();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

impl Bench {
    fn told(&self) -> Told {
        Told {
            state_dir: self.state_dir(),
            cgroup: self.cgroup.path().to_owned(),
            kvm: self.temp.path().join("kvm"),
            behaviour: self.behaviour.to_owned(),
            memory: self.memory,
        }
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    pub(super) fn socket(&self) -> PathBuf {
        default_socket(&self.state_dir())
    }

    pub(super) fn agent(&self) -> Agent {
        Agent::start(&self.told())
    }

    /// A kernel that passes for one.
    pub(super) fn kernel(&self) -> PathBuf {
        self.temp.path().join("kernel")
    }

    /// Folder that plays the cgroup tree.
    fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// What an agent in a process of its own is told, in a file.
    fn write_told(&self) -> PathBuf {
        let told = self.temp.path().join("told.json");
        fs::write(&told, serde_json::to_vec(&self.told()).unwrap()).unwrap();
        told
    }

    /// An agent in a process of its own, which dies at a point; it serves when this returns, unless
    /// that point was before.
    fn doomed_agent(&self, fault: &str) -> Child {
        let told = self.write_told();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "host::tests::agent_process",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env("CONCERTINA_TEST_AGENT", &told)
            .env("CONCERTINA_TEST_FAULT", fault)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + LIMIT;
        while HostRecord::find(&self.state_dir()).is_none() {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            assert!(Instant::now() < until, "the agent does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    fn request(&self) -> LaunchRequest {
        let bounds = PolicyBounds {
            cpus: "0.5..4".parse().unwrap(),
            memory: "256M..1G".parse().unwrap(),
        };
        LaunchRequest {
            kernel: self.temp.path().join("kernel"),
            initrd: None,
            append: None,
            disks: Vec::new(),
            nets: Vec::new(),
            seed: None,
            boot_image: None,
            policy: Policy::new(bounds),
            wait_ms: 0,
        }
    }

    pub(super) fn launch(&self, name: &str) -> Result<InstanceStatus, concertina_http::HttpError> {
        client::launch(&self.socket(), name, &self.request())
    }

    fn paths(&self, name: &str) -> InstancePaths {
        InstancePaths::in_dir(self.state_dir().join(name))
    }

    fn status(&self, name: &str) -> InstanceStatus {
        client::status(&self.paths(name)).unwrap()
    }

    pub(super) fn resize_memory(&self, name: &str, mib: u64) -> (Outcome, String) {
        let wish = InstanceResize {
            memory: Some(Bytes::mib(mib)),
            ..InstanceResize::default()
        };
        let report = client::resize(&self.paths(name), &wish).unwrap();
        (report.outcome, report.reason.unwrap_or_default())
    }

    fn events(&self, name: &str) -> Vec<EventKind> {
        let text = fs::read_to_string(self.paths(name).events).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str::<Event>(line).unwrap().kind)
            .collect()
    }

    fn host_status(&self) -> HostStatus {
        http::get_json(&self.socket(), "/v1/host", LIMIT).unwrap()
    }
}

#[track_caller]
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Not a test: the body of the process that [`Bench::doomed_agent`] starts.
#[test]
#[ignore = "the body of a process that other tests start"]
fn agent_process() {
    let Some(told) = std::env::var_os("CONCERTINA_TEST_AGENT") else {
        return;
    };
    let told: Told = serde_json::from_slice(&fs::read(told).unwrap()).unwrap();
    // As `concertina agent` has it.
    // SAFETY: mallopt changes tunables of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    let _agent = Agent::start(&told);
    loop {
        std::thread::park_timeout(Duration::from_secs(1));
        if !told.state_dir.exists() {
            std::process::exit(1);
        }
    }
}

#[test]
fn vms_go_on_when_the_agent_leaves_and_the_next_one_has_them() {
    let bench = bench("obey");
    let agent = bench.agent();
    assert!(bench.launch("web").is_ok());
    let taken = bench.launch("web").unwrap_err().to_string();
    assert!(taken.contains("in use"), "{taken}");
    assert_eq!(bench.resize_memory("web", 512).0, Outcome::Applied);
    let vmm = bench.status("web").vmm_pid.unwrap();
    agent.leave();
    let entry = StateDir::new(bench.state_dir())
        .instance("web")
        .unwrap()
        .unwrap();
    // This process is the agent of the record and lives on: only the socket tells.
    assert!(entry.socket.is_some() && ProcessId::of(vmm).is_some());

    let agent = bench.agent();
    let status = bench.status("web");
    assert_eq!(status.vmm_pid, Some(vmm));
    assert_eq!(status.memory.target, Bytes::mib(512));
    assert_eq!(agent.host.books().account(Axis::Memory).held, 512 << 20);
    assert_eq!(bench.resize_memory("web", 256).0, Outcome::Applied);
    let adopted =
        |event: &EventKind| matches!(event, EventKind::Adopted { vmm_pid, .. } if *vmm_pid == vmm);
    assert!(bench.events("web").iter().any(adopted));
    client::stop(&bench.paths("web"), &StopRequest::default()).unwrap();
    until("the end", || agent.host.find("web").is_none());
    assert_eq!(ProcessId::of(vmm), None);
    assert_eq!(agent.host.books().book(|book| book.instances().len()), 0);
    assert_eq!(agent.host.books().account(Axis::Memory).held, 0);
    let entry = StateDir::new(bench.state_dir())
        .instance("web")
        .unwrap()
        .unwrap();
    let ending = entry.ending.unwrap();
    assert_eq!(
        (ending.status, ending.exit_reason),
        (0, ExitReason::Stopped)
    );
    // The name is free again.
    assert!(bench.launch("web").is_ok());
}

#[test]
fn a_state_folder_has_one_agent() {
    let bench = bench("obey");
    let _agent = bench.agent();
    let (setup, launch_host) = setup_of(&bench.told());
    let error = Host::start_on(setup, launch_host).unwrap_err().to_string();
    assert!(error.contains("has an agent already"), "{error}");
}

#[test]
fn an_agent_killed_at_any_step_leaves_what_the_next_one_can_finish_or_undo() {
    for fault in [
        "launch_intent",
        "prepared",
        "spawned",
        "recorded",
        "launched",
        "reserved",
        "intent",
        "acted",
        "outcome",
        "stopping",
        "ended",
    ] {
        let bench = bench("obey");
        let mut doomed = bench.doomed_agent(fault);
        // Whichever of these kills it answers nothing.
        let _ = bench.launch("web");
        let wish = InstanceResize {
            memory: Some(Bytes::mib(768)),
            ..InstanceResize::default()
        };
        let _ = client::resize(&bench.paths("web"), &wish);
        let _ = client::stop(&bench.paths("web"), &StopRequest::default());
        doomed.wait().unwrap();

        let agent = bench.agent();
        let books = agent.host.books();
        until(fault, || books.book(|book| book.open().count()) == 0);
        if fault == "stopping" {
            until(fault, || agent.host.find("web").is_none());
        }
        match agent.host.find("web") {
            Some(core) => {
                let status = bench.status("web");
                assert!(
                    status
                        .vmm_pid
                        .is_some_and(|vmm| ProcessId::of(vmm).is_some())
                );
                let size = core.size();
                assert_eq!(
                    books.book(|book| book.instances()["web"].size),
                    size,
                    "{fault}"
                );
                assert_eq!(
                    books.account(Axis::Memory).held,
                    size.memory.get(),
                    "{fault}"
                );
                // A resize that had begun is finished.
                let began = matches!(fault, "intent" | "acted" | "outcome");
                assert_eq!(size.memory == Bytes::mib(768), began, "{fault}: {size:?}");
                assert_ne!(fault, "stopping", "a stop that was asked for goes on");
                client::stop(&bench.paths("web"), &StopRequest::default()).unwrap();
                until("the end", || agent.host.find("web").is_none());
            }
            None => {
                let left = [
                    "launch_intent",
                    "prepared",
                    "spawned",
                    "recorded",
                    "stopping",
                    "ended",
                ];
                assert!(left.contains(&fault), "{fault}: the instance is gone");
                assert_eq!(books.book(|book| book.instances().len()), 0, "{fault}");
                assert_eq!(books.account(Axis::Memory).held, 0, "{fault}");
            }
        }
        // Nothing stands in the way of another one.
        bench
            .launch("web")
            .unwrap_or_else(|error| panic!("{fault}: {error}"));
    }
}

#[test]
fn two_that_race_for_the_last_memory_get_it_one_after_the_other() {
    let mut bench = bench("obey");
    bench.memory = Bytes::mib(256 + 256 + 256);
    let agent = bench.agent();
    bench.launch("a").unwrap();
    bench.launch("b").unwrap();
    let (a, b) = std::thread::scope(|scope| {
        let a = scope.spawn(|| bench.resize_memory("a", 512));
        let b = scope.spawn(|| bench.resize_memory("b", 512));
        (a.join().unwrap(), b.join().unwrap())
    });
    let (winner, loser, told) = match (a.0, b.0) {
        (Outcome::Applied, Outcome::Refused) => ("a", "b", b.1),
        (Outcome::Refused, Outcome::Applied) => ("b", "a", a.1),
        other => panic!("{other:?}"),
    };
    for word in ["host_short_of_memory", "256M", "waits"] {
        assert!(told.contains(word), "{told}");
    }
    assert_eq!(
        bench.status(loser).waiting.unwrap().memory,
        Some(Bytes::mib(512))
    );
    assert_eq!(bench.host_status().waiting.len(), 1);
    assert_eq!(bench.resize_memory(winner, 256).0, Outcome::Applied);
    until("the other one has it", || {
        bench.status(loser).memory.target == Bytes::mib(512)
    });
    let served = |event: &EventKind| matches!(event, EventKind::Resized { note: Some(note), .. } if note.contains("waited"));
    until("an event says so", || {
        bench.events(loser).iter().any(served)
    });
    assert_eq!(agent.host.books().account(Axis::Memory).free(), 0);
}

#[test]
fn a_launch_for_whose_lower_bounds_there_is_no_room_is_refused_with_numbers() {
    let mut bench = bench("obey");
    bench.memory = Bytes::mib(400);
    let agent = bench.agent();
    bench.launch("a").unwrap();
    let error = bench.launch("b").unwrap_err().to_string();
    for word in ["host_short_of_memory", "256M", "144M", "400M"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(!bench.paths("b").dir.exists());
    assert_eq!(agent.host.instances().len(), 1);
}

#[test]
fn a_launch_that_waits_gets_its_room_from_a_donor_and_one_that_cannot_have_it_is_told() {
    let mut bench = bench("obey");
    bench.memory = Bytes::mib(640);
    let agent = bench.agent();
    let mut request = bench.request();
    request.policy.period_ms = 100;
    client::launch(&bench.socket(), "rich", &request).unwrap();
    assert_eq!(bench.resize_memory("rich", 512).0, Outcome::Applied);
    let launch = |name: &str, wait_ms: u64, floor_mib: u64| {
        let mut request = request.clone();
        request.wait_ms = wait_ms;
        request.policy.bounds.memory.min = Bytes::mib(floor_mib);
        client::launch(&bench.socket(), name, &request)
    };
    // What a donor needs is not known yet: nobody can give, and the deadline is kept.
    let text = launch("hasty", 300, 256).unwrap_err().to_string();
    for word in ["host_short_of_memory", "128M", "waited"] {
        assert!(text.contains(word), "{text}");
    }
    let text = launch("huge", 60_000, 512).unwrap_err().to_string();
    assert!(text.contains("384M of memory at most"), "{text}");
    let text = launch("patient", 3_600_001, 256).unwrap_err().to_string();
    assert!(text.contains("3600001"), "{text}");
    assert_eq!(bench.host_status().instances, 1);

    let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
    let group = bench.cgroup().join("concertina/rich/memory.pressure");
    fs::write(group, pressure).unwrap();
    launch("poor", 30_000, 256).unwrap();
    let host = bench.host_status();
    assert_eq!((host.instances, host.memory.awaited), (2, 0));
    assert!(bench.status("rich").memory.target <= Bytes::mib(384));
    drop(agent);
}

#[test]
fn what_a_vmm_publishes_is_looked_at_and_it_is_not_asked() {
    let bench = bench("publish");
    let _agent = bench.agent();
    let mut request = bench.request();
    request.policy.period_ms = 100;
    let rule = "memory > 80% for 100ms: +128M, cooldown 10m";
    request.policy.scale(rule).unwrap();
    client::launch(&bench.socket(), "web", &request).unwrap();
    // By what it answers its guest uses nothing.
    until("the rule has fired by what is published", || {
        bench.status("web").memory.target == Bytes::mib(384)
    });
    client::stop(&bench.paths("web"), &StopRequest::default()).unwrap();
}

#[test]
fn a_vmm_that_is_killed_is_explained_and_started_again_when_its_policy_says_so() {
    let bench = bench("obey");
    let agent = bench.agent();
    let mut request = bench.request();
    request.policy.restart = Restart::OnFailure;
    client::launch(&bench.socket(), "web", &request).unwrap();
    let vmm = bench.status("web").vmm_pid.unwrap();
    ProcessId::of(vmm).unwrap().kill();
    let again = || bench.status("web").vmm_pid.is_some_and(|pid| pid != vmm);
    until("another vmm", again);
    let restarting = bench
        .events("web")
        .into_iter()
        .find_map(|event| match event {
            EventKind::Restarting {
                reason,
                exit_reason,
                ..
            } => Some((reason, exit_reason)),
            _ => None,
        });
    let (reason, exit_reason) = restarting.unwrap();
    assert!(reason.contains("signal 9"), "{reason}");
    assert_eq!(exit_reason, ExitReason::Killed);
    until("its count", || bench.status("web").restarts == 1);
    assert_eq!(agent.host.books().account(Axis::Memory).held, 256 << 20);

    // Without that it has ended, also when another agent has started it.
    let mut quiet = bench.request();
    quiet.policy.restart = Restart::Never;
    client::launch(&bench.socket(), "db", &quiet).unwrap();
    let vmm = bench.status("db").vmm_pid.unwrap();
    agent.leave();
    let agent = bench.agent();
    ProcessId::of(vmm).unwrap().kill();
    until("the end", || agent.host.find("db").is_none());
    let state = StateDir::new(bench.state_dir());
    let ending = state.instance("db").unwrap().unwrap().ending.unwrap();
    assert_eq!(ending.exit_reason, ExitReason::Killed);
    assert_eq!(ending.status, 137);
}

#[test]
fn a_vmm_that_ends_while_there_is_no_agent_is_explained_by_its_own_word() {
    let bench = bench("obey");
    let agent = bench.agent();
    bench.launch("web").unwrap();
    let vmm = ProcessId::of(bench.status("web").vmm_pid.unwrap()).unwrap();
    agent.leave();
    crate::vmm::VmmClient::new(&bench.paths("web").vmm_socket)
        .stop()
        .unwrap();
    until("the vmm's end", || !vmm.is_alive());
    let agent = bench.agent();
    until("the end", || agent.host.find("web").is_none());
    let state = StateDir::new(bench.state_dir());
    let ending = state.instance("web").unwrap().unwrap().ending.unwrap();
    assert_eq!(ending.exit_reason, ExitReason::PoweredOff);
}

#[test]
fn a_vmm_that_hangs_holds_nobody_else_up() {
    let bench = bench("obey");
    let agent = bench.agent();
    bench.launch("hung").unwrap();
    bench.launch("well").unwrap();
    let vmm = bench.status("hung").vmm_pid.unwrap();
    let signal = |signal| {
        // SAFETY: kill(2) takes two integers and touches no memory of ours.
        unsafe { libc::kill(vmm, signal) };
    };
    signal(libc::SIGSTOP);
    let begun = Instant::now();
    assert_eq!(bench.resize_memory("well", 512).0, Outcome::Applied);
    assert_eq!(bench.host_status().instances, 2);
    assert_eq!(
        bench.status("hung").state,
        concertina_api::instance::InstanceState::Running
    );
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    // An agent that finds it so takes it over all the same.
    agent.leave();
    let _agent = bench.agent();
    assert_eq!(bench.status("hung").vmm_pid, Some(vmm));
    signal(libc::SIGCONT);
    until("it answers again", || {
        bench.resize_memory("hung", 512).0 == Outcome::Applied
    });
}

#[test]
fn a_policy_is_replaced_while_the_instance_runs_and_counted() {
    let bench = bench("burn");
    let agent = bench.agent();
    bench.launch("web").unwrap();
    let path = "/v1/instances/web/policy";
    let mut policy = bench.request().policy;
    policy.period_ms = 100;
    policy.scale("cpu > 10% for 100ms: +0.5 cpu").unwrap();
    let put = |policy: &Policy| http::send(&bench.socket(), Method::Put, path, Some(policy), LIMIT);
    put(&policy).unwrap();
    assert_eq!(bench.status("web").policy_version, 2);
    until("a resize that names it", || {
        let text = fs::read_to_string(bench.paths("web").events).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Event>(line).unwrap())
            .any(|event| {
                matches!(&event.kind, EventKind::Resized { samples, intents, reserved, .. }
                    if samples.contains_key("cpu") && intents.len() == 1 && reserved.is_some())
                    && event.policy_version == Some(2)
            })
    });
    policy.bounds.memory.max = Bytes::mib(2048);
    let error = put(&policy).unwrap_err().to_string();
    assert!(error.contains("256M..1G"), "{error}");
    assert_eq!(bench.status("web").policy_version, 2);
    // And the next agent has it, with what its decision remembers.
    let before = agent.host.find("web").unwrap().policy().policy.clone();
    until("its memory is written down", || {
        agent
            .host
            .books()
            .book(|book| book.instances()["web"].policy.is_some())
    });
    agent.leave();
    let agent = bench.agent();
    let after = agent.host.find("web").unwrap().policy();
    assert_eq!((after.version, &after.policy), (2, &before));
}

#[test]
fn cooldowns_outlive_the_agent_also_when_it_dies_before_it_could_write_them_down() {
    let bench = bench("burn");
    let mut doomed = bench.doomed_agent("outcome");
    let mut request = bench.request();
    request.policy.period_ms = 100;
    let rule = "cpu > 10% for 100ms: +0.5 cpu, cooldown 10m";
    request.policy.scale(rule).unwrap();
    let _ = client::launch(&bench.socket(), "web", &request);
    doomed.wait().unwrap();
    let agent = bench.agent();
    let size = agent.host.find("web").unwrap().size();
    assert_eq!(size.cpus, Cpus(1000), "the rule has grown it once");
    until("the rule is held by its cooldown", || {
        let thresholds = bench.status("web").thresholds;
        thresholds
            .iter()
            .any(|threshold| threshold.state == "cooldown")
    });
    assert_eq!(agent.host.find("web").unwrap().size(), size);
}

#[test]
fn a_request_with_a_key_is_answered_once_also_by_the_next_agent() {
    let bench = bench("obey");
    let agent = bench.agent();
    bench.launch("web").unwrap();
    let wish = |mib: u64| InstanceResize {
        memory: Some(Bytes::mib(mib)),
        key: Some("k1".into()),
        ..InstanceResize::default()
    };
    let ask = |mib| client::resize(&bench.paths("web"), &wish(mib));
    assert_eq!(ask(512).unwrap().outcome, Outcome::Applied);
    bench.resize_memory("web", 256);
    // The same request again does nothing, and another one with its key is an error.
    assert_eq!(ask(512).unwrap().got.memory, Some(Bytes::mib(512)));
    assert_eq!(bench.status("web").memory.target, Bytes::mib(256));
    assert!(ask(768).unwrap_err().to_string().contains("'k1'"));
    agent.leave();
    let _agent = bench.agent();
    assert_eq!(ask(512).unwrap().got.memory, Some(Bytes::mib(512)));
    assert_eq!(bench.status("web").memory.target, Bytes::mib(256));
}

#[test]
fn events_are_streamed_from_the_beginning_to_the_end() {
    let bench = bench("obey");
    let _agent = bench.agent();
    bench.launch("web").unwrap();
    let heard = std::thread::scope(|scope| {
        let listener = scope.spawn(|| {
            let mut heard = Vec::new();
            let take = |bytes: &[u8]| {
                heard.extend_from_slice(bytes);
                true
            };
            client::events(&bench.socket(), "web", true, take).unwrap();
            String::from_utf8(heard).unwrap()
        });
        bench.resize_memory("web", 512);
        client::stop(&bench.paths("web"), &StopRequest::default()).unwrap();
        listener.join().unwrap()
    });
    let kinds: Vec<String> = heard
        .lines()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            event["event"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(kinds.first().unwrap(), "started");
    assert!(kinds.contains(&"resized".to_owned()), "{kinds:?}");
    assert_eq!(kinds.last().unwrap(), "ended");
}

#[test]
fn what_is_not_served_is_said() {
    let bench = bench("obey");
    let _agent = bench.agent();
    let get = |path: &str| http::send::<()>(&bench.socket(), Method::Get, path, None, LIMIT);
    for (path, word) in [
        ("/v1/instances/none", "'none'"),
        ("/v1/instances/none/events", "'none'"),
        ("/v2", "/v2"),
        ("/v1/instances/none/resize", "method"),
    ] {
        let error = get(path).unwrap_err().to_string();
        assert!(error.contains(word), "{path}: {error}");
    }
    let document = get("/v1/openapi.json").unwrap();
    assert_eq!(document.body, api::openapi_document().into_bytes());
    let metrics = String::from_utf8(get("/metrics").unwrap().body).unwrap();
    assert!(
        metrics.contains("concertina_host_memory_limit_bytes 4294967296"),
        "{metrics}"
    );
    let bad = client::launch(&bench.socket(), "Bad_Name", &bench.request()).unwrap_err();
    assert!(bad.to_string().contains("Bad_Name"), "{bad}");
    let relative = LaunchRequest {
        initrd: Some("initrd".into()),
        ..bench.request()
    };
    let bad = client::launch(&bench.socket(), "web", &relative).unwrap_err();
    assert!(bad.to_string().contains("'initrd'"), "{bad}");
}
