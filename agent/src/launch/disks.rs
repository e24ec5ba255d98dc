//! Can these files be disks? Says in one sentence what is wrong, before anything is made.
//!
//! The vmm opens, measures and locks them itself: this check is for the person, not for safety.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use concertina_api::disk::{DISKS_MAX, DiskSpec};

use super::LaunchError;

/// Disks have whole sectors.
const SECTOR_BYTES: u64 = 512;

/// What the guest sees as the serial number of the disk for its cloud-init.
const SEED_SERIAL: &str = "cidata";

/// The disk from which the guest's cloud-init is configured.
pub fn of_seed(path: &Path) -> DiskSpec {
    DiskSpec {
        read_only: true,
        serial: Some(SEED_SERIAL.to_owned()),
        ..DiskSpec::new(path)
    }
}

/// Checks all disks of an instance. With `seed`, the last one is ours, and not there yet.
pub fn check(disks: &[DiskSpec], seed: bool) -> Result<(), LaunchError> {
    if disks.len() > DISKS_MAX {
        return Err(LaunchError::Request(format!(
            "{} disks are not allowed, the one for cloud-init included: at most {DISKS_MAX}",
            disks.len()
        )));
    }
    let given = disks.len().saturating_sub(seed.into());
    for (number, disk) in disks.iter().enumerate().take(given) {
        disk.check().map_err(|e| LaunchError::Request(e.0))?;
        let refuse = |problem: String| LaunchError::File {
            what: "Disk",
            path: disk.path.clone(),
            problem,
        };
        let before = disks.iter().take(number);
        if before.clone().any(|other| other.path == disk.path) {
            return Err(refuse("is attached twice: attach it once".into()));
        }
        check_file(&disk.path, disk.read_only).map_err(refuse)?;
    }
    Ok(())
}

fn check_file(path: &Path, read_only: bool) -> Result<(), String> {
    let kind = path.metadata().map_err(|e| unusable(&e, read_only))?;
    if kind.is_dir() {
        return Err("is a folder: a raw image file or a block device is needed".into());
    }
    if !kind.is_file() && !kind.file_type().is_block_device() {
        return Err("is neither a file nor a block device".into());
    }
    let opened = OpenOptions::new().read(true).write(!read_only).open(path);
    let length = |mut file: File| file.seek(SeekFrom::End(0));
    let bytes = opened
        .and_then(length)
        .map_err(|e| unusable(&e, read_only))?;
    if bytes == 0 || bytes % SECTOR_BYTES != 0 {
        return Err(format!(
            "has {bytes} bytes: a multiple of {SECTOR_BYTES} is needed, at least one (`truncate -s \
             %{SECTOR_BYTES} FILE` rounds an image up)"
        ));
    }
    Ok(())
}

fn unusable(error: &io::Error, read_only: bool) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "does not exist: `truncate -s 1G FILE` makes an empty image".into()
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
            format!(
                "cannot be opened for writing ({error}): change its permissions, or attach it \
                 read-only with ',ro'"
            )
        }
        _ => format!("cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        let error = check(&[DiskSpec::new(path)], false).unwrap_err();
        assert!(error.is_usage());
        error.to_string()
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_with_its_name() {
        let temp = tempfile::tempdir().unwrap();
        let image = temp.path().join("a.img");
        assert!(refused(&image).contains("a.img does not exist"));
        File::create(&image).unwrap();
        assert!(refused(&image).contains("0 bytes"));
        File::create(&image).unwrap().set_len(1025).unwrap();
        assert!(refused(&image).contains("1025 bytes"));
        assert!(refused(temp.path()).contains("is a folder"));
        assert!(refused("/dev/zero".as_ref()).contains("neither"));
        File::create(&image).unwrap().set_len(1024).unwrap();
        let disk = DiskSpec::new(&image);
        assert!(check(std::slice::from_ref(&disk), false).is_ok());
        let twice = check(&[disk.clone(), disk.clone()], false)
            .unwrap_err()
            .to_string();
        assert!(twice.contains("twice"), "{twice}");
        let many = vec![disk; DISKS_MAX + 1];
        assert!(
            check(&many, false)
                .unwrap_err()
                .to_string()
                .contains("at most 16")
        );
    }
}
