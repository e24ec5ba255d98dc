//! What this host must offer before an instance can be launched on it.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use concertina_api::policy::{Source, Sources};

use super::LaunchError;
use crate::cgroup::{CgroupError, Hierarchy};
use crate::state_dir::InstancePaths;

/// Longest path of a unix socket, in bytes (`sun_path` has 108 with its NUL).
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// The parts of a host that a launch needs.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The KVM device.
    pub kvm: PathBuf,
    /// Pressure information of the whole host: where it is absent, no group has any.
    pub pressure: PathBuf,
    /// A cgroup tree; `None`: find it when it is needed.
    pub cgroups: Option<Hierarchy>,
}

impl Host {
    /// The host that we run on.
    pub(crate) fn this() -> Self {
        Self {
            kvm: PathBuf::from("/dev/kvm"),
            pressure: PathBuf::from("/proc/pressure/cpu"),
            cgroups: None,
        }
    }

    /// What an instance's metrics can be told from.
    pub(crate) fn sources(&self) -> Sources {
        // Whether the guest's program speaks is seen later; until then its metrics are unknown.
        let sources = Sources::all();
        // A kernel without pressure information, or booted with psi=0.
        if self.pressure.exists() {
            sources
        } else {
            sources.without(Source::HostPressure)
        }
    }

    /// Whether we may use KVM. What its processor can do is seen by the vmm.
    pub(super) fn check_kvm(&self) -> Result<(), LaunchError> {
        let kvm = self.kvm.display();
        let problem = match OpenOptions::new().read(true).write(true).open(&self.kvm) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => format!(
                "{kvm} does not exist: load kvm_intel or kvm_amd (modprobe), or enable \
                 virtualization in this machine's firmware"
            ),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => format!(
                "No permission on {kvm}: become a member of the group kvm (usermod -aG kvm USER, \
                 then log in again), or run as root"
            ),
            Err(e) => format!("{kvm} cannot be opened: {e}"),
        };
        Err(LaunchError::Kvm(problem))
    }

    /// The cgroup tree in which the instance gets its group.
    pub(super) fn cgroups(&self) -> Result<Hierarchy, CgroupError> {
        match &self.cgroups {
            Some(tree) => Ok(tree.clone()),
            None => Hierarchy::detect(),
        }
    }
}

/// The path from the root, so that it means the same in every process.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, LaunchError> {
    std::path::absolute(path)
        .map_err(|e| LaunchError::Request(format!("Path '{}' is not usable: {e}", path.display())))
}

/// Unix sockets have short paths, and what the system says of a long one names no file.
pub(super) fn check_socket_paths(paths: &InstancePaths) -> Result<(), LaunchError> {
    // Any program of the host may listen to the guest on a port of up to ten digits.
    let mut longest = paths.vsock_socket.clone();
    longest.as_mut_os_string().push("_4294967295");
    let bytes = longest.as_os_str().len();
    if bytes > SOCKET_PATH_MAX_BYTES {
        return Err(LaunchError::Request(format!(
            "Socket path {} has {bytes} bytes: at most {SOCKET_PATH_MAX_BYTES} are allowed, choose \
             a shorter --state-dir or --name",
            longest.display()
        )));
    }
    Ok(())
}
