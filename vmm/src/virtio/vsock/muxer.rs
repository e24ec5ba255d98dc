//! All connections of one device, and the sockets on the host behind them.
//!
//! ```text
//! programs ──connect──► P ──CONNECT n──► Handshake ──► Connection ◄──REQUEST n── programs
//! of the                                                   │                     of the guest
//! host     ◄──────────────── connect to P_n ───────────────┘
//! ```
//! Sockets are watched edge-triggered by one epoll descriptor, so that a connection which waits for the
//! guest costs nothing, and a look at the sockets never needs to be undone.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VsockCounters;
use super::connection::{Connection, Ports, SocketEvents, Verdict};
use super::handshake::{Handshake, Progress};
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use super::request::Buffers;
use super::socket;
use super::windows::{MAX_CONNECTIONS, Windows};

/// Bytes of the longest suffix of the base path: `_4294967295`.
pub const SUFFIX_BYTES: usize = 11;
/// Most programs that have connected and not said yet where to; the one that waits longest gives way.
pub const MAX_HANDSHAKES: usize = 64;
/// Most answers to packets without a connection that wait for room in the guest's queue. A guest that
/// gives none loses the rest.
const MAX_REPLIES: usize = 256;
/// First port that a connection of the host gets; lower ones are for listeners, by custom.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// No port: "any" in a bind. Events with this host port are not a connection's.
const PORT_ANY: u32 = u32::MAX;
/// Most accepted or looked at in one turn of the event loop.
const TURN_EVENTS: usize = 64;

const LISTENER: Ports = Ports {
    host: PORT_ANY,
    guest: PORT_ANY,
};
const WAKEUP: Ports = Ports {
    host: PORT_ANY,
    guest: PORT_ANY - 1,
};

/// Connections, and what may be made into one.
pub struct Muxer {
    guest_cid: u64,
    base: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    wakeup: EventFd,
    connections: BTreeMap<Ports, Connection>,
    windows: Windows,
    /// Connections that may have something for the guest, each once.
    ready: VecDeque<Ports>,
    /// Answers to packets without a connection.
    replies: VecDeque<Header>,
    handshakes: BTreeMap<u32, Handshake>,
    next_handshake: u32,
    next_host_port: u32,
    guest_is_up: bool,
    counters: Arc<VsockCounters>,
}

impl Muxer {
    /// Listens on `base`, for a guest that is not up yet. A socket that is left there is replaced.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn new(guest_cid: u32, base: &Path, counters: Arc<VsockCounters>) -> io::Result<Self> {
        let _ = fs::remove_file(base);
        let listener = UnixListener::bind(base)?;
        listener.set_nonblocking(true)?;
        let muxer = Self {
            guest_cid: u64::from(guest_cid),
            base: base.to_owned(),
            listener,
            epoll: Epoll::new()?,
            wakeup: EventFd::new(EFD_NONBLOCK)?,
            connections: BTreeMap::new(),
            windows: Windows::default(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            handshakes: BTreeMap::new(),
            next_handshake: 0,
            next_host_port: FIRST_HOST_PORT,
            guest_is_up: false,
            counters,
        };
        muxer.watch(ControlOperation::Add, &muxer.listener, LISTENER)?;
        muxer.watch(ControlOperation::Add, &muxer.wakeup, WAKEUP)?;
        Ok(muxer)
    }

    /// Readable when [`Muxer::look_at_sockets`] has something to do.
    pub fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Makes [`Muxer::descriptor`] readable.
    pub fn wake(&self) {
        // Full means that it is readable already.
        let _ = self.wakeup.write(1);
    }

    /// The guest's driver is there; before, everybody who connects is sent away.
    pub fn guest_came(&mut self) {
        self.guest_is_up = true;
    }

    /// The guest's driver is gone, and all connections with it.
    pub fn guest_went(&mut self) {
        self.guest_is_up = false;
        self.connections.clear();
        self.handshakes.clear();
        self.ready = VecDeque::new();
        self.replies = VecDeque::new();
        self.windows = Windows::default();
        self.count_connections();
    }

    fn watch(&self, how: ControlOperation, fd: &impl AsRawFd, ports: Ports) -> io::Result<()> {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let token = u64::from(ports.host) << 32 | u64::from(ports.guest);
        let event = EpollEvent::new(events, token);
        self.epoll.ctl(how, fd.as_raw_fd(), event)
    }

    /// Takes note of what has become of the sockets: a bounded number of them; the descriptor stays
    /// readable when there are more.
    pub fn look_at_sockets(&mut self) {
        let mut events = [EpollEvent::default(); TURN_EVENTS];
        // An interrupted look is made again, since the descriptor stays readable.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            let ports = Ports {
                host: (event.data() >> 32) as u32,
                guest: event.data() as u32,
            };
            match ports {
                LISTENER => self.accept(),
                WAKEUP => drop(self.wakeup.read()),
                Ports {
                    host: PORT_ANY,
                    guest: id,
                } => self.shake_hands(id),
                _ => self.socket_changed(ports, event.event_set()),
            }
        }
    }

    fn socket_changed(&mut self, ports: Ports, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        let is = |set: EventSet| events.intersects(set);
        connection.socket_changed(SocketEvents {
            readable: is(EventSet::IN | EventSet::READ_HANG_UP),
            writable: is(EventSet::OUT),
            hung_up: is(EventSet::HANG_UP | EventSet::ERROR),
        });
        self.settle(ports);
    }

    fn accept(&mut self) {
        for _ in 0..TURN_EVENTS {
            match self.listener.accept() {
                Ok((stream, _)) if self.guest_is_up => self.begin_handshake(stream),
                // There is nobody to talk to: the end of the stream says so.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody waits; or there are no descriptors left, and who waits is looked at again
                // when the next one comes.
                Err(_) => return,
            }
        }
        // There may be more, of which the edge has been seen.
        let _ = self.watch(ControlOperation::Modify, &self.listener, LISTENER);
    }

    fn begin_handshake(&mut self, stream: UnixStream) {
        while self.handshakes.len() >= MAX_HANDSHAKES {
            self.handshakes.pop_first();
            self.count(|c| &c.refused);
        }
        let id = self.next_handshake;
        // Their numbers stay clear of the two that mean something else.
        self.next_handshake = id.wrapping_add(1) % WAKEUP.guest;
        let ports = Ports {
            host: PORT_ANY,
            guest: id,
        };
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| self.watch(ControlOperation::Add, &stream, ports));
        if watched.is_ok() {
            self.handshakes.insert(id, Handshake::new(stream));
        }
    }

    fn shake_hands(&mut self, id: u32) {
        let Some(handshake) = self.handshakes.remove(&id) else {
            return;
        };
        match handshake.read() {
            Progress::Waits(handshake) => {
                self.handshakes.insert(id, handshake);
            }
            Progress::Wants(stream, port) => self.connect_to_guest(stream, port),
            Progress::Failed => self.count(|c| &c.refused),
        }
    }

    fn connect_to_guest(&mut self, stream: UnixStream, guest_port: u32) {
        let host = self.free_host_port(guest_port);
        let Some(host) = host.filter(|_| guest_port != PORT_ANY) else {
            return self.count(|c| &c.refused);
        };
        let ports = Ports {
            host,
            guest: guest_port,
        };
        if self.watch(ControlOperation::Modify, &stream, ports).is_ok() {
            let window = self.windows.grant();
            self.count(|c| &c.opened_by_host);
            self.insert(ports, Connection::requested(stream, window));
        }
    }

    /// A port for a connection to `guest_port`; `None` when there are connections enough.
    fn free_host_port(&mut self, guest_port: u32) -> Option<u32> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        loop {
            let host = self.next_host_port;
            self.next_host_port = match host + 1 {
                PORT_ANY => FIRST_HOST_PORT,
                next => next,
            };
            let ports = Ports {
                host,
                guest: guest_port,
            };
            if !self.connections.contains_key(&ports) {
                return Some(host);
            }
        }
    }

    fn connect_to_host(&mut self, ports: Ports, request: &Header) {
        let opened = if self.connections.len() < MAX_CONNECTIONS && ports.host != PORT_ANY {
            let mut path = OsString::from(&self.base);
            path.push(format!("_{}", ports.host));
            socket::connect(Path::new(&path)).and_then(|stream| {
                self.watch(ControlOperation::Add, &stream, ports)?;
                Ok(stream)
            })
        } else {
            Err(ErrorKind::ConnectionRefused.into())
        };
        match opened {
            Ok(stream) => {
                let window = self.windows.grant();
                self.count(|c| &c.opened_by_guest);
                self.insert(ports, Connection::accepted(stream, window, request));
            }
            Err(_) => {
                self.count(|c| &c.refused);
                self.reply(request.reset());
            }
        }
    }

    fn insert(&mut self, ports: Ports, connection: Connection) {
        self.connections.insert(ports, connection);
        self.count_connections();
        self.settle(ports);
    }

    /// After something has happened to a connection: it goes, or may have something for the guest.
    fn settle(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        if connection.is_over() {
            let (granted, more) = connection.promised();
            self.windows.give_back(granted);
            self.windows.give_back_more(more);
            self.connections.remove(&ports);
            self.count_connections();
            // Its backlog has left holes in the heap, which lives as long as the guest.
            crate::shed::give_back_heap();
        } else if !connection.queued {
            connection.queued = true;
            self.ready.push_back(ports);
        }
    }

    fn reply(&mut self, reply: Header) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(reply);
        } else {
            self.count(|c| &c.bad_requests);
        }
    }

    /// Takes one packet of the guest.
    pub fn receive(&mut self, header: &Header, payload: &Buffers<'_>) {
        if header.src_cid != self.guest_cid {
            return self.count(|c| &c.bad_requests);
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let known = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        let connection = self.connections.get_mut(&ports).filter(|_| known);
        match (connection, header.op) {
            (Some(_), op::REQUEST) => {
                self.count(|c| &c.bad_requests);
                self.reply(header.reset());
            }
            (Some(connection), _) => {
                let mut delivered = 0;
                let verdict = connection.take(ports, header, payload, &mut delivered);
                self.counters.add_from_guest(delivered);
                match verdict {
                    Verdict::Fine => {}
                    Verdict::BadRequest => self.count(|c| &c.bad_requests),
                    Verdict::CreditOverrun => {
                        self.count(|c| &c.bad_requests);
                        self.count(|c| &c.credit_overruns);
                    }
                }
                self.settle(ports);
            }
            (None, op::RST) => {}
            (None, op::REQUEST) if known => self.connect_to_host(ports, header),
            (None, op::RESPONSE..=op::CREDIT_REQUEST) if known => self.reply(header.reset()),
            (None, _) => {
                self.count(|c| &c.bad_requests);
                self.reply(header.reset());
            }
        }
    }

    /// Whether there may be a packet for the guest.
    pub fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, its payload already in `room`. Connections take turns.
    pub fn next_packet(&mut self, room: &Buffers<'_>) -> Option<Header> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        while let Some(ports) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&ports) else {
                continue;
            };
            connection.queued = false;
            if connection.update_is_due() {
                connection.adapt_window(&mut self.windows, Instant::now());
            }
            let (_, before) = connection.promised();
            let packet = connection.next(room);
            let (_, after) = connection.promised();
            self.windows.give_back_more(before - after);
            if packet.is_some() || connection.is_over() {
                self.settle(ports);
            }
            if let Some(packet) = packet {
                self.counters.add_to_guest(packet.len as usize);
                return Some(Header {
                    src_cid: HOST_CID,
                    dst_cid: self.guest_cid,
                    src_port: ports.host,
                    dst_port: ports.guest,
                    kind: TYPE_STREAM,
                    ..packet
                });
            }
        }
        None
    }

    fn count(&self, counter: impl Fn(&VsockCounters) -> &AtomicU64) {
        counter(&self.counters).fetch_add(1, Ordering::Relaxed);
    }

    fn count_connections(&self) {
        let now = self.connections.len() as u64;
        self.counters.connections.store(now, Ordering::Relaxed);
    }

    /// Bytes that all connections hold for the host.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn backlog_bytes(&self) -> usize {
        let connections = self.connections.values();
        connections.map(Connection::backlog_bytes).sum()
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.base);
    }
}
