//! One vmm process seen from outside: how it is started and watched ([`process`]), and how it is
//! asked ([`client`]). The agent links none of the vmm's code.

pub mod client;
pub mod process;

pub use client::VmmClient;
pub use process::{Bond, VmmExit, VmmProcess, VmmStart};
