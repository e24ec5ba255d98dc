//! Is this file a kernel that we can boot, and does the guest's boot RAM hold it and its initrd?
//!
//! Only as much is read as is needed to say in one sentence what is wrong. The vmm parses the same
//! file with the same care again: this check is for the person, not for safety.
//! Follows the Linux x86 boot protocol (`Documentation/arch/x86/boot.rst`) and the ELF format.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use concertina_api::Bytes;

use super::LaunchError;

/// Offset and value of the bzImage magic.
const HDRS_AT: usize = 0x202;
const HDRS: &[u8; 4] = b"HdrS";
/// End of the setup header fields that are read here (`init_size` ends at 0x264).
const SETUP_HEADER_END: usize = 0x264;
/// Oldest boot protocol with a 64-bit entry.
const MIN_PROTOCOL: u16 = 0x020c;
const ELF_MAGIC: &[u8; 4] = b"\x7fELF";
const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Owner and type of the note that carries the PVH entry point.
const PVH_NOTE_OWNER: &[u8; 4] = b"Xen\0";
const PVH_NOTE_TYPE: u32 = 18;
/// Notes of real kernels are a few hundred bytes.
const NOTE_LIMIT_BYTES: u64 = 64 << 10;

/// Checks kernel and initrd against each other and against the boot RAM.
pub fn check(kernel: &Path, initrd: Option<&Path>, boot_memory: Bytes) -> Result<(), LaunchError> {
    let kernel_bytes = check_kernel(kernel)?;
    if kernel_bytes > boot_memory.get() {
        return Err(file_error(
            "Kernel",
            kernel,
            format!(
                "needs {} to unpack itself, more than the {boot_memory} of the memory's lower bound",
                Bytes(round_up_mib(kernel_bytes))
            ),
        ));
    }
    let Some(initrd) = initrd else { return Ok(()) };
    let initrd_bytes = open_regular("Initrd", initrd)?.1;
    if initrd_bytes == 0 {
        return Err(file_error("Initrd", initrd, "is empty".into()));
    }
    if initrd_bytes.saturating_add(kernel_bytes) > boot_memory.get() {
        return Err(file_error(
            "Initrd",
            initrd,
            format!(
                "has {} and does not fit beside the kernel's {} into the {boot_memory} of the \
                 memory's lower bound",
                Bytes(round_up_mib(initrd_bytes)),
                Bytes(round_up_mib(kernel_bytes)),
            ),
        ));
    }
    Ok(())
}

fn round_up_mib(bytes: u64) -> u64 {
    bytes.div_ceil(Bytes::MIB).saturating_mul(Bytes::MIB)
}

fn file_error(what: &'static str, path: &Path, problem: String) -> LaunchError {
    LaunchError::File {
        what,
        path: path.to_owned(),
        problem,
    }
}

/// Opens a regular file and gives its size.
fn open_regular(what: &'static str, path: &Path) -> Result<(File, u64), LaunchError> {
    let open = || -> io::Result<Option<(File, u64)>> {
        // Before it is opened: that waits for ever where it is a pipe that nobody writes to.
        if !std::fs::metadata(path)?.is_file() {
            return Ok(None);
        }
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Some((file, len)))
    };
    match open() {
        Ok(Some(opened)) => Ok(opened),
        Ok(None) => Err(file_error(what, path, "is not a regular file".into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(file_error(what, path, "does not exist".into()))
        }
        Err(e) => Err(file_error(what, path, format!("cannot be read: {e}"))),
    }
}

/// Checks a kernel; gives the bytes of RAM that it needs at its load address.
fn check_kernel(path: &Path) -> Result<u64, LaunchError> {
    let (file, size) = open_regular("Kernel", path)?;
    let refuse = |problem: String| file_error("Kernel", path, problem);
    if size == 0 {
        return Err(refuse("is empty".into()));
    }
    let head =
        read_at(&file, 0, size.min(1024)).map_err(|e| refuse(format!("cannot be read: {e}")))?;
    if head.starts_with(ELF_MAGIC) {
        return check_elf(&file, &head, size).map_err(refuse);
    }
    if head.get(HDRS_AT..HDRS_AT + HDRS.len()) == Some(HDRS.as_slice()) {
        return check_bzimage(&head, size).map_err(refuse);
    }
    // A boot sector's mark with nothing behind it is a bzImage that was cut off.
    if size <= HDRS_AT as u64 && head.starts_with(b"MZ") {
        return Err(refuse(format!("is truncated: it ends after {size} bytes")));
    }
    Err(refuse(
        "is no kernel: neither a bzImage (HdrS at 0x202) nor an ELF file (7f 45 4c 46 at 0)".into(),
    ))
}

fn read_at(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

fn truncated(size: u64, needed: u64) -> String {
    format!("is truncated: it has {size} bytes of the {needed} that its header names")
}

/// The setup header: protocol, 64-bit entry, and all the sectors that it names.
fn check_bzimage(head: &[u8], size: u64) -> Result<u64, String> {
    let cut = || truncated(size, SETUP_HEADER_END as u64);
    let protocol = u16_at(head, 0x206).ok_or_else(cut)?;
    if protocol < MIN_PROTOCOL {
        return Err(format!(
            "uses boot protocol {}.{:02}: at least 2.12 (Linux 3.8) is needed",
            protocol >> 8,
            protocol & 0xff
        ));
    }
    let setup_sectors = match head.get(0x1f1).copied().ok_or_else(cut)? {
        // Zero means four, for kernels of long ago.
        0 => 4,
        n => n,
    };
    let protected_paragraphs = u32_at(head, 0x1f4).ok_or_else(cut)?;
    let xloadflags = u16_at(head, 0x236).ok_or_else(cut)?;
    let init_bytes = u32_at(head, 0x260).ok_or_else(cut)?;
    if xloadflags & 1 == 0 {
        return Err("has no 64-bit entry point: a kernel for x86_64 is needed".into());
    }
    let needed = (u64::from(setup_sectors) + 1) * 512 + u64::from(protected_paragraphs) * 16;
    if size < needed {
        return Err(truncated(size, needed));
    }
    Ok(u64::from(init_bytes).max(size))
}

/// The ELF header, each segment inside the file, and the PVH note without which there is no entry.
fn check_elf(file: &File, head: &[u8], size: u64) -> Result<u64, String> {
    let cut = || truncated(size, ELF_HEADER_BYTES as u64);
    let class_and_order = head.get(4..6).ok_or_else(cut)?;
    let machine = u16_at(head, 18).ok_or_else(cut)?;
    if class_and_order != [2, 1] || machine != 62 {
        return Err("is an ELF file for another machine: one for x86_64 is needed".into());
    }
    let table_at = u64_at(head, 32).ok_or_else(cut)?;
    let entry_bytes = usize::from(u16_at(head, 54).ok_or_else(cut)?);
    let entries = u16_at(head, 56).ok_or_else(cut)?;
    if entry_bytes != PROGRAM_HEADER_BYTES || entries == 0 {
        return Err(
            "is an ELF file without program headers, not a kernel (an object file?)".into(),
        );
    }
    let table_bytes = u64::from(entries) * PROGRAM_HEADER_BYTES as u64;
    let table_end = table_at.saturating_add(table_bytes);
    if table_end > size {
        return Err(truncated(size, table_end));
    }
    let table = read_at(file, table_at, table_bytes).map_err(|e| format!("cannot be read: {e}"))?;
    let mut lowest = u64::MAX;
    let mut highest = 0;
    let mut has_pvh = false;
    for header in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        let field = |at| u64_at(header, at).unwrap_or(0);
        let (offset, address, file_bytes, memory_bytes) =
            (field(8), field(24), field(32), field(40));
        let end = offset.saturating_add(file_bytes);
        if end > size {
            return Err(truncated(size, end));
        }
        match u32_at(header, 0) {
            Some(PT_LOAD) if memory_bytes > 0 => {
                lowest = lowest.min(address);
                highest = highest.max(address.saturating_add(memory_bytes));
            }
            Some(PT_NOTE) if file_bytes <= NOTE_LIMIT_BYTES => {
                let notes = read_at(file, offset, file_bytes);
                has_pvh |= notes.is_ok_and(|notes| has_pvh_note(&notes));
            }
            _ => {}
        }
    }
    if !has_pvh {
        return Err(
            "is an ELF file without a PVH entry point: not a Linux kernel, or one built without \
             CONFIG_PVH"
                .into(),
        );
    }
    Ok(highest.saturating_sub(lowest))
}

/// Looks for the note of owner `Xen` and type 18 among notes padded to 4 bytes.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    let padded = |len: u32| usize::try_from(len).ok()?.checked_next_multiple_of(4);
    loop {
        let fields = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8));
        let (Some(owner_len), Some(payload_len), Some(kind)) = fields else {
            return false;
        };
        let (Some(owner_room), Some(payload_room)) = (padded(owner_len), padded(payload_len))
        else {
            return false;
        };
        let rest = notes.get(12..).unwrap_or_default();
        if kind == PVH_NOTE_TYPE && rest.starts_with(PVH_NOTE_OWNER) && owner_len == 4 {
            return true;
        }
        match rest.get(owner_room.saturating_add(payload_room)..) {
            Some(next) => notes = next,
            None => return false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file that passes as a bzImage: header and as many sectors as it names.
    pub(crate) fn small_bzimage() -> Vec<u8> {
        let mut image = vec![0u8; 512 * 5 + 4096];
        image[0x1f1] = 4;
        image[0x1f4..0x1f8].copy_from_slice(&256u32.to_le_bytes());
        image[HDRS_AT..HDRS_AT + 4].copy_from_slice(HDRS);
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x236] = 1;
        image[0x260..0x264].copy_from_slice(&(32u32 << 20).to_le_bytes());
        image
    }

    fn small_elf() -> Vec<u8> {
        let mut image = vec![0u8; 64 + 2 * 56 + 20];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 62;
        image[32] = 64;
        image[54] = 56;
        image[56] = 2;
        let load = &mut image[64..120];
        load[0] = 1;
        load[24..32].copy_from_slice(&(16u64 << 20).to_le_bytes());
        load[40..48].copy_from_slice(&(48u64 << 20).to_le_bytes());
        let note = &mut image[120..176];
        note[0] = 4;
        note[8..16].copy_from_slice(&176u64.to_le_bytes());
        note[32..40].copy_from_slice(&20u64.to_le_bytes());
        let body = &mut image[176..196];
        body[0] = 4;
        body[4] = 4;
        body[8] = 18;
        body[12..16].copy_from_slice(PVH_NOTE_OWNER);
        image
    }

    fn verdict(bytes: &[u8]) -> Result<u64, String> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("kernel");
        std::fs::write(&path, bytes).unwrap();
        check_kernel(&path).map_err(|e| {
            assert!(e.is_usage());
            e.to_string()
        })
    }

    #[test]
    fn both_kinds_of_kernel_pass_and_say_how_much_memory_they_take() {
        assert_eq!(verdict(&small_bzimage()), Ok(32 << 20));
        assert_eq!(verdict(&small_elf()), Ok(48 << 20));
    }

    #[test]
    fn a_kernel_that_was_cut_off_is_called_truncated() {
        for (image, keep) in [
            (small_bzimage(), 4000),
            (small_bzimage(), 0x210),
            (small_elf(), 100),
            (small_elf(), 190),
            (small_elf(), 20),
        ] {
            let error = verdict(&image[..keep]).unwrap_err();
            assert!(error.contains("truncated"), "{keep}: {error}");
        }
        assert!(verdict(b"").unwrap_err().contains("empty"));
    }

    #[test]
    fn what_is_no_kernel_is_called_so() {
        assert!(verdict(&[b'x'; 8192]).unwrap_err().contains("is no kernel"));
        let mut program = small_elf();
        program[176 + 8] = 1;
        assert!(verdict(&program).unwrap_err().contains("PVH"));
        let mut foreign = small_elf();
        foreign[18] = 183;
        assert!(verdict(&foreign).unwrap_err().contains("another machine"));
        let mut old = small_bzimage();
        old[0x206] = 4;
        assert!(verdict(&old).unwrap_err().contains("2.04"));
        assert!(check_kernel(Path::new("/")).is_err());
    }

    #[test]
    fn an_initrd_must_fit_beside_the_kernel() {
        let temp = tempfile::tempdir().unwrap();
        let kernel = temp.path().join("kernel");
        let initrd = temp.path().join("initrd");
        std::fs::write(&kernel, small_bzimage()).unwrap();
        File::create(&initrd).unwrap().set_len(40 << 20).unwrap();
        assert!(check(&kernel, Some(&initrd), Bytes::mib(128)).is_ok());
        let error = check(&kernel, Some(&initrd), Bytes::mib(64))
            .unwrap_err()
            .to_string();
        assert!(error.contains("40M") && error.contains("64M"), "{error}");
        assert!(check(&kernel, None, Bytes::mib(16)).is_err());
        let none = temp.path().join("none");
        assert!(
            check(&kernel, Some(&none), Bytes::mib(128))
                .unwrap_err()
                .is_usage()
        );
        File::create(&initrd).unwrap();
        assert!(check(&kernel, Some(&initrd), Bytes::mib(128)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]
        #[test]
        fn damaged_headers_never_panic(
            elf in any::<bool>(),
            damage in prop::collection::vec((0usize..700, any::<u8>()), 1..12),
        ) {
            let mut image = if elf { small_elf() } else { small_bzimage() };
            for (at, value) in damage {
                if let Some(byte) = image.get_mut(at) {
                    *byte = value;
                }
            }
            let _ = verdict(&image);
        }
    }
}
