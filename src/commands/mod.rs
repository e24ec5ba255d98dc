//! The subcommands, one file each: its arguments, its help, what it prints.

pub mod agent;
pub mod completions;
pub mod console;
pub mod doctor;
pub mod events;
pub mod image;
pub mod ps;
pub mod replay;
pub mod resize;
pub mod run;
pub mod status;
pub mod stop;
pub mod top;
pub mod usage;
