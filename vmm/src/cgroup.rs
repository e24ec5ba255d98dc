//! The vmm's side of its cgroup (cgroup v2, threaded): vCPU threads in `vcpu`, whose quota moves; all
//! other threads in `emu`, which is never throttled, so that a small quota does not starve I/O.
//!
//! The folder itself, its memory ceiling and its end belong to whoever started us.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use concertina_api::vm::cgroup;
use concertina_api::{Cpus, Quota};

use crate::error::VmmError;

/// Period of the quota. Short, so that a guest with a fraction of a CPU stalls for milliseconds, not
/// for most of a tenth of a second.
const PERIOD_US: u64 = 20_000;
/// Least quota that the kernel takes.
const LEAST_QUOTA_US: u64 = 1_000;

/// The two groups.
#[derive(Debug)]
pub struct Cgroup {
    vcpu: PathBuf,
    emu: PathBuf,
}

fn write(path: &Path, text: &str) -> Result<(), VmmError> {
    fs::write(path, text).map_err(VmmError::host(format!(
        "'{text}' cannot be written to '{}'",
        path.display()
    )))
}

impl Cgroup {
    /// Makes both groups under `parent`, in which this process already is.
    ///
    /// # Errors
    /// No cgroup v2, no CPU controller there, or not ours to change.
    pub fn new(parent: &Path) -> Result<Self, VmmError> {
        let group = |name: &str| -> Result<PathBuf, VmmError> {
            let path = parent.join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    let what = format!("Cgroup '{}' cannot be made", path.display());
                    return Err(VmmError::host(what)(error));
                }
                _ => {}
            }
            write(&path.join("cgroup.type"), "threaded")?;
            Ok(path)
        };
        let (vcpu, emu) = (group(cgroup::VCPU)?, group(cgroup::OTHERS)?);
        write(&parent.join("cgroup.subtree_control"), "+cpu")?;
        Ok(Self { vcpu, emu })
    }

    /// Puts vCPU threads where the quota holds.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_vcpu(&self, tid: i32) -> Result<(), VmmError> {
        write(&self.vcpu.join("cgroup.threads"), &tid.to_string())
    }

    /// Puts another thread where it is not throttled.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_other(&self, tid: i32) -> Result<(), VmmError> {
        write(&self.emu.join("cgroup.threads"), &tid.to_string())
    }

    /// Sets the quota of all vCPUs together.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_quota(&self, quota: Quota) -> Result<(), VmmError> {
        write(&self.vcpu.join("cpu.max"), &cpu_max(quota))
    }

    /// The quota in force, read back from the kernel.
    pub fn quota(&self) -> Option<Quota> {
        parse_cpu_max(&fs::read_to_string(self.vcpu.join("cpu.max")).ok()?)
    }
}

fn cpu_max(quota: Quota) -> String {
    match quota {
        Quota::Max => format!("max {PERIOD_US}"),
        Quota::Limited(cpus) => {
            let quota_us = u64::from(cpus.milli()) * PERIOD_US / 1000;
            format!("{} {PERIOD_US}", quota_us.max(LEAST_QUOTA_US))
        }
    }
}

fn parse_cpu_max(text: &str) -> Option<Quota> {
    let (quota, period) = text.trim().split_once(' ')?;
    if quota == "max" {
        return Some(Quota::Max);
    }
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    let milli = quota.checked_mul(1000)?.checked_div(period)?;
    Some(Quota::Limited(Cpus(u32::try_from(milli).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_survives_the_kernels_format() {
        for quota in [
            Quota::Max,
            Quota::Limited(Cpus(500)),
            Quota::Limited(Cpus(2500)),
        ] {
            assert_eq!(parse_cpu_max(&cpu_max(quota)), Some(quota));
        }
        assert_eq!(
            cpu_max(Quota::Limited(Cpus(10))),
            "1000 20000",
            "the kernel's least"
        );
        assert_eq!(parse_cpu_max("max 100000\n"), Some(Quota::Max));
        assert_eq!(parse_cpu_max("1 0"), None);
    }
}
