//! The base system: a tar archive of everything that comes from Debian's packages, kept in the
//! cache. What is ours, and what differs from image to image, is added later.

use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::{DebianSpec, sources};
use crate::image::error::ImageError;
use crate::image::tool::{self, Listen};

/// Changes whenever the same wish would give another base system.
const BASE_VERSION: u32 = 1;
/// What every image has beside Debian's essential packages and apt.
const PACKAGES: [&str; 9] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "systemd-resolved",
    "initramfs-tools",
    "zstd",
    "kmod",
    "iproute2",
    "e2fsprogs",
];
/// How often a build looks whether another one has ended.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// Kernel series that a release's plain metapackage stands for.
const OWN_SERIES: [(&str, &str); 3] = [
    ("bullseye", "5.10"),
    ("bookworm", "6.1"),
    ("trixie", "6.12"),
];

/// A base system in the cache.
#[derive(Debug, PartialEq, Eq)]
pub struct Base {
    /// The archive.
    pub path: PathBuf,
    /// Whether it was there already.
    pub from_cache: bool,
}

/// Finds the base system in the cache, or makes it there with mmdebstrap.
pub fn base_system(
    spec: &DebianSpec,
    mmdebstrap: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Base, ImageError> {
    let folder = spec.cache.join("debian");
    fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
    // Two builds of the same wish share one download.
    let _lock = wait_for_lock(&folder.join(".lock"), progress)?;
    let packages = packages(spec);
    let path = folder.join(file_name(&spec.release, &packages));
    if let (false, Ok(found)) = (spec.fresh, fs::metadata(&path)) {
        let age = found
            .modified()
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        progress(&format!(
            "Using the base system of {} in the cache, {} old (--fresh builds it again)",
            spec.release,
            days(age.unwrap_or_default())
        ));
        return Ok(Base {
            path,
            from_cache: true,
        });
    }
    progress(&format!("Building the base system of {}", spec.release));
    let mut command = mmdebstrap_command(mmdebstrap, spec, &packages);
    let archive = tempfile::Builder::new()
        .prefix(".base-")
        .suffix(".tar")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(&folder)
        .map_err(ImageError::file("create a file in", &folder))?;
    let into = archive
        .reopen()
        .map_err(ImageError::file("open", archive.path()))?;
    tool::run(&mut command, Listen::ErrorsBeside(into), &mut |line| {
        if let Some(step) = step_of(line) {
            progress(&format!("Base system: {step}"));
        }
    })
    .map_err(|error| explain(error, spec))?;
    archive
        .persist(&path)
        .map_err(|error| ImageError::file("write", &path)(error.error))?;
    Ok(Base {
        path,
        from_cache: false,
    })
}

/// Takes the lock, or waits for another build to give it up.
fn wait_for_lock(path: &Path, progress: &mut dyn FnMut(&str)) -> Result<File, ImageError> {
    let lock = File::create(path).map_err(ImageError::file("create", path))?;
    let mut said = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => return Err(ImageError::file("lock", path)(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        tool::check_interrupt()?;
        if !said {
            progress("Waiting for another build");
            said = true;
        }
        std::thread::sleep(LOCK_POLL);
    }
}

fn mmdebstrap_command(mmdebstrap: &Path, spec: &DebianSpec, packages: &[String]) -> Command {
    let mut command = Command::new(mmdebstrap);
    command.args(["--variant=minbase", "--format=tar"]);
    command.arg(format!("--include={}", packages.join(",")));
    for setting in sources::host_settings() {
        command.arg(format!("--aptopt={setting}"));
    }
    // The host's way to its mirrors is not the guest's.
    command.arg("--customize-hook=rm -f \"$1/etc/apt/apt.conf.d/99mmdebstrap\"");
    command.args([&spec.release, "-"]);
    command.args(sources::for_release(&spec.release));
    command
}

/// Sorted, so that the same wish in another order is the same base system.
fn packages(spec: &DebianSpec) -> Vec<String> {
    let mut packages: Vec<String> = PACKAGES
        .iter()
        .map(|name| (*name).to_owned())
        .chain([kernel_package(spec)])
        .chain(spec.packages.iter().cloned())
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

fn kernel_package(spec: &DebianSpec) -> String {
    let own = |series: &str| OWN_SERIES.contains(&(spec.release.as_str(), series));
    match spec.kernel_series.as_deref() {
        Some(series) if !own(series) => format!("linux-image-{series}-cloud-amd64"),
        _ => "linux-image-cloud-amd64".to_owned(),
    }
}

/// By release and packages, whatever mirror they come from.
fn file_name(release: &str, packages: &[String]) -> String {
    let mut key = DefaultHasher::new();
    (BASE_VERSION, packages).hash(&mut key);
    format!("{release}-{:016x}.tar", key.finish())
}

/// What mmdebstrap says of its steps, without its marks.
fn step_of(line: &str) -> Option<&str> {
    let step = line.strip_prefix("I: ")?.trim_end_matches('.');
    let telling = [
        "running apt-get update",
        "downloading",
        "extracting",
        "installing",
        "creating",
    ];
    telling
        .iter()
        .any(|word| step.starts_with(word))
        .then_some(step)
}

fn explain(error: ImageError, spec: &DebianSpec) -> ImageError {
    let ImageError::Command { command, why } = error else {
        return error;
    };
    let unknown = ["Unable to locate package", "no installation candidate"];
    let hint = if unknown.iter().any(|words| why.contains(words)) {
        " (is it in this release? Backports must be among the host's apt sources)".to_owned()
    } else if why.contains("Release file") {
        format!(" (does the mirror have the release '{}'?)", spec.release)
    } else {
        String::new()
    };
    ImageError::Command {
        command,
        why: format!("{why}{hint}"),
    }
}

fn days(age: Duration) -> String {
    match age.as_secs() / 86_400 {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;

    #[test]
    fn the_cache_goes_by_release_and_packages_in_any_order() {
        let name = |change: fn(&mut DebianSpec)| {
            let mut spec = spec();
            change(&mut spec);
            file_name(&spec.release, &packages(&spec))
        };
        let plain = name(|_| {});
        assert!(plain.starts_with("bookworm-"));
        assert_eq!(plain, name(|s| s.kernel_series = Some("6.1".into())));
        assert_eq!(plain, name(|s| s.packages = vec!["udev".into()]));
        assert_eq!(plain, name(|s| s.hostname = "other".into()));
        assert_ne!(plain, name(|s| s.kernel_series = Some("6.12".into())));
        assert_ne!(plain, name(|s| s.release = "trixie".into()));
        assert_eq!(
            name(|s| s.packages = vec!["a".into(), "b".into()]),
            name(|s| s.packages = vec!["b".into(), "a".into()])
        );
    }

    #[test]
    fn a_cached_base_system_is_taken_unless_a_fresh_one_is_wished() {
        let cache = tempfile::tempdir().unwrap();
        let mut spec = spec();
        spec.cache = cache.path().to_owned();
        let failing = Path::new("/bin/false");
        assert!(base_system(&spec, failing, &mut |_| {}).is_err());
        let path = cache
            .path()
            .join("debian")
            .join(file_name(&spec.release, &packages(&spec)));
        assert!(!path.exists());
        fs::write(&path, "tar").unwrap();
        let mut said = String::new();
        let base = base_system(&spec, failing, &mut |step| said.push_str(step)).unwrap();
        assert_eq!((base.path, base.from_cache), (path.clone(), true));
        assert!(said.contains("less than a day"), "{said}");
        spec.fresh = true;
        assert!(base_system(&spec, failing, &mut |_| {}).is_err());
        // The old one is still there, and nothing half-made is beside it.
        assert_eq!(fs::read(&path).unwrap(), b"tar");
        let names = fs::read_dir(cache.path().join("debian")).unwrap().count();
        assert_eq!(names, 2);
    }

    #[test]
    fn steps_are_shown_and_details_are_not() {
        assert_eq!(
            step_of("I: extracting archives..."),
            Some("extracting archives")
        );
        assert_eq!(step_of("I: using /tmp/x as tempdir"), None);
        assert_eq!(step_of("W: installing"), None);
    }
}
