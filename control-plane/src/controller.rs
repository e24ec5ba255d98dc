//! What has to be done although nobody asks: hosts that are lost, instances that wait for a host.
//!
//! One node leads at a time, by a lease. The leader keeps a small picture of all instances, from a list
//! and a watch, and looks at it each second. Everything it does is a step of the state machine in a
//! transaction: two leaders for a moment do no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::control::Control;
use crate::ids;
use crate::model::state::{Input, State};
use crate::model::{Host, HostLostAction, Instance};
use crate::problem::{Answer, Fault};
use crate::registry::{LIST_MAX, LeaseId, RegistryError, Seen, Transaction, Watch};

/// How long a leader may be silent.
const LEADER_LEASE: Duration = Duration::from_secs(6);
/// How often the leader looks.
const TICK: Duration = Duration::from_millis(500);
/// How long whoever is not the leader waits before trying.
const RETRY: Duration = Duration::from_secs(1);
/// Answers to client tokens are kept for a day.
const ONCE_KEPT_MS: u64 = 24 * 3600 * 1000;
/// How often old things are swept away, in ticks.
const SWEEP_TICKS: u64 = 1200;

/// Leads when it can, until `stop` says so.
pub async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let mut lease = None;
    tokio::select! {
        () = lead(&control, &mut lease) => {}
        () = crate::server::asked_to_stop(&mut stop) => {}
    }
    // Another node need not wait for the lease to end.
    if let Some(lease) = lease {
        let _ = control.registry.revoke(lease).await;
    }
}

async fn lead(control: &Arc<Control>, lease: &mut Option<LeaseId>) {
    loop {
        match elect(control).await {
            Ok(elected) => {
                *lease = Some(elected);
                let leading = async {
                    tokio::select! {
                        done = control_all(control) => done,
                        lost = keep(control, elected) => lost,
                        () = crate::webhooks::run(control) => Ok(()),
                    }
                };
                if let Err(fault) = leading.await {
                    eprintln!("concertina control: this node no longer leads: {fault}");
                }
                *lease = None;
                let _ = control.registry.revoke(elected).await;
            }
            Err(RegistryError::Conflict(_)) => {}
            Err(error) => eprintln!("concertina control: {error}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Becomes the leader, where there is none.
async fn elect(control: &Control) -> Result<LeaseId, RegistryError> {
    if control.registry.get("leader").await?.is_some() {
        return Err(RegistryError::Conflict("leader".into()));
    }
    let lease = control.registry.grant(LEADER_LEASE).await?;
    let node = ids::fresh("n").unwrap_or_default();
    let mut transaction = Transaction::new();
    transaction
        .absent("leader")
        .put_leased("leader", &node, Some(lease))?;
    match control.registry.commit(transaction).await {
        Ok(_) => Ok(lease),
        Err(error) => {
            let _ = control.registry.revoke(lease).await;
            Err(error)
        }
    }
}

async fn keep(control: &Control, lease: LeaseId) -> Answer<()> {
    loop {
        tokio::time::sleep(LEADER_LEASE / 3).await;
        control.registry.keep_alive(lease).await?;
    }
}

/// What the leader knows of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    state: State,
    host: Option<String>,
    relaunch: bool,
}

/// The leader's picture.
#[derive(Debug, Default)]
struct Picture {
    instances: BTreeMap<String, Known>,
}

impl Picture {
    fn see(&mut self, id: &str, instance: Option<&Instance>) {
        match instance {
            // What is over is of no interest here, and there may be very many.
            Some(instance) if instance.life.state != State::Terminated => {
                let known = Known {
                    state: instance.life.state,
                    host: instance.life.host.clone(),
                    relaunch: instance.spec.on_host_lost == HostLostAction::Relaunch,
                };
                self.instances.insert(id.to_owned(), known);
            }
            _ => {
                self.instances.remove(id);
            }
        }
    }

    fn seen(&mut self, seen: &Seen) {
        if let Some(id) = seen.key.strip_prefix("instance/") {
            let instance = seen
                .value
                .as_deref()
                .map(serde_json::from_slice::<Instance>);
            self.see(id, instance.and_then(Result::ok).as_ref());
        }
    }

    fn of(&self, wanted: impl Fn(&Known) -> bool) -> Vec<String> {
        let found = self.instances.iter().filter(|(_, known)| wanted(known));
        found.map(|(id, _)| id.clone()).collect()
    }
}

async fn control_all(control: &Control) -> Answer<()> {
    let registry = control.registry.as_ref();
    let mut picture = Picture::default();
    let listing = registry.list_all("instance/").await?;
    for entry in &listing.entries {
        let id = entry.key.strip_prefix("instance/").unwrap_or(&entry.key);
        picture.see(id, Some(&entry.read()?));
    }
    let mut changes = registry.watch("instance/", listing.revision).await?;
    for tick in 0u64.. {
        follow(&mut picture, &mut changes, TICK).await?;
        hosts(control, &picture).await?;
        for id in picture.of(|known| known.state == State::Unreachable && known.relaunch) {
            relaunch(control, &id).await?;
        }
        for id in picture.of(|known| known.state == State::Pending) {
            place(control, &id).await?;
        }
        if tick % SWEEP_TICKS == SWEEP_TICKS - 1 {
            sweep(control).await?;
        }
    }
    Ok(())
}

/// Takes changes for so long.
async fn follow(picture: &mut Picture, changes: &mut Watch, time: Duration) -> Answer<()> {
    let until = tokio::time::Instant::now() + time;
    loop {
        match tokio::time::timeout_at(until, changes.next()).await {
            Ok(seen) => picture.seen(&seen?),
            Err(_) => return Ok(()),
        }
    }
}

/// Hosts whose lease has ended are lost.
async fn hosts(control: &Control, picture: &Picture) -> Answer<()> {
    let live = control.registry.list_all("live/").await?;
    let live: BTreeSet<&str> = live
        .entries
        .iter()
        .filter_map(|entry| entry.key.strip_prefix("live/"))
        .collect();
    let mut known = BTreeSet::new();
    for entry in control.registry.list_all("host/").await?.entries {
        let host: Host = entry.read()?;
        known.insert(host.id.clone());
        if live.contains(host.id.as_str()) {
            continue;
        }
        if !host.lost {
            mark_lost(control, &host.id).await?;
        }
        let input = |instance: &Instance| {
            let is_here = instance.life.host.as_deref() == Some(host.id.as_str());
            is_here.then_some(Input::HostLost)
        };
        let is_here = |known: &Known| {
            let can_be_lost = matches!(
                known.state,
                State::Starting | State::Running | State::Moving
            );
            can_be_lost && known.host.as_deref() == Some(host.id.as_str())
        };
        for id in picture.of(is_here) {
            control.happen(&id, input).await?;
        }
    }
    // What a crash left between the removal of a host and that of its instances.
    let is_orphan = |instance: &Known| {
        let host = instance.host.as_deref();
        host.is_some_and(|host| !known.contains(host))
    };
    for id in picture.of(is_orphan) {
        let input = |instance: &Instance| {
            let host = instance.life.host.as_deref();
            host.is_some_and(|host| !known.contains(host))
                .then_some(Input::HostRemoved)
        };
        control.happen(&id, input).await?;
    }
    Ok(())
}

/// Marks a host as lost, unless it is back at this very moment.
async fn mark_lost(control: &Control, id: &str) -> Answer<()> {
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let key = format!("host/{id}");
        let is_live = draft
            .read::<serde_json::Value>(format!("live/{id}"))
            .await?
            .is_some();
        let Some(mut host) = draft.read::<Host>(key.clone()).await?.filter(|_| !is_live) else {
            return Ok(());
        };
        host.lost = true;
        draft.write(key, &host)?;
        draft.commit().await?;
        Ok::<_, Fault>(())
    })
    .await
}

/// Gives up an instance where it is, since its host is lost, and places it elsewhere.
async fn relaunch(control: &Control, id: &str) -> Answer<()> {
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let Some(before) = draft.read::<Instance>(format!("instance/{id}")).await? else {
            return Ok(());
        };
        let mut after = before.clone();
        if !after.life.step(&Input::Relaunch)? {
            return Ok(());
        }
        after.avoid = before.life.host.clone();
        control
            .change(&mut draft, Some(&before), &mut after)
            .await?;
        draft.commit().await?;
        Ok::<_, Fault>(())
    })
    .await
}

/// Places an instance that waits, or says why it waits on.
async fn place(control: &Control, id: &str) -> Answer<()> {
    let _placing = control.placing.lock().await;
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let found = draft.read::<Instance>(format!("instance/{id}")).await?;
        let Some(before) = found.filter(|instance| instance.life.state == State::Pending) else {
            return Ok(());
        };
        let mut after = before.clone();
        match control.place(&mut draft, &mut after).await {
            Ok(()) => {}
            Err(Fault::Problem(problem)) => {
                // Nothing was decided: only the reason is written, with a fresh draft.
                draft = control.draft();
                draft.read::<Instance>(format!("instance/{id}")).await?;
                after = before.clone();
                if !after.life.step(&Input::NoRoom(problem.detail))? {
                    return Ok(());
                }
            }
            Err(fault) => return Err(fault),
        }
        control
            .change(&mut draft, Some(&before), &mut after)
            .await?;
        draft.commit().await?;
        Ok::<_, Fault>(())
    })
    .await
}

/// Removes what nobody needs any more: old answers to client tokens, join tokens that have ended.
async fn sweep(control: &Control) -> Answer<()> {
    let now = ids::now_ms();
    let is_old = |key: &str, value: &serde_json::Value| {
        let time = |field: &str| value.get(field).and_then(serde_json::Value::as_u64);
        match key.split('/').next() {
            Some("once") => time("time_ms").is_some_and(|t| now.saturating_sub(t) > ONCE_KEPT_MS),
            Some("join") => time("expires_ms").is_some_and(|end| end < now),
            _ => false,
        }
    };
    for prefix in ["once/", "join/"] {
        let mut after = None;
        loop {
            let page = control
                .registry
                .list(prefix, after.as_deref(), LIST_MAX)
                .await?;
            for entry in &page.entries {
                if is_old(&entry.key, &entry.read()?) {
                    let mut transaction = Transaction::new();
                    transaction
                        .compare(entry.key.clone(), entry.revision)
                        .delete(entry.key.clone());
                    match control.registry.commit(transaction).await {
                        Ok(_) | Err(RegistryError::Conflict(_)) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            after = page.entries.last().map(|entry| entry.key.clone());
            if !page.has_more {
                break;
            }
        }
    }
    Ok(())
}
