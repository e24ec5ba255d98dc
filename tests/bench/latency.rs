//! How long after the request a resize is seen: in the guest for growing, on the host for shrinking.
//!
//! Each kind of resize is one small program over [`Machine`], so that our agent and QEMU go through the
//! same steps with the same guest, watched in the same way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use concertina_api::units::Cpus;

use crate::Options;
use crate::guest::Guest;
use crate::machine::{Machine, Wish};
use crate::ours::Ours;
use crate::peer::Peer;
use crate::report::Results;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Polled on the host; far below what is measured.
const POLL: Duration = Duration::from_millis(2);
/// The guest's watch; far below what is measured, too.
const WATCH: Duration = Duration::from_millis(5);

/// With one guest each.
const ATTEMPTS: u32 = 3;
const BOOT_MIB: u64 = 256;
const GROWN_MIB: u64 = 768;
/// Guests of the balloon rounds.
const BALLOON_GUEST_MIB: u64 = 1024;
const BALLOON_MIB: u64 = 512;

/// All resizes of ours, through the agent, as a user asks for them.
pub fn measure(options: &Options, results: &mut Results) -> Result<()> {
    quota(options, results)?;
    tried(results, |results| {
        let ours = Ours::launch(options, "1..2", "256M..768M", &[])?;
        sizes(&ours, options.rounds, results).with_context(|| ours.last_words())
    })
}

/// A balloon in a guest of ours.
pub fn measure_balloon(options: &Options, results: &mut Results) -> Result<()> {
    tried(results, |results| {
        let ours = Ours::launch(options, "1", "1G", &[])?;
        balloon(&ours, options.rounds, results).with_context(|| ours.last_words())
    })
}

/// The same resizes under QEMU.
pub fn measure_peer(options: &Options, results: &mut Results) -> Result<()> {
    tried(results, |results| {
        let peer = Peer::launch(options, BOOT_MIB, GROWN_MIB)?;
        sizes(&peer, options.rounds, results)
    })
}

/// A balloon under QEMU.
pub fn measure_peer_balloon(options: &Options, results: &mut Results) -> Result<()> {
    tried(results, |results| {
        let peer = Peer::launch(options, BALLOON_GUEST_MIB, BALLOON_GUEST_MIB)?;
        balloon(&peer, options.rounds, results)
    })
}

/// Measures with another guest when one has died: in the nested host the emulator kills one now and
/// then. Nothing of an attempt that failed is kept, and that it failed is said.
fn tried(results: &mut Results, run: impl Fn(&mut Results) -> Result<()>) -> Result<()> {
    let mut left = ATTEMPTS;
    loop {
        let mut measured = Results::default();
        left -= 1;
        match run(&mut measured) {
            Ok(()) => {
                results.measured.append(&mut measured.measured);
                return Ok(());
            }
            Err(error) if left > 0 => println!("MEASURED AGAIN, as this attempt failed: {error:#}"),
            Err(error) => return Err(error),
        }
    }
}

/// The quota is in force when the host's cgroup has it: no guest is asked.
fn quota(options: &Options, results: &mut Results) -> Result<()> {
    let ours = Ours::launch(options, "0.5..1", "256M", &[])?;
    let (mut in_force, mut answered) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let cpus = if round % 2 == 0 {
            Cpus::whole(1)
        } else {
            Cpus(500)
        };
        let asked = Instant::now();
        let report = ours.ask_cpus(cpus)?;
        answered.push(ms(asked));
        in_force.extend(report.timeline_ms.get("quota").copied());
    }
    results.add("CPU quota", "concertina", "ms", &in_force);
    results.add("CPU quota, answered", "concertina", "ms", &answered);
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Rounds of vCPU and memory resizes.
fn sizes<M: Machine + Sync>(machine: &M, rounds: usize, results: &mut Results) -> Result<()> {
    let mut guest = Guest::watched(&machine.console(), WATCH)?;
    let (mut more_cpu, mut less_cpu, mut more_memory, mut less_memory) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    guest.run("mkdir -p /held; mount -t tmpfs -o size=95% held /held")?;
    for _ in 0..rounds {
        more_cpu.push(cpus(machine, &guest, 2)?);
        less_cpu.push(cpus(machine, &guest, 1)?);
        more_memory.push(grow(machine, &guest)?);
        guest.run("dd if=/dev/zero of=/held/file bs=1M count=480 2>/dev/null; rm /held/file")?;
        less_memory.push(shrink(machine, &guest)?);
    }
    let of = machine.name();
    results.add("+1 vCPU online in the guest", of, "ms", &more_cpu);
    results.add("-1 vCPU", of, "ms", &less_cpu);
    results.add("+512 MiB in the guest", of, "ms", &more_memory);
    results.add("-512 MiB off the host", of, "ms", &less_memory);
    Ok(())
}

/// Asks in another thread, since some answers come only when all is done; waits for `seen`.
fn timed<M: Machine + Sync>(
    machine: &M,
    wish: Wish,
    seen: impl FnOnce() -> Result<()>,
) -> Result<f64> {
    thread::scope(|scope| {
        let started = Instant::now();
        let asking = scope.spawn(|| machine.ask(wish));
        let waited = seen();
        let took = ms(started);
        match asking.join() {
            Ok(asked) => asked?,
            Err(_) => bail!("Asking for {wish:?} panicked"),
        }
        waited?;
        // The next round begins where this one has wholly ended.
        until(&format!("{wish:?} to be reached"), || machine.reached(wish))?;
        Ok(took)
    })
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !holds()? {
        if started.elapsed() > LIMIT {
            bail!("Not within {} s: {what}", LIMIT.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn cpus<M: Machine + Sync>(machine: &M, guest: &Guest, vcpus: u32) -> Result<f64> {
    let mark = guest.mark();
    timed(machine, Wish::Vcpus(vcpus), || {
        let what = format!("{vcpus} processors");
        guest
            .wait_for_size(&what, mark, |size| size.cpus == vcpus)
            .map(drop)
    })
}

fn grow<M: Machine + Sync>(machine: &M, guest: &Guest) -> Result<f64> {
    let before = guest.size()?.memory_kib;
    let mark = guest.mark();
    timed(machine, Wish::MemoryMib(GROWN_MIB), || {
        // Less than 512 MiB: the guest keeps its page descriptors from them.
        let enough = before + 500 * 1024;
        guest
            .wait_for_size("the memory", mark, |size| size.memory_kib >= enough)
            .map(drop)
    })
}

/// Done when the guest has given up the memory and the host has it.
fn shrink<M: Machine + Sync>(machine: &M, guest: &Guest) -> Result<f64> {
    let full = machine.resident_bytes()?;
    let before = guest.size()?.memory_kib;
    let mark = guest.mark();
    timed(machine, Wish::MemoryMib(BOOT_MIB), || {
        guest
            .wait_for_size("less memory", mark, |size| {
                size.memory_kib + 500 * 1024 <= before
            })
            .context("Shrinking")?;
        // What the guest had touched was nearly all of it; its kernel may have reported a part before.
        let low = full.min((GROWN_MIB + 64) * MIB).saturating_sub(400 * MIB);
        until("the host to have the memory", || {
            Ok(machine.resident_bytes()? <= low.max(BOOT_MIB * MIB))
        })
    })
}

/// Rounds of inflating by 512 MiB, most of which the guest has touched before.
fn balloon<M: Machine + Sync>(machine: &M, rounds: usize, results: &mut Results) -> Result<()> {
    let mut guest = Guest::watched(&machine.console(), WATCH)?;
    let (mut inflated, mut deflated) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        guest.run("concertina-guest load --cpu 0 --memory 540M --for 2s >/dev/null")?;
        for (mib, samples) in [(BALLOON_MIB, &mut inflated), (0, &mut deflated)] {
            let wish = Wish::BalloonMib(mib);
            samples.push(timed(machine, wish, || {
                until(&format!("a balloon of {mib} MiB"), || machine.reached(wish))
            })?);
        }
    }
    results.add("balloon 512 MiB inflated", machine.name(), "ms", &inflated);
    results.add("balloon 512 MiB deflated", machine.name(), "ms", &deflated);
    Ok(())
}
