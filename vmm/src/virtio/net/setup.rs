//! From the words of a specification to devices: takes over the descriptors that this process has
//! inherited, one for each interface.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use concertina_api::net::{MAX_NETS, MacAddr, NetLink, NetSpec};

use super::backend::Backend;
use super::stream::Stream;
use super::tap::Tap;
use super::{Net, Settings};
use crate::error::VmmError;

/// First descriptor that can be inherited beside standard input, output and error.
const FIRST_FD: RawFd = 3;

/// Makes the interfaces of the VM `name`. To be called before anything else is opened, since the
/// descriptors are known by their numbers only.
///
/// # Errors
/// Too many interfaces, or one without a descriptor of its own that fits.
pub fn open(name: &str, specs: &[NetSpec]) -> Result<Vec<Net>, VmmError> {
    if specs.len() > MAX_NETS {
        return Err(VmmError::Spec(format!(
            "{} network interfaces are not possible: at most {MAX_NETS} are",
            specs.len()
        )));
    }
    let mut nets = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let seen = specs.iter().take(index).any(|other| other.fd == spec.fd);
        if seen || spec.fd < FIRST_FD {
            return Err(VmmError::Spec(format!(
                "Descriptor {} of network interface {index} is not its own: at least {FIRST_FD}, \
                 and another one for each interface, is allowed",
                spec.fd
            )));
        }
        let mac = spec.mac.unwrap_or_else(|| MacAddr::stable(name, index));
        let net = one(spec, mac);
        let what = format!(
            "Network interface {index} cannot be made of descriptor {}",
            spec.fd
        );
        nets.push(net.map_err(VmmError::host(what))?);
    }
    Ok(nets)
}

fn one(spec: &NetSpec, mac: MacAddr) -> io::Result<Net> {
    let fd = inherited(spec.fd)?;
    let mut tap = None;
    let backend: Box<dyn Backend> = match spec.link {
        NetLink::Tap => {
            let backend = Tap::new(fd)?;
            tap = Some(backend.name().to_owned());
            Box::new(backend)
        }
        NetLink::Stream => Box::new(Stream::new(fd)?),
    };
    Net::new(
        backend,
        Settings {
            link: spec.link,
            tap,
            mac,
            mtu: spec.mtu,
            rates: spec.rates,
        },
    )
}

/// Takes over a descriptor that is open and that nobody in this process knows of.
fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // Whatever this process starts has no business with it.
    // SAFETY: fcntl with F_SETFD takes and gives integers; a number that is no descriptor is an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, was inherited for this one purpose, and is taken once, as the
    // caller sees to; this process has not opened any descriptor of its own that it could be.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
