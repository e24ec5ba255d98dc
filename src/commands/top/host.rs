//! The host's own numbers, and its capacity book.

use std::fs;
use std::path::PathBuf;

use concertina_agent::client;
use concertina_agent::host::HostRecord;
use concertina_agent::ledger::Account;
use concertina_agent::state_dir::StateDir;
use concertina_api::Bytes;
use concertina_api::host::AxisAccount;

use crate::meminfo;

/// What the host has, as its kernel counts it; absent: unknown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostNumbers {
    /// Processors online.
    pub cpus: Option<u32>,
    /// Time in which they were busy since the look before, percent.
    pub busy: Option<f64>,
    /// Memory.
    pub memory: Option<Bytes>,
    /// What could be had of it without swapping.
    pub available: Option<Bytes>,
}

/// How the host's capacity is given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounts {
    /// CPUs, in thousandths.
    pub cpus: Account,
    /// Memory, in bytes.
    pub memory: Account,
}

/// Where the accounts come from: whoever keeps the ledger of the host's instances.
pub trait CapacityBook: Send {
    /// The accounts at the moment; `None` when nobody on this host keeps them, or does not answer.
    fn accounts(&mut self) -> Option<Accounts>;
}

/// The agent that owns the instances of a state folder, where there is one: without it each instance
/// decides for itself, and there is no book.
#[derive(Debug, Clone)]
pub struct AgentBook {
    state_dir: PathBuf,
}

impl AgentBook {
    /// Of the agent of this folder; it may come and go.
    pub fn new(state: &StateDir) -> Self {
        Self {
            state_dir: state.root().to_owned(),
        }
    }
}

impl CapacityBook for AgentBook {
    fn accounts(&mut self) -> Option<Accounts> {
        let agent = HostRecord::find(&self.state_dir)?;
        let host = client::host(&agent.socket).ok()?;
        let account = |axis: AxisAccount| Account {
            limit: axis.limit,
            held: axis.held,
            actual: axis.actual,
            guaranteed: axis.guaranteed,
            awaited: axis.awaited,
            instances: usize::try_from(host.instances).unwrap_or(usize::MAX),
        };
        Some(Accounts {
            cpus: account(host.cpus),
            memory: account(host.memory),
        })
    }
}

/// Reads [`HostNumbers`] again and again.
#[derive(Debug, Default)]
pub struct HostReader {
    times: Option<CpuTimes>,
}

impl HostReader {
    /// The numbers at the moment.
    pub fn read(&mut self) -> HostNumbers {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (meminfo, stat) = (read("/proc/meminfo"), read("/proc/stat"));
        let times = CpuTimes::parse(&stat);
        let before = std::mem::replace(&mut self.times, times);
        HostNumbers {
            cpus: count_cpus(&stat),
            busy: before
                .zip(times)
                .and_then(|(before, now)| now.busy_since(before)),
            memory: meminfo::field(&meminfo, "MemTotal"),
            available: meminfo::field(&meminfo, "MemAvailable"),
        }
    }
}

/// Time of all processors since boot, in ticks (proc_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CpuTimes {
    all: u64,
    idle: u64,
}

impl CpuTimes {
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line
            .split_ascii_whitespace()
            .map_while(|field| field.parse().ok())
            .collect();
        // Fields: user, nice, system, idle, iowait, irq, softirq, steal; then guest and guest_nice,
        // which are part of user and nice.
        let all = fields
            .get(..8)?
            .iter()
            .fold(0u64, |sum, &time| sum.saturating_add(time));
        let idle = fields.get(3)?.saturating_add(*fields.get(4)?);
        Some(Self { all, idle })
    }

    fn busy_since(self, before: Self) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|&all| all > 0)?;
        // The kernel's idle time may go back a little.
        let idle = self.idle.saturating_sub(before.idle).min(all);
        Some((all - idle) as f64 * 100.0 / all as f64)
    }
}

fn count_cpus(stat: &str) -> Option<u32> {
    let is_cpu = |line: &&str| {
        let rest = line.strip_prefix("cpu").unwrap_or_default();
        rest.starts_with(|first: char| first.is_ascii_digit())
    };
    u32::try_from(stat.lines().filter(is_cpu).count())
        .ok()
        .filter(|&count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 800 50 0 0 0 30 0\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n";

    #[test]
    fn processors_and_their_time_are_read() {
        assert_eq!(count_cpus(STAT), Some(2));
        let times = CpuTimes::parse(STAT).unwrap();
        assert_eq!((times.all, times.idle), (1000, 850));
        let later = CpuTimes {
            all: 1200,
            idle: 900,
        };
        assert_eq!(later.busy_since(times), Some(75.0));
        assert_eq!(times.busy_since(later), None);
        assert_eq!(times.busy_since(times), None);
    }

    #[test]
    fn what_cannot_be_read_is_unknown() {
        assert_eq!(CpuTimes::parse("cpu 1 2 3\n"), None);
        assert_eq!(CpuTimes::parse(""), None);
        assert_eq!(count_cpus("intr 5\n"), None);
    }
}
