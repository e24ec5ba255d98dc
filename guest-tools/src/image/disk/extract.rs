//! A distribution's kernel and initrd as files of the host, kept in the cache by the image's path.
//!
//! By the path, so that a guest that gives its disk another kernel before each reboot takes no more room
//! than its last one; and by a digest of it that nobody can forge: whoever makes an image must not be
//! able to place a kernel where another image's is looked for.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Image;
use super::boot::{BootFile, Inspection, open_parts};
use crate::image::error::ImageError;

/// What was taken out of an image that nobody has booted for so long is removed: a start takes it out
/// again in any case.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// No kernel and no initrd is larger.
const MOST_BYTES: u64 = 512 << 20;
/// How the names of half-made files begin.
const COPY: &str = ".copy-";

/// Kernel and initrd on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: Option<PathBuf>,
}

/// Copies kernel and initrd of an inspected image into the cache folder, in place of those that were taken
/// out of it before. Whoever starts a guest opens them at once.
///
/// # Errors
/// The image has no kernel, or one that cannot be read; the cache folder cannot be written.
pub fn extract(inspection: &Inspection, cache: &Path) -> Result<Extracted, ImageError> {
    let Some(kernel) = &inspection.kernel else {
        let text = inspection.lacks().unwrap_or_default();
        return Err(ImageError::Invalid(text));
    };
    let folder = cache.join("boot");
    fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
    remove_old(&folder);
    let image = Image::open(&inspection.path)?;
    let places = places(&folder, &inspection.path)?;
    let copy = |file: &BootFile, place| copy(&image, &inspection.path, file, &folder, place);
    copy(kernel, &places.kernel)?;
    match &inspection.initrd {
        Some(initrd) => copy(initrd, &places.initrd)?,
        None => remove(&places.initrd)?,
    }
    Ok(Extracted {
        initrd: inspection.initrd.is_some().then_some(places.initrd),
        kernel: places.kernel,
    })
}

/// Removes what was taken out of an image, if anything was. The image is still there.
///
/// # Errors
/// The image is gone, or the cache folder cannot be written.
pub fn forget(image: &Path, cache: &Path) -> Result<(), ImageError> {
    let places = places(&cache.join("boot"), image)?;
    remove(&places.kernel)?;
    remove(&places.initrd)
}

fn remove(place: &Path) -> Result<(), ImageError> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::file("remove", place)(error))
        }
        _ => Ok(()),
    }
}

/// Where an image's files are put.
struct Places {
    kernel: PathBuf,
    initrd: PathBuf,
}

fn places(folder: &Path, image: &Path) -> Result<Places, ImageError> {
    let path = fs::canonicalize(image).map_err(ImageError::file("find", image))?;
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Places {
        kernel: folder.join(format!("kernel-{digest}")),
        initrd: folder.join(format!("initrd-{digest}")),
    })
}

/// What cannot be looked at or removed stays until the next time.
fn remove_old(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = ["kernel-", "initrd-", COPY]
            .iter()
            .any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
        let age = entry
            .metadata()
            .and_then(|about| about.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        if ours && age.is_some_and(|age| age > KEPT) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn copy(
    image: &Image,
    path: &Path,
    file: &BootFile,
    folder: &Path,
    place: &Path,
) -> Result<(), ImageError> {
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
        .prefix(COPY)
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(ImageError::file("create a file in", folder))?;
    files
        .copy(&file.path, MOST_BYTES, &mut |chunk| target.write_all(chunk))
        .map_err(wrong)?;
    target
        .persist(place)
        .map_err(|error| ImageError::file("write", place)(error.error))?;
    Ok(())
}
