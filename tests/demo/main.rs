//! The main job, shown: one instance with bounds and thresholds, a load in its guest that rises in
//! CPU and then in memory, stays, and falls; in the second act a distribution on a network, under a
//! program that people use. Prints a line a second while it happens, then a table,
//! and writes a chart. Ends with status 1 when the instance did not follow its load.
//!
//! `scripts/demo` builds it, brings a host with KVM, and runs it there. Everything goes through the
//! `concertina` command and the sockets that it documents; nothing here decides anything.

mod chart;
mod guest;
mod instance;
mod record;
mod scenario;
mod screen;
mod summary;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use guest::Guest;
use instance::Instance;
use record::Recording;
use scenario::{Scenario, Source};

const USAGE: &str = "\
Usage: demo (--kernel FILE --initrd FILE | --image FILE) --chart FILE [--quick]

  --kernel, --initrd   the guest of the first act, with our own load generator
  --image FILE         the guest of the second act: a distribution's disk with stress-ng and busybox
  --chart FILE         where to write the SVG chart
  --quick              shorter steps, for hosts with hardware KVM";

struct Options {
    source: Source,
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
    let (mut kernel, mut initrd, mut image) = (None, None, None);
    let (mut chart, mut quick) = (None, false);
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--kernel" => &mut kernel,
            "--initrd" => &mut initrd,
            "--image" => &mut image,
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
    let source = match (image, kernel, initrd) {
        (Some(image), None, None) => Source::Image(image),
        (None, Some(kernel), Some(initrd)) => Source::Kernel { kernel, initrd },
        _ => bail!("{USAGE}"),
    };
    Ok(Options {
        source,
        chart: chart.context(USAGE)?,
        quick,
    })
}

/// Plays the scenario; true when the instance followed its load up and down.
fn run(options: &Options) -> Result<bool> {
    let unit = if options.quick { 1 } else { 2 };
    let networked = matches!(options.source, Source::Image(_));
    let scenario = if networked {
        Scenario::programs(unit)
    } else {
        Scenario::generator(unit)
    };
    println!(
        "Launching an instance with {} CPUs, {} of memory and these rules:",
        scenario.cpus, scenario.memory
    );
    for rule in &scenario.rules {
        println!("    {rule}");
    }
    let launched = Instant::now();
    let instance = Instance::launch(&options.source, &scenario)?;
    let mut guest = Guest::connect(&instance)?;
    println!(
        "Its guest answers {:.1} s after the launch: {}",
        launched.elapsed().as_secs_f64(),
        guest.ask("(. /etc/os-release; echo -n \"$PRETTY_NAME, \") 2>/dev/null; uname -sr")?
    );
    let boot_id = guest.ask("cat /proc/sys/kernel/random/boot_id")?;
    let visitor = if networked {
        web::serve(&mut guest)?;
        println!(
            "Port {} of this host leads to a page in the guest",
            web::PORT
        );
        Some(web::Visitor::start())
    } else {
        None
    };

    wait_until_small(&instance, scenario.settle)?;
    let load = scenario.command();
    println!("In the guest: {load}\n");
    guest.start_load(&load);
    let recording = watch(&instance, &guest, &scenario)?;

    let visits = visitor.map(web::Visitor::finish);
    let same_boot = guest.ask("cat /proc/sys/kernel/random/boot_id")? == boot_id;
    let uptime = guest.ask("cut -d' ' -f1 /proc/uptime")?;
    instance.stop()?;
    let end = summary::End {
        guest_uptime: uptime,
        same_boot,
        visits,
    };
    let verdict = summary::print(&recording, &scenario, &end);
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
        let demand = scenario.demand_at(at).unwrap_or_else(|| guest.demand());
        let sample = recording.take(at, instance.status()?, demand);
        println!("{}", screen::line(&sample));
        for event in recording.news(instance.events()?, at) {
            println!("{}", screen::event(&event));
        }
        if at > scenario.lasts && recording.is_back() {
            break;
        }
        if at > scenario.lasts + scenario.settle {
            println!("The instance is not back at its lower bounds in time.");
            break;
        }
    }
    Ok(recording)
}
