//! `run --image`: a disk image booted with the distribution's own kernel and initrd, and what its
//! cloud-init is told.

use std::fs;
use std::path::{Path, PathBuf};

use concertina_agent::launch::{self, BootImage, BootSource};
use concertina_api::disk::DiskSpec;
use concertina_guest::image::disk;
use concertina_guest::image::seed::{self, SeedSpec};

use crate::cache;
use crate::failure::Usage;
use crate::guest::{BootFiles, progress};

/// Arguments of `run` that belong to a disk image.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// Boot this raw disk image with its own kernel and initrd; it is the first disk
    #[arg(long, value_name = "FILE[,ro][,serial=S][,rate=RATE]")]
    #[arg(conflicts_with_all = ["kernel", "initrd"])]
    pub image: Option<DiskSpec>,
    /// User data for the image's cloud-init
    #[arg(long, value_name = "FILE", requires = "image")]
    pub user_data: Option<PathBuf>,
    /// Public keys that the image's cloud-init lets in: a .pub file; may be given several times
    #[arg(long = "ssh-key", value_name = "FILE", requires = "image")]
    pub ssh_keys: Vec<PathBuf>,
}

/// An image that is ready to boot.
#[derive(Debug, PartialEq, Eq)]
pub struct ImageBoot {
    /// Its kernel and initrd, in the cache.
    pub files: BootFiles,
    /// What the kernel is told of its root file system.
    pub arguments: String,
}

/// Looks into the image and takes its kernel and initrd out. The image itself is not changed.
pub fn boot_image(image: &Path, cache_dir: Option<&Path>) -> anyhow::Result<ImageBoot> {
    let found = disk::inspect(image)?;
    if let Some(sentence) = found.lacks() {
        return Err(Usage(sentence).into());
    }
    let system = found.root.as_ref().and_then(|root| root.os.as_deref());
    progress(&format!(
        "Booting {} with its kernel {}",
        system.unwrap_or("the image"),
        found.release.as_deref().unwrap_or_default()
    ));
    let extracted = disk::extract(&found, &cache::folder(cache_dir)?)?;
    Ok(ImageBoot {
        arguments: found.root_arguments().unwrap_or_default(),
        files: BootFiles {
            kernel: extracted.kernel,
            initrd: extracted.initrd,
        },
    })
}

/// The same again whenever the guest restarts.
pub fn boot_source(image: &Path, cache_dir: Option<&Path>) -> anyhow::Result<BootSource> {
    Ok(source_of(BootImage {
        // The supervisor may work in another folder.
        image: std::path::absolute(image)?,
        cache: cache::folder(cache_dir)?,
    }))
}

/// Finds the kernel of an image again and again.
pub fn source_of(boot: BootImage) -> BootSource {
    let BootImage { image, cache } = boot.clone();
    let source = BootSource::new(move || {
        let found = disk::inspect(&image).map_err(|error| error.to_string())?;
        let extracted = disk::extract(&found, &cache).map_err(|error| error.to_string())?;
        Ok(launch::BootFiles {
            kernel: extracted.kernel,
            initrd: extracted.initrd,
        })
    });
    source.of_image(boot)
}

/// The seed disk of cloud-init, where there is anything to tell it.
pub fn seed_disk(name: &str, args: &ImageArgs) -> anyhow::Result<Option<Vec<u8>>> {
    if args.user_data.is_none() && args.ssh_keys.is_empty() {
        return Ok(None);
    }
    let mut spec = SeedSpec {
        name: name.to_owned(),
        ..SeedSpec::default()
    };
    if let Some(path) = &args.user_data {
        spec.user_data = Some(fs::read(path).map_err(|e| wrong("User data", path, &e))?);
    }
    for path in &args.ssh_keys {
        let text = fs::read_to_string(path).map_err(|e| wrong("SSH key", path, &e))?;
        let keys = seed::parse_keys(&text).map_err(|e| wrong("SSH key", path, &e))?;
        spec.ssh_keys.extend(keys);
    }
    let disk = seed::build(&spec).map_err(|error| Usage(error.to_string()))?;
    Ok(Some(disk))
}

fn wrong(what: &str, path: &Path, why: &dyn std::fmt::Display) -> Usage {
    Usage(format!("{what} '{}': {why}", path.display()))
}

/// What is appended to our command line: the image's part, then the customer's, which wins.
pub fn append(image: Option<&ImageBoot>, append: Option<String>) -> Option<String> {
    match (image, append) {
        (Some(image), Some(text)) => Some(format!("{} {text}", image.arguments)),
        (Some(image), None) => Some(image.arguments.clone()),
        (None, append) => append,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure;

    fn image() -> ImageBoot {
        ImageBoot {
            files: BootFiles {
                kernel: "k".into(),
                initrd: None,
            },
            arguments: "root=/dev/vda ro".into(),
        }
    }

    #[test]
    fn what_the_customer_appends_wins_over_the_image() {
        let both = append(Some(&image()), Some("root=/dev/vdb".into()));
        assert_eq!(both.unwrap(), "root=/dev/vda ro root=/dev/vdb");
        assert_eq!(append(Some(&image()), None).unwrap(), "root=/dev/vda ro");
        assert_eq!(append(None, Some("x".into())).unwrap(), "x");
    }

    #[test]
    fn an_image_without_a_kernel_is_the_callers_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.img");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        let error = boot_image(&path, Some(folder.path())).unwrap_err();
        assert_eq!(failure::status(&error), failure::USAGE);
        assert!(error.to_string().contains("no kernel"), "{error}");
    }

    #[test]
    fn a_seed_is_made_only_where_there_is_something_to_say() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("id.pub");
        std::fs::write(&key, "ssh-ed25519 AAAA me\n").unwrap();
        let mut args = ImageArgs {
            image: Some(DiskSpec::new("i")),
            user_data: None,
            ssh_keys: Vec::new(),
        };
        assert_eq!(seed_disk("web", &args).unwrap(), None);
        args.ssh_keys.push(key);
        assert!(seed_disk("web", &args).unwrap().is_some());
        args.user_data = Some("/nonexistent/u".into());
        let error = seed_disk("web", &args).unwrap_err();
        assert_eq!(failure::status(&error), failure::USAGE);
        assert!(error.to_string().contains("/nonexistent/u"), "{error}");
    }
}
