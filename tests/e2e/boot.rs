//! Stock kernels boot, in each form that Debian's package yields, and end as their user says.

use crate::support::{BOOT_LIMIT, Launch, MIB, STEP_LIMIT, Series, concertina, guest, until};

#[track_caller]
fn boots(name: &str, series: Series, as_vmlinux: bool) {
    let files = guest(series);
    let kernel = if as_vmlinux {
        &files.vmlinux
    } else {
        &files.bzimage
    };
    let launch = Launch::new(name).kernel(kernel, &files.initramfs);
    let (instance, mut shell) = launch.boot();
    let release = shell.run("uname -r");
    let wanted = match series {
        Series::V6_1 => "6.1.",
        Series::V6_12 => "6.12.",
    };
    assert!(release.starts_with(wanted), "{release}");
    assert_eq!(shell.online_cpus(), 1);
    let total = shell.meminfo("MemTotal");
    assert!((180 * MIB..=256 * MIB).contains(&total), "MemTotal {total}");
    let status = instance.status();
    assert_eq!(status["name"], name);
    assert_eq!(status["state"], "running");
    assert_eq!(status["cpus"]["online"], 1);
    assert_eq!(status["memory"]["plugged"], 256 * MIB);
}

#[test]
fn debian_6_1_boots_as_bzimage() {
    boots("bz61", Series::V6_1, false);
}

#[test]
fn debian_6_1_boots_as_vmlinux() {
    boots("elf61", Series::V6_1, true);
}

#[test]
fn debian_6_12_boots_as_bzimage() {
    boots("bz612", Series::V6_12, false);
}

#[test]
fn debian_6_12_boots_as_vmlinux() {
    boots("elf612", Series::V6_12, true);
}

#[test]
fn poweroff_in_the_guest_ends_run_with_status_0() {
    let finished = Launch::new("off")
        .arguments(&["--append", "concertina.poweroff"])
        .run_to_end();
    assert_eq!(finished.status, 0, "{finished:#?}");
}

#[test]
fn reboot_in_the_guest_starts_it_again_at_its_first_size() {
    let (instance, mut shell) = Launch::new("again")
        .cpus("1..2")
        .memory("256M..512M")
        .boot();
    instance.resize_applied(&["--cpus", "2", "--memory", "384M"]);
    assert_eq!(shell.online_cpus(), 2);
    shell.type_line("reboot");
    instance.wait_for_event("a 'rebooted' event", STEP_LIMIT, |e| {
        e["event"] == "rebooted"
    });
    drop(shell);
    let mut shell = instance.shell();
    assert_eq!(shell.online_cpus(), 1);
    assert!(shell.number("cut -d. -f1 /proc/uptime") < BOOT_LIMIT.as_secs());
    let status = instance.wait_for_status("the first size", STEP_LIMIT, |s| {
        s["cpus"]["online"] == 1 && s["memory"]["plugged"] == 256 * MIB
    });
    assert_eq!(status["state"], "running");
}

#[test]
fn a_triple_fault_ends_run_with_a_status_of_its_own_and_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("faulting");
    // mov ecx, 2^31; loop to itself; ud2. With no interrupt table, an undefined instruction is a
    // triple fault; the loop lets the launch succeed first.
    let code = [0xb9, 0, 0, 0, 0x80, 0xe2, 0xfe, 0x0f, 0x0b];
    std::fs::write(&kernel, pvh_kernel(&code)).unwrap();
    let files = guest(Series::V6_12);
    let finished = Launch::new("fault")
        .kernel(&kernel, &files.initramfs)
        .run_to_end();
    assert!(
        finished.status != 0 && finished.status != 1 && finished.status != 2,
        "{finished:#?}"
    );
    assert!(
        finished.stderr.to_lowercase().contains("triple fault"),
        "{finished:#?}"
    );
}

#[test]
fn the_guest_finds_acpi_tables_and_no_mp_table() {
    let (_instance, mut shell) = Launch::new("acpi").cpus("1..4").memory("256M..1G").boot();
    let tables = shell.run("ls /sys/firmware/acpi/tables");
    for table in ["APIC", "DSDT", "FACP", "MCFG", "SRAT"] {
        assert!(tables.contains(table), "No {table} in: {tables}");
    }
    assert_eq!(shell.run("cat /sys/devices/system/cpu/possible"), "0-3");
    assert_eq!(shell.run("cat /sys/devices/system/cpu/online"), "0");
    let log = shell.run("dmesg");
    for word in ["MP-table", "MPTABLE", "ACPI BIOS Error", "ACPI Error"] {
        assert!(!log.contains(word), "'{word}' in the kernel's log:\n{log}");
    }
}

#[test]
fn apic_ids_follow_the_numbers_of_the_processors() {
    let (_instance, mut shell) = Launch::new("apic").cpus("3..6").boot();
    let apic = shell.run("grep ^apicid /proc/cpuinfo | sed 's/.*: //'");
    let numbers = shell.run("grep ^processor /proc/cpuinfo | sed 's/.*: //'");
    assert_eq!(apic, numbers);
    assert_eq!(numbers.lines().count(), 3);
}

#[test]
fn the_guest_knows_its_clock_without_calibrating() {
    let (_instance, mut shell) = Launch::new("clock").boot();
    let log = shell.run("dmesg");
    assert!(log.contains("tsc: Detected"), "{log}");
    for word in [
        "Fast TSC calibration",
        "PIT calibration",
        "TSC calibration failed",
    ] {
        assert!(!log.contains(word), "'{word}' in the kernel's log:\n{log}");
    }
}

#[test]
fn the_guest_gets_randomness_from_the_host() {
    let (_instance, mut shell) = Launch::new("random").boot();
    assert_eq!(
        shell.run("cat /sys/class/misc/hw_random/rng_current"),
        "virtio_rng.0"
    );
    assert_eq!(shell.run("head -c 1000 /dev/hwrng | wc -c"), "1000");
    let one = shell.run("head -c 16 /dev/hwrng | od -An -tx1");
    let other = shell.run("head -c 16 /dev/hwrng | od -An -tx1");
    assert_ne!(one, other);
}

#[test]
fn six_gib_of_boot_memory_reach_over_4_gib() {
    let (instance, mut shell) = Launch::new("wide").memory("6G").boot();
    let total = shell.meminfo("MemTotal");
    assert!(
        total > 5600 * MIB && total <= 6144 * MIB,
        "MemTotal {total}"
    );
    let map = shell.run("cat /proc/iomem");
    assert!(map.contains("100000000-"), "No RAM above 4 GiB in:\n{map}");
    assert_eq!(instance.vm().memory.plugged.get(), 6144 * MIB);
}

#[test]
fn the_console_takes_input_and_keeps_what_was_said() {
    let (instance, mut shell) = Launch::new("console").boot();
    // As long as a line may be; busybox cuts it off at 1024 characters.
    let long = "abcdefghij".repeat(95);
    assert_eq!(shell.run(&format!("echo {long} | wc -c")), "951");
    shell.run("echo remember-this-line");
    drop(shell);
    // Who comes later is shown what was said before.
    let state = instance.state_dir().display().to_string();
    let finished = concertina(&["console", instance.name(), "--state-dir", &state]);
    assert!(
        finished.stdout.contains("remember-this-line"),
        "{finished:#?}"
    );
    until("the line in the log", STEP_LIMIT, || {
        instance
            .console_log()
            .contains("remember-this-line")
            .then_some(())
    });
}

/// An ELF kernel with a PVH note whose entry is the given code. It is loaded at 1 MiB.
pub fn pvh_kernel(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 1 << 20;
    const HEADERS: u64 = 64 + 2 * 56;
    let note = {
        let mut note = Vec::new();
        for word in [4u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(*b"Xen\0");
        note.extend((ENTRY as u32).to_le_bytes());
        note
    };
    let note_at = HEADERS;
    let code_at = 4096u64;
    let mut image = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    image.extend(2u16.to_le_bytes()); // executable
    image.extend(62u16.to_le_bytes()); // x86-64
    image.extend(1u32.to_le_bytes());
    image.extend(ENTRY.to_le_bytes());
    image.extend(64u64.to_le_bytes()); // program headers
    image.extend(0u64.to_le_bytes()); // no sections
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let header = |kind: u32, flags: u32, at: u64, address: u64, size: u64, align: u64| {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(flags.to_le_bytes());
        for field in [at, address, address, size, size, align] {
            header.extend(field.to_le_bytes());
        }
        header
    };
    image.extend(header(1, 7, code_at, ENTRY, code.len() as u64, 4096));
    image.extend(header(4, 4, note_at, 0, note.len() as u64, 4));
    image.extend(&note);
    image.resize(code_at as usize, 0);
    image.extend(code);
    image
}
