//! Disk images and seed disks for the control plane's instances.

use std::path::{Path, PathBuf};

use concertina_agent::host::placements::{DiskBoot, GuestImages, SeedWords};
use concertina_guest::image::disk;
use concertina_guest::image::seed::{self, SeedSpec};

/// With kernels and initrds in a folder.
pub struct DiskImages {
    pub cache: PathBuf,
}

impl GuestImages for DiskImages {
    fn boot(&self, image: &Path) -> Result<DiskBoot, String> {
        let said = |error: concertina_guest::image::ImageError| error.to_string();
        let found = disk::inspect(image).map_err(said)?;
        if let Some(sentence) = found.lacks() {
            return Err(sentence);
        }
        let extracted = disk::extract(&found, &self.cache).map_err(said)?;
        Ok(DiskBoot {
            kernel: extracted.kernel,
            initrd: extracted.initrd,
            arguments: found.root_arguments().unwrap_or_default(),
            cache: self.cache.clone(),
        })
    }

    fn forget(&self, image: &Path) -> Result<(), String> {
        disk::forget(image, &self.cache).map_err(|error| error.to_string())
    }

    fn seed(&self, words: &SeedWords) -> Result<Vec<u8>, String> {
        let mut ssh_keys = Vec::new();
        for text in &words.ssh_keys {
            ssh_keys.extend(seed::parse_keys(text)?);
        }
        let spec = SeedSpec {
            name: words.name.clone(),
            user_data: words
                .user_data
                .as_ref()
                .map(|text| text.clone().into_bytes()),
            ssh_keys,
        };
        seed::build(&spec).map_err(|error| error.to_string())
    }
}
