//! An instance's own copy of its image. It belongs to the instance, not to one placement of it: it stays
//! when the instance is stopped, and the next placement here goes on with it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use concertina_api::Bytes;

/// `FICLONE` of `linux/fs.h`: `_IOW(0x94, 9, int)`.
const FICLONE: libc::c_ulong = 0x4004_9409;
/// Disks have whole sectors.
const SECTOR_BYTES: u64 = 512;

/// All disks.
#[derive(Debug)]
pub(super) struct Disks {
    folder: PathBuf,
}

impl Disks {
    /// In a folder that is there. What an agent that died has copied half of is removed.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(&path)?;
            }
        }
        Ok(Self { folder })
    }

    /// Where the disk of an instance is, or will be.
    pub fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.img"))
    }

    /// Where the content of a placement's seed disk is put for its launch, which copies it. An agent that
    /// dies over that launch leaves it to the next one to remove.
    pub fn seed_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.seed.new"))
    }

    /// Makes the disk of an instance: a copy of an image, or empty; at least so long.
    ///
    /// # Errors
    /// It cannot be made; nothing of it is left.
    pub fn make(
        &self,
        id: &str,
        image: Option<&Path>,
        least: Option<Bytes>,
    ) -> io::Result<PathBuf> {
        let fresh = self.folder.join(format!("{id}.new"));
        let made = self.fill(&fresh, image, least).and_then(|()| {
            let path = self.path(id);
            fs::rename(&fresh, &path).map(|()| path)
        });
        if made.is_err() {
            let _ = fs::remove_file(&fresh);
        }
        made
    }

    fn fill(&self, fresh: &Path, image: Option<&Path>, least: Option<Bytes>) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut disk = options.open(fresh)?;
        let mut length = 0;
        if let Some(image) = image {
            let mut image = File::open(image)?;
            length = image.metadata()?.len();
            if !clone(&image, &disk) {
                copy_data(&mut image, &mut disk, length)?;
            }
        }
        length = length.max(least.map_or(0, Bytes::get));
        disk.set_len(length.next_multiple_of(SECTOR_BYTES))
    }

    /// Removes the disk of an instance, if there is one.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Lets both files share their blocks until one of them is written, where the file system can do that.
fn clone(from: &File, to: &File) -> bool {
    // SAFETY: FICLONE takes two descriptors, which both files keep open; no memory is involved.
    unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) == 0 }
}

/// Copies what is data and leaves holes.
fn copy_data(from: &mut File, to: &mut File, length: u64) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let Some(data) = seek(from, at, libc::SEEK_DATA)? else {
            return Ok(());
        };
        let hole = seek(from, data, libc::SEEK_HOLE)?.unwrap_or(length);
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        let part = hole.saturating_sub(data);
        let copied = io::copy(&mut io::Read::take(&mut *from, part), to)?;
        if copied != part {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = hole;
    }
    to.flush()
}

/// The next data or hole; `None`: there is none.
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let offset = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: lseek(2) on a descriptor that `file` keeps open; no memory is involved.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    if let Ok(found) = u64::try_from(found) {
        return Ok(Some(found));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_images_content_its_holes_and_the_length_that_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let file = File::create(&image).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"end", 8 << 20).unwrap();
        file.set_len((16 << 20) + 1).unwrap();
        fs::write(folder.path().join("i-1.new"), "half").unwrap();
        let disks = Disks::open(folder.path().to_owned()).unwrap();
        assert!(!folder.path().join("i-1.new").exists());

        let path = disks.make("i-1", Some(&image), None).unwrap();
        let copy = File::open(&path).unwrap();
        let mut text = [0; 5];
        copy.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"begin");
        copy.read_exact_at(&mut text, 8 << 20).unwrap();
        assert_eq!(&text, b"end\0\0");
        let about = copy.metadata().unwrap();
        assert_eq!(about.len(), (16 << 20) + 512);
        assert_eq!(about.mode() & 0o777, 0o600);
        assert!(about.blocks() * 512 < 4 << 20, "{}", about.blocks());

        let path = disks.make("i-2", Some(&image), Some(Bytes::mib(64)));
        assert_eq!(path.unwrap().metadata().unwrap().len(), 64 << 20);
        disks.remove("i-1").unwrap();
        disks.remove("i-1").unwrap();
        assert!(!disks.path("i-1").exists());
    }

    #[test]
    fn what_cannot_be_copied_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let disks = Disks::open(folder.path().to_owned()).unwrap();
        assert!(
            disks
                .make("i-1", Some(Path::new("/nonexistent")), None)
                .is_err()
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
