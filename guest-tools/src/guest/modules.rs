//! Kernel modules of the default guest.
//!
//! The image builder has resolved dependencies and written the modules, decompressed, into
//! `/lib/modules/RELEASE/`, with a list `load.order` of file names. Loading is then one system call
//! a line, with nothing to search. A module's file is removed when it was loaded, or when nothing
//! needs it: its pages are the guest's memory, and nothing reads them again. No device comes later.

use std::fs::{self, File};
use std::io;

use super::sys;

/// Drivers of devices that not every machine has, and the ids of these devices (virtio 1.2 §5).
/// Modules that only such a driver needs go with it.
const DRIVERS: [(&str, u32); 4] = [
    ("failover.ko", 1),
    ("net_failover.ko", 1),
    ("virtio_net.ko", 1),
    ("virtio_blk.ko", 2),
];

/// Loads what the list names and removes the files. Without a list everything is built in.
pub fn load_all() {
    let folder = format!("/lib/modules/{}", sys::kernel_release());
    let list = match fs::read_to_string(format!("{folder}/load.order")) {
        Ok(list) => list,
        Err(error) => {
            if fs::exists("/lib/modules").unwrap_or(false) {
                sys::say(&format!(
                    "concertina-guest: No module list {folder}/load.order ({error}): \
                     this image was built for another kernel"
                ));
            }
            return;
        }
    };
    for name in list.lines().filter(|name| is_file_name(name)) {
        let path = format!("{folder}/{name}");
        // Asked in its turn: what finds the devices is loaded before their drivers.
        if is_without_device(name, || virtio_ids("/sys/bus/virtio/devices")) {
            let _ = fs::remove_file(&path);
            continue;
        }
        match load(&path) {
            Ok(()) => {
                let _ = fs::remove_file(&path);
            }
            Err(error) => {
                sys::say(&format!(
                    "concertina-guest: Cannot load module {path}: {error}"
                ));
            }
        }
    }
}

fn is_without_device(name: &str, present: impl FnOnce() -> Vec<u32>) -> bool {
    let driver = DRIVERS.iter().find(|(driver, _)| *driver == name);
    driver.is_some_and(|(_, id)| !present().contains(id))
}

/// Ids of the virtio devices in a folder of sysfs.
fn virtio_ids(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_to_string(entry.path().join("device")).ok())
        .filter_map(|id| u32::from_str_radix(id.trim().strip_prefix("0x")?, 16).ok())
        .collect()
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/')
}

fn load(path: &str) -> io::Result<()> {
    match sys::load_module(&File::open(path)?) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_its_device_is_not_loaded_and_everything_else_is() {
        let folder = tempfile::tempdir().unwrap();
        for (name, id) in [
            ("virtio0", "0x0005\n"),
            ("virtio1", "0x0018\n"),
            ("virtio2", "?"),
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("device"), id).unwrap();
        }
        let path = folder.path().to_str().unwrap().to_owned();
        let mut ids = virtio_ids(&path);
        ids.sort_unstable();
        assert_eq!(ids, [5, 24]);
        assert_eq!(virtio_ids("/nonexistent"), [0u32; 0]);
        assert!(is_without_device("virtio_blk.ko", || vec![5, 24]));
        assert!(!is_without_device("virtio_blk.ko", || vec![5, 2]));
        assert!(!is_without_device("virtio_mem.ko", Vec::new));
    }
}
