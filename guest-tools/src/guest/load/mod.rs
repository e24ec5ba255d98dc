//! The load generator: CPU and memory demand that follows a written plan.
//!
//! One thread walks the plan and prints a line a second; `cpu` and `memory` turn levels into work.
//! Demand is what the plan says, whether the guest can serve it at present or not: that difference
//! is what a scaler has to see.

mod cpu;
mod memory;
mod plan;

use std::time::{Duration, Instant};

use concertina_api::{Bytes, Cpus};

use super::command::Problem;
use super::sys;
use cpu::CpuLoad;
use memory::MemoryLoad;
use plan::Plan;

const HELP: &str = "\
Usage: concertina-guest load [--cpu PLAN] [--memory PLAN] [--for T] [--reserve SIZE]

A PLAN is a list of steps, separated by commas:
  LEVEL:T        hold the level for the time T
  FROM..TO/T     move evenly from one level to the other in the time T
  LEVEL          (only as the last step) hold the level to the end
After its last step a plan's level is 0. CPU levels are CPUs (0.5, 3), memory levels are sizes
(100M, 1.5G); times are like 500ms, 5s or 2m.

  --cpu PLAN       CPUs kept busy; also more than are online at present
  --memory PLAN    memory that is held, every page written, and written again every half minute
  --for T          how long in all; default: until the last timed step of both plans is over, or
                   for ever when a plan ends with a held level
  --reserve SIZE   how much available memory to leave (24M): the load waits for more memory instead
                   of being killed for want of it; 0 takes everything

  concertina-guest load --cpu 1:5s,3:10s,0.5:5s
  concertina-guest load --cpu 2 --memory 100M..600M/10s,600M --for 1m

Each second it prints the demand of the plan and what was got, for example
  load t=3.0 cpu=3.0 memory=512M used=1.98 held=487M";

const TICK: Duration = Duration::from_millis(50);
const STATUS_PERIOD: Duration = Duration::from_secs(1);
const DEFAULT_RESERVE: Bytes = Bytes::mib(24);
/// More busy threads than this are a mistake.
const MOST_CPUS: Cpus = Cpus::whole(1024);

/// What to do, checked.
#[derive(Debug, PartialEq)]
struct Request {
    cpu: Option<Plan>,
    memory: Option<Plan>,
    /// `None`: for ever.
    length: Option<Duration>,
    reserve: Bytes,
}

/// Makes the load that the options describe.
pub fn run(options: &[&str]) -> Result<(), Problem> {
    if matches!(options, ["--help" | "-h"]) {
        sys::say(HELP);
        return Ok(());
    }
    let request = parse(options).map_err(Problem::Usage)?;
    make_load(&request)
}

fn parse(options: &[&str]) -> Result<Request, String> {
    let (mut cpu, mut memory, mut length, mut reserve) = (None, None, None, DEFAULT_RESERVE);
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, value),
            None => (
                *option,
                *rest
                    .next()
                    .ok_or(format!("Option {option} needs a value"))?,
            ),
        };
        let named = |error: String| format!("{name}: {error}");
        match name {
            "--cpu" => cpu = Some(Plan::parse(value, cpu_level).map_err(named)?),
            "--memory" => memory = Some(Plan::parse(value, memory_level).map_err(named)?),
            "--for" => length = Some(plan::duration(value).map_err(named)?),
            "--reserve" => reserve = value.parse::<Bytes>().map_err(|e| named(e.to_string()))?,
            other => return Err(format!("Option '{other}' is not known: see load --help")),
        }
    }
    if cpu.is_none() && memory.is_none() {
        return Err("Say what to load: --cpu PLAN, --memory PLAN or both".into());
    }
    let planned: Option<Duration> = [&cpu, &memory]
        .into_iter()
        .flatten()
        .try_fold(Duration::ZERO, |longest, plan| {
            Some(longest.max(plan.length()?))
        });
    Ok(Request {
        cpu,
        memory,
        length: length.or(planned),
        reserve,
    })
}

fn cpu_level(text: &str) -> Result<f64, String> {
    let cpus: Cpus = text
        .parse()
        .map_err(|error: concertina_api::UnitError| error.to_string())?;
    if cpus > MOST_CPUS {
        return Err(format!("{cpus} CPUs are too many: at most {MOST_CPUS}"));
    }
    Ok(cpus.as_f64())
}

fn memory_level(text: &str) -> Result<f64, String> {
    let bytes: Bytes = text
        .parse()
        .map_err(|error: concertina_api::UnitError| error.to_string())?;
    Ok(bytes.get() as f64)
}

fn make_load(request: &Request) -> Result<(), Problem> {
    // Where memory runs out all the same, this process is the one to be killed.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let cpu = request.cpu.as_ref().map(|plan| CpuLoad::start(plan.peak()));
    let memory =
        match &request.memory {
            Some(plan) => Some(MemoryLoad::start(plan.peak(), request.reserve).map_err(
                |error| Problem::Failed(format!("Cannot set up the memory load: {error}")),
            )?),
            None => None,
        };
    let begin = Instant::now();
    let mut next_status = STATUS_PERIOD;
    let mut meter = Meter {
        at: Duration::ZERO,
        used: sys::process_cpu_time(),
    };
    loop {
        let now = begin.elapsed();
        let over = request.length.is_some_and(|length| now >= length);
        let level = |plan: &Option<Plan>| plan.as_ref().map_or(0.0, |plan| plan.level_at(now));
        let (cpus, bytes) = (level(&request.cpu), level(&request.memory));
        if let Some(cpu) = &cpu {
            cpu.set(cpus);
        }
        if let Some(memory) = &memory {
            memory.set(bytes);
        }
        if now >= next_status || over {
            let held = memory.as_ref().map_or(0, MemoryLoad::held_bytes);
            print_status(now, cpus, bytes, meter.cpus_since_last(now), held);
            next_status = now + STATUS_PERIOD - Duration::from_millis(subsecond_ms(now));
        }
        if over {
            sys::say(&format!("load done t={:.1}", now.as_secs_f64()));
            return Ok(());
        }
        let until_end = request
            .length
            .map_or(TICK, |length| length.saturating_sub(now));
        std::thread::sleep(TICK.min(until_end));
    }
}

fn subsecond_ms(time: Duration) -> u64 {
    u64::from(time.subsec_millis())
}

fn print_status(now: Duration, cpus: f64, bytes: f64, used: f64, held: u64) {
    // A level is below 2^53 bytes in any plan that can be met.
    let wanted = Bytes((bytes as u64) >> 20 << 20);
    sys::say(&format!(
        "load t={:.1} cpu={cpus:.1} memory={wanted} used={used:.2} held={}",
        now.as_secs_f64(),
        Bytes(held)
    ));
}

/// Turns this process's CPU time into CPUs used.
struct Meter {
    at: Duration,
    used: Duration,
}

impl Meter {
    fn cpus_since_last(&mut self, now: Duration) -> f64 {
        let used = sys::process_cpu_time();
        let spent = used.saturating_sub(self.used).as_secs_f64();
        let passed = now.saturating_sub(self.at).as_secs_f64();
        (self.at, self.used) = (now, used);
        if passed > 0.0 { spent / passed } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_lasts_as_long_as_its_longest_timed_plan() {
        let request = parse(&["--cpu", "1:5s,3:10s", "--memory=100M..600M/20s"]).expect("valid");
        assert_eq!(request.length, Some(Duration::from_secs(20)));
    }

    #[test]
    fn a_held_level_lasts_for_ever_unless_told_otherwise() {
        assert_eq!(parse(&["--cpu", "2"]).expect("valid").length, None);
        let limited = parse(&["--cpu", "2", "--for", "90s"]).expect("valid");
        assert_eq!(limited.length, Some(Duration::from_secs(90)));
    }

    #[test]
    fn wrong_options_are_refused_with_the_option_and_the_value() {
        for (options, must_hold) in [
            (&["--cpu", "fast"][..], ["--cpu", "fast"]),
            (&["--cpu", "5000"], ["5000", "1024"]),
            (&["--memory", "1X"], ["--memory", "1X"]),
            (&["--for", "soon", "--cpu", "1"], ["--for", "soon"]),
            (&["--cpu"], ["--cpu", "value"]),
            (&["--disk", "1"], ["--disk", "not known"]),
            (&[], ["--cpu", "--memory"]),
        ] {
            let error = parse(options).expect_err("wrong");
            assert!(
                must_hold.iter().all(|part| error.contains(part)),
                "{options:?}: {error}"
            );
        }
    }
}
