//! One connection, seen from either end: bytes in, whole messages out, every wait bounded.
//!
//! A head is read until `httparse` is satisfied or its limit is passed; a body by its
//! `Content-Length`. What follows a message stays in the buffer, so pipelined requests work.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use httparse::Status;

use crate::message::{Method, Request, Response, Sink, reason};
use crate::{BODY_LIMIT_BYTES, HEAD_LIMIT_BYTES, HEADER_COUNT_LIMIT};

/// How long a peer may take from the first byte of a message to its last.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may leave a kept connection without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a look at a peer that sends nothing may take: the shortest that there is.
const PEEK_TIMEOUT: Duration = Duration::from_micros(1);
/// How long we go on listening to a peer that we have refused, so that it can read why.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// Most bytes that are read and dropped in that time.
const DRAIN_LIMIT_BYTES: usize = 4 * BODY_LIMIT_BYTES;

/// Why no request came out of a connection.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The peer closed, went silent or broke: nobody reads an answer.
    Gone,
    /// The peer is told why; the connection ends, since its framing is lost.
    Answer(Response),
}

impl Refusal {
    fn of(status: u16, detail: impl Into<String>) -> Self {
        Self::Answer(Response::problem(status, detail))
    }
}

/// What a request's head says, beyond the request itself.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    request: Request,
    length_bytes: usize,
    body_bytes: usize,
    expects_continue: bool,
    framing: Framing,
}

/// What the answer to a request depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Framing {
    /// The connection stays open after the answer.
    pub keep_alive: bool,
    /// The answer has the length of a body but no body.
    pub head_only: bool,
}

/// A stream with what was read from it and not yet used.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Longest waits of one read and one write, as the socket has them.
    read_wait: Cell<Option<Duration>>,
    write_wait: Option<Duration>,
}

/// Whether the longest wait of a socket will do where so much time is `left`. A shorter one costs another
/// look at the deadline when nothing comes; setting it costs a system call each time.
fn will_do(wait: Option<Duration>, left: Duration) -> bool {
    wait.is_some_and(|wait| wait <= left && wait >= left / 2)
}

/// The longest wait that is set where so much time is `left`: a little less, so that the same will do for
/// the next message with the same deadline.
fn wait_for(left: Duration) -> Duration {
    left - left / 8
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            read_wait: Cell::new(None),
            write_wait: None,
        }
    }

    /// Reads more bytes; 0 at the end of the stream.
    pub(crate) fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        let mut chunk = [0u8; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !will_do(self.read_wait.get(), left) {
                let wait = wait_for(left);
                self.stream.set_read_timeout(Some(wait))?;
                self.read_wait.set(Some(wait));
            }
            match self.stream.read(&mut chunk) {
                Ok(count) => {
                    self.buffer
                        .extend_from_slice(chunk.get(..count).unwrap_or_default());
                    return Ok(count);
                }
                // Whether there is time left is looked at again.
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes everything before the deadline.
    pub(crate) fn write(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !will_do(self.write_wait, left) {
                let wait = wait_for(left);
                self.stream.set_write_timeout(Some(wait))?;
                self.write_wait = Some(wait);
            }
            match self.stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The bytes that were read and not yet used.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes `count` bytes off the front of the buffer, or all when there are fewer.
    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count.min(self.buffer.len()));
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Waits for the next request and reads all of it.
    pub(crate) fn read_request(&mut self) -> Result<(Request, Framing), Refusal> {
        if self.buffer.is_empty() {
            match self.fill(Instant::now() + IDLE_TIMEOUT) {
                Ok(0) | Err(_) => return Err(Refusal::Gone),
                Ok(_) => {}
            }
        }
        let deadline = Instant::now() + MESSAGE_TIMEOUT;
        let head = loop {
            if let Some(head) = parse_request_head(&self.buffer)? {
                break head;
            }
            self.fill_request(deadline)?;
        };
        self.take(head.length_bytes);
        if head.expects_continue && self.buffer.len() < head.body_bytes {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n", deadline)
                .map_err(|_| Refusal::Gone)?;
        }
        while self.buffer.len() < head.body_bytes {
            self.fill_request(deadline)?;
        }
        let mut request = head.request;
        request.body = self.take(head.body_bytes);
        Ok((request, head.framing))
    }

    fn fill_request(&mut self, deadline: Instant) -> Result<(), Refusal> {
        match self.fill(deadline) {
            Ok(0) => Err(Refusal::of(400, "Request ends before it is complete")),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Refusal::of(
                408,
                format!(
                    "Request took longer than {} s to arrive",
                    MESSAGE_TIMEOUT.as_secs()
                ),
            )),
            Err(_) => Err(Refusal::Gone),
        }
    }

    /// Sends an answer.
    pub(crate) fn write_response(
        &mut self,
        response: &Response,
        framing: Framing,
    ) -> io::Result<()> {
        self.write(
            &encode_response(response, framing),
            Instant::now() + MESSAGE_TIMEOUT,
        )
    }

    /// Whether the peer has closed its end.
    pub(crate) fn is_gone(&self) -> bool {
        let mut byte = [0u8; 1];
        self.read_wait.set(None);
        let peeked = self
            .stream
            .set_read_timeout(Some(PEEK_TIMEOUT))
            .and_then(|()| (&self.stream).read(&mut byte));
        // The connection ends with the answer that goes on: what the peer still sends is dropped.
        matches!(peeked, Ok(0)) || peeked.is_err_and(|error| !is_timeout(&error))
    }

    /// Refuses: sends the answer, then drops what the peer still sends for a short time. A close
    /// with unread input would be a reset, and the peer could miss the answer.
    pub(crate) fn refuse(&mut self, response: &Response) {
        let framing = Framing {
            keep_alive: false,
            head_only: false,
        };
        if self.write_response(response, framing).is_err()
            || self.stream.shutdown(std::net::Shutdown::Write).is_err()
        {
            return;
        }
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut dropped_bytes = 0;
        while dropped_bytes < DRAIN_LIMIT_BYTES {
            self.buffer.clear();
            match self.fill(deadline) {
                Ok(count @ 1..) => dropped_bytes += count,
                Ok(0) | Err(_) => return,
            }
        }
    }
}

impl Sink for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        Self::write(self, bytes, Instant::now() + MESSAGE_TIMEOUT)
    }

    fn is_gone(&self) -> bool {
        Self::is_gone(self)
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// A response as bytes.
fn encode_response(response: &Response, framing: Framing) -> Vec<u8> {
    let mut head = format!(
        "HTTP/1.1 {} {}\r\n",
        response.status,
        reason(response.status)
    );
    let bodyless = response.status == 204;
    if !bodyless {
        let goes_on = response.stream.is_some();
        if !goes_on {
            head.push_str(&format!("Content-Length: {}\r\n", response.body.len()));
        }
        if goes_on || !response.body.is_empty() {
            head.push_str(&format!("Content-Type: {}\r\n", response.content_type));
        }
    }
    if let Some(allow) = response.allow {
        head.push_str(&format!("Allow: {allow}\r\n"));
    }
    head.push_str(if framing.keep_alive {
        "\r\n"
    } else {
        "Connection: close\r\n\r\n"
    });
    let mut bytes = head.into_bytes();
    if !bodyless && !framing.head_only {
        bytes.extend_from_slice(&response.body);
    }
    bytes
}

/// Parses the head of a request; `None` when it is not complete yet.
fn parse_request_head(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT_LIMIT];
    let mut parsed = httparse::Request::new(&mut headers);
    let too_large = || {
        Refusal::of(
            431,
            format!("Request head is larger than {HEAD_LIMIT_BYTES} bytes"),
        )
    };
    let length_bytes = match parsed.parse(bytes) {
        Ok(Status::Complete(length)) if length > HEAD_LIMIT_BYTES => return Err(too_large()),
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() > HEAD_LIMIT_BYTES => return Err(too_large()),
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            let detail = format!("Request has more than {HEADER_COUNT_LIMIT} headers");
            return Err(Refusal::of(431, detail));
        }
        Err(httparse::Error::Version) => {
            return Err(Refusal::of(
                505,
                "Only HTTP/1.0 and HTTP/1.1 are spoken here",
            ));
        }
        Err(error) => return Err(Refusal::of(400, format!("Request is malformed: {error}"))),
    };
    let token = parsed.method.unwrap_or_default();
    let (path, query) = split_target(parsed.path.unwrap_or_default())?;
    let mut keep_alive = parsed.version == Some(1);
    let mut expects_continue = false;
    for header in parsed.headers.iter() {
        if header.name.eq_ignore_ascii_case("connection") {
            if has_token(header.value, "close") {
                keep_alive = false;
            } else if has_token(header.value, "keep-alive") {
                keep_alive = true;
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Refusal::of(
                501,
                "Transfer-Encoding is not known here: send Content-Length",
            ));
        } else if header.name.eq_ignore_ascii_case("expect") {
            if !header.value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::of(
                    417,
                    "Only the expectation 100-continue is known here",
                ));
            }
            expects_continue = parsed.version == Some(1);
        }
    }
    let body_bytes = content_length(parsed.headers)
        .map_err(|what| Refusal::of(400, format!("Content-Length is not valid: {what}")))?
        .unwrap_or(0);
    if body_bytes > BODY_LIMIT_BYTES {
        let detail = format!("Body of {body_bytes} bytes is above the limit of {BODY_LIMIT_BYTES}");
        return Err(Refusal::of(413, detail));
    }
    Ok(Some(Head {
        request: Request {
            method: Method::parse(token),
            path,
            query,
            body: Vec::new(),
        },
        length_bytes,
        body_bytes,
        expects_continue,
        framing: Framing {
            keep_alive,
            head_only: token == "HEAD",
        },
    }))
}

/// Splits a request target in origin form or absolute form (RFC 9112 §3.2) into path and query.
fn split_target(target: &str) -> Result<(String, String), Refusal> {
    let origin = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?']) => rest
            .find('/')
            .and_then(|slash| rest.get(slash..))
            .unwrap_or("/"),
        _ => target,
    };
    if !origin.starts_with('/') {
        return Err(Refusal::of(
            400,
            "Request target is not a path that begins with '/'",
        ));
    }
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    Ok((path.to_owned(), query.to_owned()))
}

/// The one length that all `Content-Length` headers give, or `None` where there is none.
pub(crate) fn content_length(headers: &[httparse::Header<'_>]) -> Result<Option<usize>, String> {
    let mut length = None;
    let named = |h: &&httparse::Header<'_>| h.name.eq_ignore_ascii_case("content-length");
    for header in headers.iter().filter(named) {
        let value = header.value.trim_ascii();
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err("it is not a decimal number".into());
        }
        let parsed = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        match (parsed, length) {
            (None, _) => return Err("it is out of range".into()),
            (Some(new), Some(old)) if new != old => {
                return Err(format!("it is given as {old} and as {new}"));
            }
            (Some(new), _) => length = Some(new),
        }
    }
    Ok(length)
}

/// Is `token` in a comma-separated header value?
pub(crate) fn has_token(value: &[u8], token: &str) -> bool {
    value
        .split(|&b| b == b',')
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(bytes: &[u8]) -> u16 {
        match parse_request_head(bytes) {
            Err(Refusal::Answer(response)) => response.status,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn head(bytes: &[u8]) -> Head {
        match parse_request_head(bytes) {
            Ok(Some(head)) => head,
            other => panic!("no head: {other:?}"),
        }
    }

    #[test]
    fn target_is_split_into_path_and_query() {
        let parsed = head(b"GET /v1/vm?a=b&c HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(
            (parsed.request.path.as_str(), parsed.request.query.as_str()),
            ("/v1/vm", "a=b&c")
        );
        assert_eq!(parsed.request.method, Method::Get);
        assert!(parsed.framing.keep_alive);
        assert_eq!(
            head(b"GET http://host/a?b HTTP/1.1\r\n\r\n").request.path,
            "/a"
        );
        assert_eq!(head(b"GET http://host HTTP/1.1\r\n\r\n").request.path, "/");
        assert_eq!(
            head(b"GET /a?u=http://b HTTP/1.1\r\n\r\n").request.path,
            "/a"
        );
    }

    #[test]
    fn hostile_heads_are_refused_with_their_own_status() {
        assert_eq!(status_of(b"\x16\x03\x01\x02\x00\x01"), 400);
        assert_eq!(status_of(b"GET * HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status_of(b"GET / HTTP/2.0\r\n\r\n"), 505);
        assert_eq!(
            status_of(b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
            400
        );
        assert_eq!(
            status_of(b"PUT / HTTP/1.1\r\nContent-Length: +1\r\n\r\n"),
            400
        );
        assert_eq!(
            status_of(b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
            400
        );
        assert_eq!(
            status_of(b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            400
        );
        assert_eq!(
            status_of(b"PUT / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n"),
            413
        );
        assert_eq!(
            status_of(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            501
        );
        assert_eq!(status_of(b"PUT / HTTP/1.1\r\nExpect: tea\r\n\r\n"), 417);
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "a: b\r\n".repeat(HEADER_COUNT_LIMIT + 1)
        );
        assert_eq!(status_of(many.as_bytes()), 431);
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_LIMIT_BYTES));
        assert_eq!(status_of(long.as_bytes()), 431);
        let endless = format!("GET /{}", "a".repeat(HEAD_LIMIT_BYTES));
        assert_eq!(status_of(endless.as_bytes()), 431);
    }

    #[test]
    fn an_unfinished_head_asks_for_more_bytes() {
        let whole = b"PUT /v1/vm/resize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n";
        for length in 0..whole.len() {
            assert!(
                matches!(parse_request_head(&whole[..length]), Ok(None)),
                "{length}"
            );
        }
        assert_eq!(head(whole).body_bytes, 2);
        assert_eq!(head(whole).length_bytes, whole.len());
    }

    #[test]
    fn keep_alive_follows_version_and_header() {
        assert!(!head(b"GET / HTTP/1.0\r\n\r\n").framing.keep_alive);
        assert!(
            head(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
                .framing
                .keep_alive
        );
        assert!(
            !head(b"GET / HTTP/1.1\r\nConnection: foo, Close\r\n\r\n")
                .framing
                .keep_alive
        );
    }

    #[test]
    fn no_prefix_or_mutation_of_a_request_panics() {
        let seed =
            b"PUT /v1/vm/resize?x=y HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n";
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut bytes = seed.to_vec();
            for _ in 0..4 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 24) as u8;
            }
            let _ = parse_request_head(&bytes);
        }
    }

    #[test]
    fn an_answer_without_content_has_no_length_and_no_body() {
        let framing = Framing {
            keep_alive: true,
            head_only: false,
        };
        assert_eq!(
            encode_response(&Response::empty(204), framing),
            b"HTTP/1.1 204 No Content\r\n\r\n"
        );
        let text = encode_response(
            &Response::json(200, &7),
            Framing {
                head_only: true,
                ..framing
            },
        );
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("Content-Length: 2\r\n") && text.ends_with("\r\n\r\n"),
            "{text}"
        );
    }
}
