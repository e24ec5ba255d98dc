//! What rules resize, and in which units.
//!
//! | resource | in rules | smallest unit |
//! |---|---|---|
//! | CPUs | `cpu` | a thousandth of a CPU |
//! | memory | `memory`, or a size alone | a byte |
//! | limit of a disk's bytes | `disk.mbps`: MiB a second | a byte a second |
//! | limit of a disk's requests | `disk.iops` | a request a second |
//! | limit of a network's bytes | `net.mbps`: 1,000,000 bits a second | a byte a second |
//! | limit of a network's packets | `net.pps` | a packet a second |
//!
//! A limit holds for each disk of an instance, and for each direction of each network interface.

use serde::{Deserialize, Serialize};

use super::step::{CPU_STEP, MEMORY_STEP};
use super::{Axis, Metric};
use crate::io::{IoRate, MBIT_BYTES};
use crate::units::{Bytes, Cpus};

/// What rules resize. Resources are decided apart from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// CPUs: vCPUs online and the quota on them.
    Cpus,
    /// Memory.
    Memory,
    /// Bytes a second of a disk.
    DiskBytes,
    /// Requests a second of a disk.
    DiskOps,
    /// Bytes a second of a network interface in one direction.
    NetBytes,
    /// Packets a second of a network interface in one direction.
    NetOps,
}

/// The kind of devices that an I/O resource limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Disks.
    Disk,
    /// Network interfaces.
    Net,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 6] = [
        Self::Cpus,
        Self::Memory,
        Self::DiskBytes,
        Self::DiskOps,
        Self::NetBytes,
        Self::NetOps,
    ];
    /// Limits of devices.
    pub const IO: [Self; 4] = [Self::DiskBytes, Self::DiskOps, Self::NetBytes, Self::NetOps];

    /// The word in rules and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpus => Axis::Cpus.as_str(),
            Self::Memory => Axis::Memory.as_str(),
            Self::DiskBytes => "disk.mbps",
            Self::DiskOps => "disk.iops",
            Self::NetBytes => "net.mbps",
            Self::NetOps => "net.pps",
        }
    }

    /// What it limits; absent: it is a part of the machine itself.
    pub fn device(self) -> Option<Device> {
        match self {
            Self::Cpus | Self::Memory => None,
            Self::DiskBytes | Self::DiskOps => Some(Device::Disk),
            Self::NetBytes | Self::NetOps => Some(Device::Net),
        }
    }

    /// The unit that its word in rules counts, in its smallest unit.
    pub fn unit(self) -> u64 {
        match self {
            Self::Cpus => 1000,
            Self::DiskBytes => Bytes::MIB,
            Self::NetBytes => MBIT_BYTES,
            Self::Memory | Self::DiskOps | Self::NetOps => 1,
        }
    }

    /// Step to which a share of it is rounded, in its smallest unit.
    pub fn step(self) -> u64 {
        match self {
            Self::Cpus => CPU_STEP,
            Self::Memory => MEMORY_STEP,
            Self::DiskBytes => 64 * 1024,
            Self::NetBytes => MBIT_BYTES / 10,
            Self::DiskOps | Self::NetOps => 1,
        }
    }

    /// Coarsest step of target tracking: half a CPU, a memory block of Linux.
    pub(super) fn tracking_step_max(self) -> u64 {
        match self {
            Self::Cpus => 500,
            Self::Memory => 128 * Bytes::MIB,
            Self::DiskBytes => 10 * Bytes::MIB,
            Self::NetBytes => 10 * MBIT_BYTES,
            Self::DiskOps | Self::NetOps => 100,
        }
    }

    /// A size as people write it.
    pub fn text(self, size: u64) -> String {
        match self {
            Self::Cpus => format!("{} cpu", Cpus(u32::try_from(size).unwrap_or(u32::MAX))),
            Self::Memory => Bytes(size).to_string(),
            Self::DiskOps | Self::NetOps => format!("{size} {}", self.as_str()),
            Self::DiskBytes | Self::NetBytes => {
                // Sizes are far below 2^53, and people do not read further than hundredths.
                let hundredths = (size as f64 * 100.0 / self.unit() as f64).round();
                format!("{} {}", hundredths / 100.0, self.as_str())
            }
        }
    }

    /// The share of its present size that is in use, as a metric: how far a limit is used up.
    pub fn share(self) -> Metric {
        match self {
            Self::Cpus => Metric::Cpu,
            Self::Memory => Metric::Memory,
            Self::DiskBytes => Metric::Disk,
            Self::DiskOps => Metric::DiskRequests,
            Self::NetBytes => Metric::Net,
            Self::NetOps => Metric::NetPackets,
        }
    }

    /// What is in use, in the unit of rules, as a metric; absent: there is none.
    pub fn throughput(self) -> Option<Metric> {
        match self {
            Self::Cpus | Self::Memory => None,
            Self::DiskBytes => Some(Metric::DiskMbps),
            Self::DiskOps => Some(Metric::DiskIops),
            Self::NetBytes => Some(Metric::NetMbps),
            Self::NetOps => Some(Metric::NetPps),
        }
    }

    /// Its part of a limit, in its smallest unit; absent: it is not limited, or no I/O.
    pub fn of_rate(self, rate: &IoRate) -> Option<u64> {
        let limit = match self {
            Self::Cpus | Self::Memory => 0,
            Self::DiskBytes | Self::NetBytes => rate.bytes_per_s.get(),
            Self::DiskOps | Self::NetOps => rate.ops_per_s,
        };
        (limit > 0).then_some(limit)
    }

    /// The limit with another number in its part. A burst that was given stays.
    pub fn in_rate(self, mut rate: IoRate, size: u64) -> IoRate {
        match self {
            Self::Cpus | Self::Memory => {}
            Self::DiskBytes | Self::NetBytes => rate.bytes_per_s = Bytes(size),
            Self::DiskOps | Self::NetOps => rate.ops_per_s = size,
        }
        rate
    }
}

impl From<Axis> for Resource {
    fn from(axis: Axis) -> Self {
        match axis {
            Axis::Cpus => Self::Cpus,
            Axis::Memory => Self::Memory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_in_the_units_of_rules() {
        for (resource, size, text) in [
            (Resource::Cpus, 1500, "1.5 cpu"),
            (Resource::Memory, 512 << 20, "512M"),
            (Resource::DiskBytes, 100 << 20, "100 disk.mbps"),
            (Resource::DiskBytes, 100_000_000, "95.37 disk.mbps"),
            (Resource::NetBytes, 50_000_000, "400 net.mbps"),
            (Resource::NetBytes, 62_500, "0.5 net.mbps"),
            (Resource::DiskOps, 500, "500 disk.iops"),
            (Resource::NetOps, 7, "7 net.pps"),
        ] {
            assert_eq!(resource.text(size), text);
        }
    }

    #[test]
    fn a_metric_of_a_resource_belongs_to_it() {
        for resource in Resource::ALL {
            assert_eq!(resource.share().natural_resource(), Some(resource));
            let throughput = resource.throughput();
            assert!(throughput.is_none_or(|metric| metric.natural_resource() == Some(resource)));
            let is_io = Resource::IO.contains(&resource);
            assert_eq!(resource.device().is_some(), is_io);
            assert_eq!(resource.of_rate(&IoRate::MAX), None);
            let limited = resource.in_rate(IoRate::MAX, 7);
            assert_eq!(resource.of_rate(&limited), is_io.then_some(7));
        }
    }
}
