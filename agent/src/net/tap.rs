//! Tap interfaces: attaches to one that exists, or makes one, which the kernel removes again when its
//! last descriptor is closed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::NetError;

/// The device from which tap interfaces come.
pub const DEVICE: &str = "/dev/net/tun";
/// Interfaces that nobody has named: the kernel puts the first free number.
const NAME_PATTERN: &str = "ct%d";

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Opens the tap interface `name`; without a name, or when there is none of this name, makes one and
/// brings it up.
pub fn open(name: Option<&str>) -> Result<OwnedFd, NetError> {
    let exists = match name {
        Some(name) => exists_as_tap(name, Path::new("/sys/class/net"))?,
        None => false,
    };
    let wanted = name.unwrap_or(NAME_PATTERN);
    let file = open_device()?;
    let mut request = request(wanted);
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which `request` is.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(refused(name, exists, io::Error::last_os_error()));
    }
    if !exists {
        bring_up(&mut request).map_err(|source| NetError::System {
            what: "The tap interface that was made cannot be brought up".into(),
            source,
        })?;
    }
    Ok(file.into())
}

/// Whether there is such an interface; one that is no tap is an error.
fn exists_as_tap(name: &str, interfaces: &Path) -> Result<bool, NetError> {
    let folder = interfaces.join(name);
    if !folder.exists() {
        return Ok(false);
    }
    let flags = std::fs::read_to_string(folder.join("tun_flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    if flags & libc::IFF_TAP as u32 != 0 {
        return Ok(true);
    }
    Err(NetError::Host(format!(
        "Interface '{name}' is no tap interface: name one that is (ip tuntap add {name} mode tap), \
         or one that does not exist"
    )))
}

fn open_device() -> Result<File, NetError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NetError::Host(format!(
                "{DEVICE} does not exist: load the module tun (modprobe tun)"
            )),
            io::ErrorKind::PermissionDenied => NetError::Host(format!(
                "No permission on {DEVICE}: run as root, or use --net user"
            )),
            _ => NetError::System {
                what: format!("{DEVICE} cannot be opened"),
                source: error,
            },
        })
}

/// Why the kernel does not attach us.
fn refused(name: Option<&str>, exists: bool, error: io::Error) -> NetError {
    let shown = name.unwrap_or("of a name of its own");
    let sentence = match (error.raw_os_error(), name) {
        (Some(libc::EBUSY), Some(name)) => {
            format!("Tap interface '{name}' is in use by another program: each VM needs its own")
        }
        (Some(libc::EPERM | libc::EACCES), Some(name)) if exists => format!(
            "No permission on tap interface '{name}': it belongs to somebody else (ip tuntap add \
             {name} mode tap user USER gives it to USER)"
        ),
        (Some(libc::EPERM | libc::EACCES), Some(name)) => format!(
            "There is no tap interface '{name}', and making one needs root (CAP_NET_ADMIN): make it \
             beforehand (ip tuntap add {name} mode tap user USER), or use --net user"
        ),
        (Some(libc::EPERM | libc::EACCES), None) => "Making a tap interface needs root \
             (CAP_NET_ADMIN): name one that is yours (--net tap=NAME), or use --net user"
            .into(),
        (Some(libc::EINVAL), Some(name)) if exists => format!(
            "Tap interface '{name}' has several queues, and a VM uses one: make it without \
             multi_queue (ip tuntap add {name} mode tap)"
        ),
        _ => {
            return NetError::System {
                what: format!("Tap interface {shown} cannot be had"),
                source: error,
            };
        }
    };
    NetError::Host(sentence)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // Names are at most one byte shorter than the field, as they were checked to be: a NUL remains.
    let last = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name.iter_mut().take(last).zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request
}

/// Nothing passes through an interface that is down. `request` has its name.
fn bring_up(request: &mut libc::ifreq) -> io::Result<()> {
    let check = |status: libc::c_int| match status {
        0.. => Ok(status),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: socket(2) takes three integers and gives a descriptor or -1.
    let socket =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel gave this descriptor to us alone just now.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: SIOCGIFFLAGS fills the flags of an `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut *request) })?;
    // SAFETY: the kernel has just set the flags of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const *request) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_no_tap_is_refused_by_name() {
        let temp = tempfile::tempdir().unwrap();
        for (name, flags) in [
            ("eth7", None),
            ("tun7", Some("0x1001\n")),
            ("tap7", Some("0x5002\n")),
        ] {
            std::fs::create_dir(temp.path().join(name)).unwrap();
            if let Some(flags) = flags {
                std::fs::write(temp.path().join(name).join("tun_flags"), flags).unwrap();
            }
        }
        assert!(!exists_as_tap("none", temp.path()).unwrap());
        assert!(exists_as_tap("tap7", temp.path()).unwrap());
        for name in ["eth7", "tun7"] {
            let error = exists_as_tap(name, temp.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("no tap"), "{error}");
        }
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let refusal = |name, exists, errno| {
            refused(name, exists, io::Error::from_raw_os_error(errno)).to_string()
        };
        for (sentence, words) in [
            (refusal(Some("t0"), true, libc::EBUSY), ["t0", "in use"]),
            (
                refusal(Some("t0"), true, libc::EPERM),
                ["t0", "somebody else"],
            ),
            (
                refusal(Some("t0"), false, libc::EPERM),
                ["no tap interface 't0'", "ip tuntap add"],
            ),
            (
                refusal(None, false, libc::EPERM),
                ["needs root", "--net user"],
            ),
            (
                refusal(Some("t0"), true, libc::EINVAL),
                ["t0", "multi_queue"],
            ),
            (
                refusal(Some("t0"), true, libc::ENOMEM),
                ["t0", "cannot be had"],
            ),
        ] {
            for word in words {
                assert!(sentence.contains(word), "{sentence} lacks {word}");
            }
        }
    }

    #[test]
    fn a_name_is_cut_before_its_end_mark() {
        let request = request("a-name-that-is-much-too-long");
        assert_eq!(request.ifr_name.last(), Some(&0));
    }
}
