//! What is told of an instance: its state, what the vmm said of it, and how its rules stand.

use std::collections::BTreeMap;
use std::time::Duration;

use concertina_api::instance::{
    CpuStatus, InstanceSize, InstanceState, InstanceStatus, IoStatus, MemoryStatus, RateStatus,
};
use concertina_api::policy::{Axis, Device, Metric, Policy};
use concertina_api::vm::RunState;
use concertina_api::{Bytes, Cpus, Quota};

use super::core::Core;
use crate::policy::Sample;
use crate::state_dir::ProcessId;

/// How long a vmm may take for its part in a status; then it is what it said last.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);

/// What was measured last.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub samples: BTreeMap<Metric, Sample>,
    pub stale_ms: u64,
}

impl Observed {
    /// What is still known at `now_ms`, by name.
    fn fresh(&self, now_ms: u64) -> BTreeMap<String, f64> {
        let known = self.samples.iter().filter(|(_, sample)| {
            sample.value.is_finite() && now_ms.saturating_sub(sample.at_ms) <= self.stale_ms
        });
        known
            .map(|(metric, sample)| (metric.to_string(), sample.value))
            .collect()
    }
}

impl Core {
    /// The instance as it is. What the vmm does not answer in time is what it said last.
    pub(crate) fn status(&self) -> InstanceStatus {
        let vmm = self.vmm.with_deadline(STATUS_DEADLINE);
        if self.live().vmm.is_some()
            && let Ok(description) = vmm.describe()
        {
            let guest = vmm.balloon_statistics();
            let mut live = self.live();
            live.description = Some(description);
            live.guest = guest.ok();
        }
        let live = self.live();
        let seen = live.description.as_ref();
        let paused = seen.is_some_and(|vm| vm.state == RunState::Paused);
        let guest = |name: &str| {
            let statistics = live.guest.as_ref().filter(|s| s.age_ms.is_some())?;
            statistics.values.get(name).copied().map(Bytes)
        };
        let in_force = self.policy();
        let (bounds, target) = (in_force.policy.bounds, self.resizer.target());
        InstanceStatus {
            name: self.name.clone(),
            state: match live.state {
                InstanceState::Running if paused => InstanceState::Paused,
                state => state,
            },
            uptime_ms: self.uptime_ms(),
            agent_pid: ProcessId::of_self().pid,
            vmm_pid: live.vmm.map(|vmm| vmm.pid),
            cpus: CpuStatus {
                min: bounds.cpus.min,
                max: bounds.cpus.max,
                target: target.cpus,
                online: seen.map_or(0, |vm| vm.vcpus.online),
                quota: seen.and_then(|vm| vm.quota).unwrap_or(Quota::Max),
            },
            memory: MemoryStatus {
                min: bounds.memory.min,
                max: bounds.memory.max,
                target: target.memory,
                plugged: seen.map_or(Bytes(0), |vm| vm.memory.plugged),
                balloon: seen.map_or(Bytes(0), |vm| vm.balloon.actual),
                guest_total: guest("total_memory"),
                guest_available: guest("available_memory"),
                host_resident: seen.map_or(Bytes(0), |vm| vm.guest_resident),
            },
            io: IoStatus {
                disks: seen.map_or_else(Vec::new, |vm| vm.disks.clone()),
                nets: seen.map_or_else(Vec::new, |vm| vm.nets.clone()),
                disk_rate: self.rate_status(&in_force.policy, Device::Disk),
                net_rate: self.rate_status(&in_force.policy, Device::Net),
            },
            guest: self.channel.status(),
            last_resize: self.resizer.last_report(),
            policy_version: in_force.version,
            waiting: self.waiting(),
            restarts: live.restarts,
            recommended: live.recommended,
            thresholds: live.thresholds.clone(),
            scaling: live.scaling.clone(),
            observed: live.observed.fresh(self.uptime_ms()),
        }
    }

    /// Bounds and target of the limits of one kind of devices, where they have bounds.
    fn rate_status(&self, policy: &Policy, device: Device) -> Option<RateStatus> {
        let bounds = policy.io.of(device)?;
        Some(RateStatus {
            min: bounds.min(),
            max: bounds.max(),
            target: self.resizer.rates().of(device)?,
        })
    }

    /// Growth that its host has no room for yet.
    fn waiting(&self) -> Option<InstanceSize> {
        let awaited = |axis| self.owner.books.awaited(axis);
        let waiting = InstanceSize {
            cpus: awaited(Axis::Cpus).map(|milli| Cpus(u32::try_from(milli).unwrap_or(u32::MAX))),
            memory: awaited(Axis::Memory).map(Bytes),
            ..InstanceSize::default()
        };
        (waiting != InstanceSize::default()).then_some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stale_or_no_number_is_not_known() {
        let sample = |value, at_ms| Sample { value, at_ms };
        let observed = Observed {
            samples: BTreeMap::from([
                (Metric::Cpu, sample(75.0, 7000)),
                (Metric::Memory, sample(40.0, 6999)),
                (Metric::CpuSteal, sample(f64::NAN, 9000)),
            ]),
            stale_ms: 3000,
        };
        let known = observed.fresh(10_000);
        assert_eq!(known, BTreeMap::from([("cpu".to_owned(), 75.0)]));
    }
}
