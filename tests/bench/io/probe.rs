//! The small programs at both ends: a ping-pong over TCP, and a stream over vsock. The guest has this
//! same executable and runs it as `bench probe`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

const MESSAGE: usize = 64;
/// Written and read at once.
pub const CHUNK: usize = 128 << 10;
/// Context identifier of the host, as guests know it (`VMADDR_CID_HOST`).
const HOST_CID: u32 = libc::VMADDR_CID_HOST;

/// Runs `bench probe` with its arguments, in the guest.
pub fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["ping", address, count] => ping(address.parse()?, count.parse()?),
        ["send", port, mib] => send(port.parse()?, mib.parse()?),
        ["receive", port, mib] => receive(port.parse()?, mib.parse()?),
        _ => bail!("bench probe takes ping ADDRESS COUNT, send PORT MIB, or receive PORT MIB"),
    }
}

/// Prints the median time of a request in microseconds.
fn ping(address: SocketAddr, count: usize) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("Connecting to the host")?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let asked = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(count / 2).context("COUNT is 0")?;
    println!("{median:.2}");
    Ok(())
}

/// Sends, and waits until the host has said that it has all.
fn send(port: u32, mib: usize) -> Result<()> {
    let mut stream = File::from(vsock_connect(HOST_CID, port).context("Connecting to the host")?);
    push(&mut stream, mib)?;
    stream.read_exact(&mut [0])?;
    println!("sent");
    Ok(())
}

/// Receives, and says so.
fn receive(port: u32, mib: usize) -> Result<()> {
    let mut stream = File::from(vsock_connect(HOST_CID, port).context("Connecting to the host")?);
    pull(&mut stream, mib)?;
    stream.write_all(&[1])?;
    println!("received");
    Ok(())
}

/// Writes so many MiB.
pub fn push(stream: &mut impl Write, mib: usize) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    (0..(mib << 20) / CHUNK).try_for_each(|_| stream.write_all(&chunk))
}

/// Reads so many MiB.
pub fn pull(stream: &mut impl Read, mib: usize) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    (0..(mib << 20) / CHUNK).try_for_each(|_| stream.read_exact(&mut chunk))
}

/// Sends back what comes on one connection, until that ends.
pub struct Echo {
    address: SocketAddr,
}

impl Echo {
    /// Listens on a free port of this address.
    pub fn start(host: &str) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).context("Listening for the guest")?;
        let address = listener.local_addr()?;
        thread::spawn(move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut message = [0; MESSAGE];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        });
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: a sockaddr_vm is integers only, and all zeroes is one.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn vsock_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) takes integers and returns a descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    owned(fd)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave this descriptor to us alone just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const VSOCK_ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(cid, port);
    // SAFETY: the address is valid for the length that is given.
    let done = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            VSOCK_ADDRESS_LEN,
        )
    };
    if done == 0 {
        Ok(socket)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Listens on a vsock port of this host, for guests of vhost.
pub fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address is valid for the length that is given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            VSOCK_ADDRESS_LEN,
        )
    };
    // SAFETY: listen(2) takes integers.
    if bound != 0 || unsafe { libc::listen(socket.as_raw_fd(), 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Waits for a guest.
pub fn vsock_accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let nothing = std::ptr::null_mut();
    // SAFETY: accept4(2) allows both pointers to be null.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            nothing,
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    owned(fd)
}
