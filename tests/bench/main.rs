//! Measures what the README quotes: boot, overhead, how soon a resize is seen, how soon a threshold
//! acts, and the same resizes under Debian's QEMU on the same host.
//!
//! `scripts/bench` runs `bench boot` where a clock counts instructions and the other parts where
//! guests run at full speed, and then prints both with `bench report`. Each run writes a JSON file.

mod agent;
mod boot;
mod control;
mod footprint;
mod guest;
mod io;
mod latency;
mod machine;
mod ours;
mod peer;
mod reaction;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use report::Results;

const USAGE: &str = "\
Usage: bench PART[,PART]... --kernel FILE --initrd FILE --out FILE [--rounds N] [--peer-root DIR]
       bench agent --out FILE
       bench report FILE... --out FILE
       bench probe ...

  boot            boot to power-off, and the guest's uptime at its init
  footprint       memory of an instance beside its guest's RAM, and of its idle guest
  reaction        from a load step in the guest to the vCPU that a threshold adds
  latency         from the request to the resize that is seen
  balloon         the same for a balloon, asked from the VM's process
  peer            the resizes of 'latency' under QEMU
  peer-balloon    a balloon under QEMU
  io              disk, network and vsock, ours and QEMU's
  vsock           vsock only
  probe           the guest's end of 'io'
  agent           what the agent costs its host with many simulated VMs; needs no KVM and no guest
  control         load on the control plane's API, with simulated hosts; alone, and without a kernel
  report          prints the results of several runs as a table, and writes them to one file
  --rounds N      how often each resize is measured (20)
  --peer-root DIR a root folder with Debian's QEMU in it; without one, the QEMU on the PATH";

/// What to measure, and how.
pub struct Options {
    /// bzImage of the guest.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// How often each resize is measured.
    pub rounds: usize,
    /// Root folder with QEMU in it.
    pub peer_root: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let Some((part, rest)) = arguments.split_first() else {
        bail!("{USAGE}");
    };
    if let ("vcpu", [period_ms]) = (part.as_str(), rest) {
        agent::play_vcpu(period_ms.parse()?);
        return Ok(());
    }
    if part == "probe" {
        return io::probe::run(rest);
    }
    let mut files = Vec::new();
    let (mut kernel, mut initrd, mut out, mut rounds, mut peer_root) = (None, None, None, 20, None);
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        if !argument.starts_with("--") {
            files.push(PathBuf::from(argument));
            continue;
        }
        let value = rest
            .next()
            .with_context(|| format!("Option {argument} needs a value\n{USAGE}"))?;
        match argument.as_str() {
            "--kernel" => kernel = Some(PathBuf::from(value)),
            "--initrd" => initrd = Some(PathBuf::from(value)),
            "--out" => out = Some(PathBuf::from(value)),
            "--peer-root" => peer_root = Some(PathBuf::from(value)),
            "--rounds" => {
                rounds = value
                    .parse()
                    .ok()
                    .filter(|n| *n > 0)
                    .with_context(|| format!("--rounds '{value}' is not a positive number"))?;
            }
            _ => bail!("'{argument}' is not an option\n{USAGE}"),
        }
    }
    let out = out.context(USAGE)?;
    let results = if part == "report" {
        let results = Results::merge(&files)?;
        println!("{}", results.table());
        results
    } else if part == "agent" {
        let mut results = Results::default();
        agent::measure(&mut results)?;
        results
    } else if part == "control" {
        let mut results = Results::default();
        control::measure(&mut results)?;
        results
    } else {
        let options = Options {
            kernel: kernel.context(USAGE)?,
            initrd: initrd.context(USAGE)?,
            rounds,
            peer_root,
        };
        let mut results = Results::default();
        for part in part.split(',') {
            match part {
                "boot" => boot::measure(&options, &mut results)?,
                "footprint" => footprint::measure(&options, &mut results)?,
                "reaction" => reaction::measure(&options, &mut results)?,
                "latency" => latency::measure(&options, &mut results)?,
                "balloon" => latency::measure_balloon(&options, &mut results)?,
                "peer" => latency::measure_peer(&options, &mut results)?,
                "peer-balloon" => latency::measure_peer_balloon(&options, &mut results)?,
                "io" => io::measure(&options, &mut results)?,
                "vsock" => io::measure_vsock(&options, &mut results)?,
                _ => bail!("'{part}' is not a part of the benchmark\n{USAGE}"),
            }
        }
        results
    };
    results.write(&out)
}
