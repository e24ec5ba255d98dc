//! What can go wrong between a client, a socket and a server, as sentences for an operator.

use std::io;
use std::path::PathBuf;

/// A failure of a server or of a client.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The listening socket could not be made.
    #[error("Cannot listen on socket '{path}'")]
    Bind {
        /// Socket file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The listening socket broke.
    #[error("Cannot accept connections on socket '{path}'")]
    Accept {
        /// Socket file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens there, or we may not connect.
    #[error("Cannot connect to socket '{path}'")]
    Connect {
        /// Socket file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or the deadline passed.
    #[error("No complete answer on socket '{path}'")]
    Exchange {
        /// Socket file.
        path: PathBuf,
        /// Why; `TimedOut` when the deadline passed.
        source: io::Error,
    },
    /// The peer does not speak HTTP/1.1 as we do.
    #[error("Answer on socket '{path}' is not valid: {what}")]
    Protocol {
        /// Socket file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The peer answered with a status outside 200 to 299.
    #[error("{detail} (status {status})")]
    Status {
        /// HTTP status.
        status: u16,
        /// The `detail` of its problem document, or its text.
        detail: String,
    },
    /// A body could not be written as JSON, or is not the JSON that was expected.
    #[error("Body is not the JSON that was expected")]
    Json(#[from] serde_json::Error),
}
