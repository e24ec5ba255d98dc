//! What each act asks for, and what its guest is made to need.

use std::path::PathBuf;
use std::time::Duration;

use concertina_api::units::Bytes;

use crate::guest::Demand;

/// Where the guest comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A kernel and an initramfs with our program as its init.
    Kernel {
        /// bzImage or vmlinux.
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
    },
    /// A distribution's disk with `stress-ng` and `busybox` installed; the guest gets a network.
    Image(PathBuf),
}

/// How the guest is made to need more.
#[derive(Debug, Clone)]
pub enum Load {
    /// By our own generator, which says what it wants at each moment.
    Generator(String),
    /// By programs, one after the other.
    Programs(Vec<Step>),
}

/// One program that runs for a while.
#[derive(Debug, Clone)]
pub struct Step {
    command: String,
    demand: Demand,
    lasts: Duration,
}

/// One act.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Bounds of CPUs.
    pub cpus: &'static str,
    /// Bounds of memory.
    pub memory: &'static str,
    /// The rules.
    pub rules: Vec<String>,
    /// The load.
    pub load: Load,
    /// Length of the load.
    pub lasts: Duration,
    /// How long the instance may take to come back to its lower bounds afterwards.
    pub settle: Duration,
    /// CPUs that it has to reach under the load.
    pub least_cpus: f64,
    /// Memory that it has to reach under the load.
    pub least_memory: Bytes,
}

impl Scenario {
    /// The first act: our generator. All times are multiples of `unit` seconds.
    pub fn generator(unit: u32) -> Self {
        let s = |n: u32| format!("{}s", n * unit);
        let cpu_load = format!("0.2:{},1.4:{},3.5:{},0.6:{}", s(3), s(6), s(9), s(16));
        let memory_load = format!("40M:{},40M..640M/{},640M:{}", s(18), s(8), s(8));
        Self {
            cpus: "0.5..4",
            memory: "256M..1G",
            rules: vec![
                format!("cpu > 75% for {}: +1 cpu, cooldown {}", s(1), s(1)),
                format!("cpu < 20% for {}: -1 cpu, cooldown {}", s(2), s(1)),
                format!("memory > 75% for 1s: +256M, cooldown {}", s(1)),
                format!("memory < 30% for {}: -256M, cooldown {}", s(2), s(1)),
                format!("set shrink_window {}", s(2)),
            ],
            load: Load::Generator(format!(
                "concertina-guest load --cpu {cpu_load} --memory {memory_load}"
            )),
            lasts: seconds(34 * unit),
            settle: seconds(40 * unit),
            least_cpus: 3.0,
            least_memory: Bytes::mib(768),
        }
    }

    /// The second act: `stress-ng` in a distribution.
    pub fn programs(unit: u32) -> Self {
        let s = |n: u32| format!("{}s", n * unit);
        let steps = vec![
            Step::processors(3, 12 * unit),
            Step::memory(340, 8 * unit),
            Step::memory(560, 10 * unit),
        ];
        Self {
            cpus: "1..3",
            memory: "512M..1G",
            rules: vec![
                format!("cpu > 75% for {}: +1 cpu, cooldown {}", s(1), s(1)),
                format!("cpu < 35% for {}: -1 cpu, cooldown {}", s(2), s(1)),
                format!("memory > 70% for 1s: +256M, cooldown {}", s(1)),
                format!("memory < 40% for {}: -256M, cooldown {}", s(2), s(1)),
                format!("set shrink_window {}", s(2)),
            ],
            lasts: steps.iter().map(|step| step.lasts).sum(),
            load: Load::Programs(steps),
            settle: seconds(45 * unit),
            least_cpus: 3.0,
            least_memory: Bytes::mib(768),
        }
    }

    /// The line that starts the load in the guest.
    pub fn command(&self) -> String {
        match &self.load {
            Load::Generator(command) => command.clone(),
            Load::Programs(steps) => {
                let commands: Vec<&str> = steps.iter().map(|step| step.command.as_str()).collect();
                commands.join("; ")
            }
        }
    }

    /// What the programs want at a moment, by their arguments; `None`: the generator says it itself.
    pub fn demand_at(&self, at: Duration) -> Option<Demand> {
        let Load::Programs(steps) = &self.load else {
            return None;
        };
        let mut end = Duration::ZERO;
        let now = steps.iter().find(|step| {
            end += step.lasts;
            at < end
        });
        Some(now.map_or_else(Demand::default, |step| step.demand))
    }
}

impl Step {
    fn processors(count: u32, lasts_s: u32) -> Self {
        Self {
            command: format!("stress-ng --quiet --cpu {count} --timeout {lasts_s}s"),
            demand: Demand {
                cpus: f64::from(count),
                ..Demand::default()
            },
            lasts: seconds(lasts_s),
        }
    }

    fn memory(mib: u64, lasts_s: u32) -> Self {
        Self {
            // Taken once and held: filling it anew in each round would need a processor of its own.
            command: format!(
                "stress-ng --quiet --vm 1 --vm-bytes {mib}M --vm-keep --vm-hang 0 --timeout {lasts_s}s"
            ),
            demand: Demand {
                memory: Bytes::mib(mib),
                held: Bytes::mib(mib),
                ..Demand::default()
            },
            lasts: seconds(lasts_s),
        }
    }
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(u64::from(count))
}
