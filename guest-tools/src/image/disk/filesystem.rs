//! File systems of an image: which kind, and the files of an ext2, ext3 or ext4 one.
//!
//! The crate that reads ext4 checks what it reads and loops nowhere, but it takes a few sizes of the
//! superblock for true and allocates by them. These are bounded here, before it sees the image.

use std::io;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::Image;

/// Where ext4's superblock lies, and its size.
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const EXT4_MAGIC: u16 = 0xef53;
/// 16 TiB at the usual 128 MiB a group.
const MOST_GROUPS: u64 = 1 << 17;
/// Largest journal that mke2fs makes, and that replaying may have to remember.
const MOST_JOURNAL_BYTES: u64 = 1 << 30;
/// The journal of a file system that was not unmounted has to be replayed.
const NEEDS_RECOVERY: u32 = 0x4;
const HAS_64BIT: u32 = 0x80;
/// Names of one folder that are looked at.
const MOST_NAMES: usize = 4096;
/// Largest file that is read whole, such as `os-release`.
const MOST_TEXT_BYTES: u64 = 64 << 10;
const CHUNK_BYTES: usize = 1 << 20;
/// Largest folder that is searched; the crate would search a hostile one for hours.
const MOST_FOLDER_BYTES: u64 = 16 << 20;
/// Longest path, and target of a link; the crate would allocate whatever size a link claims.
const MOST_PATH_BYTES: usize = 4096;
/// Links that are followed on the way to one file, as in Linux.
const MOST_LINKS: u32 = 40;

/// What a part of an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext2, ext3 or ext4: its files can be read here.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT, as for an EFI system partition.
    Fat,
    /// Swap space.
    Swap,
    /// LUKS: encrypted.
    Luks,
    /// An LVM physical volume.
    Lvm,
    /// Nothing that is known.
    Unknown,
}

impl Kind {
    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Fat => "vfat",
            Self::Swap => "swap",
            Self::Luks => "luks",
            Self::Lvm => "lvm",
            Self::Unknown => "unknown",
        }
    }

    /// Tells them apart by their signatures.
    pub fn of(part: &Image) -> io::Result<Self> {
        let signatures: [(u64, &[u8], Self); 7] = [
            (SUPERBLOCK_AT + 0x38, &EXT4_MAGIC.to_le_bytes(), Self::Ext4),
            (0, b"XFSB", Self::Xfs),
            (0x1_0040, b"_BHRfS_M", Self::Btrfs),
            (4086, b"SWAPSPACE2", Self::Swap),
            (0, b"LUKS\xba\xbe", Self::Luks),
            (512, b"LABELONE", Self::Lvm),
            (510, &[0x55, 0xaa], Self::Fat),
        ];
        for (offset, signature, kind) in signatures {
            let mut found = vec![0; signature.len()];
            if part.holds(offset, signature.len() as u64) {
                part.read_at(offset, &mut found)?;
                if found == signature {
                    return Ok(kind);
                }
            }
        }
        Ok(Self::Unknown)
    }
}

/// An ext2, ext3 or ext4 file system.
pub struct Filesystem {
    inner: Ext4,
}

impl std::fmt::Debug for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filesystem({})", self.inner.uuid())
    }
}

/// A file or folder, symbolic links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its path without links.
    pub path: String,
    /// It is a folder.
    pub is_dir: bool,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl Filesystem {
    /// Opens it; the error is the end of a sentence.
    pub fn open(part: &Image) -> Result<Self, String> {
        check_superblock(part)?;
        let inner = Ext4::load(Box::new(Part(part.clone()))).map_err(|error| match error {
            Ext4Error::Incompatible(why) => format!(
                "it has features that are not read here ({why}); when it was not unmounted, \
                 'e2fsck -p' may mend it"
            ),
            other => other.to_string(),
        })?;
        Ok(Self { inner })
    }

    /// Its UUID.
    pub fn uuid(&self) -> String {
        self.inner.uuid().to_string()
    }

    /// Its label; empty when it has none.
    pub fn label(&self) -> String {
        self.inner.label().display().to_string()
    }

    /// What is at a path, links followed; `None` for whatever cannot be reached.
    pub fn find(&self, path: &str) -> Option<Found> {
        let path = self.resolve(path)?;
        let metadata = self.inner.symlink_metadata(path.as_str()).ok()?;
        Some(Found {
            is_dir: metadata.is_dir(),
            size_bytes: metadata.len(),
            path,
        })
    }

    /// A path without symbolic links. Each step is looked at before the crate takes it.
    fn resolve(&self, path: &str) -> Option<String> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done = String::new();
        let mut links = 0;
        self.check_folder("/")?;
        while let Some(name) = todo.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    done.truncate(done.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = format!("{done}/{name}");
            if next.len() > MOST_PATH_BYTES {
                return None;
            }
            let metadata = self.inner.symlink_metadata(next.as_str()).ok()?;
            if metadata.is_symlink() {
                links += 1;
                if links > MOST_LINKS || metadata.len() > MOST_PATH_BYTES as u64 {
                    return None;
                }
                let target = self.inner.read_link(next.as_str()).ok()?;
                let target = target.to_str().ok()?;
                if target.starts_with('/') {
                    done.clear();
                }
                todo.extend(target.split('/').rev().map(str::to_owned));
                // Links to links of many steps each: the path as a whole stays one that Linux takes.
                if todo.len() > MOST_PATH_BYTES {
                    return None;
                }
                continue;
            }
            if metadata.is_dir() {
                self.check_folder(&next)?;
            } else if todo.iter().any(|left| !left.is_empty()) {
                return None;
            }
            done = next;
        }
        Some(if done.is_empty() { "/".into() } else { done })
    }

    fn check_folder(&self, path: &str) -> Option<()> {
        let metadata = self.inner.symlink_metadata(path).ok()?;
        (metadata.is_dir() && metadata.len() <= MOST_FOLDER_BYTES).then_some(())
    }

    /// Names in a folder, the first few thousand; none when it cannot be read.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = self
            .find(folder)
            .and_then(|found| self.inner.read_dir(found.path.as_str()).ok());
        let Some(entries) = entries else {
            return Vec::new();
        };
        entries
            .take(MOST_NAMES)
            .map_while(Result::ok)
            .filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned))
            .collect()
    }

    /// A small text file.
    pub fn text(&self, path: &str) -> Option<String> {
        let found = self.find(path).filter(|found| !found.is_dir)?;
        if found.size_bytes > MOST_TEXT_BYTES {
            return None;
        }
        self.inner.read_to_string(found.path.as_str()).ok()
    }

    /// Copies a file piece by piece; the error is the end of a sentence. `limit_bytes` is what may
    /// be written at most.
    pub fn copy(
        &self,
        path: &str,
        limit_bytes: u64,
        write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), String> {
        let found = self.find(path).ok_or("it cannot be reached")?;
        let opened = self.inner.open(found.path.as_str());
        let mut file = opened.map_err(|error| error.to_string())?;
        if found.size_bytes > limit_bytes {
            return Err(format!("it is larger than {} MiB", limit_bytes >> 20));
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let mut filled = 0;
            while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match file.read_bytes(rest) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) => return Err(error.to_string()),
                }
            }
            if filled == 0 {
                return Ok(());
            }
            write(chunk.get(..filled).unwrap_or_default()).map_err(|error| error.to_string())?;
        }
    }
}

/// A part of an image for the ext4 crate.
struct Part(Image);

impl Ext4Read for Part {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_at(start_byte, dst)?)
    }
}

/// The sizes that the crate allocates by.
fn check_superblock(part: &Image) -> Result<(), String> {
    let absurd = |what: &str| format!("its superblock is absurd ({what})");
    let mut block = [0; SUPERBLOCK_BYTES];
    part.read_at(SUPERBLOCK_AT, &mut block)
        .map_err(|error| error.to_string())?;
    let field = |at: usize| -> u64 { u32_at(&block, at).into() };
    let (size_shift, per_group) = (field(0x18), field(0x20));
    if size_shift > 6 {
        return Err(absurd("block size"));
    }
    let block_bytes = 1024u64 << size_shift;
    let incompatible = u32_at(&block, 0x60);
    let high = if incompatible & HAS_64BIT != 0 {
        field(0x150)
    } else {
        0
    };
    let blocks = high << 32 | field(0x4);
    match blocks.checked_mul(block_bytes) {
        Some(bytes) if bytes <= part.len() => {}
        Some(bytes) => {
            return Err(format!(
                "it is cut off: it has {} MiB, and only {} MiB of them are there",
                bytes >> 20,
                part.len() >> 20
            ));
        }
        None => return Err(absurd("number of blocks")),
    }
    if per_group == 0 || per_group > block_bytes * 8 || blocks / per_group >= MOST_GROUPS {
        return Err(absurd("number of block groups"));
    }
    if incompatible & NEEDS_RECOVERY != 0 {
        check_journal(part, &block, block_bytes)?;
    }
    Ok(())
}

/// Replaying remembers something of each block of the journal, whose size its inode says.
fn check_journal(part: &Image, superblock: &[u8], block_bytes: u64) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("its journal cannot be read: {error}");
    let inode = u64::from(u32_at(superblock, 0xe0));
    let per_group = u64::from(u32_at(superblock, 0x28));
    let inode_bytes = u64::from(u32_at(superblock, 0x58) & 0xffff);
    if inode == 0 || inode > per_group {
        return Err("its journal is not where it should be".into());
    }
    let mut group = [0; 32];
    // The descriptors follow the block that holds the superblock.
    let groups_at = if block_bytes == 1024 {
        2048
    } else {
        block_bytes
    };
    part.read_at(groups_at, &mut group).map_err(unreadable)?;
    let table = u64::from(u32_at(&group, 8)).saturating_mul(block_bytes);
    let mut entry = [0; 112];
    let place = table.saturating_add((inode - 1).saturating_mul(inode_bytes));
    part.read_at(place, &mut entry).map_err(unreadable)?;
    let size = u64::from(u32_at(&entry, 0x6c)) << 32 | u64::from(u32_at(&entry, 4));
    if size > MOST_JOURNAL_BYTES {
        return Err(format!(
            "its journal is absurdly large ({} MiB)",
            size >> 20
        ));
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_le_bytes(*field))
}
