//! Being told when something in a folder changes, inotify(7).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Something comes, goes, or is made executable.
const CHANGES: u32 = libc::IN_CREATE
    | libc::IN_MOVED_TO
    | libc::IN_MOVED_FROM
    | libc::IN_DELETE
    | libc::IN_ATTRIB
    | libc::IN_CLOSE_WRITE;

/// Folders that are watched; its descriptor is readable when something has changed in one of them.
pub struct Inotify(File);

impl Inotify {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        // SAFETY: inotify_init1(2) takes flags only.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Watches a folder, too; one that is watched already stays so.
    pub fn watch(&self, folder: &Path) -> io::Result<()> {
        let path = CString::new(folder.as_os_str().as_bytes())?;
        // SAFETY: the path ends with NUL and lives for the duration of the call.
        let watch = unsafe { libc::inotify_add_watch(self.0.as_raw_fd(), path.as_ptr(), CHANGES) };
        if watch < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Forgets what has changed so far.
    pub fn clear(&mut self) {
        let mut events = [0; 4096];
        while self.0.read(&mut events).is_ok_and(|read| read > 0) {}
    }
}

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
