//! Everything but KVM: kernel, cgroups, pressure information, memory, the default guest.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use concertina_agent::cgroup::{CONTROLLERS, Hierarchy};
use concertina_api::Bytes;
use concertina_guest::image;

use super::Check;
use crate::{meminfo, output};

/// Host memory below which not even the smallest instance has room.
const LEAST_MEMORY: Bytes = Bytes::mib(256);
/// First Linux with all of cgroup v2 that is used here (`memory.reclaim` is not).
const LEAST_KERNEL: (u32, u32) = (5, 2);

/// The host's kernel.
pub fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(found) if found < LEAST_KERNEL => Check::warning(
            "host kernel",
            format!("Linux {release}"),
            format!(
                "Linux {}.{} or later is needed",
                LEAST_KERNEL.0, LEAST_KERNEL.1
            ),
        ),
        _ => Check::ok("host kernel", format!("Linux {release}")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A version 2 tree with our controllers, in which we may make groups.
pub fn cgroups() -> Check {
    let name = "cgroup v2";
    let tree = match Hierarchy::detect() {
        Ok(tree) => tree,
        Err(error) => {
            return Check::missing(
                name,
                crate::failure::sentence(&error),
                "add systemd.unified_cgroup_hierarchy=1 to the host's kernel command line and \
                 reboot; without systemd: mount -t cgroup2 none /sys/fs/cgroup",
            );
        }
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/");
    judge_cgroups(
        tree.mount(),
        &tree.mount().join(own.trim_start_matches('/')),
    )
}

/// Whether groups can be made at the top, or else in our own group.
fn judge_cgroups(mount: &Path, own: &Path) -> Check {
    let name = "cgroup v2";
    let listed = CONTROLLERS.join(", ");
    if is_writable(&mount.join("cgroup.subtree_control")) {
        return Check::ok(name, format!("{}, controllers {listed}", mount.display()));
    }
    let offered = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !offered.split_ascii_whitespace().any(|word| word == *name))
        .collect();
    let delegate = "run as root, or in a scope of your own: systemd-run --user --scope -p \
                    Delegate=yes concertina run …";
    if !is_writable(&own.join("cgroup.subtree_control")) {
        let found = format!("no permission to make groups in {}", mount.display());
        return Check::missing(name, found, delegate);
    }
    if !missing.is_empty() {
        return Check::missing(
            name,
            format!(
                "controllers {} are not delegated to {}",
                missing.join(", "),
                own.display()
            ),
            "sudo systemctl edit user@.service, add [Service] and Delegate=cpu memory pids, then \
             log in again",
        );
    }
    Check::ok(
        name,
        format!("delegated group {}, controllers {listed}", own.display()),
    )
}

/// Whether this user may write there, as the kernel judges it.
fn is_writable(path: &Path) -> bool {
    CString::new(path.as_os_str().as_bytes()).is_ok_and(|name| {
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        unsafe { libc::access(name.as_ptr(), libc::W_OK) == 0 }
    })
}

/// Pressure stall information, from which the `*.pressure` metrics come.
pub fn pressure() -> Check {
    match fs::read_to_string("/proc/pressure/memory") {
        Ok(_) => Check::ok("pressure", "/proc/pressure is there"),
        Err(_) => Check::warning(
            "pressure",
            "no pressure stall information: rules on cpu.pressure, memory.pressure and \
             io.pressure see nothing",
            "add psi=1 to the host's kernel command line and reboot",
        ),
    }
}

/// Room for at least one small instance.
pub fn memory() -> Check {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match meminfo::field(&meminfo, "MemAvailable") {
        Some(free) if free < LEAST_MEMORY => Check::warning(
            "host memory",
            format!("{} available", output::size(free)),
            format!("free some: an instance of the usual least size needs {LEAST_MEMORY}"),
        ),
        Some(free) => Check::ok("host memory", format!("{} available", output::size(free))),
        None => Check::warning("host memory", "unknown", "mount -t proc proc /proc"),
    }
}

/// The program that becomes the default guest's init.
pub fn guest_program() -> Check {
    match image::find_guest_program() {
        Ok(path) => Check::ok("guest program", path.display().to_string()),
        Err(error) => Check::warning(
            "guest program",
            crate::failure::sentence(&error),
            "install concertina-guest beside concertina, or give run your own --kernel and --initrd",
        ),
    }
}

/// Where the default guest's kernel can come from.
pub fn guest_kernel() -> Check {
    let own = fs::read_dir("/boot")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let release = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"));
            release.is_some_and(|release| Path::new("/lib/modules").join(release).is_dir())
                && fs::File::open(path).is_ok()
        });
    let tools = ["apt-get", "apt-cache", "dpkg"];
    judge_kernel(
        own,
        tools
            .into_iter()
            .filter(|tool| !is_installed(tool))
            .collect(),
    )
}

fn judge_kernel(own: Option<PathBuf>, missing_tools: Vec<&str>) -> Check {
    let name = "guest kernel";
    match (own, missing_tools.as_slice()) {
        (_, []) => Check::ok(name, "apt-get and dpkg can fetch Debian's cloud kernel"),
        (Some(own), _) => Check::ok(name, format!("this host's own {}", own.display())),
        (None, missing) => Check::warning(
            name,
            format!(
                "no kernel of this host is readable, and no {}",
                missing.join(", ")
            ),
            "give run your own --kernel and --initrd, or use a Debian host, whose apt-get and dpkg \
             fetch one",
        ),
    }
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn releases_are_compared_by_their_first_two_numbers() {
        assert_eq!(version("6.12.38+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(version("5.2-rc1"), Some((5, 2)));
        assert_eq!(version(""), None);
    }

    #[test]
    fn a_delegated_group_needs_all_controllers() {
        let folder = tempfile::tempdir().unwrap();
        let (mount, own) = (folder.path().join("none"), folder.path().join("own"));
        fs::create_dir(&own).unwrap();
        assert_eq!(judge_cgroups(&mount, &own).verdict, Verdict::Missing);
        fs::write(own.join("cgroup.subtree_control"), "").unwrap();
        fs::write(own.join("cgroup.controllers"), "cpu memory\n").unwrap();
        let check = judge_cgroups(&mount, &own);
        assert_eq!(check.verdict, Verdict::Missing);
        assert!(
            check.found.contains("pids are not delegated"),
            "{}",
            check.found
        );
        fs::write(own.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert_eq!(judge_cgroups(&mount, &own).verdict, Verdict::Ok);
    }

    #[test]
    fn a_kernel_comes_from_the_host_or_from_debian() {
        assert_eq!(judge_kernel(None, vec![]).verdict, Verdict::Ok);
        assert_eq!(
            judge_kernel(Some("/boot/vmlinuz-1".into()), vec!["dpkg"]).verdict,
            Verdict::Ok
        );
        let check = judge_kernel(None, vec!["apt-get", "dpkg"]);
        assert_eq!(check.verdict, Verdict::Warning);
        assert!(check.found.contains("apt-get, dpkg"), "{}", check.found);
    }
}
