//! The client thread: one connection, one loop. What takes time (launching, stopping, resizing) is done
//! on threads of its own, at most one for each placement at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use concertina_api::instance::{InstanceResize, InstanceSize};
use concertina_api::link::{
    FromAgent, Goal, HostInstance, HostPhase, PROTOCOL, Placement, ToAgent, Wanted,
};
use concertina_api::vm::ResizeReport;

use super::Host;
use super::fence::Fence;
use super::identity::Identity;
use super::link::Link;
use super::reconcile::{Action, There, action};
use super::records::Records;
use crate::clock::Moment;
use crate::poll::Wakeup;

/// How often to look at the host.
const TICK: Duration = Duration::from_millis(250);
/// How long connecting, with TLS, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Waits between two attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Launches, stops and resizes at a time.
const ACTIONS_MAX: usize = 32;
/// Stack of a thread that does one thing.
const STACK_BYTES: usize = 512 << 10;
/// Until the control plane says otherwise.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Where the client keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Folder of identity and fence.
    pub folder: PathBuf,
}

/// A running client. Dropping it ends the connection; instances run on.
#[derive(Debug)]
pub struct ControlClient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wake: Wakeup,
    stop: AtomicBool,
    connected: AtomicBool,
    done: Mutex<Vec<Done>>,
}

/// Something that took time has ended.
#[allow(clippy::large_enum_variant)] // there are few at a time
#[derive(Debug)]
enum Done {
    Action(Placement, Action, Result<(), String>),
    Resize(String, Result<ResizeReport<InstanceSize>, String>),
}

impl Shared {
    fn done(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, done: Done) {
        self.done().push(done);
        self.wake.set();
    }
}

impl ControlClient {
    /// Starts the client of a host that has joined.
    ///
    /// # Errors
    /// Its files cannot be read, or there is no thread for it.
    pub fn start(
        config: &ClientConfig,
        identity: Identity,
        host: Arc<dyn Host>,
    ) -> io::Result<Self> {
        let fence = Fence::open(&config.folder.join("fence.json"))?;
        let shared = Arc::new(Shared {
            wake: Wakeup::new()?,
            stop: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            done: Mutex::default(),
        });
        let mut client = Client {
            shared: Arc::clone(&shared),
            identity,
            host,
            fence,
            wanted: BTreeMap::new(),
            busy: BTreeMap::new(),
            resizing: BTreeSet::new(),
            policy_problems: BTreeMap::new(),
            link: None,
            backoff: BACKOFF.0,
            retry_at: Instant::now(),
            said: String::new(),
        };
        let thread = thread::Builder::new()
            .name("control".into())
            .stack_size(STACK_BYTES)
            .spawn(move || client.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Looks at the host at once: something has happened there.
    pub fn wake(&self) {
        self.shared.wake.set();
    }

    /// Whether the control plane has welcomed this host.
    pub fn is_connected(&self) -> bool {
        self.shared.connected.load(Ordering::Relaxed)
    }
}

impl Drop for ControlClient {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What belongs to one connection.
struct Connected {
    link: Link,
    records: Records,
    /// The control plane has said how far its record goes.
    is_welcome: bool,
    report_every: Duration,
    reported_at: Instant,
    /// What the control plane was told last.
    reported: BTreeMap<Placement, HostInstance>,
    renewing: bool,
}

struct Client {
    shared: Arc<Shared>,
    identity: Identity,
    host: Arc<dyn Host>,
    fence: Fence,
    wanted: BTreeMap<Placement, Goal>,
    /// Placements for which something is being done.
    busy: BTreeMap<Placement, Action>,
    resizing: BTreeSet<String>,
    /// Why a policy could not be put in force, with its version.
    policy_problems: BTreeMap<Placement, (u64, String)>,
    link: Option<Connected>,
    backoff: Duration,
    retry_at: Instant,
    /// The last trouble that was said: the same again is not.
    said: String,
}

impl Client {
    fn run(&mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.link.is_none() && Instant::now() >= self.retry_at {
                self.connect();
            }
            if let Err(error) = self.round() {
                self.lose(&error.to_string());
            }
            self.wait();
            self.shared.wake.clear();
        }
    }

    fn wait(&self) {
        let deadline = Instant::now() + TICK;
        let wake = self.shared.wake.as_raw_fd();
        // A wait that is over early or late does no harm.
        let _ = match &self.link {
            Some(connected) => connected.link.wait(&[wake], deadline),
            None => crate::poll::wait_readable(&[wake], Some(TICK)).map(drop),
        };
    }

    fn say(&mut self, trouble: &str) {
        if self.said != trouble {
            self.said = trouble.to_owned();
            eprintln!(
                "concertina: control plane {}: {trouble}",
                self.identity.address()
            );
        }
    }

    fn lose(&mut self, why: &str) {
        self.link = None;
        self.shared.connected.store(false, Ordering::Relaxed);
        self.say(why);
        self.retry_at = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    fn connect(&mut self) {
        match self.hello() {
            Ok(connected) => self.link = Some(connected),
            Err(error) => self.lose(&error.to_string()),
        }
    }

    fn hello(&mut self) -> io::Result<Connected> {
        let tls = self.identity.tls().map_err(io::Error::other)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut link = Link::connect(self.identity.address(), tls, deadline)?;
        let reported = self.view();
        link.send(&FromAgent::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            boot: Moment::now().boot.to_string(),
            capacity: self.host.capacity(),
            instances: reported.values().cloned().collect(),
        })?;
        Ok(Connected {
            link,
            records: Records::default(),
            is_welcome: false,
            report_every: REPORT_EVERY,
            reported_at: Instant::now(),
            reported,
            renewing: false,
        })
    }

    /// Everything that can be done now.
    fn round(&mut self) -> io::Result<()> {
        let received = self.receive();
        let finished = std::mem::take(&mut *self.shared.done());
        let mut gone = BTreeSet::new();
        for done in finished {
            self.finish(done, &mut gone);
        }
        received?;
        let view = self.view();
        self.reconcile(&view, &mut gone);
        let view = self.view();
        self.report(&view, gone)?;
        self.send_records(&view)?;
        self.renew()
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut messages = Vec::new();
        if let Some(connected) = &mut self.link {
            connected.link.pump()?;
            while let Some(message) = connected.link.next()? {
                messages.push(message);
            }
        }
        messages
            .into_iter()
            .try_for_each(|message| self.take(message))
    }

    fn take(&mut self, message: ToAgent) -> io::Result<()> {
        match message {
            ToAgent::Welcome {
                report_every_ms,
                recorded,
                ..
            } => {
                if let Some(connected) = &mut self.link {
                    connected.report_every = Duration::from_millis(report_every_ms.max(50));
                    connected.is_welcome = true;
                    recorded
                        .iter()
                        .for_each(|recorded| connected.records.taken(recorded));
                }
                self.backoff = BACKOFF.0;
                self.said.clear();
                self.shared.connected.store(true, Ordering::Relaxed);
            }
            ToAgent::Wanted(Wanted { placement, goal }) => {
                self.fence.see(&placement);
                self.wanted.insert(placement, goal);
            }
            ToAgent::Taken(recorded) => {
                if let Some(connected) = &mut self.link {
                    connected.records.taken(&recorded);
                }
            }
            ToAgent::Resize {
                command,
                placement,
                wish,
            } => self.resize(command, placement, wish),
            ToAgent::Certificate {
                certificate,
                authorities,
                life_s,
                ..
            } => {
                let renewed = self.identity.renew(&certificate, &authorities, life_s);
                renewed.map_err(io::Error::other)?;
                if let Some(connected) = &mut self.link {
                    connected.renewing = false;
                }
            }
            ToAgent::Refused { detail, .. } => {
                self.backoff = BACKOFF.1;
                return Err(io::Error::other(detail));
            }
        }
        Ok(())
    }

    /// Every placement that has a trace here, and what is being done about them.
    fn view(&self) -> BTreeMap<Placement, HostInstance> {
        let mut view: BTreeMap<Placement, HostInstance> = BTreeMap::new();
        for mut seen in self.host.instances() {
            if let Some((_, problem)) = self.policy_problems.get(&seen.placement) {
                seen.policy_problem = Some(problem.clone());
            }
            view.insert(seen.placement.clone(), seen);
        }
        let launching = |action: &&Action| **action == Action::Launch;
        for (placement, _) in self.busy.iter().filter(|(_, action)| launching(action)) {
            let preparing = || phase_only(placement, HostPhase::Preparing);
            // A guest that runs already is only said to when the launch has returned.
            view.insert(placement.clone(), preparing());
        }
        for placement in self
            .wanted
            .keys()
            .filter(|placement| !self.busy.contains_key(placement))
        {
            if let Some(reason) = self.fence.failure(placement)
                && !view.contains_key(placement)
            {
                let reason = reason.to_owned();
                let failed = phase_only(placement, HostPhase::LaunchFailed { reason });
                view.insert(placement.clone(), failed);
            }
        }
        view
    }

    fn reconcile(
        &mut self,
        view: &BTreeMap<Placement, HostInstance>,
        gone: &mut BTreeSet<Placement>,
    ) {
        let wanted: Vec<(Placement, Goal)> = self.wanted.clone().into_iter().collect();
        for (placement, goal) in wanted {
            if self.busy.contains_key(&placement) || self.busy.len() >= ACTIONS_MAX {
                continue;
            }
            let recorded = self.link.as_ref().is_some_and(|connected| {
                connected.is_welcome
                    && connected
                        .records
                        .is_complete(self.host.as_ref(), &placement)
            });
            let there = There {
                seen: view.get(&placement),
                launched: self.fence.is_launched(&placement),
                fenced: self.fence.is_fenced(&placement),
                recorded,
            };
            match action(&goal, there) {
                Action::Nothing => {}
                Action::SayGone => {
                    gone.insert(placement);
                }
                Action::SayEnded => {
                    let reason = "The agent was ended in the middle of its launch";
                    // Said by the view from here on, and by the next agent.
                    let _ = self.fence.fail(&placement, reason);
                }
                action => self.begin(placement, &goal, action),
            }
        }
    }

    /// Does something that takes time, on a thread of its own.
    fn begin(&mut self, placement: Placement, goal: &Goal, action: Action) {
        if action == Action::Launch
            && let Err(error) = self.fence.launch(&placement)
        {
            // Without the note a crash could launch it twice: so it waits.
            self.say(&format!("{} is not launched: {error}", placement.name()));
            return;
        }
        let keep_disk = self.wanted.iter().any(|(other, goal)| {
            other.id == placement.id && *other != placement && *goal != Goal::Absent
        });
        let (host, shared, goal) = (
            Arc::clone(&self.host),
            Arc::clone(&self.shared),
            goal.clone(),
        );
        let doing = placement.clone();
        let task = move || {
            let result = act(host.as_ref(), &doing, &goal, action, !keep_disk);
            shared.tell(Done::Action(doing, action, result));
        };
        let spawned = thread::Builder::new()
            .name("control-action".into())
            .stack_size(STACK_BYTES)
            .spawn(task);
        match spawned {
            Ok(_) => {
                self.busy.insert(placement, action);
            }
            Err(error) => self.say(&format!("There is no thread for an action: {error}")),
        }
    }

    fn finish(&mut self, done: Done, gone: &mut BTreeSet<Placement>) {
        match done {
            Done::Resize(command, result) => {
                self.resizing.remove(&command);
                let (report, error) = match result {
                    Ok(report) => (Some(report), None),
                    Err(error) => (None, Some(error)),
                };
                // An answer that is lost with the connection is asked for again.
                if let Some(connected) = &mut self.link {
                    let _ = connected.link.send(&FromAgent::Resized {
                        command,
                        report,
                        error,
                    });
                }
            }
            Done::Action(placement, action, result) => {
                self.busy.remove(&placement);
                match (action, result) {
                    (Action::Launch, Err(why)) => {
                        if let Err(error) = self.fence.fail(&placement, &why) {
                            self.say(&format!("The fence cannot be written: {error}"));
                        }
                    }
                    (Action::Remove, Ok(())) => {
                        gone.insert(placement);
                    }
                    (Action::ReplacePolicy, Err(why)) => {
                        let version = match self.wanted.get(&placement) {
                            Some(Goal::Run { policy_version, .. }) => *policy_version,
                            _ => 0,
                        };
                        self.policy_problems.insert(placement, (version, why));
                    }
                    (Action::ReplacePolicy, Ok(())) => {
                        self.policy_problems.remove(&placement);
                    }
                    (_, Err(why)) => self.say(&format!("{}: {why}", placement.name())),
                    (_, Ok(())) => {}
                }
            }
        }
        // A problem belongs to the version that had it.
        let wanted = &self.wanted;
        self.policy_problems.retain(|placement, (version, _)| {
            matches!(wanted.get(placement), Some(Goal::Run { policy_version, .. }) if policy_version == version)
        });
    }

    fn resize(&mut self, command: String, placement: Placement, wish: InstanceResize) {
        if !self.resizing.insert(command.clone()) {
            return;
        }
        let (host, shared) = (Arc::clone(&self.host), Arc::clone(&self.shared));
        let doing = command.clone();
        let task = move || {
            let result = host.resize(&placement, &doing, &wish);
            shared.tell(Done::Resize(doing, result));
        };
        let spawned = thread::Builder::new()
            .name("control-resize".into())
            .stack_size(STACK_BYTES)
            .spawn(task);
        if spawned.is_err() {
            // It is asked for again with the next connection.
            self.resizing.remove(&command);
        }
    }

    /// Says what has changed at once, and everything from time to time.
    fn report(
        &mut self,
        view: &BTreeMap<Placement, HostInstance>,
        mut gone: BTreeSet<Placement>,
    ) -> io::Result<()> {
        let Some(connected) = self.link.as_mut().filter(|connected| connected.is_welcome) else {
            return Ok(());
        };
        // What was told to be here and is not any more.
        let vanished = connected
            .reported
            .keys()
            .filter(|placement| !view.contains_key(placement));
        gone.extend(vanished.cloned());
        gone.retain(|placement| !view.contains_key(placement));
        let is_due = connected.reported_at.elapsed() >= connected.report_every;
        let is_news = |seen: &&HostInstance| {
            let before = connected.reported.get(&seen.placement);
            before.is_none_or(|before| is_other(before, seen) || (is_due && before != *seen))
        };
        let instances: Vec<HostInstance> = view.values().filter(is_news).cloned().collect();
        if !is_due && instances.is_empty() && gone.is_empty() {
            return Ok(());
        }
        for seen in &instances {
            connected
                .reported
                .insert(seen.placement.clone(), seen.clone());
        }
        for placement in &gone {
            connected.reported.remove(placement);
            connected.records.forget(placement);
            self.wanted.remove(placement);
            self.fence.over(placement);
        }
        connected.reported_at = Instant::now();
        connected.link.send(&FromAgent::Report {
            capacity: self.host.capacity(),
            instances,
            gone: gone.into_iter().collect(),
        })
    }

    fn send_records(&mut self, view: &BTreeMap<Placement, HostInstance>) -> io::Result<()> {
        let Some(connected) = self.link.as_mut().filter(|connected| connected.is_welcome) else {
            return Ok(());
        };
        for placement in view.keys() {
            for batch in connected.records.next(self.host.as_ref(), placement) {
                connected.link.send(&batch)?;
            }
        }
        Ok(())
    }

    fn renew(&mut self) -> io::Result<()> {
        let is_old = self.identity.is_old();
        let Some(connected) = self.link.as_mut().filter(|c| c.is_welcome && !c.renewing) else {
            return Ok(());
        };
        if is_old {
            connected.renewing = true;
            let request = self.identity.request().map_err(io::Error::other)?;
            connected.link.send(&FromAgent::Renew { request })?;
        }
        Ok(())
    }
}

fn act(
    host: &dyn Host,
    placement: &Placement,
    goal: &Goal,
    action: Action,
    with_disk: bool,
) -> Result<(), String> {
    match (action, goal) {
        (
            Action::Launch,
            Goal::Run {
                order,
                policy_version,
            },
        ) => host.launch(placement, order, *policy_version),
        (
            Action::ReplacePolicy,
            Goal::Run {
                order,
                policy_version,
            },
        ) => host.replace_policy(placement, &order.policy, *policy_version),
        (Action::Stop { force, timeout_ms }, _) => host.stop(placement, force, timeout_ms),
        (Action::Remove, _) => host.remove(placement, with_disk),
        _ => Ok(()),
    }
}

fn phase_only(placement: &Placement, phase: HostPhase) -> HostInstance {
    HostInstance {
        placement: placement.clone(),
        phase,
        policy_version: None,
        status: None,
        metrics: BTreeMap::new(),
        capacity_short: None,
        policy_problem: None,
    }
}

/// Whether something has changed that is worth a report of its own.
fn is_other(before: &HostInstance, now: &HostInstance) -> bool {
    let target = |seen: &HostInstance| {
        let status = seen.status.as_ref();
        status.map(|status| (status.cpus.target, status.memory.target))
    };
    before.phase != now.phase
        || before.policy_version != now.policy_version
        || before.policy_problem != now.policy_problem
        || before.capacity_short.is_some() != now.capacity_short.is_some()
        || target(before) != target(now)
}
