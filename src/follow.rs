//! A file that others append to: what it has, then what comes, without polling (inotify(7)).
//!
//! The folder is watched, not the file, so that a file which does not exist yet, or which is
//! replaced by another, is followed too.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::poll;

/// Most bytes of one read.
const CHUNK_BYTES: usize = 64 << 10;

/// A file that others append to, read from where the last read ended.
pub struct GrowingFile {
    path: PathBuf,
    open: Option<OpenFile>,
    /// Of the first file: how many bytes before its end to begin; absent: at its beginning.
    first_bytes: Option<u64>,
}

struct OpenFile {
    file: File,
    inode: u64,
    read_bytes: u64,
}

impl GrowingFile {
    /// Reads from the beginning. The file need not exist yet.
    pub fn from_start(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            open: None,
            first_bytes: None,
        }
    }

    /// The same, but of what is there already only the last `bytes`, which may begin amid a line.
    pub fn from_last(path: &Path, bytes: u64) -> Self {
        Self {
            first_bytes: Some(bytes),
            ..Self::from_start(path)
        }
    }

    /// What was appended since the last call, at most a chunk; empty when nothing was. A file that
    /// was replaced or truncated is read from its beginning.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        if let Some(open) = &mut self.open {
            if open.file.metadata()?.len() < open.read_bytes {
                // Truncated by its writer: what is there is new.
                self.open = None;
            } else {
                let chunk = open.read_chunk()?;
                if !chunk.is_empty() {
                    return Ok(chunk);
                }
            }
        }
        let inode = match fs::metadata(&self.path) {
            Ok(found) => found.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        if self.open.as_ref().is_some_and(|open| open.inode == inode) {
            return Ok(Vec::new());
        }
        let mut file = File::open(&self.path)?;
        let found = file.metadata()?;
        let skipped = match self.first_bytes.take() {
            Some(bytes) => found.len().saturating_sub(bytes),
            None => 0,
        };
        file.seek(SeekFrom::Start(skipped))?;
        let open = self.open.insert(OpenFile {
            file,
            inode: found.ino(),
            read_bytes: skipped,
        });
        open.read_chunk()
    }
}

impl OpenFile {
    fn read_chunk(&mut self) -> io::Result<Vec<u8>> {
        let mut chunk = Vec::new();
        let mut part = (&self.file).take(CHUNK_BYTES as u64);
        self.read_bytes += part.read_to_end(&mut chunk)? as u64;
        Ok(chunk)
    }
}

/// Cuts a stream into lines; keeps what has no line end yet.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes, and gives the lines that are whole.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        String::from_utf8_lossy(&whole)
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

/// A reader that stays at the end of a growing file, and can wait for more.
pub struct Follower {
    file: GrowingFile,
    changes: File,
}

impl Follower {
    /// Follows the file at `path` from its beginning; its folder must exist, the file need not.
    pub fn new(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        Ok(Self {
            file: GrowingFile::from_start(path),
            changes: watch(folder)?,
        })
    }

    /// See [`GrowingFile::read`].
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        self.file.read()
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
    fn a_file_can_be_read_from_near_its_end_and_its_successor_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "a long past\nlast\n").unwrap();
        let mut file = GrowingFile::from_last(&path, 7);
        assert_eq!(file.read().unwrap(), b"t\nlast\n");
        assert_eq!(file.read().unwrap(), b"");
        fs::write(folder.path().join("other"), "another file").unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        assert_eq!(file.read().unwrap(), b"another file");
        let mut short = GrowingFile::from_last(&path, 7000);
        assert_eq!(short.read().unwrap(), b"another file");
    }

    #[test]
    fn a_line_is_given_only_once_it_is_whole() {
        let mut lines = Lines::default();
        assert!(lines.push(b"{\"a\"").is_empty());
        assert_eq!(lines.push(b":1}\n{}\n{"), ["{\"a\":1}", "{}"]);
        assert_eq!(lines.push(b"}\n"), ["{}"]);
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
