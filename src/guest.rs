//! Which kernel and which initramfs an instance boots, where its customer does not name both.

use std::path::{Path, PathBuf};

use concertina_guest::image::kernel::{self, KernelOptions};
use concertina_guest::image::{self, ImageError};

use crate::cache;

/// What is booted.
#[derive(Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// bzImage or vmlinux.
    pub kernel: PathBuf,
    /// Initial ram file system.
    pub initrd: Option<PathBuf>,
}

/// Fills in what is not given from the default guest; says on standard error what takes time.
///
/// To a kernel that is given alone belongs an initramfs with its own modules. Where these are not
/// to be found the kernel boots without one: it may have everything built in.
pub fn boot_files(
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    cache_dir: Option<&Path>,
) -> anyhow::Result<BootFiles> {
    match (kernel, initrd) {
        (Some(kernel), initrd @ Some(_)) => Ok(BootFiles { kernel, initrd }),
        (Some(kernel), None) => match kernel::modules_of(&kernel) {
            Some(modules) => {
                let cache = cache::folder(cache_dir)?;
                let program = image::find_guest_program()?;
                let initrd = image::default_initramfs(&cache, &modules, &program, &mut progress)?;
                Ok(BootFiles {
                    kernel,
                    initrd: Some(initrd),
                })
            }
            None => Ok(BootFiles {
                kernel,
                initrd: None,
            }),
        },
        (None, initrd) => default_files(initrd, &cache::folder(cache_dir)?).map_err(Into::into),
    }
}

fn default_files(initrd: Option<PathBuf>, cache: &Path) -> Result<BootFiles, ImageError> {
    let options = KernelOptions::default();
    if initrd.is_some() {
        let kernel = kernel::default_kernel(cache, &options, &mut progress)?.image;
        return Ok(BootFiles { kernel, initrd });
    }
    let program = image::find_guest_program()?;
    let guest = image::default_guest(cache, &options, &program, &mut progress)?;
    Ok(BootFiles {
        kernel: guest.kernel.image,
        initrd: Some(guest.initramfs),
    })
}

/// A step that takes time, as a line on standard error.
pub fn progress(step: &str) {
    eprintln!("concertina: {step}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_given_are_taken_as_they_are() {
        let (kernel, initrd) = (PathBuf::from("k"), Some(PathBuf::from("i")));
        let files = boot_files(Some(kernel.clone()), initrd.clone(), None).unwrap();
        assert_eq!(files, BootFiles { kernel, initrd });
    }

    #[test]
    fn a_file_that_is_no_kernel_costs_no_build() {
        let cache = tempfile::tempdir().unwrap();
        let kernel = cache.path().join("text");
        std::fs::write(&kernel, "no kernel").unwrap();
        let files = boot_files(Some(kernel.clone()), None, Some(cache.path())).unwrap();
        assert_eq!(
            files,
            BootFiles {
                kernel,
                initrd: None
            }
        );
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
    }
}
