//! Requests and responses as handlers and callers see them: no sockets, no parsing of heads.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) const TYPE_JSON: &str = "application/json";
pub(crate) const TYPE_PROBLEM: &str = "application/problem+json";

/// A request method; those that no API of ours uses are `Other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Set, idempotently.
    Put,
    /// Do.
    Post,
    /// Remove.
    Delete,
    /// Any other token.
    Other,
}

impl Method {
    pub(crate) fn parse(token: &str) -> Self {
        match token {
            "GET" => Self::Get,
            "PUT" => Self::Put,
            "POST" => Self::Post,
            "DELETE" => Self::Delete,
            _ => Self::Other,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Other => "OPTIONS",
        }
    }
}

/// A complete request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What shall be done.
    pub method: Method,
    /// Path, beginning with `/`, without the query; percent escapes are left as they are.
    pub path: String,
    /// What follows the `?`, or empty.
    pub query: String,
    /// Body, at most [`crate::BODY_LIMIT_BYTES`].
    pub body: Vec<u8>,
}

impl Request {
    /// The body as JSON; an empty body reads as `{}`. The error is a 400 that says what is wrong.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Response> {
        let body: &[u8] = match self.body.trim_ascii() {
            [] => b"{}",
            body => body,
        };
        serde_json::from_slice(body)
            .map_err(|error| Response::problem(400, format!("Request body is not valid: {error}")))
    }
}

/// A complete response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Body; not sent with status 204.
    pub body: Vec<u8>,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Value of the `Allow` header, which goes with a 405.
    pub(crate) allow: Option<&'static str>,
    /// What goes on after the body, until its end closes the connection.
    pub(crate) stream: Option<Stream>,
}

/// Where a body that goes on is written to.
pub trait Sink {
    /// Writes everything, with the deadline of a message.
    ///
    /// # Errors
    /// The peer has gone, or does not read.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Whether the peer has closed the connection.
    fn is_gone(&self) -> bool;
}

/// Writes a body that goes on: called once, on the connection's thread.
pub type StreamBody = dyn Fn(&mut dyn Sink) -> io::Result<()> + Send + Sync;

/// A body that goes on. Two are the same when they are the same object.
#[derive(Clone)]
pub(crate) struct Stream(pub(crate) Arc<StreamBody>);

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl PartialEq for Stream {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Stream {}

/// Problem document of RFC 9457.
#[derive(Serialize, Deserialize)]
pub(crate) struct Problem {
    pub status: u16,
    pub title: String,
    pub detail: String,
}

impl Response {
    /// Any body of any type.
    pub fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        Self {
            status,
            body,
            content_type,
            allow: None,
            stream: None,
        }
    }

    /// A body whose length nobody knows: it goes on until `body` returns, which closes the connection
    /// (RFC 9112 §6.3).
    pub fn stream(
        content_type: &'static str,
        body: impl Fn(&mut dyn Sink) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            stream: Some(Stream(Arc::new(body))),
            ..Self::new(200, content_type, Vec::new())
        }
    }

    /// A value as JSON.
    pub fn json<T: Serialize>(status: u16, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(mut body) => {
                body.push(b'\n');
                Self::new(status, TYPE_JSON, body)
            }
            Err(error) => Self::problem(500, format!("Answer cannot be written as JSON: {error}")),
        }
    }

    /// No body.
    pub fn empty(status: u16) -> Self {
        Self::new(status, TYPE_JSON, Vec::new())
    }

    /// A problem document (RFC 9457) with one sentence of detail.
    pub fn problem(status: u16, detail: impl Into<String>) -> Self {
        let title = reason(status).to_owned();
        let problem = Problem {
            status,
            title,
            detail: detail.into(),
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        Self::new(status, TYPE_PROBLEM, body)
    }

    /// 404 for a path that nobody serves.
    pub fn not_found(request: &Request) -> Self {
        Self::problem(404, format!("Nothing is served at '{}'", request.path))
    }

    /// 405 with the methods that the path knows, as in `"GET, PUT"`.
    pub fn method_not_allowed(request: &Request, allow: &'static str) -> Self {
        let detail = format!("'{}' does not know this method, only {allow}", request.path);
        Self {
            allow: Some(allow),
            ..Self::problem(405, detail)
        }
    }

    /// Is the status 200 to 299?
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The `detail` of a problem document, else the body as text, else the name of the status.
    pub fn detail(&self) -> String {
        if let Ok(problem) = serde_json::from_slice::<Problem>(&self.body) {
            return problem.detail;
        }
        match String::from_utf8_lossy(&self.body).trim() {
            "" => reason(self.status).to_owned(),
            text => text.to_owned(),
        }
    }
}

/// Name of a status (RFC 9110 §15), for those that we send.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &[u8]) -> Request {
        Request {
            method: Method::Put,
            path: "/x".into(),
            query: String::new(),
            body: body.into(),
        }
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wish {
        #[serde(default)]
        n: u32,
    }

    #[test]
    fn an_empty_body_reads_as_an_empty_object() {
        assert_eq!(request(b"").json::<Wish>().unwrap(), Wish { n: 0 });
        assert_eq!(request(b" \r\n").json::<Wish>().unwrap(), Wish { n: 0 });
        assert_eq!(request(b"{\"n\":7}").json::<Wish>().unwrap(), Wish { n: 7 });
    }

    #[test]
    fn a_wrong_body_is_a_400_that_names_the_field() {
        let response = request(b"{\"m\":1}").json::<Wish>().unwrap_err();
        assert_eq!(response.status, 400);
        assert!(response.detail().contains("`m`"), "{}", response.detail());
        assert_eq!(request(b"\xff\xfe").json::<Wish>().unwrap_err().status, 400);
    }

    #[test]
    fn a_problem_document_carries_status_title_and_detail() {
        let value: serde_json::Value =
            serde_json::from_slice(&Response::problem(404, "No such thing").body).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"status": 404, "title": "Not Found", "detail": "No such thing"})
        );
    }
}
