//! Which kernel and which initramfs an instance boots, where its customer does not name both.

use std::path::{Path, PathBuf};

/// What is booted.
#[derive(Debug)]
pub struct BootFiles {
    /// bzImage or vmlinux.
    pub kernel: PathBuf,
    /// Initial ram file system.
    pub initrd: Option<PathBuf>,
}

pub fn boot_files(
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    cache_dir: Option<&Path>,
) -> anyhow::Result<BootFiles> {
    let _ = crate::cache::folder(cache_dir)?;
    Ok(BootFiles {
        kernel: kernel.unwrap(),
        initrd,
    })
}
