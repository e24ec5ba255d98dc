//! KVM's own statistics of one VM, where this host shows them (debugfs,
//! `/sys/kernel/debug/kvm/<pid>-<fd>/`, for root).
//!
//! What they add to run time: a vCPU that halts is polled for by its thread for a while, and that
//! time looks like work of the guest. Where it is known it is taken off; where it is not, an idle
//! guest with many timers looks a little busier than it is.

use std::fs;
use std::path::{Path, PathBuf};

use super::counters::{CounterFile, Total};

/// Where debugfs shows the VMs of a host.
pub const DEBUGFS_KVM: &str = "/sys/kernel/debug/kvm";
/// Time spent in polling for a halted vCPU, in nanoseconds, whether an interrupt came or not.
const POLL_FILES: [&str; 2] = ["halt_poll_success_ns", "halt_poll_fail_ns"];

/// Statistics of one VM.
#[derive(Debug)]
pub struct KvmStatistics {
    polled_ns: Vec<(CounterFile, Total)>,
}

impl KvmStatistics {
    /// Those of the VM that process `pid` has made; `None` when they are not shown to us.
    pub fn find(shown_in: &Path, pid: i32) -> Option<Self> {
        let folder = folder_of(shown_in, pid)?;
        let file = |name: &str| (CounterFile::new(&folder.join(name)), Total::default());
        Some(Self {
            polled_ns: POLL_FILES.into_iter().map(file).collect(),
        })
    }

    /// Nanoseconds of polling since the last call, over all vCPUs; `None`: unknown.
    pub fn advance_polled(&mut self, buffer: &mut Vec<u8>) -> Option<u64> {
        let mut sum = Some(0u64);
        for (file, total) in &mut self.polled_ns {
            let now = file.read(buffer).and_then(|text| text.trim().parse().ok());
            let grown = total.advance(now);
            sum = sum.zip(grown).map(|(sum, grown)| sum.saturating_add(grown));
        }
        sum
    }
}

/// The first VM of a process: a vmm has one.
fn folder_of(shown_in: &Path, pid: i32) -> Option<PathBuf> {
    let prefix = format!("{pid}-");
    fs::read_dir(shown_in)
        .ok()?
        .filter_map(|entry| entry.ok())
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vm_of_a_process_is_found_and_its_polling_summed() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("42-9");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(temp.path().join("421-9")).unwrap();
        let set = |success: u64, fail: u64| {
            fs::write(folder.join(POLL_FILES[0]), format!("{success}\n")).unwrap();
            fs::write(folder.join(POLL_FILES[1]), format!("{fail}\n")).unwrap();
        };
        set(10, 20);
        let mut kvm = KvmStatistics::find(temp.path(), 42).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(
            kvm.advance_polled(&mut buffer),
            None,
            "no growth at the first look"
        );
        set(15, 40);
        assert_eq!(kvm.advance_polled(&mut buffer), Some(25));
        fs::write(folder.join(POLL_FILES[1]), "rubbish").unwrap();
        assert_eq!(kvm.advance_polled(&mut buffer), None);
    }

    #[test]
    fn a_host_that_shows_nothing_has_no_statistics() {
        assert!(KvmStatistics::find(Path::new("/nonexistent"), 42).is_none());
        let temp = tempfile::tempdir().unwrap();
        assert!(KvmStatistics::find(temp.path(), 42).is_none());
    }
}
