//! From the base system to the disk: unpacked with its owners, our files put over it, and all of it
//! written into an ext4 file system.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::image::error::ImageError;
use crate::image::tool::{self, Listen, NEWUIDMAP};

/// The steps, for a shell that is root or believes to be: only such a one can give files away to
/// their owners, and take them back when it ends.
const STEPS: &str = include_str!("fill.sh");

/// What to fill the disk with.
#[derive(Debug)]
pub struct Filling<'a> {
    /// The base system's archive.
    pub base: &'a Path,
    /// A folder whose content goes over the base system.
    pub overlay: &'a Path,
    /// A file of the disk's size.
    pub disk: &'a Path,
    /// The mke2fs program.
    pub mke2fs: &'a Path,
    /// UUID of the file system.
    pub uuid: &'a str,
    /// Root's password.
    pub password: Option<&'a str>,
}

/// How the shell becomes root.
#[derive(Debug)]
pub enum Runner {
    /// It is.
    Root,
    /// In a user namespace, with the user's subordinate ids.
    UserNamespace,
}

impl Runner {
    /// The way that this user has.
    pub fn find() -> Result<Self, ImageError> {
        let me = Path::new("/proc/self");
        let user = fs::metadata(me)
            .map_err(ImageError::file("read", me))?
            .uid();
        if user == 0 {
            return Ok(Self::Root);
        }
        NEWUIDMAP.find()?;
        Ok(Self::UserNamespace)
    }

    fn shell(&self) -> Command {
        match self {
            Self::Root => Command::new("sh"),
            Self::UserNamespace => {
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-root-user", "--map-auto", "--", "sh"]);
                command
            }
        }
    }
}

/// Fills the disk. Whatever happens, nothing but the disk is left behind.
pub fn fill(runner: &Runner, filling: &Filling<'_>) -> Result<(), ImageError> {
    let beside = filling.base.parent().unwrap_or(Path::new("."));
    let tree = temporary_folder(beside, ".tree-")?;
    let password = password_file(filling.password)?;
    let mut command = runner.shell();
    command.args(["-c", STEPS, "sh"]);
    command.args([
        tree.path(),
        filling.base,
        filling.overlay,
        filling.disk,
        filling.mke2fs,
    ]);
    command.arg(filling.uuid);
    command.arg(
        password
            .as_ref()
            .map_or(PathBuf::new(), |file| file.path().to_owned()),
    );
    tool::run(&mut command, Listen::Errors, &mut |_| {})
}

fn temporary_folder(parent: &Path, prefix: &str) -> Result<tempfile::TempDir, ImageError> {
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(parent)
        .map_err(ImageError::file("create a folder in", parent))
}

/// In a file that only its owner reads: arguments are everybody's to see.
fn password_file(password: Option<&str>) -> Result<Option<tempfile::NamedTempFile>, ImageError> {
    let Some(password) = password else {
        return Ok(None);
    };
    let folder = std::env::temp_dir();
    let write = || -> std::io::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new()?;
        writeln!(file, "root:{password}")?;
        Ok(file)
    };
    write()
        .map(Some)
        .map_err(ImageError::file("create a file in", &folder))
}
