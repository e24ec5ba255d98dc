//! Events and usage, put in the record exactly once: what is written and how far it goes are one
//! transaction, so that whatever is sent again is seen to be there.

use concertina_api::event::Event as HostEvent;
use concertina_api::link::{Placement, Recorded};
use serde::Deserialize;

use crate::control::Control;
use crate::ids::sha256;
use crate::model::{Cursor, Event, Instance, UsageTotal};
use crate::problem::{Answer, Fault};

/// Events of one transaction: each may be written once for itself and for each webhook, and push an old
/// one out.
const EVENTS_AT_ONCE: usize = 16;
/// What the first record of a chain names as the one before it.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Stands in a cursor's head for a chain that did not hold.
const BROKEN: &str = "broken";

fn cursor_key(placement: &Placement) -> String {
    format!("cursor/{}/{}", placement.id, placement.generation)
}

fn recorded(placement: &Placement, cursor: &Cursor) -> Recorded {
    Recorded {
        placement: placement.clone(),
        events: cursor.events,
        usage: cursor.usage,
    }
}

/// Whether a placement is, or was, this host's: nobody writes the record of others.
async fn is_of(control: &Control, host: &str, placement: &Placement) -> Answer<bool> {
    let key = format!("placed/{}/{}", placement.id, placement.generation);
    let (placed, _) = control.registry.read::<String>(key).await?;
    Ok(placed.as_deref() == Some(host))
}

/// How far the record goes for a placement.
pub async fn how_far(control: &Control, placement: &Placement) -> Answer<Recorded> {
    let (cursor, _) = control
        .registry
        .read::<Cursor>(cursor_key(placement))
        .await?;
    Ok(recorded(placement, &cursor.unwrap_or_default()))
}

/// Takes events; says how far the record goes then. `None`: it is not this host's.
pub async fn events(
    control: &Control,
    host: &str,
    placement: &Placement,
    first: u64,
    events: &[HostEvent],
) -> Answer<Option<Recorded>> {
    if !is_of(control, host, placement).await? {
        return Ok(None);
    }
    let numbered: Vec<(u64, &HostEvent)> = (first..).zip(events).collect();
    let mut far = how_far(control, placement).await?;
    for chunk in numbered.chunks(EVENTS_AT_ONCE) {
        far = crate::draft::again(|| async {
            let mut draft = control.draft();
            let mut cursor: Cursor = draft.read(cursor_key(placement)).await?.unwrap_or_default();
            let fresh: Vec<_> = chunk
                .iter()
                .filter(|(number, _)| *number >= cursor.events)
                .collect();
            let Some((number, _)) = fresh.first() else {
                return Ok(recorded(placement, &cursor));
            };
            let instance = draft
                .read::<Instance>(format!("instance/{}", placement.id))
                .await?;
            // A gap: the agent begins again from where the record is.
            let (true, Some(instance)) = (*number == cursor.events, instance) else {
                return Ok(recorded(placement, &cursor));
            };
            cursor.events += fresh.len() as u64;
            let event = |(number, event): &&(u64, &HostEvent)| Event::Host {
                generation: placement.generation,
                host_number: *number,
                event: (*event).clone(),
            };
            let taken = fresh.iter().map(event).collect();
            control.record(&mut draft, &instance, taken).await?;
            draft.write(cursor_key(placement), &cursor)?;
            draft.commit().await?;
            Ok::<_, Fault>(recorded(placement, &cursor))
        })
        .await?;
    }
    Ok(Some(far))
}

/// The part of a usage record that is added up and checked.
#[derive(Debug, Deserialize)]
struct Line {
    sequence: u64,
    previous: String,
    hash: String,
    from_ms: u64,
    to_ms: u64,
    vcpu_us: u64,
    promised_kib_ms: u64,
    resident_kib_ms: u64,
}

/// Reads a line that follows what the cursor names.
fn read_line(line: &str, cursor: &Cursor) -> Option<Line> {
    let (body, _) = line.rsplit_once(",\"hash\":\"")?;
    let parsed: Line = serde_json::from_str(line).ok()?;
    let head = if cursor.head.is_empty() {
        GENESIS
    } else {
        &cursor.head
    };
    let holds =
        parsed.sequence == cursor.usage && parsed.previous == head && parsed.hash == sha256(body);
    holds.then_some(parsed)
}

/// Takes records of usage; says how far the record goes then. `None`: it is not this host's. A chain that
/// does not hold is not counted from there on, and the customer's events say so; its host is told that
/// it was taken, so that it does not send it for ever.
pub async fn usage(
    control: &Control,
    host: &str,
    placement: &Placement,
    first: u64,
    lines: &[String],
) -> Answer<Option<Recorded>> {
    if !is_of(control, host, placement).await? {
        return Ok(None);
    }
    crate::draft::again(|| async {
        let mut draft = control.draft();
        let mut cursor: Cursor = draft.read(cursor_key(placement)).await?.unwrap_or_default();
        let all_of_it = Recorded {
            usage: first.saturating_add(lines.len() as u64),
            ..recorded(placement, &cursor)
        };
        if cursor.head == BROKEN {
            return Ok(Some(all_of_it));
        }
        let total_key = format!("usage-total/{}", placement.id);
        let mut total: UsageTotal = draft.read(total_key.clone()).await?.unwrap_or_default();
        let fresh = (first..)
            .zip(lines)
            .filter(|(number, _)| *number >= cursor.usage);
        let fresh: Vec<(u64, &String)> = fresh.collect();
        if fresh
            .first()
            .is_none_or(|(number, _)| *number != cursor.usage)
        {
            return Ok(Some(recorded(placement, &cursor)));
        }
        let mut is_broken = false;
        for (number, text) in fresh {
            let Some(line) = read_line(text, &cursor) else {
                is_broken = true;
                break;
            };
            let Placement { id, generation } = placement;
            draft.write(format!("usage/{id}/{generation:06}/{number:012}"), text)?;
            cursor.usage += 1;
            cursor.head = line.hash;
            total.span_ms += line.to_ms.saturating_sub(line.from_ms);
            total.vcpu_us = total.vcpu_us.saturating_add(line.vcpu_us);
            total.promised_kib_ms = total.promised_kib_ms.saturating_add(line.promised_kib_ms);
            total.resident_kib_ms = total.resident_kib_ms.saturating_add(line.resident_kib_ms);
            total.records += 1;
        }
        if is_broken {
            tell_broken(control, &mut draft, placement, cursor.usage).await?;
            cursor.head = BROKEN.into();
        }
        draft.write(cursor_key(placement), &cursor)?;
        draft.write(total_key, &total)?;
        draft.commit().await?;
        Ok::<_, Fault>(Some(if is_broken {
            all_of_it
        } else {
            recorded(placement, &cursor)
        }))
    })
    .await
}

async fn tell_broken(
    control: &Control,
    draft: &mut crate::draft::Draft<'_>,
    placement: &Placement,
    number: u64,
) -> Answer<()> {
    let instance = draft
        .read::<Instance>(format!("instance/{}", placement.id))
        .await?;
    let Some(instance) = instance else {
        return Ok(());
    };
    let event = Event::Control {
        event: "usage_broken".into(),
        state: instance.life.state,
        detail: Some(format!(
            "Record {number} of placement {} does not follow the one before it: it was changed, and \
             no further usage of this placement is counted",
            placement.generation
        )),
    };
    control.record(draft, &instance, vec![event]).await
}
