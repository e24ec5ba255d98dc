//! Disk images of other formats, made raw by `qemu-img`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use serde_json::Value;

use super::command;
use super::error::ImageError;
use super::tool::{self, Listen, QEMU_IMG};

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The raw image.
    pub output: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it takes on the host's disk, in bytes.
    pub allocated_bytes: u64,
}

/// Converts `source` (qcow2, vmdk, vhdx, …, told apart by qemu-img) to a sparse raw image. An
/// existing `output` is replaced only when `force` says so. `percent` is told how far it is.
pub fn import(
    source: &Path,
    output: &Path,
    force: bool,
    percent: &mut dyn FnMut(f64),
) -> Result<Imported, ImageError> {
    fs::File::open(source).map_err(ImageError::file("read", source))?;
    if !force && output.symlink_metadata().is_ok() {
        return Err(ImageError::Invalid(format!(
            "{} exists: --force replaces it",
            output.display()
        )));
    }
    let qemu_img = QEMU_IMG.find()?;
    let folder = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let raw = tempfile::Builder::new()
        .prefix(".concertina-import-")
        .tempfile_in(folder)
        .map_err(ImageError::file("create a file in", folder))?;
    // Absolute: a name with a colon would be a protocol, one with a dash an option.
    let source = absolute(source)?;
    let format = own_format(&qemu_img, &source)?;
    let mut command = Command::new(qemu_img);
    command.args(["convert", "-p", "-f", &format, "-O", "raw"]);
    command.arg(&source).arg(raw.path());
    tool::run(&mut command, Listen::Output, &mut |line| {
        if let Some(done) = percent_of(line) {
            percent(done);
        }
    })?;
    let written = fs::metadata(raw.path()).map_err(ImageError::file("read", raw.path()))?;
    let persisted = if force {
        raw.persist(output)
    } else {
        raw.persist_noclobber(output)
    };
    persisted.map_err(|error| ImageError::file("write", output)(error.error))?;
    Ok(Imported {
        output: output.to_owned(),
        size_bytes: written.len(),
        allocated_bytes: std::os::unix::fs::MetadataExt::blocks(&written).saturating_mul(512),
    })
}

/// The image's format, if the image consists of itself alone: one from a stranger could otherwise
/// name any file of this host as a part of it.
fn own_format(qemu_img: &Path, source: &Path) -> Result<String, ImageError> {
    let text = command::run(
        Command::new(qemu_img)
            .args(["info", "--output=json"])
            .arg(source),
    )?;
    let info: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(other) = other_file(&info, source) {
        return Err(ImageError::Invalid(format!(
            "Image {} takes a part of its content from another file, {other}: put both together \
             first ('qemu-img convert' or 'rebase'), if you trust it",
            source.display()
        )));
    }
    match info["format"].as_str() {
        Some(format) => Ok(format.to_owned()),
        None => Err(ImageError::format(
            source,
            "a disk image",
            "qemu-img does not know it",
        )),
    }
}

/// A file outside of the image's folder that belongs to it: its base, its data, one of its extents.
fn other_file(info: &Value, source: &Path) -> Option<String> {
    let data = &info["format-specific"]["data"];
    let named = [&info["backing-filename"], &data["data-file"]];
    if let Some(name) = named.iter().find_map(|value| value.as_str()) {
        return Some(name.to_owned());
    }
    let extents = data["extents"].as_array()?;
    extents
        .iter()
        .filter_map(|extent| extent["filename"].as_str())
        .find(|name| Path::new(name).parent() != source.parent())
        .map(str::to_owned)
}

fn absolute(path: &Path) -> Result<PathBuf, ImageError> {
    let absolute = std::path::absolute(path).map_err(ImageError::file("find", path))?;
    if absolute.is_dir() {
        let error = io::Error::from(io::ErrorKind::IsADirectory);
        return Err(ImageError::file("read", path)(error));
    }
    Ok(absolute)
}

/// `    (12.34/100%)`.
fn percent_of(line: &str) -> Option<f64> {
    let number = line.trim().strip_prefix('(')?.strip_suffix("/100%)")?;
    number
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_qemu_img_is_read() {
        assert_eq!(percent_of("    (12.34/100%)"), Some(12.34));
        assert_eq!(percent_of("    (100.00/100%)"), Some(100.0));
        assert_eq!(percent_of("qemu-img: error"), None);
        assert_eq!(percent_of("(NaN/100%)"), None);
    }

    #[test]
    fn what_is_there_is_not_replaced_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let (source, output) = (folder.path().join("in"), folder.path().join("out"));
        fs::write(&source, "x").unwrap();
        fs::write(&output, "precious").unwrap();
        let error = import(&source, &output, false, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(fs::read(&output).unwrap(), b"precious");
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let output = Path::new("/nonexistent/out");
        let error = import(Path::new("/nonexistent/in"), output, false, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/in"), "{error}");
    }

    #[test]
    fn an_image_that_names_other_files_is_found_out() {
        let source = Path::new("/images/a.vmdk");
        let other = |info: Value| other_file(&info, source);
        assert_eq!(other(serde_json::json!({"format": "qcow2"})), None);
        let backed = serde_json::json!({"backing-filename": "/etc/shadow"});
        assert_eq!(other(backed).unwrap(), "/etc/shadow");
        let extents = |name: &str| serde_json::json!({"format-specific": {"data": {"extents": [{"filename": name}]}}});
        assert_eq!(other(extents("/images/a-flat.vmdk")), None);
        assert_eq!(other(extents("/etc/shadow")).unwrap(), "/etc/shadow");
        assert!(other(extents("/images/../etc/shadow")).is_some());
    }

    #[test]
    fn a_qcow2_becomes_sparse_raw() {
        let Ok(qemu_img) = QEMU_IMG.find() else {
            eprintln!("Without qemu-img this test proves nothing");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let (raw, qcow2, output) = (
            folder.path().join("raw"),
            folder.path().join("a.qcow2"),
            folder.path().join("out"),
        );
        let mut content = vec![0; 8 << 20];
        content[4 << 20..][..5].copy_from_slice(b"hello");
        fs::write(&raw, &content).unwrap();
        let status = Command::new(qemu_img)
            .args(["convert", "-O", "qcow2"])
            .args([&raw, &qcow2])
            .status();
        assert!(status.unwrap().success());
        fs::write(&output, "old").unwrap();
        let mut last = 0.0;
        let imported = import(&qcow2, &output, true, &mut |done| last = done).unwrap();
        assert!(last >= 99.0, "{last}");
        assert_eq!(fs::read(&output).unwrap(), content);
        assert_eq!(imported.size_bytes, 8 << 20);
        assert!(imported.allocated_bytes < 1 << 20, "{imported:?}");
        // Nothing half-made is left, also when it fails.
        fs::write(&qcow2, "QFI\u{fb}").unwrap();
        let before = fs::read_dir(folder.path()).unwrap().count();
        let _ = import(&folder.path().join("absent"), &output, true, &mut |_| {});
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before);
    }
}
