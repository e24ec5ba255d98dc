//! The listening end: a socket file that only its owner may use, or a TCP address, an accept loop, a
//! thread per connection.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::connection::{Connection, Framing, Refusal};
use crate::{CONNECTION_LIMIT, HttpError, Request, Response};

/// Stack of a connection's thread; only the pages that it touches become resident.
const STACK_BYTES: usize = 256 << 10;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers requests; called on many threads at a time.
pub type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// A listening socket. Its file is removed when the server is dropped.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    /// Socket file, or address.
    path: PathBuf,
    /// Most connections at a time.
    limit: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Listener {
    Unix {
        socket: UnixListener,
        /// Device and inode of our socket file: what another server put in its place is not ours.
        identity: (u64, u64),
    },
    Tcp(TcpListener),
}

impl Listener {
    /// The next connection. Of a connection only what all stream sockets can do is used, whatever
    /// their family.
    fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Self::Unix { socket, .. } => socket.accept().map(|(stream, _)| stream),
            Self::Tcp(socket) => {
                let (stream, _) = socket.accept()?;
                // Answers are written whole: nothing is won by waiting for more.
                stream.set_nodelay(true)?;
                Ok(UnixStream::from(OwnedFd::from(stream)))
            }
        }
    }
}

#[derive(Debug)]
struct Shared {
    /// The listening socket again; as a stream, because only streams can be shut down.
    socket: UnixStream,
    stopping: AtomicBool,
    connections: AtomicUsize,
}

/// Ends [`Server::serve`] from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Shared>);

impl Stopper {
    /// Ends the accept loop. Connections end with the request that they are busy with.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        // On Linux this wakes a blocked accept(2). It can only fail where it has been done already.
        let _ = self.0.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Server {
    /// Listens on `path`, with file mode 0600. A socket file that nobody listens on is replaced; one
    /// that is in use, or a file that is no socket, is an error.
    pub fn bind(path: &Path) -> Result<Self, HttpError> {
        let failed = |source| HttpError::Bind {
            path: path.to_owned(),
            source,
        };
        refuse_occupied(path).map_err(failed)?;
        let listener = bind_private(path).map_err(failed)?;
        let file = fs::symlink_metadata(path).map_err(failed)?;
        let socket = OwnedFd::from(listener.try_clone().map_err(failed)?);
        let listener = Listener::Unix {
            socket: listener,
            identity: (file.dev(), file.ino()),
        };
        Ok(Self::of(listener, path.to_owned(), socket))
    }

    /// Listens on an address. Whoever can reach it can ask: it is for what nobody has to hide, or for
    /// loopback addresses.
    pub fn bind_tcp(address: SocketAddr) -> Result<Self, HttpError> {
        let path = PathBuf::from(address.to_string());
        let failed = |source| HttpError::Bind {
            path: path.clone(),
            source,
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let socket = OwnedFd::from(listener.try_clone().map_err(failed)?);
        Ok(Self::of(Listener::Tcp(listener), path, socket))
    }

    fn of(listener: Listener, path: PathBuf, socket: OwnedFd) -> Self {
        Self {
            listener,
            path,
            limit: CONNECTION_LIMIT,
            shared: Arc::new(Shared {
                socket: UnixStream::from(socket),
                stopping: AtomicBool::new(false),
                connections: AtomicUsize::new(0),
            }),
        }
    }

    /// Where it listens by TCP, with the port that it got where any was asked for.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(socket) => socket.local_addr().ok(),
            Listener::Unix { .. } => None,
        }
    }

    /// With another number of connections at a time than [`CONNECTION_LIMIT`].
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Something that ends [`Self::serve`].
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Answers requests until [`Stopper::stop`].
    pub fn serve(&self, handler: Arc<Handler>) -> Result<(), HttpError> {
        while !self.shared.stopping.load(Ordering::SeqCst) {
            match self.listener.accept() {
                Ok(stream) => self.begin(Connection::new(stream), &handler),
                Err(_) if self.shared.stopping.load(Ordering::SeqCst) => break,
                Err(error) if is_fatal(&error) => {
                    return Err(HttpError::Accept {
                        path: self.path.clone(),
                        source: error,
                    });
                }
                Err(_) => std::thread::sleep(ACCEPT_PAUSE),
            }
        }
        Ok(())
    }

    /// Gives a connection its thread, or turns it away.
    fn begin(&self, mut connection: Connection, handler: &Arc<Handler>) {
        let Some(slot) = Slot::take(&self.shared, self.limit) else {
            let detail = format!("More than {} connections at a time", self.limit);
            // Not on this thread: nobody may delay the accept loop. The socket buffer of a fresh
            // connection takes this answer without a wait.
            let framing = Framing {
                keep_alive: false,
                head_only: false,
            };
            let _ = connection.write_response(&Response::problem(503, detail), framing);
            return;
        };
        let handler = Arc::clone(handler);
        // A thread that cannot be started closes the connection: its peer sees that.
        let _ = std::thread::Builder::new()
            .name("http".into())
            .stack_size(STACK_BYTES)
            .spawn(move || converse(&mut connection, &handler, &slot));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Listener::Unix { identity, .. } = self.listener else {
            return;
        };
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == identity);
        if ours {
            // Whoever comes next replaces a socket file that nobody listens on.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// One of the server's places.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>, limit: usize) -> Option<Self> {
        let slot = Self(Arc::clone(shared));
        // Counted before it is judged: `drop` gives the place back in both cases.
        (shared.connections.fetch_add(1, Ordering::SeqCst) < limit).then_some(slot)
    }

    fn stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Answers one peer until it closes or is refused.
fn converse(connection: &mut Connection, handler: &Arc<Handler>, slot: &Slot) {
    loop {
        match connection.read_request() {
            Ok((request, mut framing)) => {
                let response = handler(&request);
                framing.keep_alive &= !slot.stopping() && response.stream.is_none();
                let written = connection.write_response(&response, framing);
                if let (Ok(()), Some(stream), false) =
                    (&written, &response.stream, framing.head_only)
                {
                    // How it ends, the peer sees.
                    let _ = (stream.0)(connection);
                }
                if written.is_err() || !framing.keep_alive {
                    return;
                }
            }
            Err(Refusal::Answer(response)) => return connection.refuse(&response),
            Err(Refusal::Gone) => return,
        }
    }
}

/// Errors of accept(2) that do not pass by waiting.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::NotConnected | io::ErrorKind::Unsupported
    )
}

/// Fails where a live server or something that is no socket has this path.
fn refuse_occupied(path: &Path) -> io::Result<()> {
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !file.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is no socket is there",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

/// Binds inside a folder of mode 0700 and moves the socket to its place once its mode is 0600, so
/// that nobody else can connect at any moment; the process-wide umask is left alone.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    static SERIAL: AtomicUsize = AtomicUsize::new(0);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let folder = parent.join(format!(".{:x}.{serial:x}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&folder)?;
    let private = folder.join("s");
    let bound = UnixListener::bind(&private).and_then(|listener| {
        fs::set_permissions(&private, Permissions::from_mode(0o600))?;
        fs::rename(&private, path)?;
        Ok(listener)
    });
    if bound.is_err() {
        // Only there when a step after bind failed.
        let _ = fs::remove_file(&private);
    }
    let removed = fs::remove_dir(&folder);
    let listener = bound?;
    removed?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Method;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn a_tcp_server_answers_and_stops() {
        let server = Server::bind_tcp(([127, 0, 0, 1], 0).into()).unwrap();
        let address = server.tcp_address().unwrap();
        let stopper = server.stopper();
        let handler: Arc<Handler> = Arc::new(|request| match request.method {
            Method::Get => Response::new(200, "text/plain", request.path.clone().into_bytes()),
            _ => Response::not_found(request),
        });
        let serving = std::thread::spawn(move || server.serve(handler));
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n/metrics"), "{answer}");
        stopper.stop();
        serving.join().unwrap().unwrap();
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn an_address_that_is_taken_is_named() {
        let server = Server::bind_tcp(([127, 0, 0, 1], 0).into()).unwrap();
        let address = server.tcp_address().unwrap();
        let error = Server::bind_tcp(address).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
