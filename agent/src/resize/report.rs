//! How one axis of a resize ended, and how two of them make one report.

use std::collections::BTreeMap;
use std::time::Instant;

use concertina_api::disk::DiskRate;
use concertina_api::instance::InstanceSize;
use concertina_api::net::NetRateChange;
use concertina_api::vm::{Outcome, ResizeReport};
use concertina_api::{Bytes, Cpus};

/// Milliseconds from the request to each step, the first time that it was seen.
#[derive(Debug, Clone)]
pub struct Timeline {
    begin: Instant,
    steps: BTreeMap<String, f64>,
}

impl Timeline {
    /// Starts now.
    pub fn begin() -> Self {
        Self {
            begin: Instant::now(),
            steps: BTreeMap::new(),
        }
    }

    /// When it started.
    pub fn began(&self) -> Instant {
        self.begin
    }

    /// Notes a step.
    pub fn note(&mut self, step: &str) {
        let at_ms = self.elapsed_ms();
        self.steps.entry(step.to_owned()).or_insert(at_ms);
    }

    /// When the last of these steps was seen; `None`: none of them was.
    pub fn last_of(&self, steps: &[&str]) -> Option<f64> {
        let seen = steps
            .iter()
            .filter_map(|step| self.steps.get(*step).copied());
        seen.reduce(f64::max)
    }

    /// Takes over what the vmm noted for a request that was sent `sent_ms` after our start. Its
    /// `total` is not ours.
    pub fn adopt(&mut self, sent_ms: f64, steps: &BTreeMap<String, f64>) {
        for (step, ms) in steps
            .iter()
            .filter(|(step, ms)| *step != "total" && ms.is_finite())
        {
            self.steps
                .entry(step.clone())
                .or_insert(round(sent_ms + ms));
        }
    }

    /// Milliseconds since the start.
    pub fn elapsed_ms(&self) -> f64 {
        round(self.begin.elapsed().as_secs_f64() * 1000.0)
    }

    /// The steps of both; both have started at the same time.
    pub fn merge(&mut self, other: Self) {
        for (step, ms) in other.steps {
            self.steps.entry(step).or_insert(ms);
        }
    }

    /// The steps.
    pub fn into_steps(self) -> BTreeMap<String, f64> {
        self.steps
    }
}

/// To the microsecond: more digits mean nothing and make the JSON long.
fn round(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

/// How one axis ended.
#[derive(Debug, Clone)]
pub struct AxisReport<T> {
    /// How.
    pub outcome: Outcome,
    /// What is there.
    pub got: T,
    /// Why it is not `applied`, or what else must be said.
    pub reason: Option<String>,
    /// Status that the guest gave.
    pub ost: Option<u32>,
    /// Its steps.
    pub timeline: Timeline,
}

impl<T: PartialEq + Copy> AxisReport<T> {
    /// There was nothing to do.
    pub fn already(size: T, timeline: Timeline) -> Self {
        Self {
            outcome: Outcome::Applied,
            got: size,
            reason: None,
            ost: None,
            timeline,
        }
    }

    /// Nothing was done, and this is why.
    pub fn refused(size: T, reason: String, timeline: Timeline) -> Self {
        Self {
            outcome: Outcome::Refused,
            got: size,
            reason: Some(reason),
            ost: None,
            timeline,
        }
    }
}

/// Judges by what was reached: all of it, some of it, or nothing, and then by how it failed.
pub fn judge<T: PartialEq>(asked: &T, before: &T, got: &T, failure: Outcome) -> Outcome {
    if got == asked {
        Outcome::Applied
    } else if got != before {
        Outcome::Partial
    } else if failure == Outcome::Applied || failure == Outcome::Partial {
        Outcome::TimedOut
    } else {
        failure
    }
}

/// The axes that were asked.
#[derive(Debug, Default)]
pub struct Axes {
    /// CPUs.
    pub cpu: Option<AxisReport<Cpus>>,
    /// Memory.
    pub memory: Option<AxisReport<Bytes>>,
    /// Limit of disks; it got nothing when it was refused.
    pub disk: Option<AxisReport<Option<DiskRate>>>,
    /// Limit of network interfaces; likewise.
    pub net: Option<AxisReport<Option<NetRateChange>>>,
}

/// One report of the axes that were asked.
pub fn combine(
    asked: InstanceSize,
    axes: Axes,
    mut timeline: Timeline,
) -> ResizeReport<InstanceSize> {
    let Axes {
        cpu,
        memory,
        disk,
        net,
    } = axes;
    let got = InstanceSize {
        cpus: cpu.as_ref().map(|r| r.got),
        memory: memory.as_ref().map(|r| r.got),
        disk_rate: disk.as_ref().and_then(|r| r.got),
        net_rate: net.as_ref().and_then(|r| r.got),
    };
    let outcomes = [
        cpu.as_ref().map(|r| r.outcome),
        memory.as_ref().map(|r| r.outcome),
        disk.as_ref().map(|r| r.outcome),
        net.as_ref().map(|r| r.outcome),
    ];
    let reasons: Vec<String> = [
        cpu.as_ref().and_then(|r| r.reason.clone()),
        memory.as_ref().and_then(|r| r.reason.clone()),
        disk.as_ref().and_then(|r| r.reason.clone()),
        net.as_ref().and_then(|r| r.reason.clone()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let ost = cpu.as_ref().and_then(|r| r.ost);
    if let Some(report) = cpu {
        timeline.merge(report.timeline);
    }
    if let Some(report) = memory {
        timeline.merge(report.timeline);
    }
    if let Some(report) = disk {
        timeline.merge(report.timeline);
    }
    if let Some(report) = net {
        timeline.merge(report.timeline);
    }
    timeline.note("total");
    ResizeReport {
        outcome: combine_outcomes(outcomes.into_iter().flatten()),
        asked,
        got,
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        ost,
        timeline_ms: timeline.into_steps(),
    }
}

/// All the same: that. Some applied, or in part: partial. None: the first says why.
fn combine_outcomes(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    let reached = |outcome| matches!(outcome, Outcome::Applied | Outcome::Partial);
    outcomes
        .reduce(|all, one| {
            if all == one {
                all
            } else if reached(all) || reached(one) {
                Outcome::Partial
            } else {
                all
            }
        })
        .unwrap_or(Outcome::Applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_follows_from_what_was_reached() {
        assert_eq!(judge(&2, &1, &2, Outcome::TimedOut), Outcome::Applied);
        assert_eq!(judge(&3, &1, &2, Outcome::Refused), Outcome::Partial);
        assert_eq!(judge(&3, &1, &1, Outcome::Refused), Outcome::Refused);
        assert_eq!(judge(&3, &1, &1, Outcome::Partial), Outcome::TimedOut);
    }

    #[test]
    fn one_axis_applied_and_one_not_is_partial() {
        use Outcome::*;
        let combine = |outcomes: &[Outcome]| combine_outcomes(outcomes.iter().copied());
        assert_eq!(combine(&[Applied, Refused]), Partial);
        assert_eq!(combine(&[Refused, TimedOut, Applied]), Partial);
        assert_eq!(combine(&[Applied, Applied]), Applied);
        assert_eq!(combine(&[Refused, TimedOut]), Refused);
        assert_eq!(combine(&[TimedOut]), TimedOut);
        assert_eq!(combine(&[]), Applied);
    }

    #[test]
    fn the_vmms_steps_are_counted_from_our_start() {
        let mut timeline = Timeline::begin();
        let steps = [("quota".to_owned(), 1.0), ("total".to_owned(), 9.0)];
        timeline.adopt(5.0, &steps.into());
        let steps = timeline.into_steps();
        assert_eq!(steps.get("quota"), Some(&6.0));
        assert_eq!(steps.get("total"), None);
    }
}
