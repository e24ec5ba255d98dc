//! Disks: what the guest writes is on the host, and the other way round; what the host refuses.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use concertina_api::Bytes;
use serde_json::Value;

use crate::support::{
    BOOT_LIMIT, Instance, Launch, MIB, STEP_LIMIT, Shell, alone, concertina_with,
};

/// A folder of images that are gone when it is dropped.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder for images"))
    }

    /// A sparse image.
    fn sparse(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.0.path().join(name);
        let file = File::create(&path).expect("an image");
        file.set_len(bytes).expect("its length");
        path
    }

    /// An image full of bytes that no two sectors share.
    fn full(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.0.path().join(name);
        let words =
            (0..bytes / 8).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        fs::write(&path, words.flatten().collect::<Vec<u8>>()).expect("an image");
        path
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn md5(path: &Path) -> String {
    let output = Command::new("md5sum").arg(path).output().expect("md5sum");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().next().expect("a sum").to_owned()
}

fn md5_in_guest(shell: &mut Shell, device: &str) -> String {
    let (status, text) = shell.try_run(&format!("busybox md5sum {device}"), 4 * STEP_LIMIT);
    assert_eq!(status, 0, "{text}");
    text.split_whitespace().next().expect("a sum").to_owned()
}

/// Bytes that a file takes on the host.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("an image").blocks() * 512
}

fn disk(instance: &Instance, number: usize) -> Value {
    instance.status()["io"]["disks"][number].clone()
}

#[test]
fn disks_hold_what_is_written_and_refuse_what_is_not_allowed() {
    let images = Images::new();
    let data = images.sparse("data.img", 32 * MIB);
    let fixed = images.full("fixed.img", 4 * MIB);
    let fixed_sum = md5(&fixed);
    let disks = [
        "--disk".to_owned(),
        format!("{},serial=data-1", text(&data)),
        "--disk".to_owned(),
        format!("{},ro", text(&fixed)),
    ];
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    let launch = Launch::new("disks").arguments(&disks);
    let (instance, mut shell) = launch.clone().boot();
    assert_eq!(shell.run("cat /sys/block/vda/serial"), "data-1");
    assert_eq!(shell.number("cat /sys/block/vda/size"), 32 * MIB / 512);
    assert_eq!(shell.run("cat /sys/block/vda/ro /sys/block/vdb/ro"), "0\n1");
    assert_eq!(disk(&instance, 0)["engine"], "io_uring");

    // What the host has put there is read, and cannot be changed.
    assert_eq!(md5_in_guest(&mut shell, "/dev/vdb"), fixed_sum);
    let (status, said) = shell.try_run("dd if=/dev/zero of=/dev/vdb bs=4k count=1", STEP_LIMIT);
    assert_ne!(status, 0, "{said}");
    assert_eq!(md5(&fixed), fixed_sum);

    // What the guest writes is on the host once it has been flushed.
    let write = "dd if=/dev/vdb of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null";
    shell.run(write);
    let sum = md5_in_guest(&mut shell, "/dev/vda");
    assert_eq!(md5(&data), sum);
    let mut sector = [0; 512];
    let file = File::open(&data).expect("the image");
    file.read_exact_at(&mut sector, MIB + 512)
        .expect("a sector");
    assert_eq!(
        sector[..],
        fs::read(&fixed).expect("the other image")[512..1024]
    );
    let seen = disk(&instance, 0);
    assert!(seen["written_bytes"].as_u64() >= Some(4 * MIB), "{seen:#}");
    assert!(seen["flushes"].as_u64() >= Some(1), "{seen:#}");
    assert_eq!(
        (&seen["errors"], &seen["bad_requests"]),
        (&0.into(), &0.into())
    );

    // Discarded space goes back to the host, and the image stays what it is elsewhere.
    let before = allocated(&data);
    assert!((4 * MIB..8 * MIB).contains(&before), "{before}");
    shell.run("busybox blkdiscard -o 1048576 -l 2097152 /dev/vda");
    let after = allocated(&data);
    assert!(after <= before - 2 * MIB + 65536, "{before} to {after}");
    assert!(disk(&instance, 0)["discards"].as_u64() >= Some(1));
    let sum = md5_in_guest(&mut shell, "/dev/vda");
    assert_eq!(md5(&data), sum);

    // All that has cost the host next to nothing.
    let overhead = instance.vm().vmm_resident;
    assert!(overhead < Bytes::mib(4), "The vmm itself takes {overhead}");

    // A second instance is refused with the image's name, and the first goes on.
    let second = Launch::new("second").arguments(&disks[..2]).run_to_end();
    assert_eq!(second.status, 1, "{second:?}");
    assert!(
        second.stderr.contains("data.img") && second.stderr.contains("in use"),
        "{second:?}"
    );
    let readers = Launch::new("reader").arguments(&["--disk", &format!("{},ro", text(&fixed))]);
    let (_reader, mut other) = readers.boot();
    assert_eq!(md5_in_guest(&mut other, "/dev/vda"), fixed_sum);

    // A stop, a new start: the same bytes.
    instance.stop(&[]).expect_success();
    assert_eq!(md5(&data), sum);
    let (_instance, mut shell) = launch.boot();
    assert_eq!(md5_in_guest(&mut shell, "/dev/vda"), sum);
}

/// A block device of this host whose sectors are those of a file; gone when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn over(image: &Path) -> Self {
        let line = format!(
            "device=$(losetup -f) && losetup \"$device\" '{}' && echo \"$device\"",
            image.display()
        );
        let done = Command::new("sh").args(["-c", &line]).output().expect("sh");
        assert!(done.status.success(), "No loop device: {done:?}");
        Self(String::from_utf8_lossy(&done.stdout).trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_is_read_written_discarded_and_for_one_instance_alone() {
    let images = Images::new();
    let store = images.full("store.img", 16 * MIB);
    let device = LoopDevice::over(&store);
    let disk_of = |options: &str| format!("{}{options}", text(&device.0));
    let launch = Launch::new("device").arguments(&["--disk", &disk_of(",serial=block-1")]);
    let (instance, mut shell) = launch.clone().boot();
    assert_eq!(shell.number("cat /sys/block/vda/size"), 16 * MIB / 512);
    assert_eq!(shell.run("cat /sys/block/vda/serial"), "block-1");
    let seen = disk(&instance, 0);
    assert_eq!(
        (&seen["engine"], &seen["direct"]),
        (&"io_uring".into(), &true.into())
    );
    assert_eq!(md5_in_guest(&mut shell, "/dev/vda"), md5(&store));

    // What the guest writes and flushes is on the device.
    shell.run("echo 'written by the guest' >/tmp/words");
    shell.run("dd if=/tmp/words of=/dev/vda bs=4096 seek=3 conv=fsync,sync 2>/dev/null");
    let mut words = [0; 20];
    let file = File::open(&store).expect("the store");
    file.read_exact_at(&mut words, 3 * 4096).expect("a sector");
    assert_eq!(&words, b"written by the guest");

    // Nobody else gets it, to write or to read.
    for (options, word) in [("", "in use"), (",ro", "being written to")] {
        let second = Launch::new("second").arguments(&["--disk", &disk_of(options)]);
        let second = second.run_to_end();
        assert_eq!(second.status, 1, "{second:?}");
        let said = &second.stderr;
        assert!(
            said.contains(&text(&device.0)) && said.contains(word),
            "{second:?}"
        );
    }

    // Discarded space goes through the device back to the host.
    let before = allocated(&store);
    shell.run("busybox blkdiscard -o 4194304 -l 8388608 /dev/vda");
    let after = allocated(&store);
    assert!(after <= before - 8 * MIB + 65536, "{before} to {after}");
    let seen = disk(&instance, 0);
    assert!(seen["discards"].as_u64() >= Some(1), "{seen:#}");
    assert_eq!(
        (&seen["errors"], &seen["bad_requests"]),
        (&0.into(), &0.into())
    );
    let sum = md5_in_guest(&mut shell, "/dev/vda");
    assert_eq!(md5(&store), sum);

    // It is free when the instance has ended, for several that only read.
    instance.stop(&[]).expect_success();
    let read = |name| {
        Launch::new(name)
            .arguments(&["--disk", &disk_of(",ro")])
            .boot()
    };
    let (_first, mut one) = read("first");
    let (_other, mut other) = read("other");
    assert_eq!(md5_in_guest(&mut one, "/dev/vda"), sum);
    assert_eq!(md5_in_guest(&mut other, "/dev/vda"), sum);
    let (status, said) = one.try_run("dd if=/dev/zero of=/dev/vda bs=4k count=1", STEP_LIMIT);
    assert_ne!(status, 0, "{said}");
    assert_eq!(md5(&store), sum);
}

/// A small file system in memory that is unmounted when dropped.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "tmpfs cannot be mounted"
        );
        Self(folder)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_backing_store_is_an_error_in_the_guest_and_an_event_and_no_death() {
    let small = SmallFileSystem::new("4m");
    let image = small.0.path().join("thin.img");
    File::create(&image)
        .and_then(|file| file.set_len(16 * MIB))
        .expect("an image that is larger than its file system");
    let (instance, mut shell) = Launch::new("full")
        .arguments(&["--disk", &text(&image)])
        .boot();
    let write = "dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync";
    let (status, said) = shell.try_run(write, 2 * STEP_LIMIT);
    assert_ne!(status, 0, "{said}");
    let event = instance.wait_for_event("an event of the disk", STEP_LIMIT, |event| {
        event["event"] == "disk_error"
    });
    assert!(
        event["error"]
            .as_str()
            .is_some_and(|e| e.contains("No space left")),
        "{event:#}"
    );
    assert_eq!(event["disk"], text(&image));
    // The rest works: what is there is read, and space that is given back can be written again.
    assert!(disk(&instance, 0)["errors"].as_u64() > Some(0));
    shell.run("dd if=/dev/vda of=/dev/null bs=1M count=2 2>/dev/null");
    shell.run("busybox blkdiscard /dev/vda");
    shell.run("dd if=/dev/zero of=/dev/vda bs=1M count=1 conv=fsync 2>/dev/null");
    let told = instance.events();
    let told = told.iter().filter(|event| event["event"] == "disk_error");
    assert_eq!(told.count(), 1);
}

/// Seconds that the guest takes for a command.
fn timed(shell: &mut Shell, command: &str) -> f64 {
    let start = Instant::now();
    let (status, said) = shell.try_run(command, 4 * STEP_LIMIT);
    assert_eq!(status, 0, "{said}");
    start.elapsed().as_secs_f64()
}

#[test]
fn a_rate_limit_holds_and_changes_while_running() {
    // Looks at the clock.
    let _alone = alone();
    let images = Images::new();
    let data = images.sparse("data.img", 64 * MIB);
    let limited = format!("{},rate=2M,burst=128K", text(&data));
    let (instance, mut shell) = Launch::new("rate").arguments(&["--disk", &limited]).boot();
    assert_eq!(disk(&instance, 0)["rate"]["bytes_per_s"], 2 * MIB);
    // Direct I/O, so that the guest's own cache is not in the way: 8 MiB at 2 MiB a second.
    let read = |skip: u32| {
        format!("dd if=/dev/vda of=/dev/null bs=64k count=128 skip={skip} iflag=direct 2>/dev/null")
    };
    let took = timed(&mut shell, &read(0));
    assert!((2.8..5.2).contains(&took), "8 MiB took {took} s");
    assert!(disk(&instance, 0)["throttled"].as_u64() > Some(10));

    // Raised while a read waits: it goes on at once.
    instance.resize_applied(&["--disk-rate", "256K"]);
    shell.type_line(&format!("{}; echo done > /tmp/read", read(200)));
    std::thread::sleep(Duration::from_secs(2));
    let report = instance.resize_applied(&["--disk-rate", "0=max"]);
    let step = report["timeline_ms"]["disk_rate"].as_f64();
    assert!(step.is_some_and(|ms| ms < 1000.0), "{report:#}");
    let took = timed(&mut shell, "while [ ! -e /tmp/read ]; do sleep 0.1; done");
    assert!(
        took < 8.0,
        "The rest of 8 MiB took {took} s without a limit"
    );

    // Requests are counted as well, and a disk that is not there is named.
    instance.resize_applied(&["--disk-rate", "40iops"]);
    let small = "dd if=/dev/vda of=/dev/null bs=4k count=120 skip=9000 iflag=direct 2>/dev/null";
    let took = timed(&mut shell, small);
    assert!((2.1..3.8).contains(&took), "120 requests took {took} s");
    let refused = instance.resize(&["--disk-rate", "7=1M"]);
    assert_eq!(refused["outcome"], "refused", "{refused:#}");
    assert!(
        refused["reason"]
            .as_str()
            .is_some_and(|r| r.contains("Disk 7")),
        "{refused:#}"
    );
}

#[test]
fn disks_that_cannot_be_are_refused_with_what_to_do_and_nothing_is_left() {
    let images = Images::new();
    let odd = images.sparse("odd.img", 1000);
    let none = images.0.path().join("none.img");
    let folder = images.0.path().to_owned();
    let state = tempfile::tempdir().expect("a folder for the state");
    for (path, options, word) in [
        (&none, "", "does not exist"),
        (&folder, "", "is a folder"),
        (&odd, "", "multiple of 512"),
        (&odd, ",rw", "'rw'"),
        (&odd, ",rate=0", "at least 1"),
    ] {
        let disk = format!("{}{options}", text(path));
        let line = Launch::new("refused")
            .arguments(&["--disk", &disk])
            .line(state.path());
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let finished = concertina_with(&line, BOOT_LIMIT);
        assert_eq!(finished.status, 2, "{disk}: {finished:?}");
        assert!(finished.stderr.contains(word), "{disk}: {finished:?}");
    }
    let left = fs::read_dir(state.path().join("refused")).map(Iterator::count);
    assert!(left.is_err(), "the folder of a refused instance is left");
}
