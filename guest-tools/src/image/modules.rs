//! The modules of one kernel release, and which of them the default guest loads in which order.
//!
//! A release's folder is `lib/modules/RELEASE` of an installed or unpacked kernel package: module
//! files anywhere below `kernel/`, and `modules.builtin`, the list of what needs no file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::compression;
use super::error::ImageError;
use super::modinfo::{self, canonical};
use super::signature;

/// Without these there is no Concertina guest.
const REQUIRED: [&str; 2] = ["virtio_pci", "virtio_mem"];
/// These make it better: the balloon, entropy, the power button, and drivers that the guest loads
/// where there is a device for them.
const OPTIONAL: [&str; 6] = [
    "virtio_balloon",
    "virtio_rng",
    "button",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "virtio_net",
];
const SUFFIXES: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

/// A module, ready for the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Name, with underscores.
    pub name: String,
    /// The uncompressed file, without its signature.
    pub data: Vec<u8>,
}

/// What the guest of a kernel gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// In loading order: what a module needs comes before it.
    pub modules: Vec<Module>,
    /// Wanted, and built into the kernel.
    pub builtin: Vec<String>,
    /// Wanted, and not to be had; none of them is necessary.
    pub missing: Vec<String>,
}

/// All modules of a release.
pub struct ModuleTree {
    release: String,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// Looks through a `lib/modules/RELEASE` folder.
    pub fn open(folder: &Path) -> Result<Self, ImageError> {
        let folder = folder
            .canonicalize()
            .map_err(ImageError::file("read", folder))?;
        let release = folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .ok_or_else(|| {
                ImageError::format(&folder, "a lib/modules/RELEASE folder", "it is a root")
            })?;
        let mut files = BTreeMap::new();
        collect(&folder.join("kernel"), &mut files)?;
        let list = folder.join("modules.builtin");
        let builtin = fs::read_to_string(&list).map_err(ImageError::file("read", &list))?;
        let builtin = builtin.lines().filter_map(module_name).collect();
        Ok(Self {
            release,
            files,
            builtin,
        })
    }

    /// Kernel release, from the folder's name.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Whether a module exists in either form.
    fn has(&self, name: &str) -> bool {
        self.builtin.contains(name) || self.files.contains_key(name)
    }

    /// The first module that a guest cannot do without and that this kernel has not.
    pub fn lacks(&self) -> Option<&'static str> {
        REQUIRED.into_iter().find(|name| !self.has(name))
    }

    /// Picks the default guest's modules, and `extra` ones by name, which then must exist.
    pub fn select(&self, extra: &[String]) -> Result<Selection, ImageError> {
        let extra: Vec<String> = extra.iter().map(|name| canonical(name)).collect();
        let needed = REQUIRED
            .iter()
            .copied()
            .chain(extra.iter().map(String::as_str));
        let mut selection = Selection::default();
        let mut seen = BTreeSet::new();
        for (name, necessary) in needed
            .map(|name| (name, true))
            .chain(OPTIONAL.map(|name| (name, false)))
        {
            if self.has(name) {
                self.add(name, &mut selection, &mut seen)?;
            } else if necessary {
                return Err(self.missing(name));
            } else {
                selection.missing.push(name.to_owned());
            }
        }
        Ok(selection)
    }

    /// Adds a module behind everything that it needs. A cycle, which only a broken package has, ends
    /// where it closes.
    fn add(
        &self,
        name: &str,
        selection: &mut Selection,
        seen: &mut BTreeSet<String>,
    ) -> Result<(), ImageError> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        if self.builtin.contains(name) {
            selection.builtin.push(name.to_owned());
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| self.missing(name))?;
        let packed = fs::read(path).map_err(ImageError::file("read", path))?;
        let plain =
            compression::decompress(&packed).map_err(ImageError::file("decompress", path))?;
        let data = signature::strip(&plain).to_vec();
        let info = modinfo::parse(&data)
            .map_err(|why| ImageError::format(path, "a kernel module", why))?;
        for needed in &info.depends {
            self.add(needed, selection, seen)?;
        }
        selection.modules.push(Module {
            name: name.to_owned(),
            data,
        });
        Ok(())
    }

    fn missing(&self, name: &str) -> ImageError {
        ImageError::ModuleMissing {
            release: self.release.clone(),
            name: name.to_owned(),
        }
    }
}

/// The module that a path is the file of.
fn module_name(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    SUFFIXES
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))
        .map(canonical)
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    for entry in fs::read_dir(folder).map_err(ImageError::file("read", folder))? {
        let entry = entry.map_err(ImageError::file("read", folder))?;
        let kind = entry
            .file_type()
            .map_err(ImageError::file("read", &entry.path()))?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use modinfo::testing::module;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(modules: &[(&str, &str)], builtin: &str) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            let folder = tree.folder();
            fs::create_dir_all(folder.join("kernel/drivers/virtio")).unwrap();
            for (name, depends) in modules {
                let path = folder.join(format!("kernel/drivers/virtio/{name}.ko"));
                fs::write(path, module(name, depends)).unwrap();
            }
            fs::write(folder.join("modules.builtin"), builtin).unwrap();
            tree
        }
        fn folder(&self) -> PathBuf {
            self.0.path().join("6.1.0-test")
        }
        fn open(&self) -> ModuleTree {
            ModuleTree::open(&self.folder()).unwrap()
        }
    }

    fn names(selection: &Selection) -> Vec<&str> {
        selection
            .modules
            .iter()
            .map(|module| module.name.as_str())
            .collect()
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let tree = Tree::new(
            &[
                ("virtio_pci", "virtio_ring,virtio,virtio-pci-modern"),
                ("virtio-pci-modern", ""),
                ("virtio_ring", "virtio"),
                ("virtio", ""),
                ("virtio_mem", "virtio_ring,virtio"),
            ],
            "",
        );
        let selection = tree.open().select(&[]).unwrap();
        assert_eq!(
            names(&selection),
            [
                "virtio",
                "virtio_ring",
                "virtio_pci_modern",
                "virtio_pci",
                "virtio_mem"
            ]
        );
        assert_eq!(selection.missing, OPTIONAL);
    }

    #[test]
    fn builtin_modules_need_no_file() {
        let builtin = "kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio_pci.ko\n\
            kernel/drivers/char/hw_random/virtio-rng.ko\n";
        let tree = Tree::new(&[("virtio_mem", "virtio")], builtin);
        let selection = tree.open().select(&[]).unwrap();
        assert_eq!(names(&selection), ["virtio_mem"]);
        assert_eq!(selection.builtin, ["virtio_pci", "virtio", "virtio_rng"]);
    }

    #[test]
    fn a_kernel_without_virtio_mem_is_refused_by_name() {
        let tree = Tree::new(&[("virtio_pci", "")], "");
        assert_eq!(tree.open().lacks(), Some("virtio_mem"));
        let error = tree.open().select(&[]).unwrap_err().to_string();
        assert!(
            error.contains("virtio_mem") && error.contains("6.1.0-test"),
            "{error}"
        );
    }

    #[test]
    fn extra_modules_must_exist() {
        let tree = Tree::new(
            &[("virtio_pci", ""), ("virtio_mem", ""), ("virtio-blk", "")],
            "",
        );
        let selection = tree.open().select(&["virtio-blk".into()]).unwrap();
        assert_eq!(
            names(&selection),
            ["virtio_pci", "virtio_mem", "virtio_blk"]
        );
        assert!(tree.open().select(&["evdev".into()]).is_err());
    }

    #[test]
    fn a_cycle_in_a_broken_package_ends() {
        let tree = Tree::new(
            &[("virtio_pci", "virtio_mem"), ("virtio_mem", "virtio_pci")],
            "",
        );
        assert_eq!(tree.open().select(&[]).unwrap().modules.len(), 2);
    }

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let tree = Tree::new(&[("virtio_pci", "")], "");
        let path = tree.folder().join("kernel/virtio_mem.ko");
        fs::write(&path, "not ELF").unwrap();
        let error = tree.open().select(&[]).unwrap_err().to_string();
        assert!(
            error.contains("virtio_mem.ko") && error.contains("kernel module"),
            "{error}"
        );
    }
}
