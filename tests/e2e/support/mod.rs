//! What the scenarios stand on: the command line as its users see it, the guest's shell over the
//! serial console, and evidence from the host's own files.
//!
//! Scenarios read JSON as `serde_json::Value`, not through our own types, since the names of the
//! fields are what users' programs rely on. Whatever is claimed by the command is checked against
//! the guest (through [`Shell`]) or the host (through [`proc`]).

mod agent;
pub mod cloud;
mod command;
mod host;
mod instance;
pub mod proc;
mod shell;
mod turn;
mod uplink;

pub use agent::Agent;
pub use command::{Finished, concertina, concertina_as, concertina_with};
pub use host::{GuestFiles, Image, Series, guest, images, require_host};
pub use instance::{Instance, Launch, caused_by};
pub use shell::Shell;
pub use turn::alone;
pub use uplink::Uplink;

use std::time::{Duration, Instant};

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;

/// How long a guest may take to come up. Generous: the nested host has emulated processors, and the
/// machine beneath it may be busy.
pub const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// How long one resize, or one command in the guest, may take.
pub const STEP_LIMIT: Duration = Duration::from_secs(30);

/// Asks again every 50 ms until there is an answer; fails the test with `what` after `limit`.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            started.elapsed() < limit,
            "Not within {} s: {what}",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
