//! The control plane's instances on this host: [`control::Host`] over the agent's core.
//!
//! ```text
//! control client ── launch, stop, remove, … ──► Placements ──► Host (ledger, journal, instances)
//!                                                  ├─ artifacts   images by digest, fetched once
//!                                                  ├─ disks       an instance's copy of its image
//!                                                  ├─ notes       what only the control plane knows of it
//!                                                  └─ lines       events and usage, by their numbers
//! ```
//! A placement has a trace here as long as it has a note: the note is written before anything of it is
//! made, and is the last thing that goes. One whose launch an agent died over is taken back by the next.
//!
//! [`control::Host`]: crate::control::Host

mod artifacts;
mod disks;
mod download;
mod launch;
mod lines;
mod looker;
mod notes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use concertina_api::event::{Event, EventKind};
use concertina_api::instance::{
    InstanceResize, InstanceSize, InstanceState, InstanceStatus, StopRequest,
};
use concertina_api::link::{
    CapacityShort, HostCapacity, HostInstance, HostPhase, LaunchOrder, Placement,
};
use concertina_api::policy::{Axis, Policy};
use concertina_api::vm::ResizeReport;
use concertina_api::{Bytes, Cpus};

use self::artifacts::Artifacts;
use self::disks::Disks;
use self::lines::Lines;
use self::looker::Looker;
use self::notes::{Note, Notes};
use super::{Host, lock_of};
use crate::clock::{Moment, wall_text};
use crate::instance::api::resize_by_hand;
use crate::sentence;

/// How long a guest that was asked in vain, and its VM's end, may take beyond what its customer allows.
const STOP_SLACK: Duration = Duration::from_secs(30);

/// A disk image that an instance boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBoot {
    /// Its kernel, taken out of it.
    pub kernel: PathBuf,
    /// Its initial ram file system, taken out of it.
    pub initrd: Option<PathBuf>,
    /// What the kernel is told of its root file system.
    pub arguments: String,
    /// The folder that they were taken out to.
    pub cache: PathBuf,
}

/// What a guest's cloud-init is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeedWords {
    /// Host name.
    pub name: String,
    /// User data.
    pub user_data: Option<String>,
    /// SSH keys for the image's first user, a line each.
    pub ssh_keys: Vec<String>,
}

/// Looks into disk images, and makes seed disks. Errors are sentences.
pub trait GuestImages: Send + Sync {
    /// Takes kernel and initrd out of a disk image, which is not changed.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    fn boot(&self, disk: &Path) -> Result<DiskBoot, String>;

    /// Removes what was taken out of a disk image, which is still there; there may be nothing.
    ///
    /// # Errors
    /// It cannot be removed.
    fn forget(&self, disk: &Path) -> Result<(), String>;

    /// Content of the disk from which a guest's cloud-init is configured.
    ///
    /// # Errors
    /// The words are not possible.
    fn seed(&self, words: &SeedWords) -> Result<Vec<u8>, String>;
}

/// A placement with a trace here.
#[derive(Debug)]
struct Kept {
    note: Note,
    /// How it ended, when that was read already: it does not change any more.
    ended: Option<HostPhase>,
    events: Lines,
    usage: Lines,
    /// Its status as it was a moment ago.
    status: Option<InstanceStatus>,
}

/// All of them.
pub struct Placements {
    host: Arc<Host>,
    images: Box<dyn GuestImages>,
    notes: Notes,
    artifacts: Artifacts,
    /// Room that images may take.
    images_most: Bytes,
    disks: Disks,
    kept: Mutex<BTreeMap<Placement, Kept>>,
    looker: Looker,
}

impl std::fmt::Debug for Placements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placements")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl Placements {
    /// Opens the folder of images, disks and notes, and takes back launches that an agent died over.
    /// Images that no instance uses are removed where all of them take more room than `images_most`.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn open(
        host: Arc<Host>,
        folder: &Path,
        images: Box<dyn GuestImages>,
        images_most: Bytes,
    ) -> io::Result<Arc<Self>> {
        let make = |name: &str| {
            let path = folder.join(name);
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(&path).map(|()| path)
        };
        let placements = Arc::new(Self {
            notes: Notes::new(make("placements")?),
            artifacts: Artifacts::open(make("images")?)?,
            images_most,
            disks: Disks::open(make("disks")?)?,
            host,
            images,
            kept: Mutex::default(),
            looker: Looker::default(),
        });
        placements.recover()?;
        placements.prune();
        looker::start(&placements)?;
        Ok(placements)
    }

    /// Makes room where images take too much of it.
    fn prune(&self) {
        self.artifacts
            .prune(self.images_most, || self.notes.images());
    }

    /// Removes an instance's disk, if there is one, and what was taken out of it.
    fn remove_disk(&self, id: &str) -> io::Result<()> {
        let disk = self.disks.path(id);
        if disk.exists()
            && let Err(why) = self.images.forget(&disk)
        {
            // Found by its age some day, and no reason to keep the disk.
            eprintln!("concertina: {why}");
        }
        self.disks.remove(id)
    }

    /// Ends its own thread. Instances run on.
    pub fn end(&self) {
        self.looker.end();
    }

    /// What an agent before this one has left.
    fn recover(&self) -> io::Result<()> {
        let mut noted = self.notes.all()?;
        // A note that was lost in a power cut is made good: the instance tells that it was launched.
        for entry in self.host.state_dir().instances() {
            if let Some(placement) = Placement::of_name(&entry.name) {
                let note = noted.entry(placement).or_default();
                note.launched = true;
            }
        }
        for (placement, note) in noted {
            if !note.launched {
                // The agent's core has undone the rest of it.
                if note.owns_disk {
                    self.remove_disk(&placement.id)?;
                }
                self.notes.remove(&placement)?;
                continue;
            }
            self.notes.write(&placement, &note)?;
            let kept = self.keep(&placement, note);
            self.kept().insert(placement, kept);
        }
        Ok(())
    }

    fn keep(&self, placement: &Placement, note: Note) -> Kept {
        let folder = self.host.state_dir().root().join(placement.name());
        Kept {
            note,
            ended: None,
            events: Lines::of(folder.join("events.jsonl")),
            usage: Lines::of(folder.join("usage.jsonl")),
            status: None,
        }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<Placement, Kept>> {
        lock_of(&self.kept)
    }

    /// Asks all that run how they are.
    fn look(&self) {
        let mut statuses: BTreeMap<String, InstanceStatus> = self
            .host
            .statuses()
            .into_iter()
            .map(|status| (status.name.clone(), status))
            .collect();
        for (placement, kept) in self.kept().iter_mut() {
            kept.status = statuses.remove(&placement.name());
        }
    }

    fn seen(&self, placement: &Placement, kept: &mut Kept) -> HostInstance {
        let name = placement.name();
        let phase = match &kept.ended {
            Some(ended) => ended.clone(),
            None => self.phase(&name),
        };
        if matches!(phase, HostPhase::Ended { .. }) {
            kept.ended = Some(phase.clone());
            kept.status = None;
        }
        let runs = phase == HostPhase::Running;
        let status = kept.status.clone().filter(|_| runs).map(|mut status| {
            status.policy_version = kept.note.version_of(status.policy_version);
            status
        });
        let in_force = self.host.policy(&name).filter(|_| runs);
        HostInstance {
            placement: placement.clone(),
            phase,
            policy_version: in_force.map(|policy| kept.note.version_of(policy.version)),
            metrics: status
                .as_ref()
                .map(|status| status.observed.clone())
                .unwrap_or_default(),
            status,
            capacity_short: self.capacity_short(&name),
            policy_problem: None,
        }
    }

    fn phase(&self, name: &str) -> HostPhase {
        if let Some(core) = self.host.find(name) {
            match core.state() {
                // One that starts again after a failure has been running.
                InstanceState::Starting | InstanceState::Running | InstanceState::Paused => {
                    return HostPhase::Running;
                }
                InstanceState::Stopping => return HostPhase::Stopping,
                InstanceState::Stopped | InstanceState::Failed => {}
            }
        }
        let ended = |status, reason: &str| HostPhase::Ended {
            status,
            reason: reason.to_owned(),
        };
        match self.host.state_dir().instance(name) {
            Ok(Some(entry)) => match entry.ending {
                Some(ending) => ended(ending.status, &ending.reason),
                // Its end is about to be written down, or its VM runs although it could not be taken over.
                None if entry.alive || entry.left_vmm.is_some() => HostPhase::Running,
                None => ended(1, "It ended while its host had no agent"),
            },
            Ok(None) => ended(1, "Its host was restarted, and nothing is known of its end"),
            Err(error) => ended(1, &sentence(&error)),
        }
    }

    fn capacity_short(&self, name: &str) -> Option<CapacityShort> {
        self.host.books().look(|ledger| {
            let wait = ledger.waiting().iter().find(|wait| wait.instance == name)?;
            Some(CapacityShort {
                why: wait.why.clone(),
            })
        })
    }
}

impl crate::control::Host for Placements {
    fn capacity(&self) -> HostCapacity {
        let (cpus, memory) = (
            self.host.books().account(Axis::Cpus),
            self.host.books().account(Axis::Memory),
        );
        let cpus_of = |milli: u64| Cpus(u32::try_from(milli).unwrap_or(u32::MAX));
        self.host.books().look(|ledger| {
            let overhead = ledger.limits().overhead.get();
            let (mut own_cpus, mut own_memory, mut placed) = (0u64, 0u64, 0u64);
            for holding in ledger.holdings() {
                let bounds = holding.claim.bounds;
                if Placement::of_name(&holding.name).is_some() {
                    placed += 1;
                } else {
                    own_cpus += u64::from(bounds.cpus.min.milli());
                    own_memory += bounds.memory.min.get().saturating_add(overhead);
                }
            }
            // What an instance costs beside its own is the host's business: it is kept free for those
            // that are here, and for one that comes.
            let overheads = overhead.saturating_mul(placed + 1);
            HostCapacity {
                cpus: cpus_of(cpus.limit),
                memory: Bytes(memory.limit.saturating_sub(overheads)),
                own_cpus: cpus_of(own_cpus),
                own_memory: Bytes(own_memory),
                free_cpus: cpus_of(cpus.free()),
                free_memory: Bytes(memory.free()),
            }
        })
    }

    fn instances(&self) -> Vec<HostInstance> {
        let mut kept = self.kept();
        let launched = kept.iter_mut().filter(|(_, kept)| kept.note.launched);
        launched
            .map(|(placement, kept)| self.seen(placement, kept))
            .collect()
    }

    fn launch(
        &self,
        placement: &Placement,
        order: &LaunchOrder,
        policy_version: u64,
    ) -> Result<(), String> {
        launch::launch(self, placement, order, policy_version)
    }

    fn stop(&self, placement: &Placement, force: bool, timeout_ms: u64) -> Result<(), String> {
        let name = placement.name();
        let wish = StopRequest {
            force,
            timeout_ms: Some(timeout_ms),
        };
        if !self.host.stop(&name, &wish) {
            return match self.phase(&name) {
                HostPhase::Running => Err(format!(
                    "Instance {name} runs on, and its agent could not take it over"
                )),
                _ => Ok(()),
            };
        }
        let within = Duration::from_millis(timeout_ms).saturating_add(STOP_SLACK);
        if self.host.wait_for_end(&name, within) {
            return Ok(());
        }
        Err(format!(
            "Instance {name} has not ended within {} s",
            within.as_secs()
        ))
    }

    fn remove(&self, placement: &Placement, with_disk: bool) -> Result<(), String> {
        let name = placement.name();
        let said = |error: io::Error| format!("Removing what is left of {name} failed: {error}");
        if self.host.find(&name).is_some() {
            return Err(format!("Instance {name} still runs"));
        }
        // Held until its folder is gone, so that nobody launches into it meanwhile.
        let (_lock, paths) = self
            .host
            .state_dir()
            .claim(&name)
            .map_err(|error| sentence(&error))?;
        match fs::remove_dir_all(&paths.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(said(error)),
            _ => {}
        }
        if with_disk {
            self.remove_disk(&placement.id).map_err(said)?;
        }
        self.notes.remove(placement).map_err(said)?;
        self.kept().remove(placement);
        self.prune();
        Ok(())
    }

    fn replace_policy(
        &self,
        placement: &Placement,
        policy: &Policy,
        version: u64,
    ) -> Result<(), String> {
        let restart = match self.kept().get(placement) {
            Some(kept) => kept.note.restart,
            None => return Err(format!("Instance {} is not here", placement.name())),
        };
        let policy = launch::policy_of(policy, restart);
        let replaced = self.host.replace_policy(&placement.name(), policy);
        let here = replaced.map_err(|error| error.to_string())?;
        let mut all = self.kept();
        let Some(kept) = all.get_mut(placement) else {
            return Ok(());
        };
        kept.note.versions.insert(here, version);
        // Where it cannot be written it is put in force once more by the next agent, which does no harm.
        if let Err(error) = self.notes.write(placement, &kept.note) {
            eprintln!("concertina: The note of {}: {error}", placement.name());
        }
        Ok(())
    }

    fn resize(
        &self,
        placement: &Placement,
        command: &str,
        wish: &InstanceResize,
    ) -> Result<ResizeReport<InstanceSize>, String> {
        let name = placement.name();
        let core = self
            .host
            .find(&name)
            .ok_or_else(|| format!("Instance {name} does not run"))?;
        let wish = InstanceResize {
            key: Some(command.to_owned()),
            ..wish.clone()
        };
        resize_by_hand(&core, &wish).map_err(|refused| refused.detail)
    }

    fn lengths(&self, placement: &Placement) -> (u64, u64) {
        match self.kept().get_mut(placement) {
            Some(kept) => (kept.events.count(), kept.usage.count()),
            None => (0, 0),
        }
    }

    fn events(&self, placement: &Placement, from: u64, limit: usize) -> Vec<Event> {
        let mut all = self.kept();
        let Some(kept) = all.get_mut(placement) else {
            return Vec::new();
        };
        let lines = kept.events.read(from, limit);
        let note = &kept.note;
        let event = |line: String| match serde_json::from_str::<Event>(&line) {
            Ok(event) => note.told(event),
            // Its number is taken, so that those after it keep theirs.
            Err(error) => unreadable(&error),
        };
        lines.into_iter().map(event).collect()
    }

    fn usage(&self, placement: &Placement, from: u64, limit: usize) -> Vec<String> {
        match self.kept().get_mut(placement) {
            Some(kept) => kept.usage.read(from, limit),
            None => Vec::new(),
        }
    }
}

fn unreadable(error: &serde_json::Error) -> Event {
    Event {
        time: wall_text(Moment::now().wall_ms),
        uptime_ms: 0,
        policy_version: None,
        kind: EventKind::Held {
            cause: "record".into(),
            why: format!("This event cannot be read in the host's file: {error}"),
        },
    }
}
