//! What can go wrong while a VM is built or run, as sentences for an operator.

use std::io;

/// Why a VM could not be built, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The specification asks for something that cannot be.
    #[error("{0}")]
    Spec(String),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] crate::boot::BootError),
    /// `/dev/kvm` cannot be used.
    #[error("/dev/kvm cannot be opened: {hint}")]
    OpenKvm {
        /// What to do.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A KVM call failed.
    #[error("KVM refused {call}")]
    Kvm {
        /// Which call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A call to the host's kernel failed.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Guest memory cannot be accessed where the layout says that there is RAM.
    #[error("Guest memory cannot be accessed")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// Cannot happen unless we are wrong.
    #[error("Internal error: {0}")]
    Bug(&'static str),
}

impl VmmError {
    /// For `map_err` behind a KVM call.
    pub(crate) fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm {
            call,
            source: io::Error::from_raw_os_error(error.errno()),
        }
    }

    /// For `map_err` behind any other call to the host's kernel.
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }
}
