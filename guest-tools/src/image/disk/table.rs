//! Partition tables, read and not believed: GPT (UEFI specification 2.10, §5.3) and MBR.
//!
//! The crates for these trust what a table says of its own size, by allocating it or by an
//! assertion; an image may come from anybody. Entries are read one at a time here, at most
//! [`MOST_ENTRIES`] of them, and whatever reaches beyond the image is left out. Checksums are the
//! guest's business: its kernel looks at the table again.

use std::fmt;
use std::io;

use super::Image;

/// Partitions that are looked at; Linux names no more of a virtio disk.
const MOST_ENTRIES: u32 = 128;
/// Links of a chain of logical partitions that are followed.
const MOST_LINKS: u32 = 64;
const SECTOR_BYTES: u64 = 512;
/// Sector sizes for which a GPT may have been written.
const GPT_SECTOR_SIZES: [u64; 2] = [512, 4096];
const GPT_SIGNATURE: &[u8] = b"EFI PART";
const GPT_ENTRY_BYTES: u32 = 128;
const MBR_SIGNATURE: [u8; 2] = [0x55, 0xaa];
const MBR_PROTECTIVE: u8 = 0xee;
const MBR_EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// The kind of table that an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// None: a bare file system, or nothing that is known.
    None,
    /// Master boot record.
    Mbr,
    /// GUID partition table.
    Gpt,
}

impl TableKind {
    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
        }
    }
}

/// A GUID in the order of its bytes on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// Type of an x86-64 Linux root partition, by the Discoverable Partitions Specification.
    pub const LINUX_ROOT: Self = Self([
        0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7,
        0x09,
    ]);
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-",
            u32::from_le_bytes([a, b, c, d]),
            u16::from_le_bytes([e, g]),
            u16::from_le_bytes([h, i])
        )?;
        for (index, byte) in rest.iter().enumerate() {
            write!(f, "{}{byte:02x}", if index == 2 { "-" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition that lies wholly within the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Number by which Linux names it, from 1.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start_bytes: u64,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// As the kernel's `root=PARTUUID=` wants it.
    pub partuuid: String,
    /// Its table says that it is a root file system.
    pub is_root_type: bool,
}

/// Reads the table; an image without one has no partitions.
pub fn read(image: &Image) -> io::Result<(TableKind, Vec<Partition>)> {
    let Some(sector) = read_sector(image, 0)? else {
        return Ok((TableKind::None, Vec::new()));
    };
    let entries = mbr_entries(&sector);
    if entries.iter().any(|entry| entry.kind == MBR_PROTECTIVE) {
        for sector_bytes in GPT_SECTOR_SIZES {
            if let Some(partitions) = read_gpt(image, sector_bytes)? {
                return Ok((TableKind::Gpt, partitions));
            }
        }
    }
    let partitions = read_mbr(image, &sector, &entries)?;
    if partitions.is_empty() {
        Ok((TableKind::None, partitions))
    } else {
        Ok((TableKind::Mbr, partitions))
    }
}

type Sector = [u8; SECTOR_BYTES as usize];

/// The sector at a byte offset; `None` beyond the end.
fn read_sector(image: &Image, offset: u64) -> io::Result<Option<Sector>> {
    let mut sector = [0; SECTOR_BYTES as usize];
    if !image.holds(offset, SECTOR_BYTES) {
        return Ok(None);
    }
    image.read_at(offset, &mut sector)?;
    Ok(Some(sector))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn guid_at(bytes: &[u8], at: usize) -> Option<Guid> {
    Some(Guid(*bytes.get(at..)?.first_chunk()?))
}

/// `None` when there is no such table for this sector size.
fn read_gpt(image: &Image, sector_bytes: u64) -> io::Result<Option<Vec<Partition>>> {
    let Some(header) = read_sector(image, sector_bytes)? else {
        return Ok(None);
    };
    let (Some(first), Some(count), Some(entry_bytes)) = (
        u64_at(&header, 72),
        u32_at(&header, 80),
        u32_at(&header, 84),
    ) else {
        return Ok(None);
    };
    if !header.starts_with(GPT_SIGNATURE)
        || entry_bytes < GPT_ENTRY_BYTES
        || !entry_bytes.is_multiple_of(8)
    {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for index in 0..count.min(MOST_ENTRIES) {
        let mut entry = [0; GPT_ENTRY_BYTES as usize];
        let offset = u64::from(index) * u64::from(entry_bytes);
        let place = first
            .checked_mul(sector_bytes)
            .and_then(|start| start.checked_add(offset));
        let Some(place) = place.filter(|place| image.holds(*place, GPT_ENTRY_BYTES.into())) else {
            break;
        };
        image.read_at(place, &mut entry)?;
        partitions.extend(gpt_partition(image, sector_bytes, index + 1, &entry));
    }
    Ok(Some(partitions))
}

fn gpt_partition(image: &Image, sector_bytes: u64, number: u32, entry: &[u8]) -> Option<Partition> {
    let kind = guid_at(entry, 0)?;
    if kind == Guid([0; 16]) {
        return None;
    }
    let (first, last) = (u64_at(entry, 32)?, u64_at(entry, 40)?);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let (start, size) = (
        first.checked_mul(sector_bytes)?,
        sectors.checked_mul(sector_bytes)?,
    );
    image.holds(start, size).then(|| Partition {
        number,
        start_bytes: start,
        size_bytes: size,
        partuuid: guid_at(entry, 16)
            .map(|guid| guid.to_string())
            .unwrap_or_default(),
        is_root_type: kind == Guid::LINUX_ROOT,
    })
}

#[derive(Debug, Clone, Copy)]
struct MbrEntry {
    kind: u8,
    first: u32,
    sectors: u32,
}

/// The four entries; none where it is no boot record, as in a bare file system.
fn mbr_entries(sector: &Sector) -> Vec<MbrEntry> {
    if !sector.ends_with(&MBR_SIGNATURE) {
        return Vec::new();
    }
    let table = sector.get(446..510).unwrap_or_default();
    table
        .chunks_exact(16)
        .filter_map(|entry| {
            // Anything but "active" and "not active" is program code of a boot sector.
            let status = entry.first()? & 0x7f;
            let (kind, first, sectors) = (*entry.get(4)?, u32_at(entry, 8)?, u32_at(entry, 12)?);
            Some(MbrEntry {
                kind: if status == 0 { kind } else { 0 },
                first,
                sectors,
            })
        })
        .collect()
}

fn read_mbr(image: &Image, sector: &Sector, entries: &[MbrEntry]) -> io::Result<Vec<Partition>> {
    let disk = u32_at(sector, 440).unwrap_or_default();
    let mut partitions = Vec::new();
    let mut logical = 5;
    for (number, entry) in (1..).zip(entries) {
        if MBR_EXTENDED.contains(&entry.kind) {
            follow_chain(image, disk, entry.first, &mut logical, &mut partitions)?;
        } else {
            partitions.extend(mbr_partition(image, disk, number, 0, *entry));
        }
    }
    Ok(partitions)
}

/// Logical partitions: each link names one partition and the next link, both relative.
fn follow_chain(
    image: &Image,
    disk: u32,
    extended: u32,
    number: &mut u32,
    partitions: &mut Vec<Partition>,
) -> io::Result<()> {
    let mut link = u64::from(extended);
    for _ in 0..MOST_LINKS {
        let Some(sector) = read_sector(image, link.saturating_mul(SECTOR_BYTES))? else {
            break;
        };
        let entries = mbr_entries(&sector);
        if let Some(partition) = entries
            .first()
            .and_then(|entry| mbr_partition(image, disk, *number, link, *entry))
        {
            partitions.push(partition);
            *number += 1;
        }
        match entries.get(1) {
            Some(next) if MBR_EXTENDED.contains(&next.kind) && next.first != 0 => {
                link = u64::from(extended) + u64::from(next.first);
            }
            _ => break,
        }
    }
    Ok(())
}

fn mbr_partition(
    image: &Image,
    disk: u32,
    number: u32,
    base: u64,
    entry: MbrEntry,
) -> Option<Partition> {
    if entry.kind == 0 || entry.kind == MBR_PROTECTIVE || entry.first == 0 || entry.sectors == 0 {
        return None;
    }
    let start = base
        .checked_add(entry.first.into())?
        .checked_mul(SECTOR_BYTES)?;
    let size = u64::from(entry.sectors) * SECTOR_BYTES;
    image.holds(start, size).then(|| Partition {
        number,
        start_bytes: start,
        size_bytes: size,
        partuuid: format!("{disk:08x}-{number:02x}"),
        is_root_type: false,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// A GPT with partitions given by first and last sector, over a disk of that size.
    pub fn gpt(disk_bytes: usize, parts: &[(u64, u64)]) -> Vec<u8> {
        let mut disk = vec![0; disk_bytes];
        disk[446 + 4] = MBR_PROTECTIVE;
        disk[446 + 8..446 + 12].copy_from_slice(&1u32.to_le_bytes());
        disk[446 + 12..446 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
        disk[510..512].copy_from_slice(&MBR_SIGNATURE);
        disk[512..520].copy_from_slice(GPT_SIGNATURE);
        disk[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        disk[512 + 80..512 + 84].copy_from_slice(&128u32.to_le_bytes());
        disk[512 + 84..512 + 88].copy_from_slice(&128u32.to_le_bytes());
        for (index, (first, last)) in parts.iter().enumerate() {
            let entry = &mut disk[1024 + index * 128..][..128];
            entry[..16].copy_from_slice(&Guid::LINUX_ROOT.0);
            entry[16..32].copy_from_slice(&[index as u8 + 1; 16]);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        disk
    }

    fn set_mbr_entry(sector: &mut [u8], index: usize, kind: u8, first: u32, sectors: u32) {
        let at = 446 + index * 16;
        sector[at + 4] = kind;
        sector[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        sector[510..512].copy_from_slice(&MBR_SIGNATURE);
    }

    fn of(disk: Vec<u8>) -> (TableKind, Vec<Partition>) {
        read(&Image::of_bytes(&disk)).unwrap()
    }

    #[test]
    fn the_partitions_of_a_gpt_are_found() {
        let (kind, parts) = of(gpt(4 << 20, &[(2048, 4095), (4096, 8191)]));
        assert_eq!(kind, TableKind::Gpt);
        assert_eq!(parts.len(), 2);
        assert_eq!((parts[0].start_bytes, parts[0].size_bytes), (MIB, MIB));
        assert_eq!(parts[1].number, 2);
        assert_eq!(parts[1].partuuid, "02020202-0202-0202-0202-020202020202");
        assert!(parts[0].is_root_type);
        assert_eq!(
            Guid::LINUX_ROOT.to_string(),
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
        );
    }

    #[test]
    fn what_reaches_beyond_the_image_is_left_out() {
        let parts = [(2048, 4096), (u64::MAX, u64::MAX), (100, 50), (0, u64::MAX)];
        let (kind, parts) = of(gpt(2 << 20, &parts));
        assert_eq!(kind, TableKind::Gpt);
        assert_eq!(parts, []);
    }

    #[test]
    fn absurd_sizes_of_a_gpt_cost_nothing() {
        let mut disk = gpt(2 << 20, &[(2048, 3000)]);
        disk[512 + 80..512 + 84].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(of(disk.clone()).1.len(), 1);
        disk[512 + 84..512 + 88].copy_from_slice(&0xffff_fff8u32.to_le_bytes());
        assert_eq!(of(disk.clone()).1.len(), 1);
        disk[512 + 72..512 + 80].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(of(disk).1.len(), 0);
    }

    #[test]
    fn primary_and_logical_partitions_of_an_mbr_are_found() {
        let mut disk = vec![0; 8 << 20];
        disk[440..444].copy_from_slice(&0xdead_beefu32.to_le_bytes());
        set_mbr_entry(&mut disk, 0, 0x83, 2048, 2048);
        set_mbr_entry(&mut disk, 1, 0x05, 4096, 8192);
        let link = &mut disk[4096 * 512..];
        set_mbr_entry(link, 0, 0x83, 64, 1000);
        set_mbr_entry(link, 1, 0x05, 2048, 2048);
        set_mbr_entry(&mut disk[6144 * 512..], 0, 0x83, 64, 100);
        let (kind, parts) = of(disk);
        assert_eq!(kind, TableKind::Mbr);
        let found: Vec<(u32, u64)> = parts
            .iter()
            .map(|p| (p.number, p.start_bytes / 512))
            .collect();
        assert_eq!(found, [(1, 2048), (5, 4160), (6, 6208)]);
        assert_eq!(parts[0].partuuid, "deadbeef-01");
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let mut disk = vec![0; 4 << 20];
        set_mbr_entry(&mut disk, 0, 0x0f, 2048, 2048);
        let link = &mut disk[2048 * 512..];
        set_mbr_entry(link, 0, 0x83, 8, 8);
        // The link after this one is itself, once more 1 sector on.
        set_mbr_entry(link, 1, 0x05, 1, 8);
        let copy: Vec<u8> = disk[2048 * 512..][..512].to_vec();
        disk[2049 * 512..][..512].copy_from_slice(&copy);
        assert_eq!(of(disk).1.len(), MOST_LINKS as usize);
    }

    #[test]
    fn no_table_and_boot_sectors_of_file_systems_are_told_apart() {
        assert_eq!(of(vec![0; 4096]).0, TableKind::None);
        assert_eq!(of(vec![0; 100]).0, TableKind::None);
        let mut fat = vec![0x6f; 4096];
        fat[510..512].copy_from_slice(&MBR_SIGNATURE);
        assert_eq!(of(fat).0, TableKind::None);
    }

    proptest! {
        #[test]
        fn any_first_sectors_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..3000),
            kind in prop::sample::select(vec![0x05u8, 0x0f, 0x83, 0xee]),
        ) {
            let mut disk = bytes;
            disk.resize(4096, 0xff);
            disk[446] = 0;
            disk[450] = kind;
            disk[510..512].copy_from_slice(&MBR_SIGNATURE);
            disk[512..520].copy_from_slice(GPT_SIGNATURE);
            for partition in of(disk).1 {
                prop_assert!(partition.start_bytes + partition.size_bytes <= 4096);
            }
        }
    }
}
