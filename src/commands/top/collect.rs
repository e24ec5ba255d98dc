//! Looks at the instances and the host, and reports: one thread for the folder and the host, and one
//! for each instance, so that an instance that hangs keeps nobody else waiting.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use concertina_agent::client;
use concertina_agent::state_dir::{InstanceEntry, InstancePaths, StateDir};
use concertina_api::instance::{InstanceResize, InstanceStatus};

use super::app::{ANSWER_TIMEOUT, Report};
use super::host::{CapacityBook, HostReader};
use super::instance::Listed;
use crate::event_tail::EventTail;
use crate::failure;

/// Stack of an instance's thread; only the pages that it touches become resident.
const STACK_BYTES: usize = 256 << 10;

/// The receiving end of all reports.
pub struct Collector {
    reports: mpsc::Receiver<Report>,
    bell: UnixStream,
    sender: Sender,
}

/// Sends reports from any thread, and rings a bell that can be polled.
#[derive(Clone)]
struct Sender {
    reports: mpsc::Sender<Report>,
    bell: Arc<UnixStream>,
}

impl Sender {
    /// False when nobody listens any more.
    fn send(&self, report: Report) -> bool {
        let sent = self.reports.send(report).is_ok();
        // A bell that is full rings already.
        let _ = (&*self.bell).write(&[1]);
        sent
    }
}

impl Collector {
    /// Begins to look, once each `interval`, until this is dropped.
    pub fn start(
        state: StateDir,
        interval: Duration,
        book: Box<dyn CapacityBook>,
    ) -> io::Result<Self> {
        let (reports, received) = mpsc::channel();
        let (ours, bell) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        let sender = Sender {
            reports,
            bell: Arc::new(bell),
        };
        let lister = Lister {
            state,
            interval,
            sender: sender.clone(),
            watched: BTreeMap::new(),
        };
        spawn("list", move || lister.run(book))?;
        Ok(Self {
            reports: received,
            bell: ours,
            sender,
        })
    }

    /// Readable when there are reports.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The next report, if there is one.
    pub fn take(&mut self) -> Option<Report> {
        // The bell is emptied first: what is sent after that rings again.
        let mut rung = [0; 64];
        while matches!((&self.bell).read(&mut rung), Ok(1..)) {}
        self.reports.try_recv().ok()
    }

    /// The next report within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<Report> {
        self.reports.recv_timeout(timeout).ok()
    }

    /// Asks an instance for another size; the outcome is reported.
    pub fn resize(&self, paths: InstancePaths, name: String, wish: InstanceResize) {
        let sender = self.sender.clone();
        let failed = sender.clone();
        let named = name.clone();
        let resize = move || {
            let outcome = client::resize(&paths, &wish)
                .map(Box::new)
                .map_err(|error| failure::sentence(&error));
            sender.send(Report::Resized(name, outcome));
        };
        if let Err(error) = spawn("resize", resize) {
            let why = format!("A thread could not start: {error}");
            failed.send(Report::Resized(named, Err(why)));
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.into());
    thread.stack_size(STACK_BYTES).spawn(body)
}

/// Reads the state folder and the host.
struct Lister {
    state: StateDir,
    interval: Duration,
    sender: Sender,
    watched: BTreeMap<String, Watched>,
}

/// An instance that has its thread.
struct Watched {
    agent_pid: i32,
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watched {
    /// Lets its thread read what is left, and end.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
    }
}

impl Lister {
    fn run(mut self, mut book: Box<dyn CapacityBook>) {
        let mut host = HostReader::default();
        loop {
            let entries = self.state.instances();
            let found = entries.iter().map(listed).collect();
            // The list comes before anything that an instance in it says.
            let heard = self.sender.send(Report::Instances(found));
            self.watch(entries);
            let numbers = Report::Host(host.read(), book.accounts());
            if !heard || !self.sender.send(numbers) {
                break;
            }
            thread::sleep(self.interval);
        }
        self.watched.values().for_each(Watched::end);
    }

    /// Starts and ends the instances' threads.
    fn watch(&mut self, entries: Vec<InstanceEntry>) {
        self.watched.retain(|name, watched| {
            let same = |entry: &InstanceEntry| {
                entry.name == *name && entry.agent_pid == watched.agent_pid && entry.alive
            };
            let stays = entries.iter().any(same);
            if !stays {
                watched.end();
            }
            stays
        });
        for entry in entries {
            if !entry.alive || self.watched.contains_key(&entry.name) {
                continue;
            }
            let over = Arc::new(AtomicBool::new(false));
            let watcher = Watcher {
                events: EventTail::new(&entry.paths.events),
                name: entry.name.clone(),
                paths: entry.paths,
                interval: self.interval,
                sender: self.sender.clone(),
                over: Arc::clone(&over),
            };
            // Without a thread it is shown as one that does not answer, and tried again.
            if let Ok(thread) = spawn("watch", move || watcher.run()) {
                let watched = Watched {
                    agent_pid: entry.agent_pid,
                    over,
                    thread,
                };
                self.watched.insert(entry.name, watched);
            }
        }
    }
}

fn listed(entry: &InstanceEntry) -> Listed {
    Listed {
        name: entry.name.clone(),
        alive: entry.alive,
        state: entry.state,
        agent_pid: entry.agent_pid,
        ending: entry.ending.as_ref().map(|ending| ending.reason.clone()),
    }
}

/// Looks at one instance.
struct Watcher {
    name: String,
    paths: InstancePaths,
    interval: Duration,
    events: EventTail,
    sender: Sender,
    over: Arc<AtomicBool>,
}

impl Watcher {
    fn run(mut self) {
        loop {
            let over = self.over.load(Ordering::SeqCst);
            // Events come before the answer: who waits for that only has them, too. A file that
            // cannot be read is looked at again the next time.
            let events = self.events.read().unwrap_or_default();
            if !events.is_empty() {
                self.sender.send(Report::Events(self.name.clone(), events));
            }
            if over || !self.ask() {
                return;
            }
            thread::park_timeout(self.interval);
        }
    }

    /// Asks how it is; false when nobody listens any more.
    fn ask(&self) -> bool {
        let answer: Option<InstanceStatus> = concertina_http::client::get_json(
            &self.paths.agent_socket,
            "/v1/instance",
            ANSWER_TIMEOUT,
        )
        .ok();
        let answer = Report::Answer(self.name.clone(), answer.map(Box::new));
        self.sender.send(answer)
    }
}
