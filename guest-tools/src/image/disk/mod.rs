//! What is in a raw disk image: partitions, file systems, and the kernel, initrd and root file
//! system with which a distribution boots.
//!
//! ```text
//! image ──table──► partitions ──filesystem──► files ──boot──► kernel, initrd, root=
//! ```
//! An image may come from anybody, and inspecting it happens outside of any VM: every size and
//! offset in it is checked before use, what does not fit is a sentence, and memory is bounded
//! whatever it says.

mod boot;
mod extract;
mod filesystem;
mod table;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;

pub use boot::{BootFile, Inspection, PartInfo, Root, inspect};
pub use extract::{Extracted, extract, forget};

use super::error::ImageError;

/// Formats that are not raw, by their first bytes.
const FORMATS: [(&[u8], &str); 6] = [
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"\xfd7zXZ\0", "xz"),
];

/// An image or a part of it: bytes that can be read and never end somewhere else than they say.
#[derive(Debug, Clone)]
pub struct Image {
    file: Arc<File>,
    start: u64,
    len: u64,
}

impl Image {
    /// Opens an image file or a block device, if it is raw.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::file("read", path))?;
        let kind = file
            .metadata()
            .map_err(ImageError::file("read", path))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::format(
                path,
                "a disk image",
                "it is neither a file nor a block device",
            ));
        }
        // A block device has a size only as a place to seek to.
        let len = io::Seek::seek(&mut &file, io::SeekFrom::End(0))
            .map_err(ImageError::file("read", path))?;
        let image = Self {
            file: Arc::new(file),
            start: 0,
            len,
        };
        image.refuse_other_formats(path)?;
        Ok(image)
    }

    fn refuse_other_formats(&self, path: &Path) -> Result<(), ImageError> {
        for (signature, format) in FORMATS {
            let mut found = vec![0; signature.len()];
            if self.holds(0, signature.len() as u64) {
                self.read_at(0, &mut found)
                    .map_err(ImageError::file("read", path))?;
            }
            if found == signature {
                let mend = if format == "xz" {
                    "it is compressed: decompress it first".to_owned()
                } else {
                    format!(
                        "it is in the format {format}: 'concertina image import {} -o FILE' makes \
                         it raw",
                        path.display()
                    )
                };
                return Err(ImageError::format(path, "a raw disk image", mend));
            }
        }
        Ok(())
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it has these bytes.
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        offset
            .checked_add(length)
            .is_some_and(|end| end <= self.len)
    }

    /// Reads exactly these bytes.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if !self.holds(offset, into.len() as u64) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{} bytes at {offset} are beyond the end at {}",
                    into.len(),
                    self.len
                ),
            ));
        }
        self.file
            .read_exact_at(into, self.start.saturating_add(offset))
    }

    /// A part of it. What reaches beyond the end is cut.
    pub fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self {
            file: Arc::clone(&self.file),
            start: self.start.saturating_add(start),
            len: len.min(self.len - start),
        }
    }

    /// An image of these bytes.
    #[cfg(test)]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Self {
            file: Arc::new(file),
            start: 0,
            len: bytes.len() as u64,
        }
    }
}
