//! What is on its way to the record: at most one batch of events and one of usage for each placement.

use std::collections::BTreeMap;

use concertina_api::link::{BATCH_MAX, FromAgent, Placement, Recorded};

use super::Host;

#[derive(Debug, Clone, Copy, Default)]
struct Way {
    events: u64,
    usage: u64,
    events_sent: bool,
    usage_sent: bool,
}

/// How far the control plane's record goes, as it has said on this connection.
#[derive(Debug, Default)]
pub struct Records {
    known: BTreeMap<Placement, Way>,
}

impl Records {
    /// The control plane says how far its record goes.
    pub fn taken(&mut self, recorded: &Recorded) {
        let way = self.known.entry(recorded.placement.clone()).or_default();
        // An answer to one of two batches says nothing of the other, unless it moved.
        way.events_sent &= recorded.events == way.events;
        way.usage_sent &= recorded.usage == way.usage;
        way.events = recorded.events;
        way.usage = recorded.usage;
    }

    /// Whether everything that a host has of a placement is in the record.
    pub fn is_complete(&self, host: &dyn Host, placement: &Placement) -> bool {
        let (events, usage) = host.lengths(placement);
        let way = self.known.get(placement).copied().unwrap_or_default();
        way.events >= events && way.usage >= usage
    }

    /// Forgets a placement of which nothing is left.
    pub fn forget(&mut self, placement: &Placement) {
        self.known.remove(placement);
    }

    /// The next batches of a placement.
    pub fn next(&mut self, host: &dyn Host, placement: &Placement) -> Vec<FromAgent> {
        let (events, usage) = host.lengths(placement);
        let way = self.known.entry(placement.clone()).or_default();
        let mut batches = Vec::new();
        if way.events < events && !way.events_sent {
            let events = host.events(placement, way.events, BATCH_MAX);
            if !events.is_empty() {
                way.events_sent = true;
                batches.push(FromAgent::Events {
                    placement: placement.clone(),
                    first: way.events,
                    events,
                });
            }
        }
        if way.usage < usage && !way.usage_sent {
            let lines = host.usage(placement, way.usage, BATCH_MAX);
            if !lines.is_empty() {
                way.usage_sent = true;
                batches.push(FromAgent::Usage {
                    placement: placement.clone(),
                    first: way.usage,
                    lines,
                });
            }
        }
        batches
    }
}
