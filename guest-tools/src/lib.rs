//! Building the default guest on the host: which kernel, and an initramfs for it.
//!
//! The program that runs *inside* the guest is this package's binary, `concertina-guest`; the two
//! share no code. [`image::default_guest`] does everything that `concertina run` needs when it is
//! given neither a kernel nor an initramfs; the modules below it are its steps, for
//! `concertina image initramfs|kernel|vmlinux`.
#![forbid(unsafe_code)]

pub mod image;
