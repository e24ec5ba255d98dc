//! The subcommands, one file each: its arguments, its help, what it prints.

pub mod account;
pub mod agent;
pub mod completions;
pub mod console;
pub mod control;
pub mod doctor;
pub mod events;
pub mod host;
pub mod image;
pub mod key;
pub mod login;
pub mod ps;
pub mod replay;
pub mod resize;
pub mod run;
pub mod status;
pub mod stop;
pub mod top;
pub mod up;
pub mod usage;
