//! The one error type of the image builder.

use std::io;
use std::path::{Path, PathBuf};

/// Why a guest image could not be built: a sentence for an operator.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read, written or found.
    #[error("Cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried: `read`, `write`, `create`, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {expected}: {why}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it should be, with an article.
        expected: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Modules that the guest cannot do without are neither in the folder nor built in.
    #[error(
        "Kernel {release} has no module {name} and it is not built in: \
         choose a kernel with virtio over PCI, such as Debian's linux-image-cloud-amd64"
    )]
    ModuleMissing {
        /// Kernel release.
        release: String,
        /// Module.
        name: String,
    },
    /// Another program failed.
    #[error("{command} failed: {why}")]
    Command {
        /// The command line.
        command: String,
        /// Its message, or why it did not start.
        why: String,
    },
    /// A program of the host is not installed.
    #[error(
        "There is no {program} on this host: install it ('apt-get install {package}' on Debian)"
    )]
    NoTool {
        /// The program.
        program: &'static str,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// This program was asked to end.
    #[error("Interrupted: what had been begun is taken back")]
    Interrupted,
    /// There is no kernel to be had.
    #[error("{0}")]
    NoKernel(String),
    /// The program that runs in the guest is not installed.
    #[error("{0}")]
    NoGuestProgram(String),
    /// Something asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl ImageError {
    /// For `map_err`: what was tried on which file.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// A file that is not what it should be.
    pub(super) fn format(path: &Path, expected: &'static str, why: impl Into<String>) -> Self {
        Self::Format {
            path: path.to_owned(),
            expected,
            why: why.into(),
        }
    }
}
