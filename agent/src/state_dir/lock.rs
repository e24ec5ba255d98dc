//! One supervisor a name: a `flock` on a file in the instance's folder.
//!
//! The kernel drops the lock when its holder dies, so there is no stale lock to judge. A folder may
//! be removed between opening its lock file and locking it; whoever gets a lock therefore checks
//! that the file is still the one at that path, and tries again otherwise.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::{InstancePaths, StateError};

/// Why a name could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another supervisor has it.
    #[error("Name '{0}' is in use by a running instance: stop it first, or choose another name")]
    InUse(String),
    /// The folder or the name is unusable.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A name that is ours until this is dropped or the process dies.
#[derive(Debug)]
pub struct NameLock {
    file: File,
}

impl Drop for NameLock {
    /// Closing the file would not do: a child that another thread has just forked holds it open until it
    /// executes its program, and the lock with it (flock(2)).
    fn drop(&mut self) {
        // That fails for a descriptor that is none, and the closing that follows is what is left then.
        let _ = self.file.unlock();
    }
}

impl NameLock {
    /// Takes the lock of one instance's folder; `make_dir` creates the folder.
    pub(super) fn acquire(
        paths: &InstancePaths,
        make_dir: impl Fn() -> io::Result<()>,
    ) -> Result<Self, LockError> {
        // Each further round means that another starter removed the folder just now.
        for _ in 0..16 {
            make_dir().map_err(|e| StateError::io("Creating", &paths.dir, e))?;
            let opened = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&paths.lock);
            let file = match opened {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(StateError::io("Opening", &paths.lock, e).into()),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let name = paths
                        .dir
                        .file_name()
                        .map(|n| n.to_string_lossy().into_owned());
                    return Err(LockError::InUse(name.unwrap_or_default()));
                }
                Err(TryLockError::Error(e)) => {
                    return Err(StateError::io("Locking", &paths.lock, e).into());
                }
            }
            let inode = |m: io::Result<fs::Metadata>| m.ok().map(|m| (m.dev(), m.ino()));
            if inode(file.metadata()) == inode(fs::metadata(&paths.lock)) {
                return Ok(Self { file });
            }
        }
        let gone = io::Error::other("the folder was removed again and again by other starters");
        Err(StateError::io("Locking", &paths.lock, gone).into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::StateDir;
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_name_has_one_holder_and_is_free_again_afterwards() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().join("state"));
        let held = state.claim("web").unwrap();
        assert!(matches!(state.claim("web"), Err(LockError::InUse(name)) if name == "web"));
        assert!(state.claim("db").is_ok());
        drop(held);
        assert!(state.claim("web").is_ok());
    }

    #[test]
    fn a_name_is_free_although_a_forked_child_still_has_its_file() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().join("state"));
        let (held, _) = state.claim("web").unwrap();
        // As a child has it between fork and exec.
        let inherited = held.file.try_clone().unwrap();
        drop(held);
        assert!(state.claim("web").is_ok());
        drop(inherited);
    }

    #[test]
    fn starters_that_race_with_removal_never_hold_the_name_twice() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::new(temp.path().into());
        let holders = AtomicUsize::new(0);
        let wins = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        if let Ok((lock, paths)) = state.claim("web") {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            wins.fetch_add(1, Ordering::SeqCst);
                            holders.fetch_sub(1, Ordering::SeqCst);
                            let _ = fs::remove_dir_all(&paths.dir);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(wins.load(Ordering::SeqCst) > 0);
    }
}
