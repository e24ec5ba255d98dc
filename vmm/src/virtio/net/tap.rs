//! A tap interface as the host's side: frames go from guest memory to the kernel and back without a
//! copy of ours, and checksums and segmentation are left to whoever is better at them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::backend::{Backend, Gone, Sent, own_vector, retried};
use super::request::HEADER_BYTES;
use super::segments::Segments;
use super::{features, set_nonblocking};

const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// What the guest takes (§5.1.3), and what the kernel calls it (`TUN_F_*`).
const OFFLOADS: [(u64, libc::c_ulong); 4] = [
    (features::GUEST_CSUM, 1),
    (features::GUEST_TSO4, 2),
    (features::GUEST_TSO6, 4),
    (features::GUEST_ECN, 8),
];

/// A queue of a tap interface.
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Takes over a descriptor of `/dev/net/tun` that is attached to an interface.
    ///
    /// # Errors
    /// It is none, or the interface was not made as a tap with `IFF_NO_PI` and `IFF_VNET_HDR`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF fills an `ifreq`, which `request` is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) })?;
        // SAFETY: the kernel has just set the flags of the union.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the interface is no tap with IFF_NO_PI and IFF_VNET_HDR",
            ));
        }
        let size = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an integer.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) })?;
        let name = request.ifr_name.iter().map(|c| *c as u8);
        let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
        Self::over(fd, String::from_utf8_lossy(&name).into_owned())
    }

    /// Over any descriptor that keeps the borders of packets.
    pub(super) fn over(fd: OwnedFd, name: String) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self { fd, name })
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn check(status: libc::c_int) -> io::Result<()> {
    match status {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Backend for Tap {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn features(&self) -> u64 {
        let guest = OFFLOADS.iter().fold(0, |all, (feature, _)| all | feature);
        guest | features::CSUM | features::HOST_TSO4 | features::HOST_TSO6 | features::HOST_ECN
    }

    fn configure(&mut self, acked: u64) -> io::Result<()> {
        let taken = OFFLOADS.iter().filter(|(feature, _)| acked & feature != 0);
        let mut offloads = taken.fold(0, |all, (_, offload)| all | offload);
        // The kernel's segmentation needs checksums, as the specification has it, too.
        if offloads & 1 == 0 {
            offloads = 0;
        }
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, offloads) })
    }

    fn send(&mut self, header: &[u8; HEADER_BYTES], packet: &Segments<'_>) -> Result<Sent, Gone> {
        let mut list = Vec::with_capacity(packet.count() + 1);
        list.push(own_vector(header));
        packet.io_vectors(HEADER_BYTES, &mut list);
        // SAFETY: the list describes `header` and checked parts of guest memory, which outlive the
        // call; the kernel only reads them.
        let sent = retried(|| unsafe {
            libc::writev(self.fd(), list.as_ptr(), list.len() as libc::c_int)
        });
        match sent {
            Ok(_) => Ok(Sent::Taken),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADFD | libc::EBADF) => Err(Gone),
                // The interface is down, its queue is full, or its kernel does not like the frame.
                _ => Ok(Sent::Dropped),
            },
        }
    }

    fn receive(&mut self, room: &Segments<'_>, spill: &mut [u8]) -> Result<Option<usize>, Gone> {
        let mut list = Vec::with_capacity(room.count() + 1);
        room.io_vectors(0, &mut list);
        if let Some(rest) = spill.get_mut(room.len()..) {
            list.push(own_vector(rest));
        }
        // SAFETY: the list describes checked parts of guest memory and the end of `spill`, which is
        // borrowed exclusively; both outlive the call.
        let received =
            retried(|| unsafe { libc::readv(self.fd(), list.as_ptr(), list.len() as libc::c_int) });
        match received {
            Ok(0) => Ok(None),
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(_) => Err(Gone),
        }
    }
}
