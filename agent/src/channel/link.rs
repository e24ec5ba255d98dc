//! The job that listens to a guest: one connection at a time, read no faster than a limit.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concertina_guest::channel::{
    self, FromGuest, HostHello, Lines, MAX_LINE_BYTES, ToGuest, VERSION,
};

use super::limit::Limit;
use super::{PERIOD, Shared};
use crate::pool::{Events, Interest, Job, Watched};

/// Bytes that a guest may say in a second: a report has some hundred.
const BYTES_PER_SECOND: u64 = 32 << 10;
/// How soon a limit that was met is looked at again.
const LIMIT_PAUSE: Duration = Duration::from_millis(100);
/// Shortest time between two connections that are accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A connection with so many lines that are no messages is none of ours.
const MAX_BAD_LINES: u32 = 16;

/// What wakes it.
const LINK: u8 = 0;
const LISTENER: u8 = 1;
const CLIENT: u8 = 2;

/// The listener, and the guest that has connected last.
pub struct Link {
    listener: UnixListener,
    client: Option<Client>,
    /// Kept over connections: coming again gains nothing.
    limit: Limit,
    accept_at: Instant,
    /// Somebody may wait to be accepted.
    has_caller: bool,
    is_watched: bool,
    shared: Arc<Shared>,
}

struct Client {
    stream: UnixStream,
    /// There may be something to read.
    has_words: bool,
    lines: Lines,
    bad_lines: u32,
}

impl Link {
    /// Listens; a socket that is left there is replaced.
    pub fn bind(socket: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Self {
            listener,
            client: None,
            limit: Limit::new(BYTES_PER_SECOND, 2 * MAX_LINE_BYTES as u64, now),
            accept_at: now,
            has_caller: true,
            is_watched: false,
            shared,
        })
    }

    /// Is woken by what wakes it. Without that there is no listening; the guest counts as silent.
    fn watch(&mut self, watched: &Watched<'_>) {
        let link = watched.watch(self.shared.link.as_raw_fd(), Interest::Readable, LINK);
        let listener = watched.watch(self.listener.as_raw_fd(), Interest::Readable, LISTENER);
        self.is_watched = link.is_ok() && listener.is_ok();
    }

    fn accept(&mut self, watched: &Watched<'_>) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // What went wrong otherwise is tried again.
                self.has_caller = error.kind() != ErrorKind::WouldBlock;
                self.accept_at = Instant::now() + ACCEPT_PAUSE;
                return;
            }
        };
        self.accept_at = Instant::now() + ACCEPT_PAUSE;
        let is_usable = stream
            .set_nonblocking(true)
            .and_then(|()| watched.watch(stream.as_raw_fd(), Interest::Readable, CLIENT));
        if is_usable.is_err() {
            return;
        }
        // The newest counts: the guest's program has been started again.
        self.client = Some(Client {
            stream,
            has_words: true,
            lines: Lines::default(),
            bad_lines: 0,
        });
        self.shared.set_connected(true);
        let hello = ToGuest {
            hello: Some(HostHello {
                version: VERSION,
                period_ms: PERIOD.as_millis() as u64,
            }),
            ..ToGuest::default()
        };
        self.shared.post(&mut self.shared.state(), &hello);
    }

    /// Reads what is there, as far as the limit lets it.
    fn read_all(&mut self) {
        while self.client.as_ref().is_some_and(|client| client.has_words)
            && self.limit.left(Instant::now()) > 0
        {
            if self.read().is_err() {
                self.forget();
            }
        }
    }

    /// When there is something to do that no event tells of.
    fn next(&self) -> Option<Instant> {
        let accept = self.has_caller.then_some(self.accept_at);
        let has_words = self.client.as_ref().is_some_and(|client| client.has_words);
        let read = has_words.then(|| Instant::now() + LIMIT_PAUSE);
        accept.into_iter().chain(read).min()
    }

    fn forget(&mut self) {
        if self.client.take().is_some() {
            self.shared.set_connected(false);
        }
    }

    /// Reads once. An error: the connection is of no more use.
    fn read(&mut self) -> io::Result<()> {
        let Some(client) = &mut self.client else {
            return Ok(());
        };
        let mut chunk = [0; 4096];
        let most = usize::try_from(self.limit.left(Instant::now())).unwrap_or(0);
        let room = chunk.len().min(most);
        let part = chunk.get_mut(..room).unwrap_or_default();
        let got = match client.stream.read(part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => got,
            Err(error) if is_for_now(&error) => {
                client.has_words = error.kind() == ErrorKind::Interrupted;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.limit.take(got as u64);
        let (shared, bad_lines) = (&self.shared, &mut client.bad_lines);
        client
            .lines
            .feed(part.get(..got).unwrap_or_default(), |line| {
                match line.ok().and_then(channel::decode::<FromGuest>) {
                    Some(message) => shared.take(message),
                    None => {
                        shared.count_bad_line();
                        *bad_lines += 1;
                    }
                }
            });
        if *bad_lines > MAX_BAD_LINES {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    /// Writes what waits. A guest that does not take a whole line at once is not reading.
    fn write(&mut self) -> io::Result<()> {
        loop {
            let Some(line) = self.shared.state().outbox.pop_front() else {
                return Ok(());
            };
            if let Some(client) = &mut self.client {
                client.stream.write_all(&line)?;
            }
        }
    }
}

impl Job for Link {
    fn run(&mut self, events: Events, watched: &Watched<'_>) -> Option<Instant> {
        if !self.is_watched {
            self.watch(watched);
        }
        self.shared.link.clear();
        self.has_caller |= events.has(LISTENER);
        if let Some(client) = &mut self.client {
            client.has_words |= events.has(CLIENT);
        }
        if self.has_caller && Instant::now() >= self.accept_at {
            self.accept(watched);
        }
        self.read_all();
        if self.write().is_err() {
            self.forget();
        }
        self.next()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.forget();
    }
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
