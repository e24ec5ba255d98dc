//! Accounts, the customers' API, the registry, placement: what many hosts share.
#![forbid(unsafe_code)]

pub mod ids;
pub mod keys;
pub mod model;
pub mod placement;
pub mod registry;
