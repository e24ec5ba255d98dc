//! The simulated instance: it has a size, changes it in measured times by the steps that the live
//! planner takes, and shows what could be measured from outside.
//!
//! CPUs go up and down the ladder of [`crate::plan::cpu`]: the quota first, vCPUs one after the
//! other, and vCPUs that are not needed any more stay for the shrink window. Memory grows in one
//! request; a careful shrink goes down to the floor of [`crate::plan::memory`] through probe steps
//! and is judged after each of them.

use std::collections::VecDeque;

use concertina_api::policy::step::MEMORY_STEP;
use concertina_api::policy::{Axis, Direction, PolicyBounds};
use concertina_api::{Bytes, Cpus};

use super::actuation::Actuation;
use super::demand::Wanted;
use super::scaler::{Ended, Seen};
use crate::plan::cpu::{Patience, Rung, When, rung, size_of, steps};
use crate::plan::memory::{GuestMemory, Verdict, fit, judge_probe, probe_steps, shrink_floor};
use crate::policy::Size;

/// One minute, over which the load average looks back.
const LOAD_WINDOW_MS: f64 = 60_000.0;

/// A change of the CPUs under way.
#[derive(Debug)]
struct CpuMove {
    before: Cpus,
    asked: Cpus,
    /// What is there from when on.
    rungs: VecDeque<(u64, Rung)>,
}

/// A change of memory under way.
#[derive(Debug)]
struct MemoryMove {
    before: Bytes,
    asked: Bytes,
    direction: Direction,
    steps: VecDeque<Bytes>,
    /// When the first of `steps` is reached.
    due_ms: u64,
    /// The guest when that step began, if it is to be judged by it.
    guest: Option<GuestMemory>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Instance {
    bounds: PolicyBounds,
    times: Actuation,
    /// How long a smaller size holds before vCPUs are removed.
    hold_ms: u64,
    /// As the last change that ended left it.
    cpus: Cpus,
    rung: Rung,
    removal_due_ms: Option<u64>,
    memory: Bytes,
    cpu_move: Option<CpuMove>,
    memory_move: Option<MemoryMove>,
    meter: Meter,
}

/// What is measured between two looks.
#[derive(Debug, Default)]
struct Meter {
    /// CPU time used, in thousandths of a CPU times milliseconds, over the time in which it is known.
    used: u128,
    known_ms: u64,
    /// Load average in thousandths of a task; unknown before the first demand.
    load1: Option<f64>,
    wanted: Wanted,
    /// Times at which the guest waited for memory, and how many of them were told.
    stalls: u64,
    stalls_told: u64,
}

impl Instance {
    pub(super) fn new(bounds: PolicyBounds, first: Size, times: Actuation, hold_ms: u64) -> Self {
        let cpus = bounds.cpus.clamp(first.cpus);
        Self {
            bounds,
            times,
            hold_ms,
            cpus,
            rung: rung(cpus),
            removal_due_ms: None,
            memory: bounds.memory.clamp(first.memory),
            cpu_move: None,
            memory_move: None,
            meter: Meter::default(),
        }
    }

    /// The size that the last change reached: what a scaler knows.
    pub(super) fn size(&self) -> Size {
        Size {
            cpus: self.cpus,
            memory: self.memory,
        }
    }

    /// What the guest can use at this moment, and the host cannot use otherwise.
    pub(super) fn in_force(&self) -> Size {
        Size {
            cpus: size_of(self.rung),
            memory: self.memory,
        }
    }

    /// When the next step of a change is reached.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let cpus = self.cpu_move.as_ref().and_then(|m| m.rungs.front());
        let memory = self.memory_move.as_ref().map(|m| m.due_ms);
        cpus.map(|(due, _)| *due).into_iter().chain(memory).min()
    }

    /// The load has run for a while.
    pub(super) fn pass(&mut self, wanted: Wanted, passed_ms: u64) {
        let had = self.in_force();
        let meter = &mut self.meter;
        meter.wanted = wanted;
        if let Some(cpus) = wanted.cpus {
            let used = cpus.min(had.of(Axis::Cpus));
            meter.used += u128::from(used) * u128::from(passed_ms);
            meter.known_ms += passed_ms;
            let decay = (-(passed_ms as f64) / LOAD_WINDOW_MS).exp();
            let load = meter.load1.unwrap_or(0.0);
            meter.load1 = Some(cpus as f64 + (load - cpus as f64) * decay);
        }
        if wanted
            .memory
            .is_some_and(|memory| memory > had.memory.get())
        {
            meter.stalls += 1;
        }
    }

    /// What was measured since the last call.
    pub(super) fn look(&mut self) -> Seen {
        let used = self.memory_used();
        let meter = &mut self.meter;
        let known = meter.wanted.cpus.is_some() && meter.known_ms > 0;
        let seen = Seen {
            cpus_used: known.then(|| meter.used as f64 / meter.known_ms as f64),
            load1: meter.load1.filter(|_| known).map(|load| load / 1000.0),
            memory_used: used,
            memory_short: meter.stalls > meter.stalls_told,
            cpus_busy: self.cpu_move.is_some(),
            memory_moves: self.memory_move.as_ref().map(|m| m.direction),
        };
        meter.stalls_told = meter.stalls;
        self.rebase();
        seen
    }

    fn rebase(&mut self) {
        (self.meter.used, self.meter.known_ms) = (0, 0);
    }

    fn memory_used(&self) -> Option<u64> {
        let wanted = self.meter.wanted.memory?;
        Some(wanted.min(self.memory.get()))
    }

    /// What the guest's balloon driver would say.
    fn guest(&self) -> Option<GuestMemory> {
        let used = self.memory_used()?;
        Some(GuestMemory {
            total: self.memory,
            available: Bytes(self.memory.get().saturating_sub(used)),
            alloc_stalls: self.meter.stalls,
            ..GuestMemory::default()
        })
    }

    /// Begins to change the CPUs. While they are changed already, nothing happens.
    pub(super) fn set_cpus(&mut self, size: u64, now_ms: u64) {
        let size = Cpus(u32::try_from(size).unwrap_or(u32::MAX));
        let asked = self.bounds.cpus.clamp(size);
        if self.cpu_move.is_some() || asked == self.cpus {
            return;
        }
        if self.removal_due_ms.take_if(|due| *due <= now_ms).is_some() {
            self.rung = rung(self.cpus);
        }
        let steps = steps(self.rung, asked, Patience::WhenHeld);
        let waits = steps.iter().any(|step| step.when == When::Held);
        self.removal_due_ms = waits.then(|| now_ms.saturating_add(self.hold_ms));
        let mut rungs = VecDeque::new();
        for step in steps.iter().filter(|step| step.when == When::Now) {
            let goal = Rung {
                vcpus: step.vcpus.unwrap_or(self.rung.vcpus),
                quota: step.quota.unwrap_or(self.rung.quota),
            };
            self.climb(goal, asked, now_ms, &mut rungs);
        }
        self.cpu_move = Some(CpuMove {
            before: self.cpus,
            asked,
            rungs,
        });
    }

    /// What is there when, on the way to another rung.
    fn climb(&self, goal: Rung, asked: Cpus, now_ms: u64, rungs: &mut VecDeque<(u64, Rung)>) {
        let quota_ms = if asked < self.cpus {
            self.times.cpu_down_ms
        } else {
            self.times.cpu_quota_ms
        };
        let mut due_ms = now_ms.saturating_add(quota_ms);
        let mut at = Rung {
            vcpus: self.rung.vcpus,
            quota: goal.quota,
        };
        rungs.push_back((due_ms, at));
        let mut online_ms = now_ms;
        while at.vcpus < goal.vcpus {
            at.vcpus += 1;
            online_ms = online_ms.saturating_add(self.times.cpu_up_ms);
            due_ms = due_ms.max(online_ms);
            rungs.push_back((due_ms, at));
        }
    }

    /// Begins to change memory; growth makes a shrink give way. Gives what ended by that.
    pub(super) fn set_memory(&mut self, size: u64, careful: bool, now_ms: u64) -> Vec<Ended> {
        let asked = fit(Bytes(size), &self.bounds.memory, Bytes(MEMORY_STEP)).size;
        let before = self.memory;
        let mut ended = Vec::new();
        match &self.memory_move {
            Some(way) if way.direction == Direction::Grow || asked <= before => return ended,
            Some(_) => ended.extend(self.end_memory()),
            None => {}
        }
        let nothing = Ended {
            axis: Axis::Memory,
            before: before.get(),
            asked: size,
            after: before.get(),
        };
        let (direction, steps) = if asked >= before {
            let steps = (asked > before).then_some(asked).into_iter().collect();
            (Direction::Grow, steps)
        } else if careful {
            (Direction::Shrink, self.careful_way(asked))
        } else {
            (Direction::Shrink, VecDeque::from([asked]))
        };
        if steps.is_empty() {
            ended.push(nothing);
            return ended;
        }
        let takes_ms = match direction {
            Direction::Grow => self.times.memory_up_ms,
            Direction::Shrink => self.times.memory_down_ms,
        };
        self.memory_move = Some(MemoryMove {
            before,
            asked: Bytes(size),
            direction,
            steps,
            due_ms: now_ms.saturating_add(takes_ms),
            guest: self.guest().filter(|_| careful),
        });
        ended
    }

    /// The probe steps of a shrink; none where the guest cannot spare anything, or is unknown.
    fn careful_way(&self, asked: Bytes) -> VecDeque<Bytes> {
        let min = self.bounds.memory.min;
        match shrink_floor(min, self.memory, self.guest().as_ref()) {
            Some(floor) => probe_steps(self.memory, asked.max(floor)).into(),
            None => VecDeque::new(),
        }
    }

    /// Takes the steps that are due; gives the changes that ended with them.
    pub(super) fn step(&mut self, now_ms: u64) -> Vec<Ended> {
        let ended = [self.step_cpus(now_ms), self.step_memory(now_ms)];
        let ended: Vec<Ended> = ended.into_iter().flatten().collect();
        if !ended.is_empty() {
            // No rate mixes two sizes.
            self.rebase();
        }
        ended
    }

    fn step_cpus(&mut self, now_ms: u64) -> Option<Ended> {
        let way = self.cpu_move.as_mut()?;
        while let Some((_, rung)) = way.rungs.front().filter(|(due, _)| *due <= now_ms) {
            self.rung = *rung;
            way.rungs.pop_front();
        }
        if !way.rungs.is_empty() {
            return None;
        }
        let way = self.cpu_move.take()?;
        self.cpus = size_of(self.rung);
        Some(Ended {
            axis: Axis::Cpus,
            before: way.before.milli().into(),
            asked: way.asked.milli().into(),
            after: self.cpus.milli().into(),
        })
    }

    fn step_memory(&mut self, now_ms: u64) -> Option<Ended> {
        let way = self.memory_move.as_mut().filter(|w| w.due_ms <= now_ms)?;
        let from = self.memory;
        self.memory = way.steps.pop_front().unwrap_or(from);
        let grown = self.memory > from;
        let (before, after) = (self.memory_move.as_ref()?.guest, self.guest());
        let way = self.memory_move.as_mut()?;
        let verdict = match before {
            Some(before) if !grown => judge_probe(Some(&before), after.as_ref(), None),
            _ => Verdict::GoOn,
        };
        match verdict {
            Verdict::GoOn => {
                way.due_ms = now_ms.saturating_add(self.times.memory_down_ms);
                way.guest = way.guest.and(after);
            }
            Verdict::Stop(_) => way.steps.clear(),
            Verdict::GiveBack(_) => {
                way.due_ms = now_ms.saturating_add(self.times.memory_up_ms);
                way.steps = VecDeque::from([from]);
            }
        }
        if way.steps.is_empty() {
            return self.end_memory();
        }
        None
    }

    fn end_memory(&mut self) -> Option<Ended> {
        let way = self.memory_move.take()?;
        Some(Ended {
            axis: Axis::Memory,
            before: way.before.get(),
            asked: way.asked.get(),
            after: self.memory.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = Bytes::MIB;

    fn instance(cpus: &str, memory: &str) -> Instance {
        let bounds = PolicyBounds {
            cpus: cpus.parse().unwrap(),
            memory: memory.parse().unwrap(),
        };
        let first = Size {
            cpus: bounds.cpus.min,
            memory: bounds.memory.max,
        };
        Instance::new(bounds, first, Actuation::default(), 60_000)
    }

    fn wanted(cpus: u64, memory_mib: u64) -> Wanted {
        Wanted {
            cpus: Some(cpus),
            memory: Some(memory_mib * M),
        }
    }

    /// Sizes in force at the ends of all steps of what is under way.
    fn steps_until_end(instance: &mut Instance, axis: Axis) -> (Vec<(u64, u64)>, Vec<Ended>) {
        let (mut sizes, mut ended) = (Vec::new(), Vec::new());
        while let Some(due) = instance.next_ms() {
            ended.extend(instance.step(due));
            sizes.push((due, instance.in_force().of(axis)));
        }
        (sizes, ended)
    }

    #[test]
    fn growth_of_cpus_is_a_quota_at_once_and_then_one_vcpu_after_the_other() {
        let mut instance = instance("0.5..4", "256M");
        instance.set_cpus(2500, 0);
        assert!(instance.look().cpus_busy);
        let (sizes, ended) = steps_until_end(&mut instance, Axis::Cpus);
        assert_eq!(sizes, [(17, 1000), (225, 2000), (450, 2500)]);
        assert_eq!((ended[0].before, ended[0].after), (500, 2500));
    }

    #[test]
    fn vcpus_stay_for_the_shrink_window_so_that_a_way_back_is_a_quota() {
        let mut instance = instance("1..4", "256M");
        instance.set_cpus(4000, 0);
        steps_until_end(&mut instance, Axis::Cpus);
        instance.set_cpus(1000, 10_000);
        let (sizes, _) = steps_until_end(&mut instance, Axis::Cpus);
        assert_eq!(sizes, [(10_017, 1000)]);
        instance.set_cpus(4000, 60_000);
        let (sizes, _) = steps_until_end(&mut instance, Axis::Cpus);
        assert_eq!(sizes, [(60_017, 4000)]);
        instance.set_cpus(1000, 70_000);
        steps_until_end(&mut instance, Axis::Cpus);
        instance.set_cpus(2000, 130_001);
        let (sizes, _) = steps_until_end(&mut instance, Axis::Cpus);
        assert_eq!(sizes, [(130_018, 1000), (130_226, 2000)]);
    }

    #[test]
    fn utilisation_ends_at_the_size_and_memory_at_nothing_available() {
        let mut instance = instance("1..4", "256M..1G");
        instance.pass(wanted(3000, 2048), 1000);
        let seen = instance.look();
        assert_eq!(seen.cpu_percent(&instance.size()), Some(100.0));
        assert_eq!(seen.memory_percent(&instance.size()), Some(100.0));
        assert!(seen.memory_short);
        // The load average counts who waits.
        assert!((seen.load1.unwrap() - 3.0 * (1.0 - (-1.0f64 / 60.0).exp())).abs() < 1e-9);
        instance.pass(Wanted::default(), 1000);
        let seen = instance.look();
        assert_eq!(
            (seen.cpus_used, seen.load1, seen.memory_used),
            (None, None, None)
        );
        assert!(!seen.memory_short);
    }

    #[test]
    fn a_careful_shrink_goes_through_probe_steps_to_the_floor() {
        let mut instance = instance("1..4", "256M..1G");
        instance.pass(wanted(0, 320), 1000);
        assert_eq!(instance.set_memory(0, true, 0), []);
        let (sizes, ended) = steps_until_end(&mut instance, Axis::Memory);
        // 320 used, 64 on top.
        let expected = [(681, 896), (1362, 640), (2043, 384)];
        assert_eq!(sizes, expected.map(|(ms, mib)| (ms, mib * M)));
        assert_eq!((ended[0].before, ended[0].after), (1024 * M, 384 * M));
        // Nothing more to take: over before it has begun.
        let ended = instance.set_memory(0, true, 5000);
        assert_eq!((ended[0].before, ended[0].after), (384 * M, 384 * M));
        assert_eq!(ended[0].direction(), Direction::Shrink);
    }

    #[test]
    fn a_step_that_hurts_is_given_back() {
        let mut instance = instance("1..4", "256M..1G");
        instance.pass(wanted(0, 320), 1000);
        instance.set_memory(0, true, 0);
        instance.step(681);
        instance.pass(wanted(0, 800), 500);
        let (sizes, ended) = steps_until_end(&mut instance, Axis::Memory);
        assert_eq!(sizes, [(1362, 640 * M), (1784, 896 * M)]);
        assert_eq!(ended[0].after, 896 * M);
    }

    #[test]
    fn growth_makes_a_shrink_give_way_and_nothing_else_does() {
        let mut instance = instance("1..4", "256M..1G");
        instance.pass(wanted(0, 320), 1000);
        instance.set_memory(0, true, 0);
        instance.step(681);
        assert_eq!(instance.set_memory(300 * M, true, 700), []);
        let ended = instance.set_memory(1024 * M, true, 800);
        assert_eq!((ended[0].before, ended[0].after), (1024 * M, 896 * M));
        let (sizes, _) = steps_until_end(&mut instance, Axis::Memory);
        assert_eq!(sizes, [(1222, 1024 * M)]);
    }

    #[test]
    fn nothing_is_taken_carefully_from_a_guest_that_is_unknown() {
        let mut instance = instance("1..4", "256M..1G");
        let ended = instance.set_memory(256 * M, true, 0);
        assert_eq!(ended[0].after, 1024 * M);
        assert_eq!(instance.set_memory(256 * M, false, 0), []);
        let (sizes, _) = steps_until_end(&mut instance, Axis::Memory);
        assert_eq!(sizes, [(681, 256 * M)]);
    }
}
