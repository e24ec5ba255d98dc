//! The host that the scenarios need, and the guests that `scripts/test` has made for them.

use std::path::{Path, PathBuf};

/// A Debian kernel series under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// bookworm's kernel.
    V6_1,
    /// bookworm-backports' kernel.
    V6_12,
}

/// The files of one guest.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    /// The kernel as Debian ships it.
    pub bzimage: PathBuf,
    /// The ELF image from within it.
    pub vmlinux: PathBuf,
    /// Our guest program, busybox and the modules of that kernel.
    pub initramfs: PathBuf,
}

/// The guest of a kernel series.
pub fn guest(series: Series) -> GuestFiles {
    let name = match series {
        Series::V6_1 => "6.1",
        Series::V6_12 => "6.12",
    };
    let root = std::env::var_os("CONCERTINA_TEST_GUESTS").unwrap_or_else(|| {
        panic!("CONCERTINA_TEST_GUESTS does not name the guests' folder: run scripts/test")
    });
    let folder = Path::new(&root).join(name);
    GuestFiles {
        bzimage: folder.join("bzImage"),
        vmlinux: folder.join("vmlinux"),
        initramfs: folder.join("initramfs"),
    }
}

/// A disk image with a distribution. What a scenario writes to it is thrown away after the suite.
#[derive(Debug, Clone)]
pub struct Image {
    /// `bookworm-6.1`: the release, and how its kernel's version begins.
    pub name: String,
    /// The image: a file, or a block device of the nested host.
    pub path: PathBuf,
}

/// The images that `scripts/test` has made.
#[track_caller]
pub fn images() -> Vec<Image> {
    let list = std::env::var("CONCERTINA_TEST_IMAGES").unwrap_or_else(|_| {
        panic!("CONCERTINA_TEST_IMAGES does not name the disk images: run scripts/test")
    });
    list.split(',')
        .map(|entry| {
            let (name, path) = entry
                .split_once('=')
                .unwrap_or_else(|| panic!("CONCERTINA_TEST_IMAGES has '{entry}'"));
            Image {
                name: name.to_owned(),
                path: path.into(),
            }
        })
        .collect()
}

/// Fails the test with a sentence when this host cannot run the scenarios: they never pass, and are
/// never skipped, on a machine where they prove nothing.
#[track_caller]
pub fn require_host() {
    let hardware = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| Path::new("/sys/module").join(module).is_dir());
    let opens = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    assert!(
        hardware && opens,
        "This host has no KVM that runs stock kernels: run scripts/test, which brings one"
    );
    assert!(
        Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        "This host's cgroups are not version 2: run scripts/test, which brings a host where they are"
    );
}
