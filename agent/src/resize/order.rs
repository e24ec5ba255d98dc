//! What is asked of an instance's size: who wants what, while it is carried out, and when it has ended.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use concertina_api::disk::DiskRate;
use concertina_api::instance::InstanceSize;
use concertina_api::net::NetRateChange;
use concertina_api::policy::{Axis, Resource};
use concertina_api::{Bytes, Cpus};

use super::lock;
use crate::journal::IntentId;

/// Who wants another size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A person, or a program on a person's behalf.
    Manual,
    /// Rules of the policy, by their text.
    Rules(Vec<String>),
    /// The host, for want of room for others: why.
    Host(String),
}

impl Cause {
    /// The word in events and in the journal.
    pub fn text(&self) -> String {
        match self {
            Self::Manual => MANUAL.into(),
            Self::Rules(rules) => rules.join("; "),
            Self::Host(why) => format!("{HOST}{why}"),
        }
    }

    /// Reads such a word.
    pub fn from_text(text: &str) -> Self {
        match text.strip_prefix(HOST) {
            Some(why) => Self::Host(why.to_owned()),
            None if text == MANUAL => Self::Manual,
            None => Self::Rules(text.split("; ").map(str::to_owned).collect()),
        }
    }
}

/// How the word of what the host wants begins.
const HOST: &str = "host: ";

/// What a person's wish is called in events and in the journal.
const MANUAL: &str = "manual";

/// A wish for another size.
#[derive(Debug, Clone)]
pub struct Order {
    /// CPUs; absent: as they are.
    pub cpus: Option<Cpus>,
    /// Memory; absent: as it is.
    pub memory: Option<Bytes>,
    /// Limit of disks; absent: as it is.
    pub disk_rate: Option<DiskRate>,
    /// Limit of network interfaces; absent: as it is.
    pub net_rate: Option<NetRateChange>,
    /// One number of a limit that has bounds, in its smallest unit; absent: as it is.
    pub io: Option<(Resource, u64)>,
    /// Deadline of the whole.
    pub timeout: Duration,
    /// Who wants it.
    pub cause: Cause,
    /// What else the event shall say.
    pub note: Option<String>,
    /// Version of the policy that wants it; of a person's wish: the one in force.
    pub policy_version: u64,
    /// What the rules saw, by metric.
    pub samples: BTreeMap<String, f64>,
    /// When the rules looked; absent: it was not they who want it.
    pub sampled: Option<Instant>,
    /// The idempotency key of the request.
    pub key: Option<String>,
    /// The host has granted it to one that waited: it is reserved, and the rest of what was waited for is
    /// still waited for.
    pub granted: bool,
    /// The intent that it brings to its end, which an earlier agent has written down.
    pub resumes: Option<IntentId>,
}

impl Order {
    /// A wish of a person.
    pub fn manual(cpus: Option<Cpus>, memory: Option<Bytes>, timeout: Duration) -> Self {
        Self {
            cpus,
            memory,
            disk_rate: None,
            net_rate: None,
            io: None,
            timeout,
            cause: Cause::Manual,
            note: None,
            policy_version: 0,
            samples: BTreeMap::new(),
            sampled: None,
            key: None,
            granted: false,
            resumes: None,
        }
    }

    /// A wish for one axis, in thousandths of a CPU or bytes.
    pub fn of_axis(axis: Axis, target: u64, timeout: Duration, cause: Cause) -> Self {
        let (cpus, memory) = match axis {
            Axis::Cpus => (Some(Cpus(u32::try_from(target).unwrap_or(u32::MAX))), None),
            Axis::Memory => (None, Some(Bytes(target))),
        };
        Self {
            cause,
            ..Self::manual(cpus, memory, timeout)
        }
    }

    /// Wanted by this version of the policy.
    pub fn by_policy(mut self, version: u64) -> Self {
        self.policy_version = version;
        self
    }

    /// By a request with this idempotency key.
    pub fn with_key(mut self, key: Option<String>) -> Self {
        self.key = key;
        self
    }

    /// And this limit of disks.
    pub fn with_disk_rate(mut self, rate: Option<DiskRate>) -> Self {
        self.disk_rate = rate;
        self
    }

    /// And this limit of network interfaces.
    pub fn with_net_rate(mut self, rate: Option<NetRateChange>) -> Self {
        self.net_rate = rate;
        self
    }

    pub(super) fn is_about_io(&self) -> bool {
        self.disk_rate.is_some() || self.net_rate.is_some() || self.io.is_some()
    }

    /// A person wants it.
    pub fn is_manual(&self) -> bool {
        self.cause == Cause::Manual
    }
}

/// An order that is being carried out.
pub(super) struct Run<'a> {
    pub order: &'a Order,
    /// Its place among all orders of the instance.
    pub turn: u64,
    /// What the books gave: the intents, and the sizes that growth was promised.
    pub intents: Mutex<Vec<(Axis, IntentId, Option<u64>)>>,
}

impl Run<'_> {
    pub fn numbers(&self) -> Vec<u64> {
        let intents = lock(&self.intents);
        intents.iter().map(|(_, intent, _)| intent.0).collect()
    }

    pub fn reserved(&self) -> Option<InstanceSize> {
        let intents = lock(&self.intents);
        let of = |wanted: Axis| {
            let mut found = intents.iter().filter(|(axis, ..)| *axis == wanted);
            found.find_map(|(_, _, reserved)| *reserved)
        };
        let size = InstanceSize {
            cpus: of(Axis::Cpus).map(|milli| Cpus(u32::try_from(milli).unwrap_or(u32::MAX))),
            memory: of(Axis::Memory).map(Bytes),
            ..InstanceSize::default()
        };
        (size != InstanceSize::default()).then_some(size)
    }
}

/// A change that has ended, for whoever decides.
#[derive(Debug, Clone)]
pub struct Commit {
    /// What was changed.
    pub axis: Resource,
    /// Who wanted it.
    pub cause: Cause,
    /// Size before, in the smallest unit of the axis.
    pub before: u64,
    /// Size asked for.
    pub asked: u64,
    /// Size after.
    pub after: u64,
    /// The intent that it was, where there is a journal.
    pub intent: Option<IntentId>,
}
