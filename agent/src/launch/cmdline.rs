//! The kernel command line that makes a stock kernel an elastic guest, and what a customer appends.
//!
//! Later parameters win in Linux, so a customer can take back each of ours.

use super::LaunchError;

/// Longest command line that x86 Linux takes, without its NUL (`COMMAND_LINE_SIZE` 2048).
pub const CMDLINE_MAX_BYTES: usize = 2047;

/// Ours, in the order of the table below.
const DEFAULTS: &[&str] = &[
    // The serial console is the only console.
    "console=ttyS0",
    // Each character on a serial port is an exit to the vmm: boot messages are the largest single
    // cost of a boot. Panics and errors are printed still.
    "quiet",
    // There is one UART; probing for three more costs exits.
    "8250.nr_uarts=1",
    // A guest that panics asks for a reset at once, and its supervisor sees it.
    "panic=-1",
    // The reset register of the FADT: there is no keyboard controller to try first.
    "reboot=acpi",
    // Hot-added memory is brought online by the kernel, in the zone that keeps it removable without
    // starving kernel allocations. With a ratio near 100 shrinking fails; movable only, and a large
    // guest has no room for page tables. Kernels before 6.12 may know only the first of these.
    "memhp_default_state=online",
    "memory_hotplug.online_policy=auto-movable",
    "memory_hotplug.auto_movable_ratio=301",
    // The page array of hot-added memory lies in that memory, else 1.6 % of it is taken from boot
    // RAM, which is small.
    "memory_hotplug.memmap_on_memory=1",
    // The elastic region reaches above 4 GiB, for which Linux would set 64 MiB of boot RAM aside
    // and fill it with zeroes. All our devices address 64 bits.
    "swiotlb=noforce",
    // Else the kernel fills each block with zeroes just before it gives the block back: memory that
    // the host had taken back already is made resident once more, and shrinking takes many times as
    // long. A customer who wants this hardening appends `init_on_alloc=1`.
    "init_on_alloc=0",
    // Entropy is there at once, from the processor and virtio-rng.
    "random.trust_cpu=on",
    // Self-tests of ciphers at each boot prove nothing on a kernel that its distributor tested.
    "cryptomgr.notests",
];

/// For a guest that starts with one vCPU and may get more: Linux otherwise patches its locks out at
/// boot, and has to patch all of them in again before the second vCPU runs, which makes its first
/// hot-add ten times as long.
const KEEP_LOCKS: &str = "noreplace-smp";

/// The whole command line: ours, then the customer's. `grows_vcpus`: the guest may get more vCPUs
/// than the one that it starts with. `dhcp`: numbers of the interfaces for which the default guest
/// asks for an address; other guests do not know the word, and have ways of their own.
pub fn command_line(
    append: Option<&str>,
    grows_vcpus: bool,
    dhcp: impl Iterator<Item = usize>,
) -> Result<String, LaunchError> {
    let mut line = DEFAULTS.join(" ");
    if grows_vcpus {
        line.push(' ');
        line.push_str(KEEP_LOCKS);
    }
    for interface in dhcp {
        line.push_str(&format!(" concertina.dhcp=eth{interface}"));
    }
    if let Some(extra) = append.map(str::trim).filter(|extra| !extra.is_empty()) {
        if let Some(bad) = extra.chars().find(|c| c.is_control()) {
            return Err(LaunchError::Request(format!(
                "Text to append to the kernel command line contains the control character {bad:?}: \
                 only printable characters are allowed"
            )));
        }
        line.push(' ');
        line.push_str(extra);
    }
    if line.len() > CMDLINE_MAX_BYTES {
        return Err(LaunchError::Request(format!(
            "Kernel command line has {} bytes with what is appended: at most {CMDLINE_MAX_BYTES} \
             are allowed",
            line.len()
        )));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::iter::empty;

    use super::*;

    #[test]
    fn what_is_appended_comes_last_so_that_it_wins() {
        let line = command_line(Some(" loglevel=7 "), false, empty()).unwrap();
        assert!(
            line.starts_with("console=ttyS0 ") && line.ends_with(" loglevel=7"),
            "{line}"
        );
        assert_eq!(
            command_line(None, false, empty()).unwrap(),
            command_line(Some("  "), false, empty()).unwrap()
        );
    }

    #[test]
    fn what_linux_would_cut_or_misread_is_refused() {
        assert!(
            command_line(Some(&"x".repeat(CMDLINE_MAX_BYTES)), false, empty())
                .unwrap_err()
                .is_usage()
        );
        assert!(
            command_line(Some("a\nb"), false, empty())
                .unwrap_err()
                .is_usage()
        );
        assert!(
            command_line(Some("a\0b"), false, empty())
                .unwrap_err()
                .is_usage()
        );
    }

    #[test]
    fn the_default_guest_is_told_where_to_ask_for_an_address() {
        let line = command_line(Some("x"), false, [0, 2].into_iter()).unwrap();
        assert!(line.ends_with(" concertina.dhcp=eth0 concertina.dhcp=eth2 x"));
    }

    #[test]
    fn only_a_guest_that_may_get_a_second_vcpu_keeps_its_locks() {
        assert!(
            command_line(None, true, empty())
                .unwrap()
                .ends_with(" noreplace-smp")
        );
        assert!(
            !command_line(None, false, empty())
                .unwrap()
                .contains("noreplace-smp")
        );
    }
}
