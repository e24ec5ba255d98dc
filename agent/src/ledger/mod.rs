//! The host's capacity book: who holds how much, what is promised, and who has to wait.
//!
//! ```text
//! held = max(actual, reserved)          reserved >= lower bound, always
//! sum of held (and overhead) <= (capacity - reserve) x overcommit, on each axis
//!
//! growth   reserve ─► (act) ─► commit what was seen, or abort
//! shrink   begin_shrink ─► (act) ─► commit what was seen: only then others can have it
//! no room  refused with numbers; wait_for ─► donations (who shall shrink) ─► serve (when there is)
//! ```
//! Pure: no I/O, no clock. A transition that would break the rule above is refused, so the rule holds
//! whatever the order in which things happen. Only facts may break it (an agent that comes back to
//! less capacity than it had, [`Ledger::seen`]): the book takes them in, says so
//! ([`Account::overdrawn`]), and lets nothing grow until it is true again.
//!
//! Who is below its fair share (its lower bound, and by weight of what is above all lower bounds)
//! goes before whoever wants more than that: nobody grows beyond its share while another waits below
//! its own. A stuck instance holds nobody back.

mod donors;
mod launches;
mod limits;
#[cfg(test)]
mod model;
mod share;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;

use concertina_api::policy::{Axis, PolicyBounds};
use concertina_api::{Bytes, Cpus};
use serde::{Deserialize, Serialize};

pub use donors::{COMFORTABLE_PERCENT, Donation, DonationPlan, Need};
pub use limits::{Limits, Overcommit};
pub use waiting::{Served, Wait};

use crate::policy::Size;
use donors::{Candidate, Lack};
use limits::amount;
use share::{Claimant, fair_shares};
use waiting::WaitingList;

/// What an instance is guaranteed, may grow to, and how it counts when there is not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Lower bounds are guaranteed.
    pub bounds: PolicyBounds,
    /// Share of what is above all lower bounds; at least 1.
    pub weight: u32,
}

/// Axes on which a guest does not cooperate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckAxes {
    /// It keeps its vCPUs.
    pub cpus: bool,
    /// It keeps its memory.
    pub memory: bool,
}

impl StuckAxes {
    /// Whether it is stuck on this axis.
    pub fn is(self, axis: Axis) -> bool {
        match axis {
            Axis::Cpus => self.cpus,
            Axis::Memory => self.memory,
        }
    }

    /// It is, or is no longer.
    pub fn set(&mut self, axis: Axis, stuck: bool) {
        match axis {
            Axis::Cpus => self.cpus = stuck,
            Axis::Memory => self.memory = stuck,
        }
    }
}

/// What an instance holds: with these a ledger is built again after its agent died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Name of the instance.
    pub name: String,
    /// Its claim.
    pub claim: Claim,
    /// What it has.
    pub actual: Size,
    /// What is promised to it by what is under way.
    pub reserved: Size,
    /// Where its guest does not cooperate.
    pub stuck: StuckAxes,
}

/// Why the ledger refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// There is no room.
    #[error("{0}")]
    Short(Short),
    /// It would not fit even if everybody else were at its lower bound.
    #[error(
        "{instance} can have {most} of {axis} at most on this host, and {target} is wanted: the \
         rest is the lower bounds of others"
    )]
    Never {
        /// Name of the instance.
        instance: String,
        /// Which axis.
        axis: &'static str,
        /// What is wanted.
        target: String,
        /// What could be had.
        most: String,
    },
    /// Another instance waits for less than its fair share.
    #[error(
        "{instance} has its fair share of {axis} ({share}), and {waiting} waits for its own: growth \
         beyond the share has to wait, too"
    )]
    Unfair {
        /// Name of the instance.
        instance: String,
        /// Which axis.
        axis: &'static str,
        /// Its fair share.
        share: String,
        /// Who waits.
        waiting: String,
    },
    /// The name is in the book.
    #[error("Instance {0} is in the ledger already")]
    Known(String),
    /// The name is not in the book.
    #[error("Instance {0} is not in the ledger")]
    Unknown(String),
    /// Not within the instance's bounds, or in the wrong direction.
    #[error("{0}")]
    Wrong(String),
}

/// There is no room: the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short {
    /// Who wants it.
    pub instance: String,
    /// Which axis.
    pub axis: Axis,
    /// How much more it wants.
    pub wanted: u64,
    /// How the axis stands.
    pub account: Account,
}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |value| amount(self.axis, value);
        let account = &self.account;
        write!(
            f,
            "host_short_of_{}: {} wants {} more, and {} of {} is free: {} instances hold {}, of which \
             {} are guaranteed",
            self.axis.as_str(),
            self.instance,
            show(self.wanted),
            show(account.limit.saturating_sub(account.held)),
            show(account.limit),
            account.instances,
            show(account.held),
            show(account.guaranteed),
        )
    }
}

/// How an axis stands, in thousandths of a CPU or bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// The most that may be held.
    pub limit: u64,
    /// What is held, overhead included.
    pub held: u64,
    /// What instances have, without what is only reserved.
    pub actual: u64,
    /// Lower bounds and overhead of all instances.
    pub guaranteed: u64,
    /// What those who wait want beyond what they hold.
    pub awaited: u64,
    /// How many instances there are.
    pub instances: usize,
}

impl Account {
    /// What can be reserved.
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.held)
    }

    /// By how much facts have broken the rule; 0: they have not.
    pub fn overdrawn(&self) -> u64 {
        self.held.saturating_sub(self.limit)
    }
}

/// One axis of one instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Line {
    actual: u64,
    reserved: u64,
    /// Where a shrink under way goes.
    shrinking_to: Option<u64>,
}

impl Line {
    fn held(&self) -> u64 {
        self.actual.max(self.reserved)
    }
}

#[derive(Debug, Clone)]
struct Entry {
    claim: Claim,
    stuck: StuckAxes,
    cpus: Line,
    memory: Line,
}

impl Entry {
    fn line(&self, axis: Axis) -> &Line {
        match axis {
            Axis::Cpus => &self.cpus,
            Axis::Memory => &self.memory,
        }
    }

    fn line_mut(&mut self, axis: Axis) -> &mut Line {
        match axis {
            Axis::Cpus => &mut self.cpus,
            Axis::Memory => &mut self.memory,
        }
    }

    fn floor(&self, axis: Axis) -> u64 {
        self.claim.bounds.of(axis).min
    }

    /// Whether it was promised growth that has not ended yet.
    fn is_growing(&self, axis: Axis) -> bool {
        let line = self.line(axis);
        line.reserved > line.actual.max(self.floor(axis))
    }
}

/// The capacity book of one host.
#[derive(Debug, Clone)]
pub struct Ledger {
    limits: Limits,
    entries: BTreeMap<String, Entry>,
    waiting: WaitingList,
    /// Launches that wait for room.
    launches: BTreeMap<String, Claim>,
}

impl Ledger {
    /// Of a host without instances.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            waiting: WaitingList::default(),
            launches: BTreeMap::new(),
        }
    }

    /// Of a host whose instances hold this, as the journal says. Who waited has to ask again.
    pub fn rebuild(limits: Limits, holdings: impl IntoIterator<Item = Holding>) -> Self {
        let mut ledger = Self::new(limits);
        holdings
            .into_iter()
            .for_each(|holding| ledger.enter(holding));
        ledger
    }

    /// An instance is there and holds this. A fact: it may break the rule.
    pub fn enter(&mut self, holding: Holding) {
        let line = |axis: Axis| Line {
            actual: holding.actual.of(axis),
            reserved: holding
                .reserved
                .of(axis)
                .max(holding.claim.bounds.of(axis).min),
            shrinking_to: None,
        };
        let entry = Entry {
            claim: holding.claim,
            stuck: holding.stuck,
            cpus: line(Axis::Cpus),
            memory: line(Axis::Memory),
        };
        self.entries.insert(holding.name, entry);
    }

    /// What the host has to give away.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The host has another capacity. Less than is held is a fact: nothing grows until it fits.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Admits an instance: its lower bounds are its own from here on.
    ///
    /// # Errors
    /// There is no room for them; nothing is reserved.
    pub fn admit(&mut self, name: &str, claim: Claim) -> Result<(), LedgerError> {
        if self.entries.contains_key(name) {
            return Err(LedgerError::Known(name.to_owned()));
        }
        for axis in Axis::ALL {
            let wanted = claim.bounds.of(axis).min + self.limits.overhead(axis);
            self.check_room(name, axis, wanted)?;
        }
        let line = |axis: Axis| Line {
            actual: 0,
            reserved: claim.bounds.of(axis).min,
            shrinking_to: None,
        };
        let entry = Entry {
            claim,
            stuck: StuckAxes::default(),
            cpus: line(Axis::Cpus),
            memory: line(Axis::Memory),
        };
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Reserves growth to `target`. Growing gives up a shrink that is under way. Waiting ends with
    /// it, if the instance did.
    ///
    /// # Errors
    /// There is no room ([`LedgerError::Short`], [`LedgerError::Unfair`]): [`Self::wait_for`] may
    /// follow; or the target is wrong. Nothing is reserved.
    pub fn reserve(&mut self, name: &str, axis: Axis, target: u64) -> Result<(), LedgerError> {
        self.check_growth(name, axis, target)?;
        self.promise(name, axis, target)?;
        self.waiting.remove(name, axis);
        Ok(())
    }

    /// A shrink begins. What it gives is released when it was seen, not before.
    ///
    /// # Errors
    /// The target is below the lower bound, or not smaller than what is held.
    pub fn begin_shrink(&mut self, name: &str, axis: Axis, target: u64) -> Result<(), LedgerError> {
        let entry = self.entry(name)?;
        let (floor, held) = (entry.floor(axis), entry.line(axis).held());
        if target < floor || target >= held {
            return Err(LedgerError::Wrong(format!(
                "{name} cannot shrink to {} of {}: it holds {}, and {} is guaranteed",
                amount(axis, target),
                axis.as_str(),
                amount(axis, held),
                amount(axis, floor),
            )));
        }
        self.entry_mut(name)?.line_mut(axis).shrinking_to = Some(target);
        Ok(())
    }

    /// A change has ended, and this is what was seen: it is what the instance holds, at least its
    /// lower bound. Releases what a growth did not take, and what a shrink gave.
    ///
    /// # Errors
    /// The instance is not known.
    pub fn commit(&mut self, name: &str, axis: Axis, seen: u64) -> Result<(), LedgerError> {
        let entry = self.entry_mut(name)?;
        let floor = entry.floor(axis);
        *entry.line_mut(axis) = Line {
            actual: seen,
            reserved: seen.max(floor),
            shrinking_to: None,
        };
        Ok(())
    }

    /// A change was given up, and the instance has what it had.
    ///
    /// # Errors
    /// The instance is not known.
    pub fn abort(&mut self, name: &str, axis: Axis) -> Result<(), LedgerError> {
        let actual = self.entry(name)?.line(axis).actual;
        self.commit(name, axis, actual)
    }

    /// An instance has another size, and nobody asked for it. A fact: it may break the rule, and
    /// touches nothing that is promised.
    ///
    /// # Errors
    /// The instance is not known.
    pub fn seen(&mut self, name: &str, axis: Axis, actual: u64) -> Result<(), LedgerError> {
        self.entry_mut(name)?.line_mut(axis).actual = actual;
        Ok(())
    }

    /// An instance has other bounds or another weight. A higher lower bound is reserved.
    ///
    /// # Errors
    /// There is no room for the higher lower bound; the claim stays as it was.
    pub fn set_claim(&mut self, name: &str, claim: Claim) -> Result<(), LedgerError> {
        for axis in Axis::ALL {
            let held = self.entry(name)?.line(axis).held();
            let growth = claim.bounds.of(axis).min.saturating_sub(held);
            if growth > 0 {
                self.check_room(name, axis, growth)?;
            }
        }
        let entry = self.entry_mut(name)?;
        entry.claim = claim;
        for axis in Axis::ALL {
            let floor = claim.bounds.of(axis).min;
            let line = entry.line_mut(axis);
            line.reserved = line.reserved.max(floor);
        }
        Ok(())
    }

    /// A guest does not cooperate on this axis, or does again.
    ///
    /// # Errors
    /// The instance is not known.
    pub fn set_stuck(&mut self, name: &str, axis: Axis, stuck: bool) -> Result<(), LedgerError> {
        self.entry_mut(name)?.stuck.set(axis, stuck);
        Ok(())
    }

    /// An instance is gone, with all that it held. One that is not known is fine.
    pub fn forget(&mut self, name: &str) {
        self.entries.remove(name);
        self.waiting.forget(name);
    }

    /// Puts a growth that was refused on the waiting list; a newer wish of the same instance takes the
    /// place of the older one.
    ///
    /// # Errors
    /// It could never be met on this host, or the instance is not known: it does not wait.
    pub fn wait_for(
        &mut self,
        name: &str,
        axis: Axis,
        target: u64,
        now_ms: u64,
        why: &LedgerError,
    ) -> Result<(), LedgerError> {
        let own_floor = self.entry(name)?.floor(axis);
        let account = self.account(axis);
        let others = account.guaranteed.saturating_sub(own_floor);
        let most = account.limit.saturating_sub(others);
        if target > most {
            return Err(LedgerError::Never {
                instance: name.to_owned(),
                axis: axis.as_str(),
                target: amount(axis, target),
                most: amount(axis, most),
            });
        }
        self.waiting.put(Wait {
            instance: name.to_owned(),
            axis,
            target,
            since_ms: now_ms,
            why: why.to_string(),
        });
        Ok(())
    }

    /// An instance does not want to grow any longer.
    pub fn withdraw(&mut self, name: &str, axis: Axis) -> Option<Wait> {
        self.waiting.remove(name, axis)
    }

    /// Those who wait, in order.
    pub fn waiting(&self) -> &[Wait] {
        self.waiting.all()
    }

    /// Reserves for those who wait, in order, as far as there is room and fairness allows. Whoever
    /// cannot have all of it, gets what is within its fair share, and waits for the rest. Whoever is
    /// still growing has its turn when that has ended: a grant that comes to nothing is taken back
    /// whole, and must not take with it what the guest is about to use.
    pub fn serve(&mut self) -> Vec<Served> {
        let mut served = Vec::new();
        // Once somebody below its share was served, another may go beyond its own.
        while let Some(next) = self.next_served() {
            let (name, axis) = (next.wait.instance.as_str(), next.wait.axis);
            if self.promise(name, axis, next.granted).is_err() {
                break;
            }
            if next.granted >= next.wait.target {
                self.waiting.remove(name, axis);
            }
            served.push(next);
        }
        served
    }

    fn next_served(&self) -> Option<Served> {
        let shares = Axis::ALL.map(|axis| (axis, self.shares(axis)));
        self.waiting.all().iter().find_map(|wait| {
            let name = wait.instance.as_str();
            let entry = self.entries.get(name)?;
            if entry.is_growing(wait.axis) {
                return None;
            }
            let held = entry.line(wait.axis).held();
            let share = shares
                .iter()
                .find(|(axis, _)| *axis == wait.axis)
                .and_then(|(_, shares)| shares.get(name).copied())
                .unwrap_or(0);
            let can = |target: &u64| self.check_growth(name, wait.axis, *target).is_ok();
            let part = Some(wait.target.min(share)).filter(|part| *part > held);
            let granted = Some(wait.target).filter(can).or(part.filter(can))?;
            Some(Served {
                wait: wait.clone(),
                granted,
            })
        })
    }

    /// Who shall shrink, and how much, so that those who wait for this axis can be served, launches among
    /// them.
    pub fn donations(&self, axis: Axis, needs: &BTreeMap<String, Need>) -> DonationPlan {
        let shares = self.shares(axis);
        let share = |name: &str| shares.get(name).copied().unwrap_or(0);
        let mut lack = Lack {
            within: self.launching(axis),
            beyond: 0,
        };
        for wait in self.waiting.of(axis) {
            let held = self.held(&wait.instance, axis);
            let fair = wait.target.min(share(&wait.instance)).max(held);
            lack.within = lack.within.saturating_add(fair.saturating_sub(held));
            lack.beyond = lack.beyond.saturating_add(wait.target.saturating_sub(fair));
        }
        let coming = self.coming(axis);
        let mut there = self.account(axis).free().saturating_add(coming);
        for part in [&mut lack.within, &mut lack.beyond] {
            let met = (*part).min(there);
            *part -= met;
            there -= met;
        }
        let candidates: Vec<Candidate<'_>> = self
            .entries
            .iter()
            .filter(|(name, entry)| self.may_give(name, entry, axis))
            .map(|(name, entry)| Candidate {
                name,
                held: entry.line(axis).held(),
                floor: entry.floor(axis),
                share: share(name),
            })
            .collect();
        let plan = donors::plan(axis, lack, &candidates, needs);
        DonationPlan { coming, ..plan }
    }

    /// Whether an instance can be asked to shrink: it cooperates, nothing is under way, and it does
    /// not wait for more itself.
    fn may_give(&self, name: &str, entry: &Entry, axis: Axis) -> bool {
        let line = entry.line(axis);
        !entry.stuck.is(axis)
            && line.shrinking_to.is_none()
            && line.reserved <= line.actual
            && self.waiting.find(name, axis).is_none()
    }

    /// What shrinks under way will give. A stuck guest's promise counts for nothing.
    fn coming(&self, axis: Axis) -> u64 {
        let of = |entry: &Entry| {
            let line = entry.line(axis);
            let to = line.shrinking_to.filter(|_| !entry.stuck.is(axis));
            to.map_or(0, |to| line.held().saturating_sub(to))
        };
        self.entries.values().map(of).sum()
    }

    /// How an axis stands.
    pub fn account(&self, axis: Axis) -> Account {
        let overhead = self.limits.overhead(axis);
        let mut account = Account {
            limit: self.limits.of(axis),
            instances: self.entries.len(),
            ..Account::default()
        };
        for entry in self.entries.values() {
            let line = entry.line(axis);
            let add = |sum: &mut u64, value: u64| *sum = sum.saturating_add(value);
            add(&mut account.held, line.held().saturating_add(overhead));
            add(&mut account.actual, line.actual);
            add(
                &mut account.guaranteed,
                entry.floor(axis).saturating_add(overhead),
            );
        }
        for wait in self.waiting.of(axis) {
            let more = wait.target.saturating_sub(self.held(&wait.instance, axis));
            account.awaited = account.awaited.saturating_add(more);
        }
        account.awaited = account.awaited.saturating_add(self.launching(axis));
        account
    }

    /// What an instance holds of an axis; 0 for one that is not known.
    pub fn held(&self, name: &str, axis: Axis) -> u64 {
        self.entries
            .get(name)
            .map_or(0, |entry| entry.line(axis).held())
    }

    /// What is fair for an instance when there is not enough; 0 for one that is not known.
    pub fn fair_share(&self, name: &str, axis: Axis) -> u64 {
        self.shares(axis).get(name).copied().unwrap_or(0)
    }

    /// What the book says of each instance, by name.
    pub fn holdings(&self) -> impl Iterator<Item = Holding> + '_ {
        self.entries.iter().map(|(name, entry)| {
            let size = |value: fn(&Line) -> u64| Size {
                cpus: Cpus(u32::try_from(value(&entry.cpus)).unwrap_or(u32::MAX)),
                memory: Bytes(value(&entry.memory)),
            };
            Holding {
                name: name.clone(),
                claim: entry.claim,
                actual: size(|line| line.actual),
                reserved: size(|line| line.reserved),
                stuck: entry.stuck,
            }
        })
    }

    fn shares(&self, axis: Axis) -> BTreeMap<&str, u64> {
        let claimants: Vec<Claimant> = self
            .entries
            .values()
            .map(|entry| {
                let bounds = entry.claim.bounds.of(axis);
                Claimant {
                    floor: bounds.min,
                    ceiling: bounds.max,
                    weight: entry.claim.weight,
                }
            })
            .collect();
        let overhead = self.limits.overhead(axis);
        let overheads = overhead.saturating_mul(self.entries.len() as u64);
        let total = self.limits.of(axis).saturating_sub(overheads);
        let names = self.entries.keys().map(String::as_str);
        names.zip(fair_shares(total, &claimants)).collect()
    }

    /// Whether an instance may be promised `target`.
    fn check_growth(&self, name: &str, axis: Axis, target: u64) -> Result<(), LedgerError> {
        let entry = self.entry(name)?;
        let bounds = entry.claim.bounds.of(axis);
        if !bounds.contains(target) {
            return Err(LedgerError::Wrong(format!(
                "{name} cannot be promised {} of {}: {} to {} is allowed",
                amount(axis, target),
                axis.as_str(),
                amount(axis, bounds.min),
                amount(axis, bounds.max),
            )));
        }
        let growth = target.saturating_sub(entry.line(axis).held());
        if growth == 0 {
            return Ok(());
        }
        self.check_room(name, axis, growth)?;
        let share = || self.fair_share(name, axis);
        self.check_launches((name, axis), (target, growth), share)?;
        self.check_fair(name, axis, target)
    }

    fn check_room(&self, name: &str, axis: Axis, wanted: u64) -> Result<(), LedgerError> {
        let account = self.account(axis);
        if wanted <= account.free() {
            return Ok(());
        }
        Err(LedgerError::Short(Short {
            instance: name.to_owned(),
            axis,
            wanted,
            account,
        }))
    }

    fn check_fair(&self, name: &str, axis: Axis, target: u64) -> Result<(), LedgerError> {
        if self.waiting.of(axis).next().is_none() {
            return Ok(());
        }
        let shares = self.shares(axis);
        let share = |name: &str| shares.get(name).copied().unwrap_or(0);
        if target <= share(name) {
            return Ok(());
        }
        let has_right = |wait: &&Wait| {
            let stuck = self
                .entries
                .get(&wait.instance)
                .is_some_and(|entry| entry.stuck.is(axis));
            wait.instance != name
                && !stuck
                && self.held(&wait.instance, axis) < share(&wait.instance)
        };
        match self.waiting.of(axis).find(has_right) {
            Some(wait) => Err(LedgerError::Unfair {
                instance: name.to_owned(),
                axis: axis.as_str(),
                share: amount(axis, share(name)),
                waiting: wait.instance.clone(),
            }),
            None => Ok(()),
        }
    }

    fn promise(&mut self, name: &str, axis: Axis, target: u64) -> Result<(), LedgerError> {
        let line = self.entry_mut(name)?.line_mut(axis);
        line.reserved = line.reserved.max(target);
        line.shrinking_to = None;
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&Entry, LedgerError> {
        self.entries
            .get(name)
            .ok_or_else(|| LedgerError::Unknown(name.to_owned()))
    }

    fn entry_mut(&mut self, name: &str) -> Result<&mut Entry, LedgerError> {
        self.entries
            .get_mut(name)
            .ok_or_else(|| LedgerError::Unknown(name.to_owned()))
    }
}
