//! One connection between a unix socket of the host and a socket of the guest.
//!
//! ```text
//! guest: REQUEST ─► connect to P_N ── RESPONSE ──┐
//!                                                ▼
//! host: CONNECT ─► Requested ── RESPONSE ─► Established ──────────── one half ends ───┐
//!                     │                       │  ▲                                    │
//!                     │                       │  └────────────────────────────────────┘
//!                     ├── host gone,          ├── guest ends both, nothing left ─► Resetting ─► Over
//!                     │   broken protocol     ├── guest ends both, bytes left ──► Draining ───► Over
//!                     └──► Resetting ─► Over  └── host gone, or both halves ended ────────────► Over
//! ```
//! *Resetting* sends a RST and is over; *Draining* has told the guest that it is over, and only gives
//! the host the bytes that it has not taken yet. A SHUTDOWN of both halves is the last word too: what
//! the guest still says then is answered like any unknown connection.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::credit::Credit;
use super::pace::{Advice, Pace};
use super::packet::{Header, flag, op};
use super::request::Buffers;
use super::socket;
use super::windows::Windows;

/// Where a connection is in its life; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Requested,
    Established,
    Resetting,
    Draining,
    Over,
}

/// Which ports a connection joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// What the host's socket has become, from one look at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketEvents {
    /// There is something to read, or the end.
    pub readable: bool,
    /// There is room.
    pub writable: bool,
    /// Nobody holds the other end.
    pub hung_up: bool,
}

/// Something that a connection did with a packet of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was in order.
    Fine,
    /// The guest has broken the protocol; the connection is reset.
    BadRequest,
    /// The guest has sent more than it had credit for; the connection is reset.
    CreditOverrun,
}

/// Packets that wait for room in the guest's queue.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    /// REQUEST or RESPONSE.
    opening: Option<u16>,
    credit_update: bool,
    reset: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    state: State,
    credit: Credit,
    /// The window that it was granted first.
    granted: u32,
    pace: Pace,
    pending: Pending,
    /// Bytes of the guest that the host has not taken; at most the credit's window.
    backlog: VecDeque<u8>,
    socket: SocketEvents,
    /// What the guest will not do any more, by its SHUTDOWNs.
    guest_ended: u32,
    /// The host's program was told that the guest will send no more.
    host_was_told: bool,
    /// The host's program will send no more.
    host_sent_all: bool,
    /// The host's program takes no more.
    host_takes_none: bool,
    /// What the guest was told that the host will not do any more.
    told_ended: u32,
    /// The guest was asked for credit since it last had any.
    credit_requested: bool,
    /// It is in the list of those that may have something for the guest.
    pub queued: bool,
}

impl Connection {
    fn new(stream: UnixStream, window: u32, state: State, opening: u16) -> Self {
        Self {
            stream,
            state,
            credit: Credit::new(window),
            granted: window,
            pace: Pace::default(),
            pending: Pending {
                opening: Some(opening),
                ..Pending::default()
            },
            backlog: VecDeque::new(),
            socket: SocketEvents {
                writable: true,
                ..SocketEvents::default()
            },
            guest_ended: 0,
            host_was_told: false,
            host_sent_all: false,
            host_takes_none: false,
            told_ended: 0,
            credit_requested: false,
            queued: false,
        }
    }

    /// The guest has asked for it, and `stream` is connected.
    pub fn accepted(stream: UnixStream, window: u32, request: &Header) -> Self {
        let mut connection = Self::new(stream, window, State::Established, op::RESPONSE);
        let credit = &mut connection.credit;
        credit.told_by_guest(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// The host asks for it.
    pub fn requested(stream: UnixStream, window: u32) -> Self {
        Self::new(stream, window, State::Requested, op::REQUEST)
    }

    /// Whether the guest is due to hear that its bytes were taken: the time to look at the window.
    pub fn update_is_due(&self) -> bool {
        self.state == State::Established && self.credit.update_is_due()
    }

    /// Wants another window where the stream's pace asks for it.
    pub fn adapt_window(&mut self, windows: &mut Windows, now: Instant) {
        let window = self.credit.window();
        let (taken, held) = (self.credit.untold(), self.backlog.len());
        match self.pace.look(now, window, taken, held) {
            Advice::Keep => {}
            Advice::More => {
                let more = windows.enlarge(window);
                self.credit.want_window(window + more);
            }
            Advice::First => self.credit.want_window(self.granted),
        }
    }

    /// The window that it was granted first, and the bytes that it may have to hold beyond it.
    pub fn promised(&self) -> (u32, u32) {
        (self.granted, self.credit.window() - self.granted)
    }

    /// It is over, and can be dropped.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Bytes held for the host.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn backlog_bytes(&self) -> usize {
        self.backlog.len()
    }

    /// Takes a packet of the guest, any but a REQUEST. `delivered` counts the bytes of payload.
    pub fn take(
        &mut self,
        ports: Ports,
        header: &Header,
        payload: &Buffers<'_>,
        delivered: &mut usize,
    ) -> Verdict {
        if matches!(self.state, State::Draining | State::Resetting | State::Over) {
            // For the guest it is over, or soon will be.
            return Verdict::Fine;
        }
        self.credit.told_by_guest(header.buf_alloc, header.fwd_cnt);
        if self.credit.room() > 0 {
            self.credit_requested = false;
        }
        match (header.op, self.state) {
            (op::RST, _) => self.state = State::Over,
            (op::RESPONSE, State::Requested) => self.establish(ports),
            (op::RW, State::Established) if self.guest_ended & flag::SEND == 0 => {
                if self.credit.receive(payload.len() as u32).is_err() {
                    self.state = State::Resetting;
                    return Verdict::CreditOverrun;
                }
                *delivered = payload.len();
                self.deliver(payload);
            }
            (op::CREDIT_UPDATE, State::Established) => {}
            (op::CREDIT_REQUEST, State::Established) => self.pending.credit_update = true,
            (op::SHUTDOWN, State::Established) => self.guest_ends(header.flags & flag::BOTH),
            _ => {
                self.state = State::Resetting;
                return Verdict::BadRequest;
            }
        }
        Verdict::Fine
    }

    /// Tells the host's program its port, as the first line that it reads.
    fn establish(&mut self, ports: Ports) {
        self.state = State::Established;
        let line = format!("OK {}\n", ports.host);
        // The socket has not been written to yet: it takes a line, or its reader is gone.
        if !matches!(self.stream.write(line.as_bytes()), Ok(n) if n == line.len()) {
            self.state = State::Resetting;
        }
    }

    fn deliver(&mut self, payload: &Buffers<'_>) {
        let mut sent = 0;
        if self.host_takes_none {
            return self.credit.forward(payload.len());
        }
        if self.socket.writable && self.backlog.is_empty() && payload.len() > 0 {
            match socket::send(&self.stream, payload) {
                Ok(n) => sent = n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.send_failed(&error);
                    return self.credit.forward(payload.len());
                }
            }
            self.credit.forward(sent);
            self.socket.writable = sent == payload.len();
        }
        payload.append_to(sent, &mut self.backlog);
    }

    /// The host's program may have closed only its reading half: then it may still send.
    fn send_failed(&mut self, error: &io::Error) {
        self.credit.forward(self.backlog.len());
        self.backlog = VecDeque::new();
        self.host_takes_none = true;
        if !matches!(
            error.kind(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        ) {
            self.state = State::Resetting;
        }
    }

    fn guest_ends(&mut self, halves: u32) {
        self.guest_ended |= halves;
        if self.guest_ended & flag::RECEIVE != 0 {
            // Fails when the host is gone, which shows elsewhere.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.guest_ended == flag::BOTH && !self.backlog.is_empty() {
            self.state = State::Draining;
            self.pending = Pending {
                reset: true,
                ..Pending::default()
            };
        }
        self.end_if_drained();
    }

    /// What the guest's SHUTDOWN means for the host, once the host has everything from before it.
    fn end_if_drained(&mut self) {
        if !self.backlog.is_empty() || self.guest_ended & flag::SEND == 0 {
            return;
        }
        // Once: the socket says that it has changed each time.
        if !std::mem::replace(&mut self.host_was_told, true) {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        match self.state {
            State::Draining if self.pending.reset => self.state = State::Resetting,
            State::Draining => self.state = State::Over,
            State::Established if self.guest_ended == flag::BOTH => self.state = State::Resetting,
            _ => {}
        }
    }

    /// Takes what the host's socket has become. Gives the bytes that it took of those held.
    pub fn socket_changed(&mut self, events: SocketEvents) {
        self.socket.readable |= events.readable | events.hung_up;
        self.socket.writable |= events.writable;
        self.socket.hung_up |= events.hung_up;
        if self.socket.hung_up {
            match self.state {
                State::Requested => self.state = State::Resetting,
                State::Draining if !self.pending.reset => self.state = State::Over,
                State::Draining => self.state = State::Resetting,
                State::Established if self.guest_ended & flag::RECEIVE != 0 => {
                    self.host_sent_all = true;
                }
                _ => {}
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        while self.socket.writable && !self.backlog.is_empty() {
            match self.stream.write(self.backlog.as_slices().0) {
                Ok(sent) => {
                    self.backlog.drain(..sent);
                    self.credit.forward(sent);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.socket.writable = false,
                Err(error) => self.send_failed(&error),
            }
        }
        if self.backlog.is_empty() {
            // Most connections never need it: its memory goes back.
            self.backlog = VecDeque::new();
            self.end_if_drained();
        }
    }

    /// The next packet for the guest, its payload already in `room`; addresses are the caller's.
    pub fn next(&mut self, room: &Buffers<'_>) -> Option<Header> {
        let mut packet = match self.state {
            State::Over => return None,
            State::Resetting => {
                self.state = State::Over;
                packet(op::RST)
            }
            State::Draining => std::mem::take(&mut self.pending.reset).then(|| packet(op::RST))?,
            State::Requested => packet(self.pending.opening.take()?),
            State::Established => self.next_established(room)?,
        };
        (packet.buf_alloc, packet.fwd_cnt) = self.credit.tell();
        Some(packet)
    }

    fn next_established(&mut self, room: &Buffers<'_>) -> Option<Header> {
        if let Some(opening) = self.pending.opening.take() {
            return Some(packet(opening));
        }
        let asked = std::mem::take(&mut self.pending.credit_update);
        if asked || self.credit.update_is_due() {
            return Some(packet(op::CREDIT_UPDATE));
        }
        self.next_data(room).or_else(|| self.next_end())
    }

    fn next_data(&mut self, room: &Buffers<'_>) -> Option<Header> {
        let refused = self.guest_ended & flag::RECEIVE != 0;
        if refused || self.host_sent_all || !self.socket.readable {
            return None;
        }
        let most = self.credit.room() as usize;
        if most == 0 {
            let asked = std::mem::replace(&mut self.credit_requested, true);
            return (!asked).then(|| packet(op::CREDIT_REQUEST));
        }
        match socket::receive(&self.stream, room, most) {
            Ok(0) => self.host_sent_all = true,
            Ok(len) => {
                self.credit.send(len);
                return Some(Header {
                    len: len as u32,
                    ..packet(op::RW)
                });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.socket.readable = false,
            // The host's program has gone without taking everything: there is no more to come.
            Err(_) => {
                self.host_sent_all = true;
                self.socket.hung_up = true;
            }
        }
        None
    }

    /// A SHUTDOWN, when the host has ended more than the guest was told.
    fn next_end(&mut self) -> Option<Header> {
        let mut ended = self.told_ended;
        if self.host_sent_all {
            ended |= flag::SEND;
            let guest_sent_all = self.guest_ended & flag::SEND != 0 && self.backlog.is_empty();
            if self.socket.hung_up || guest_sent_all {
                ended |= flag::RECEIVE;
            }
        }
        if self.host_takes_none {
            ended |= flag::RECEIVE;
        }
        if ended == self.told_ended {
            return None;
        }
        self.told_ended = ended;
        if ended == flag::BOTH {
            self.state = State::Over;
        }
        Some(Header {
            flags: ended,
            ..packet(op::SHUTDOWN)
        })
    }
}

fn packet(operation: u16) -> Header {
    Header {
        op: operation,
        ..Header::default()
    }
}
