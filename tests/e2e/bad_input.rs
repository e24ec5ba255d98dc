//! Bad input gets a sentence that names it, status 1 or 2, and leaves nothing behind.

use std::path::{Path, PathBuf};

use crate::support::{
    Finished, GuestFiles, Launch, Series, alone, concertina, guest, require_host,
};

/// What could be left behind on the host: cgroups, VM processes.
fn traces() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                folders.push(entry.path());
            }
        }
    }
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if words.first().is_some_and(|w| w.ends_with(b"concertina"))
            && words.get(1) == Some(&&b"vmm"[..])
        {
            found.push(entry.path());
        }
    }
    found.retain(|path| !path.ends_with("concertina"));
    found.sort();
    found
}

/// Tries to launch; it must fail with 1 or 2, one sentence that has `named`, and no trace.
#[track_caller]
fn refused(kernel: &Path, initrd: &Path, arguments: &[&str], named: &str) -> Finished {
    require_host();
    // What others leave for a while would count as left behind.
    let _alone = alone();
    let before = traces();
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().join("state").display().to_string();
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    let mut line = vec![
        "run",
        "--name",
        "bad",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--state-dir",
        &state_dir,
        "--detach",
    ];
    for (option, value) in [("--cpus", "1"), ("--memory", "256M")] {
        if !arguments.contains(&option) {
            line.extend([option, value]);
        }
    }
    line.extend(arguments);
    let finished = concertina(&line);
    assert!([1, 2].contains(&finished.status), "{finished:#?}");
    assert!(
        finished.stderr.contains(named),
        "No '{named}' in {finished:#?}"
    );
    assert!(!finished.stderr.contains("panicked"), "{finished:#?}");
    assert_eq!(traces(), before, "Left behind by {finished:#?}");
    let left: Vec<_> = std::fs::read_dir(&state_dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert!(left.is_empty(), "{left:?} left behind by {finished:#?}");
    finished
}

fn files() -> GuestFiles {
    guest(Series::V6_12)
}

#[test]
fn a_missing_kernel_is_named() {
    refused(
        Path::new("/no/such/kernel"),
        &files().initramfs,
        &[],
        "/no/such/kernel",
    );
}

#[test]
fn a_truncated_kernel_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, source, bytes) in [
        ("short-bzimage", files().bzimage, 100_000),
        ("shorter-bzimage", files().bzimage, 0x210),
        ("short-vmlinux", files().vmlinux, 1_000_000),
        ("shorter-vmlinux", files().vmlinux, 70),
    ] {
        let kernel = folder.path().join(name);
        let whole = std::fs::read(source).unwrap();
        std::fs::write(&kernel, &whole[..bytes]).unwrap();
        refused(&kernel, &files().initramfs, &[], name);
    }
}

#[test]
fn a_file_that_is_no_kernel_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("letter.txt");
    std::fs::write(&text, "Dear kernel, ".repeat(1000)).unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    refused(&text, &files().initramfs, &[], "letter.txt");
    refused(&empty, &files().initramfs, &[], "empty");
    refused(Path::new("/root"), &files().initramfs, &[], "/root");
    // An ELF program is no kernel either: it has no PVH note.
    refused(
        Path::new("/proc/self/exe"),
        &files().initramfs,
        &[],
        "/proc/self/exe",
    );
}

#[test]
fn a_missing_initrd_and_one_larger_than_memory_are_named() {
    refused(
        &files().bzimage,
        Path::new("/no/such/initrd"),
        &[],
        "/no/such/initrd",
    );
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large-initrd");
    let file = std::fs::File::create(&large).unwrap();
    file.set_len(300 << 20).unwrap();
    refused(&files().bzimage, &large, &[], "large-initrd");
}

#[test]
fn absurd_sizes_are_named() {
    let files = files();
    for (arguments, named) in [
        (["--memory", "1M"], "1M"),
        (["--memory", "lots"], "lots"),
        (["--memory", "1G..256M"], "1G"),
        (["--cpus", "0"], "0"),
        (["--cpus", "-1"], "-1"),
        (["--cpus", "1..4000"], "4000"),
        (["--cpus", "many"], "many"),
        (["--cpus", "0.00001"], "0.00001"),
    ] {
        refused(&files.bzimage, &files.initramfs, &arguments, named);
    }
}

#[test]
fn bad_names_are_refused() {
    require_host();
    for name in ["", "UPPER", "a/b", "..", "a b", &"x".repeat(64)] {
        let finished = concertina(&[
            "run", "--name", name, "--cpus", "1", "--memory", "256M", "--detach",
        ]);
        assert_eq!(finished.status, 2, "{finished:#?}");
        assert!(finished.stderr.contains(name), "{finished:#?}");
    }
}

#[test]
fn a_name_in_use_is_refused_and_the_instance_is_unharmed() {
    let (instance, mut shell) = Launch::new("taken").boot();
    let second = Launch::new("taken").line(instance.state_dir());
    let mut second: Vec<&str> = second.iter().map(String::as_str).collect();
    second.push("--detach");
    let finished = concertina(&second);
    assert!([1, 2].contains(&finished.status), "{finished:#?}");
    assert!(finished.stderr.contains("taken"), "{finished:#?}");
    assert_eq!(shell.run("echo alive"), "alive");
    assert_eq!(instance.status()["state"], "running");
}

#[test]
fn resizes_outside_the_bounds_are_refused_and_change_nothing() {
    let (instance, mut shell) = Launch::new("bounded")
        .cpus("1..2")
        .memory("256M..512M")
        .boot();
    for arguments in [
        ["--cpus", "3"],
        ["--cpus", "0.5"],
        ["--memory", "1G"],
        ["--memory", "128M"],
    ] {
        let finished = instance.command("resize", &[arguments[0], arguments[1], "--json"]);
        assert_ne!(finished.status, 0, "{finished:#?}");
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!said.contains("applied"), "{finished:#?}");
    }
    assert_eq!(shell.online_cpus(), 1);
    let status = instance.status();
    assert_eq!(status["cpus"]["target"], 1.0, "{status:#}");
}

#[test]
fn commands_on_an_unknown_instance_say_so() {
    require_host();
    let state = tempfile::tempdir().unwrap();
    let state_dir = state.path().display().to_string();
    for command in ["status", "events", "console", "stop"] {
        let finished = concertina(&[command, "nobody", "--state-dir", &state_dir]);
        assert_eq!(finished.status, 1, "{finished:#?}");
        assert!(finished.stderr.contains("nobody"), "{finished:#?}");
    }
    let finished = concertina(&["resize", "nobody", "--cpus", "2", "--state-dir", &state_dir]);
    assert_eq!(finished.status, 1, "{finished:#?}");
    assert!(finished.stderr.contains("nobody"), "{finished:#?}");
}
