//! What the latency rounds need of a VM, whoever runs it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// One size to ask for; each of them leaves the others alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// vCPUs online.
    Vcpus(u32),
    /// Memory in MiB, boot RAM included.
    MemoryMib(u64),
    /// Balloon in MiB.
    BalloonMib(u64),
}

/// A running VM.
pub trait Machine {
    /// Name in the results.
    fn name(&self) -> &'static str;
    /// Process of the VM.
    fn pid(&self) -> i32;
    /// Socket of the serial console.
    fn console(&self) -> PathBuf;
    /// Asks for a size. Returns when the VM's program has answered, which may be before the guest
    /// has done its part, or after.
    fn ask(&self, wish: Wish) -> Result<()>;
    /// Has the guest's driver reached a memory or balloon wish, as the VM's program sees it?
    fn reached(&self, wish: Wish) -> Result<bool>;

    /// Resident memory of the VM's process in bytes, by the cheapest counter that the host has.
    fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/statm", self.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
        let pages: u64 = text
            .split_whitespace()
            .nth(1)
            .and_then(|field| field.parse().ok())
            .with_context(|| format!("{path} has no resident size"))?;
        Ok(pages * 4096)
    }
}
