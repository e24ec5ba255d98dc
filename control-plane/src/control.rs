//! What every part of the control plane works with: the registry, the settings, and the one way in
//! which an instance changes.

use std::sync::Arc;

use concertina_api::policy::PolicyBounds;
use concertina_api::{Bytes, Cpus};

use crate::ca::Authorities;
use crate::config::Settings;
use crate::draft::Draft;
use crate::ids::{self, now_text};
use crate::limit::Limiter;
use crate::link::Hub;
use crate::model::state::{Input, State};
use crate::model::{Delivery, Event, Host, Instance, Promised, Recorded, Used, Webhook};
use crate::placement::{Candidate, Wish, place};
use crate::problem::{Answer, Fault, Problem};
use crate::registry::{LIST_MAX, Registry};

/// Most events that are kept of one instance; the oldest go first.
pub const EVENTS_KEPT: u64 = 10_000;

/// The control plane's heart; one for each node.
#[derive(Debug)]
pub struct Control {
    /// Where everything is.
    pub registry: Arc<dyn Registry>,
    /// How it is set.
    pub settings: Settings,
    /// Who signs certificates.
    pub authorities: Authorities,
    /// Requests a second.
    pub limiter: Limiter,
    /// Hosts that are connected to this node.
    pub hub: Hub,
    /// One placement is decided at a time: two that race would only conflict.
    pub placing: tokio::sync::Mutex<()>,
}

impl Control {
    /// How agents reach this control plane: `HOST:PORT`.
    pub fn agents_address(&self) -> String {
        match &self.settings.agents_url {
            Some(address) => address.clone(),
            None => self.settings.agents.to_string(),
        }
    }

    /// A transaction in the making.
    pub fn draft(&self) -> Draft<'_> {
        Draft::new(self.registry.as_ref())
    }

    /// What can take instances, with what each has promised.
    pub async fn candidates(&self, spread: Option<(&str, &str)>) -> Answer<Vec<Candidate>> {
        let hosts = self.registry.list_all("host/").await?;
        let promised = self.registry.list_all("promised/").await?;
        let groups = match spread {
            Some((account, group)) => self.group(account, group).await?,
            None => Vec::new(),
        };
        let mut candidates = Vec::new();
        for entry in &hosts.entries {
            let host: Host = entry.read()?;
            let key = format!("promised/{}", host.id);
            let held = promised
                .entries
                .binary_search_by(|e| e.key.as_str().cmp(&key));
            let held = held.ok().and_then(|at| promised.entries.get(at));
            let promised: Promised = held.map(|e| e.read()).transpose()?.unwrap_or_default();
            let in_group = groups.iter().filter(|on| **on == host.id).count();
            candidates.push(Candidate {
                state: host.state(),
                capacity: host.capacity,
                promised,
                same_group: u32::try_from(in_group).unwrap_or(u32::MAX),
                id: host.id,
                name: host.name,
            });
        }
        Ok(candidates)
    }

    /// Hosts of an account's instances that shall be spread.
    async fn group(&self, account: &str, group: &str) -> Answer<Vec<String>> {
        let index = format!("account-instance/{account}/");
        let ids = self.registry.list_all(&index).await?;
        let mut hosts = Vec::new();
        for chunk in ids.entries.chunks(LIST_MAX) {
            let keys: Vec<String> = chunk
                .iter()
                .filter_map(|entry| entry.key.strip_prefix(&index))
                .map(|id| format!("instance/{id}"))
                .collect();
            for entry in self.registry.get_many(&keys).await?.into_iter().flatten() {
                let instance: Instance = entry.read()?;
                if instance.spec.placement.spread.as_deref() == Some(group) {
                    hosts.extend(instance.life.host);
                }
            }
        }
        Ok(hosts)
    }

    /// Chooses a host for an instance that is pending, and promises its lower bounds there.
    ///
    /// # Errors
    /// None has room.
    pub async fn place(&self, draft: &mut Draft<'_>, instance: &mut Instance) -> Answer<()> {
        let bounds = instance.spec.policy.bounds;
        let hints = &instance.spec.placement;
        let group = hints
            .spread
            .as_deref()
            .map(|group| (instance.account.as_str(), group));
        let wish = Wish {
            cpus: bounds.cpus.min,
            memory: bounds.memory.min,
            only: hints.host.clone(),
            // Its disk is there.
            pinned: instance.life.host.clone().filter(|_| instance.life.ran),
            not: instance.avoid.clone(),
        };
        let candidates = self.candidates(group).await?;
        let chosen = place(&wish, &candidates)?;
        // The sums of the list may be older than what the draft reads: it decides.
        let mut fresh = chosen.clone();
        fresh.promised = draft
            .read(format!("promised/{}", chosen.id))
            .await?
            .unwrap_or_default();
        place(&wish, std::slice::from_ref(&fresh))?;
        instance.life.step(&Input::Placed(fresh.id.clone()))?;
        let placed = format!("placed/{}/{}", instance.id, instance.life.generation);
        draft.write(placed, &fresh.id)?;
        instance.avoid = None;
        Ok(())
    }

    /// Makes a draft of an instance's change: its record, what its host has promised, indexes, an event
    /// where the state has changed.
    ///
    /// # Errors
    /// The registry does not work.
    pub async fn change(
        &self,
        draft: &mut Draft<'_>,
        before: Option<&Instance>,
        after: &mut Instance,
    ) -> Answer<()> {
        let was_at = before.and_then(|instance| instance.life.host.clone());
        let held = before.filter(|instance| instance.life.promised);
        let held_at = held.and_then(|instance| instance.life.host.clone());
        let holds_at = after.life.host.clone().filter(|_| after.life.promised);
        if held_at != holds_at {
            let bounds = after.spec.policy.bounds;
            if let (Some(host), Some(held)) = (&held_at, held) {
                self.promise(draft, host, held.spec.policy.bounds, false)
                    .await?;
            }
            if let Some(host) = &holds_at {
                self.promise(draft, host, bounds, true).await?;
            }
        }
        if was_at != after.life.host {
            if let Some(host) = &was_at {
                draft.remove(format!("host-instance/{host}/{}", after.id));
            }
            if let Some(host) = &after.life.host {
                draft.write(format!("host-instance/{host}/{}", after.id), &())?;
            }
        }
        let state_before = before.map(|instance| instance.life.state);
        if state_before != Some(after.life.state) {
            after.changed = now_text();
            let event = Event::Control {
                event: "state".into(),
                state: after.life.state,
                detail: after.life.reason.clone(),
            };
            self.record(draft, after, vec![event]).await?;
            if after.life.state == State::Terminated {
                self.release(draft, after).await?;
            }
        }
        draft.write(format!("instance/{}", after.id), after)?;
        Ok(())
    }

    async fn promise(
        &self,
        draft: &mut Draft<'_>,
        host: &str,
        bounds: PolicyBounds,
        is_more: bool,
    ) -> Answer<()> {
        let key = format!("promised/{host}");
        let Promised {
            cpus,
            memory,
            instances,
        } = draft.read(key.clone()).await?.unwrap_or_default();
        let (more_cpus, more_memory) = (bounds.cpus.min, bounds.memory.min);
        let promised = if is_more {
            Promised {
                cpus: Cpus(cpus.0.saturating_add(more_cpus.0)),
                memory: Bytes(memory.0.saturating_add(more_memory.0)),
                instances: instances.saturating_add(1),
            }
        } else {
            Promised {
                cpus: Cpus(cpus.0.saturating_sub(more_cpus.0)),
                memory: Bytes(memory.0.saturating_sub(more_memory.0)),
                instances: instances.saturating_sub(1),
            }
        };
        draft.write(key, &promised)?;
        Ok(())
    }

    /// Counts a new instance against its account's quota.
    ///
    /// # Errors
    /// It does not fit.
    pub async fn count(&self, draft: &mut Draft<'_>, instance: &Instance) -> Answer<()> {
        let account = &instance.account;
        let quota = match draft
            .read::<crate::model::Account>(format!("account/{account}"))
            .await?
        {
            Some(account) => account.quota,
            None => return Err(Problem::not_found("account", account).into()),
        };
        let key = format!("used/{account}");
        let used: Used = draft.read(key.clone()).await?.unwrap_or_default();
        let bounds = instance.spec.policy.bounds;
        let more = Used {
            instances: used.instances.saturating_add(1),
            cpus: Cpus(used.cpus.0.saturating_add(bounds.cpus.max.0)),
            memory: Bytes(used.memory.0.saturating_add(bounds.memory.max.0)),
        };
        let over = if more.instances > quota.instances {
            Some(format!(
                "{} of {} instances are there",
                used.instances, quota.instances
            ))
        } else if more.cpus > quota.cpus {
            let wanted = bounds.cpus.max;
            Some(format!(
                "{} of {} CPUs are held, and {wanted} are wanted",
                used.cpus, quota.cpus
            ))
        } else if more.memory > quota.memory {
            let wanted = bounds.memory.max;
            let (used, quota) = (used.memory, quota.memory);
            Some(format!(
                "{used} of {quota} of memory are held, and {wanted} are wanted"
            ))
        } else {
            None
        };
        if let Some(numbers) = over {
            let detail = format!("The account's quota does not allow this: {numbers}");
            return Err(Problem::forbidden("quota_exceeded", detail).into());
        }
        draft.write(key, &more)?;
        Ok(())
    }

    /// A terminated instance counts no more, and its name is free.
    async fn release(&self, draft: &mut Draft<'_>, instance: &Instance) -> Answer<()> {
        let key = format!("used/{}", instance.account);
        let used: Used = draft.read(key.clone()).await?.unwrap_or_default();
        let bounds = instance.spec.policy.bounds;
        let less = Used {
            instances: used.instances.saturating_sub(1),
            cpus: Cpus(used.cpus.0.saturating_sub(bounds.cpus.max.0)),
            memory: Bytes(used.memory.0.saturating_sub(bounds.memory.max.0)),
        };
        draft.write(key, &less)?;
        draft.remove(format!("name/{}/{}", instance.account, instance.spec.name));
        Ok(())
    }

    /// Puts events in the record of an instance, and on their way to its account's webhooks.
    ///
    /// # Errors
    /// The registry does not work.
    pub async fn record(
        &self,
        draft: &mut Draft<'_>,
        instance: &Instance,
        events: Vec<Event>,
    ) -> Answer<()> {
        let next_key = format!("event-next/{}", instance.id);
        let mut number: u64 = draft.read(next_key.clone()).await?.unwrap_or(0);
        let hooks = self
            .registry
            .list_all(&format!("webhook/{}/", instance.account))
            .await?;
        let mut webhooks = Vec::new();
        for entry in &hooks.entries {
            webhooks.push(entry.read::<Webhook>()?);
        }
        for event in events {
            let kind = event.kind();
            let recorded = Recorded {
                number,
                instance: instance.id.clone(),
                recorded: now_text(),
                event,
            };
            draft.write(event_key(&instance.id, number), &recorded)?;
            if let Some(old) = number.checked_sub(EVENTS_KEPT) {
                draft.remove(event_key(&instance.id, old));
            }
            let wanted = |hook: &&Webhook| hook.events.is_empty() || hook.events.contains(&kind);
            for hook in webhooks.iter().filter(wanted) {
                let delivery = Delivery {
                    id: ids::fresh("d")?,
                    webhook: hook.id.clone(),
                    account: hook.account.clone(),
                    event: serde_json::to_value(&recorded).unwrap_or_default(),
                    attempts: 0,
                    not_before_ms: 0,
                    last_error: None,
                };
                draft.write(format!("outbox/{}/{}", hook.id, delivery.id), &delivery)?;
            }
            number += 1;
        }
        draft.write(next_key, &number)?;
        Ok(())
    }

    /// Lets something happen to an instance: `input` looks at it and says what. `None`: it has gone, or
    /// nothing has changed.
    ///
    /// # Errors
    /// The registry does not work, or a wish makes no sense in its state.
    pub async fn happen(
        &self,
        id: &str,
        input: impl Fn(&Instance) -> Option<Input>,
    ) -> Answer<Option<Instance>> {
        crate::draft::again(|| async {
            let mut draft = self.draft();
            let Some(before) = draft.read::<Instance>(format!("instance/{id}")).await? else {
                return Ok(None);
            };
            let Some(input) = input(&before) else {
                return Ok(None);
            };
            let mut after = before.clone();
            if !after.life.step(&input)? {
                return Ok(None);
            }
            self.change(&mut draft, Some(&before), &mut after).await?;
            draft.commit().await?;
            Ok::<_, Fault>(Some(after))
        })
        .await
    }
}

/// Key of an event. Numbers have leading zeroes, so that keys sort by them.
pub fn event_key(instance: &str, number: u64) -> String {
    format!("event/{instance}/{number:012}")
}
