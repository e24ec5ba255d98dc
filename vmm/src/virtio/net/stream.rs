//! A stream socket as the host's side, as `passt` speaks it: each frame behind its length, 32 bits,
//! big-endian. Frames have no header of ours and no offloads.
//!
//! Both directions may stop in the middle of a frame. What of a sent frame finds no room in the
//! socket is kept here, one frame at most; what is received is kept until a frame is whole.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::backend::{Backend, Gone, Sent, own_vector, retried};
use super::request::{HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use super::segments::Segments;
use super::set_nonblocking;

const LENGTH_BYTES: usize = 4;
/// Bytes that are read at once: room for the longest frame and some small ones.
const INPUT_BYTES: usize = 80 << 10;

/// A connection to a program that speaks for the host's networks.
pub struct Stream {
    fd: OwnedFd,
    /// `begin..end` of it is what was received and not yet handed on.
    input: Vec<u8>,
    begin: usize,
    end: usize,
    /// The rest of a frame of which the beginning is sent.
    output: Vec<u8>,
}

impl Stream {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// It is no stream socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut kind: libc::c_int = 0;
        let mut len = size_of_val(&kind) as libc::socklen_t;
        // SAFETY: the option is an integer, and `kind` and `len` describe one.
        let status = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TYPE,
                (&raw mut kind).cast(),
                &raw mut len,
            )
        };
        if status < 0 {
            return Err(io::Error::last_os_error());
        }
        if kind != libc::SOCK_STREAM {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the socket is no stream",
            ));
        }
        set_nonblocking(&fd)?;
        Ok(Self {
            fd,
            // Zeroed by the kernel when touched, not before.
            input: vec![0; INPUT_BYTES],
            begin: 0,
            end: 0,
            output: Vec::new(),
        })
    }

    /// Sends a list of vectors; gives how much found room.
    fn transmit(&self, list: &mut [libc::iovec]) -> Result<usize, Gone> {
        // SAFETY: all zeroes is a valid, empty `msghdr`.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = list.as_mut_ptr();
        message.msg_iovlen = list.len();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message has nothing but the list, whose entries outlive the call as the callers
        // see to; the kernel only reads them.
        match retried(|| unsafe { libc::sendmsg(self.fd(), &raw const message, flags) }) {
            Ok(sent) => Ok(sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            // Short of memory: as if there were no room.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
            Err(_) => Err(Gone),
        }
    }

    /// Length of the frame that was received next, once its length and all of it are there.
    fn next_frame(&self) -> Result<Option<usize>, Gone> {
        let received = self.input.get(self.begin..self.end).unwrap_or_default();
        let Some((length, rest)) = received.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        match u32::from_be_bytes(*length) as usize {
            // Where the next frame would begin cannot be known any more.
            len if len > MAX_FRAME_BYTES => Err(Gone),
            len if len > rest.len() => Ok(None),
            len => Ok(Some(len)),
        }
    }

    /// Reads what is there; false: nothing is.
    fn fill(&mut self) -> Result<bool, Gone> {
        self.input.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let fd = self.fd();
        let free = self.input.get_mut(self.end..).unwrap_or_default();
        // SAFETY: the pointer and the length describe `free`, which is borrowed exclusively.
        let read = retried(|| unsafe {
            libc::recv(fd, free.as_mut_ptr().cast(), free.len(), libc::MSG_DONTWAIT)
        });
        match read {
            Ok(0) => Err(Gone),
            Ok(count) => {
                self.end += count;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(Gone),
        }
    }
}

impl Backend for Stream {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn features(&self) -> u64 {
        0
    }

    fn configure(&mut self, _acked: u64) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _header: &[u8; HEADER_BYTES], packet: &Segments<'_>) -> Result<Sent, Gone> {
        if self.is_full() {
            return Ok(Sent::Dropped);
        }
        let frame_bytes = packet.len().saturating_sub(HEADER_BYTES);
        let length = (frame_bytes as u32).to_be_bytes();
        let mut list = Vec::with_capacity(packet.count() + 1);
        list.push(own_vector(&length));
        packet.io_vectors(HEADER_BYTES, &mut list);
        let sent = self.transmit(&mut list)?;
        if let Some(left) = (LENGTH_BYTES + frame_bytes)
            .checked_sub(sent)
            .filter(|left| *left > 0)
        {
            self.output.extend(length.get(sent..).unwrap_or_default());
            let of_frame = sent.saturating_sub(LENGTH_BYTES);
            let behind_length = self.output.len();
            self.output.resize(left, 0);
            let rest = self.output.get_mut(behind_length..).unwrap_or_default();
            packet.read(HEADER_BYTES + of_frame, rest);
        }
        Ok(Sent::Taken)
    }

    fn is_full(&self) -> bool {
        !self.output.is_empty()
    }

    fn flush(&mut self) -> Result<(), Gone> {
        let sent = self.transmit(&mut [own_vector(&self.output)])?;
        self.output.drain(..sent.min(self.output.len()));
        if self.output.is_empty() {
            // It is rarely needed, and may have held 64 KiB.
            self.output = Vec::new();
        }
        Ok(())
    }

    fn receive(&mut self, room: &Segments<'_>, spill: &mut [u8]) -> Result<Option<usize>, Gone> {
        let len = loop {
            match self.next_frame()? {
                // Nothing that Ethernet could carry.
                Some(len) if len < MIN_FRAME_BYTES => self.begin += LENGTH_BYTES + len,
                Some(len) => break len,
                None if !self.fill()? => return Ok(None),
                None => {}
            }
        };
        let from = self.begin + LENGTH_BYTES;
        let frame = self.input.get(from..from + len).unwrap_or_default();
        scatter(&[0; HEADER_BYTES], 0, room, spill);
        scatter(frame, HEADER_BYTES, room, spill);
        self.begin = from + len;
        Ok(Some(HEADER_BYTES + len))
    }
}

/// Puts `data` at `offset` of the room, and what is behind the room at its own offset into `spill`.
fn scatter(data: &[u8], offset: usize, room: &Segments<'_>, spill: &mut [u8]) {
    let inside = room.len().saturating_sub(offset).min(data.len());
    let (head, tail) = data.split_at(inside);
    room.write(offset, head);
    if let Some(place) = spill.get_mut(offset + inside..)
        && let Some(place) = place.get_mut(..tail.len())
    {
        place.copy_from_slice(tail);
    }
}
