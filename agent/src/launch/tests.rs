//! Launches against a fake vmm process, in a folder that plays a cgroup tree.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use concertina_api::event::{Event, EventKind};
use concertina_api::instance::{InstanceResize, InstanceState, StopRequest};
use concertina_api::policy::{Policy, PolicyBounds};
use concertina_api::vm::Outcome;
use concertina_api::{Bytes, Cpus, Quota};

use super::*;
use crate::cgroup::fake_hierarchy;
use crate::client;
use crate::state_dir::LockError;
use crate::testing::process_command;
use crate::usage::{Reason, read_chain, total};

/// A host in a temporary folder, and a launch that it accepts.
struct Bench {
    temp: tempfile::TempDir,
    _cgroup: tempfile::TempDir,
    host: Host,
    spec: LaunchSpec,
}

fn bench(behaviour: &str) -> Bench {
    let temp = tempfile::tempdir().unwrap();
    let (cgroup, tree) = fake_hierarchy();
    let kernel = temp.path().join("kernel");
    fs::write(&kernel, small_bzimage()).unwrap();
    let kvm = temp.path().join("kvm");
    fs::write(&kvm, "").unwrap();
    let bounds = PolicyBounds {
        cpus: "0.5..4".parse().unwrap(),
        memory: "256M..1G".parse().unwrap(),
    };
    Bench {
        host: Host {
            pressure: kvm.clone(),
            kvm,
            cgroups: Some(tree),
        },
        spec: LaunchSpec {
            name: "web".into(),
            kernel,
            initrd: None,
            boot_source: None,
            append: None,
            disks: Vec::new(),
            nets: Vec::new(),
            seed: None,
            policy: Policy::new(bounds),
            state_dir: temp.path().join("state"),
            vmm_command: process_command(behaviour),
        },
        temp,
        _cgroup: cgroup,
    }
}

impl Bench {
    fn prepare(&self) -> Result<Instance, LaunchError> {
        prepare_on(&self.host, self.spec.clone(), Owner::process())
    }

    fn start(&self) -> Instance {
        let mut instance = self.prepare().unwrap();
        instance.start().unwrap();
        instance
    }

    fn folder(&self) -> PathBuf {
        self.spec.state_dir.join("web")
    }

    fn group(&self) -> PathBuf {
        self._cgroup.path().join("concertina/web")
    }

    fn events(&self) -> Vec<EventKind> {
        let text = fs::read_to_string(self.folder().join("events.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Event>(line).unwrap().kind)
            .collect()
    }

    fn nothing_is_left(&self) {
        assert!(!self.folder().exists(), "the instance's folder is left");
        assert!(!self.group().exists(), "the cgroup is left");
    }
}

#[test]
fn an_instance_lives_until_its_guest_powers_off() {
    let bench = bench("exit-0");
    let instance = bench.start();
    let paths = instance.paths().clone();
    assert_eq!(
        client::status(&paths).unwrap().state,
        InstanceState::Running
    );
    assert_eq!(
        instance.supervise(),
        ExitReport {
            status: 0,
            reason: "Guest powered off".into(),
            exit_reason: concertina_api::instance::ExitReason::PoweredOff,
        }
    );
    assert!(!bench.group().exists());
    for socket in [&paths.agent_socket, &paths.vmm_socket, &paths.vm_spec] {
        assert!(!socket.exists(), "{}", socket.display());
    }
    let events = bench.events();
    assert!(
        matches!(events.first(), Some(EventKind::Started { .. })),
        "{events:?}"
    );
    assert!(
        matches!(
            events.last(),
            Some(EventKind::Ended {
                status: Some(0),
                ..
            })
        ),
        "{events:?}"
    );
    let entry = &StateDir::new(bench.spec.state_dir.clone()).instances()[0];
    assert_eq!((entry.state, entry.alive), (InstanceState::Stopped, false));
    // The name is free again, and the old events are gone with the next launch.
    let next = bench.start();
    assert_eq!(bench.events().len(), 1);
    drop(next);
}

#[test]
fn each_way_of_failing_has_its_status_and_its_sentence() {
    for (behaviour, status, word) in [
        ("exit-65", 65, "triple fault"),
        ("exit-66", 66, "KVM"),
        ("exit-9", 9, "status 9"),
    ] {
        let bench = bench(behaviour);
        let report = bench.start().supervise();
        assert_eq!(report.status, status, "{report:?}");
        assert!(report.reason.contains(word), "{report:?}");
        let entry = &StateDir::new(bench.spec.state_dir.clone()).instances()[0];
        assert_eq!(entry.state, InstanceState::Failed);
        assert_eq!(entry.ending.as_ref().unwrap().reason, report.reason);
    }
}

#[test]
fn a_vmm_that_is_killed_is_a_failure_that_names_the_signal() {
    let bench = bench("obey");
    let instance = bench.start();
    let vmm = client::status(instance.paths()).unwrap().vmm_pid.unwrap();
    crate::state_dir::ProcessId::of(vmm).unwrap().kill();
    let report = instance.supervise();
    assert_eq!(report.status, 128 + libc::SIGKILL);
    assert!(report.reason.contains("signal 9"), "{report:?}");
}

#[test]
fn a_guest_that_resets_is_started_again() {
    let bench = bench("reset-once");
    let instance = bench.start();
    let deadline = Instant::now() + Duration::from_secs(20);
    while bench.events().len() < 3 {
        assert!(Instant::now() < deadline, "{:?}", bench.events());
        std::thread::sleep(Duration::from_millis(20));
    }
    let events = bench.events();
    assert!(matches!(
        events.as_slice(),
        [
            EventKind::Started { .. },
            EventKind::Rebooted,
            EventKind::Started { .. }
        ]
    ));
    instance.stopper().request_stop();
    assert_eq!(instance.supervise().status, 0);
}

#[test]
fn a_guest_that_restarts_boots_the_kernel_that_it_has_installed() {
    let mut bench = bench("reset-once");
    let installed = bench.temp.path().join("installed");
    fs::copy(&bench.spec.kernel, &installed).unwrap();
    let kernel = installed.clone();
    bench.spec.boot_source = Some(BootSource::new(move || {
        Ok(BootFiles {
            kernel: kernel.clone(),
            initrd: None,
        })
    }));
    let instance = bench.start();
    let deadline = Instant::now() + Duration::from_secs(20);
    while bench.events().len() < 3 {
        assert!(Instant::now() < deadline, "{:?}", bench.events());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut vm: VmSpec =
        serde_json::from_slice(&fs::read(&instance.paths().vm_spec).unwrap()).unwrap();
    assert_eq!(vm.kernel, installed);
    // One that is no kernel leaves the words of before.
    fs::write(&installed, "no kernel").unwrap();
    let source = bench.spec.boot_source.take().unwrap();
    let why = source.renew(&mut vm).unwrap_err();
    assert!(why.contains("installed"), "{why}");
    assert_eq!(vm.kernel, installed);
    instance.stopper().request_stop();
    assert_eq!(instance.supervise().status, 0);
}

#[test]
fn limits_outlive_a_reboot_of_the_guest() {
    let mut bench = bench("reset-after-rate");
    let image = bench.temp.path().join("a.img");
    fs::write(&image, [0; 4096]).unwrap();
    bench.spec.disks = vec![DiskSpec::new(&image)];
    bench.spec.policy.io.disk = "10M..100M".parse().ok();
    let instance = bench.start();
    let told = || -> VmSpec {
        serde_json::from_slice(&fs::read(&instance.paths().vm_spec).unwrap()).unwrap()
    };
    assert_eq!(told().disks[0].rate, "10M".parse().unwrap());
    let wish = |rate: &str| InstanceResize {
        disk_rate: rate.parse().ok(),
        ..InstanceResize::default()
    };
    let refused = client::resize(instance.paths(), &wish("500M")).unwrap();
    assert_eq!(refused.outcome, Outcome::Refused);
    let report = client::resize(instance.paths(), &wish("50M,burst=1M")).unwrap();
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    let status = client::status(instance.paths()).unwrap();
    let limit = status.io.disk_rate.unwrap();
    assert_eq!(limit.max, "100M".parse().unwrap());
    assert_eq!(limit.target, "50M,burst=1M".parse().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    let lives = |events: Vec<EventKind>| {
        let is_start = |event: &&EventKind| matches!(event, EventKind::Started { .. });
        events.iter().filter(is_start).count()
    };
    while lives(bench.events()) < 2 {
        assert!(Instant::now() < deadline, "{:?}", bench.events());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(told().disks[0].rate, "50M,burst=1M".parse().unwrap());
    instance.stopper().request_stop();
    assert_eq!(instance.supervise().status, 0);
}

#[test]
fn rules_about_devices_need_them_and_their_bounds() {
    let mut bench = bench("obey");
    let refusal = |bench: &Bench| {
        let error = bench.prepare().unwrap_err();
        assert!(error.is_usage(), "{error}");
        error.to_string()
    };
    bench.spec.policy.scale("disk > 80%: +1 cpu").unwrap();
    assert!(refusal(&bench).contains("--disk"), "{}", refusal(&bench));
    bench.spec.policy.rules.clear();
    bench.spec.policy.io.net = "80mbit..800mbit".parse().ok();
    assert!(refusal(&bench).contains("add --net"), "{}", refusal(&bench));
    bench.nothing_is_left();
}

#[test]
fn a_guest_that_only_resets_is_given_up() {
    let bench = bench("exit-64");
    let report = bench.start().supervise();
    assert_eq!(report.status, crate::instance::exit::REBOOT_LOOP);
    assert!(report.reason.contains("console.log"), "{report:?}");
}

#[test]
fn a_stop_asks_first_and_then_insists() {
    let asked = bench("obey");
    let instance = asked.start();
    client::stop(instance.paths(), &StopRequest::default()).unwrap();
    let report = instance.supervise();
    assert_eq!(report.status, 0);
    assert!(report.reason.contains("powered off"), "{report:?}");

    let deaf = bench("ignore-button");
    let instance = deaf.start();
    let request = StopRequest {
        force: false,
        timeout_ms: Some(100),
    };
    client::stop(instance.paths(), &request).unwrap();
    let report = instance.supervise();
    assert_eq!(report.status, 0);
    assert!(report.reason.contains("100ms"), "{report:?}");
}

#[test]
fn a_forced_stop_ends_even_a_vmm_that_obeys_nothing() {
    let bench = bench("ignore-all");
    let instance = bench.start();
    let stopper = instance.stopper();
    stopper.request_stop();
    stopper.force();
    let report = instance.supervise();
    assert_eq!(report.status, 0, "{report:?}");
    assert!(!bench.group().exists());
}

#[test]
fn a_resize_by_hand_is_carried_out_and_told() {
    let bench = bench("obey");
    let instance = bench.start();
    let wish = InstanceResize {
        cpus: Some(Cpus(2500)),
        memory: Some(Bytes::mib(512)),
        disk_rate: Some("1=20M".parse().unwrap()),
        net_rate: Some("0.rx=5M".parse().unwrap()),
        timeout_ms: None,
        key: None,
    };
    let report = client::resize(instance.paths(), &wish).unwrap();
    assert_eq!(report.outcome, Outcome::Applied, "{report:?}");
    assert_eq!(report.got.disk_rate, wish.disk_rate);
    assert_eq!(report.got.net_rate, wish.net_rate);
    assert!(report.timeline_ms.contains_key("total"));
    let status = client::status(instance.paths()).unwrap();
    assert_eq!((status.cpus.online, status.cpus.target), (3, Cpus(2500)));
    assert_eq!(status.memory.plugged, Bytes::mib(512));
    assert_eq!(status.last_resize, Some(report));
    let ceiling = fs::read_to_string(bench.group().join("memory.max")).unwrap();
    assert!(ceiling.parse::<u64>().unwrap() > 512 << 20);

    let outside = InstanceResize {
        cpus: Some(Cpus(5000)),
        ..Default::default()
    };
    let report = client::resize(instance.paths(), &outside).unwrap();
    assert_eq!(report.outcome, Outcome::Refused);
    assert!(report.reason.unwrap().contains("0.5 to 4"));
    assert!(client::resize(instance.paths(), &InstanceResize::default()).is_err());
}

#[test]
fn what_an_instance_held_is_written_down_and_outlives_it() {
    let bench = bench("obey");
    let usage = || read_chain(&bench.folder().join("usage.jsonl"), "web").unwrap();
    let instance = bench.start();
    let wish = InstanceResize {
        disk_rate: None,
        net_rate: None,
        cpus: Some(Cpus(2500)),
        memory: Some(Bytes::mib(512)),
        timeout_ms: None,
        key: None,
    };
    client::resize(instance.paths(), &wish).unwrap();
    let chain = usage();
    let first = chain.records.first().unwrap();
    assert_eq!(
        (first.reason, first.cpus, first.memory),
        (Reason::Launch, Cpus(500), Bytes::mib(256))
    );
    let last = chain.records.last().unwrap();
    assert_eq!(
        (last.reason, last.cpus, last.memory),
        (Reason::Resize, Cpus(2500), Bytes::mib(512))
    );
    instance.stopper().force();
    assert_eq!(instance.supervise().status, 0);
    let ended = usage();
    assert_eq!(ended.records.last().unwrap().reason, Reason::End);
    let totals = total(&ended.records, None);
    assert!(
        totals.vcpu_us > 0 && totals.promised_kib_ms > 0,
        "{totals:?}"
    );

    // Neither a launch that fails nor one that comes to a guest takes it away.
    let mut failing = bench.spec.clone();
    failing.vmm_command = process_command("fail");
    assert!(
        prepare_on(&bench.host, failing, Owner::process())
            .unwrap()
            .start()
            .is_err()
    );
    assert_eq!(usage(), ended);
    let again = bench.start();
    let chain = usage();
    assert_eq!(chain.records.len(), ended.records.len() + 1);
    assert!(chain.gaps.is_empty());
    drop(again);
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    let bench = bench("obey");
    let refused = |change: &dyn Fn(&mut LaunchSpec), usage: bool, word: &str| {
        let mut spec = bench.spec.clone();
        change(&mut spec);
        let error = prepare_on(&bench.host, spec, Owner::process()).unwrap_err();
        assert_eq!(error.is_usage(), usage, "{error}");
        let sentence = crate::sentence(&error);
        assert!(sentence.contains(word), "{sentence} lacks {word}");
        assert!(!bench.spec.state_dir.exists());
        assert!(!bench._cgroup.path().join("concertina").exists());
    };
    refused(&|s| s.name = "Web".into(), true, "Web");
    refused(
        &|s| s.kernel = "/nonexistent".into(),
        true,
        "does not exist",
    );
    refused(
        &|s| s.initrd = Some("/nonexistent".into()),
        true,
        "does not exist",
    );
    refused(
        &|s| s.append = Some("a\nb".into()),
        true,
        "control character",
    );
    refused(
        &|s| s.policy.bounds.memory.min = Bytes::mib(32),
        true,
        "64M",
    );
    refused(
        &|s| s.policy.bounds.cpus.max = Cpus::whole(300),
        true,
        "255",
    );
    refused(
        &|s| s.state_dir = bench.temp.path().join("d".repeat(120)),
        true,
        "--state-dir",
    );
}

#[test]
fn the_disk_for_cloud_init_lives_as_long_as_the_instance_and_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let mut bench = bench("obey");
    bench.spec.seed = Some(vec![7; 512]);
    let instance = bench.start();
    let paths = instance.paths().clone();
    let file = fs::metadata(&paths.seed).unwrap();
    assert_eq!(
        (file.len(), file.permissions().mode() & 0o777),
        (512, 0o600)
    );
    let vm: serde_json::Value = serde_json::from_slice(&fs::read(&paths.vm_spec).unwrap()).unwrap();
    let disk = &vm["disks"][0];
    assert_eq!(disk["path"], paths.seed.to_str().unwrap());
    assert_eq!(
        (&disk["read_only"], &disk["serial"]),
        (&true.into(), &"cidata".into())
    );
    drop(instance);
    assert!(!paths.seed.exists());
}

#[test]
fn a_host_that_lacks_something_is_an_error_of_the_host() {
    let bench = bench("obey");
    let no_kvm = Host {
        kvm: "/nonexistent/kvm".into(),
        pressure: bench.host.pressure.clone(),
        cgroups: bench.host.cgroups.clone(),
    };
    let error = prepare_on(&no_kvm, bench.spec.clone(), Owner::process()).unwrap_err();
    assert!(!error.is_usage());
    assert!(error.to_string().contains("kvm_intel"), "{error}");
    bench.nothing_is_left();
}

#[test]
fn a_name_in_use_is_refused_and_its_owner_is_left_alone() {
    let bench = bench("obey");
    let first = bench.start();
    let error = bench.prepare().unwrap_err();
    assert!(
        matches!(error, LaunchError::Name(LockError::InUse(_))),
        "{error}"
    );
    assert!(!error.is_usage());
    assert_eq!(
        client::status(first.paths()).unwrap().state,
        InstanceState::Running
    );
}

#[test]
fn a_vmm_that_gives_up_passes_its_sentence_on_and_leaves_nothing() {
    let bench = bench("fail");
    let mut instance = bench.prepare().unwrap();
    let error = instance.start().unwrap_err();
    assert_eq!(error.to_string(), "The fake kernel is bad");
    drop(instance);
    bench.nothing_is_left();
}

#[test]
fn a_vmm_program_that_does_not_exist_leaves_nothing() {
    let mut bench = bench("obey");
    bench.spec.vmm_command = vec!["/nonexistent/vmm".into()];
    let mut instance = bench.prepare().unwrap();
    assert!(
        instance
            .start()
            .unwrap_err()
            .to_string()
            .contains("/nonexistent/vmm")
    );
    drop(instance);
    bench.nothing_is_left();
}

#[test]
fn what_is_dropped_unstarted_or_running_is_cleaned_up() {
    let bench = bench("obey");
    drop(bench.prepare().unwrap());
    bench.nothing_is_left();
    drop(bench.start());
    assert!(!bench.group().exists());
    assert!(!bench.folder().join("agent.sock").exists());
}

#[test]
fn what_a_dead_supervisor_left_is_taken_over() {
    let bench = bench("obey");
    let group = bench.group();
    fs::create_dir_all(group.join("vcpu")).unwrap();
    fs::create_dir_all(bench.folder()).unwrap();
    let mut orphan = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    let orphan_id = crate::state_dir::ProcessId::of(orphan.id() as i32).unwrap();
    let mut dead = crate::state_dir::ProcessId::of_self();
    dead.start_ticks += 1;
    let record = InstanceRecord {
        vmm: Some(orphan_id),
        cgroup: Some(group.clone()),
        ..InstanceRecord::new("web", dead)
    };
    record.write(&bench.folder().join("instance.json")).unwrap();
    fs::write(bench.folder().join("agent.sock"), "").unwrap();
    let instance = bench.start();
    assert!(!orphan_id.is_alive(), "the orphaned vmm is still there");
    let _ = orphan.wait();
    assert_eq!(
        client::status(instance.paths()).unwrap().state,
        InstanceState::Running
    );
}

#[test]
fn a_threshold_that_fires_makes_a_busy_instance_grow_and_says_so() {
    let mut bench = bench("burn");
    bench.spec.policy.period_ms = 100;
    bench
        .spec
        .policy
        .scale("cpu > 30% for 200ms: +0.4 cpu, cooldown 60s")
        .unwrap();
    let begun = Instant::now();
    let instance = bench.start();
    let status = loop {
        let status = client::status(instance.paths()).unwrap();
        if status.last_resize.is_some() {
            // The VM was described a moment before the resize was looked up.
            break client::status(instance.paths()).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{status:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let cpus = (status.cpus.target, status.cpus.online);
    assert_eq!(cpus, (Cpus(900), 1), "{status:?} {:?}", bench.events());
    assert_eq!(status.cpus.quota, Quota::Limited(Cpus(900)));
    let rule = &status.thresholds[0];
    assert!(rule.rule.starts_with("cpu > 30% for 200ms"), "{rule:?}");
    assert!(
        rule.last_value.is_some_and(|value| value > 30.0),
        "{rule:?}"
    );
    let events = bench.events();
    let fired = events
        .iter()
        .position(|event| matches!(event, EventKind::Threshold { state, .. } if state == "fired"));
    let resized = events.iter().position(|event| {
        matches!(event, EventKind::Resized { cause, report, .. }
            if cause.starts_with("cpu > 30%") && report.outcome == Outcome::Applied)
    });
    assert!(fired.is_some() && fired < resized, "{events:?}");
    // The cooldown holds further growth, and the instance ends with its resizes.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        client::status(instance.paths()).unwrap().cpus.target,
        Cpus(900)
    );
}

#[test]
fn a_resize_by_hand_holds_the_rules_of_its_axis() {
    // It burns whatever it is given, which on a busy machine is little.
    let mut bench = bench("burn");
    bench.spec.policy.period_ms = 100;
    bench
        .spec
        .policy
        .scale("cpu > 3% for 300ms: +1 cpu")
        .unwrap();
    let instance = bench.start();
    let wish = InstanceResize {
        cpus: Some(Cpus(700)),
        ..Default::default()
    };
    assert_eq!(
        client::resize(instance.paths(), &wish).unwrap().outcome,
        Outcome::Applied
    );
    let deadline = Instant::now() + Duration::from_secs(30);
    let held = |event: &EventKind| matches!(event, EventKind::Held { why, .. } if why.starts_with("manual_hold"));
    while !bench.events().iter().any(held) {
        assert!(Instant::now() < deadline, "{:?}", bench.events());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        client::status(instance.paths()).unwrap().cpus.target,
        Cpus(700)
    );
}

#[test]
fn a_policy_that_recommends_reports_and_resizes_nothing() {
    let mut bench = bench("burn");
    bench.spec.policy.period_ms = 100;
    for text in ["cpu > 30% for 200ms: +0.4 cpu", "set mode recommend"] {
        bench.spec.policy.scale(text).unwrap();
    }
    let instance = bench.start();
    let begun = Instant::now();
    let status = loop {
        let status = client::status(instance.paths()).unwrap();
        if status.recommended.is_some() {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{status:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.recommended.unwrap().cpus, Some(Cpus(900)));
    // Long enough for several more decisions of the same kind.
    std::thread::sleep(Duration::from_millis(500));
    let status = client::status(instance.paths()).unwrap();
    assert_eq!(status.last_resize, None);
    assert_eq!(status.cpus.target, Cpus(500));
    let events = bench.events();
    let recommended = events.iter().any(|event| {
        matches!(event, EventKind::Recommended { cause, recommended, .. }
            if cause.starts_with("cpu > 30%") && recommended.cpus == Some(Cpus(900)))
    });
    assert!(recommended, "{events:?}");
    let resized = |event: &EventKind| matches!(event, EventKind::Resized { .. });
    assert!(!events.iter().any(resized), "{events:?}");
    // A person is obeyed.
    let wish = InstanceResize {
        cpus: Some(Cpus(700)),
        ..Default::default()
    };
    assert_eq!(
        client::resize(instance.paths(), &wish).unwrap().outcome,
        Outcome::Applied
    );
}
