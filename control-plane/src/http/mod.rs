//! The customers' and the operator's API: HTTP/1.1 with JSON under `/v1`.
//!
//! ```text
//! connection ─► request id ─► route ─► Caller (key, rate limit) ─► Body (limit, JSON) ─► handler
//! ```
//! A handler reads and decides in a [`crate::draft::Draft`]; the audit log's entry is part of the same
//! transaction. [`routes`] has one file for each kind of thing, and the OpenAPI document is made of them.

mod caller;
mod extract;
pub mod page;
pub mod routes;
mod server;

pub use caller::Caller;
pub use extract::{Body, IfMatch, Query};
pub use routes::{document, router};
pub use server::serve;
