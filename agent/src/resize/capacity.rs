//! Room on the host for growth as its kernel sees it at the moment: all that a process of one
//! instance can ask, and what an agent asks beside its ledger.

use std::fs;
use std::path::{Path, PathBuf};

use concertina_api::Bytes;
use concertina_api::policy::Axis;

use super::books::{Books, Step};
use crate::journal::IntentId;

/// What a host keeps for itself.
const HOST_MARGIN: Bytes = Bytes::mib(64);

/// The host's memory as its kernel sees it at the moment. It knows nothing of what other instances
/// were promised and have not touched.
#[derive(Debug, Clone)]
pub struct HostMemory {
    meminfo: PathBuf,
}

impl HostMemory {
    /// Reads a file like `/proc/meminfo`.
    pub fn new(meminfo: &Path) -> Self {
        Self {
            meminfo: meminfo.to_owned(),
        }
    }

    /// Says whether memory may grow by so much. Growth may happen on what is not known to be missing:
    /// an unreadable figure refuses nothing.
    ///
    /// # Errors
    /// A sentence with the numbers.
    pub fn has_room(&self, growth: Bytes) -> Result<(), String> {
        match self.available() {
            Some(available) if growth.get().saturating_add(HOST_MARGIN.get()) > available.get() => {
                Err(format!(
                    "host_short_of_memory: {growth} more is wanted, and the host has {available} \
                     available, of which it keeps {HOST_MARGIN}"
                ))
            }
            _ => Ok(()),
        }
    }

    fn available(&self) -> Option<Bytes> {
        let text = fs::read_to_string(&self.meminfo).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024).map(Bytes)
    }
}

impl Books for HostMemory {
    fn begin(&self, step: &Step<'_>) -> Result<Option<IntentId>, String> {
        let growth = step.target.saturating_sub(step.before);
        if step.axis == Axis::Memory && growth > 0 {
            self.has_room(Bytes(growth))?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_what_is_available_is_refused_with_both_numbers() {
        let temp = tempfile::tempdir().unwrap();
        let meminfo = temp.path().join("meminfo");
        fs::write(
            &meminfo,
            "MemTotal: 4194304 kB\nMemAvailable:  1048576 kB\n",
        )
        .unwrap();
        let host = HostMemory::new(&meminfo);
        assert!(host.has_room(Bytes::mib(512)).is_ok());
        let error = host.has_room(Bytes::mib(1000)).unwrap_err();
        assert!(error.contains("1000M") && error.contains("1G"), "{error}");
    }

    #[test]
    fn an_unknown_figure_refuses_nothing() {
        let host = HostMemory::new(Path::new("/nonexistent"));
        assert!(host.has_room(Bytes(u64::MAX)).is_ok());
        assert!(
            HostMemory::new(Path::new("/proc/meminfo"))
                .available()
                .is_some()
        );
    }
}
