//! First state of vCPU 0 for each boot protocol, and the MSRs of all vCPUs.
//!
//! The other vCPUs need none: the in-kernel local APIC holds them until the guest sends INIT-SIPI.

use kvm_bindings::{Msrs, kvm_dtable, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Entry;
use crate::error::VmmError;
use crate::layout;
use crate::memory::GuestRam;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PDE_PRESENT_RW: u64 = 0x3;
const PDE_HUGE: u64 = 0x80;

const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;

/// GDT entries: selector 0x10 is code, 0x18 data, 0x20 TSS, as the boot protocols ask.
fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    let code_or_data = selector != 0x20;
    kvm_segment {
        base: 0,
        limit: if code_or_data { 0xffff_ffff } else { 0x67 },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(code_or_data && !long),
        s: u8::from(code_or_data),
        l: u8::from(long),
        g: u8::from(code_or_data),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The descriptor-table form of a segment.
fn descriptor(s: &kvm_segment) -> u64 {
    let limit = u64::from(if s.g == 1 { s.limit >> 12 } else { s.limit });
    let flags = u64::from(s.type_)
        | u64::from(s.s) << 4
        | u64::from(s.dpl) << 5
        | u64::from(s.present) << 7
        | u64::from(s.avl) << 12
        | u64::from(s.l) << 13
        | u64::from(s.db) << 14
        | u64::from(s.g) << 15;
    (s.base & 0xff00_0000) << 32
        | flags << 40
        | (limit & 0xf_0000) << 32
        | (s.base & 0xff_ffff) << 16
        | limit & 0xffff
}

/// Identity map of the first GiB by 2 MiB pages: kernel, zero page and command line lie in it.
fn write_page_tables(ram: &GuestRam) -> Result<(), VmmError> {
    let (pml4, pdpt, pd) = (
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + 0x1000,
        layout::PAGE_TABLES + 0x2000,
    );
    ram.write_obj(pdpt | PDE_PRESENT_RW, GuestAddress(pml4))?;
    ram.write_obj(pd | PDE_PRESENT_RW, GuestAddress(pdpt))?;
    for i in 0..512u64 {
        ram.write_obj(
            i << 21 | PDE_HUGE | PDE_PRESENT_RW,
            GuestAddress(pd + i * 8),
        )?;
    }
    Ok(())
}

/// Puts vCPU 0 at the kernel's door.
///
/// # Errors
/// KVM refuses a register, which is a bug of ours.
pub fn set_boot_state(vcpu: &VcpuFd, ram: &GuestRam, entry: Entry) -> Result<(), VmmError> {
    let long = matches!(entry, Entry::Linux64 { .. });
    let code = segment(0x10, 0xb, long);
    let data = segment(0x18, 0x3, false);
    let tss = segment(0x20, 0xb, false);
    for (index, value) in [0, 0, descriptor(&code), descriptor(&data), descriptor(&tss)]
        .into_iter()
        .enumerate()
    {
        ram.write_obj(value, GuestAddress(layout::GDT + index as u64 * 8))?;
    }

    let mut sregs = vcpu.get_sregs().map_err(VmmError::kvm("KVM_GET_SREGS"))?;
    sregs.gdt = kvm_dtable {
        base: layout::GDT,
        limit: 5 * 8 - 1,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    (sregs.cs, sregs.tr) = (code, tss);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 = (sregs.cr0 & 0x10) | CR0_PE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    let mut regs = kvm_regs {
        rflags: 2,
        ..Default::default()
    };
    match entry {
        Entry::Linux64 { rip } => {
            write_page_tables(ram)?;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 |= CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rip = rip;
            regs.rsi = layout::ZERO_PAGE;
            (regs.rsp, regs.rbp) = (layout::ZERO_PAGE, layout::ZERO_PAGE);
        }
        Entry::Pvh { eip } => {
            regs.rip = eip;
            regs.rbx = layout::PVH_INFO;
        }
    }
    vcpu.set_sregs(&sregs)
        .map_err(VmmError::kvm("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(VmmError::kvm("KVM_SET_REGS"))
}

/// What every vCPU gets after its CPUID (KVM filters MSRs by CPUID, so the order matters): memory
/// type write-back, fast string operations, clean FPU, NMI on LINT1.
///
/// # Errors
/// KVM refuses, which is a bug of ours or a KVM that lacks these MSRs.
pub fn set_common_state(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| VmmError::Bug("MSR list"))?;
    // KVM stops at the first MSR that this processor lacks (MISC_ENABLE on some): not an error.
    vcpu.set_msrs(&msrs)
        .map_err(VmmError::kvm("KVM_SET_MSRS"))?;
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(VmmError::kvm("KVM_SET_FPU"))?;
    set_lint(vcpu)
}

/// Local APIC registers LINT0 (external interrupts) and LINT1 (NMI), SDM vol. 3 §10.5.1.
fn set_lint(vcpu: &VcpuFd) -> Result<(), VmmError> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4 << 8;
    const MODE_EXTINT: u32 = 7 << 8;
    const MODE_MASK: u32 = 7 << 8;
    let mut lapic = vcpu.get_lapic().map_err(VmmError::kvm("KVM_GET_LAPIC"))?;
    for (offset, mode) in [(LINT0, MODE_EXTINT), (LINT1, MODE_NMI)] {
        let Some(bytes) = lapic.regs.get_mut(offset..offset + 4) else {
            continue;
        };
        let mut value = [0u8; 4];
        for (v, b) in value.iter_mut().zip(bytes.iter()) {
            *v = b.to_ne_bytes()[0];
        }
        let value = (u32::from_le_bytes(value) & !MODE_MASK) | mode;
        for (b, v) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *b = i8::from_ne_bytes([v]);
        }
    }
    vcpu.set_lapic(&lapic)
        .map_err(VmmError::kvm("KVM_SET_LAPIC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_segments_have_the_well_known_descriptors() {
        assert_eq!(descriptor(&segment(0x10, 0xb, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(
            descriptor(&segment(0x10, 0xb, false)),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            descriptor(&segment(0x18, 0x3, false)),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(
            descriptor(&segment(0x20, 0xb, false)),
            0x0000_8b00_0000_0067
        );
    }
}
