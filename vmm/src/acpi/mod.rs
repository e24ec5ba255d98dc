//! ACPI tables (ACPI 6.5): hardware-reduced, no firmware behind them. Power, processors, memory
//! affinity, PCI; written to guest memory where the kernel also scans for them.

mod dsdt;

use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::{Aml, rsdp::Rsdp};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::power::RESET_VALUE;
use crate::error::VmmError;
use crate::layout::{self, MemoryMap};
use crate::memory::GuestRam;

/// Guest address of the root pointer.
pub const RSDP: u64 = layout::ACPI_TABLES;

const OEM: [u8; 6] = *b"CONCER";
const OEM_TABLE: [u8; 8] = *b"CONCRTNA";

/// What the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// vCPUs at boot.
    pub boot_vcpus: u32,
    /// vCPUs ever.
    pub max_vcpus: u32,
    /// Memory.
    pub map: MemoryMap,
}

fn table(signature: &[u8; 4], length: u32, revision: u8) -> Sdt {
    Sdt::new(*signature, length, revision, OEM, OEM_TABLE, 1)
}

/// One x2APIC entry (§5.2.12.12): absent but possible vCPUs are "online capable".
pub(crate) fn x2apic_entry(vcpu: u32, enabled: bool) -> [u8; 16] {
    let flags: u32 = if enabled { 1 } else { 2 };
    let mut entry = [0; 16];
    let words = [0x1009u32, vcpu, flags, vcpu];
    for (bytes, word) in entry.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    entry
}

fn madt(machine: &Machine) -> Sdt {
    let mut madt = table(b"APIC", 44, 5);
    madt.write_u32(36, layout::LAPIC);
    for vcpu in 0..machine.max_vcpus {
        madt.append_slice(&x2apic_entry(vcpu, vcpu < machine.boot_vcpus));
    }
    // I/O APIC (§5.2.12.3): id 0, interrupts from 0.
    let mut ioapic = [0u8; 12];
    ioapic[..2].copy_from_slice(&[1, 12]);
    ioapic[4..8].copy_from_slice(&layout::IOAPIC.to_le_bytes());
    madt.append_slice(&ioapic);
    madt
}

/// System resource affinity (§5.2.16): one node; the elastic region is hot-pluggable, so that the
/// kernel knows how far memory may reach (DMA masks, node of the region) before there is any.
fn srat(machine: &Machine) -> Sdt {
    const ENABLED: u32 = 1;
    const HOT_PLUGGABLE: u32 = 2;
    let mut srat = table(b"SRAT", 48, 3);
    srat.write_u32(36, 1);
    for vcpu in 0..machine.max_vcpus {
        // Processor local x2APIC affinity: type 2, 24 bytes, node 0.
        let mut entry = [0u8; 24];
        entry[..2].copy_from_slice(&[2, 24]);
        entry[8..12].copy_from_slice(&vcpu.to_le_bytes());
        entry[12..16].copy_from_slice(&ENABLED.to_le_bytes());
        srat.append_slice(&entry);
    }
    let elastic = (machine.map.elastic_start, machine.map.elastic_bytes);
    let ranges = machine.map.boot_ranges().map(|r| (r, ENABLED));
    let elastic = (elastic.1 > 0).then_some((elastic, ENABLED | HOT_PLUGGABLE));
    for ((start, len), flags) in ranges.chain(elastic) {
        // Memory affinity: type 1, 40 bytes, node 0.
        let mut entry = [0u8; 40];
        entry[..2].copy_from_slice(&[1, 40]);
        entry[8..16].copy_from_slice(&start.to_le_bytes());
        entry[16..24].copy_from_slice(&len.to_le_bytes());
        entry[28..32].copy_from_slice(&flags.to_le_bytes());
        srat.append_slice(&entry);
    }
    srat
}

/// PCI Express memory-mapped configuration space (PCI Firmware 3.3 §4.1.2).
fn mcfg() -> Sdt {
    let mut mcfg = table(b"MCFG", 44, 1);
    mcfg.append(layout::ECAM);
    mcfg.append(0u64); // segment 0, buses 0 to 0
    mcfg
}

/// Fixed description (§5.2.9), hardware-reduced: no PM timer, no SCI; sleep and reset by one port.
fn fadt(dsdt: u64) -> Sdt {
    const LENGTH: u32 = 276;
    const IAPC_BOOT_ARCH: usize = 109;
    const FLAGS: usize = 112;
    const RESET_REG: usize = 116;
    const RESET_VALUE_AT: usize = 128;
    const MINOR_VERSION: usize = 131;
    const X_DSDT: usize = 140;
    const SLEEP_CONTROL: usize = 244;
    const SLEEP_STATUS: usize = 256;
    /// No VGA, no CMOS clock; the 8042 and legacy-device bits are clear, so they are not probed.
    const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;
    /// Reset register, hardware-reduced; both buttons are not fixed ones.
    const WANTED: u32 = 1 << 10 | 1 << 20 | 1 << 4 | 1 << 5;
    let mut fadt = table(b"FACP", LENGTH, 6);
    let port = GenericAddress::io_port_address::<u8>(layout::POWER_PORT);
    fadt.write_u16(IAPC_BOOT_ARCH, NO_VGA_NO_CMOS);
    fadt.write_u32(FLAGS, WANTED);
    fadt.write(RESET_REG, port);
    fadt.write_u8(RESET_VALUE_AT, RESET_VALUE);
    fadt.write_u8(MINOR_VERSION, 5);
    fadt.write_u64(X_DSDT, dsdt);
    fadt.write(SLEEP_CONTROL, port);
    fadt.write(SLEEP_STATUS, port);
    fadt
}

/// Writes all tables.
///
/// # Errors
/// They do not fit, which is a bug of ours.
pub fn write_tables(ram: &GuestRam, machine: &Machine) -> Result<(), VmmError> {
    let mut next = RSDP + Rsdp::len().next_multiple_of(16) as u64;
    let mut place = |bytes: &[u8]| -> Result<u64, VmmError> {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        if next > layout::ACPI_TABLES_END {
            return Err(VmmError::Bug("ACPI tables do not fit"));
        }
        ram.write_slice(bytes, GuestAddress(at))?;
        Ok(at)
    };
    let dsdt = place(dsdt::build(machine).as_slice())?;
    let tables = [
        place(fadt(dsdt).as_slice())?,
        place(madt(machine).as_slice())?,
        place(srat(machine).as_slice())?,
        place(mcfg().as_slice())?,
    ];
    let mut xsdt = table(b"XSDT", 36, 1);
    for address in tables {
        xsdt.append(address);
    }
    let xsdt = place(xsdt.as_slice())?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    Ok(ram.write_slice(&rsdp, GuestAddress(RSDP))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            boot_vcpus: 2,
            max_vcpus: 254,
            map: MemoryMap::new(256 << 20, 64 << 30),
        }
    }

    #[test]
    fn every_table_sums_to_zero_and_all_fit() {
        let m = machine();
        for t in [madt(&m), srat(&m), mcfg(), fadt(0), dsdt::build(&m)] {
            let sum = t.as_slice().iter().fold(0u8, |a, b| a.wrapping_add(*b));
            assert_eq!(sum, 0);
        }
        let mapping = std::sync::Arc::new(crate::memory::Mapping::new(2 << 20, true).unwrap());
        let ram =
            GuestRam::from_regions(vec![crate::memory::RamRegion::fixed(0, mapping)]).unwrap();
        write_tables(&ram, &m).unwrap();
        assert_eq!(
            &ram.read_obj::<[u8; 8]>(GuestAddress(RSDP)).unwrap(),
            b"RSD PTR "
        );
    }

    #[test]
    fn absent_vcpus_are_online_capable_and_never_also_enabled() {
        assert_eq!(x2apic_entry(3, true)[8], 1);
        assert_eq!(x2apic_entry(3, false)[8], 2);
        assert_eq!(madt(&machine()).as_slice().len(), 44 + 254 * 16 + 12);
    }
}
