//! Kernel modules of the default guest.
//!
//! The image builder has resolved dependencies and written the modules, decompressed, into
//! `/lib/modules/RELEASE/`, with a list `load.order` of file names. Loading is then one system call
//! a line, with nothing to search. A loaded module's file is removed: its pages are the guest's
//! memory, and nothing reads them again.

use std::fs::{self, File};
use std::io;

use super::sys;

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

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/')
}

fn load(path: &str) -> io::Result<()> {
    match sys::load_module(&File::open(path)?) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
