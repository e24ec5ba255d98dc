//! What a host says about its instances, put in their records.

use concertina_api::link::{HostInstance, Placement, Wanted};

use super::wanted::{is_satisfied, wanted};
use crate::control::Control;
use crate::ids::now_ms;
use crate::model::state::{Input, State};
use crate::model::{CapacityShortAction, Event, Instance, Observed};
use crate::problem::{Answer, Fault};
use crate::registry::Transaction;

/// Placements of one transaction.
const AT_ONCE: usize = 100;

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

/// Takes what a host says about placements, in the order of the answers.
pub async fn observe(control: &Control, host: &str, all: &[HostInstance]) -> Answer<Vec<Seen>> {
    let mut answers = Vec::with_capacity(all.len());
    for chunk in all.chunks(AT_ONCE) {
        let key = |seen: &HostInstance| format!("instance/{}", seen.placement.id);
        let keys: Vec<String> = chunk.iter().map(key).collect();
        let mut records: Vec<Option<Instance>> = Vec::with_capacity(chunk.len());
        for entry in control.registry.get_many(&keys).await? {
            records.push(entry.map(|entry| entry.read()).transpose()?);
        }
        let is_present = |instance: &Instance, seen: &HostInstance| {
            instance.life.host.as_deref() == Some(host)
                && instance.life.generation == seen.placement.generation
        };
        let pairs = || chunk.iter().zip(&records);
        let present = pairs().filter(|(seen, record)| {
            record
                .as_ref()
                .is_some_and(|instance| is_present(instance, seen))
        });
        write_observed(control, present.map(|(seen, _)| seen)).await?;
        for (seen, record) in pairs() {
            answers.push(match record {
                Some(instance) if is_present(instance, seen) => {
                    let instance = take(control, instance, seen).await?;
                    judge(&instance, host, seen)
                }
                Some(instance) => judge(instance, host, seen),
                None => Seen::Unknown,
            });
        }
    }
    Ok(answers)
}

fn judge(instance: &Instance, host: &str, seen: &HostInstance) -> Seen {
    let wanted = wanted(instance, host, seen.placement.clone());
    if is_satisfied(&wanted, seen) {
        return Seen::Fine;
    }
    Seen::Tell(Box::new(wanted))
}

/// Lets what was seen of the present placement happen to its record; the record after it.
async fn take(control: &Control, before: &Instance, seen: &HostInstance) -> Answer<Instance> {
    let input = Input::Seen(seen.phase.clone());
    let mut life = before.life.clone();
    let mut instance = before.clone();
    // Mostly nothing has changed, and then nothing need be read again.
    if life.step(&input)? {
        let still = |instance: &Instance| instance.placement() == seen.placement;
        let input = |instance: &Instance| still(instance).then(|| input.clone());
        let changed = control.happen(&seen.placement.id, input).await?;
        instance = changed.unwrap_or(instance);
    }
    if instance.capacity_short.is_some() != seen.capacity_short.is_some() {
        capacity(control, seen).await?;
    }
    Ok(instance)
}

/// Writes what was seen. Nobody else writes it, so nothing is compared.
async fn write_observed(control: &Control, all: impl Iterator<Item = &HostInstance>) -> Answer<()> {
    let mut transaction = Transaction::new();
    for seen in all {
        let observed = Observed {
            time_ms: now_ms(),
            seen: seen.clone(),
        };
        transaction.put(format!("observed/{}", seen.placement.id), &observed)?;
    }
    if !transaction.changes.is_empty() {
        control.registry.commit(transaction).await?;
    }
    Ok(())
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
