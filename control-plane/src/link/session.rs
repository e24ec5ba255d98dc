//! One connection of a host's agent.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use concertina_api::link::{FromAgent, HostCapacity, HostInstance, PROTOCOL, Placement, ToAgent};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::lines::{LineError, Lines, send};
use super::observe::{self, Seen};
use super::wanted::wanted;
use super::{Poke, Registered, join, records};
use crate::control::Control;
use crate::ids;
use crate::model::state::Input;
use crate::model::{Host, Instance, Live, Resize};
use crate::problem::{Answer, Fault, Problem};
use crate::registry::{LeaseId, RegistryError, Transaction};

type Stream = TlsStream<TcpStream>;

/// A message that cannot be written for so long means that the agent is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("{0}")]
    Refused(Problem),
}

impl From<RegistryError> for End {
    fn from(error: RegistryError) -> Self {
        Self::Fault(error.into())
    }
}

struct Session<'c> {
    control: &'c Control,
    host: Host,
    id: String,
    lease: LeaseId,
    writer: WriteHalf<Stream>,
}

/// Serves one connection until it ends.
pub async fn run(
    control: &Arc<Control>,
    host: Host,
    hello: FromAgent,
    (lines, writer): (Lines<ReadHalf<Stream>>, WriteHalf<Stream>),
    remote: SocketAddr,
    stop: watch::Receiver<bool>,
) -> Result<(), LineError> {
    let name = host.name.clone();
    let mut session = Session {
        control,
        id: ids::fresh("s").unwrap_or_default(),
        host,
        lease: 0,
        writer,
    };
    let served = session.serve(lines, hello, remote, stop).await;
    control.hub.remove(&session.host.id, &session.id);
    match served {
        Err(End::Refused(problem)) => {
            let refused = ToAgent::Refused {
                code: problem.code.into(),
                detail: problem.detail,
            };
            send(&mut session.writer, &refused).await
        }
        Err(End::Line(error)) => {
            if matches!(error, LineError::Message(_)) {
                eprintln!("concertina control: the connection of host '{name}' ends: {error}");
            }
            Err(error)
        }
        Err(End::Fault(fault)) => {
            eprintln!("concertina control: the connection of host '{name}' ends: {fault}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

impl Session<'_> {
    async fn serve(
        &mut self,
        mut lines: Lines<ReadHalf<Stream>>,
        hello: FromAgent,
        remote: SocketAddr,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), End> {
        let FromAgent::Hello {
            protocol,
            version,
            boot,
            capacity,
            instances,
        } = hello
        else {
            return Ok(());
        };
        if protocol != PROTOCOL {
            let detail = format!(
                "This control plane speaks version {PROTOCOL} of the protocol, the agent {protocol}"
            );
            return Err(End::Refused(Problem::conflict("wrong_protocol", detail)));
        }
        self.lease = self
            .control
            .registry
            .grant(self.control.settings.host_lease)
            .await?;
        self.say_live(remote).await?;
        let mut registered = self.control.hub.register(&self.host.id, &self.id);
        self.put_host(|host| {
            host.capacity = capacity;
            host.version = version.clone();
            host.boot = boot.clone();
            host.lost = false;
        })
        .await?;
        let mut recorded = Vec::new();
        for seen in &instances {
            recorded.push(records::how_far(self.control, &seen.placement).await?);
        }
        let third = self.control.settings.host_lease / 3;
        self.send(&ToAgent::Welcome {
            host: self.host.id.clone(),
            report_every_ms: u64::try_from(third.as_millis()).unwrap_or(5000).max(1),
            recorded,
        })
        .await?;
        self.back(&instances).await?;
        self.observe(&registered, &instances).await?;
        self.everything(&registered).await?;
        loop {
            tokio::select! {
                line = lines.next() => {
                    let message = line?;
                    self.live().await?;
                    self.take(&registered, message).await?;
                }
                poke = registered.pokes.recv() => match poke {
                    Some(Poke::Instance(id)) => self.tell(&registered, &id).await?,
                    Some(Poke::Resizes) => self.resizes().await?,
                    None => return Ok(()),
                },
                changed = registered.overrun.changed() => {
                    if changed.is_err() || registered.overrun.borrow_and_update().replaced {
                        return Ok(());
                    }
                    self.everything(&registered).await?;
                }
                () = crate::server::asked_to_stop(&mut stop) => return Ok(()),
            }
        }
    }

    async fn send(&mut self, message: &ToAgent) -> Result<(), End> {
        match tokio::time::timeout(SEND_TIMEOUT, send(&mut self.writer, message)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(LineError::Ended.into()),
        }
    }

    /// Says that this connection is the host's.
    async fn say_live(&self, remote: SocketAddr) -> Result<(), End> {
        let live = Live {
            session: self.id.clone(),
            remote: remote.to_string(),
        };
        let mut transaction = Transaction::new();
        transaction.put_leased(format!("live/{}", self.host.id), &live, Some(self.lease))?;
        self.control.registry.commit(transaction).await?;
        Ok(())
    }

    /// The agent lives: its lease goes on. One that has expired meanwhile needs a fresh hello.
    async fn live(&self) -> Result<(), End> {
        match self.control.registry.keep_alive(self.lease).await {
            Err(RegistryError::LeaseExpired(_)) => Err(LineError::Ended.into()),
            kept => Ok(kept?),
        }
    }

    /// Changes the host's record, where that changes anything.
    async fn put_host(&mut self, change: impl Fn(&mut Host)) -> Result<(), End> {
        let key = format!("host/{}", self.host.id);
        let host = crate::draft::again(|| async {
            let mut draft = self.control.draft();
            let Some(before) = draft.read::<Host>(key.clone()).await? else {
                return Ok(None);
            };
            let mut after = before.clone();
            change(&mut after);
            if after != before {
                draft.write(key.clone(), &after)?;
                draft.commit().await?;
            }
            Ok::<_, Fault>(Some(after))
        })
        .await?;
        match host {
            Some(host) => {
                self.host = host;
                Ok(())
            }
            None => Err(End::Refused(Problem::forbidden(
                "host_removed",
                "This host was removed",
            ))),
        }
    }

    /// The host is back: what it was lost with is reachable, and what it no longer has is over.
    async fn back(&self, instances: &[HostInstance]) -> Answer<()> {
        for id in self.placed_here().await? {
            let has = |placement: &Placement| instances.iter().any(|i| i.placement == *placement);
            self.control
                .happen(&id, |instance| {
                    let is_here = instance.life.host.as_ref() == Some(&self.host.id);
                    is_here.then_some(Input::HostBack)
                })
                .await?;
            self.control
                .happen(&id, |instance| {
                    let is_here = instance.life.host.as_ref() == Some(&self.host.id);
                    let is_missing = instance.life.ran && !has(&instance.placement());
                    (is_here && is_missing).then_some(Input::Gone)
                })
                .await?;
        }
        Ok(())
    }

    async fn placed_here(&self) -> Answer<Vec<String>> {
        let prefix = format!("host-instance/{}/", self.host.id);
        let listing = self.control.registry.list_all(&prefix).await?;
        let id = |key: &str| key.strip_prefix(&prefix).map(str::to_owned);
        Ok(listing
            .entries
            .iter()
            .filter_map(|entry| id(&entry.key))
            .collect())
    }

    /// Tells the host of everything that it shall have.
    async fn everything(&mut self, registered: &Registered) -> Result<(), End> {
        let mut ids = self.placed_here().await?;
        ids.extend(held(registered).iter().cloned());
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            self.tell(registered, &id).await?;
        }
        self.resizes().await
    }

    /// Tells the host what one instance shall be.
    async fn tell(&mut self, registered: &Registered, id: &str) -> Result<(), End> {
        let (instance, _) = self
            .control
            .registry
            .read::<Instance>(format!("instance/{id}"))
            .await?;
        let Some(instance) = instance else {
            return Ok(());
        };
        if instance.life.host.as_ref() == Some(&self.host.id) {
            held(registered).insert(id.to_owned());
            let placement = instance.placement();
            let wanted = wanted(&instance, &self.host.id, placement);
            return self.send(&ToAgent::Wanted(wanted)).await;
        }
        // It was here, and is not any more: every placement before the present one has to go. Which of
        // them are still there is in the agent's next report.
        if held(registered).remove(id) {
            for generation in self.generations_here(&instance).await? {
                let placement = Placement {
                    id: id.to_owned(),
                    generation,
                };
                let wanted = wanted(&instance, &self.host.id, placement);
                self.send(&ToAgent::Wanted(wanted)).await?;
            }
        }
        Ok(())
    }

    async fn generations_here(&self, instance: &Instance) -> Answer<Vec<u64>> {
        let prefix = format!("placed/{}/", instance.id);
        let placed = self.control.registry.list_all(&prefix).await?;
        let mut generations = Vec::new();
        for entry in placed.entries {
            let generation = entry
                .key
                .strip_prefix(&prefix)
                .and_then(|text| text.parse::<u64>().ok());
            if entry.read::<String>()? == self.host.id {
                generations.extend(generation);
            }
        }
        Ok(generations)
    }

    /// Sends resizes that are open.
    async fn resizes(&mut self) -> Result<(), End> {
        let prefix = format!("host-resize/{}/", self.host.id);
        let open = self.control.registry.list_all(&prefix).await?;
        for entry in open.entries {
            let Some(rest) = entry.key.strip_prefix(&prefix) else {
                continue;
            };
            let (resize, _) = self
                .control
                .registry
                .read::<Resize>(format!("resize/{rest}"))
                .await?;
            if let Some(resize) = resize.filter(|resize| !resize.is_done()) {
                self.send(&ToAgent::Resize {
                    command: rest.to_owned(),
                    placement: resize.placement,
                    wish: resize.wish,
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, registered: &Registered, message: FromAgent) -> Result<(), End> {
        match message {
            FromAgent::Report {
                capacity,
                instances,
                gone,
            } => self.report(registered, capacity, &instances, &gone).await,
            FromAgent::Events {
                placement,
                first,
                events,
            } => {
                let taken =
                    records::events(self.control, &self.host.id, &placement, first, &events);
                match taken.await? {
                    Some(recorded) => self.send(&ToAgent::Taken(recorded)).await,
                    None => Ok(()),
                }
            }
            FromAgent::Usage {
                placement,
                first,
                lines,
            } => {
                let taken = records::usage(self.control, &self.host.id, &placement, first, &lines);
                match taken.await? {
                    Some(recorded) => self.send(&ToAgent::Taken(recorded)).await,
                    None => Ok(()),
                }
            }
            FromAgent::Resized {
                command,
                report,
                error,
            } => {
                let host = &self.host.id;
                resized(self.control, host, &command, |resize| {
                    resize.report = report.clone();
                    resize.error = error.clone();
                })
                .await?;
                Ok(())
            }
            FromAgent::Renew { request } => {
                let answer = join::renew(self.control, &self.host, &request)
                    .map_err(|fault| End::Refused(fault.into()))?;
                self.send(&answer).await
            }
            FromAgent::Join { .. } | FromAgent::Hello { .. } => {
                let detail = "A connection has one hello, at its beginning";
                Err(End::Refused(Problem::conflict(
                    "unexpected_message",
                    detail,
                )))
            }
        }
    }

    async fn report(
        &mut self,
        registered: &Registered,
        capacity: HostCapacity,
        instances: &[HostInstance],
        gone: &[Placement],
    ) -> Result<(), End> {
        self.put_host(|host| {
            host.capacity = capacity;
            host.lost = false;
        })
        .await?;
        for placement in gone {
            observe::gone(self.control, &self.host.id, placement).await?;
        }
        self.observe(registered, instances).await
    }

    async fn observe(
        &mut self,
        registered: &Registered,
        instances: &[HostInstance],
    ) -> Result<(), End> {
        let mut unknown = Vec::new();
        let answers = observe::observe(self.control, &self.host.id, instances).await?;
        for (seen, answer) in instances.iter().zip(answers) {
            match answer {
                Seen::Fine => {}
                Seen::Tell(wanted) => self.send(&ToAgent::Wanted(*wanted)).await?,
                Seen::Unknown => unknown.push(seen.placement.name()),
            }
            held(registered).insert(seen.placement.id.clone());
        }
        if unknown.iter().any(|name| !self.host.unknown.contains(name)) {
            self.put_host(|host| {
                for name in &unknown {
                    if !host.unknown.contains(name) {
                        host.unknown.push(name.clone());
                    }
                }
            })
            .await?;
        }
        Ok(())
    }
}

fn held(registered: &Registered) -> std::sync::MutexGuard<'_, std::collections::HashSet<String>> {
    registered
        .held
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// A resize has ended: its record says how. The first answer counts.
pub async fn resized(
    control: &Control,
    host: &str,
    command: &str,
    end: impl Fn(&mut Resize),
) -> Answer<()> {
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let index = format!("host-resize/{host}/{command}");
        if draft.read::<()>(index.clone()).await?.is_none() {
            return Ok(());
        }
        let key = format!("resize/{command}");
        if let Some(mut resize) = draft.read::<Resize>(key.clone()).await? {
            end(&mut resize);
            if !resize.is_done() {
                resize.error = Some("The host gave no outcome".into());
            }
            draft.write(key, &resize)?;
        }
        draft.remove(index);
        draft.commit().await?;
        Ok::<_, Fault>(())
    })
    .await
}
