//! The memory axis: one controller for virtio-mem and balloon, so that they never work against each
//! other. Size = plugged − balloon.
//!
//! Growing: ceiling up, balloon down, blocks plugged, and then the guest has to count the memory as
//! its own. Shrinking: blocks unplugged, in probe steps when a rule asks, down to what the guest can
//! spare; what the guest does not unplug in time is made up for by the balloon; ceiling down to what
//! was reached. Each request to the vmm is a short slice, since the vmm does one resize at a time and
//! a vCPU may be wanted meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use concertina_api::vm::{Outcome, VmDescription, VmResize};
use concertina_api::{Bounds, Bytes};

use super::cpu::millis;
use super::guest;
use super::report::{AxisReport, Timeline, judge};
use crate::cgroup::{CgroupError, InstanceGroup};
use crate::plan::memory::{
    GuestMemory, Held, Verdict, ceiling, grow_targets, judge_probe, make_up_targets, probe_steps,
    shrink_floor, unplug_targets,
};
use crate::sentence;
use crate::vmm::VmmClient;

/// Longest wait of one request to the vmm.
const SLICE: Duration = Duration::from_millis(250);
/// Without progress for this long, a guest is taken not to give more by itself.
const STALL: Duration = Duration::from_secs(2);
/// Share of the time that unplugging may take before the balloon makes up the rest.
const UNPLUG_SHARE: f64 = 0.7;
/// Pause between two looks at the guest's or the host's figures.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long the host's resident memory may take to follow what the devices have given back.
const RESIDENT_TIMEOUT: Duration = Duration::from_secs(2);
/// Share of hot-added memory that a guest has to count as its own; the rest is its page array.
const CONFIRMED_SHARE: f64 = 0.9;

/// How fast to shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as the guest gives memory back: a person has asked for it.
    AtOnce,
    /// In probe steps that stop when the guest comes under pressure.
    InSteps,
}

/// Why a request to the vmm ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Converged {
    Reached,
    /// Time over, or no progress.
    Short,
    /// Somebody else wants the axis more.
    GaveWay(Claim),
    /// The vmm says no, or says nothing.
    Failed(Outcome, String),
}

/// Who wants the axis more than the change that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nobody.
    None,
    /// A growth: a shrink gives way.
    Larger,
    /// A newer request of a person: any change gives way.
    Newer,
    /// Nobody, but the agent is ending: any change stops where it is.
    Closing,
}

/// State of the axis.
#[derive(Debug)]
pub struct MemoryAxis {
    vmm: VmmClient,
    group: InstanceGroup,
    bounds: Bounds<Bytes>,
    /// What a life of the vmm begins with, and what cannot be unplugged.
    boot: Bytes,
    held: Held,
}

/// What one change needs besides the axis.
struct Change<'a> {
    target: Bytes,
    deadline: Instant,
    claim: &'a dyn Fn() -> Claim,
    timeline: Timeline,
    reason: Option<String>,
    failure: Outcome,
}

impl Change<'_> {
    /// Adds to the reason; what was said first stays first.
    fn say(&mut self, sentence: String) {
        self.reason = Some(match self.reason.take() {
            // One trouble may meet several steps.
            Some(said) if said.contains(&sentence) => said,
            Some(said) => format!("{said}; {sentence}"),
            None => sentence,
        });
    }

    /// Says that it gave way, and to whom.
    fn give_way(&mut self, claim: Claim) {
        if self.failure == Outcome::TimedOut {
            self.failure = Outcome::Refused;
        }
        self.say(match claim {
            Claim::Newer => "Stopped for a newer request".into(),
            Claim::Closing => "Stopped: the agent is ending".into(),
            Claim::Larger | Claim::None => "Stopped for a larger wish".into(),
        });
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

impl MemoryAxis {
    /// At the size with which a VM starts.
    pub fn new(vmm: VmmClient, group: InstanceGroup, bounds: Bounds<Bytes>) -> Self {
        Self {
            vmm,
            group,
            bounds,
            boot: bounds.min,
            held: Held {
                plugged: bounds.min,
                balloon: Bytes(0),
            },
        }
    }

    /// Back to the size with which a VM starts, with its ceiling, for a new life.
    pub fn restart(&mut self) -> Result<(), CgroupError> {
        self.held = Held {
            plugged: self.boot,
            balloon: Bytes(0),
        };
        self.set_ceiling(self.size())
    }

    /// Other bounds, from the next change on.
    pub fn set_bounds(&mut self, bounds: Bounds<Bytes>) {
        self.bounds = bounds;
    }

    /// Size in force: what the devices say.
    pub fn size(&self) -> Bytes {
        self.held.size()
    }

    /// What the devices hold, as the vmm said last.
    pub fn held(&self) -> Held {
        self.held
    }

    /// The vmm has described its VM.
    pub fn was_seen(&mut self, seen: &VmDescription) {
        self.held = Held {
            plugged: seen.memory.plugged,
            balloon: seen.balloon.actual,
        };
    }

    /// Goes to another size; at the latest at the deadline, or when it shall give way, it stops with
    /// what was reached.
    pub fn go_to(
        &mut self,
        target: Bytes,
        pace: Pace,
        deadline: Instant,
        claim: &dyn Fn() -> Claim,
        timeline: Timeline,
    ) -> AxisReport<Bytes> {
        let seen = match self.vmm.describe() {
            Ok(seen) => seen,
            Err(error) => {
                let reason = format!("The vmm does not answer: {}", sentence(&error));
                let mut report = AxisReport::refused(self.size(), reason, timeline);
                report.outcome = Outcome::TimedOut;
                return report;
            }
        };
        self.was_seen(&seen);
        let before = self.size();
        let asked = Held {
            plugged: seen.memory.target,
            balloon: seen.balloon.target,
        };
        let settled = asked == self.held;
        if target == before && settled {
            let mut report = AxisReport::already(before, timeline);
            // It may have come here without its agent, which died over the change.
            if let Err(error) = self.set_ceiling(before) {
                report.reason = Some(sentence(&error));
            }
            return report;
        }
        let mut change = Change {
            target,
            deadline,
            claim,
            timeline,
            reason: None,
            failure: Outcome::TimedOut,
        };
        let got = if target >= before {
            self.grow(&seen, &mut change)
        } else {
            self.shrink(&seen, pace, &mut change)
        };
        let outcome = judge(&target, &before, &got, change.failure);
        AxisReport {
            outcome,
            got,
            reason: change.reason,
            ost: None,
            timeline: change.timeline,
        }
    }

    /// Grows to the target; gives what the guest counts as its own.
    fn grow(&mut self, seen: &VmDescription, change: &mut Change<'_>) -> Bytes {
        let before = self.size();
        if let Err(error) = self.set_ceiling(change.target) {
            change.failure = Outcome::Refused;
            change.say(sentence(&error));
            return before;
        }
        change.timeline.note("ceiling");
        let guest_before = self.guest();
        let targets = grow_targets(self.held, change.target);
        let wish = VmResize {
            memory: Some(targets.plugged),
            balloon: (targets.balloon != seen.balloon.target).then_some(targets.balloon),
            ..VmResize::default()
        };
        let deadline = change.deadline;
        let ended = self.converge(&wish, deadline, None, change);
        if let Converged::GaveWay(claim) = ended {
            change.give_way(claim);
        }
        self.stop_where_it_is(&ended);
        let confirmed = if seen.balloon.driver_ready && self.size() > before {
            self.confirm_growth(before, guest_before, change)
        } else {
            self.size()
        };
        self.lower_ceiling(change);
        confirmed
    }

    /// Waits until the guest counts what was added; gives the size as far as it does.
    fn confirm_growth(
        &self,
        before: Bytes,
        guest_before: Option<GuestMemory>,
        change: &mut Change<'_>,
    ) -> Bytes {
        let added = self.size().get().saturating_sub(before.get());
        let known_before = guest_before.map_or(0, |guest| guest.total.get());
        let enough = known_before.saturating_add((added as f64 * CONFIRMED_SHARE) as u64);
        loop {
            let total = self.guest().map_or(0, |guest| guest.total.get());
            if total >= enough {
                change.timeline.note("guest_total");
                return self.size();
            }
            if change.left().is_zero() || matches!((change.claim)(), Claim::Newer | Claim::Closing)
            {
                let block = 2 * Bytes::MIB;
                let counted = total.saturating_sub(known_before) / block * block;
                change.say(format!(
                    "The devices have added {}, but the guest counts {} of it: hot-added memory \
                     was not brought online",
                    Bytes(added),
                    Bytes(counted)
                ));
                return Bytes(before.get().saturating_add(counted));
            }
            thread::sleep(LOOK_AGAIN.min(change.left()));
        }
    }

    /// Shrinks towards the target as far as the guest can spare; gives what was reached.
    fn shrink(&mut self, seen: &VmDescription, pace: Pace, change: &mut Change<'_>) -> Bytes {
        let Some(goal) = self.shrink_goal(seen, pace, change) else {
            return self.size();
        };
        let mut stopped = false;
        for step in self.steps(goal, pace) {
            let (size, guest) = (self.size(), self.guest());
            let ended = self.unplug_to(step, change);
            if let Converged::GaveWay(claim) = ended {
                change.give_way(claim);
                break;
            }
            match judge_probe(guest.as_ref(), self.guest().as_ref(), None) {
                // Without a balloon driver only a person gets here, and the guest decides.
                Verdict::Stop(_) if !seen.balloon.driver_ready => {}
                Verdict::GoOn => {}
                Verdict::Stop(why) => {
                    change.say(format!("Stopped at {}: {why}", self.size()));
                    stopped = true;
                }
                Verdict::GiveBack(why) => {
                    change.say(format!("Given back from {} to {size}: {why}", self.size()));
                    change.timeline.note("given_back");
                    self.give_back(size, change);
                    stopped = true;
                }
            }
            if stopped || ended != Converged::Reached {
                break;
            }
        }
        if self.size() > goal && !stopped && (change.claim)() == Claim::None {
            self.inflate_to(goal, seen, change);
        }
        self.lower_ceiling(change);
        self.confirm_resident(change);
        self.size()
    }
}

impl MemoryAxis {
    /// How low a shrink may go; `None` when it may not go anywhere, and then the change says why.
    fn shrink_goal(
        &self,
        seen: &VmDescription,
        pace: Pace,
        change: &mut Change<'_>,
    ) -> Option<Bytes> {
        let guest = self.guest();
        let floor = match shrink_floor(self.bounds.min, self.size(), guest.as_ref()) {
            Some(floor) => floor,
            // A guest without a balloon driver gives back what it can by itself, or nothing.
            None if pace == Pace::AtOnce && !seen.balloon.driver_ready => self.bounds.min,
            None => {
                change.failure = Outcome::Refused;
                change.say("The guest's memory use is unknown: nothing is taken blindly".into());
                return None;
            }
        };
        let goal = change.target.max(floor);
        if goal > change.target {
            change.failure = Outcome::Refused;
            change.say(format!(
                "The guest uses too much for {}: with what it needs to breathe, {floor} is the least",
                change.target
            ));
        }
        (goal < self.size()).then_some(goal)
    }

    /// Sizes to go through.
    fn steps(&self, goal: Bytes, pace: Pace) -> Vec<Bytes> {
        match pace {
            Pace::AtOnce => vec![goal],
            Pace::InSteps => probe_steps(self.size(), goal),
        }
    }

    /// Lets the guest unplug blocks until so much is left besides what is in the balloon.
    fn unplug_to(&mut self, size: Bytes, change: &mut Change<'_>) -> Converged {
        let targets = unplug_targets(self.held, size, self.boot);
        let wish = VmResize {
            memory: Some(targets.plugged),
            ..VmResize::default()
        };
        let deadline = Instant::now() + change.left().mul_f64(UNPLUG_SHARE);
        let ended = self.converge(&wish, deadline, Some(STALL), change);
        self.stop_where_it_is(&ended);
        ended
    }

    /// Makes up by the balloon for what was not unplugged.
    fn inflate_to(&mut self, goal: Bytes, seen: &VmDescription, change: &mut Change<'_>) {
        if !seen.balloon.driver_ready {
            change.say("The guest does not unplug more, and has no balloon driver".into());
            return;
        }
        let targets = make_up_targets(self.held, goal, self.boot);
        let wish = VmResize {
            balloon: Some(targets.balloon),
            ..VmResize::default()
        };
        let deadline = change.deadline;
        let ended = self.converge(&wish, deadline, Some(STALL), change);
        if ended != Converged::Reached {
            // What the guest did not give by now it shall keep, or the size would change unseen.
            let wish = VmResize {
                balloon: Some(self.held.balloon),
                ..VmResize::default()
            };
            let _ = self.ask(&wish, SLICE, &mut change.timeline);
            change.say(format!(
                "The guest has not given up more than down to {}",
                self.size()
            ));
        }
    }

    /// Takes a step back.
    fn give_back(&mut self, size: Bytes, change: &mut Change<'_>) {
        let targets = grow_targets(self.held, size);
        let wish = VmResize {
            memory: Some(targets.plugged),
            balloon: Some(targets.balloon),
            ..VmResize::default()
        };
        let deadline = Instant::now() + STALL;
        let ended = self.converge(&wish, deadline, None, change);
        self.stop_where_it_is(&ended);
    }

    /// Repeats a request in slices until it is reached, the time is over, nothing moves for `stall`,
    /// or somebody else wants the axis more.
    fn converge(
        &mut self,
        wish: &VmResize,
        deadline: Instant,
        stall: Option<Duration>,
        change: &mut Change<'_>,
    ) -> Converged {
        let mut moved_at = Instant::now();
        loop {
            let before = self.held;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ask(wish, SLICE.min(left), &mut change.timeline) {
                Err(why) => {
                    change.say(why.clone());
                    return Converged::Failed(Outcome::TimedOut, why);
                }
                Ok((Outcome::Applied, _)) => return Converged::Reached,
                Ok((Outcome::Refused, why)) => {
                    change.failure = Outcome::Refused;
                    let why = why.unwrap_or_else(|| "The vmm refuses the size".into());
                    change.say(why.clone());
                    return Converged::Failed(Outcome::Refused, why);
                }
                Ok((_, why)) if left.is_zero() => {
                    change.say(why.unwrap_or_else(|| "The guest did not follow in time".into()));
                    return Converged::Short;
                }
                Ok(_) => {}
            }
            if self.held != before {
                moved_at = Instant::now();
            } else if stall.is_some_and(|stall| moved_at.elapsed() >= stall) {
                return Converged::Short;
            }
            // What grows gives way to a newer request only.
            match (change.claim)() {
                Claim::None => {}
                Claim::Larger if stall.is_none() => {}
                claim => return Converged::GaveWay(claim),
            }
        }
    }

    /// Sends one request and keeps what was reached.
    fn ask(
        &mut self,
        wish: &VmResize,
        timeout: Duration,
        timeline: &mut Timeline,
    ) -> Result<(Outcome, Option<String>), String> {
        let sent_ms = timeline.elapsed_ms();
        let wish = VmResize {
            timeout_ms: Some(millis(timeout).max(1)),
            ..wish.clone()
        };
        let report = self.vmm.resize(&wish).map_err(|error| sentence(&error))?;
        timeline.adopt(sent_ms, &report.timeline_ms);
        self.held.plugged = report.got.memory.unwrap_or(self.held.plugged);
        self.held.balloon = report.got.balloon.unwrap_or(self.held.balloon);
        Ok((report.outcome, report.reason))
    }

    /// After a change that fell short: the driver shall not go on by itself, or the size would
    /// change behind the ceiling's and the customer's back.
    fn stop_where_it_is(&mut self, ended: &Converged) {
        if *ended != Converged::Reached {
            let wish = VmResize {
                memory: Some(self.held.plugged.max(self.boot)),
                balloon: Some(self.held.balloon),
                ..VmResize::default()
            };
            // The next change describes the VM afresh, whatever became of this request.
            let _ = self.ask(&wish, SLICE, &mut Timeline::begin());
        }
    }

    /// The guest's own figures, when they are fresh.
    fn guest(&self) -> Option<GuestMemory> {
        let statistics = self.vmm.balloon_statistics().ok()?;
        guest::read(&(&statistics).into(), self.held)
    }

    /// Waits until the host's resident memory is no more than what the guest holds.
    fn confirm_resident(&self, change: &mut Change<'_>) {
        let until = Instant::now() + RESIDENT_TIMEOUT;
        let size = self.size();
        loop {
            let resident = self.vmm.describe().map(|seen| seen.guest_resident);
            match resident {
                Ok(resident) if resident <= size => {
                    change.timeline.note("resident_fell");
                    return;
                }
                Ok(resident) if Instant::now() >= until => {
                    change.say(format!(
                        "The guest holds {size}, but {resident} of it are resident on the host"
                    ));
                    return;
                }
                Err(_) => return,
                Ok(_) => thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Lowers the ceiling to what was reached.
    fn lower_ceiling(&self, change: &mut Change<'_>) {
        if let Err(error) = self.set_ceiling(self.size()) {
            change.say(sentence(&error));
        }
    }

    fn set_ceiling(&self, size: Bytes) -> Result<(), CgroupError> {
        let limits = ceiling(size);
        self.group.set_memory_limits(limits.high, limits.max)
    }
}
