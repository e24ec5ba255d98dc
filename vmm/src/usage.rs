//! What the VM costs its host: resident memory of the guest's RAM and of everything else, from `smaps`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestRam;

/// Resident bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// In the guest's RAM.
    pub guest_bytes: u64,
    /// In the rest of this process.
    pub vmm_bytes: u64,
}

/// Reads it for this process.
///
/// # Errors
/// `/proc` cannot be read.
pub fn resident(ram: &GuestRam) -> io::Result<Resident> {
    let guest: Vec<(u64, u64)> = ram
        .iter()
        .map(|region| {
            let start = region.mapping().as_ptr() as u64;
            (start, start + region.len())
        })
        .collect();
    sum(BufReader::new(File::open("/proc/self/smaps")?), &guest)
}

/// Sums `Rss` lines of an `smaps` text, split by whether the mapping lies in one of the ranges.
fn sum(smaps: impl BufRead, guest: &[(u64, u64)]) -> io::Result<Resident> {
    let mut resident = Resident::default();
    let mut in_guest = false;
    for line in smaps.lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("Rss:") {
            let kib = rest
                .trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .unwrap_or(0);
            let total = if in_guest {
                &mut resident.guest_bytes
            } else {
                &mut resident.vmm_bytes
            };
            *total += kib << 10;
        } else if let Some((start, _)) = line.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            in_guest = guest.iter().any(|(from, to)| (*from..*to).contains(&start));
        }
    }
    Ok(resident)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_mappings_are_told_from_the_rest_even_when_split() {
        let text = "00400000-00500000 r-xp 00000000 fe:00 1 /bin/x\nSize: 1024 kB\nRss: 100 kB\n\
                    7f0000000000-7f0000200000 rw-p 00000000 00:00 0\nRss:\t 2048 kB\n\
                    7f0000200000-7f0000400000 ---p 00000000 00:00 0\nRss: 4 kB\n\
                    7ffff0000000-7ffff0021000 rw-p 0 00:00 0 [stack]\nRss: 16 kB\n";
        let guest = [(0x7f00_0000_0000, 0x7f00_0040_0000)];
        let resident = sum(text.as_bytes(), &guest).unwrap();
        assert_eq!(resident.guest_bytes, 2052 << 10);
        assert_eq!(resident.vmm_bytes, 116 << 10);
    }
}
