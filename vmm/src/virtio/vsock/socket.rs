//! What the standard library has no name for: a connection that does not wait, and data between a
//! socket and the guest's memory without a copy in between.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vm_memory::VolatileSlice;

use super::request::Buffers;

/// Most bytes of a socket's path.
pub const MAX_PATH_BYTES: usize = 107;

/// Connects to a unix socket without waiting; a listener whose queue is full refuses.
///
/// # Errors
/// Nobody listens there, or the path is too long.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave this descriptor to us alone just now.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_un is plain data, for which zero is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is valid for its size, and its path ends with the NUL that was there before.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(socket))
}

/// Sends guest memory; gives how much of it was sent.
///
/// # Errors
/// The kernel's; `WouldBlock` when the socket takes nothing at the moment.
pub fn send(stream: &UnixStream, buffers: &Buffers<'_>) -> io::Result<usize> {
    let mut parts = parts(buffers, usize::MAX);
    let message = message(&mut parts);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    retry(|| {
        // SAFETY: the parts describe guest memory that `buffers` borrows, readable and mapped for the
        // whole call; the guest may change it meanwhile, which only changes what is sent.
        unsafe { libc::sendmsg(stream.as_raw_fd(), &message, flags) }
    })
}

/// Receives at most `most` bytes, not 0, into guest memory; gives how many, 0 at the stream's end.
///
/// # Errors
/// The kernel's; `WouldBlock` when there is nothing at the moment.
pub fn receive(stream: &UnixStream, buffers: &Buffers<'_>, most: usize) -> io::Result<usize> {
    let mut parts = parts(buffers, most);
    let mut message = message(&mut parts);
    retry(|| {
        // SAFETY: as for `send`, and the memory is writable; no reference of ours points into it.
        unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) }
    })
}

/// The first `most` bytes of the buffers as the kernel takes them.
fn parts(buffers: &Buffers<'_>, most: usize) -> Vec<libc::iovec> {
    let mut left = most;
    let part = |slice: &VolatileSlice<'_>| {
        let len = left.min(slice.len());
        left -= len;
        libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: len,
        }
    };
    buffers.slices().iter().map(part).collect()
}

fn message(parts: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: msghdr is plain data, for which zero is valid: no address, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(done) = usize::try_from(call()) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
