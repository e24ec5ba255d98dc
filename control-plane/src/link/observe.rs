//! What a host says about its instances, put in their records.

use concertina_api::link::{HostInstance, Placement, Wanted};

use super::wanted::{is_satisfied, wanted};
use crate::control::Control;
use crate::ids::now_ms;
use crate::model::state::{Input, State};
use crate::model::{CapacityShortAction, Event, Instance, Observed};
use crate::problem::{Answer, Fault};

/// An observation that has not changed is written again after so long, in milliseconds.
const OBSERVED_AGE_MS: u64 = 10_000;

/// What came of an observation.
#[derive(Debug, PartialEq)]
pub enum Seen {
    /// The host does what it should.
    Fine,
    /// The host has to be told.
    Tell(Box<Wanted>),
    /// No record tells of it: it is left alone, and shown to the operator.
    Unknown,
}

/// Takes what a host says about one placement.
pub async fn observe(control: &Control, host: &str, seen: &HostInstance) -> Answer<Seen> {
    let id = &seen.placement.id;
    let (instance, _) = control
        .registry
        .read::<Instance>(format!("instance/{id}"))
        .await?;
    let Some(instance) = instance else {
        return Ok(Seen::Unknown);
    };
    let is_present = instance.life.host.as_deref() == Some(host)
        && instance.life.generation == seen.placement.generation;
    let instance = if is_present {
        write_observed(control, seen).await?;
        let phase = seen.phase.clone();
        let still = |instance: &Instance| instance.placement() == seen.placement;
        let input = |instance: &Instance| still(instance).then(|| Input::Seen(phase.clone()));
        let changed = control.happen(id, input).await?;
        capacity(control, seen).await?;
        changed.unwrap_or(instance)
    } else {
        instance
    };
    let wanted = wanted(&instance, host, seen.placement.clone());
    if is_satisfied(&wanted, seen) {
        return Ok(Seen::Fine);
    }
    Ok(Seen::Tell(Box::new(wanted)))
}

/// Writes what was seen, where it is something else than before, or that is long ago.
async fn write_observed(control: &Control, seen: &HostInstance) -> Answer<()> {
    let key = format!("observed/{}", seen.placement.id);
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let before = draft.read::<Observed>(key.clone()).await?;
        let now = now_ms();
        let is_new = before.as_ref().is_none_or(|before| {
            before.seen != *seen || now.saturating_sub(before.time_ms) > OBSERVED_AGE_MS
        });
        if is_new {
            let observed = Observed {
                time_ms: now,
                seen: seen.clone(),
            };
            draft.write(key.clone(), &observed)?;
            draft.commit().await?;
        }
        Ok::<_, Fault>(())
    })
    .await
}

/// Tells the customer that the host is short, or no longer; moves the instance where that is wished.
async fn capacity(control: &Control, seen: &HostInstance) -> Answer<()> {
    let id = &seen.placement.id;
    let short = seen.capacity_short.as_ref().map(|short| short.why.clone());
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let Some(before) = draft.read::<Instance>(format!("instance/{id}")).await? else {
            return Ok(());
        };
        let is_told = before.capacity_short.is_some() == short.is_some();
        if is_told || before.placement() != seen.placement || before.life.state != State::Running {
            return Ok(());
        }
        let mut after = before.clone();
        after.capacity_short = short.clone();
        let (event, detail) = match &short {
            Some(why) => ("capacity_short", why.clone()),
            None => ("capacity_enough", "The host has room again".to_owned()),
        };
        let event = Event::Control {
            event: event.into(),
            state: after.life.state,
            detail: Some(detail),
        };
        control.record(&mut draft, &after, vec![event]).await?;
        if let Some(why) = &short
            && after.spec.on_capacity_short == CapacityShortAction::Move
        {
            let reason = format!("It is moved to another host: {why}");
            after.life.step(&Input::Move(reason))?;
            after.avoid = before.life.host.clone();
            after.capacity_short = None;
        }
        control
            .change(&mut draft, Some(&before), &mut after)
            .await?;
        draft.commit().await?;
        Ok::<_, Fault>(())
    })
    .await
}

/// Nothing of a placement is left on the host.
pub async fn gone(control: &Control, host: &str, placement: &Placement) -> Answer<()> {
    let input = |instance: &Instance| {
        let is_present =
            instance.placement() == *placement && instance.life.host.as_deref() == Some(host);
        is_present.then_some(Input::Gone)
    };
    control.happen(&placement.id, input).await?;
    Ok(())
}
