//! `concertina-guest`: the one program that runs inside the guest.
//!
//! As process 1 of the default guest it is the init; in any other Linux guest it is a service that
//! brings hot-added vCPUs and memory online, a load generator, and a view of what the guest has.
//! It is static, needs nothing but the kernel, and is not trusted by the host.

mod guest;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if std::process::id() == 1 {
        guest::init::run()
    }
    guest::command::run(&words)
}
