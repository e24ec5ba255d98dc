//! The file systems that every program expects, mounted by process 1.
//!
//! Mount points are made before each mount: the root of an initramfs has only what its archive had.

use std::ffi::CStr;

use super::sys;

struct Place {
    kind: &'static CStr,
    target: &'static CStr,
    flags: libc::c_ulong,
    options: &'static CStr,
}

const SAFE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
const NO_SUID: libc::c_ulong = libc::MS_NOSUID;
const NO_DEV: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// In this order: later ones lie inside earlier ones.
const PLACES: [Place; 8] = [
    Place {
        kind: c"proc",
        target: c"/proc",
        flags: SAFE,
        options: c"",
    },
    Place {
        kind: c"sysfs",
        target: c"/sys",
        flags: SAFE,
        options: c"",
    },
    Place {
        kind: c"devtmpfs",
        target: c"/dev",
        flags: NO_SUID,
        options: c"mode=0755",
    },
    Place {
        kind: c"devpts",
        target: c"/dev/pts",
        flags: SAFE,
        options: c"mode=0620,ptmxmode=0666",
    },
    Place {
        kind: c"tmpfs",
        target: c"/dev/shm",
        flags: NO_DEV,
        options: c"mode=1777",
    },
    Place {
        kind: c"tmpfs",
        target: c"/run",
        flags: NO_DEV,
        options: c"mode=0755",
    },
    Place {
        kind: c"tmpfs",
        target: c"/tmp",
        flags: NO_DEV,
        options: c"mode=1777",
    },
    Place {
        kind: c"cgroup2",
        target: c"/sys/fs/cgroup",
        flags: SAFE,
        options: c"",
    },
];

/// Mounts them all. What cannot be mounted is said and left out: a guest without `/dev/shm` is
/// better than none.
pub fn mount_all() {
    for place in &PLACES {
        let target = place.target.to_string_lossy();
        let _ = std::fs::create_dir(&*target);
        if let Err(error) = sys::mount(place.kind, place.target, place.flags, place.options)
            && error.raw_os_error() != Some(libc::EBUSY)
        {
            let kind = place.kind.to_string_lossy();
            sys::say(&format!(
                "concertina-guest: Cannot mount {kind} on {target}: {error}"
            ));
        }
    }
    let _ = std::fs::create_dir("/root");
}
