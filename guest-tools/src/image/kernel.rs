//! The kernel of the default guest: one that this host has, or Debian's cloud kernel.
//!
//! The host's own is taken where it can be read with its modules and has what a guest needs.
//! Otherwise Debian's package is downloaded and unpacked, not installed, into a cache folder, where
//! it appears as a whole or not at all.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command;
use super::elf;
use super::error::ImageError;
use super::initramfs::find_release_folder;
use super::modules::ModuleTree;

/// Packages that name the newest kernel, the preferred one first.
const METAPACKAGES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];
const IMAGE_PACKAGE: &str = "linux-image-";
const CLOUD_PACKAGE: &str = "-cloud-amd64";
const IMAGE_FILE: &str = "vmlinuz-";
/// Where a bzImage's setup header points to its version text, and what that pointer is counted from.
const VERSION_OFFSET: usize = 0x20e;
const VERSION_BASE: usize = 0x200;
/// What precedes the release in a running kernel's log, and in its image.
const BANNER: &[u8] = b"Linux version ";

/// Bytes after which a kernel is read no further: more than one has, even with all of its symbols.
const READ_LIMIT: u64 = 1 << 30;

/// What is asked of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelOptions {
    /// Beginning of its version, in whole numbers: `6.12` is met by `6.12.9` but not by `6.120`.
    pub version: Option<String>,
    /// Leave the host's own kernels aside.
    pub ignore_host: bool,
}

/// A kernel that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultKernel {
    /// The bzImage.
    pub image: PathBuf,
    /// Its `lib/modules/RELEASE` folder.
    pub modules: PathBuf,
    /// Its release.
    pub release: String,
}

/// Finds the default guest's kernel, or fetches it into the cache folder, which is made where it is
/// missing. `progress` is told what takes time and what was chosen, in sentences.
///
/// In this order: the host's running kernel, its newest other one, the newest in the cache, Debian's.
/// Only kernels that suit `options` and that have virtio-pci and virtio-mem count.
pub fn default_kernel(
    cache: &Path,
    options: &KernelOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<DefaultKernel, ImageError> {
    if !options.ignore_host
        && let Some(kernel) = host_kernel(Path::new("/"), options)
    {
        progress(&format!("Using this host's own kernel {}", kernel.release));
        return Ok(kernel);
    }
    let kernels = cache.join("kernels");
    fs::create_dir_all(&kernels).map_err(ImageError::file("create", &kernels))?;
    let lock_path = kernels.join(".lock");
    let lock = File::create(&lock_path).map_err(ImageError::file("create", &lock_path))?;
    lock.lock().map_err(ImageError::file("lock", &lock_path))?;
    if let Some(kernel) = cached_kernel(&kernels, options) {
        progress(&format!("Using kernel {} of the cache", kernel.release));
        return Ok(kernel);
    }
    let package = choose_package(options)?;
    progress(&format!("Fetching Debian's kernel package {package}"));
    fetch(&kernels, &package)
}

/// The modules that belong to a kernel image (bzImage or vmlinux): those of its release on this host,
/// or beside it in an unpacked package. `None` when there are none, or it is no kernel.
pub fn modules_of(image: &Path) -> Option<PathBuf> {
    let release = release_of(&read(image)?)?;
    let beside = image.canonicalize().ok()?;
    let package = beside.parent().and_then(Path::parent);
    package
        .and_then(|package| module_folder(package, &release))
        .or_else(|| module_folder(Path::new("/"), &release))
}

/// What a file has, up to more than any kernel: one that has no end, like a device or a pipe, is none.
fn read(image: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(image).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    let file = File::open(image).ok()?;
    file.take(READ_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The release of a kernel: a bzImage names it in its setup header, a vmlinux in its banner.
fn release_of(image: &[u8]) -> Option<String> {
    let text = if image.starts_with(elf::MAGIC) {
        // The banner, and not the format string that looks like one.
        let is_banner = |window: &[u8]| {
            window
                .strip_prefix(BANNER)
                .and_then(|rest| rest.first())
                .is_some_and(u8::is_ascii_digit)
        };
        let start = image.windows(BANNER.len() + 1).position(is_banner)?;
        image.get(start.checked_add(BANNER.len())?..)?
    } else {
        super::vmlinux::payload(image).ok()?;
        let offset = u16::from_le_bytes(*image.get(VERSION_OFFSET..)?.first_chunk()?);
        image.get(usize::from(offset).checked_add(VERSION_BASE)?..)?
    };
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    let release = std::str::from_utf8(text.get(..end)?).ok()?;
    (!release.is_empty() && !release.contains('/')).then(|| release.to_owned())
}

fn module_folder(root: &Path, release: &str) -> Option<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|folder| root.join(folder).join(release))
        .find(|folder| folder.join("modules.builtin").is_file())
}

/// The best kernel under a root: the running one, else the newest.
fn host_kernel(root: &Path, options: &KernelOptions) -> Option<DefaultKernel> {
    let running = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernels_in(root, options).into_iter().max_by(|a, b| {
        let is_running = |kernel: &DefaultKernel| kernel.release == running.trim();
        is_running(a)
            .cmp(&is_running(b))
            .then_with(|| compare_versions(&a.release, &b.release))
    })
}

/// All suitable kernels under a root: `boot/vmlinuz-RELEASE`, readable, with its modules.
fn kernels_in(root: &Path, options: &KernelOptions) -> Vec<DefaultKernel> {
    let Ok(entries) = fs::read_dir(root.join("boot")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let release = entry
                .file_name()
                .to_str()?
                .strip_prefix(IMAGE_FILE)?
                .to_owned();
            let suits = options
                .version
                .as_deref()
                .is_none_or(|v| is_version(&release, v));
            let modules = module_folder(root, &release).filter(|_| suits)?;
            File::open(entry.path()).ok()?;
            let tree = ModuleTree::open(&modules).ok()?;
            tree.lacks().is_none().then(|| DefaultKernel {
                image: entry.path(),
                modules,
                release,
            })
        })
        .collect()
}

fn cached_kernel(kernels: &Path, options: &KernelOptions) -> Option<DefaultKernel> {
    fs::read_dir(kernels)
        .ok()?
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .flat_map(|entry| kernels_in(&entry.path(), options))
        .max_by(|a, b| compare_versions(&a.release, &b.release))
}

/// The package of the kernel itself that Debian's package lists offer for the options.
fn choose_package(options: &KernelOptions) -> Result<String, ImageError> {
    let wanted = options.version.as_deref();
    let by_version = wanted.map(|version| format!("{IMAGE_PACKAGE}{version}{CLOUD_PACKAGE}"));
    let metapackages: Vec<&str> = by_version
        .as_deref()
        .into_iter()
        .chain(METAPACKAGES)
        .collect();
    for name in metapackages {
        match command::run(Command::new("apt-cache").args(["depends", name])) {
            Ok(text) => {
                let package = image_dependency(&text);
                if let Some(package) = package.filter(|package| package_suits(package, wanted)) {
                    return Ok(package);
                }
            }
            // A name that apt does not know is tried no further; a missing apt is the end.
            Err(ImageError::Command { why, .. }) if why.starts_with("E: ") => {}
            Err(error) => return Err(no_kernel(wanted, &error.to_string())),
        }
    }
    // Without a metapackage for this version there may still be a package, as in backports.
    let names = command::run(Command::new("apt-cache").args(["pkgnames", IMAGE_PACKAGE]))
        .map_err(|error| no_kernel(wanted, &error.to_string()))?;
    newest_package(&names, wanted).ok_or_else(|| {
        no_kernel(
            wanted,
            "apt knows no such package; 'apt-get update' fetches the lists",
        )
    })
}

fn no_kernel(version: Option<&str>, why: &str) -> ImageError {
    let wanted = version.map_or(String::new(), |version| format!(" {version}"));
    ImageError::NoKernel(format!(
        "There is no kernel{wanted} for the guest: none in /boot can be read together with its \
         modules, and Debian's cannot be found: {why}. Give a kernel and an initramfs yourself, or \
         set up Debian's package sources"
    ))
}

/// The kernel that a metapackage depends on, in the words of `apt-cache depends`.
fn image_dependency(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with(IMAGE_PACKAGE) && package.ends_with(CLOUD_PACKAGE))
        .map(str::to_owned)
}

fn package_release(package: &str) -> Option<&str> {
    let release = package.strip_prefix(IMAGE_PACKAGE)?;
    // A metapackage has no patch level: `6.12-cloud-amd64`, `cloud-amd64`.
    let version = release.strip_suffix(CLOUD_PACKAGE)?;
    (version.matches('.').count() >= 2).then_some(release)
}

fn package_suits(package: &str, version: Option<&str>) -> bool {
    package_release(package)
        .is_some_and(|release| version.is_none_or(|version| is_version(release, version)))
}

fn newest_package(names: &str, version: Option<&str>) -> Option<String> {
    names
        .lines()
        .map(str::trim)
        .filter(|package| package_suits(package, version))
        .max_by(|a, b| compare_versions(a, b))
        .map(str::to_owned)
}

/// Downloads and unpacks a package beside the cache's kernels and moves it among them at the end.
fn fetch(kernels: &Path, package: &str) -> Result<DefaultKernel, ImageError> {
    let work = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(kernels)
        .map_err(ImageError::file("create a folder in", kernels))?;
    // As root, apt would drop to a user who may not write into this folder.
    command::run(
        Command::new("apt-get")
            .args([
                "-q",
                "-o",
                "APT::Sandbox::User=root",
                "-o",
                "Acquire::Retries=3",
            ])
            .args(["download", package])
            .current_dir(work.path()),
    )?;
    let archive = fs::read_dir(work.path())
        .map_err(ImageError::file("read", work.path()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| no_kernel(None, &format!("apt-get download {package} left no package")))?;
    let unpacked = work.path().join("unpacked");
    command::run(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    let modules = find_release_folder(&unpacked)?;
    let tree = ModuleTree::open(&modules)?;
    if let Some(name) = tree.lacks() {
        return Err(ImageError::ModuleMissing {
            release: tree.release().to_owned(),
            name: name.to_owned(),
        });
    }
    let place = kernels.join(tree.release());
    fs::rename(&unpacked, &place).map_err(ImageError::file("move the kernel to", &place))?;
    kernels_in(&place, &KernelOptions::default())
        .pop()
        .ok_or_else(|| ImageError::format(&place, "a kernel package", "it holds no kernel image"))
}

/// Whether a release begins with this version, number by number.
fn is_version(release: &str, version: &str) -> bool {
    release
        .strip_prefix(version)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Orders versions by their numbers, and by their text between these.
pub(super) fn compare_versions(a: &str, b: &str) -> Ordering {
    version_parts(a).cmp(&version_parts(b))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Text(&'a str),
    Number(u64),
}

fn version_parts(version: &str) -> Vec<Part<'_>> {
    version
        .split_inclusive(|c: char| !c.is_ascii_digit())
        .flat_map(|piece| {
            let digits = piece.trim_end_matches(|c: char| !c.is_ascii_digit());
            let text = piece.get(digits.len()..).unwrap_or_default();
            [
                digits.parse().map_or(Part::Text(digits), Part::Number),
                Part::Text(text),
            ]
        })
        .filter(|part| *part != Part::Text(""))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::modinfo::testing::module;

    fn add_kernel(root: &Path, release: &str, modules: &[&str]) {
        let folder = root.join("lib/modules").join(release);
        fs::create_dir_all(folder.join("kernel")).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        for name in modules {
            fs::write(folder.join(format!("kernel/{name}.ko")), module(name, "")).unwrap();
        }
        fs::write(folder.join("modules.builtin"), "").unwrap();
        fs::write(root.join(format!("boot/vmlinuz-{release}")), "").unwrap();
    }

    #[test]
    fn what_has_no_end_is_no_kernel() {
        assert_eq!(modules_of(Path::new("/dev/zero")), None);
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(modules_of(&pipe), None);
    }

    const GOOD: [&str; 2] = ["virtio_pci", "virtio_mem"];

    #[test]
    fn the_newest_suitable_kernel_of_the_host_is_chosen() {
        let root = tempfile::tempdir().unwrap();
        add_kernel(root.path(), "6.1.0-9-amd64", &GOOD);
        add_kernel(root.path(), "6.1.0-10-amd64", &GOOD);
        add_kernel(root.path(), "6.12.1-amd64", &["virtio_pci"]);
        let choose = |version: Option<&str>| {
            let options = KernelOptions {
                version: version.map(str::to_owned),
                ..KernelOptions::default()
            };
            host_kernel(root.path(), &options).map(|kernel| kernel.release)
        };
        assert_eq!(choose(None).as_deref(), Some("6.1.0-10-amd64"));
        assert_eq!(choose(Some("6.1")).as_deref(), Some("6.1.0-10-amd64"));
        assert_eq!(choose(Some("6.12")), None, "it has no virtio_mem");
    }

    #[test]
    fn a_kernel_without_its_modules_does_not_count() {
        let root = tempfile::tempdir().unwrap();
        add_kernel(root.path(), "6.1.0-9-amd64", &GOOD);
        fs::remove_dir_all(root.path().join("lib/modules")).unwrap();
        assert_eq!(host_kernel(root.path(), &KernelOptions::default()), None);
    }

    #[test]
    fn a_half_made_cache_entry_is_not_a_kernel() {
        let cache = tempfile::tempdir().unwrap();
        add_kernel(
            &cache.path().join(".fetch-x/unpacked"),
            "6.12.1-amd64",
            &GOOD,
        );
        add_kernel(&cache.path().join(".fetch-y"), "6.12.1-amd64", &GOOD);
        assert_eq!(cached_kernel(cache.path(), &KernelOptions::default()), None);
        add_kernel(
            &cache.path().join("6.1.0-cloud-amd64"),
            "6.1.0-cloud-amd64",
            &GOOD,
        );
        let found = cached_kernel(cache.path(), &KernelOptions::default()).unwrap();
        assert_eq!(found.release, "6.1.0-cloud-amd64");
        assert!(found.image.is_file() && found.modules.is_dir());
    }

    #[test]
    fn a_vmlinux_names_its_release_in_its_banner() {
        let vmlinux = b"\x7fELF\0\0Linux version %s\0Linux version 6.1.0-9-amd64 (builder)\n";
        assert_eq!(release_of(vmlinux).as_deref(), Some("6.1.0-9-amd64"));
        for image in [
            &b"\x7fELF"[..],
            b"\x7fELF Linux version ",
            b"Linux version 6.1 ",
            b"",
        ] {
            assert_eq!(release_of(image), None);
        }
    }

    #[test]
    fn versions_are_compared_by_number_and_met_in_whole_numbers() {
        assert_eq!(
            compare_versions("6.12.101+deb12", "6.12.99+deb12"),
            Ordering::Greater
        );
        assert_eq!(
            compare_versions("6.1.0-9-amd64", "6.1.0-10-amd64"),
            Ordering::Less
        );
        assert!(is_version("6.12.117+deb12-cloud-amd64", "6.12"));
        assert!(is_version("6.1.0-56-cloud-amd64", "6.1"));
        assert!(!is_version("6.12.117+deb12-cloud-amd64", "6.1"));
    }

    #[test]
    fn the_real_package_is_read_out_of_a_metapackage() {
        let text =
            "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        let package = image_dependency(text).unwrap();
        assert_eq!(package, "linux-image-6.12.117+deb12-cloud-amd64");
        assert!(package_suits(&package, Some("6.12")) && !package_suits(&package, Some("6.1")));
    }

    #[test]
    fn metapackages_and_other_flavours_are_no_kernels() {
        let names = "linux-image-cloud-amd64\nlinux-image-6.12-cloud-amd64\n\
            linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-10-cloud-amd64\n\
            linux-image-6.1.0-11-cloud-amd64-dbg\nlinux-image-6.1.0-12-amd64\n";
        let newest = newest_package(names, None).unwrap();
        assert_eq!(newest, "linux-image-6.1.0-10-cloud-amd64");
        assert_eq!(newest_package(names, Some("5.10")), None);
    }
}
