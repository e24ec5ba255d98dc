//! How a distribution on a disk boots: which kernel, which initrd, and what its root is called.
//!
//! The boot loader's configuration is not interpreted: distributions name kernels and initrds after
//! the kernel's release, and the one that their boot loader takes is the newest, or the one that a
//! `vmlinuz` link points to.

use std::path::{Path, PathBuf};

use super::Image;
use super::filesystem::{Filesystem, Kind};
use super::table::{self, Partition, TableKind};
use crate::image::error::ImageError;
use crate::image::kernel::compare_versions;

/// Folders of kernels: in a root file system, and in a boot partition of its own.
const BOOT_FOLDERS: [&str; 2] = ["/boot", "/"];
/// What kernels are called, before their release.
const KERNEL_NAMES: [&str; 3] = ["vmlinuz-", "vmlinux-", "bzImage-"];
/// Links to the kernel of the next boot.
const KERNEL_LINKS: [&str; 3] = ["/vmlinuz", "/boot/vmlinuz", "/boot/vmlinuz.img"];
/// Kernels for rescue are not booted by default.
const RESCUE: &str = "rescue";
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];
/// Any of these is the first program of a distribution.
const INITS: [&str; 3] = ["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd"];
const DISK_DEVICE: &str = "/dev/vda";

/// One partition, or the whole disk where it has no table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartInfo {
    /// Number; 0 for the whole disk.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start_bytes: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// `PARTUUID`; empty for the whole disk.
    pub partuuid: String,
    /// What it holds.
    pub filesystem: Kind,
    /// UUID of an ext4 file system.
    pub uuid: Option<String>,
    /// Label of an ext4 file system.
    pub label: Option<String>,
    /// Why its file system cannot be read.
    pub problem: Option<String>,
}

impl PartInfo {
    /// The device in a guest that has the image as its first disk.
    pub fn device(&self) -> String {
        match self.number {
            0 => DISK_DEVICE.to_owned(),
            number => format!("{DISK_DEVICE}{number}"),
        }
    }
}

/// A file in one of the partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Number of the partition; 0 for the whole disk.
    pub partition: u32,
    /// Path in its file system, without links.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Number of its partition; 0 for the whole disk.
    pub partition: u32,
    /// Value of the kernel's `root=`.
    pub spec: String,
    /// The distribution, in its own words.
    pub os: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The image.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its partition table.
    pub table: TableKind,
    /// Its partitions, or the whole disk.
    pub parts: Vec<PartInfo>,
    /// The root file system, where one was recognised.
    pub root: Option<Root>,
    /// The kernel.
    pub kernel: Option<BootFile>,
    /// Release of the kernel, as its name says.
    pub release: Option<String>,
    /// The initrd that belongs to the kernel.
    pub initrd: Option<BootFile>,
}

impl Inspection {
    /// What the image lacks to be booted, as a sentence; `None` when it has all.
    pub fn lacks(&self) -> Option<String> {
        let problems: Vec<String> = self
            .parts
            .iter()
            .filter_map(|part| Some(format!("{}: {}", part.device(), part.problem.as_ref()?)))
            .collect();
        let what = match (&self.kernel, &self.root) {
            (None, _) => "no kernel (like /boot/vmlinuz-6.1.0-9-amd64) in an ext4 file system",
            (_, None) => "no root file system",
            _ => return None,
        };
        let mut text = format!("Image {} has {what}", self.path.display());
        if !problems.is_empty() {
            text.push_str(" (");
            text.push_str(&problems.join("; "));
            text.push(')');
        }
        Some(text)
    }

    /// What the distribution's boot loader would put on the kernel's command line.
    pub fn root_arguments(&self) -> Option<String> {
        self.root
            .as_ref()
            .map(|root| format!("root={} ro", root.spec))
    }
}

/// Looks into a raw image.
pub fn inspect(path: &Path) -> Result<Inspection, ImageError> {
    let image = Image::open(path)?;
    inspect_image(&image, path)
}

/// A partition with its open file system.
pub(super) struct Opened {
    pub info: PartInfo,
    pub files: Option<Filesystem>,
    is_root_type: bool,
}

/// All parts of an image.
pub(super) fn open_parts(
    image: &Image,
    path: &Path,
) -> Result<(TableKind, Vec<Opened>), ImageError> {
    let read = ImageError::file("read", path);
    let (kind, partitions) = table::read(image).map_err(read)?;
    let whole = Partition {
        number: 0,
        start_bytes: 0,
        size_bytes: image.len(),
        partuuid: String::new(),
        is_root_type: false,
    };
    let partitions = if partitions.is_empty() {
        vec![whole]
    } else {
        partitions
    };
    let parts = partitions
        .into_iter()
        .map(|partition| open_part(image, partition))
        .collect::<std::io::Result<_>>()
        .map_err(ImageError::file("read", path))?;
    Ok((kind, parts))
}

fn open_part(image: &Image, partition: Partition) -> std::io::Result<Opened> {
    let part = image.part(partition.start_bytes, partition.size_bytes);
    let kind = Kind::of(&part)?;
    let files = (kind == Kind::Ext4).then(|| Filesystem::open(&part));
    let (files, problem) = match files {
        Some(Ok(files)) => (Some(files), None),
        Some(Err(problem)) => (None, Some(problem)),
        None => (None, None),
    };
    let info = PartInfo {
        number: partition.number,
        start_bytes: partition.start_bytes,
        size_bytes: partition.size_bytes,
        partuuid: partition.partuuid,
        filesystem: kind,
        uuid: files.as_ref().map(Filesystem::uuid),
        label: files
            .as_ref()
            .map(Filesystem::label)
            .filter(|label| !label.is_empty()),
        problem,
    };
    Ok(Opened {
        info,
        files,
        is_root_type: partition.is_root_type,
    })
}

pub(super) fn inspect_image(image: &Image, path: &Path) -> Result<Inspection, ImageError> {
    let (table, parts) = open_parts(image, path)?;
    let root = choose_root(&parts);
    let found = choose_kernel(&parts, root);
    let (kernel, release, initrd) = match found {
        Some(found) => (Some(found.kernel), Some(found.release), found.initrd),
        None => (None, None, None),
    };
    let root = root.map(|part| describe_root(part, initrd.is_some()));
    Ok(Inspection {
        path: path.to_owned(),
        size_bytes: image.len(),
        table,
        parts: parts.into_iter().map(|part| part.info).collect(),
        root,
        kernel,
        release,
        initrd,
    })
}

/// The partition with a distribution in it; else one that its table or its kind says to be a root.
fn choose_root(parts: &[Opened]) -> Option<&Opened> {
    let has = |part: &&Opened, paths: &[&str]| {
        let reachable = |files: &Filesystem| paths.iter().any(|path| files.find(path).is_some());
        part.files.as_ref().is_some_and(reachable)
    };
    let foreign = |part: &&Opened| matches!(part.info.filesystem, Kind::Xfs | Kind::Btrfs);
    parts
        .iter()
        .find(|part| has(part, &INITS) && has(part, &OS_RELEASE))
        .or_else(|| parts.iter().find(|part| has(part, &INITS)))
        .or_else(|| parts.iter().find(|part| part.is_root_type))
        .or_else(|| parts.iter().find(foreign))
}

fn describe_root(part: &Opened, has_initrd: bool) -> Root {
    let info = &part.info;
    // By its UUID only an initrd finds a file system; the kernel itself knows partitions and devices.
    let spec = match (&info.uuid, info.partuuid.as_str()) {
        (Some(uuid), _) if has_initrd => format!("UUID={uuid}"),
        (_, "") => info.device(),
        (_, partuuid) => format!("PARTUUID={partuuid}"),
    };
    let os = part.files.as_ref().and_then(|files| {
        let text = OS_RELEASE.iter().find_map(|path| files.text(path))?;
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(printable(name.trim_matches(['"', '\''])))
    });
    Root {
        partition: info.number,
        spec,
        os,
    }
}

/// Text of an image that goes to a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

struct Bootable {
    kernel: BootFile,
    release: String,
    initrd: Option<BootFile>,
}

/// The kernel that the root's links name, else the newest of all parts; one with an initrd first.
fn choose_kernel(parts: &[Opened], root: Option<&Opened>) -> Option<Bootable> {
    if let Some(linked) = root.and_then(linked_kernel) {
        return Some(linked);
    }
    parts.iter().flat_map(kernels_of).max_by(|a, b| {
        a.initrd
            .is_some()
            .cmp(&b.initrd.is_some())
            .then_with(|| compare_versions(&a.release, &b.release))
    })
}

fn linked_kernel(root: &Opened) -> Option<Bootable> {
    let files = root.files.as_ref()?;
    KERNEL_LINKS
        .iter()
        .filter_map(|link| files.find(link))
        .find_map(|found| {
            let (folder, name) = found.path.rsplit_once('/')?;
            bootable(root, files, folder, name)
        })
}

fn kernels_of(part: &Opened) -> Vec<Bootable> {
    let Some(files) = part.files.as_ref() else {
        return Vec::new();
    };
    BOOT_FOLDERS
        .iter()
        .flat_map(|folder| {
            let folder = folder.trim_end_matches('/');
            files
                .names(if folder.is_empty() { "/" } else { folder })
                .into_iter()
                .filter_map(move |name| bootable(part, files, folder, &name))
        })
        .collect()
}

/// A kernel by its name, with the initrd that belongs to it.
fn bootable(part: &Opened, files: &Filesystem, folder: &str, name: &str) -> Option<Bootable> {
    let release = KERNEL_NAMES
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    if release.is_empty() || release.contains(RESCUE) || release.chars().any(char::is_control) {
        return None;
    }
    let file = |name: &str| {
        let found = files.find(&format!("{folder}/{name}"))?;
        (!found.is_dir && found.size_bytes > 0).then_some(BootFile {
            partition: part.info.number,
            path: found.path,
            size_bytes: found.size_bytes,
        })
    };
    let kernel = file(name)?;
    // Debian and Ubuntu; Fedora, Red Hat, Arch, Alpine; SUSE.
    let initrd = [
        format!("initrd.img-{release}"),
        format!("initramfs-{release}.img"),
        format!("initramfs-{release}"),
        format!("initrd-{release}"),
    ]
    .iter()
    .find_map(|name| file(name));
    Some(Bootable {
        kernel,
        release: release.to_owned(),
        initrd,
    })
}
