//! ELF vmlinux by the PVH entry, which its note of type 18 (`XEN_ELFNOTE_PHYS32_ENTRY`) names.

use std::fs::File;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootFiles, Entry, load_initrd, memory_map};
use crate::acpi::RSDP;
use crate::layout::{self, MemoryMap};
use crate::memory::GuestRam;

const START_MAGIC: u32 = 0x336e_c578;
const MODULE_LIST: u64 = layout::PVH_INFO + 0x40;
/// Memory map; the zero page's place is free in this protocol.
const MEMORY_MAP: u64 = layout::ZERO_PAGE;
const TYPE_RAM: u32 = 1;
const TYPE_RESERVED: u32 = 2;

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
    let high = Some(GuestAddress(layout::HIGH_RAM));
    let loaded =
        Elf::load(ram, None, kernel, high).map_err(|error| unsuitable(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(unsuitable(
            "it has no PVH entry (an ELF kernel needs CONFIG_PVH=y; a bzImage does not)".into(),
        ));
    };

    let initrd = load_initrd(ram, files.initrd, loaded.kernel_end, map.low_bytes)?;
    let mut info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: RSDP,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.addr,
            size: initrd.len,
            ..Default::default()
        };
        ram.write_obj(module, GuestAddress(MODULE_LIST))?;
        info.nr_modules = 1;
        info.modlist_paddr = MODULE_LIST;
    }
    let mut place = MEMORY_MAP;
    for entry in memory_map(map) {
        let type_ = if entry.ram { TYPE_RAM } else { TYPE_RESERVED };
        let line = hvm_memmap_table_entry {
            addr: entry.addr,
            size: entry.len,
            type_,
            reserved: 0,
        };
        ram.write_obj(line, GuestAddress(place))?;
        place += std::mem::size_of::<hvm_memmap_table_entry>() as u64;
        info.memmap_entries += 1;
    }
    ram.write_obj(info, GuestAddress(layout::PVH_INFO))?;
    Ok(Entry::Pvh { eip: entry.0 })
}
