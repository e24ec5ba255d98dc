//! The main job, shown: one instance with bounds and thresholds, a load in its guest that rises in
//! CPU and then in memory, stays, and falls. Prints a line a second while it happens, then a table,
//! and writes a chart. Ends with status 1 when the instance did not follow its load.
//!
//! `scripts/demo` builds it, brings a host with KVM, and runs it there. Everything goes through the
//! `concertina` command and the sockets that it documents; nothing here decides anything.

mod chart;
mod guest;
mod instance;
mod record;
mod screen;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use guest::Guest;
use instance::Instance;
use record::Recording;

const USAGE: &str = "\
Usage: demo --kernel FILE --initrd FILE --chart FILE [--quick]

  --kernel, --initrd   the guest
  --chart FILE         where to write the SVG chart
  --quick              shorter steps, for hosts with hardware KVM";

/// Bounds of the instance.
const CPUS: &str = "0.5..4";
const MEMORY: &str = "256M..1G";

/// What the customer asks for, and what the guest is made to need.
struct Scenario {
    rules: Vec<String>,
    cpu_load: String,
    memory_load: String,
    /// Length of the load.
    load: Duration,
    /// How long the instance may take to come back to its lower bounds afterwards.
    settle: Duration,
}

impl Scenario {
    /// All times are multiples of `unit` seconds.
    fn new(unit: u32) -> Self {
        let s = |n: u32| format!("{}s", n * unit);
        Self {
            rules: vec![
                format!("cpu > 75% for {}: +1 cpu, cooldown {}", s(1), s(1)),
                format!("cpu < 20% for {}: -1 cpu, cooldown {}", s(2), s(1)),
                format!("memory > 75% for 1s: +256M, cooldown {}", s(1)),
                format!("memory < 30% for {}: -256M, cooldown {}", s(2), s(1)),
                format!("set shrink_window {}", s(2)),
            ],
            cpu_load: format!("0.2:{},1.4:{},3.5:{},0.6:{}", s(3), s(6), s(9), s(16)),
            memory_load: format!("40M:{},40M..640M/{},640M:{}", s(18), s(8), s(8)),
            load: Duration::from_secs(u64::from(34 * unit)),
            settle: Duration::from_secs(u64::from(40 * unit)),
        }
    }
}

struct Options {
    kernel: PathBuf,
    initrd: PathBuf,
    chart: PathBuf,
    quick: bool,
}

fn main() -> ExitCode {
    match options(std::env::args().skip(1)).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let (mut kernel, mut initrd, mut chart, mut quick) = (None, None, None, false);
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--kernel" => &mut kernel,
            "--initrd" => &mut initrd,
            "--chart" => &mut chart,
            "--quick" => {
                quick = true;
                continue;
            }
            _ => bail!("'{argument}' is not an option\n{USAGE}"),
        };
        let value = arguments.next();
        *target = Some(PathBuf::from(value.with_context(|| {
            format!("Option {argument} needs a value\n{USAGE}")
        })?));
    }
    Ok(Options {
        kernel: kernel.context(USAGE)?,
        initrd: initrd.context(USAGE)?,
        chart: chart.context(USAGE)?,
        quick,
    })
}

/// Plays the scenario; true when the instance followed its load up and down.
fn run(options: &Options) -> Result<bool> {
    let scenario = Scenario::new(if options.quick { 1 } else { 2 });
    println!("Launching an instance with {CPUS} CPUs, {MEMORY} of memory and these rules:");
    for rule in &scenario.rules {
        println!("    {rule}");
    }
    let launched = Instant::now();
    let instance = Instance::launch(
        &options.kernel,
        &options.initrd,
        CPUS,
        MEMORY,
        &scenario.rules,
    )?;
    let mut guest = Guest::connect(&instance)?;
    println!(
        "Its guest answers {:.1} s after the launch: Linux {}",
        launched.elapsed().as_secs_f64(),
        guest.ask("uname -r")?
    );
    let boot_id = guest.ask("cat /proc/sys/kernel/random/boot_id")?;

    wait_until_small(&instance, scenario.settle)?;
    let load = format!(
        "concertina-guest load --cpu {} --memory {}",
        scenario.cpu_load, scenario.memory_load
    );
    println!("In the guest: {load}\n");
    guest.start_load(&load);
    let recording = watch(&instance, &guest, &scenario)?;

    let same_boot = guest.ask("cat /proc/sys/kernel/random/boot_id")? == boot_id;
    let uptime = guest.ask("cut -d' ' -f1 /proc/uptime")?;
    instance.stop()?;
    let verdict = summary::print(&recording, &uptime, same_boot);
    std::fs::write(&options.chart, chart::draw(&recording))
        .with_context(|| format!("Writing the chart {}", options.chart.display()))?;
    Ok(verdict)
}

/// Booting is a load too, and may have made the instance grow.
fn wait_until_small(instance: &Instance, limit: Duration) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < limit && !record::is_small(&instance.status()?) {
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// Records and prints a line a second until the load is over and the instance is small again.
fn watch(instance: &Instance, guest: &Guest, scenario: &Scenario) -> Result<Recording> {
    let mut recording = Recording::new(instance.events()?);
    let started = Instant::now();
    println!("{}", screen::HEADER);
    for tick in 0u32.. {
        let due = Duration::from_secs(1) * tick;
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        let at = started.elapsed();
        let sample = recording.take(at, instance.status()?, guest.demand());
        println!("{}", screen::line(&sample));
        for event in recording.news(instance.events()?, at) {
            println!("{}", screen::event(&event));
        }
        if at > scenario.load && recording.is_back() {
            break;
        }
        if at > scenario.load + scenario.settle {
            println!("The instance is not back at its lower bounds in time.");
            break;
        }
    }
    Ok(recording)
}
