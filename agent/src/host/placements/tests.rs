//! Placements on an agent with fake vmm processes.

use std::io;

use concertina_api::link::{Artifact, ImageParts, Restart};
use concertina_api::policy::PolicyBounds;
use concertina_api::vm::Outcome;

use super::artifacts::tests::artifact;
use super::*;
use crate::control::Host as _;
use crate::host::tests::{Agent, Bench, bench, until};
use crate::state_dir::ProcessId;

/// Disk images of which nobody looks at the content.
struct FakeImages(PathBuf);

impl FakeImages {
    /// What is made of a disk at a start.
    fn taken_out_of(&self, disk: &Path) -> PathBuf {
        let folder = self.0.with_file_name("taken");
        fs::create_dir_all(&folder).unwrap();
        folder.join(disk.file_name().unwrap())
    }
}

impl GuestImages for FakeImages {
    fn boot(&self, disk: &Path) -> Result<DiskBoot, String> {
        let kernel = self.0.clone();
        if fs::read(disk)
            .map_err(|error| error.to_string())?
            .starts_with(b"empty")
        {
            return Err("It has no kernel".into());
        }
        fs::write(self.taken_out_of(disk), "kernel").unwrap();
        Ok(DiskBoot {
            initrd: None,
            arguments: "root=/dev/vda".into(),
            cache: kernel.with_file_name("cache"),
            kernel,
        })
    }

    fn forget(&self, disk: &Path) -> Result<(), String> {
        assert!(disk.exists());
        match fs::remove_file(self.taken_out_of(disk)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    fn seed(&self, words: &SeedWords) -> Result<Vec<u8>, String> {
        let mut disk = format!("{words:?}").into_bytes();
        disk.resize(1024, 0);
        Ok(disk)
    }
}

/// An agent with its placements.
struct Site {
    agent: Agent,
    all: Arc<Placements>,
}

fn folder(bench: &Bench) -> PathBuf {
    bench.kernel().with_file_name("control")
}

fn site(bench: &Bench) -> Site {
    let agent = bench.agent();
    let images = Box::new(FakeImages(bench.kernel()));
    let all = Placements::open(Arc::clone(agent.host()), &folder(bench), images, Bytes(0)).unwrap();
    Site { agent, all }
}

impl Site {
    fn leave(self) {
        self.all.end();
        drop(self.all);
        self.agent.leave();
    }

    fn seen(&self, placement: &Placement) -> Option<HostInstance> {
        let mut instances = self.all.instances().into_iter();
        instances.find(|seen| seen.placement == *placement)
    }

    fn phase(&self, placement: &Placement) -> Option<HostPhase> {
        self.seen(placement).map(|seen| seen.phase)
    }
}

fn placement(generation: u64) -> Placement {
    Placement {
        id: format!("i-{}", "0".repeat(26)),
        generation,
    }
}

fn part(bench: &Bench, name: &str, content: &[u8]) -> Artifact {
    let path = bench.kernel().with_file_name(name);
    fs::write(&path, content).unwrap();
    artifact(&path)
}

fn order(image: ImageParts) -> LaunchOrder {
    let bounds = PolicyBounds {
        cpus: "0.5..4".parse().unwrap(),
        memory: "256M..1G".parse().unwrap(),
    };
    LaunchOrder {
        image,
        policy: Policy::new(bounds),
        networks: Vec::new(),
        user_data: None,
        ssh_keys: Vec::new(),
        hostname: "web".into(),
        disk: None,
        restart: Restart::OnFailure,
    }
}

fn of_kernel(bench: &Bench) -> LaunchOrder {
    order(ImageParts::Kernel {
        kernel: artifact(&bench.kernel()),
        initrd: None,
        append: Some("x".into()),
    })
}

fn of_disk(bench: &Bench, content: &[u8]) -> LaunchOrder {
    let name = String::from_utf8_lossy(content);
    let disk = part(bench, &format!("{name}.img"), content);
    LaunchOrder {
        user_data: Some("#cloud-config".into()),
        ..order(ImageParts::Disk { disk })
    }
}

/// Files below the placements' own folder, but for images, which are shared and stay.
fn files_left(bench: &Bench) -> Vec<PathBuf> {
    let of = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path())
    };
    let folder = folder(bench);
    of(folder.join("disks"))
        .chain(of(folder.join("placements")))
        .chain(of(folder.with_file_name("taken")))
        .collect()
}

#[test]
fn a_placement_lives_through_agents_and_leaves_nothing() {
    let bench = bench("obey");
    let place = placement(3);
    let here = site(&bench);
    here.all.launch(&place, &of_kernel(&bench), 7).unwrap();
    let seen = here.seen(&place).unwrap();
    assert_eq!(
        (seen.phase, seen.policy_version),
        (HostPhase::Running, Some(7))
    );
    until("its status is known", || {
        here.seen(&place)
            .unwrap()
            .status
            .is_some_and(|status| status.policy_version == 7)
    });
    let vmm = here
        .agent
        .host()
        .find(&place.name())
        .unwrap()
        .status()
        .vmm_pid
        .unwrap();
    here.leave();

    let here = site(&bench);
    assert_eq!(here.seen(&place).unwrap().policy_version, Some(7));
    let mut policy = of_kernel(&bench).policy;
    policy.bounds.cpus = "0.5..2".parse().unwrap();
    here.all.replace_policy(&place, &policy, 9).unwrap();
    let in_force = here.agent.host().policy(&place.name()).unwrap();
    assert_eq!(
        in_force.policy.restart,
        concertina_api::policy::Restart::OnFailure
    );
    here.leave();

    let here = site(&bench);
    assert_eq!(here.seen(&place).unwrap().policy_version, Some(9));
    assert!(
        here.all
            .remove(&place, true)
            .unwrap_err()
            .contains("still runs")
    );
    here.all.stop(&place, false, 5000).unwrap();
    here.all.stop(&place, true, 1).unwrap();
    let ended = here.phase(&place).unwrap();
    assert!(
        matches!(ended, HostPhase::Ended { status: 0, .. }),
        "{ended:?}"
    );
    assert_eq!(ProcessId::of(vmm), None);

    // All of it is there to be recorded, each by its number, with the control plane's versions.
    let (events, usage) = here.all.lengths(&place);
    let told = here.all.events(&place, 0, 100);
    assert_eq!(told.len() as u64, events);
    assert!(
        told.iter()
            .any(|event| matches!(event.kind, EventKind::PolicyReplaced { version: 9, .. }))
    );
    assert_eq!(
        here.all.events(&place, events - 1, 100),
        told[told.len() - 1..]
    );
    let lines = here.all.usage(&place, 0, 100);
    assert!(usage >= 2 && lines.len() as u64 == usage, "{usage}");

    here.all.remove(&place, true).unwrap();
    here.all.remove(&place, true).unwrap();
    assert_eq!(here.seen(&place), None);
    assert_eq!(here.all.lengths(&place), (0, 0));
    assert!(!bench.state_dir().join(place.name()).exists());
    assert_eq!(files_left(&bench), Vec::<PathBuf>::new());
    assert_eq!(here.agent.host().books().account(Axis::Memory).held, 0);
    here.leave();
}

#[test]
fn a_disk_belongs_to_the_instance_and_goes_on_with_its_next_placement() {
    let bench = bench("obey");
    let here = site(&bench);
    let (first, next) = (placement(1), placement(2));
    here.all
        .launch(&first, &of_disk(&bench, b"system"), 1)
        .unwrap();
    here.all.stop(&first, true, 1000).unwrap();
    let disk = here.all.disks.path(&first.id);
    fs::write(&disk, [b"changed".as_slice(), &[0; 505]].concat()).unwrap();
    here.all
        .launch(&next, &of_disk(&bench, b"system"), 1)
        .unwrap();
    here.all.remove(&first, false).unwrap();
    assert_eq!(
        files_left(&bench).len(),
        3,
        "its disk, its kernel, its note"
    );
    assert!(fs::read(&disk).unwrap().starts_with(b"changed"));
    here.all.stop(&next, true, 1000).unwrap();
    here.all.remove(&next, true).unwrap();
    assert_eq!(files_left(&bench), Vec::<PathBuf>::new());
    here.leave();
}

#[test]
fn images_stay_as_long_as_an_instance_boots_from_them() {
    let bench = bench("obey");
    let here = site(&bench);
    let images = folder(&bench).join("images");
    let count = || fs::read_dir(&images).unwrap().count();
    let kernel = placement(1);
    let disk = Placement {
        id: format!("i-{}", "1".repeat(26)),
        generation: 1,
    };
    here.all.launch(&kernel, &of_kernel(&bench), 1).unwrap();
    let parts = count();
    assert!(parts > 0);
    // An instance with a disk has a copy of its own.
    here.all
        .launch(&disk, &of_disk(&bench, b"a disk"), 1)
        .unwrap();
    assert_eq!(count(), parts);
    here.all.stop(&kernel, true, 5000).unwrap();
    here.leave();
    let here = site(&bench);
    assert_eq!(count(), parts, "one that has stopped may start again");
    here.all.remove(&kernel, true).unwrap();
    assert_eq!(count(), 0);
    here.all.stop(&disk, true, 5000).unwrap();
    here.all.remove(&disk, true).unwrap();
    here.leave();
}

#[test]
fn a_launch_that_fails_says_why_and_leaves_nothing() {
    let works = bench("obey");
    let here = site(&works);
    let good = of_disk(&works, b"system");
    let mut changed = good.clone();
    changed.networks = vec!["wire".into()];
    let mut other_digest = good.clone();
    if let ImageParts::Disk { disk } = &mut other_digest.image {
        disk.sha256 = "0".repeat(64);
    }
    let mut too_large = good.clone();
    too_large.policy.bounds.memory = "64G..64G".parse().unwrap();
    for (wrong, word) in [
        (changed, "wire"),
        (other_digest, "SHA-256"),
        (of_disk(&works, b"empty"), "no kernel"),
        (too_large, "host_short_of_memory"),
    ] {
        let why = here.all.launch(&placement(1), &wrong, 1).unwrap_err();
        assert!(why.contains(word), "{why}");
        assert_eq!(here.seen(&placement(1)), None);
        assert_eq!(files_left(&works), Vec::<PathBuf>::new(), "{why}");
        assert!(
            !works
                .state_dir()
                .join(placement(1).name())
                .join("vm.json")
                .exists()
        );
    }
    here.leave();

    let fails = bench("fail");
    let here = site(&fails);
    let why = here
        .all
        .launch(&placement(1), &of_disk(&fails, b"system"), 1)
        .unwrap_err();
    assert!(why.contains("The fake kernel is bad"), "{why}");
    assert_eq!(files_left(&fails), Vec::<PathBuf>::new());
    assert!(!fails.state_dir().join(placement(1).name()).exists());
    assert_eq!(here.agent.host().books().account(Axis::Memory).held, 0);
    here.leave();
}

#[test]
fn what_an_agent_died_over_is_taken_back_and_what_it_had_launched_is_kept() {
    let bench = bench("obey");
    let here = site(&bench);
    let (died, stopped) = (placement(5), placement(4));
    here.all
        .launch(&stopped, &of_disk(&bench, b"system"), 2)
        .unwrap();
    here.all.stop(&stopped, true, 1000).unwrap();
    // A launch that goes on with the disk, and one of another instance: both in the middle.
    let begun = Note {
        versions: [(1, 1)].into(),
        ..Note::default()
    };
    here.all.notes.write(&died, &begun).unwrap();
    let other = Placement {
        id: format!("i-{}", "1".repeat(26)),
        generation: 1,
    };
    let owner = Note {
        owns_disk: true,
        ..begun
    };
    here.all.notes.write(&other, &owner).unwrap();
    here.all
        .disks
        .make(&other.id, None, Some(Bytes::mib(1)))
        .unwrap();
    fs::write(here.all.disks.seed_path(&other.name()), "seed").unwrap();
    here.leave();

    let here = site(&bench);
    let seen: Vec<Placement> = here
        .all
        .instances()
        .into_iter()
        .map(|seen| seen.placement)
        .collect();
    assert_eq!(seen, std::slice::from_ref(&stopped));
    assert!(!here.all.disks.path(&other.id).exists());
    assert!(
        here.all.disks.path(&died.id).exists(),
        "it is the stopped one's"
    );
    assert_eq!(
        files_left(&bench).len(),
        3,
        "its disk, its kernel, its note"
    );
    // The host was restarted: its state folder is empty, and what was stopped still has its disk.
    here.leave();
    fs::remove_dir_all(bench.state_dir().join(stopped.name())).unwrap();
    let here = site(&bench);
    assert!(matches!(
        here.phase(&stopped),
        Some(HostPhase::Ended { .. })
    ));
    assert!(here.all.disks.path(&stopped.id).exists());
    here.leave();
}

#[test]
fn a_resize_is_done_once_and_what_the_host_has_is_told() {
    let bench = bench("obey");
    let here = site(&bench);
    let place = placement(1);
    let before = here.all.capacity();
    assert_eq!(
        (before.cpus, before.memory),
        (Cpus::whole(8), Bytes::mib(4096))
    );
    here.all.launch(&place, &of_kernel(&bench), 1).unwrap();
    bench.launch("own").unwrap();
    let wish = InstanceResize {
        memory: Some(Bytes::mib(512)),
        ..InstanceResize::default()
    };
    let report = here.all.resize(&place, "c-1", &wish).unwrap();
    assert_eq!(report.outcome, Outcome::Applied);
    assert_eq!(here.all.resize(&place, "c-1", &wish).unwrap(), report);
    let resized = here.all.events(&place, 0, 100).into_iter();
    let resized = resized.filter(|event| matches!(event.kind, EventKind::Resized { .. }));
    assert_eq!(resized.count(), 1);
    let capacity = here.all.capacity();
    assert_eq!(capacity.own_memory, Bytes::mib(256));
    assert_eq!(capacity.free_memory, Bytes::mib(4096 - 512 - 256));
    let nobody = here.all.resize(&placement(2), "c-2", &wish).unwrap_err();
    assert!(nobody.contains("does not run"), "{nobody}");
    here.leave();
}
