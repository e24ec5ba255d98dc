//! A file that others append to: what it has, then what comes, without polling (inotify(7)).
//!
//! The folder is watched, not the file, so that a file which does not exist yet, or which is
//! replaced by another, is followed too.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::poll;

/// Most bytes of one read.
const CHUNK_BYTES: usize = 64 << 10;

/// A reader that stays at the end of a growing file.
pub struct Follower {
    path: PathBuf,
    open: Option<OpenFile>,
    changes: File,
}

struct OpenFile {
    file: File,
    inode: u64,
    read_bytes: u64,
}

impl Follower {
    /// Follows the file at `path` from its beginning; its folder must exist, the file need not.
    pub fn new(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        Ok(Self {
            path: path.to_owned(),
            open: None,
            changes: watch(folder)?,
        })
    }

    /// What was appended since the last call, at most a chunk; empty when nothing was.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut chunk = Vec::new();
        if let Some(open) = &mut self.open {
            if open.file.metadata()?.len() < open.read_bytes {
                // Truncated by its writer: what is there is new.
                self.open = None;
            } else {
                let limit = CHUNK_BYTES as u64;
                open.read_bytes += (&open.file).take(limit).read_to_end(&mut chunk)? as u64;
                if !chunk.is_empty() {
                    return Ok(chunk);
                }
            }
        }
        let inode = match fs::metadata(&self.path) {
            Ok(found) => found.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(chunk),
            Err(error) => return Err(error),
        };
        if self.open.as_ref().is_some_and(|open| open.inode == inode) {
            return Ok(chunk);
        }
        let file = File::open(&self.path)?;
        let inode = file.metadata()?.ino();
        let read_bytes = (&file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk)? as u64;
        self.open = Some(OpenFile {
            file,
            inode,
            read_bytes,
        });
        Ok(chunk)
    }

    /// Waits until something in the folder changes, or for `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        poll::wait([(self.changes.as_fd(), libc::POLLIN)], Some(timeout))?;
        // What changed does not matter: the next read looks.
        let mut events = [0u8; 4096];
        loop {
            match self.changes.read(&mut events) {
                Ok(1..) => {}
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// An inotify descriptor that reports changes of a folder's files.
fn watch(folder: &Path) -> io::Result<File> {
    let name = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: inotify_init1(2) takes flags only; a descriptor that it returns is ours alone.
    let changes = unsafe {
        let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_DELETE;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    if unsafe { libc::inotify_add_watch(changes.as_raw_fd(), name.as_ptr(), mask) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(File::from(changes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_file_is_followed_from_before_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut follower = Follower::new(&path).unwrap();
        assert_eq!(follower.read().unwrap(), b"");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one").unwrap();
        assert_eq!(follower.read().unwrap(), b"one");
        file.write_all(b"two").unwrap();
        assert_eq!(follower.read().unwrap(), b"two");
        assert_eq!(follower.read().unwrap(), b"");
    }

    #[test]
    fn an_append_ends_the_wait_and_silence_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = File::create(&path).unwrap();
        let mut follower = Follower::new(&path).unwrap();
        let begun = Instant::now();
        follower.wait(Duration::from_millis(50)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(50));
        file.write_all(b"x").unwrap();
        let begun = Instant::now();
        follower.wait(LONG).unwrap();
        assert!(begun.elapsed() < LONG);
    }

    #[test]
    fn a_replaced_and_a_truncated_file_are_read_from_their_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "old").unwrap();
        let mut follower = Follower::new(&path).unwrap();
        assert_eq!(follower.read().unwrap(), b"old");
        fs::write(folder.path().join("other"), "new file").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        assert_eq!(follower.read().unwrap(), b"new file");
        fs::write(&path, "cut").unwrap();
        assert_eq!(follower.read().unwrap(), b"cut");
    }
}
