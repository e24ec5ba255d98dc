//! The control plane: accounts, the customers' API, the registry, placement. What one host decides is
//! not here but in its agent, which goes on deciding when the control plane is away.
//!
//! ```text
//! customer ──HTTPS──► http ──► draft ──► registry ◄── controller (one node leads)
//!                                           │ watch
//!                        host's agent ◄── link
//! ```
//! A request only changes the registry. Hosts are told from there, and what they say goes there: so a
//! control plane that is killed at any point goes on from what it has recorded.
#![forbid(unsafe_code)]

pub mod ca;
pub mod client;
pub mod config;
pub mod control;
mod controller;
pub mod draft;
pub mod http;
/// Methods of requests, for users of [`client`].
pub mod http_method {
    pub use axum::http::Method;
}
pub mod ids;
pub mod keys;
pub mod limit;
pub mod link;
pub mod model;
pub mod placement;
pub mod problem;
pub mod registry;
mod server;
pub mod webhooks;

pub use server::{Node, SCHEMA, StartError, open};
