//! What a rule can look at, in which unit, and who tells it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Resource;

/// Something that is measured of an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Share of the CPU capacity that the instance has at the moment, percent.
    Cpu,
    /// Time in which something waited for CPU (PSI, the larger of the guest's and the host's of the
    /// instance's cgroup), percent.
    CpuPressure,
    /// Time in which vCPUs were ready and the host ran something else, percent.
    CpuSteal,
    /// Share of the guest's memory in use: `100 * (total - available) / total`, percent.
    Memory,
    /// Time in which something waited for memory (as for CPU), percent.
    MemoryPressure,
    /// Memory that the guest could use without swapping, bytes.
    MemoryAvailable,
    /// Time in which something waited for I/O (as for CPU), percent.
    IoPressure,
    /// Load average of the last minute in the guest, a number.
    Load1,
    /// Swap space that the guest has in use, bytes.
    Swap,
    /// Bytes that a disk moved, as a share of the limit that it has at the moment, percent. Of several
    /// disks the busiest; without a limit unknown.
    Disk,
    /// The same for requests.
    DiskRequests,
    /// Bytes that all disks moved, MiB a second.
    DiskMbps,
    /// Requests that all disks served, a second.
    DiskIops,
    /// Bytes that a network interface moved in one direction, as a share of the limit that it has at
    /// the moment, percent. Of several, and of both directions, the busiest; without a limit unknown.
    Net,
    /// The same for packets.
    NetPackets,
    /// What all network interfaces moved in both directions, in 1,000,000 bits a second.
    NetMbps,
    /// Packets of all network interfaces in both directions, a second.
    NetPps,
    /// A number that the guest agent is fed with, without the `custom.` before its name.
    Custom(String),
}

/// In what a metric is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricUnit {
    /// 0 to 100.
    Percent,
    /// Bytes.
    Bytes,
    /// Any number from 0.
    Number,
}

/// Who tells a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Run time and run delay of the vCPU threads.
    VcpuTimes,
    /// Pressure stall information of the instance's cgroup.
    HostPressure,
    /// Statistics of the guest's balloon driver.
    BalloonStatistics,
    /// The agent inside the guest.
    GuestAgent,
    /// What the instance's disks count on the host.
    Disks,
    /// What the instance's network interfaces count on the host.
    Networks,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VcpuTimes => "vCPU thread accounting on the host",
            Self::HostPressure => "host pressure (PSI) of its own cgroup",
            Self::BalloonStatistics => "balloon statistics",
            Self::GuestAgent => "guest agent channel",
            Self::Disks => "disks of the instance (--disk)",
            Self::Networks => "network interfaces of the instance (--net)",
        })
    }
}

/// The sources that an instance has: what its rules may look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(BTreeSet<Source>);

impl Sources {
    /// Everything that needs no channel into the guest.
    pub fn without_guest_agent() -> Self {
        [
            Source::VcpuTimes,
            Source::HostPressure,
            Source::BalloonStatistics,
            Source::Disks,
            Source::Networks,
        ]
        .into_iter()
        .collect()
    }
    /// Everything.
    pub fn all() -> Self {
        let mut all = Self::without_guest_agent();
        all.0.insert(Source::GuestAgent);
        all
    }
    /// Whether this one is there.
    pub fn has(&self, source: Source) -> bool {
        self.0.contains(&source)
    }
    /// The same without one: for a host that lacks it.
    pub fn without(mut self, source: Source) -> Self {
        self.0.remove(&source);
        self
    }
    /// Names of the metrics that these sources tell.
    pub fn metrics(&self) -> String {
        let known = NAMED.iter().filter(|(_, metric)| self.has(metric.source()));
        let mut names: Vec<&str> = known.map(|(name, _)| *name).collect();
        if self.has(Source::GuestAgent) {
            names.push("custom.NAME");
        }
        names.join(", ")
    }
}

impl FromIterator<Source> for Sources {
    fn from_iter<I: IntoIterator<Item = Source>>(sources: I) -> Self {
        Self(sources.into_iter().collect())
    }
}

const NAMED: [(&str, Metric); 17] = [
    ("cpu", Metric::Cpu),
    ("cpu.pressure", Metric::CpuPressure),
    ("cpu.steal", Metric::CpuSteal),
    ("memory", Metric::Memory),
    ("memory.pressure", Metric::MemoryPressure),
    ("memory.available", Metric::MemoryAvailable),
    ("io.pressure", Metric::IoPressure),
    ("load1", Metric::Load1),
    ("swap", Metric::Swap),
    ("disk", Metric::Disk),
    ("disk.requests", Metric::DiskRequests),
    ("disk.mbps", Metric::DiskMbps),
    ("disk.iops", Metric::DiskIops),
    ("net", Metric::Net),
    ("net.packets", Metric::NetPackets),
    ("net.mbps", Metric::NetMbps),
    ("net.pps", Metric::NetPps),
];

impl Metric {
    /// In what it is measured.
    pub fn unit(&self) -> MetricUnit {
        match self {
            Self::Cpu
            | Self::CpuPressure
            | Self::CpuSteal
            | Self::Memory
            | Self::MemoryPressure
            | Self::IoPressure
            | Self::Disk
            | Self::DiskRequests
            | Self::Net
            | Self::NetPackets => MetricUnit::Percent,
            Self::MemoryAvailable | Self::Swap => MetricUnit::Bytes,
            Self::Load1
            | Self::Custom(_)
            | Self::DiskMbps
            | Self::DiskIops
            | Self::NetMbps
            | Self::NetPps => MetricUnit::Number,
        }
    }

    /// Who tells it.
    pub fn source(&self) -> Source {
        match self {
            Self::Cpu | Self::CpuSteal => Source::VcpuTimes,
            Self::CpuPressure | Self::MemoryPressure | Self::IoPressure => Source::HostPressure,
            Self::Memory | Self::MemoryAvailable => Source::BalloonStatistics,
            Self::Load1 | Self::Swap | Self::Custom(_) => Source::GuestAgent,
            Self::Disk | Self::DiskRequests | Self::DiskMbps | Self::DiskIops => Source::Disks,
            Self::Net | Self::NetPackets | Self::NetMbps | Self::NetPps => Source::Networks,
        }
    }

    /// The resource that a bare `+25%` means; absent where the metric does not tell.
    pub fn natural_resource(&self) -> Option<Resource> {
        match self {
            Self::Cpu | Self::CpuPressure | Self::CpuSteal | Self::Load1 => Some(Resource::Cpus),
            Self::Memory | Self::MemoryPressure | Self::MemoryAvailable | Self::Swap => {
                Some(Resource::Memory)
            }
            Self::Disk | Self::DiskMbps => Some(Resource::DiskBytes),
            Self::DiskRequests | Self::DiskIops => Some(Resource::DiskOps),
            Self::Net | Self::NetMbps => Some(Resource::NetBytes),
            Self::NetPackets | Self::NetPps => Some(Resource::NetOps),
            Self::IoPressure | Self::Custom(_) => None,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Custom(name) = self {
            return write!(f, "custom.{name}");
        }
        let name = NAMED
            .iter()
            .find(|(_, metric)| metric == self)
            .map_or("?", |(name, _)| *name);
        f.write_str(name)
    }
}

/// A name that is no metric: what may stand there, with the nearest name first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnknownMetric(pub String);

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(text: &str) -> Result<Self, UnknownMetric> {
        if let Some((_, metric)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(metric.clone());
        }
        if let Some(name) = text.strip_prefix("custom.") {
            let allowed =
                |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b);
            if (1..=64).contains(&name.len()) && name.bytes().all(allowed) {
                return Ok(Self::Custom(name.to_owned()));
            }
            return Err(UnknownMetric(
                "the name after 'custom.' has 1 to 64 of the characters a-z, 0-9, '_', '.', '-'"
                    .into(),
            ));
        }
        let nearest = NAMED
            .iter()
            .map(|(name, _)| (edit_distance(text, name), *name))
            .min()
            .filter(|(distance, name)| *distance <= name.len().div_ceil(2))
            .map(|(_, name)| format!("did you mean '{name}'? "))
            .unwrap_or_default();
        Err(UnknownMetric(format!(
            "{nearest}metrics are {}",
            Sources::all().metrics()
        )))
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}

/// Least number of inserted, removed or replaced characters between two words (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // No metric has a long name: what lies beyond cannot change which is nearest.
    for (i, from) in a.chars().take(64).enumerate() {
        let mut next = vec![i + 1];
        for ((to, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or(0);
            next.push(
                (diagonal + usize::from(from != *to))
                    .min(left + 1)
                    .min(above + 1),
            );
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for (name, metric) in &NAMED {
            assert_eq!(name.parse::<Metric>().as_ref(), Ok(metric));
            assert_eq!(metric.to_string(), *name);
        }
        assert_eq!("custom.rps".parse(), Ok(Metric::Custom("rps".into())));
    }

    #[test]
    fn a_wrong_name_gets_the_nearest_one() {
        for (wrong, nearest) in [
            ("cpus", "'cpu'"),
            ("memroy", "'memory'"),
            ("memory.presure", "'memory.pressure'"),
            ("load", "'load1'"),
        ] {
            let error = wrong.parse::<Metric>().unwrap_err().to_string();
            assert!(error.contains(nearest), "{error}");
        }
        let error = "zzzzzzzzzzzz".parse::<Metric>().unwrap_err().to_string();
        assert!(
            !error.contains("did you mean") && error.contains("io.pressure"),
            "{error}"
        );
        assert!("custom.".parse::<Metric>().is_err() && "custom.A b".parse::<Metric>().is_err());
    }

    #[test]
    fn distance_counts_single_changes() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }

    #[test]
    fn load_and_custom_need_the_guest_agent() {
        let host = Sources::without_guest_agent();
        assert!(!host.has(Metric::Load1.source()) && host.has(Metric::MemoryAvailable.source()));
        assert!(
            !host.metrics().contains("load1") && Sources::all().metrics().contains("custom.NAME")
        );
    }
}
