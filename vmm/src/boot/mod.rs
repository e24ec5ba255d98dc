//! Puts a kernel, its initrd and its command line into guest memory, and says how to enter it.
//!
//! Two protocols, told apart by magic: a bzImage by the 64-bit Linux boot protocol (the kernel
//! decompresses itself and keeps KASLR), an ELF vmlinux by PVH (no decompression).
//! Follows Linux `Documentation/arch/x86/boot.rst` and Xen's `start_info` (`pvh.pandoc`).

mod bzimage;
mod pvh;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{self, MemoryMap};
use crate::memory::GuestRam;

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit Linux boot protocol: long mode, RSI points to the zero page.
    Linux64 {
        /// Instruction pointer.
        rip: u64,
    },
    /// PVH: 32-bit protected mode without paging, EBX points to the start info.
    Pvh {
        /// Instruction pointer.
        eip: u64,
    },
}

/// Why a guest cannot be booted from these files.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Cannot be opened or read.
    #[error("{what} '{}' cannot be read", path.display())]
    Read {
        /// `Kernel` or `Initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Neither bzImage nor ELF.
    #[error(
        "Kernel '{}' is neither a bzImage ('HdrS' at offset 0x202) nor an ELF file: give a vmlinuz or vmlinux", path.display()
    )]
    NotAKernel {
        /// Which file.
        path: PathBuf,
    },
    /// A kernel, but not one that we can enter.
    #[error("Kernel '{}' cannot be booted: {why}", path.display())]
    Unsuitable {
        /// Which file.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// More than memory holds.
    #[error(
        "{what} needs {needed_bytes} bytes of guest memory between {from:#x} and {to:#x}, and there are {}: raise the lower bound of memory", to.saturating_sub(*from)
    )]
    NoRoom {
        /// `Kernel` or `Initrd`.
        what: &'static str,
        /// Its size in memory.
        needed_bytes: u64,
        /// Lowest address allowed.
        from: u64,
        /// End of the space.
        to: u64,
    },
    /// Too long.
    #[error("Kernel command line has {len} bytes, and the kernel takes at most {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// Longest allowed.
        max: usize,
    },
    /// A bug of ours: the layout says that the address is RAM.
    #[error("Guest memory cannot be written")]
    Memory(#[from] GuestMemoryError),
}

/// What to boot.
pub struct BootFiles<'a> {
    /// bzImage or vmlinux.
    pub kernel: &'a Path,
    /// Initial ram file system.
    pub initrd: Option<&'a Path>,
    /// Kernel command line.
    pub cmdline: &'a str,
}

/// Where the initrd is in guest memory.
#[derive(Debug, Clone, Copy, Default)]
struct Initrd {
    addr: u64,
    len: u64,
}

/// One line of the memory map that the kernel gets: address, bytes, is it RAM (else reserved).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MapEntry {
    addr: u64,
    len: u64,
    ram: bool,
}

/// Loads everything.
///
/// # Errors
/// See [`BootError`]; guest memory may have been written.
pub fn load(ram: &GuestRam, map: &MemoryMap, files: &BootFiles<'_>) -> Result<Entry, BootError> {
    let unreadable = |source| BootError::Read {
        what: "Kernel",
        path: files.kernel.into(),
        source,
    };
    let mut kernel = File::open(files.kernel).map_err(unreadable)?;
    let mut head = Vec::with_capacity(0x264);
    (&mut kernel)
        .take(0x264)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    kernel.seek(SeekFrom::Start(0)).map_err(unreadable)?;

    write_cmdline(ram, files.cmdline)?;
    if head.starts_with(b"\x7fELF") {
        pvh::load(ram, map, files, &mut kernel)
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        bzimage::load(ram, map, files, &mut kernel)
    } else {
        Err(BootError::NotAKernel {
            path: files.kernel.into(),
        })
    }
}

fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= layout::CMDLINE_MAX {
        let max = layout::CMDLINE_MAX - 1;
        return Err(BootError::CommandLine {
            len: cmdline.len(),
            max,
        });
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    let end = layout::CMDLINE + cmdline.len() as u64;
    Ok(ram.write_slice(&[0], GuestAddress(end))?)
}

/// Puts the initrd at the highest page below `limit` that leaves `[.., floor)` free.
fn load_initrd(
    ram: &GuestRam,
    path: Option<&Path>,
    floor: u64,
    limit: u64,
) -> Result<Option<Initrd>, BootError> {
    let Some(path) = path else { return Ok(None) };
    let unreadable = |source| BootError::Read {
        what: "Initrd",
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    let no_room = || BootError::NoRoom {
        what: "Initrd",
        needed_bytes: len,
        from: floor,
        to: limit,
    };
    let addr = limit.checked_sub(len).ok_or_else(no_room)? & !0xfff;
    if addr < floor {
        return Err(no_room());
    }
    let count = usize::try_from(len).map_err(|_| no_room())?;
    ram.read_exact_volatile_from(GuestAddress(addr), &mut file, count)?;
    Ok(Some(Initrd { addr, len }))
}

/// The map of RAM and reserved ranges. The elastic region is not in it: its driver adds it.
fn memory_map(map: &MemoryMap) -> Vec<MapEntry> {
    let high_low = map.low_bytes.saturating_sub(layout::HIGH_RAM);
    let mut entries = vec![
        MapEntry {
            addr: 0,
            len: layout::LOW_RAM_END,
            ram: true,
        },
        MapEntry {
            addr: layout::ACPI_TABLES,
            len: layout::ACPI_TABLES_END - layout::ACPI_TABLES,
            ram: false,
        },
        MapEntry {
            addr: layout::HIGH_RAM,
            len: high_low,
            ram: true,
        },
        // Linux uses the ECAM only where it finds it reserved.
        MapEntry {
            addr: layout::ECAM,
            len: layout::ECAM_SIZE,
            ram: false,
        },
    ];
    if map.high_bytes > 0 {
        entries.push(MapEntry {
            addr: layout::RAM_ABOVE_4G,
            len: map.high_bytes,
            ram: true,
        });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Mapping, RamRegion};
    use std::io::Write;
    use std::sync::Arc;

    fn boot(kernel: &[u8], initrd: Option<u64>) -> Result<Entry, BootError> {
        let bytes = 64 << 20;
        let region = RamRegion::fixed(0, Arc::new(Mapping::new(bytes, true).unwrap()));
        let ram = GuestRam::from_regions(vec![region]).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(kernel).unwrap();
        let initrd_file = tempfile::NamedTempFile::new().unwrap();
        initrd_file.as_file().set_len(initrd.unwrap_or(0)).unwrap();
        let files = BootFiles {
            kernel: file.path(),
            initrd: initrd.map(|_| initrd_file.path()),
            cmdline: "console=ttyS0",
        };
        load(&ram, &MemoryMap::new(bytes as u64, 0), &files)
    }

    /// A bzImage with a sane header and `extra` bytes of payload.
    fn bzimage(extra: usize) -> Vec<u8> {
        let mut image = vec![0u8; 0x400 + extra];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x211] = 1;
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
        image[0x234] = 1;
        image[0x236] = 1;
        image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_entry() {
        assert_eq!(
            boot(&bzimage(4096), None).unwrap(),
            Entry::Linux64 { rip: 0x100_0200 }
        );
    }

    #[test]
    fn files_that_are_no_kernel_are_refused_by_name() {
        for junk in [&b""[..], b"\x7fEL", b"#!/bin/sh\n", &[0u8; 4096]] {
            assert!(matches!(
                boot(junk, None),
                Err(BootError::NotAKernel { .. })
            ));
        }
        let error = boot(b"\x7fELF\x02\x01\x01", None).unwrap_err();
        assert!(matches!(error, BootError::Unsuitable { .. }), "{error}");
    }

    #[test]
    fn a_kernel_without_the_64_bit_entry_is_refused() {
        let mut image = bzimage(4096);
        image[0x236] = 0;
        assert!(matches!(
            boot(&image, None),
            Err(BootError::Unsuitable { .. })
        ));
    }

    #[test]
    fn a_truncated_bzimage_is_refused() {
        let mut image = bzimage(4096);
        image[0x1f4..0x1f8].copy_from_slice(&0x10_0000u32.to_le_bytes());
        assert!(matches!(
            boot(&image, None),
            Err(BootError::Unsuitable { .. })
        ));
    }

    #[test]
    fn a_kernel_or_initrd_larger_than_memory_is_refused_with_numbers() {
        let mut image = bzimage(4096);
        image[0x260..0x264].copy_from_slice(&0x1000_0000u32.to_le_bytes());
        assert!(matches!(
            boot(&image, None),
            Err(BootError::NoRoom { what: "Kernel", .. })
        ));
        let error = boot(&bzimage(4096), Some(60 << 20)).unwrap_err();
        assert!(
            matches!(error, BootError::NoRoom { what: "Initrd", .. }),
            "{error}"
        );
    }
}
