//! One TLS connection that is read and written by one thread, without ever waiting in either.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_api::link::{FromAgent, LINE_MAX_BYTES, ToAgent};
use rustls::{ClientConfig, ClientConnection};

use crate::poll;

/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that wait to be written; more of them mean that nobody reads.
const BACKLOG_MAX: usize = 4 * LINE_MAX_BYTES;

/// The connection.
pub struct Link {
    tls: ClientConnection,
    socket: TcpStream,
    /// What was read and is no whole line yet.
    inbox: Vec<u8>,
    /// What TLS has not taken yet.
    outbox: Vec<u8>,
    is_over: bool,
}

impl Link {
    /// Connects to `HOST:PORT`, and returns when both sides know each other.
    ///
    /// # Errors
    /// Nobody answers, or it is somebody else.
    pub fn connect(address: &str, tls: Arc<ClientConfig>, deadline: Instant) -> io::Result<Self> {
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in concertina_http::resolve::socket_addresses(address)? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(socket) => return Self::begin(socket, tls, deadline),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn begin(socket: TcpStream, tls: Arc<ClientConfig>, deadline: Instant) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let name = super::identity::control_name()?;
        let tls = ClientConnection::new(tls, name).map_err(io::Error::other)?;
        let mut link = Self {
            tls,
            socket,
            inbox: Vec::new(),
            outbox: Vec::new(),
            is_over: false,
        };
        while link.tls.is_handshaking() {
            link.pump()?;
            if link.is_over {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if link.tls.is_handshaking() {
                link.wait(&[], deadline)?;
            }
        }
        Ok(link)
    }

    /// Puts a message on its way.
    ///
    /// # Errors
    /// The other side has not read for too long, or the connection is broken.
    pub fn send(&mut self, message: &FromAgent) -> io::Result<()> {
        let line = serde_json::to_vec(message)?;
        if line.len() >= LINE_MAX_BYTES || self.outbox.len() > BACKLOG_MAX {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                "the control plane does not read",
            ));
        }
        self.outbox.extend_from_slice(&line);
        self.outbox.push(b'\n');
        self.pump()
    }

    /// Moves what can be moved in both directions.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn pump(&mut self) -> io::Result<()> {
        loop {
            let mut moved = false;
            if !self.outbox.is_empty() && !self.tls.is_handshaking() {
                let taken = self.tls.writer().write(&self.outbox)?;
                self.outbox.drain(..taken);
                moved |= taken > 0;
            }
            while self.tls.wants_write() {
                match self.tls.write_tls(&mut self.socket) {
                    Ok(_) => moved = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if !self.is_over && self.tls.wants_read() {
                match self.tls.read_tls(&mut self.socket) {
                    Ok(0) => self.is_over = true,
                    Ok(_) => moved = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                if let Err(error) = self.tls.process_new_packets() {
                    // The alert that says why goes out, if it can.
                    let _ = self.tls.write_tls(&mut self.socket);
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
            }
            moved |= self.read_plain()?;
            if !moved {
                return Ok(());
            }
        }
    }

    fn read_plain(&mut self) -> io::Result<bool> {
        let mut moved = false;
        let mut buffer = [0; 16 << 10];
        loop {
            match self.tls.reader().read(&mut buffer) {
                Ok(0) => {
                    self.is_over = true;
                    return Ok(moved);
                }
                Ok(length) => {
                    moved = true;
                    self.inbox
                        .extend_from_slice(buffer.get(..length).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(moved),
                // Cut off without a farewell: what came before it counts. Lines say themselves whether
                // they are whole.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.is_over = true;
                    return Ok(moved);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next whole message that has arrived.
    ///
    /// # Errors
    /// It is none, or the connection is over.
    pub fn next(&mut self) -> io::Result<Option<ToAgent>> {
        if let Some(end) = self.inbox.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.inbox.drain(..=end).collect();
            let message = serde_json::from_slice(&line)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            return Ok(Some(message));
        }
        if self.inbox.len() > LINE_MAX_BYTES {
            return Err(io::Error::new(ErrorKind::InvalidData, "a line is too long"));
        }
        if self.is_over {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(None)
    }

    /// Waits until something can be moved, one of `others` is readable, or the deadline.
    ///
    /// # Errors
    /// The deadline has passed, or the system refused.
    pub fn wait(&self, others: &[std::os::fd::RawFd], deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let writes = self.tls.wants_write() || !self.outbox.is_empty();
        let events = if writes {
            libc::POLLIN | libc::POLLOUT
        } else {
            libc::POLLIN
        };
        let mut waited = vec![(self.socket.as_raw_fd(), events)];
        waited.extend(others.iter().map(|fd| (*fd, libc::POLLIN)));
        poll::wait(&waited, Some(left)).map(drop)
    }

    /// The next message, waited for.
    ///
    /// # Errors
    /// None came in time, or the connection broke.
    pub fn receive(&mut self, deadline: Instant) -> io::Result<ToAgent> {
        loop {
            self.pump()?;
            if let Some(message) = self.next()? {
                return Ok(message);
            }
            self.wait(&[], deadline)?;
        }
    }
}
