//! Bounds that a virtual machine can have at all, on any host. What makes bounds and rules wrong in
//! themselves is checked by the policy.

use concertina_api::policy::PolicyBounds;
use concertina_api::{Bytes, Cpus};

use super::LaunchError;

/// Least memory in which a stock kernel reaches its init.
pub const MIN_MEMORY: Bytes = Bytes::mib(64);
/// Most memory that the guest's physical address space is laid out for.
pub const MAX_MEMORY: Bytes = Bytes(512 * Bytes::GIB);
/// Memory changes hands in blocks of this size.
pub const MEMORY_BLOCK: Bytes = Bytes::mib(2);
/// Most vCPUs: their APIC ids fit into 8 bits, 255 being the broadcast.
pub const MAX_CPUS: Cpus = Cpus::whole(255);

/// Checks both axes; the bounds are not inverted.
pub fn check(bounds: &PolicyBounds) -> Result<(), LaunchError> {
    let refuse = |sentence: String| Err(LaunchError::Request(sentence));
    let (cpus, memory) = (bounds.cpus, bounds.memory);
    if cpus.max > MAX_CPUS {
        return refuse(format!(
            "Upper bound of cpus is {}: at most {MAX_CPUS} is allowed",
            cpus.max
        ));
    }
    if memory.min < MIN_MEMORY {
        return refuse(format!(
            "Lower bound of memory is {}: at least {MIN_MEMORY} is allowed",
            memory.min
        ));
    }
    if memory.max > MAX_MEMORY {
        return refuse(format!(
            "Upper bound of memory is {}: at most {MAX_MEMORY} is allowed",
            memory.max
        ));
    }
    for (which, size) in [("Lower", memory.min), ("Upper", memory.max)] {
        let block = MEMORY_BLOCK.get();
        if !size.get().is_multiple_of(block) {
            let below = size.get() / block * block;
            return refuse(format!(
                "{which} bound of memory is {size}, not a multiple of {MEMORY_BLOCK}: use {} or {}",
                Bytes(below),
                Bytes(below.saturating_add(block))
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(cpus: &str, memory: &str) -> Result<(), String> {
        let bounds = PolicyBounds {
            cpus: cpus.parse().unwrap(),
            memory: memory.parse().unwrap(),
        };
        check(&bounds).map_err(|e| {
            assert!(e.is_usage());
            e.to_string()
        })
    }

    #[test]
    fn bounds_that_a_vm_can_have_pass() {
        for (cpus, memory) in [
            ("0.5..4", "256M..1G"),
            ("1", "64M"),
            ("0.1..255", "1.5G..64G"),
        ] {
            assert_eq!(verdict(cpus, memory), Ok(()), "{cpus} {memory}");
        }
    }

    #[test]
    fn absurd_bounds_are_refused_with_value_and_limit() {
        for (cpus, memory, words) in [
            ("1..256", "256M", ["256", "255"]),
            ("1", "32M..1G", ["32M", "64M"]),
            ("1", "256M..1T", ["1T", "512G"]),
            ("1", "65M..128M", ["65M", "64M or 66M"]),
        ] {
            let error = verdict(cpus, memory).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{error} lacks {word}");
            }
        }
    }
}
