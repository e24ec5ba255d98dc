//! The agent dies, at any moment, and its disk fills: the VMs go on, and the next agent knows what was
//! begun, promised and remembered.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::{Agent, Instance, Launch, MIB, proc};

fn elastic(name: &str) -> Launch {
    Launch::new(name).cpus("1..2").memory("256M..1G")
}

/// The size that agent, vmm, cgroup and ledger have for an instance, which has to be one.
#[track_caller]
fn agreed_size(agent: &Agent, instance: &Instance) -> u64 {
    let host = agent.wait_for_outcomes();
    let seen = instance.vm();
    let size = seen.memory.plugged.get() - seen.balloon.actual.get();
    let status = instance.status();
    assert_eq!(status["memory"]["target"], size, "{status:#}");
    let overhead = 16 * MIB;
    assert_eq!(host["memory"]["held"], size + overhead, "{host:#}");
    assert_eq!(
        seen.memory.target, seen.memory.plugged,
        "no change is under way"
    );
    let group = proc::cgroup_of(seen.pid, instance.vcpu_tids()[0]);
    let group = group
        .parent()
        .expect("the vCPUs' group is in the instance's");
    let ceiling = fs::read_to_string(group.join("memory.max")).expect("memory.max");
    let ceiling: u64 = ceiling.trim().parse().expect("a number of bytes");
    assert!(
        (size..size + 192 * MIB).contains(&ceiling),
        "{ceiling} for {size}"
    );
    size
}

#[test]
fn killed_in_the_midst_of_a_resize_it_is_finished_by_the_next_agent() {
    let mut agent = Agent::start("");
    let web = agent.launch(elastic("midst"));
    let mut shell = web.shell();
    let vmm = web.vmm_pid();
    let booted = shell.run("cat /proc/sys/kernel/random/boot_id");
    for (round, delay_ms) in [0, 15, 40, 90, 200, 450].into_iter().enumerate() {
        let target = if round % 2 == 0 { "768M" } else { "256M" };
        std::thread::scope(|scope| {
            // It loses its agent, and its own exit says nothing.
            scope.spawn(|| web.command("resize", &["--memory", target, "--json"]));
            std::thread::sleep(Duration::from_millis(delay_ms));
            agent.kill();
        });
        agent.start_again();
        let size = agreed_size(&agent, &web);
        // A guest that needs more than its lower bound keeps it, and then the outcome says so.
        let whole = [256 * MIB, 768 * MIB].contains(&size);
        let partly = |event: &Value| event["outcome"] == "partial";
        assert!(whole || web.events().iter().any(partly), "{size}");
        assert_eq!(web.vmm_pid(), vmm);
    }
    assert_eq!(shell.run("cat /proc/sys/kernel/random/boot_id"), booted);
    let recovered = web
        .events()
        .into_iter()
        .filter(|event| event["event"] == "recovered");
    eprintln!(
        "{} intents were finished by another agent",
        recovered.count()
    );
    web.resize_applied(&["--memory", "512M"]);
}

#[test]
fn a_hundred_random_kills() {
    let mut agent = Agent::start("");
    let (web, db) = (
        agent.launch(elastic("kills-a")),
        agent.launch(elastic("kills-b")),
    );
    let (mut shell, _other) = (web.shell(), db.shell());
    let (vmm, other) = (web.vmm_pid(), db.vmm_pid());
    let booted = shell.run("cat /proc/sys/kernel/random/boot_id");
    let mut random = Random::seeded();
    for round in 0..100 {
        let target = format!("{}M", 256 + 64 * random.below(9));
        let instance = if random.below(2) == 0 { &web } else { &db };
        std::thread::scope(|scope| {
            scope.spawn(|| instance.command("resize", &["--memory", &target, "--json"]));
            std::thread::sleep(Duration::from_millis(random.below(250)));
            agent.kill();
        });
        agent.start_again();
        // Each tenth time all is looked at; in between, agents die over the work of others.
        if round % 10 == 9 {
            let host = agent.wait_for_outcomes();
            let held: u64 = [&web, &db]
                .iter()
                .map(|instance| {
                    let seen = instance.vm();
                    seen.memory.plugged.get() - seen.balloon.actual.get() + 16 * MIB
                })
                .sum();
            assert_eq!(host["memory"]["held"], held, "round {round}: {host:#}");
        }
    }
    assert_eq!((web.vmm_pid(), db.vmm_pid()), (vmm, other));
    assert_eq!(shell.run("cat /proc/sys/kernel/random/boot_id"), booted);
    for instance in [&web, &db] {
        instance.resize_applied(&["--memory", "256M"]);
        let usage = instance.command("usage", &["--verify"]);
        assert_eq!(usage.status, 0, "{usage:#?}");
    }
}

#[test]
fn a_full_disk_stops_what_would_begin_and_nothing_else() {
    let disk = SmallDisk::mount();
    let mut agent = Agent::start(&format!(
        "journal = \"{}/journal\"\n",
        disk.0.path().display()
    ));
    let web = agent.launch(elastic("full"));
    let _shell = web.shell();
    disk.fill();
    // The last page of the journal has room for some records more.
    let sizes = ["512M", "320M"].into_iter().cycle().take(40);
    let mut reports = sizes.map(|size| web.resize(&["--memory", size]));
    let refused = reports.find(|report| report["outcome"] == "refused");
    let report = refused.expect("a resize that cannot be written down");
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains("journal"), "{reason}");
    let trouble = agent.host().unwrap()["trouble"].clone();
    assert!(
        trouble.as_str().is_some_and(|why| why.contains("journal")),
        "{trouble}"
    );
    assert_eq!(web.status()["state"], "running");
    agent.command(&["ps"]).expect_success();
    disk.empty();
    web.resize_applied(&["--memory", "512M"]);
    assert_eq!(agent.host().unwrap()["trouble"], Value::Null);
    // What the next agent reads is whole.
    agent.kill();
    agent.start_again();
    assert_eq!(agreed_size(&agent, &web), 512 * MIB);
}

/// Numbers for choices that need not be good.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = now.map_or(1, |now| now.as_nanos() as u64) | 1;
        eprintln!("seed {seed}");
        Self(seed)
    }

    /// Less than `end` (xorshift64, Marsaglia 2003).
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A file system of 256 KiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().expect("a folder to mount on");
        let options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs"];
        let mounted = Command::new("mount")
            .args(options)
            .arg(folder.path())
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "a tmpfs can be mounted"
        );
        Self(folder)
    }

    fn filler(&self) -> std::path::PathBuf {
        self.0.path().join("filler")
    }

    fn fill(&self) {
        let full = fs::write(self.filler(), vec![1; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).expect("the filler can be removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg::<&Path>(self.0.path())
            .status();
    }
}
