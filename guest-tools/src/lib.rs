//! Two things for the host: the words of the [`channel`] to the program in the guest, and building
//! the default guest, that is, which kernel, and an initramfs for it.
//!
//! The program that runs *inside* the guest is this package's binary, `concertina-guest`; only the
//! channel is shared with it. [`image::default_guest`] does everything that `concertina run` needs when it is
//! given neither a kernel nor an initramfs; the modules below it are its steps, for
//! `concertina image initramfs|kernel|vmlinux`.
#![forbid(unsafe_code)]

pub mod channel;
pub mod image;
