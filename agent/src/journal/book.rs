//! What the records of a journal add up to: [`HostBook`], a fold over them.
//!
//! ```text
//!              Launch                 outcome: applied
//!  (unknown) ─────────► launching ───────────────────────► running ──┐ Resize, Stop: intents,
//!      ▲                    │ outcome: anything else          │  ▲   │ one a time and axis,
//!      └────────────────────┴─────────── Ended ◄──────────────┘  └───┘ each ends in one outcome
//! ```
//! A record that does not fit is refused before it is written: what is in a journal is consistent.

use std::collections::{BTreeMap, VecDeque};

use concertina_api::instance::InstanceSize;
use concertina_api::policy::Axis;
use concertina_api::vm::Outcome;
use serde::{Deserialize, Serialize};

use super::record::{Action, Conclusion, Intent, IntentId, Record, UsageMark};
use crate::clock::Moment;
use crate::ledger::{Claim, Holding, StuckAxes};
use crate::policy::{PolicyState, Size};

/// Outcomes of requests with a key that are remembered, for each instance.
const ANSWERS_KEPT: usize = 16;
/// Resizes that are kept until the policy's state is written down: it is after each.
const UNREMEMBERED_KEPT: usize = 16;

/// What is known of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceBook {
    /// What it is guaranteed, and what it may grow to.
    pub claim: Claim,
    /// When its launch began: the zero of its policy state's times.
    pub launched: Moment,
    /// Its guest runs; false while it is being launched.
    pub running: bool,
    /// Size as last seen.
    pub size: Size,
    /// Axes on which its guest does not cooperate.
    #[serde(default)]
    pub stuck: StuckAxes,
    /// What its decision remembers.
    #[serde(default)]
    pub policy: Option<PolicyMark>,
    /// How far its usage has come.
    #[serde(default)]
    pub usage: Option<UsageMark>,
    /// Resizes that have ended since the policy's state was written down, oldest first: what it does not
    /// know yet.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub unremembered: VecDeque<EndedResize>,
    /// How the last requests with a key ended, oldest first.
    #[serde(default)]
    pub answers: VecDeque<Answer>,
}

/// What a decision remembers, of which policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyMark {
    /// Version of the policy.
    pub version: u64,
    /// Its state.
    pub state: PolicyState,
}

/// A resize that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndedResize {
    /// Sizes before; the axes that were asked.
    pub before: InstanceSize,
    /// Sizes asked for.
    pub target: InstanceSize,
    /// Sizes after.
    pub after: InstanceSize,
    /// `manual`, or the rules that wanted it.
    pub cause: String,
    /// When.
    pub at: Moment,
}

/// How a request with a key ended: the same key gets the same answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The key.
    pub key: String,
    /// The intent that it became.
    pub intent: IntentId,
    /// How it ended.
    pub outcome: Outcome,
    /// What it reached.
    pub after: InstanceSize,
    /// Why it is not `applied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What the records say of the whole host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostBook {
    instances: BTreeMap<String, InstanceBook>,
    open: BTreeMap<IntentId, Intent>,
    next: IntentId,
}

impl Default for HostBook {
    fn default() -> Self {
        Self {
            instances: BTreeMap::new(),
            open: BTreeMap::new(),
            next: IntentId(1),
        }
    }
}

/// Why a record does not fit to those before it: a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Misfit(String);

/// Takes one record back. Records are taken back in the reverse order.
#[derive(Debug)]
pub(super) struct Undo {
    instance: Option<(String, Option<InstanceBook>)>,
    /// Open intents before, of those that the record touched.
    intents: Vec<(IntentId, Option<Intent>)>,
    next: IntentId,
}

/// The intents that have no outcome. The records have to be those of one journal, from its
/// beginning.
///
/// # Errors
/// The records contradict each other.
pub fn open_intents<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<Vec<Intent>, Misfit> {
    let mut book = HostBook::default();
    for record in records {
        book.apply(record)?;
    }
    Ok(book.open.into_values().collect())
}

impl HostBook {
    /// The instances, by name.
    pub fn instances(&self) -> &BTreeMap<String, InstanceBook> {
        &self.instances
    }

    /// The intents that have no outcome, oldest first.
    pub fn open(&self) -> impl Iterator<Item = &Intent> {
        self.open.values()
    }

    /// The open intents of one instance, oldest first.
    pub fn open_of<'a>(&'a self, instance: &'a str) -> impl Iterator<Item = &'a Intent> {
        self.open()
            .filter(move |intent| intent.instance == instance)
    }

    /// The number of the next intent.
    pub fn next_intent(&self) -> IntentId {
        self.next
    }

    /// How a request with this key ended, if it has and is remembered.
    pub fn answer(&self, instance: &str, key: &str) -> Option<&Answer> {
        let answers = &self.instances.get(instance)?.answers;
        answers.iter().rev().find(|answer| answer.key == key)
    }

    /// How a request with this key ended, one answer an intent that it became.
    pub fn answers<'a>(&'a self, instance: &str, key: &'a str) -> impl Iterator<Item = &'a Answer> {
        let book = self.instances.get(instance);
        let answers = book.map(|book| book.answers.iter()).into_iter().flatten();
        answers.filter(move |answer| answer.key == key)
    }

    /// What a ledger has to hold for each instance: its size, and what its open intents reserve.
    pub fn holdings(&self) -> Vec<Holding> {
        let holding = |(name, book): (&String, &InstanceBook)| {
            let reserved = self
                .open_of(name)
                .fold(book.size, |size, intent| intent.reserved(size));
            Holding {
                name: name.clone(),
                claim: book.claim,
                actual: book.size,
                reserved,
                stuck: book.stuck,
            }
        };
        self.instances.iter().map(holding).collect()
    }

    /// The fewest records that add up to this.
    pub fn to_records(&self) -> Vec<Record> {
        let (launching, running): (Vec<_>, Vec<_>) =
            self.instances.iter().partition(|(name, _)| {
                let is_launch = |intent: &Intent| matches!(intent.action, Action::Launch { .. });
                self.open_of(name).any(is_launch)
            });
        let instance = |(name, book): (&String, &InstanceBook)| Record::Instance {
            instance: name.clone(),
            book: Box::new(book.clone()),
        };
        // Intents come in their order; a launch before its instance, a change after it.
        let running = running.into_iter().map(instance);
        let open = self.open.values().cloned().map(Record::Intent);
        let launching = launching.into_iter().map(instance);
        let next = std::iter::once(Record::NextIntent { id: self.next });
        running.chain(open).chain(launching).chain(next).collect()
    }

    /// The records with which an instance ends that is gone, or that could not be launched: an
    /// outcome for each of its open intents, and its end. A stop has reached what it wanted, anything
    /// else has not. None when there is no such instance.
    pub fn records_of_end(&self, instance: &str, reason: &str, at: &Moment) -> Vec<Record> {
        let Some(book) = self.instances.get(instance) else {
            return Vec::new();
        };
        let conclude = |intent: &Intent| {
            let stop = intent.action == Action::Stop;
            Record::Outcome(Conclusion {
                id: intent.id,
                outcome: if stop {
                    Outcome::Applied
                } else {
                    Outcome::RolledBack
                },
                after: InstanceSize::default(),
                reason: (!stop).then(|| reason.to_owned()),
                at: at.clone(),
            })
        };
        let is_launch = |intent: &&Intent| matches!(intent.action, Action::Launch { .. });
        let (launch, others): (Vec<_>, Vec<_>) = self.open_of(instance).partition(is_launch);
        let mut records: Vec<Record> = others.into_iter().chain(launch).map(conclude).collect();
        if book.running {
            records.push(Record::Ended {
                instance: instance.to_owned(),
                reason: reason.to_owned(),
                at: at.clone(),
            });
        }
        records
    }

    /// Takes a record in.
    ///
    /// # Errors
    /// It contradicts those before it; nothing has changed.
    pub(super) fn apply(&mut self, record: &Record) -> Result<Undo, Misfit> {
        let name = self.instance_of(record)?;
        let mut undo = Undo {
            instance: name.map(|name| (name.clone(), self.instances.get(&name).cloned())),
            intents: Vec::new(),
            next: self.next,
        };
        match self.change(record, &mut undo) {
            Ok(()) => Ok(undo),
            Err(misfit) => {
                self.undo(undo);
                Err(misfit)
            }
        }
    }

    fn change(&mut self, record: &Record, undo: &mut Undo) -> Result<(), Misfit> {
        match record {
            Record::Intent(intent) => self.begin(intent, undo)?,
            Record::Outcome(end) => self.conclude(end, undo)?,
            Record::Ended { instance, .. } => self.end(instance)?,
            Record::Seen { instance, size } => self.known(instance)?.size = *size,
            Record::Stuck {
                instance,
                axis,
                stuck,
            } => {
                self.known(instance)?.stuck.set(*axis, *stuck);
            }
            Record::Policy {
                instance,
                version,
                state,
            } => {
                let book = self.known(instance)?;
                book.policy = Some(PolicyMark {
                    version: *version,
                    state: (**state).clone(),
                });
                book.unremembered.clear();
            }
            Record::Usage { instance, mark } => self.known(instance)?.usage = Some(mark.clone()),
            Record::Instance { instance, book } => {
                self.instances.insert(instance.clone(), (**book).clone());
            }
            Record::NextIntent { id } => self.next = self.next.max(*id),
        }
        Ok(())
    }

    /// Takes back the record that was applied last.
    pub(super) fn undo(&mut self, undo: Undo) {
        if let Some((name, before)) = undo.instance {
            put(&mut self.instances, name, before);
        }
        for (id, before) in undo.intents {
            put(&mut self.open, id, before);
        }
        self.next = undo.next;
    }

    /// The instance that a record is about.
    fn instance_of(&self, record: &Record) -> Result<Option<String>, Misfit> {
        Ok(match record {
            Record::Intent(intent) => Some(intent.instance.clone()),
            Record::Outcome(end) => Some(self.opened(end.id)?.instance.clone()),
            Record::Seen { instance, .. }
            | Record::Ended { instance, .. }
            | Record::Stuck { instance, .. }
            | Record::Policy { instance, .. }
            | Record::Usage { instance, .. }
            | Record::Instance { instance, .. } => Some(instance.clone()),
            Record::NextIntent { .. } => None,
        })
    }

    fn begin(&mut self, intent: &Intent, undo: &mut Undo) -> Result<(), Misfit> {
        if intent.id < self.next {
            return Err(Misfit(format!(
                "Intent {} was used before: the next one is {}",
                intent.id, self.next
            )));
        }
        match &intent.action {
            Action::Launch { claim } => {
                if self.instances.contains_key(&intent.instance) {
                    return Err(Misfit(format!(
                        "Instance {} cannot be launched: it is there",
                        intent.instance
                    )));
                }
                let book = InstanceBook::launching(*claim, intent.at.clone());
                self.instances.insert(intent.instance.clone(), book);
            }
            Action::Resize { before, target, .. } => {
                self.known(&intent.instance)?;
                self.check_resize(intent, before, target)?;
            }
            Action::Stop => {
                self.known(&intent.instance)?;
            }
        }
        undo.intents.push((intent.id, None));
        self.open.insert(intent.id, intent.clone());
        self.next = IntentId(intent.id.0.saturating_add(1));
        Ok(())
    }

    fn check_resize(
        &self,
        intent: &Intent,
        before: &InstanceSize,
        target: &InstanceSize,
    ) -> Result<(), Misfit> {
        let (name, id) = (&intent.instance, intent.id);
        let same = before.cpus.is_some() == target.cpus.is_some()
            && before.memory.is_some() == target.memory.is_some();
        if !same || (target.cpus.is_none() && target.memory.is_none()) {
            return Err(Misfit(format!(
                "Intent {id} for {name} has to name the same axes before and after, at least one"
            )));
        }
        let is_resize = |other: &Intent| matches!(other.action, Action::Resize { .. });
        let meets = |other: &&Intent| {
            is_resize(other)
                && Axis::ALL
                    .iter()
                    .any(|axis| intent.changes(*axis) && other.changes(*axis))
        };
        match self.open_of(name).find(meets) {
            Some(other) => Err(Misfit(format!(
                "Intent {id} for {name} changes an axis that intent {} is still changing",
                other.id
            ))),
            None => Ok(()),
        }
    }

    fn conclude(&mut self, end: &Conclusion, undo: &mut Undo) -> Result<(), Misfit> {
        let intent = self.opened(end.id)?.clone();
        let name = &intent.instance;
        let failed_launch = matches!(intent.action, Action::Launch { .. })
            && !matches!(end.outcome, Outcome::Applied | Outcome::Partial);
        undo.intents.push((end.id, self.open.remove(&end.id)));
        if failed_launch {
            return self.end(name);
        }
        let book = self.known(name)?;
        book.running = true;
        book.size.cpus = end.after.cpus.unwrap_or(book.size.cpus);
        book.size.memory = end.after.memory.unwrap_or(book.size.memory);
        if let Action::Resize {
            before,
            target,
            cause,
            ..
        } = &intent.action
        {
            book.unremembered.push_back(EndedResize {
                before: *before,
                target: *target,
                after: end.after,
                cause: cause.clone(),
                at: end.at.clone(),
            });
            if book.unremembered.len() > UNREMEMBERED_KEPT {
                book.unremembered.pop_front();
            }
        }
        if let Some(key) = &intent.key {
            book.answers.push_back(Answer {
                key: key.clone(),
                intent: end.id,
                outcome: end.outcome,
                after: end.after,
                reason: end.reason.clone(),
            });
            while book.answers.len() > ANSWERS_KEPT {
                book.answers.pop_front();
            }
        }
        Ok(())
    }

    /// Forgets an instance. What was asked of it has had its outcome by then.
    fn end(&mut self, name: &str) -> Result<(), Misfit> {
        self.known(name)?;
        if let Some(open) = self.open_of(name).next() {
            return Err(Misfit(format!(
                "Instance {name} cannot end while intent {} has no outcome",
                open.id
            )));
        }
        self.instances.remove(name);
        Ok(())
    }

    fn known(&mut self, name: &str) -> Result<&mut InstanceBook, Misfit> {
        self.instances
            .get_mut(name)
            .ok_or_else(|| Misfit(format!("Instance {name} is not in the journal")))
    }

    fn opened(&self, id: IntentId) -> Result<&Intent, Misfit> {
        self.open.get(&id).ok_or_else(|| {
            Misfit(format!(
                "Intent {id} is not open: it has ended, or never began"
            ))
        })
    }
}

impl InstanceBook {
    /// Before its guest runs. It holds its lower bounds from the first moment on.
    fn launching(claim: Claim, launched: Moment) -> Self {
        Self {
            claim,
            launched,
            running: false,
            size: Size {
                cpus: claim.bounds.cpus.min,
                memory: claim.bounds.memory.min,
            },
            stuck: StuckAxes::default(),
            policy: None,
            usage: None,
            unremembered: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
