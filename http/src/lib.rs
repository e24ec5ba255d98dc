//! Small blocking HTTP/1.1 over unix sockets, for the API of one virtual machine and its clients.
//!
//! A thread with a small stack per connection, a bounded number of connections, bounded heads and
//! bodies, a deadline on every read and write, no async runtime. Bodies are framed by
//! `Content-Length` only; `Expect: 100-continue` is answered, keep-alive is kept (RFC 9112). Who may
//! connect is decided by the file mode of the socket, which is 0600 before anybody can reach it.
//! What a peer sends can earn it a 4xx or a closed connection, never a panic.
#![forbid(unsafe_code)]

pub mod client;
mod connection;
mod error;
mod message;
pub mod resolve;
mod server;

pub use error::HttpError;
pub use message::{Method, Request, Response, Sink, StreamBody};
pub use server::{Handler, Server, Stopper};

/// Most bytes of a request line with its headers, or of a status line with its headers.
pub const HEAD_LIMIT_BYTES: usize = 8 << 10;
/// Most bytes of a request's body.
pub const BODY_LIMIT_BYTES: usize = 64 << 10;
/// Most headers of one message.
pub const HEADER_COUNT_LIMIT: usize = 32;
/// Most connections that a server holds at a time, unless it is told otherwise; the next one gets 503.
pub const CONNECTION_LIMIT: usize = 16;
