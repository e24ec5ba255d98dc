//! Disks of an instance: how they are asked for, what they are, and how their rate is changed.
//!
//! On the command line a disk is `PATH[,ro][,cached][,serial=S][,rate=RATE]`; the rate, which has commas of its
//! own, comes last.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::io::IoRate;
use crate::units::{Bytes, UnitError};

/// Longest serial number, bytes: what the guest's driver has room for.
pub const SERIAL_MAX_BYTES: usize = 20;
/// Most disks of one instance.
pub const DISKS_MAX: usize = 16;

/// One disk, in the words of whoever starts an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Raw image file, or block device.
    pub path: PathBuf,
    /// The guest cannot write to it; several instances may have it at once.
    #[serde(default)]
    pub read_only: bool,
    /// Reads and writes go through the host's page cache, whose pages then count as memory of the
    /// instance. Otherwise they go around it, where the file system can.
    #[serde(default)]
    pub cached: bool,
    /// What the guest sees as the disk's serial number: 1 to 20 letters, digits, `-`, `_`, `.`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Limit at the start.
    #[serde(default)]
    pub rate: IoRate,
}

impl DiskSpec {
    /// A writable disk without serial number or limit.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            cached: false,
            serial: None,
            rate: IoRate::MAX,
        }
    }

    /// Checks what can be checked without looking at the host.
    ///
    /// # Errors
    /// A sentence that names the disk, what is wrong and what is allowed.
    pub fn check(&self) -> Result<(), UnitError> {
        let Some(serial) = &self.serial else {
            return Ok(());
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !(1..=SERIAL_MAX_BYTES).contains(&serial.len()) || !serial.bytes().all(allowed) {
            return Err(UnitError(format!(
                "Disk '{}' has serial '{serial}': 1 to {SERIAL_MAX_BYTES} of a-z, A-Z, 0-9, '-', '_' \
                 and '.' are allowed",
                self.path.display()
            )));
        }
        Ok(())
    }
}

impl FromStr for DiskSpec {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (words, rate) = match text.split_once(",rate=") {
            Some((words, rate)) => (words, rate.parse()?),
            None => (text, IoRate::MAX),
        };
        let mut words = words.split(',');
        let path = words.next().unwrap_or_default();
        if path.is_empty() {
            return Err(UnitError(format!(
                "Disk '{text}' has no path: write PATH[,ro][,cached][,serial=S][,rate=RATE]"
            )));
        }
        let mut disk = Self {
            rate,
            ..Self::new(path)
        };
        for word in words {
            match word.split_once('=') {
                None if word == "ro" => disk.read_only = true,
                None if word == "cached" => disk.cached = true,
                Some(("serial", serial)) => disk.serial = Some(serial.to_owned()),
                _ => {
                    return Err(UnitError(format!(
                        "Disk '{text}' has the option '{word}': ro, cached, serial=S and, as the \
                         last one, rate=RATE are allowed (a path cannot have a comma)"
                    )));
                }
            }
        }
        disk.check()?;
        Ok(disk)
    }
}

/// A disk as it is. Counters count from the start of the VM, and only ever grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskStatus {
    /// Image file or block device.
    pub path: PathBuf,
    /// What the guest sees.
    pub capacity: Bytes,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Serial number, if it has one.
    pub serial: Option<String>,
    /// Limit in force.
    pub rate: IoRate,
    /// How it is accessed: `io_uring`, or `thread` where the kernel has none.
    pub engine: String,
    /// Reads and writes go around the host's page cache.
    pub direct: bool,
    /// Bytes read by the guest.
    pub read_bytes: u64,
    /// Bytes written by the guest.
    pub written_bytes: u64,
    /// Reads that were done.
    pub reads: u64,
    /// Writes that were done.
    pub writes: u64,
    /// Flushes that were done.
    pub flushes: u64,
    /// Discards and writes of zeroes that were done.
    pub discards: u64,
    /// Requests that had to wait for the limit.
    pub throttled: u64,
    /// Requests that failed because the image or device did; the guest was told so.
    pub errors: u64,
    /// What the last of them met.
    pub last_error: Option<String>,
    /// Requests of the driver that were refused because they are invalid.
    pub bad_requests: u64,
}

/// A new limit for one disk or for all.
///
/// On the command line: `RATE` for all disks, `N=RATE` for the disk of number N, which counts from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskRate {
    /// Number of the disk, from 0; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<usize>,
    /// The limit.
    pub rate: IoRate,
}

impl FromStr for DiskRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        // "burst=" has the same sign, but no number before it.
        let numbered = text
            .split_once('=')
            .filter(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let Some((number, rate)) = numbered else {
            let rate = text.parse()?;
            return Ok(Self { disk: None, rate });
        };
        let disk = number.parse().map_err(|_| {
            UnitError(format!(
                "Disk number '{number}' is not allowed: disks count from 0 to {}",
                DISKS_MAX - 1
            ))
        })?;
        Ok(Self {
            disk: Some(disk),
            rate: rate.parse()?,
        })
    }
}

impl fmt::Display for DiskRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.disk {
            Some(number) => write!(f, "{number}={}", self.rate),
            None => self.rate.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_path_with_options() {
        let disk: DiskSpec = "/srv/a.img".parse().unwrap();
        assert_eq!(disk, DiskSpec::new("/srv/a.img"));
        let disk: DiskSpec = "a.img,ro,cached,serial=data-1,rate=10M,burst=1M,50iops"
            .parse()
            .unwrap();
        assert!(disk.read_only && disk.cached);
        assert_eq!(disk.serial.as_deref(), Some("data-1"));
        assert_eq!(disk.rate, "10M,burst=1M,50iops".parse().unwrap());
    }

    #[test]
    fn a_wrong_disk_is_refused_with_what_is_wrong() {
        for (text, named) in [
            ("", "no path"),
            (",ro", "no path"),
            ("a.img,rw", "'rw'"),
            ("a.img,serial=", "1 to 20"),
            ("a.img,serial=123456789012345678901", "1 to 20"),
            ("a.img,serial=a b", "'a b'"),
            ("a.img,rate=fast", "'fast'"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_new_rate_is_for_all_disks_or_for_one() {
        let all: DiskRate = "10M,burst=1M".parse().unwrap();
        assert_eq!((all.disk, all.to_string().as_str()), (None, "10M,burst=1M"));
        let one: DiskRate = "2=500iops".parse().unwrap();
        assert_eq!((one.disk, one.to_string().as_str()), (Some(2), "2=500iops"));
        for text in [
            "",
            "=1M",
            "x=1M",
            "1=",
            "1=fast",
            "99999999999999999999999=1M",
        ] {
            assert!(text.parse::<DiskRate>().is_err(), "{text}");
        }
    }
}
