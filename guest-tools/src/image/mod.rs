//! Guest images: kernels and the initramfs for them, and disk images of whole distributions.

pub mod archive;
mod command;
pub mod compression;
pub mod debian;
mod default;
pub mod disk;
mod elf;
pub mod error;
pub mod import;
pub mod initramfs;
pub mod kernel;
pub mod modinfo;
pub mod modules;
pub mod seed;
mod signature;
pub mod tool;
pub mod vmlinux;

use std::path::{Path, PathBuf};

pub use default::{DefaultGuest, default_guest, default_initramfs};
pub use error::ImageError;

const GUEST_PROGRAM: &str = "concertina-guest";
const GUEST_PROGRAM_VARIABLE: &str = "CONCERTINA_GUEST";

/// Finds the program that runs in the guest: the one that the environment variable
/// `CONCERTINA_GUEST` names, or `concertina-guest` beside this program, or on the `PATH`.
pub fn find_guest_program() -> Result<PathBuf, ImageError> {
    if let Some(path) = std::env::var_os(GUEST_PROGRAM_VARIABLE) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(ImageError::NoGuestProgram(format!(
                "{GUEST_PROGRAM_VARIABLE} names {}, which is no file",
                path.display()
            )))
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&on_path))
        .map(|folder| folder.join(GUEST_PROGRAM))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            ImageError::NoGuestProgram(format!(
                "The guest program {GUEST_PROGRAM} is neither beside this program nor on the PATH: \
                 install it, or name it in {GUEST_PROGRAM_VARIABLE}"
            ))
        })
}
