//! The parts of the guest program, from the inside out: `sys` talks to the kernel, `uevent`, `acpi`
//! and `modules` each know one of its interfaces, `init`, `onliner`, `load` and `status` are what
//! the program does, and `command` is how it is asked to.

pub mod acpi;
pub mod agent;
pub mod bootargs;
pub mod command;
pub mod console;
pub mod dhcp;
pub mod filesystems;
pub mod init;
pub mod kept;
pub mod load;
pub mod modules;
pub mod onliner;
pub mod power;
pub mod prompt;
pub mod status;
pub mod sys;
pub mod uevent;
pub mod vsock;
