//! Boot to power-off, by this host's clock; meant for a host whose clock counts instructions.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::Options;
use crate::report::Results;

/// The clock repeats itself, so a few rounds show that it does.
const ROUNDS: usize = 3;

/// Launches an instance whose guest powers off as soon as its init runs.
pub fn measure(options: &Options, results: &mut Results) -> Result<()> {
    let (mut whole, mut at_init) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let state = tempfile::tempdir()?;
        let started = Instant::now();
        let output = Command::new("concertina")
            .args(["run", "--name", "boot", "--cpus", "1", "--memory", "256M"])
            .args(["--append", "concertina.poweroff", "--state-dir"])
            .arg(state.path())
            .arg("--kernel")
            .arg(&options.kernel)
            .arg("--initrd")
            .arg(&options.initrd)
            .output()
            .context("Starting 'concertina'")?;
        whole.push(started.elapsed().as_secs_f64());
        ensure!(
            output.status.success(),
            "The instance does not boot: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let log = std::fs::read(state.path().join("boot/console.log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&[log, output.stdout].concat()).into_owned();
        at_init.push(uptime_at_init(&said).context("The guest does not say when its init began")?);
    }
    results.add("boot to power-off", "concertina", "s", &whole);
    results.add("guest uptime at init", "concertina", "s", &at_init);
    Ok(())
}

/// Reads `concertina-guest: init at 1.234 s`.
fn uptime_at_init(said: &str) -> Option<f64> {
    let (_, rest) = said.split_once("init at ")?;
    rest.split_whitespace().next()?.parse().ok()
}
