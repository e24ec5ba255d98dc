//! The plan: a specification checked and resolved, before anything is made.

use concertina_api::Bytes;
use concertina_api::disk::DISKS_MAX;
use concertina_api::vm::{VmSpec, VsockSpec};

use crate::error::VmmError;
use crate::layout::MemoryMap;
use crate::memory::{BLOCK_BYTES, SLOT_BYTES};
use crate::virtio::vsock;

/// Largest number of vCPUs: their ids fit an 8-bit APIC id, and 255 is the broadcast.
pub const MAX_VCPUS: u32 = 254;
/// Least boot RAM: a kernel decompresses itself in it.
pub const MIN_BOOT_MEMORY: Bytes = Bytes::mib(64);
/// Largest elastic region: 4 TiB, what a processor with 43 address bits still reaches.
const MAX_MEMORY: u64 = 4 << 40;

/// A checked specification.
#[derive(Debug, Clone)]
pub struct VmPlan {
    /// The words it came from.
    pub spec: VmSpec,
    /// Where memory lies.
    pub map: MemoryMap,
}

impl VmPlan {
    /// Checks.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what is allowed.
    pub fn new(spec: VmSpec) -> Result<Self, VmmError> {
        let refuse = |text: String| Err(VmmError::Spec(text));
        let (boot, max) = (spec.boot_vcpus, spec.max_vcpus);
        if boot < 1 || boot > max || max > MAX_VCPUS {
            return refuse(format!(
                "vCPUs {boot}..{max} are not allowed: at least 1 at boot, at most {MAX_VCPUS}, lower bound first"
            ));
        }
        let (boot, max) = (spec.boot_memory, spec.max_memory);
        if boot < MIN_BOOT_MEMORY || boot > max || max.get() > MAX_MEMORY {
            return refuse(format!(
                "Memory {boot}..{max} is not allowed: at least {MIN_BOOT_MEMORY}, at most {}, lower bound first",
                Bytes(MAX_MEMORY)
            ));
        }
        if !boot.get().is_multiple_of(BLOCK_BYTES) || !max.get().is_multiple_of(BLOCK_BYTES) {
            return refuse(format!(
                "Memory {boot}..{max} is not allowed: both bounds must be multiples of {}",
                Bytes(BLOCK_BYTES)
            ));
        }
        if spec.disks.len() > DISKS_MAX {
            return refuse(format!(
                "{} disks are not allowed: at most {DISKS_MAX}",
                spec.disks.len()
            ));
        }
        spec.vsock.as_ref().map_or(Ok(()), check_vsock)?;
        // Whole slots, so that guests whose memory blocks are larger than ours can use all of it; what
        // is above the upper bound is never asked for.
        let elastic = (max.get() - boot.get()).next_multiple_of(SLOT_BYTES);
        let map = MemoryMap::new(boot.get(), elastic);
        Ok(Self { spec, map })
    }
}

fn check_vsock(spec: &VsockSpec) -> Result<(), VmmError> {
    // 0 to 2 are the hypervisor, loopback and the host; the largest means "any".
    if !(3..u32::MAX).contains(&spec.cid) {
        return Err(VmmError::Spec(format!(
            "Context id {} of the guest's sockets is not allowed: 3 to {} are",
            spec.cid,
            u32::MAX - 1
        )));
    }
    let bytes = spec.socket.as_os_str().len();
    let most = vsock::MAX_PATH_BYTES - vsock::SUFFIX_BYTES;
    if bytes > most {
        return Err(VmmError::Spec(format!(
            "Socket path '{}' has {bytes} bytes: at most {most} are allowed, since a port is appended",
            spec.socket.display()
        )));
    }
    Ok(())
}
