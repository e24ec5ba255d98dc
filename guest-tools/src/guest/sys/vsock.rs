//! Sockets to the host (`AF_VSOCK`, vsock(7)).

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::check;

/// A connection, or a socket that waits for some.
#[derive(Debug)]
pub struct VsockSocket(OwnedFd);

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain data, for which zero is valid.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    address
}

const ADDRESS_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t;

impl VsockSocket {
    fn new() -> io::Result<Self> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
        // SAFETY: the descriptor is open and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Connects to a port of the host. A host where nobody listens refuses at once; one that does not
    /// answer takes two seconds.
    pub fn connect(port: u32) -> io::Result<Self> {
        let socket = Self::new()?;
        let host = address(libc::VMADDR_CID_HOST, port);
        // SAFETY: the address is valid for its size.
        check(unsafe {
            libc::connect(socket.as_raw_fd(), (&raw const host).cast(), ADDRESS_BYTES)
        })?;
        Ok(socket)
    }

    /// Waits for connections of the host to a port.
    pub fn listen(port: u32) -> io::Result<Self> {
        let socket = Self::new()?;
        let any = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: the address is valid for its size.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const any).cast(), ADDRESS_BYTES) })?;
        // SAFETY: no pointers.
        check(unsafe { libc::listen(socket.as_raw_fd(), 128) })?;
        Ok(socket)
    }

    /// The next connection.
    pub fn accept(&self) -> io::Result<Self> {
        let none = std::ptr::null_mut();
        // SAFETY: the peer's address is not asked for.
        let fd = check(unsafe {
            libc::accept4(
                self.as_raw_fd(),
                none,
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        })?;
        // SAFETY: the descriptor is open and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Tells the other side that there is no more to come.
    pub fn end_sending(&self) -> io::Result<()> {
        let how: c_int = libc::SHUT_WR;
        // SAFETY: no pointers.
        check(unsafe { libc::shutdown(self.as_raw_fd(), how) }).map(drop)
    }

    /// Another handle of it, to read and write like a file.
    pub fn stream(&self) -> io::Result<File> {
        Ok(File::from(self.0.try_clone()?))
    }
}

impl AsRawFd for VsockSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for VsockSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
