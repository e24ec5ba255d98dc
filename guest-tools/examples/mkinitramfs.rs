//! Builds the default guest's initramfs by hand:
//! `cargo run -p concertina-guest --example mkinitramfs -- MODULES_DIR_OR_DEB GUEST_PROGRAM OUTPUT [no-busybox]`

use std::path::PathBuf;
use std::process::ExitCode;

use concertina_guest::image::initramfs::{self, Busybox, InitramfsSpec, ModuleSource};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (modules, program, output, rest) = match words.as_slice() {
        [modules, program, output, rest @ ..] => (modules, program, output, rest),
        _ => {
            eprintln!("Usage: mkinitramfs MODULES_DIR_OR_DEB GUEST_PROGRAM OUTPUT [no-busybox]");
            return ExitCode::from(2);
        }
    };
    let source = PathBuf::from(modules);
    let spec = InitramfsSpec {
        modules: if modules.ends_with(".deb") {
            ModuleSource::KernelPackage(source)
        } else {
            ModuleSource::Dir(source)
        },
        extra_modules: Vec::new(),
        guest_program: program.into(),
        busybox: if rest.is_empty() {
            Busybox::IfInstalled
        } else {
            Busybox::None
        },
        files: Vec::new(),
        output: output.into(),
    };
    match initramfs::build(&spec) {
        Ok(report) => {
            println!("{report:#?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
