//! The `.modinfo` section of a kernel module: texts `key=value`, each ended by a zero byte. A module
//! names there what it depends on, which is how dependencies are found without a `modules.dep` file
//! (a package that was unpacked but not installed has none).

use super::elf;

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Its name, with underscores.
    pub name: Option<String>,
    /// The names of the modules that it needs, with underscores.
    pub depends: Vec<String>,
}

/// Two spellings of a module's name are the same module.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Reads the section out of an uncompressed module. The error is what is wrong with the file.
pub fn parse(module: &[u8]) -> Result<ModuleInfo, String> {
    let section = elf::section(module, ".modinfo")?
        .ok_or("it has no .modinfo section, so it is no kernel module")?;
    let mut info = ModuleInfo::default();
    for field in section.split(|byte| *byte == 0) {
        let Some((key, value)) = std::str::from_utf8(field)
            .ok()
            .and_then(|f| f.split_once('='))
        else {
            continue;
        };
        match key {
            "name" => info.name = Some(canonical(value)),
            "depends" => {
                info.depends = value
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(canonical)
                    .collect();
            }
            _ => {}
        }
    }
    Ok(info)
}

/// Makes modules for tests.
#[cfg(test)]
pub mod testing {
    use crate::image::elf::{MAGIC, SECTION_HEADER_BYTES};

    /// A minimal module: ELF header, names, `.modinfo`, section table.
    pub fn module(name: &str, depends: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let modinfo = format!("license=GPL\0depends={depends}\0name={name}\0");
        let names_at = 64u64;
        let modinfo_at = names_at + names.len() as u64;
        let table_at = modinfo_at + modinfo.len() as u64;
        let mut elf = vec![0; 64];
        elf[..4].copy_from_slice(MAGIC);
        elf[4] = 2;
        elf[5] = 1;
        elf[0x28..0x30].copy_from_slice(&table_at.to_le_bytes());
        elf[0x3a] = SECTION_HEADER_BYTES as u8;
        elf[0x3c] = 3;
        elf[0x3e] = 2;
        elf.extend_from_slice(names);
        elf.extend_from_slice(modinfo.as_bytes());
        let mut section = |name: u32, offset: u64, length: usize| {
            let mut header = [0; SECTION_HEADER_BYTES];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        };
        section(0, 0, 0);
        section(1, modinfo_at, modinfo.len());
        section(10, names_at, names.len());
        elf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn name_and_dependencies_are_read_in_one_spelling() {
        let info = parse(&testing::module("virtio-rng", "virtio,virtio-ring")).expect("a module");
        assert_eq!(info.name.as_deref(), Some("virtio_rng"));
        assert_eq!(info.depends, ["virtio", "virtio_ring"]);
    }

    #[test]
    fn a_module_that_depends_on_nothing_says_so() {
        assert!(
            parse(&testing::module("button", ""))
                .expect("a module")
                .depends
                .is_empty()
        );
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = testing::module("a", "b");
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            changes in prop::collection::vec((0usize..320, any::<u8>()), 1..12)
        ) {
            let mut elf = testing::module("a", "b");
            for (offset, byte) in changes {
                if let Some(place) = elf.get_mut(offset) {
                    *place = byte;
                }
            }
            let _ = parse(&elf);
        }
    }
}
