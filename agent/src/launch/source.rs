//! Where a guest's kernel and initrd come from when it starts again: a distribution that has
//! installed another kernel on its disk boots that one.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use concertina_api::vm::VmSpec;
use serde::{Deserialize, Serialize};

use super::{LaunchError, host, images};
use crate::sentence;

/// Kernel and initrd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// bzImage, or ELF vmlinux.
    pub kernel: PathBuf,
    /// Initial ram file system.
    pub initrd: Option<PathBuf>,
}

/// A disk image whose own kernel is booted: what finds its files again, as a value that can be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootImage {
    /// The image.
    pub image: PathBuf,
    /// The folder where kernels and initrds are taken out to.
    pub cache: PathBuf,
}

type Find = dyn Fn() -> Result<BootFiles, String> + Send + Sync;

/// Finds the files of the next boot, while the guest does not run. Called from the supervisor's
/// keeper thread, at each restart of the guest; the error is a sentence.
#[derive(Clone)]
pub struct BootSource {
    find: Arc<Find>,
    image: Option<BootImage>,
}

impl BootSource {
    /// By this function.
    pub fn new(find: impl Fn() -> Result<BootFiles, String> + Send + Sync + 'static) -> Self {
        Self {
            find: Arc::new(find),
            image: None,
        }
    }

    /// The function looks into this image: an agent that comes later can make it again.
    pub fn of_image(self, image: BootImage) -> Self {
        Self {
            image: Some(image),
            ..self
        }
    }

    /// The image that it looks into, when that is all it needs.
    pub fn image(&self) -> Option<&BootImage> {
        self.image.as_ref()
    }

    /// Puts the files of the next boot into the vmm's words. On error these are as before, and so is
    /// the guest's kernel.
    pub(crate) fn renew(&self, vm: &mut VmSpec) -> Result<(), String> {
        let said = |error: LaunchError| sentence(&error);
        let files = (self.find)()?;
        let kernel = host::absolute(&files.kernel).map_err(said)?;
        let initrd = files.initrd.as_deref().map(host::absolute).transpose();
        let initrd = initrd.map_err(said)?;
        images::check(&kernel, initrd.as_deref(), vm.boot_memory).map_err(said)?;
        vm.kernel = kernel;
        vm.initrd = initrd;
        Ok(())
    }
}

impl fmt::Debug for BootSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootSource")
    }
}
