//! The little of ELF that the image builder needs: a section by its name, and whether a program is
//! static. Every offset in the file is somebody's claim and is checked. Layout: the ELF-64
//! specification.

/// First bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";
/// Size of a section header.
pub const SECTION_HEADER_BYTES: usize = 64;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_RELOCATABLE: u16 = 1;
const SEGMENT_INTERPRETER: u32 = 3;

/// The content of the section of that name; `None` when there is none. The error says what is wrong
/// with the file.
pub fn section<'a>(elf: &'a [u8], wanted: &str) -> Result<Option<&'a [u8]>, String> {
    check(elf)?;
    let cut = || "its section table lies outside of the file".to_owned();
    let table = usize::try_from(u64_at(elf, 0x28).ok_or_else(cut)?).map_err(|_| cut())?;
    let entry_bytes = usize::from(u16_at(elf, 0x3a).ok_or_else(cut)?);
    let count = usize::from(u16_at(elf, 0x3c).ok_or_else(cut)?);
    let names_index = usize::from(u16_at(elf, 0x3e).ok_or_else(cut)?);
    if entry_bytes != SECTION_HEADER_BYTES {
        return Err(format!(
            "its section headers have {entry_bytes} bytes instead of 64"
        ));
    }
    let sections = count
        .checked_mul(entry_bytes)
        .and_then(|length| elf.get(table..)?.get(..length))
        .ok_or_else(cut)?;
    let header = |index| sections.chunks_exact(SECTION_HEADER_BYTES).nth(index);
    let names = header(names_index)
        .and_then(|header| content(elf, header))
        .ok_or_else(cut)?;
    let is_wanted = |header: &&[u8]| {
        u32_at(header, 0)
            .and_then(|offset| names.get(usize::try_from(offset).ok()?..))
            .and_then(|name| name.strip_prefix(wanted.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    let Some(found) = sections.chunks_exact(SECTION_HEADER_BYTES).find(is_wanted) else {
        return Ok(None);
    };
    let outside = || format!("its {wanted} section lies outside of the file");
    content(elf, found).map(Some).ok_or_else(outside)
}

/// Whether a program needs no dynamic linker, so that it runs where there is no libc.
pub fn is_static_program(elf: &[u8]) -> bool {
    if check(elf).is_err() || u16_at(elf, 0x10) == Some(TYPE_RELOCATABLE) {
        return false;
    }
    let headers = || {
        let table = usize::try_from(u64_at(elf, 0x20)?).ok()?;
        let entry_bytes = usize::from(u16_at(elf, 0x36)?);
        let length = usize::from(u16_at(elf, 0x38)?).checked_mul(entry_bytes)?;
        let table = elf.get(table..)?.get(..length)?;
        (entry_bytes > 0).then(|| table.chunks_exact(entry_bytes))
    };
    headers().is_some_and(|mut headers| {
        headers.all(|header| u32_at(header, 0) != Some(SEGMENT_INTERPRETER))
    })
}

fn check(elf: &[u8]) -> Result<(), String> {
    let field = |offset: usize| elf.get(offset).copied();
    if elf.starts_with(MAGIC) && field(4) == Some(CLASS_64) && field(5) == Some(LITTLE_ENDIAN) {
        Ok(())
    } else {
        Err("it is no 64-bit little-endian ELF file".into())
    }
}

fn content<'a>(elf: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let offset = usize::try_from(u64_at(header, 0x18)?).ok()?;
    let length = usize::try_from(u64_at(header, 0x20)?).ok()?;
    elf.get(offset..)?.get(..length)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_program_is_static_and_a_module_is_no_program() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(is_static_program(&program));
        assert!(!is_static_program(&crate::image::modinfo::testing::module(
            "a", ""
        )));
        assert!(!is_static_program(b"#!/bin/sh\n"));
        assert!(!is_static_program(&program[..70]));
    }

    #[test]
    fn a_name_is_matched_as_a_whole() {
        let module = crate::image::modinfo::testing::module("a", "");
        assert!(section(&module, ".modinfo").unwrap().is_some());
        assert_eq!(section(&module, ".mod").unwrap(), None);
    }
}
