//! Guest physical memory map (x86_64).
//!
//! ```text
//!          0 ┬ real-mode area
//!      0x500 │ GDT, zero page (0x7000), page tables (0x9000), PVH info (0x6000)
//!    0x20000 │ command line, at most 64 KiB
//!    0xa0000 ┼ hole: VGA and option ROMs of a PC; ACPI tables at 0xe0000
//!   0x100000 ┼ kernel, initrd, all boot RAM up to 3 GiB
//! 0xc0000000 ┼ 32-bit PCI window
//! 0xe8000000 │ ECAM, 1 bus
//! 0xfec00000 │ IOAPIC        0xfed20000 hotplug registers
//! 0xfee00000 │ local APICs   0xfffbd000 KVM's TSS
//! 0x1_0000_0000 ┼ rest of boot RAM
//!            ┼ elastic region (virtio-mem), 2 GiB aligned
//!            ┼ 64-bit PCI window
//! ```
//! The order of the last three is fixed, their places follow from the sizes.

/// GDT of the 64-bit and PVH entries.
pub const GDT: u64 = 0x500;
/// PVH `hvm_start_info`.
pub const PVH_INFO: u64 = 0x6000;
/// Linux zero page (`struct boot_params`); PVH memory map in the other boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// First of the identity-map page tables.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line with its NUL.
pub const CMDLINE_MAX: usize = 0x1_0000;
/// End of conventional memory.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI tables, starting with the RSDP (Linux also scans for it here).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// End of the space for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0x10_0000;
/// Start of high memory, where kernels are loaded.
pub const HIGH_RAM: u64 = 0x10_0000;
/// End of RAM below 4 GiB, start of the 32-bit PCI window.
pub const MMIO32: u64 = 0xc000_0000;
/// End of the 32-bit PCI window.
pub const MMIO32_END: u64 = 0xe800_0000;
/// PCI Express configuration space of bus 0.
pub const ECAM: u64 = 0xe800_0000;
/// Size of the ECAM: one bus, 32 devices, 8 functions, 4 KiB each.
pub const ECAM_SIZE: u64 = 1 << 20;
/// I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// CPU hotplug registers, 12 bytes.
pub const CPU_HOTPLUG: u64 = 0xfed2_0000;
/// Generic event device's event register, one read-to-clear byte.
pub const GED: u64 = 0xfed2_1000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// KVM's three-page TSS and, behind it, the identity map page (for real mode on old processors).
pub const KVM_TSS: usize = 0xfffb_d000;
/// See [`KVM_TSS`].
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Start of memory above the 32-bit hole.
pub const RAM_ABOVE_4G: u64 = 1 << 32;
/// Alignment of the elastic region: the largest memory block that Linux uses.
pub const ELASTIC_ALIGN: u64 = 2 << 30;
/// Size of the 64-bit PCI window.
pub const MMIO64_SIZE: u64 = 16 << 30;

/// Serial port COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// ACPI sleep control, sleep status and reset register, one byte.
pub const POWER_PORT: u16 = 0x600;
/// Interrupt of the generic event device.
pub const GED_IRQ: u32 = 9;
/// First GSI for message-signalled interrupts (the I/O APIC has 24 pins).
pub const FIRST_MSI_GSI: u32 = 24;

/// Where the parts of memory lie whose place follows from their sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMap {
    /// Bytes of boot RAM below the 32-bit hole.
    pub low_bytes: u64,
    /// Bytes of boot RAM from 4 GiB on.
    pub high_bytes: u64,
    /// Start of the elastic region.
    pub elastic_start: u64,
    /// Its size; 0 when memory is fixed.
    pub elastic_bytes: u64,
    /// Start of the 64-bit PCI window.
    pub mmio64_start: u64,
}

impl MemoryMap {
    /// Lays out so much boot RAM and so large an elastic region.
    pub fn new(boot_bytes: u64, elastic_bytes: u64) -> Self {
        let low_bytes = boot_bytes.min(MMIO32);
        let high_bytes = boot_bytes - low_bytes;
        let elastic_start = (RAM_ABOVE_4G + high_bytes).next_multiple_of(ELASTIC_ALIGN);
        let mmio64_start = (elastic_start + elastic_bytes).next_multiple_of(MMIO64_SIZE);
        Self {
            low_bytes,
            high_bytes,
            elastic_start,
            elastic_bytes,
            mmio64_start,
        }
    }

    /// Start and size of each range of boot RAM.
    pub fn boot_ranges(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        [(0, self.low_bytes), (RAM_ABOVE_4G, self.high_bytes)]
            .into_iter()
            .filter(|(_, len)| *len > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_ram_skips_the_hole_and_the_elastic_region_is_aligned() {
        let map = MemoryMap::new(6 << 30, 64 << 30);
        assert_eq!(map.low_bytes + map.high_bytes, 6 << 30);
        assert_eq!(map.boot_ranges().count(), 2);
        assert_eq!(map.elastic_start % ELASTIC_ALIGN, 0);
        assert!(map.elastic_start >= RAM_ABOVE_4G + map.high_bytes);
        assert!(map.mmio64_start >= map.elastic_start + map.elastic_bytes);
        assert_eq!(MemoryMap::new(256 << 20, 0).boot_ranges().count(), 1);
    }
}
