//! The backing store of a disk: an image file or a block device, opened, measured and locked.
//!
//! The lock is an open-file-description lock over the whole file: exclusive for a writable disk,
//! shared for a read-only one. It goes with the descriptor, so it cannot be left behind, and it meets
//! the locks that other VMMs take on parts of their images.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use concertina_api::disk::DiskSpec;

use super::backend::{Direct, Files};
use super::request::SECTOR_BYTES;
use crate::error::VmmError;

/// How long another user may take to go away, and how often it is looked.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

/// What a backing store is.
#[derive(Debug)]
pub struct Disk {
    /// Where it is.
    pub path: PathBuf,
    /// Whole sectors.
    pub sectors: u64,
    /// The guest cannot write.
    pub read_only: bool,
    /// A device, not a file.
    pub is_device: bool,
    /// Serial number, if it has one.
    pub serial: Option<String>,
}

impl Disk {
    /// Opens, measures and locks; the lock lasts as long as the files.
    ///
    /// # Errors
    /// A sentence that names the path, what is wrong with it, and what to do.
    pub fn open(spec: &DiskSpec) -> Result<(Self, Files), VmmError> {
        let refuse =
            |what: String| VmmError::Spec(format!("Disk '{}' {what}", spec.path.display()));
        spec.check().map_err(|error| VmmError::Spec(error.0))?;
        let kind = std::fs::metadata(&spec.path).map_err(|e| refuse(unopened(&e, spec)))?;
        let is_device = kind.file_type().is_block_device();
        if kind.is_dir() {
            return Err(refuse(
                "is a folder: a raw image file or a block device is needed".into(),
            ));
        }
        if !is_device && !kind.is_file() {
            return Err(refuse("is neither a file nor a block device".into()));
        }
        let file = open_and_lock(spec, is_device).map_err(refuse)?;
        let bytes = length(&file).map_err(|e| refuse(format!("cannot be measured: {e}")))?;
        if bytes == 0 || bytes % SECTOR_BYTES != 0 {
            return Err(refuse(format!(
                "has {bytes} bytes: a multiple of {SECTOR_BYTES} is needed, at least one (`truncate \
                 -s %{SECTOR_BYTES} FILE` rounds an image up)"
            )));
        }
        // Only behind the lock: what is refused was not touched.
        let direct = Some(spec)
            .filter(|spec| !spec.cached)
            .and_then(|spec| Direct::open(&spec.path, spec.read_only));
        let disk = Self {
            path: spec.path.clone(),
            sectors: bytes / SECTOR_BYTES,
            read_only: spec.read_only,
            is_device,
            serial: spec.serial.clone(),
        };
        Ok((disk, Files::new(file, direct)))
    }
}

fn unopened(error: &io::Error, spec: &DiskSpec) -> String {
    let kind = error.raw_os_error();
    match kind {
        Some(libc::ENOENT) => "does not exist: `truncate -s 1G FILE` makes an empty image".into(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if !spec.read_only => format!(
            "cannot be opened for writing ({error}): change its permissions, or attach it read-only \
             with ',ro'"
        ),
        Some(libc::EACCES | libc::EPERM) => format!("cannot be opened ({error}): change its permissions"),
        Some(libc::EBUSY) => {
            "is in use on this host, by a mount or by another instance: unmount it, stop that one, or \
             attach it read-only with ',ro'"
                .into()
        }
        _ => format!("cannot be opened: {error}"),
    }
}

fn in_use(spec: &DiskSpec) -> String {
    if spec.read_only {
        "is being written to by another instance or program: stop that one, or attach a copy".into()
    } else {
        "is in use by another instance or program: stop that one, attach a copy, or attach it \
         read-only (',ro') to all of them"
            .into()
    }
}

/// Opens and locks; gives the rest of a sentence when that is refused.
fn open_and_lock(spec: &DiskSpec, is_device: bool) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.read(true).write(!spec.read_only);
    if is_device && !spec.read_only {
        // Refused by the kernel while something on this host has it mounted.
        options.custom_flags(libc::O_EXCL);
    }
    let file = patiently(|| options.open(&spec.path)).map_err(|e| unopened(&e, spec))?;
    patiently(|| lock(&file, spec.read_only)).map_err(|error| match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => in_use(spec),
        _ => format!("cannot be locked: {error}"),
    })?;
    Ok(file)
}

/// Tries again for a while what is refused because of another user: the last requests of a process
/// that was killed hold its files a moment longer than the process lives.
fn patiently<T>(attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let result = attempt();
        let in_use = result
            .as_ref()
            .is_err_and(|e| matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)));
        if !in_use || Instant::now() >= deadline {
            return result;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Takes the lock, or fails at once with `EAGAIN`.
fn lock(file: &File, shared: bool) -> io::Result<()> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the command only reads the structure.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Length in bytes, of a device too.
fn length(mut file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(bytes: u64) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn a_writable_image_is_for_one_and_a_read_only_one_for_many() {
        let (_folder, path) = image(8192);
        let writable = DiskSpec::new(&path);
        let read_only = DiskSpec {
            read_only: true,
            ..writable.clone()
        };
        let first = Disk::open(&writable).unwrap();
        assert_eq!(first.0.sectors, 16);
        for second in [&writable, &read_only] {
            let error = Disk::open(second).unwrap_err().to_string();
            assert!(
                error.contains("disk.img") && error.contains("stop that one"),
                "{error}"
            );
        }
        // Who goes away in the meantime is waited for.
        let leaves = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 3);
            drop(first);
        });
        drop(Disk::open(&writable).unwrap());
        leaves.join().unwrap();
        let _readers = [
            Disk::open(&read_only).unwrap(),
            Disk::open(&read_only).unwrap(),
        ];
        assert!(Disk::open(&writable).is_err());
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_with_what_to_do() {
        let (folder, path) = image(1000);
        let refused =
            |path: &std::path::Path| Disk::open(&DiskSpec::new(path)).unwrap_err().to_string();
        assert!(refused(&path).contains("1000 bytes"));
        File::create(&path).unwrap();
        assert!(refused(&path).contains("0 bytes"));
        assert!(refused(folder.path()).contains("is a folder"));
        assert!(refused(&folder.path().join("none")).contains("does not exist"));
        assert!(refused("/dev/null".as_ref()).contains("neither"));
    }
}
