//! Control groups, version 2: where this host has them, and the group of one instance.
//!
//! ```text
//! <parent>/concertina/            controllers cpu, memory and pids handed down
//!          └─ <name>/             the vmm process; ceilings on memory and on threads
//!             ├─ vcpu/            threaded: vCPU threads, limited by cpu.max   (made by the vmm)
//!             └─ emu/             threaded: all its other threads              (made by the vmm)
//! ```
//!
//! Version 1, and hybrid set-ups where the version 2 tree has no controllers, cannot limit memory
//! and CPU together with pressure information: they are refused with a sentence.
//! Follows the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

mod group;
mod hierarchy;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use group::flat_value;
#[cfg(test)]
pub(crate) use group::tests::fake_hierarchy;
pub use group::{InstanceGroup, MemoryEvents};
pub use hierarchy::{CONTROLLERS, Hierarchy};

/// Why cgroups cannot be used as they are needed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No version 2 tree at all, or one without controllers.
    #[error(
        "This host has cgroup v1 only: {0}. Boot it with systemd.unified_cgroup_hierarchy=1, or \
         mount cgroup2 with its controllers"
    )]
    VersionOneOnly(String),
    /// What was named is no group below the tree's root.
    #[error("{path} is no cgroup for instances: it has to be a folder in {mount}, named in full")]
    Outside {
        /// What was named.
        path: PathBuf,
        /// Where the tree is mounted.
        mount: PathBuf,
    },
    /// A controller is not available where we may make groups.
    #[error(
        "Controllers {missing} are not available in cgroup {path}: enable them in the \
         cgroup.subtree_control of its parents, or run in a delegated scope \
         (systemd-run --scope -p Delegate=yes …)"
    )]
    ControllersMissing {
        /// Which ones.
        missing: String,
        /// Where.
        path: PathBuf,
    },
    /// The group of this name has somebody's processes.
    #[error(
        "Cgroup {path} is in use by process {process}: an instance of this name runs in another state \
         folder; choose another name"
    )]
    InUse {
        /// The group.
        path: PathBuf,
        /// One of its processes.
        process: i32,
    },
    /// The tree is there and refuses.
    #[error("{what} {path} failed{}", hint(.source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// What mends the usual refusals.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            " (run as root, or in a delegated scope: systemd-run --user --scope -p Delegate=yes …)"
        }
        Some(libc::EBUSY) => {
            " (processes live in that cgroup: run in a scope of its own, \
             systemd-run --scope -p Delegate=yes …)"
        }
        _ => "",
    }
}
