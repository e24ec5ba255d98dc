//! CPUID of each vCPU: what KVM supports, with topology from the *maximum* number of vCPUs.
//!
//! One socket, one thread a core, APIC id = vCPU number: the same number in CPUID, MADT and KVM, as
//! Linux looks itself up by APIC id when it starts processors in parallel. Leaves as in the Intel SDM
//! vol. 2A and the AMD APM vol. 3 appendix E; KVM's own from Linux `Documentation/virt/kvm/x86`.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What the leaves need to know beyond what KVM supports.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// vCPUs ever.
    pub max_vcpus: u32,
    /// The local APIC's timer can wait for a TSC value.
    pub tsc_deadline: bool,
    /// Guest TSC frequency, kHz; 0 when unknown.
    pub tsc_khz: u32,
}

const LEAF_FEATURES: u32 = 1;
const LEAF_CACHE: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM_SIGNATURE: u32 = 0x4000_0000;
const LEAF_TIMING: u32 = 0x4000_0010;
const LEAF_AMD_CAPACITY: u32 = 0x8000_0008;
const LEAF_AMD_CACHE: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
/// KVM's local APIC timer runs at 1 GHz.
const LAPIC_KHZ: u32 = 1_000_000;

/// Bits of an APIC id that number the cores of the socket.
fn core_bits(max_vcpus: u32) -> u32 {
    max_vcpus.max(1).next_power_of_two().trailing_zeros()
}

/// The leaves of vCPU `vcpu`.
pub fn for_vcpu(supported: &CpuId, vcpu: u32, topology: &Topology) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .filter(|e| !matches!(e.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 | LEAF_TIMING))
        .copied()
        .collect();
    let max = topology.max_vcpus.max(1);
    let shared = max.next_power_of_two();
    let mut max_basic = 0;
    for entry in &mut entries {
        match entry.function {
            0 => {
                entry.eax = entry.eax.max(LEAF_TOPOLOGY);
                max_basic = entry.eax;
            }
            LEAF_FEATURES => set_features(entry, vcpu, topology),
            LEAF_CACHE if entry.eax & 0x1f != 0 => {
                // Level 3 is shared by the socket, the others belong to one core.
                let threads = if entry.eax >> 5 & 7 >= 3 { shared } else { 1 };
                entry.eax &= 0x3fff;
                entry.eax |= (shared - 1).min(0x3f) << 26 | (threads - 1).min(0xfff) << 14;
            }
            LEAF_AMD_CACHE if entry.eax & 0x1f != 0 => {
                let threads = if entry.eax >> 5 & 7 >= 3 { shared } else { 1 };
                entry.eax &= 0x3fff;
                entry.eax |= (threads - 1).min(0xfff) << 14;
            }
            LEAF_AMD_CAPACITY => {
                entry.ecx &= !0xf0ff;
                entry.ecx |= core_bits(max) << 12 | (max - 1).min(0xff);
            }
            LEAF_AMD_TOPOLOGY => {
                entry.eax = vcpu;
                entry.ebx = vcpu & 0xff;
                entry.ecx = 0;
            }
            LEAF_KVM_SIGNATURE if topology.tsc_khz > 0 => {
                entry.eax = entry.eax.max(LEAF_TIMING);
            }
            _ => {}
        }
    }
    push_topology(&mut entries, LEAF_TOPOLOGY, vcpu, max);
    if max_basic >= LEAF_TOPOLOGY_V2 {
        push_topology(&mut entries, LEAF_TOPOLOGY_V2, vcpu, max);
    }
    if topology.tsc_khz > 0 {
        entries.push(kvm_cpuid_entry2 {
            function: LEAF_TIMING,
            eax: topology.tsc_khz,
            ebx: LAPIC_KHZ,
            ..Default::default()
        });
    }
    entries
}

fn set_features(entry: &mut kvm_cpuid_entry2, vcpu: u32, topology: &Topology) {
    const HYPERVISOR: u32 = 1 << 31;
    const TSC_DEADLINE: u32 = 1 << 24;
    const PERFMON_CAPABILITIES: u32 = 1 << 15;
    const HTT: u32 = 1 << 28;
    let logical = topology.max_vcpus.max(1).next_power_of_two().min(0xff);
    entry.ebx = (entry.ebx & 0xff) | vcpu << 24 | logical << 16 | 8 << 8;
    entry.ecx |= HYPERVISOR;
    entry.ecx &= !PERFMON_CAPABILITIES;
    if topology.tsc_deadline {
        entry.ecx |= TSC_DEADLINE;
    }
    if topology.max_vcpus > 1 {
        entry.edx |= HTT;
    }
}

/// Extended topology: level 0 has one thread, level 1 all cores of the only socket. KVM leaves these
/// to us.
fn push_topology(entries: &mut Vec<kvm_cpuid_entry2>, function: u32, vcpu: u32, max: u32) {
    const LEVEL_SMT: u32 = 1;
    const LEVEL_CORE: u32 = 2;
    let levels = [
        (0, 1, LEVEL_SMT),
        (core_bits(max), max, LEVEL_CORE),
        (0, 0, 0),
    ];
    for (index, (shift, count, kind)) in (0u32..).zip(levels) {
        entries.push(kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: kind << 8 | index,
            edx: vcpu,
            ..Default::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    fn supported() -> CpuId {
        let entry = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[
            entry(0, 0xd),
            entry(1, 0),
            entry(0xb, 7),
            entry(LEAF_KVM_SIGNATURE, 0x4000_0001),
            entry(LEAF_AMD_CAPACITY, 0),
            entry(LEAF_AMD_TOPOLOGY, 0),
        ])
        .unwrap()
    }

    #[test]
    fn the_apic_id_is_the_vcpu_number_in_every_leaf_that_tells_it() {
        for max_vcpus in [1, 3, 4, 5, 16, 200] {
            let topology = Topology {
                max_vcpus,
                tsc_deadline: true,
                tsc_khz: 0,
            };
            for vcpu in 0..max_vcpus {
                let entries = for_vcpu(&supported(), vcpu, &topology);
                assert_eq!(leaf(&entries, 1, 0).ebx >> 24, vcpu);
                assert_eq!(leaf(&entries, LEAF_TOPOLOGY, 0).edx, vcpu);
                assert_eq!(leaf(&entries, LEAF_TOPOLOGY, 1).edx, vcpu);
                assert_eq!(leaf(&entries, LEAF_AMD_TOPOLOGY, 0).eax, vcpu);
                let bits = leaf(&entries, LEAF_TOPOLOGY, 1).eax;
                assert!(vcpu >> bits == 0, "all in one socket");
            }
        }
    }

    #[test]
    fn topology_counts_possible_vcpus_not_present_ones() {
        let topology = Topology {
            max_vcpus: 6,
            tsc_deadline: false,
            tsc_khz: 2_000_000,
        };
        let entries = for_vcpu(&supported(), 0, &topology);
        assert_eq!(leaf(&entries, LEAF_TOPOLOGY, 1).ebx, 6);
        assert_eq!(leaf(&entries, 1, 0).ebx >> 16 & 0xff, 8);
        assert_eq!(leaf(&entries, LEAF_AMD_CAPACITY, 0).ecx, 3 << 12 | 5);
        assert_eq!(leaf(&entries, LEAF_TIMING, 0).eax, 2_000_000);
        assert_eq!(leaf(&entries, LEAF_KVM_SIGNATURE, 0).eax, LEAF_TIMING);
    }
}
