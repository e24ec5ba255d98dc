//! The thread that listens to a guest: one connection at a time, read no faster than a limit.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use concertina_guest::channel::{
    self, FromGuest, HostHello, Lines, MAX_LINE_BYTES, ToGuest, VERSION,
};

use super::limit::Limit;
use super::{PERIOD, Shared};
use crate::poll;

/// Bytes that a guest may say in a second: a report has some hundred.
const BYTES_PER_SECOND: u64 = 32 << 10;
/// How soon a limit that was met is looked at again.
const LIMIT_PAUSE: Duration = Duration::from_millis(100);
/// Shortest time between two connections that are accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A connection with so many lines that are no messages is none of ours.
const MAX_BAD_LINES: u32 = 16;

/// The listener, and the guest that has connected last.
pub struct Link {
    listener: UnixListener,
    client: Option<Client>,
    /// Kept over connections: coming again gains nothing.
    limit: Limit,
    accept_at: Instant,
    shared: Arc<Shared>,
}

struct Client {
    stream: UnixStream,
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
            shared,
        })
    }

    /// Until the channel is closed.
    pub fn run(mut self) {
        while !self.shared.stopping.load(Ordering::SeqCst) {
            let now = Instant::now();
            let may_accept = now >= self.accept_at;
            let may_read = self.limit.left(now) > 0;
            let fd = |wanted: bool, fd: Option<RawFd>| fd.filter(|_| wanted).unwrap_or(-1);
            let client = self.client.as_ref().map(|client| client.stream.as_raw_fd());
            let fds = [
                self.shared.link.as_raw_fd(),
                fd(may_accept, Some(self.listener.as_raw_fd())),
                fd(may_read, client),
            ];
            let pause = if may_accept && may_read {
                None
            } else {
                Some(LIMIT_PAUSE)
            };
            let Ok(ready) = poll::wait_readable(&fds, pause) else {
                // Without polling there is no listening; the guest counts as silent.
                break;
            };
            self.shared.link.clear();
            if ready.get(1) == Some(&true) {
                self.accept(now);
            }
            if ready.get(2) == Some(&true) && self.read().is_err() {
                self.forget();
            }
            if self.write().is_err() {
                self.forget();
            }
        }
        self.forget();
    }

    fn accept(&mut self, now: Instant) {
        self.accept_at = now + ACCEPT_PAUSE;
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        // The newest counts: the guest's program has been started again.
        self.client = Some(Client {
            stream,
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
            Err(error) if is_for_now(&error) => return Ok(()),
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

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
