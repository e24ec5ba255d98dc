//! Pressure stall information of a cgroup: how long something in it had to wait, as a running total,
//! and triggers by which the kernel says at once that it waits too long.
//! Follows the kernel's `Documentation/accounting/psi.rst`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

/// Microseconds in which something waited, since the group was made: `total` of the line `some`.
pub fn parse_some_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = line
        .split_ascii_whitespace()
        .find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok()
}

/// A trigger: its descriptor gets `POLLPRI` when `stall_us` of waiting come together in a window.
#[derive(Debug)]
pub struct Trigger(File);

/// Windows that the kernel takes, in microseconds: the shortest one useful to us, and the shortest
/// one that it takes from the unprivileged.
const WINDOWS_US: [u64; 2] = [500_000, 2_000_000];

impl Trigger {
    /// Watches a pressure file for waiting of more than `percent` of a window.
    ///
    /// # Errors
    /// The kernel has no pressure information, or takes no trigger from us.
    pub fn new(pressure: &Path, percent: u64) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::InvalidInput);
        for window_us in WINDOWS_US {
            let mut file = OpenOptions::new().read(true).write(true).open(pressure)?;
            let stall_us = window_us / 100 * percent.clamp(1, 100);
            // The kernel expects the terminating NUL to be part of the write.
            match file.write_all(format!("some {stall_us} {window_us}\0").as_bytes()) {
                Ok(()) => return Ok(Self(file)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Its descriptor, to be polled for `POLLPRI`.
    pub fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_some_is_read_and_nothing_else() {
        let text = "some avg10=0.00 avg60=0.12 avg300=0.04 total=4711\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        assert_eq!(parse_some_total(text), Some(4711));
        assert_eq!(parse_some_total("full avg10=0 total=9\n"), None);
        assert_eq!(parse_some_total("some avg10=0.00\n"), None);
        assert_eq!(parse_some_total("some total=x\n"), None);
        assert_eq!(parse_some_total(""), None);
    }

    #[test]
    fn a_kernel_without_pressure_gives_an_error_not_a_trigger() {
        assert!(Trigger::new(Path::new("/nonexistent/memory.pressure"), 10).is_err());
    }
}
