//! Configuration of a host's agent: TOML, every key optional. `docs/agent.toml` has them all, with
//! their defaults and what they mean.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use concertina_api::{Bytes, Cpus};
use serde::Deserialize;

use crate::ledger::{Limits, Overcommit};
use crate::policy::Size;

/// Memory that each instance costs its host beside its own, where nothing else is configured: the
/// vmm, its page tables, the kernel's part.
const OVERHEAD: Bytes = Bytes::mib(16);
/// Memory that a host keeps for itself, where nothing else is configured: this, or a share of all that
/// it has, whichever is more.
const RESERVE: Bytes = Bytes::mib(256);
const RESERVE_PART: u64 = 32;
/// CPU that is promised more than there is, where nothing else is configured.
const OVERCOMMIT_CPUS: f64 = 4.0;

/// A configuration file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder with one folder per instance.
    pub state_dir: Option<PathBuf>,
    /// Where the API listens: `unix:PATH`.
    pub listen: Option<Listen>,
    /// Where Prometheus may ask by TCP; absent: nowhere.
    pub metrics_listen: Option<MetricsListen>,
    /// The journal; it has to survive a crash of the agent, not of the host.
    pub journal: Option<PathBuf>,
    /// The cgroup below which instances get theirs; absent: the root of the tree, or where that is not
    /// ours the agent's own group.
    pub cgroup: Option<PathBuf>,
    /// What the host has; absent: all that it has.
    pub capacity: Amount,
    /// What it keeps for itself.
    pub reserve: Amount,
    /// How much more is promised than there is.
    pub overcommit: Factors,
    /// Memory that each instance costs beside its own.
    pub overhead: Option<Bytes>,
    /// The control plane that the host belongs to.
    pub control: Control,
}

/// The control plane that a host belongs to; what is absent has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// What the host joins with; not looked at once it has joined.
    pub join: Option<String>,
    /// `HOST:PORT`, where that is not what the join token says.
    pub address: Option<String>,
    /// Name that it joins by.
    pub name: Option<String>,
    /// Folder of the host's identity, and of images and disks.
    pub folder: Option<PathBuf>,
    /// Room that images may take; those that instances use stay, whatever they take.
    pub image_cache: Option<Bytes>,
}

/// See [`Control::image_cache`].
pub const IMAGE_CACHE: Bytes = Bytes(20 << 30);

/// CPUs and memory; what is absent has its default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Amount {
    /// CPUs.
    pub cpus: Option<Cpus>,
    /// Memory.
    pub memory: Option<Bytes>,
}

/// Factors for CPUs and memory; what is absent has its default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Factors {
    /// For CPUs.
    pub cpus: Option<Overcommit>,
    /// For memory.
    pub memory: Option<Overcommit>,
}

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Listen(pub PathBuf);

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(PathBuf::from(path))),
            _ => Err(format!(
                "'{text}' is no address to listen on: write unix:PATH, as in unix:/run/concertina.sock"
            )),
        }
    }
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

/// A loopback address on which metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct MetricsListen(pub SocketAddr);

impl TryFrom<String> for MetricsListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address: Option<SocketAddr> = text.parse().ok();
        match address {
            Some(address) if address.ip().is_loopback() => Ok(Self(address)),
            Some(_) => Err(format!(
                "'{text}' is no loopback address: metrics name all VMs of the host, and are served on \
                 127.0.0.0/8 or [::1] only"
            )),
            None => Err(format!(
                "'{text}' is no address to serve metrics on: write ADDRESS:PORT, as in 127.0.0.1:9464"
            )),
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// A sentence that names the file, and the line where it is wrong.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = fs::read_to_string(path)
            .map_err(|error| format!("Configuration '{shown}' cannot be read: {error}"))?;
        Self::parse(&text).map_err(|why| format!("Configuration '{shown}', {why}"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            format!("line {line}: {}", error.message().replace('\n', ", "))
        })
    }

    /// What the host has to give away, where this is all that it has.
    pub fn limits(&self, host: Size) -> Limits {
        let capacity = Size {
            cpus: self.capacity.cpus.unwrap_or(host.cpus),
            memory: self.capacity.memory.unwrap_or(host.memory),
        };
        // Who says what the host has, has said what it gives: only of all is something kept.
        let kept = match self.capacity.memory {
            Some(_) => Bytes(0),
            None => RESERVE.max(Bytes(host.memory.get() / RESERVE_PART)),
        };
        Limits {
            capacity,
            reserve: Size {
                cpus: self.reserve.cpus.unwrap_or(Cpus(0)),
                memory: self.reserve.memory.unwrap_or(kept),
            },
            overcommit_cpus: self.overcommit.cpus.unwrap_or_else(|| {
                Overcommit::try_from(OVERCOMMIT_CPUS).unwrap_or(Overcommit::NONE)
            }),
            overcommit_memory: self.overcommit.memory.unwrap_or(Overcommit::NONE),
            overhead: self.overhead.unwrap_or(OVERHEAD),
        }
    }

    /// What another configuration says that cannot change while the agent runs, for a line in its log.
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        [
            ("state_dir", self.state_dir != other.state_dir),
            ("listen", self.listen != other.listen),
            (
                "metrics_listen",
                self.metrics_listen != other.metrics_listen,
            ),
            ("journal", self.journal != other.journal),
            ("cgroup", self.cgroup != other.cgroup),
            ("control", self.control != other.control),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// What this host has: its online processors, and the memory that its kernel manages.
pub fn size_of_host() -> Size {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Size {
        cpus: Cpus::whole(u32::try_from(cpus).unwrap_or(u32::MAX)),
        memory: Bytes(total.unwrap_or(0).saturating_mul(1024)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use concertina_api::policy::Axis;

    const HOST: Size = Size {
        cpus: Cpus(8000),
        memory: Bytes(64 << 30),
    };

    #[test]
    fn an_empty_file_gives_all_but_a_reserve() {
        let limits = Config::parse("").unwrap().limits(HOST);
        assert_eq!(limits.of(Axis::Cpus), 32_000);
        assert_eq!(limits.of(Axis::Memory), 62 << 30);
    }

    #[test]
    fn the_example_has_every_key_and_says_the_defaults() {
        let text = include_str!("../../../docs/agent.toml");
        // Settings are commented out without a blank after the mark, prose with one.
        let settings: String = text
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = Config::parse(&settings).unwrap();
        let filled = config.clone();
        assert!(filled.state_dir.is_some() && filled.listen.is_some() && filled.journal.is_some());
        assert!(filled.metrics_listen.is_some() && filled.cgroup.is_some());
        let control = filled.control;
        assert!(control.join.is_some() && control.address.is_some());
        assert!(control.name.is_some() && control.folder.is_some());
        assert_eq!(control.image_cache, Some(IMAGE_CACHE));
        assert!(filled.capacity.cpus.is_some() && filled.capacity.memory.is_some());
        assert!(filled.reserve.cpus.is_some() && filled.reserve.memory.is_some());
        let of_defaults = Config::default().limits(HOST);
        let limits = config.limits(HOST);
        assert_eq!(limits.overhead, of_defaults.overhead);
        assert_eq!(limits.overcommit_cpus, of_defaults.overcommit_cpus);
        assert_eq!(limits.overcommit_memory, of_defaults.overcommit_memory);
        // And as it is shipped, nothing is set.
        assert_eq!(Config::parse(text).unwrap(), Config::default());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, word) in [
            ("capacity = { cpus = 4, disks = 3 }", "line 1", "disks"),
            ("\n[overcommit]\nmemory = 100", "line 3", "100"),
            ("listen = \"tcp:80\"", "line 1", "unix:PATH"),
            ("\nmetrics_listen = \"0.0.0.0:9464\"", "line 2", "loopback"),
            ("metrics_listen = \"9464\"", "line 1", "ADDRESS:PORT"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(line) && error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_cannot_change_is_named() {
        let before = Config::parse("listen = \"unix:/a\"").unwrap();
        let after = "listen = \"unix:/b\"\noverhead = \"1M\"\nmetrics_listen = \"[::1]:1\"";
        let after = Config::parse(after).unwrap();
        assert_eq!(
            before.fixed_differences(&after),
            ["listen", "metrics_listen"]
        );
    }
}
