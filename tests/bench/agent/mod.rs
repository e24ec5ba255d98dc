//! What the agent itself costs: many simulated VMs, one real agent that adopts, watches and resizes
//! them. It needs no KVM.
//!
//! ```text
//! swarm: sockets, processes, cgroups ◄── agent A enters them; killed ◄── agent B adopts them (timed)
//!    └ some guests fill up, steadily ─► B's rules let them grow, while B's CPU time and memory are read
//! ```

mod histogram;
mod journal;
mod process;
mod swarm;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use self::histogram::Histogram;
use self::process::Agent;
use self::swarm::{Shape, Swarm};
use crate::report::Results;

pub use self::swarm::play_vcpu;

/// Host sizes that are measured: name, and shape.
const SHAPES: [(&str, Shape); 2] = [
    (
        "1000 VMs each second",
        Shape {
            vms: 1000,
            period: Duration::from_secs(1),
        },
    ),
    (
        "100 VMs each 100 ms",
        Shape {
            vms: 100,
            period: Duration::from_millis(100),
        },
    ),
];
/// Left out at first: an agent that has just adopted everything is busy with that.
const WARM_UP: Duration = Duration::from_secs(5);
/// How long each window is, and how many there are.
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: usize = 4;
/// Time between two guests that fill up.
const FILL_PERIOD: Duration = Duration::from_millis(250);
/// Adoptions that are timed.
const ADOPTIONS: usize = 3;
/// From the look at a counter to the intent on the disk.
const TO_INTENT: &str = "concertina_sample_to_intent_seconds";

/// Measures all of it.
pub fn measure(results: &mut Results) -> Result<()> {
    for (name, shape) in SHAPES {
        measure_shape(name, shape, results)?;
    }
    let folder = tempfile::tempdir()?;
    for threads in [1, 16] {
        let rate = journal::commits_per_second(folder.path(), threads)?;
        let name = format!("journal commits, {threads} at a time");
        results.add(&name, "concertina", "1/s", &[rate]);
    }
    Ok(())
}

fn measure_shape(name: &str, shape: Shape, results: &mut Results) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("cbench").tempdir()?;
    let swarm = Swarm::start(folder.path(), shape)?;
    let kind = if swarm.has_real_groups() {
        "real"
    } else {
        "simulated"
    };
    println!("{name}: cgroup files are {kind}");
    // The first one finds them by their records, and writes them into its journal.
    Agent::start(folder.path(), shape.vms)?.crash();
    let mut adoptions = Vec::new();
    let agent = loop {
        let agent = Agent::start(folder.path(), shape.vms)?;
        adoptions.push(agent.started_in.as_secs_f64() * 1000.0);
        if adoptions.len() == ADOPTIONS {
            break agent;
        }
        agent.crash();
    };
    let mut add = |what: &str, unit: &str, samples: &[f64]| {
        results.add(
            &format!("agent, {name}: {what}"),
            "concertina",
            unit,
            samples,
        );
    };
    add("adoption", "ms", &adoptions);
    thread::sleep(WARM_UP);
    let ticks_per_second = ticks_per_second();
    let before = Histogram::read(&agent.metrics()?, TO_INTENT);
    let (mut cpu, mut resident, mut filled) = (Vec::new(), Vec::new(), 0);
    let mut last = agent.cost()?;
    for _ in 0..WINDOWS {
        let until = Instant::now() + WINDOW;
        while Instant::now() < until {
            // A prime step, so that neighbours are not next to each other in time.
            swarm.fill(filled * 37);
            filled += 1;
            thread::sleep(FILL_PERIOD);
        }
        let now = agent.cost()?;
        cpu.push(now.percent_since(&last, ticks_per_second));
        resident.push(now.resident as f64 / f64::from(1 << 20));
        last = now;
    }
    let to_intent = Histogram::read(&agent.metrics()?, TO_INTENT).since(&before);
    println!(
        "{name}: {} threads, {} decisions led to an intent",
        last.threads,
        to_intent.count()
    );
    add("CPU", "% of a core", &cpu);
    add("resident memory", "MiB", &resident);
    if let (Some(median), Some(p99)) = (to_intent.bound_ms(0.5), to_intent.bound_ms(0.99)) {
        let count = usize::try_from(to_intent.count()).unwrap_or(usize::MAX);
        let name = format!("agent, {name}: sample to intent, at most");
        results.add_summary(&name, "concertina", "ms", (median, p99), count);
    }
    Ok(())
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf(3) takes an integer and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}
