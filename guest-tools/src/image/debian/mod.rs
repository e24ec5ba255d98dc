//! A bootable Debian disk: systemd, Debian's own cloud kernel and initrd, and what makes the guest
//! elastic.
//!
//! ```text
//! apt's sources ──mmdebstrap──► base.tar in the cache ──tar, our files, mke2fs -d──► raw disk
//! ```
//! The disk is one bare ext4 file system. Nothing reads a boot loader from it, since the kernel is
//! handed over by the vmm; and a disk without a partition table grows by being made longer: the
//! guest stretches its file system at the next boot.
//!
//! Root is not needed: mmdebstrap works in a user namespace of its own, and the disk is filled in
//! one where the user is root and the other owners are the user's subordinate ids.

mod base;
mod fill;
mod overlay;
mod sources;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::ImageError;
use super::tool::{MKE2FS, MMDEBSTRAP};

/// Smallest disk that is made; a base system fills about half of it.
pub const LEAST_SIZE_BYTES: u64 = 512 << 20;
/// Largest disk that is made.
pub const MOST_SIZE_BYTES: u64 = 16 << 40;

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianSpec {
    /// Code name: `bookworm`.
    pub release: String,
    /// Beginning of the kernel's version (`6.12`), where it is not the release's own.
    pub kernel_series: Option<String>,
    /// Packages beside those that every image has.
    pub packages: Vec<String>,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Host name of the guest.
    pub hostname: String,
    /// Root's password; without one the serial console logs root in by itself.
    pub root_password: Option<String>,
    /// Build the base system again, even if the cache has one.
    pub fresh: bool,
    /// The `concertina-guest` program; see [`find_guest_program`](super::find_guest_program).
    pub guest_program: PathBuf,
    /// Where base systems are kept.
    pub cache: PathBuf,
    /// The disk; replaced as a whole, or not at all.
    pub output: PathBuf,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianReport {
    /// The disk.
    pub output: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it takes on the host's disk, in bytes: it is sparse.
    pub allocated_bytes: u64,
    /// UUID of its file system.
    pub uuid: String,
    /// Whether the base system came from the cache.
    pub from_cache: bool,
}

/// Builds it. `progress` is told each step, in a sentence.
pub fn build(
    spec: &DebianSpec,
    progress: &mut dyn FnMut(&str),
) -> Result<DebianReport, ImageError> {
    check(spec)?;
    // What is missing is said before minutes are spent.
    let mmdebstrap = MMDEBSTRAP.find()?;
    let mke2fs = MKE2FS.find()?;
    let runner = fill::Runner::find()?;
    let base = base::base_system(spec, &mmdebstrap, progress)?;
    let uuid = random_uuid()?;

    progress("Putting the disk together");
    let folder = folder_of(&spec.output);
    let disk = tempfile::Builder::new()
        .prefix(".concertina-image-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(ImageError::file("create a file in", folder))?;
    disk.as_file()
        .set_len(spec.size_bytes)
        .map_err(ImageError::file("size", &spec.output))?;
    let files = overlay::write(spec, &uuid)?;
    fill::fill(
        &runner,
        &fill::Filling {
            base: &base.path,
            overlay: files.path(),
            disk: disk.path(),
            mke2fs: &mke2fs,
            uuid: &uuid,
            password: spec.root_password.as_deref(),
        },
    )
    .map_err(|error| explain_full(error, spec))?;
    disk.persist(&spec.output)
        .map_err(|error| ImageError::file("write", &spec.output)(error.error))?;
    let written = fs::metadata(&spec.output).map_err(ImageError::file("read", &spec.output))?;
    Ok(DebianReport {
        output: spec.output.clone(),
        size_bytes: written.len(),
        allocated_bytes: std::os::unix::fs::MetadataExt::blocks(&written).saturating_mul(512),
        uuid,
        from_cache: base.from_cache,
    })
}

/// What mke2fs says of a disk that is too small, in the words of whoever chose the size.
fn explain_full(error: ImageError, spec: &DebianSpec) -> ImageError {
    match &error {
        ImageError::Command { why, .. }
            if why.contains("Could not allocate") || why.contains("No free space") =>
        {
            ImageError::Invalid(format!(
                "The system does not fit into a disk of {} MiB: choose a larger --size",
                spec.size_bytes >> 20
            ))
        }
        _ => error,
    }
}

/// Everything in it becomes an argument of another program, or part of a file of the guest.
fn check(spec: &DebianSpec) -> Result<(), ImageError> {
    let invalid = |sentence: String| Err(ImageError::Invalid(sentence));
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if spec.release.is_empty() || !spec.release.chars().all(|c| lower(c) || c == '-') {
        return invalid(format!(
            "Release '{}' is no code name of Debian: write one like bookworm",
            spec.release
        ));
    }
    if let Some(series) = &spec.kernel_series
        && (series.is_empty() || !series.chars().all(|c| c.is_ascii_digit() || c == '.'))
    {
        return invalid(format!(
            "Kernel series '{series}' is no beginning of a version: write one like 6.12"
        ));
    }
    for package in &spec.packages {
        let begins = package.starts_with(lower);
        let rest = package
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.:=/~".contains(c));
        if !begins || !rest {
            return invalid(format!(
                "Package '{package}' is no name of a Debian package"
            ));
        }
    }
    if !(LEAST_SIZE_BYTES..=MOST_SIZE_BYTES).contains(&spec.size_bytes) {
        return invalid(format!(
            "Size of {} bytes is not possible: {} MiB to {} TiB are allowed",
            spec.size_bytes,
            LEAST_SIZE_BYTES >> 20,
            MOST_SIZE_BYTES >> 40
        ));
    }
    let label = |c: char| lower(c) || c == '-';
    if spec.hostname.is_empty()
        || spec.hostname.len() > 63
        || !spec.hostname.chars().all(label)
        || spec.hostname.starts_with('-')
    {
        return invalid(format!(
            "Host name '{}' is not allowed: 1 to 63 of a-z, 0-9 and '-', beginning with a letter \
             or digit",
            spec.hostname
        ));
    }
    match &spec.root_password {
        Some(password) if password.is_empty() || password.chars().any(char::is_control) => {
            invalid("The password of root is empty or has control characters".into())
        }
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn random_uuid() -> Result<String, ImageError> {
    let source = Path::new("/proc/sys/kernel/random/uuid");
    let text = fs::read_to_string(source).map_err(ImageError::file("read", source))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn spec() -> DebianSpec {
        DebianSpec {
            release: "bookworm".into(),
            kernel_series: None,
            packages: Vec::new(),
            size_bytes: 1 << 30,
            hostname: "debian".into(),
            root_password: None,
            fresh: false,
            guest_program: std::env::current_exe().unwrap(),
            cache: PathBuf::from("/nonexistent"),
            output: PathBuf::from("/nonexistent/disk"),
        }
    }

    #[test]
    fn what_could_be_an_option_or_another_line_is_refused() {
        assert!(check(&spec()).is_ok());
        let mut good = spec();
        good.packages = vec![
            "stress-ng".into(),
            "g++".into(),
            "nginx/bookworm-backports".into(),
        ];
        good.kernel_series = Some("6.12".into());
        assert!(check(&good).is_ok());
        type Change = fn(&mut DebianSpec);
        let bad: [(&str, Change); 9] = [
            ("--mode", |s| s.release = "--mode=root".into()),
            ("../x", |s| s.release = "../x".into()),
            ("6.x", |s| s.kernel_series = Some("6.x".into())),
            ("-o", |s| s.packages = vec!["-o".into()]),
            ("a b", |s| s.packages = vec!["a b".into()]),
            ("1024", |s| s.size_bytes = 1024),
            ("Host name", |s| s.hostname = "a\nb".into()),
            ("Host name", |s| s.hostname = String::new()),
            ("password", |s| s.root_password = Some("a\nroot:b".into())),
        ];
        for (named, change) in bad {
            let mut spec = spec();
            change(&mut spec);
            let text = check(&spec).unwrap_err().to_string();
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn a_full_disk_is_explained_in_the_words_of_the_option() {
        let error = ImageError::Command {
            command: "sh".into(),
            why: "__populate_fs: Could not allocate block in ext2 filesystem".into(),
        };
        let text = explain_full(error, &spec()).to_string();
        assert!(
            text.contains("1024 MiB") && text.contains("--size"),
            "{text}"
        );
    }

    #[test]
    fn uuids_differ() {
        let one = random_uuid().unwrap();
        assert_eq!(one.len(), 36);
        assert_ne!(one, random_uuid().unwrap());
    }
}
