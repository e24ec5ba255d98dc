//! TCP between guest and host: `iperf3` both ways, and how long a small request takes.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Side;
use super::probe;
use crate::report::Results;

const SECONDS: u32 = 4;
const REQUESTS: u32 = 2000;
const LIMIT: Duration = Duration::from_secs(60);

/// The two ends of a tap interface.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Name of the interface on the host.
    pub tap: &'static str,
    /// Address of the host.
    pub host: &'static str,
    /// Address of the guest.
    pub guest: &'static str,
}

/// Runs everything on both sides, round by round.
pub fn measure(sides: &mut [Side; 2], rounds: usize, results: &mut Results) -> Result<()> {
    let mut servers = Vec::new();
    for side in sides.iter_mut() {
        address(side)?;
        servers.push(Server::start(side.link.host)?);
    }
    for (name, reverse) in [("TCP, guest to host", ""), ("TCP, host to guest", "-R")] {
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (side, samples) in sides.iter_mut().zip(&mut samples) {
                samples.push(throughput(side, reverse)?);
            }
        }
        for (side, samples) in sides.iter().zip(&samples) {
            results.add(name, side.name, "Mbit/s", samples);
        }
    }
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (side, samples) in sides.iter_mut().zip(&mut samples) {
            samples.push(round_trip(side)?);
        }
    }
    for (side, samples) in sides.iter().zip(&samples) {
        results.add("TCP request of 64 bytes", side.name, "us", samples);
    }
    Ok(())
}

/// Gives both ends their addresses, and waits until they reach each other.
fn address(side: &mut Side) -> Result<()> {
    let Link { tap, host, guest } = side.link;
    for arguments in [
        vec!["address", "add", &format!("{host}/24"), "dev", tap],
        vec!["link", "set", tap, "up"],
    ] {
        let done = Command::new("ip").args(&arguments).status()?;
        ensure!(done.success(), "ip {} failed", arguments.join(" "));
    }
    side.guest.run(&format!(
        "ip address add {guest}/24 dev eth0; ip link set lo up; ip link set eth0 up; echo up"
    ))?;
    let started = Instant::now();
    loop {
        let line = format!("ping -c 1 -W 1 {host} >/dev/null && echo reached");
        if side.guest.run(&line)? == "reached" {
            return Ok(());
        }
        if started.elapsed() > LIMIT {
            bail!(
                "The guest of {} does not reach its host at {host}",
                side.name
            );
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn throughput(side: &mut Side, reverse: &str) -> Result<f64> {
    let line = format!(
        "iperf3 -c {} -t {SECONDS} -O 1 -f m {reverse} | awk '/receiver/ {{print $7}}'",
        side.link.host
    );
    let text = side.guest.run(&line)?;
    text.parse()
        .with_context(|| format!("iperf3 in the guest of {} said '{text}'", side.name))
}

/// Median over many requests, in microseconds of the guest's clock.
fn round_trip(side: &mut Side) -> Result<f64> {
    let server = probe::Echo::start(side.link.host)?;
    let line = format!("bench probe ping {} {REQUESTS}", server.address());
    let text = side.guest.run(&line)?;
    text.parse()
        .with_context(|| format!("The probe in the guest of {} said '{text}'", side.name))
}

/// An `iperf3` server; ended when dropped.
struct Server(Child);

impl Server {
    fn start(address: &str) -> Result<Self> {
        Command::new("iperf3")
            .args(["-s", "-B", address])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .context("Starting iperf3 on the host")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
