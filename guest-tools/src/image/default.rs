//! The default guest: a kernel and the initramfs that was built for it, from a cache.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use super::error::ImageError;
use super::initramfs::{self, Busybox, InitramfsSpec, ModuleSource};
use super::kernel::{self, DefaultKernel, KernelOptions};

/// Changes whenever the builder would make something else of the same input.
const BUILDER_VERSION: u32 = 3;

/// A guest that boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultGuest {
    /// Its kernel.
    pub kernel: DefaultKernel,
    /// The initramfs for this kernel.
    pub initramfs: PathBuf,
}

/// Finds or fetches a kernel ([`kernel::default_kernel`]) and builds the initramfs for it, unless
/// the cache folder has both. `guest_program` is what
/// [`find_guest_program`](super::find_guest_program) finds.
pub fn default_guest(
    cache: &Path,
    options: &KernelOptions,
    guest_program: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<DefaultGuest, ImageError> {
    let kernel = kernel::default_kernel(cache, options, progress)?;
    let initramfs = default_initramfs(cache, &kernel.modules, guest_program, progress)?;
    Ok(DefaultGuest { kernel, initramfs })
}

/// The default initramfs for a `lib/modules/RELEASE` folder, from the cache folder or built into it.
/// It is built again when the guest program, busybox or the modules have changed.
pub fn default_initramfs(
    cache: &Path,
    modules: &Path,
    guest_program: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<PathBuf, ImageError> {
    let folder = cache.join("initramfs");
    fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
    let modules = initramfs::find_release_folder(modules)?;
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let busybox = initramfs::installed_busybox();
    let program = fs::read(guest_program).map_err(ImageError::file("read", guest_program))?;

    let mut key = DefaultHasher::new();
    BUILDER_VERSION.hash(&mut key);
    program.hash(&mut key);
    busybox.as_ref().map(|(_, program)| program).hash(&mut key);
    // A kernel that was rebuilt under the same release has a list of another time.
    let list = modules.join("modules.builtin");
    let metadata = fs::metadata(&list).map_err(ImageError::file("read", &list))?;
    metadata
        .modified()
        .map_err(ImageError::file("read", &list))?
        .hash(&mut key);
    let output = folder.join(format!("{release}-{:016x}.cpio", key.finish()));
    if output.is_file() {
        return Ok(output);
    }
    progress(&format!("Building the initramfs for kernel {release}"));
    initramfs::build(&InitramfsSpec {
        modules: ModuleSource::Dir(modules),
        extra_modules: Vec::new(),
        guest_program: guest_program.to_owned(),
        busybox: busybox.map_or(Busybox::None, |(path, _)| Busybox::Program(path)),
        files: Vec::new(),
        output: output.clone(),
    })?;
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::modinfo::testing::module;

    #[test]
    fn the_initramfs_is_built_once_and_again_for_another_guest_program() {
        let work = tempfile::tempdir().unwrap();
        let modules = work.path().join("6.1-test");
        fs::create_dir_all(modules.join("kernel")).unwrap();
        for name in ["virtio_pci", "virtio_mem"] {
            fs::write(modules.join(format!("kernel/{name}.ko")), module(name, "")).unwrap();
        }
        fs::write(modules.join("modules.builtin"), "").unwrap();
        let program = work.path().join("guest");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();

        let mut builds = 0;
        let mut build =
            || default_initramfs(work.path(), &modules, &program, &mut |_| builds += 1).unwrap();
        let first = build();
        assert_eq!(first, build());
        let mut bytes = fs::read(&program).unwrap();
        bytes.push(0);
        fs::write(&program, bytes).unwrap();
        assert_ne!(first, build());
        assert_eq!(builds, 2);
    }
}
