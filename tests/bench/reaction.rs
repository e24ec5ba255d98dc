//! From a step of CPU load in the guest to the extra vCPU online there, by a threshold.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use concertina_api::units::Cpus;

use crate::Options;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::ours::Ours;
use crate::report::Results;

const ROUNDS: usize = 5;
/// Seldom enough that the watch itself is no load.
const WATCH: Duration = Duration::from_millis(50);

/// Loads an instance whose rule is to grow when busy for one second; it is made small by hand again.
pub fn measure(options: &Options, results: &mut Results) -> Result<()> {
    let rules = [
        "cpu > 75% for 1s: +1 cpu, cooldown 1s",
        "set manual_hold 0s",
        "set reversals_per_hour 1000",
    ];
    let ours = Ours::launch(options, "1..2", "256M", &rules)?;
    let mut guest = Guest::watched(&ours.console(), WATCH)?;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let mark = guest.mark();
        if guest.size()?.cpus > 1 {
            ours.ask_cpus(Cpus::whole(1))?;
            guest.wait_for_size("one processor", mark, |size| size.cpus == 1)?;
        }
        // Idle for more than the rule's second, so that the step is a step.
        thread::sleep(Duration::from_secs(3));
        let mark = guest.mark();
        let started = Instant::now();
        guest.start("concertina-guest load --cpu 1:4s")?;
        guest.wait_for_size("the extra processor", mark, |size| size.cpus == 2)?;
        took.push(started.elapsed().as_secs_f64() - 1.0);
        // The load ends by itself, before the instance is made small.
        thread::sleep(Duration::from_secs(4));
    }
    results.add(
        "load step to extra vCPU, beyond the rule's 1 s",
        "concertina",
        "s",
        &took,
    );
    Ok(())
}
