//! The asking end: one request on one connection, one deadline for all of it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use httparse::Status;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::connection::{Connection, content_length, has_token};
use crate::message::{TYPE_JSON, TYPE_PROBLEM};
use crate::{HEAD_LIMIT_BYTES, HEADER_COUNT_LIMIT, HttpError, Method, Response};

/// Most bytes of an answer's body.
const ANSWER_LIMIT_BYTES: usize = 16 << 20;
/// How long one wait for more of a body that goes on may take; then the next one begins.
const FOLLOW_WAIT: Duration = Duration::from_secs(60);

/// Sends a request with an optional JSON body and waits for the whole answer, at most `timeout`.
/// An answer with a status outside 200 to 299 is [`HttpError::Status`].
pub fn send<B: Serialize + ?Sized>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&B>,
    timeout: Duration,
) -> Result<Response, HttpError> {
    let body = body
        .map(serde_json::to_vec)
        .transpose()?
        .unwrap_or_default();
    let mut request = format!(
        "{} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
        method.as_str(),
        body.len()
    );
    request.push_str("Content-Type: application/json\r\n\r\n");
    let mut bytes = request.into_bytes();
    bytes.extend_from_slice(&body);

    let now = Instant::now();
    // A timeout that the clock cannot express is as good as a day.
    let deadline = now
        .checked_add(timeout)
        .unwrap_or(now + Duration::from_secs(24 * 60 * 60));
    let stream = connect(socket, timeout).map_err(|source| HttpError::Connect {
        path: socket.to_owned(),
        source,
    })?;
    let mut connection = Connection::new(stream);
    let broken = |source| HttpError::Exchange {
        path: socket.to_owned(),
        source,
    };
    // A server that refuses may answer and close before it has read everything.
    let written = connection.write(&bytes, deadline);
    let response = match (read_response(&mut connection, socket, deadline), written) {
        (Err(_), Err(error)) => return Err(broken(error)),
        (read, _) => read?,
    };
    if response.is_success() {
        Ok(response)
    } else {
        Err(HttpError::Status {
            status: response.status,
            detail: response.detail(),
        })
    }
}

/// A connection that is kept for the next request to the same server: asking again and again costs no
/// connection each time.
#[derive(Debug, Default)]
pub struct Kept(Option<Connection>);

impl Kept {
    /// Reads a value, on the connection of before where there is one.
    ///
    /// # Errors
    /// As for [`get_json`]; the connection is not kept then.
    pub fn get_json<T: DeserializeOwned>(
        &mut self,
        socket: &Path,
        path: &str,
        timeout: Duration,
    ) -> Result<T, HttpError> {
        let deadline = Instant::now() + timeout;
        if let Some(connection) = self.0.take() {
            // Its server may have closed it in the meantime: then nothing of an answer comes, and the
            // question is asked again on another one.
            match self.ask(connection, socket, path, deadline) {
                Err(error) if is_closed(&error) => {}
                answered => return answered,
            }
        }
        let stream = connect(socket, timeout).map_err(|source| HttpError::Connect {
            path: socket.to_owned(),
            source,
        })?;
        self.ask(Connection::new(stream), socket, path, deadline)
    }

    fn ask<T: DeserializeOwned>(
        &mut self,
        mut connection: Connection,
        socket: &Path,
        path: &str,
        deadline: Instant,
    ) -> Result<T, HttpError> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let written = connection.write(request.as_bytes(), deadline);
        written.map_err(|source| HttpError::Exchange {
            path: socket.to_owned(),
            source,
        })?;
        let head = read_head(&mut connection, socket, deadline)?;
        let response = read_body(&mut connection, socket, &head, deadline)?;
        if !head.closes && head.body_bytes.is_some() {
            self.0 = Some(connection);
        }
        if !response.is_success() {
            return Err(HttpError::Status {
                status: response.status,
                detail: response.detail(),
            });
        }
        Ok(serde_json::from_slice(&response.body)?)
    }
}

/// Whether the server had closed the connection.
fn is_closed(error: &HttpError) -> bool {
    let HttpError::Exchange { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Connects; a server that hangs, with its queue full, costs the timeout and no more.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Of connect(2), too, on unix sockets. No time at all would mean no limit.
    socket.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// Reads a value.
pub fn get_json<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    timeout: Duration,
) -> Result<T, HttpError> {
    let response = send::<()>(socket, Method::Get, path, None, timeout)?;
    Ok(serde_json::from_slice(&response.body)?)
}

/// Sets a value and reads the answer. `T = ()` asks for no body, as a 204 has none.
pub fn put_json<B: Serialize + ?Sized, T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &B,
    timeout: Duration,
) -> Result<T, HttpError> {
    let response = send(socket, Method::Put, path, Some(body), timeout)?;
    let body: &[u8] = if response.body.is_empty() {
        b"null"
    } else {
        &response.body
    };
    Ok(serde_json::from_slice(body)?)
}

/// Reads a body that goes on, piece by piece, until the server closes or `take` says that it is enough.
/// The server may be silent for ever; only the head has a deadline.
pub fn follow(
    socket: &Path,
    path: &str,
    timeout: Duration,
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), HttpError> {
    let deadline = Instant::now() + timeout;
    let broken = |source| HttpError::Exchange {
        path: socket.to_owned(),
        source,
    };
    let stream = connect(socket, timeout).map_err(|source| HttpError::Connect {
        path: socket.to_owned(),
        source,
    })?;
    let mut connection = Connection::new(stream);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection
        .write(request.as_bytes(), deadline)
        .map_err(broken)?;
    let head = read_head(&mut connection, socket, deadline)?;
    if !(200..300).contains(&head.status) {
        let response = read_body(&mut connection, socket, &head, deadline)?;
        return Err(HttpError::Status {
            status: response.status,
            detail: response.detail(),
        });
    }
    connection.take(head.length_bytes);
    loop {
        let piece = connection.take(usize::MAX);
        if !piece.is_empty() && !take(&piece) {
            return Ok(());
        }
        match connection.fill(Instant::now() + FOLLOW_WAIT) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) => return Err(broken(error)),
        }
    }
}

/// What the head of an answer says.
struct Head {
    status: u16,
    content_type: &'static str,
    length_bytes: usize,
    body_bytes: Option<usize>,
    /// The connection ends with this answer.
    closes: bool,
}

fn read_response(
    connection: &mut Connection,
    socket: &Path,
    deadline: Instant,
) -> Result<Response, HttpError> {
    let head = read_head(connection, socket, deadline)?;
    read_body(connection, socket, &head, deadline)
}

/// Waits for a head; it stays in the buffer.
fn read_head(
    connection: &mut Connection,
    socket: &Path,
    deadline: Instant,
) -> Result<Head, HttpError> {
    let broken = |source| HttpError::Exchange {
        path: socket.to_owned(),
        source,
    };
    let invalid = |what: String| HttpError::Protocol {
        path: socket.to_owned(),
        what,
    };
    loop {
        match parse_response_head(connection.buffered()).map_err(invalid)? {
            // An interim answer (RFC 9110 §15.2): the real one follows.
            Some(head) if head.status < 200 => drop(connection.take(head.length_bytes)),
            Some(head) => return Ok(head),
            None if connection.fill(deadline).map_err(broken)? == 0 => {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            None => {}
        }
    }
}

fn read_body(
    connection: &mut Connection,
    socket: &Path,
    head: &Head,
    deadline: Instant,
) -> Result<Response, HttpError> {
    let broken = |source| HttpError::Exchange {
        path: socket.to_owned(),
        source,
    };
    let invalid = |what: String| HttpError::Protocol {
        path: socket.to_owned(),
        what,
    };
    connection.take(head.length_bytes);
    let bodyless = head.status == 204 || head.status == 304;
    let wanted_bytes = if bodyless { Some(0) } else { head.body_bytes };
    let too_large = || invalid(format!("its body is above {ANSWER_LIMIT_BYTES} bytes"));
    if wanted_bytes.is_some_and(|wanted| wanted > ANSWER_LIMIT_BYTES) {
        return Err(too_large());
    }
    while wanted_bytes.is_none_or(|wanted| connection.buffered().len() < wanted) {
        if connection.buffered().len() > ANSWER_LIMIT_BYTES {
            return Err(too_large());
        }
        if connection.fill(deadline).map_err(broken)? == 0 {
            // Without a length the end of the stream is the end of the body (RFC 9112 §6.3).
            match wanted_bytes {
                None => break,
                Some(_) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
    let body = connection.take(wanted_bytes.unwrap_or(usize::MAX));
    Ok(Response::new(head.status, head.content_type, body))
}

/// Parses the head of an answer; `None` when it is not complete yet.
fn parse_response_head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT_LIMIT];
    let mut parsed = httparse::Response::new(&mut headers);
    let length_bytes = match parsed.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() > HEAD_LIMIT_BYTES => {
            return Err(format!("its head is larger than {HEAD_LIMIT_BYTES} bytes"));
        }
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let named = |name: &'static str| {
        parsed
            .headers
            .iter()
            .find(move |header| header.name.eq_ignore_ascii_case(name))
    };
    if named("transfer-encoding").is_some() {
        return Err("it has a Transfer-Encoding, which is not known here".into());
    }
    let content_type = match named("content-type").map(|header| header.value) {
        Some(value) if value.starts_with(TYPE_JSON.as_bytes()) => TYPE_JSON,
        Some(value) if value.starts_with(TYPE_PROBLEM.as_bytes()) => TYPE_PROBLEM,
        _ => "application/octet-stream",
    };
    Ok(Some(Head {
        status: parsed.code.unwrap_or_default(),
        content_type,
        length_bytes,
        body_bytes: content_length(parsed.headers)?,
        closes: named("connection").is_some_and(|header| has_token(header.value, "close")),
    }))
}
