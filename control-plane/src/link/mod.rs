//! Connections of hosts' agents: who is connected, and what each has to be told.
//!
//! ```text
//! registry ──watch──► Hub ──poke──► Session ──Wanted──► agent
//! registry ◄──────── Session ◄──Report, Events, Usage── agent
//! ```
//! A poke only says "look again": a session always tells what the registry says now.

mod join;
mod lines;
mod listener;
mod observe;
mod records;
mod session;
mod wanted;

pub use listener::serve;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use crate::control::Control;
use crate::model::Instance;
use crate::registry::{RegistryError, Seen};

/// Pokes that may wait for a session; more of them mean "look at everything again".
const POKES_MAX: usize = 1024;

/// Look again at something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poke {
    /// At an instance.
    Instance(String),
    /// At open resizes.
    Resizes,
}

#[derive(Debug)]
struct Connected {
    session: String,
    pokes: mpsc::Sender<Poke>,
    /// Set when pokes were lost, or the session is to end.
    overrun: Arc<watch::Sender<Overrun>>,
    held: Arc<Mutex<HashSet<String>>>,
}

/// What a session has to know beyond single pokes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrun {
    /// Grows whenever everything has to be looked at again.
    pub all: u64,
    /// Another connection of the same host has taken over.
    pub replaced: bool,
}

/// A session's end of the hub.
#[derive(Debug)]
pub struct Registered {
    /// Pokes.
    pub pokes: mpsc::Receiver<Poke>,
    /// See [`Overrun`].
    pub overrun: watch::Receiver<Overrun>,
    /// Instances that the host has, or shall have.
    pub held: Arc<Mutex<HashSet<String>>>,
}

/// Hosts that are connected to this node.
#[derive(Debug, Default)]
pub struct Hub {
    hosts: Mutex<HashMap<String, Connected>>,
}

impl Hub {
    fn hosts(&self) -> MutexGuard<'_, HashMap<String, Connected>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host has connected. An older connection of it ends.
    pub fn register(&self, host: &str, session: &str) -> Registered {
        let (pokes, poked) = mpsc::channel(POKES_MAX);
        let (overrun, overran) = watch::channel(Overrun::default());
        let held = Arc::<Mutex<HashSet<String>>>::default();
        let connected = Connected {
            session: session.to_owned(),
            pokes,
            overrun: Arc::new(overrun),
            held: Arc::clone(&held),
        };
        if let Some(old) = self.hosts().insert(host.to_owned(), connected) {
            old.overrun.send_modify(|overrun| overrun.replaced = true);
        }
        Registered {
            pokes: poked,
            overrun: overran,
            held,
        }
    }

    /// A connection has ended.
    pub fn remove(&self, host: &str, session: &str) {
        let mut hosts = self.hosts();
        if hosts
            .get(host)
            .is_some_and(|connected| connected.session == session)
        {
            hosts.remove(host);
        }
    }

    /// Number of connected hosts.
    pub fn len(&self) -> usize {
        self.hosts().len()
    }

    /// Whether none is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn poke(connected: &Connected, poke: Poke) {
        if connected.pokes.try_send(poke).is_err() {
            connected.overrun.send_modify(|overrun| overrun.all += 1);
        }
    }

    fn instance_changed(&self, id: &str, host: Option<&str>) {
        for (name, connected) in self.hosts().iter() {
            let held = connected
                .held
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if host == Some(name.as_str()) || held.contains(id) {
                Self::poke(connected, Poke::Instance(id.to_owned()));
            }
        }
    }

    fn seen(&self, seen: &Seen) {
        if let Some(rest) = seen.key.strip_prefix("host-resize/") {
            let host = rest.split('/').next().unwrap_or("");
            if seen.value.is_some()
                && let Some(connected) = self.hosts().get(host)
            {
                Self::poke(connected, Poke::Resizes);
            }
            return;
        }
        let Some(id) = seen.key.strip_prefix("instance/") else {
            return;
        };
        let instance = seen
            .value
            .as_deref()
            .map(serde_json::from_slice::<Instance>);
        let host = instance
            .and_then(Result::ok)
            .and_then(|instance| instance.life.host);
        self.instance_changed(id, host.as_deref());
    }

    fn everything(&self) {
        for connected in self.hosts().values() {
            connected.overrun.send_modify(|overrun| overrun.all += 1);
        }
    }
}

/// Passes on what changes in the registry, until `stop` says so.
pub async fn follow(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        () = async {
            loop {
                // Whatever went wrong: begin again, and let everybody look at everything.
                let _ = follow_once(&control).await;
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        } => {}
        () = crate::server::asked_to_stop(&mut stop) => {}
    }
}

async fn follow_once(control: &Control) -> Result<(), RegistryError> {
    let registry = control.registry.as_ref();
    let revision = registry.list("cluster", None, 1).await?.revision;
    let mut instances = registry.watch("instance/", revision).await?;
    let mut resizes = registry.watch("host-resize/", revision).await?;
    control.hub.everything();
    loop {
        let seen = tokio::select! {
            seen = instances.next() => seen?,
            seen = resizes.next() => seen?,
        };
        control.hub.seen(&seen);
    }
}
