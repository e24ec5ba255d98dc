//! A distribution's kernel and initrd as files of the host, kept in the cache by their content.
//!
//! By content, and by a digest that nobody can forge: whoever makes an image must not be able to
//! place a kernel where another image's is looked for.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Image;
use super::boot::{BootFile, Inspection, open_parts};
use crate::image::error::ImageError;

/// No kernel and no initrd is larger.
const MOST_BYTES: u64 = 512 << 20;

/// Kernel and initrd on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: Option<PathBuf>,
}

/// Copies kernel and initrd of an inspected image into the cache folder, or finds them there.
pub fn extract(inspection: &Inspection, cache: &Path) -> Result<Extracted, ImageError> {
    let Some(kernel) = &inspection.kernel else {
        let text = inspection.lacks().unwrap_or_default();
        return Err(ImageError::Invalid(text));
    };
    let folder = cache.join("boot");
    fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
    let image = Image::open(&inspection.path)?;
    let copy = |file: &BootFile, prefix| copy(&image, &inspection.path, file, &folder, prefix);
    Ok(Extracted {
        kernel: copy(kernel, "kernel")?,
        initrd: inspection
            .initrd
            .as_ref()
            .map(|file| copy(file, "initrd"))
            .transpose()?,
    })
}

fn copy(
    image: &Image,
    path: &Path,
    file: &BootFile,
    folder: &Path,
    prefix: &str,
) -> Result<PathBuf, ImageError> {
    let wrong = |why: String| {
        ImageError::format(path, "an image that boots", format!("{}: {why}", file.path))
    };
    let (_, parts) = open_parts(image, path)?;
    let files = parts
        .into_iter()
        .find(|part| part.info.number == file.partition)
        .and_then(|part| part.files)
        .ok_or_else(|| wrong("its partition is gone".into()))?;
    let mut target = tempfile::Builder::new()
        .prefix(".copy-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(ImageError::file("create a file in", folder))?;
    let mut digest = Sha256::new();
    files
        .copy(&file.path, MOST_BYTES, &mut |chunk| {
            digest.update(chunk);
            target.write_all(chunk)
        })
        .map_err(wrong)?;
    let digest: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let place = folder.join(format!("{prefix}-{digest}"));
    target
        .persist(&place)
        .map_err(|error| ImageError::file("write", &place)(error.error))?;
    Ok(place)
}
