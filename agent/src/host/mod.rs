//! The agent of a host: it owns all instances of a state folder.
//!
//! ```text
//! HTTP on a unix socket ([`api`]) ─► [`Host`] ─► instances: each its core, as in `concertina run`
//!                                      ├─ [`books`]: ledger and journal, asked before anything changes
//!                                      ├─ [`steward`]: gives to those who wait, asks donors
//!                                      └─ [`adopt`]: takes over what an agent before has left
//! ```
//! The vmm processes outlive it. When it is stopped, or killed at any point, they go on; the next agent
//! finds them by the journal and by their records, finishes or undoes what was begun, and goes on with
//! what their decisions remembered.

pub mod account;
mod adopt;
pub mod api;
pub mod books;
pub mod config;
mod files;
mod metrics;
pub mod notify;
mod openapi;
pub mod placements;
mod routes;
mod steward;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use concertina_api::host::{LAUNCH_WAIT_MAX_MS, LaunchRequest};
use concertina_api::instance::{InstanceStatus, StopRequest};
use concertina_api::policy::Policy;

use self::account::Account;
use self::books::HostBooks;
use self::files::HostLock;
pub use self::files::{HostRecord, default_journal, default_socket, record_path};
use crate::cgroup::Hierarchy;
use crate::events::Hub;
use crate::instance::{Core, InForce, LaunchRecord, OnEnd, Owner, api as of_instance};
use crate::journal::{Journal, SharedJournal};
use crate::launch::{BootImage, BootSource, Host as LaunchHost, LaunchError, LaunchSpec};
use crate::ledger::{Claim, Limits};
use crate::measure::Measures;
use crate::pool::Pool;
use crate::state_dir::{InstancePaths, InstanceRecord, StateDir};
use crate::{fault, launch, sentence};

/// How long instances may take to stop where they are when the agent ends.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Instances that are asked at the same time for a list: one that hangs delays it only once.
const ASKED_AT_ONCE: usize = 16;

/// Finds the kernel of a disk image whenever its guest starts again.
pub type BootSources = Arc<dyn Fn(BootImage) -> BootSource + Send + Sync>;

/// What an agent is started with.
pub struct Setup {
    /// Folder with one folder per instance; made when it is not there.
    pub state_dir: PathBuf,
    /// Where its API will listen.
    pub socket: PathBuf,
    /// The journal.
    pub journal: PathBuf,
    /// What the host has to give away.
    pub limits: Limits,
    /// Program and first arguments of a vmm; the path of its specification is added as the last one.
    pub vmm_command: Vec<OsString>,
    /// The cgroup below which instances get theirs; `None`: the host's tree, or our own group in it.
    pub cgroup: Option<PathBuf>,
    /// For instances that boot from an image.
    pub boot_sources: BootSources,
}

/// One host, with all its instances.
pub struct Host {
    state_dir: StateDir,
    socket: PathBuf,
    books: Arc<HostBooks>,
    hub: Arc<Hub>,
    measures: Arc<Measures>,
    pool: Arc<Pool>,
    launch_host: LaunchHost,
    vmm_command: Vec<OsString>,
    boot_sources: BootSources,
    members: Mutex<BTreeMap<String, Member>>,
    /// An instance has come or gone.
    changed: Condvar,
    steward: Mutex<Option<JoinHandle<()>>>,
    began: Instant,
    _lock: HostLock,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

/// A name that is taken.
enum Member {
    /// Its guest does not run yet.
    Launching,
    /// It is there.
    Running(Arc<Core>),
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Its files are unusable, or another agent has them.
    #[error("{0}")]
    Files(String),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    /// A thread could not be started.
    #[error("A thread of the agent could not start: {0}")]
    Thread(std::io::Error),
}

/// Why an instance's policy was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum PolicyRefused {
    /// There is no such instance.
    #[error("No instance '{0}' runs here")]
    Unknown(String),
    /// It is wrong, or cannot be had while the instance runs.
    #[error("{0}")]
    Wrong(String),
    /// The host has not enough, or it cannot be written down.
    #[error("{0}")]
    Host(String),
}

impl Host {
    /// Opens the books, and takes over what is there. Instances whose vmm hangs are taken over, too.
    ///
    /// # Errors
    /// Another agent has this state folder, or its files are unusable: nothing was touched.
    pub fn start(setup: Setup) -> Result<Arc<Self>, HostError> {
        let cgroups = setup.cgroup.as_deref().map(Hierarchy::below).transpose();
        let launch_host = LaunchHost {
            cgroups: cgroups.map_err(|error| HostError::Files(sentence(&error)))?,
            ..LaunchHost::this()
        };
        Self::start_on(setup, launch_host)
    }

    /// [`Self::start`] on a host of which the parts can be replaced.
    pub(crate) fn start_on(setup: Setup, launch_host: LaunchHost) -> Result<Arc<Self>, HostError> {
        let lock = HostLock::acquire(&setup.state_dir).map_err(HostError::Files)?;
        let opened = Journal::open(&setup.journal)?;
        if let Some(cut) = opened.cut {
            eprintln!(
                "concertina: The journal ended in {} bytes of a write that was never acknowledged, which \
                 were cut off at byte {}",
                cut.bytes, cut.at
            );
        }
        let books = HostBooks::new(SharedJournal::new(opened.journal), setup.limits);
        let host = Arc::new(Self {
            state_dir: StateDir::new(setup.state_dir),
            socket: setup.socket,
            books: Arc::new(books),
            hub: Arc::default(),
            measures: Arc::default(),
            pool: Arc::default(),
            launch_host,
            vmm_command: setup.vmm_command,
            boot_sources: setup.boot_sources,
            members: Mutex::default(),
            changed: Condvar::new(),
            steward: Mutex::default(),
            began: Instant::now(),
            _lock: lock,
        });
        adopt::all(&host);
        let steward = steward::start(&host).map_err(HostError::Thread)?;
        *lock_of(&host.steward) = Some(steward);
        Ok(host)
    }

    /// Its books.
    pub fn books(&self) -> &HostBooks {
        &self.books
    }

    /// Where its API listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its state folder.
    pub fn state_dir(&self) -> &StateDir {
        &self.state_dir
    }

    /// The events of all its instances, as they happen.
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// What it counts of its own work.
    pub(crate) fn measures(&self) -> &Measures {
        &self.measures
    }

    /// Since when it runs.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// An instance that is there.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Core>> {
        match self.members().get(name) {
            Some(Member::Running(core)) => Some(Arc::clone(core)),
            _ => None,
        }
    }

    /// The instances that are there, by name.
    pub(crate) fn instances(&self) -> Vec<Arc<Core>> {
        let members = self.members();
        let running = members.values().filter_map(|member| match member {
            Member::Running(core) => Some(Arc::clone(core)),
            Member::Launching => None,
        });
        running.collect()
    }

    /// Asks all instances how they are, several at a time; by name.
    pub(crate) fn statuses(&self) -> Vec<InstanceStatus> {
        let instances = self.instances();
        let next = AtomicUsize::new(0);
        let ask = || {
            let mut statuses = Vec::new();
            while let Some(core) = instances.get(next.fetch_add(1, Ordering::SeqCst)) {
                statuses.push(core.status());
            }
            statuses
        };
        let mut statuses: Vec<InstanceStatus> = thread::scope(|scope| {
            let askers = ASKED_AT_ONCE.min(instances.len());
            let asked: Vec<_> = (0..askers).map(|_| scope.spawn(ask)).collect();
            let answered = asked.into_iter().filter_map(|thread| thread.join().ok());
            answered.flatten().collect()
        });
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }

    /// Asks an instance to end, and does not wait for it; `false`: there is none.
    pub(crate) fn stop(&self, name: &str, wish: &StopRequest) -> bool {
        let Some(core) = self.find(name) else {
            return false;
        };
        // It stops all the same; only an agent that dies over it would not go on with it.
        if let Err(why) = self.books.stopping(name) {
            eprintln!("concertina: The stop of {name} is not written down: {why}");
        }
        fault::point("stopping");
        of_instance::stop_by_hand(&core, wish);
        true
    }

    /// Waits until there is no instance of this name; `false`: there still is.
    pub(crate) fn wait_for_end(&self, name: &str, within: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.members(), within, |members| members.contains_key(name));
        let (members, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !members.contains_key(name)
    }

    /// Launches an instance, and returns when its guest runs. On error nothing of it is left.
    ///
    /// # Errors
    /// The request is wrong, the name is taken, the host has not enough, or the guest does not start.
    pub fn launch(self: &Arc<Self>, name: &str, request: LaunchRequest) -> Result<(), LaunchError> {
        // A wrong policy is the request's fault, whatever room there is.
        request.policy.check(&self.launch_host.sources())?;
        self.take_name(name)?;
        let launched = self.launch_named(name, request);
        let mut members = self.members();
        // One that has ended in the meantime has taken itself out.
        match (&launched, members.get(name)) {
            (Ok(core), Some(Member::Launching)) if !core.has_ended() => {
                members.insert(name.to_owned(), Member::Running(Arc::clone(core)));
            }
            (_, Some(Member::Launching)) => {
                members.remove(name);
            }
            _ => {}
        }
        drop(members);
        self.changed.notify_all();
        launched.map(|_| ())
    }

    fn take_name(&self, name: &str) -> Result<(), LaunchError> {
        self.state_dir.paths(name)?;
        let mut members = self.members();
        if members.contains_key(name) {
            return Err(LaunchError::Name(crate::state_dir::LockError::InUse(
                name.to_owned(),
            )));
        }
        members.insert(name.to_owned(), Member::Launching);
        Ok(())
    }

    fn launch_named(
        self: &Arc<Self>,
        name: &str,
        request: LaunchRequest,
    ) -> Result<Arc<Core>, LaunchError> {
        let patience = Duration::from_millis(request.wait_ms);
        if request.wait_ms > LAUNCH_WAIT_MAX_MS {
            return Err(LaunchError::Request(format!(
                "A wait_ms of {} is not allowed: 0 to {LAUNCH_WAIT_MAX_MS} are",
                request.wait_ms
            )));
        }
        let spec = self.launch_spec(name, request)?;
        let claim = claim_of(&spec.policy);
        let intent = self
            .books
            .admit_within(name, claim, patience)
            .map_err(LaunchError::Admission)?;
        fault::point("launch_intent");
        let launched =
            launch::prepare_on(&self.launch_host, spec, self.owner(name)).and_then(|instance| {
                fault::point("prepared");
                Core::launch(instance, self.on_end(name))
            });
        fault::point("launched");
        match &launched {
            Ok(core) => self.books.launched(name, intent, Ok(core.size())),
            Err(error) => self.books.launched(name, intent, Err(&sentence(error))),
        }
        // It may have ended before that was written down, which then did not fit.
        if let Ok(core) = &launched
            && core.has_ended()
        {
            self.books.ended(name, "It ended right after its launch");
        }
        launched
    }

    fn launch_spec(&self, name: &str, request: LaunchRequest) -> Result<LaunchSpec, LaunchError> {
        check_paths(&request)?;
        let LaunchRequest {
            kernel,
            initrd,
            append,
            disks,
            nets,
            seed,
            boot_image,
            policy,
            wait_ms: _,
        } = request;
        let seed = seed.as_deref().map(std::fs::read).transpose();
        let seed = seed.map_err(|error| {
            LaunchError::Request(format!("The seed disk cannot be read: {error}"))
        })?;
        let boot_image = boot_image.map(|image| BootImage {
            image: image.image,
            cache: image.cache,
        });
        Ok(LaunchSpec {
            name: name.to_owned(),
            kernel,
            initrd,
            boot_source: boot_image.map(|image| (self.boot_sources)(image)),
            append,
            disks,
            nets,
            seed,
            policy,
            state_dir: self.state_dir.root().to_owned(),
            vmm_command: self.vmm_command.clone(),
        })
    }

    /// Puts another policy in force for an instance that runs.
    ///
    /// # Errors
    /// It is wrong, leaves what the VM was built for, or its lower bounds cannot be had: the policy of
    /// before stays in force.
    pub fn replace_policy(&self, name: &str, policy: Policy) -> Result<u64, PolicyRefused> {
        let core = self
            .find(name)
            .ok_or_else(|| PolicyRefused::Unknown(name.to_owned()))?;
        let checked = policy.check(&self.launch_host.sources());
        checked.map_err(|error| PolicyRefused::Wrong(error.to_string()))?;
        let (wanted, built) = (policy.bounds, core.built_for());
        let inside = wanted.cpus.min >= built.cpus.min
            && wanted.cpus.max <= built.cpus.max
            && wanted.memory.min >= built.memory.min
            && wanted.memory.max <= built.memory.max;
        if !inside {
            return Err(PolicyRefused::Wrong(format!(
                "Bounds {} of CPUs and {} of memory are not possible while the instance runs: it was \
                 launched for {} and {}",
                wanted.cpus, wanted.memory, built.cpus, built.memory
            )));
        }
        let before = core.policy();
        let claim = claim_of(&policy);
        self.books
            .set_claim(name, claim)
            .map_err(PolicyRefused::Host)?;
        match core.replace_policy(policy) {
            Ok(in_force) => Ok(in_force.version),
            Err(error) => {
                // It was so a moment ago.
                let _ = self.books.set_claim(name, claim_of(&before.policy));
                Err(PolicyRefused::Host(sentence(&error)))
            }
        }
    }

    /// The policy of an instance.
    pub(crate) fn policy(&self, name: &str) -> Option<Arc<InForce>> {
        Some(self.find(name)?.policy())
    }

    /// Lets go of all instances; their VMs run on. Nothing begins any more, and what is under way stops
    /// where it is, or is finished by the next agent.
    pub fn leave(&self) {
        self.books.end();
        if let Some(steward) = lock_of(&self.steward).take() {
            let _ = steward.join();
        }
        let instances = self.instances();
        instances.iter().for_each(|core| core.let_go());
        let until = Instant::now() + LEAVE_TIMEOUT;
        while instances.iter().any(|core| !core.has_ended()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.members().clear();
        self.hub.close();
        // The file of the API goes with whoever serves it.
        files::remove_record(self.state_dir.root());
    }

    /// Makes itself known to the commands.
    ///
    /// # Errors
    /// A sentence.
    pub fn announce(&self) -> Result<(), String> {
        files::write_record(self.state_dir.root(), &self.socket)
    }

    fn owner(&self, name: &str) -> Owner {
        let account = Account::new(name, Arc::clone(&self.books));
        Owner::agent(
            Arc::new(account),
            self.socket.clone(),
            Arc::clone(&self.hub),
        )
        .with(Arc::clone(&self.measures), Arc::clone(&self.pool))
    }

    fn on_end(self: &Arc<Self>, name: &str) -> OnEnd {
        let (host, name) = (Arc::downgrade(self), name.to_owned());
        Box::new(move |report| {
            let Some(host) = host.upgrade() else {
                return;
            };
            fault::point("ended");
            host.books.ended(&name, &report.reason);
            host.members().remove(&name);
            host.changed.notify_all();
        })
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<String, Member>> {
        lock_of(&self.members)
    }
}

/// The agent works in another folder than whoever asks it.
fn check_paths(request: &LaunchRequest) -> Result<(), LaunchError> {
    let files = [
        Some(&request.kernel),
        request.initrd.as_ref(),
        request.seed.as_ref(),
    ];
    let disks = request.disks.iter().map(|disk| &disk.path);
    let boot = request.boot_image.iter();
    let boot = boot.flat_map(|boot| [&boot.image, &boot.cache]);
    let mut all = files.into_iter().flatten().chain(disks).chain(boot);
    match all.find(|path| !path.is_absolute()) {
        Some(path) => Err(LaunchError::Request(format!(
            "Path '{}' is not allowed: the agent needs it from the root, as in /srv/disk.img",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// What the ledger holds for an instance with this policy.
fn claim_of(policy: &Policy) -> Claim {
    Claim {
        bounds: policy.bounds,
        weight: policy.weight.max(1),
    }
}

/// A panic of a thread leaves the map whole: each change is one insertion or removal.
fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
