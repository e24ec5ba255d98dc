//! The CPU axis: goes up and down the ladder of [`crate::plan::cpu`], one request to the vmm a rung.
//!
//! What waits for the smaller size to hold is kept here and done by [`CpuAxis::settle`]. A way down
//! on which the guest keeps its vCPUs is taken back: the size is again what it was, and the report
//! says who refused.

use std::time::{Duration, Instant};

use concertina_api::vm::{Outcome, VmDescription, VmResize};
use concertina_api::{Cpus, Quota};

use super::report::{AxisReport, Timeline, judge};
use crate::plan::cpu::{LadderStep, Patience, Rung, When, quota, rung, size_of, steps};
use crate::sentence;
use crate::vmm::VmmClient;

/// State of the axis.
#[derive(Debug)]
pub struct CpuAxis {
    vmm: VmmClient,
    /// What is there, as the vmm said last.
    rung: Rung,
    /// When the vCPUs that the size does not need are to be removed.
    removal_due: Option<Instant>,
}

/// How a request that fell short ended.
#[derive(Debug)]
struct Failure {
    outcome: Outcome,
    reason: Option<String>,
    ost: Option<u32>,
    /// The vmm did not answer: what it has done, or is about to do, is not known.
    is_unheard: bool,
}

impl CpuAxis {
    /// At the size with which a VM starts.
    pub fn new(vmm: VmmClient, first: Cpus) -> Self {
        Self {
            vmm,
            rung: rung(first),
            removal_due: None,
        }
    }

    /// Back to the size with which a VM starts, for a new life.
    pub fn restart(&mut self, first: Cpus) {
        self.rung = rung(first);
        self.removal_due = None;
    }

    /// The vmm has described its VM.
    pub fn was_seen(&mut self, seen: &VmDescription) {
        self.rung = Rung {
            vcpus: seen.vcpus.online,
            quota: seen.quota.unwrap_or(self.rung.quota),
        };
        self.removal_due = None;
    }

    /// Size in force.
    pub fn size(&self) -> Cpus {
        size_of(self.rung)
    }

    /// vCPUs online as last seen.
    pub fn vcpus(&self) -> u32 {
        self.rung.vcpus
    }

    /// When vCPUs that the size does not need are to be removed.
    pub fn removal_due(&self) -> Option<Instant> {
        self.removal_due
    }

    /// Goes to another size. `hold`: how long a smaller size has to hold before vCPUs are removed;
    /// absent: they go at once.
    pub fn go_to(
        &mut self,
        target: Cpus,
        hold: Option<Duration>,
        timeout: Duration,
        mut timeline: Timeline,
    ) -> AxisReport<Cpus> {
        let before = self.size();
        let patience = if hold.is_some() {
            Patience::WhenHeld
        } else {
            Patience::AtOnce
        };
        let steps = steps(self.rung, target, patience);
        let waits = steps.iter().any(|step| step.when == When::Held);
        self.removal_due = hold.filter(|_| waits).map(|hold| Instant::now() + hold);
        let deadline = Instant::now() + timeout;
        for step in steps.iter().filter(|step| step.when == When::Now) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Err(failure) = self.take(step, left, &mut timeline) else {
                continue;
            };
            let quota = quota(before, self.rung.vcpus);
            // A vmm that answered has kept the quota where the guest kept its vCPUs.
            if target < before && (failure.is_unheard || quota != self.rung.quota) {
                self.take_back(quota, &mut timeline);
            }
            let got = self.size();
            let outcome = judge(&target, &before, &got, failure.outcome);
            return AxisReport {
                outcome,
                got,
                reason: failure.reason.filter(|_| outcome != Outcome::Applied),
                ost: failure.ost,
                timeline,
            };
        }
        let got = self.size();
        let outcome = judge(&target, &before, &got, Outcome::Partial);
        let reason = (outcome != Outcome::Applied).then(|| {
            let Rung { vcpus, quota } = self.rung;
            format!("The vmm answered, but has {vcpus} vCPUs online and a quota of {quota}")
        });
        AxisReport {
            outcome,
            got,
            reason,
            ost: None,
            timeline,
        }
    }

    /// Removes the vCPUs whose time has come; the size stays. `None`: nothing is due. What the guest
    /// keeps is asked for again after `hold`.
    pub fn settle(
        &mut self,
        now: Instant,
        hold: Duration,
        timeout: Duration,
        mut timeline: Timeline,
    ) -> Option<AxisReport<Cpus>> {
        self.removal_due.filter(|due| *due <= now)?;
        self.removal_due = None;
        let size = self.size();
        for step in steps(self.rung, size, Patience::AtOnce) {
            if let Err(failure) = self.take(&step, timeout, &mut timeline) {
                self.removal_due = Some(now + hold);
                let Failure {
                    outcome,
                    reason,
                    ost,
                    is_unheard: _,
                } = failure;
                return Some(AxisReport {
                    outcome,
                    got: self.size(),
                    reason,
                    ost,
                    timeline,
                });
            }
        }
        Some(AxisReport::already(self.size(), timeline))
    }

    /// Sets the quota of the old size again.
    fn take_back(&mut self, quota: Quota, timeline: &mut Timeline) {
        let step = LadderStep {
            vcpus: None,
            quota: Some(quota),
            when: When::Now,
        };
        // The quota is absolute: the next change sets it, should this one get lost.
        let _ = self.take(&step, Duration::from_secs(1), timeline);
    }

    /// Makes one request and keeps what the vmm says was reached.
    fn take(
        &mut self,
        step: &LadderStep,
        timeout: Duration,
        timeline: &mut Timeline,
    ) -> Result<(), Failure> {
        let wish = VmResize {
            vcpus: step.vcpus,
            quota: step.quota,
            timeout_ms: Some(millis(timeout).max(1)),
            ..VmResize::default()
        };
        let sent_ms = timeline.elapsed_ms();
        let report = self.vmm.resize(&wish).map_err(|error| Failure {
            outcome: Outcome::TimedOut,
            reason: Some(format!("The vmm does not answer: {}", sentence(&error))),
            ost: None,
            is_unheard: true,
        })?;
        timeline.adopt(sent_ms, &report.timeline_ms);
        self.rung.vcpus = report.got.vcpus.unwrap_or(self.rung.vcpus);
        self.rung.quota = report.got.quota.unwrap_or(self.rung.quota);
        match report.outcome {
            Outcome::Applied => Ok(()),
            outcome => Err(Failure {
                // A guest's "no" is a refusal, whatever else of the request was done.
                outcome: if report.ost.is_some() {
                    Outcome::Refused
                } else {
                    outcome
                },
                reason: report.reason,
                ost: report.ost,
                is_unheard: false,
            }),
        }
    }
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
