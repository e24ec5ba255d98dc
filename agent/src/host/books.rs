//! Ledger and journal of a host as one thing: what is promised is in the ledger and, before anything is
//! done for it, in the journal.
//!
//! ```text
//! growth   ledger.reserve ─► journal: intent (fsync) ─► … act … ─► ledger.commit ─► journal: outcome
//!             └ no room: waits        └ cannot be written: given back, refused
//! shrink   ledger.begin_shrink ─► journal: intent ─► … act … ─► ledger.commit ─► … ─► who waits
//! ```
//! The ledger's lock is never held while the disk is waited for. An outcome that cannot be written (the
//! disk is full) is kept and written before the next intent: nothing is begun on top of it.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concertina_api::instance::InstanceSize;
use concertina_api::policy::Axis;
use concertina_api::vm::Outcome;
use concertina_api::{Bytes, Cpus};

use crate::clock::Moment;
use crate::fault;
use crate::journal::{
    Action, Conclusion, Durability, HostBook, Intent, IntentId, JournalError, Record, SharedJournal,
};
use crate::ledger::{
    Account, Claim, DonationPlan, Holding, Ledger, LedgerError, Limits, Need, StuckAxes,
};
use crate::policy::Size;
use crate::resize::Order;
use crate::resize::books::{Done, Step};
use crate::resize::capacity::HostMemory;
use crate::sentence;

/// The books of one host.
#[derive(Debug)]
pub struct HostBooks {
    journal: SharedJournal,
    state: Mutex<State>,
    /// There may be room for somebody who waits.
    changed: Condvar,
    memory: HostMemory,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// What those wait for who are on the ledger's list.
    waits: BTreeMap<(String, Axis), Order>,
    needs: BTreeMap<String, Needs>,
    /// Records that could not be written yet, oldest first.
    unwritten: Vec<Record>,
    /// Something has changed since the steward looked last.
    news: bool,
    /// How often something has changed.
    changes: u64,
    closed: bool,
}

/// How soon a launch that waits looks again when nothing in the books has changed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why an instance was not admitted, as a sentence.
#[derive(Debug)]
enum NotAdmitted {
    /// There is no room at the moment.
    Short(String),
    /// For another reason, which does not pass.
    Other(String),
}

impl NotAdmitted {
    fn sentence(self) -> String {
        match self {
            Self::Short(text) | Self::Other(text) => text,
        }
    }
}

/// What one instance needs of each axis; `None`: unknown.
#[derive(Debug, Clone, Copy, Default)]
struct Needs {
    cpus: Option<Need>,
    memory: Option<Need>,
}

impl Needs {
    fn of(&self, axis: Axis) -> Option<Need> {
        match axis {
            Axis::Cpus => self.cpus,
            Axis::Memory => self.memory,
        }
    }

    fn set(&mut self, axis: Axis, need: Option<Need>) {
        match axis {
            Axis::Cpus => self.cpus = need,
            Axis::Memory => self.memory = need,
        }
    }
}

/// Somebody who waited, and shall have it.
#[derive(Debug)]
pub struct Grant {
    /// Name of the instance.
    pub instance: String,
    /// What it shall do.
    pub order: Order,
}

impl HostBooks {
    /// Of a journal that was opened, on a host with these limits.
    pub fn new(journal: SharedJournal, limits: Limits) -> Self {
        let holdings = journal.with(|journal| journal.book().holdings());
        Self {
            journal,
            state: Mutex::new(State {
                ledger: Ledger::rebuild(limits, holdings),
                waits: BTreeMap::new(),
                needs: BTreeMap::new(),
                unwritten: Vec::new(),
                news: false,
                changes: 0,
                closed: false,
            }),
            changed: Condvar::new(),
            memory: HostMemory::new(Path::new("/proc/meminfo")),
        }
    }

    /// The host has other limits.
    pub fn set_limits(&self, limits: Limits) {
        let mut state = self.state();
        state.ledger.set_limits(limits);
        self.tell(&mut state);
    }

    /// How an axis stands.
    pub fn account(&self, axis: Axis) -> Account {
        self.state().ledger.account(axis)
    }

    /// What the ledger says of each instance, and who waits.
    pub fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.state().ledger)
    }

    /// What the journal adds up to.
    pub fn book<T>(&self, look: impl FnOnce(&HostBook) -> T) -> T {
        self.journal.with(|journal| look(journal.book()))
    }

    /// Length of the journal in bytes.
    pub fn journal_bytes(&self) -> u64 {
        self.journal.with(|journal| journal.length())
    }

    /// Why nothing can be begun at the moment; `None`: the journal can be written.
    pub fn trouble(&self) -> Option<String> {
        self.write_the_unwritten().err().map(|error| {
            let why = sentence(&error);
            format!("The journal cannot be written, and nothing is begun until it can: {why}")
        })
    }

    /// Admits an instance: its lower bounds are its own, and the launch is written down.
    ///
    /// # Errors
    /// A sentence: there is no room for its lower bounds, or the journal cannot be written.
    pub fn admit(&self, name: &str, claim: Claim) -> Result<IntentId, String> {
        self.try_admit(name, claim).map_err(NotAdmitted::sentence)
    }

    /// The same; where there is no room, donors are asked, and it waits at most so long for what they
    /// give, or others leave.
    ///
    /// # Errors
    /// A sentence: there was no room in time, there can be none, the agent ends, or the journal cannot
    /// be written.
    pub fn admit_within(
        &self,
        name: &str,
        claim: Claim,
        time: Duration,
    ) -> Result<IntentId, String> {
        if time.is_zero() {
            return self.admit(name, claim);
        }
        let began = Instant::now();
        let mut changes = self.state().changes;
        let mut admitted = self.try_admit(name, claim);
        if matches!(admitted, Err(NotAdmitted::Short(_))) {
            let mut state = self.state();
            let waits = state.ledger.await_launch(name, claim);
            waits.map_err(|never| never.to_string())?;
            self.tell(&mut state);
        }
        while let Err(NotAdmitted::Short(why)) = &admitted {
            let left = time.saturating_sub(began.elapsed());
            if left.is_zero() {
                let waited = began.elapsed().as_secs_f64();
                let text = format!("{why}; it waited {waited:.1} s for room, and there was none");
                admitted = Err(NotAdmitted::Other(text));
                break;
            }
            // What the host has besides the ledger changes without a word.
            let wait = left.min(LOOK_AGAIN);
            let same = |state: &mut State| state.changes == changes && !state.closed;
            let waited = self.changed.wait_timeout_while(self.state(), wait, same);
            let state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.closed {
                admitted = Err(NotAdmitted::Other(
                    "The agent of this host is ending".into(),
                ));
                break;
            }
            changes = state.changes;
            drop(state);
            admitted = self.try_admit(name, claim);
        }
        let mut state = self.state();
        state.ledger.withdraw_launch(name);
        self.tell(&mut state);
        drop(state);
        admitted.map_err(NotAdmitted::sentence)
    }

    fn try_admit(&self, name: &str, claim: Claim) -> Result<IntentId, NotAdmitted> {
        let admitted = self.state().ledger.admit(name, claim);
        admitted.map_err(|error| match error {
            LedgerError::Short(short) => NotAdmitted::Short(short.to_string()),
            error => NotAdmitted::Other(error.to_string()),
        })?;
        let room = self.memory.has_room(claim.bounds.memory.min);
        let begun = room.map_err(NotAdmitted::Short).and_then(|()| {
            let begun = self.begin(name, Action::Launch { claim }, None);
            begun.map_err(NotAdmitted::Other)
        });
        if begun.is_err() {
            self.state().ledger.forget(name);
        }
        begun
    }

    /// Enters an instance that is there: a fact, whatever room there is.
    ///
    /// # Errors
    /// A sentence: it cannot be written down.
    pub fn enter(&self, name: &str, claim: Claim) -> Result<IntentId, String> {
        let floor = Size {
            cpus: claim.bounds.cpus.min,
            memory: claim.bounds.memory.min,
        };
        self.state().ledger.enter(Holding {
            name: name.to_owned(),
            claim,
            actual: floor,
            reserved: floor,
            stuck: StuckAxes::default(),
        });
        self.begin(name, Action::Launch { claim }, None)
    }

    /// Nothing of an axis is under way: the instance has this, and nothing more is reserved for it.
    pub fn settle(&self, name: &str, axis: Axis, size: Size) {
        let mut state = self.state();
        let _ = state.ledger.commit(name, axis, size.of(axis));
        self.tell(&mut state);
    }

    /// A launch has ended: with a guest that runs, or with nothing.
    pub fn launched(&self, name: &str, intent: IntentId, ended: Result<Size, &str>) {
        let (outcome, after, reason) = match ended {
            Ok(size) => {
                let mut state = self.state();
                for axis in Axis::ALL {
                    // Known since it was admitted.
                    let _ = state.ledger.commit(name, axis, size.of(axis));
                }
                (Outcome::Applied, whole(size), None)
            }
            Err(why) => {
                self.forget(name);
                let nothing = InstanceSize::default();
                (Outcome::RolledBack, nothing, Some(why.to_owned()))
            }
        };
        self.write(Record::Outcome(Conclusion {
            id: intent,
            outcome,
            after,
            reason,
            at: Moment::now(),
        }));
    }

    /// Writes down that an instance shall end, once.
    ///
    /// # Errors
    /// A sentence: it cannot be written down.
    pub fn stopping(&self, name: &str) -> Result<(), String> {
        let is_stopping = self.book(|book| {
            let mut open = book.open_of(name);
            open.any(|intent| intent.action == Action::Stop)
        });
        if is_stopping {
            return Ok(());
        }
        self.begin(name, Action::Stop, None).map(|_| ())
    }

    /// An instance has ended, and holds nothing any more.
    pub fn ended(&self, name: &str, reason: &str) {
        self.forget(name);
        // What is unwritten of it comes first, or its end would not fit.
        let _ = self.write_the_unwritten();
        let records = self.book(|book| book.records_of_end(name, reason, &Moment::now()));
        records.into_iter().for_each(|record| self.write(record));
    }

    /// An instance has another claim.
    ///
    /// # Errors
    /// A sentence: there is no room for its higher lower bound, or it cannot be written down.
    pub fn set_claim(&self, name: &str, claim: Claim) -> Result<(), String> {
        let before = self.book(|book| book.instances().get(name).cloned());
        let Some(mut book) = before else {
            return Err(format!("Instance {name} is not in the journal"));
        };
        let was = book.claim;
        let set = self.state().ledger.set_claim(name, claim);
        set.map_err(|error| error.to_string())?;
        book.claim = claim;
        let record = Record::Instance {
            instance: name.to_owned(),
            book: Box::new(book),
        };
        let written = self.append(record, Durability::Synced);
        if written.is_err() {
            // It was so a moment ago: there is room for it.
            let _ = self.state().ledger.set_claim(name, was);
        }
        written
    }

    /// A change of one axis: growth is reserved, and the intent written down.
    ///
    /// # Errors
    /// A sentence. Growth for which there is no room waits from here on, and the sentence says so.
    pub fn begin_change(&self, name: &str, step: &Step<'_>) -> Result<IntentId, String> {
        let (axis, order) = (step.axis, step.order);
        if let Some(intent) = order.resumes {
            // The ledger holds what it reserved since it was built from the journal.
            if step.target < step.before {
                let _ = self.state().ledger.begin_shrink(name, axis, step.target);
            }
            return Ok(intent);
        }
        if let Some(trouble) = self.trouble() {
            return Err(trouble);
        }
        if step.target > step.before {
            self.reserve(name, step)?;
        } else {
            let mut state = self.state();
            state.forget_wait(name, axis);
            // Refused where the book has less than there is: then it is a correction of the book.
            let _ = state.ledger.begin_shrink(name, axis, step.target);
        }
        fault::point("reserved");
        let action = Action::Resize {
            before: size_of(axis, step.before),
            target: size_of(axis, step.target),
            cause: order.cause.text(),
            policy_version: order.policy_version,
        };
        let begun = self.begin(name, action, order.key.clone());
        if begun.is_err() {
            let mut state = self.state();
            let _ = state.ledger.commit(name, axis, step.before);
            self.tell(&mut state);
        }
        fault::point("intent");
        begun
    }

    fn reserve(&self, name: &str, step: &Step<'_>) -> Result<(), String> {
        let axis = step.axis;
        if axis == Axis::Memory {
            self.memory.has_room(Bytes(step.target - step.before))?;
        }
        let mut state = self.state();
        if step.order.granted && state.ledger.held(name, axis) >= step.target {
            return Ok(());
        }
        let refused = match state.ledger.reserve(name, axis, step.target) {
            Ok(()) => {
                state.waits.remove(&(name.to_owned(), axis));
                return Ok(());
            }
            Err(refused) => refused,
        };
        if !matches!(refused, LedgerError::Short(_) | LedgerError::Unfair { .. }) {
            return Err(refused.to_string());
        }
        let now_ms = Moment::now().monotonic_ms;
        let ledger = &mut state.ledger;
        if let Err(never) = ledger.wait_for(name, axis, step.target, now_ms, &refused) {
            state.forget_wait(name, axis);
            return Err(never.to_string());
        }
        let mut order = Order::of_axis(
            axis,
            step.target,
            step.order.timeout,
            step.order.cause.clone(),
        )
        .by_policy(step.order.policy_version);
        order.samples.clone_from(&step.order.samples);
        state.waits.insert((name.to_owned(), axis), order);
        self.tell(&mut state);
        Err(format!(
            "{refused}; it waits, and is carried out when there is room"
        ))
    }

    /// A change of one axis has ended: this is what the instance has.
    pub fn end_change(&self, name: &str, intent: IntentId, done: &Done<'_>) {
        fault::point("acted");
        let axis = done.axis;
        let stuck = {
            let mut state = self.state();
            let _ = state.ledger.commit(name, axis, done.after);
            self.tell(&mut state);
            state.judge_stuck(name, done)
        };
        self.write(Record::Outcome(Conclusion {
            id: intent,
            outcome: done.outcome,
            after: size_of(axis, done.after),
            reason: done.reason.map(str::to_owned),
            at: Moment::now(),
        }));
        if let Some(stuck) = stuck {
            self.write(Record::Stuck {
                instance: name.to_owned(),
                axis,
                stuck,
            });
        }
        fault::point("outcome");
    }

    /// Gives an intent that is still open its end: it was not taken up again.
    pub fn close(&self, intent: IntentId, size: Size, reason: &str) {
        let open = self.book(|book| book.open().find(|open| open.id == intent).cloned());
        let Some(open) = open else {
            return;
        };
        let mut after = whole(size);
        for axis in Axis::ALL.into_iter().filter(|axis| !open.changes(*axis)) {
            match axis {
                Axis::Cpus => after.cpus = None,
                Axis::Memory => after.memory = None,
            }
        }
        {
            let mut state = self.state();
            for axis in Axis::ALL.into_iter().filter(|axis| open.changes(*axis)) {
                let _ = state.ledger.commit(&open.instance, axis, size.of(axis));
            }
            self.tell(&mut state);
        }
        self.write(Record::Outcome(Conclusion {
            id: intent,
            outcome: Outcome::RolledBack,
            after,
            reason: Some(reason.to_owned()),
            at: Moment::now(),
        }));
    }

    /// An instance has this size, and nobody asked for it. Axes that are being changed are left to
    /// that change.
    pub fn seen(&self, name: &str, size: Size) {
        let (known, changing) = self.book(|book| {
            let changing = Axis::ALL.map(|axis| {
                let of_axis = |intent: &Intent| {
                    matches!(intent.action, Action::Resize { .. }) && intent.changes(axis)
                };
                (axis, book.open_of(name).any(of_axis))
            });
            (book.instances().get(name).map(|book| book.size), changing)
        });
        let Some(known) = known else {
            return;
        };
        {
            let mut state = self.state();
            for (axis, is_changing) in changing {
                let ledger = &mut state.ledger;
                let _ = if is_changing {
                    ledger.seen(name, axis, size.of(axis))
                } else {
                    ledger.commit(name, axis, size.of(axis))
                };
            }
            self.tell(&mut state);
        }
        if known != size {
            self.write(Record::Seen {
                instance: name.to_owned(),
                size,
            });
        }
    }

    /// What an instance needs of an axis; `None`: unknown, and then it gives nothing.
    pub fn need(&self, name: &str, needs: [(Axis, Option<Need>); 2]) {
        let mut state = self.state();
        // Told at each look: only the first time there is something to be made.
        if !state.needs.contains_key(name) && needs.iter().any(|(_, need)| need.is_some()) {
            state.needs.insert(name.to_owned(), Needs::default());
        }
        if let Some(place) = state.needs.get_mut(name) {
            needs
                .into_iter()
                .for_each(|(axis, need)| place.set(axis, need));
        }
    }

    /// The rules of an instance do not want an axis to grow: what waits for them, waits no longer.
    pub fn content(&self, name: &str, axis: Axis) {
        let mut state = self.state();
        if state.ledger.waiting().is_empty() {
            return;
        }
        let by_rules = |order: &Order| !order.is_manual();
        if state
            .waits
            .get(&(name.to_owned(), axis))
            .is_some_and(by_rules)
        {
            state.forget_wait(name, axis);
        }
    }

    /// The size that an instance waits for.
    pub fn awaited(&self, name: &str, axis: Axis) -> Option<u64> {
        let state = self.state();
        let mut waiting = state.ledger.waiting().iter();
        let wait = waiting.find(|wait| wait.instance == name && wait.axis == axis)?;
        Some(wait.target)
    }

    /// Writes a record that promises nothing to anybody; one that cannot be written is kept.
    pub fn write(&self, record: Record) {
        if self.write_the_unwritten().is_err() {
            return self.state().keep(record);
        }
        match self.journal.append(record.clone(), Durability::Written) {
            // What contradicts the book would do so again.
            Ok(()) | Err(JournalError::Misfit(_) | JournalError::TooLarge(_)) => {}
            Err(error) => {
                eprintln!("concertina: {}", sentence(&error));
                self.state().keep(record);
            }
        }
    }

    /// Waits until somebody may be served, at most so long; `false`: the agent is ending.
    pub fn wait(&self, time: Duration) -> bool {
        let mut state = self.state();
        if !state.news && !state.closed {
            let waited = self.changed.wait_timeout(state, time);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.news = false;
        !state.closed
    }

    /// Ends [`Self::wait`].
    pub fn end(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Gives to those who wait, in order, as far as there is room. What is granted is reserved.
    pub fn serve(&self) -> Vec<Grant> {
        let mut state = self.state();
        let served = state.ledger.serve();
        let now_ms = Moment::now().monotonic_ms;
        let grant = |served: crate::ledger::Served| {
            let (name, axis) = (served.wait.instance, served.wait.axis);
            let key = (name.clone(), axis);
            let whole = served.granted >= served.wait.target;
            let order = match state.waits.get(&key) {
                Some(order) => order.clone(),
                None => {
                    let _ = state.ledger.abort(&name, axis);
                    return None;
                }
            };
            if whole {
                state.waits.remove(&key);
            }
            let waited_s = now_ms.saturating_sub(served.wait.since_ms) as f64 / 1000.0;
            let of_axis = Order::of_axis(axis, served.granted, order.timeout, order.cause.clone());
            Some(Grant {
                instance: name,
                order: Order {
                    note: Some(format!("waited {waited_s:.1} s for room on the host")),
                    samples: order.samples,
                    policy_version: order.policy_version,
                    granted: true,
                    ..of_axis
                },
            })
        };
        served.into_iter().filter_map(grant).collect()
    }

    /// A grant cannot be used: what was reserved for it is given back.
    pub fn give_back(&self, grant: &Grant) {
        let mut state = self.state();
        for (axis, wanted) in [
            (Axis::Cpus, grant.order.cpus.is_some()),
            (Axis::Memory, grant.order.memory.is_some()),
        ] {
            if wanted {
                let _ = state.ledger.abort(&grant.instance, axis);
            }
        }
        self.tell(&mut state);
    }

    /// Who shall shrink for those who wait, launches among them.
    pub fn donations(&self, axis: Axis) -> DonationPlan {
        let state = self.state();
        let wanted = state.ledger.launches().next().is_some()
            || state.ledger.waiting().iter().any(|wait| wait.axis == axis);
        if !wanted {
            return DonationPlan::default();
        }
        let needs = state.needs.iter();
        let needs = needs
            .filter_map(|(name, needs)| Some((name.clone(), needs.of(axis)?)))
            .collect();
        state.ledger.donations(axis, &needs)
    }

    fn begin(&self, name: &str, action: Action, key: Option<String>) -> Result<IntentId, String> {
        let intent = Intent {
            id: IntentId::NEXT,
            instance: name.to_owned(),
            action,
            key,
            at: Moment::now(),
        };
        self.write_the_unwritten()
            .and_then(|()| self.journal.begin(intent))
            .map_err(|error| {
                let why = sentence(&error);
                format!("Nothing is begun that cannot be written down: {why}")
            })
    }

    fn append(&self, record: Record, durability: Durability) -> Result<(), String> {
        self.write_the_unwritten()
            .and_then(|()| self.journal.append(record, durability))
            .map_err(|error| sentence(&error))
    }

    fn write_the_unwritten(&self) -> Result<(), JournalError> {
        loop {
            let Some(record) = self.state().unwritten.first().cloned() else {
                return Ok(());
            };
            match self.journal.append(record.clone(), Durability::Written) {
                Ok(()) | Err(JournalError::Misfit(_) | JournalError::TooLarge(_)) => {}
                Err(error) => return Err(error),
            }
            let mut state = self.state();
            // Another thread may have been faster; the same record fits only once.
            if state.unwritten.first() == Some(&record) {
                state.unwritten.remove(0);
            }
        }
    }

    fn forget(&self, name: &str) {
        let mut state = self.state();
        state.ledger.forget(name);
        state.waits.retain(|(waiting, _), _| waiting != name);
        state.needs.remove(name);
        self.tell(&mut state);
    }

    fn tell(&self, state: &mut State) {
        state.news = true;
        state.changes = state.changes.wrapping_add(1);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_wait(&mut self, name: &str, axis: Axis) {
        self.ledger.withdraw(name, axis);
        self.waits.remove(&(name.to_owned(), axis));
    }

    /// Keeps a record for later. Of what is remembered of a policy or a size only the last counts.
    fn keep(&mut self, record: Record) {
        let replaces = |old: &Record| match (old, &record) {
            (Record::Policy { instance: a, .. }, Record::Policy { instance: b, .. })
            | (Record::Usage { instance: a, .. }, Record::Usage { instance: b, .. })
            | (Record::Seen { instance: a, .. }, Record::Seen { instance: b, .. }) => a == b,
            _ => false,
        };
        self.unwritten.retain(|old| !replaces(old));
        self.unwritten.push(record);
    }

    /// A guest that gives nothing in all the time that it had does not cooperate; one that gives
    /// something does. Says what has changed.
    fn judge_stuck(&mut self, name: &str, done: &Done<'_>) -> Option<bool> {
        if done.target >= done.before {
            return None;
        }
        let stuck = match done.outcome {
            Outcome::TimedOut if done.after >= done.before => true,
            Outcome::Applied | Outcome::Partial => false,
            // It had a reason: it needs what it has, or its hooks say so.
            _ => return None,
        };
        let mut holdings = self.ledger.holdings();
        let was = holdings
            .find(|holding| holding.name == name)?
            .stuck
            .is(done.axis);
        drop(holdings);
        if was == stuck {
            return None;
        }
        let _ = self.ledger.set_stuck(name, done.axis, stuck);
        Some(stuck)
    }
}

/// One axis of a size.
fn size_of(axis: Axis, value: u64) -> InstanceSize {
    match axis {
        Axis::Cpus => InstanceSize {
            cpus: Some(Cpus(u32::try_from(value).unwrap_or(u32::MAX))),
            ..InstanceSize::default()
        },
        Axis::Memory => InstanceSize {
            memory: Some(Bytes(value)),
            ..InstanceSize::default()
        },
    }
}

/// Both axes.
fn whole(size: Size) -> InstanceSize {
    InstanceSize {
        cpus: Some(size.cpus),
        memory: Some(size.memory),
        ..InstanceSize::default()
    }
}
