//! What devices move, from the vmm's own counters: shares of the limits in force, and throughput.
//!
//! The guest cannot make these numbers up. A device without a limit has no share; where a limit has
//! changed since the look before, the share is unknown, since it would mix two of them.

use std::collections::BTreeMap;
use std::time::Instant;

use concertina_api::IoRate;
use concertina_api::disk::DiskStatus;
use concertina_api::net::{NetStatus, NetTraffic};
use concertina_api::policy::{Device, Metric, Resource};

use super::counters::Total;
use super::sampler::percent;
use crate::policy::Sample;

/// One way through a device: a disk, or one direction of a network interface.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    bytes: Total,
    ops: Total,
    rate: IoRate,
}

/// What a flow has counted, and its limit.
#[derive(Debug, Clone, Copy)]
struct Counted {
    bytes: u64,
    ops: u64,
    rate: IoRate,
}

/// What passed through a flow since the look before; `None`: unknown.
#[derive(Debug, Clone, Copy)]
struct Passed {
    bytes: Option<u64>,
    ops: Option<u64>,
    /// The limit in all that time; `None`: there was another one.
    rate: Option<IoRate>,
}

impl Flow {
    fn advance(&mut self, now: &Counted) -> Passed {
        let before = std::mem::replace(&mut self.rate, now.rate);
        Passed {
            bytes: self.bytes.advance(Some(now.bytes)),
            ops: self.ops.advance(Some(now.ops)),
            rate: (before == now.rate).then_some(now.rate),
        }
    }
}

impl Passed {
    fn of(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::DiskBytes | Resource::NetBytes => self.bytes,
            _ => self.ops,
        }
    }
}

impl Counted {
    fn of_disk(disk: &DiskStatus) -> Self {
        let ops = [disk.reads, disk.writes, disk.flushes, disk.discards];
        Self {
            bytes: disk.read_bytes.saturating_add(disk.written_bytes),
            ops: ops.into_iter().fold(0, u64::saturating_add),
            rate: disk.rate,
        }
    }

    fn of_net(net: &NetStatus) -> [Self; 2] {
        let direction = |traffic: &NetTraffic, rate| Self {
            bytes: traffic.bytes,
            ops: traffic.frames,
            rate,
        };
        [
            direction(&net.rx, net.rates.rx),
            direction(&net.tx, net.rates.tx),
        ]
    }
}

/// Looks at the devices of one kind, of one life of the vmm.
#[derive(Debug)]
pub struct IoSampler {
    device: Device,
    flows: Vec<Flow>,
    looked: Option<Instant>,
}

impl IoSampler {
    /// Before the first look.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            flows: Vec::new(),
            looked: None,
        }
    }

    /// Metrics since the look before, from the disks as they are at `now`, which is `now_ms` on the
    /// clock of samples. Nothing at the first look.
    pub fn look_at_disks(
        &mut self,
        disks: &[DiskStatus],
        now: Instant,
        now_ms: u64,
    ) -> BTreeMap<Metric, Sample> {
        let counted: Vec<Counted> = disks.iter().map(Counted::of_disk).collect();
        self.look(&counted, now, now_ms)
    }

    /// The same for network interfaces.
    pub fn look_at_nets(
        &mut self,
        nets: &[NetStatus],
        now: Instant,
        now_ms: u64,
    ) -> BTreeMap<Metric, Sample> {
        let counted: Vec<Counted> = nets.iter().flat_map(Counted::of_net).collect();
        self.look(&counted, now, now_ms)
    }

    fn look(&mut self, counted: &[Counted], now: Instant, now_ms: u64) -> BTreeMap<Metric, Sample> {
        self.flows.resize(counted.len(), Flow::default());
        let flows = self.flows.iter_mut().zip(counted);
        let passed: Vec<Passed> = flows.map(|(flow, now)| flow.advance(now)).collect();
        let before = self.looked.replace(now);
        let seconds = before.map(|before| now.saturating_duration_since(before).as_secs_f64());
        let mut samples = BTreeMap::new();
        let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) else {
            return samples;
        };
        for resource in Resource::IO {
            if resource.device() != Some(self.device) || passed.is_empty() {
                continue;
            }
            let mut put = |metric: Metric, value: Option<f64>| {
                let sample = value.map(|value| Sample {
                    value,
                    at_ms: now_ms,
                });
                samples.extend(sample.map(|sample| (metric, sample)));
            };
            put(resource.share(), share(resource, &passed, seconds));
            if let Some(metric) = resource.throughput() {
                put(metric, throughput(resource, &passed, seconds));
            }
        }
        samples
    }
}

/// The largest share of a limit, in percent, that a flow has used; `None` when one is unknown, or none
/// has a limit.
fn share(resource: Resource, passed: &[Passed], seconds: f64) -> Option<f64> {
    let mut largest: Option<f64> = None;
    for flow in passed {
        let moved = flow.of(resource)?;
        let Some(limit) = resource.of_rate(&flow.rate?) else {
            continue;
        };
        let used = percent(moved as f64, limit as f64 * seconds);
        largest = Some(largest.map_or(used, |largest| largest.max(used)));
    }
    largest
}

/// What passed through all flows, in the unit of rules.
fn throughput(resource: Resource, passed: &[Passed], seconds: f64) -> Option<f64> {
    let add = |sum: u64, flow: &Passed| Some(sum.saturating_add(flow.of(resource)?));
    let moved = passed.iter().try_fold(0, add)?;
    Some(moved as f64 / seconds / resource.unit() as f64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counted(bytes: u64, ops: u64, rate: &str) -> Counted {
        Counted {
            bytes,
            ops,
            rate: rate.parse().unwrap(),
        }
    }

    struct Bench {
        sampler: IoSampler,
        start: Instant,
    }

    impl Bench {
        fn new(device: Device) -> Self {
            Self {
                sampler: IoSampler::new(device),
                start: Instant::now(),
            }
        }

        fn look(&mut self, at_ms: u64, counted: &[Counted]) -> BTreeMap<Metric, f64> {
            let now = self.start + Duration::from_millis(at_ms);
            let samples = self.sampler.look(counted, now, at_ms);
            assert!(samples.values().all(|sample| sample.at_ms == at_ms));
            let value = |(metric, sample): (Metric, Sample)| (metric, sample.value);
            samples.into_iter().map(value).collect()
        }
    }

    #[test]
    fn a_share_is_of_the_limit_in_force_and_the_busiest_device_counts() {
        let mut bench = Bench::new(Device::Disk);
        let (mib, limit) = (1 << 20, "10M,100iops");
        let idle = counted(0, 0, limit);
        assert!(
            bench.look(0, &[idle, idle]).is_empty(),
            "nothing to compare with"
        );
        let busy = [counted(6 * mib, 20, limit), counted(mib, 60, limit)];
        let seen = bench.look(500, &busy);
        // More than the limit: a burst.
        assert_eq!(seen.get(&Metric::Disk), Some(&100.0));
        assert_eq!(seen.get(&Metric::DiskRequests), Some(&100.0));
        assert_eq!(seen.get(&Metric::DiskMbps), Some(&14.0));
        assert_eq!(seen.get(&Metric::DiskIops), Some(&160.0));
        let seen = bench.look(1500, &[counted(8 * mib, 45, limit), busy[1]]);
        assert_eq!(seen.get(&Metric::Disk), Some(&20.0));
        assert_eq!(seen.get(&Metric::DiskRequests), Some(&25.0));
        assert_eq!(seen.get(&Metric::Net), None);
        let seen = bench.look(2500, &[counted(8 * mib, 45, limit), busy[1]]);
        assert_eq!(seen.get(&Metric::Disk), Some(&0.0), "idle is known");
    }

    #[test]
    fn without_a_limit_or_under_two_of_them_the_share_is_unknown() {
        let mut bench = Bench::new(Device::Net);
        let flow = |bytes, rate| counted(bytes, 10, rate);
        bench.look(0, &[flow(0, "8mbit"), flow(0, "max")]);
        let seen = bench.look(1000, &[flow(500_000, "8mbit"), flow(500_000, "max")]);
        assert_eq!(seen.get(&Metric::Net), Some(&50.0));
        assert_eq!(seen.get(&Metric::NetPackets), None, "packets have no limit");
        assert_eq!(seen.get(&Metric::NetMbps), Some(&8.0));
        let seen = bench.look(2000, &[flow(600_000, "16mbit"), flow(500_000, "max")]);
        assert_eq!(seen.get(&Metric::Net), None, "the limit has changed");
        assert_eq!(seen.get(&Metric::NetMbps), Some(&0.8));
        let seen = bench.look(3000, &[flow(800_000, "16mbit"), flow(500_000, "max")]);
        assert_eq!(seen.get(&Metric::Net), Some(&10.0));
        // Counters that went back, or another number of devices, tell nothing at first.
        let seen = bench.look(4000, &[flow(1, "16mbit"), flow(500_000, "max")]);
        assert!(!seen.contains_key(&Metric::Net) && !seen.contains_key(&Metric::NetMbps));
        assert!(bench.look(5000, &[]).is_empty());
    }
}
