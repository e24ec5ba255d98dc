//! bzImage by the 64-bit entry of the Linux boot protocol (version 2.12 and later).

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{BootError, BootFiles, Entry, Initrd, load_initrd, memory_map};
use crate::acpi::RSDP;
use crate::layout::{self, MemoryMap};
use crate::memory::GuestRam;

/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry from where the kernel is loaded.
const ENTRY_64: u64 = 0x200;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Where the setup header lies in the file.
const HEADER_OFFSET: u64 = 0x1f1;
/// `syssize` counts paragraphs.
const PARAGRAPH: u64 = 16;

pub(super) fn load(
    ram: &GuestRam,
    map: &MemoryMap,
    files: &BootFiles<'_>,
    kernel: &mut File,
) -> Result<Entry, BootError> {
    let unsuitable = |why: String| BootError::Unsuitable {
        path: files.kernel.into(),
        why,
    };
    let header = read_header(files, kernel)?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < 0x20c || flags & XLF_KERNEL_64 == 0 {
        return Err(unsuitable(format!(
            "it has no 64-bit entry (boot protocol {version:#x}, load flags {flags:#x}): a 64-bit Linux 3.8 or later is needed"
        )));
    }
    let cmdline_max = header.cmdline_size as usize;
    if files.cmdline.len() > cmdline_max {
        return Err(BootError::CommandLine {
            len: files.cmdline.len(),
            max: cmdline_max,
        });
    }

    let load_addr = header.pref_address;
    // The kernel decompresses itself in place and needs this much, not just what the file holds.
    let init_size = u64::from(header.init_size);
    let kernel_end = load_addr.saturating_add(init_size);
    if load_addr < layout::HIGH_RAM || kernel_end > map.low_bytes {
        let (from, to) = (layout::HIGH_RAM, map.low_bytes);
        let needed_bytes = kernel_end.saturating_sub(layout::HIGH_RAM);
        return Err(BootError::NoRoom {
            what: "Kernel",
            needed_bytes,
            from,
            to,
        });
    }
    let file_bytes = kernel.metadata().map_or(0, |m| m.len());
    let setup_bytes = (u64::from(header.setup_sects.max(1)) + 1) * 512;
    let stated = setup_bytes + u64::from(header.syssize) * PARAGRAPH;
    // `syssize` is rounded up to a paragraph, so up to 15 bytes may be missing in a whole file.
    if file_bytes + PARAGRAPH <= stated {
        return Err(unsuitable(format!(
            "it is truncated: its header says {stated} bytes, the file has {file_bytes}"
        )));
    }
    BzImage::load(ram, Some(GuestAddress(load_addr)), kernel, None)
        .map_err(|error| unsuitable(error.to_string()))?;

    let limit = map.low_bytes.min(u64::from(header.initrd_addr_max) + 1);
    let initrd = load_initrd(ram, files.initrd, kernel_end, limit)?;
    let params = zero_page(header, map, files, initrd.unwrap_or_default());
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(Entry::Linux64 {
        rip: load_addr + ENTRY_64,
    })
}

fn read_header(files: &BootFiles<'_>, kernel: &File) -> Result<setup_header, BootError> {
    let mut header = setup_header::default();
    kernel
        .read_exact_at(header.as_mut_slice(), HEADER_OFFSET)
        .map_err(|source| BootError::Read {
            what: "Kernel",
            path: files.kernel.into(),
            source,
        })?;
    Ok(header)
}

fn zero_page(
    header: setup_header,
    map: &MemoryMap,
    files: &BootFiles<'_>,
    initrd: Initrd,
) -> boot_params {
    let mut params = boot_params {
        hdr: header,
        ..Default::default()
    };
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = files.cmdline.len() as u32;
    params.hdr.ramdisk_image = initrd.addr as u32;
    params.hdr.ramdisk_size = initrd.len as u32;
    params.acpi_rsdp_addr = RSDP;
    let entries = memory_map(map);
    for (slot, entry) in params.e820_table.iter_mut().zip(&entries) {
        let type_ = if entry.ram { E820_RAM } else { E820_RESERVED };
        *slot = boot_e820_entry {
            addr: entry.addr,
            size: entry.len,
            r#type: type_,
        };
    }
    params.e820_entries = entries.len() as u8;
    params
}
