//! Tells systemd how far the service is: `sd_notify(3)`, a datagram to the socket in `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// It serves.
pub const READY: &str = "READY=1";
/// It is on the way out.
pub const STOPPING: &str = "STOPPING=1";

/// It reads its configuration again; [`READY`] follows.
pub fn reloading(monotonic_ms: u64) -> String {
    format!(
        "RELOADING=1\nMONOTONIC_USEC={}",
        monotonic_ms.saturating_mul(1000)
    )
}

/// Says it, where somebody listens. What cannot be said is not worth failing for.
pub fn say(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        eprintln!("concertina: The service manager could not be told: {error}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_abstract_names_are_reached() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        let mut text = [0; 64];
        let count = listener.recv(&mut text).unwrap();
        assert_eq!(&text[..count], b"READY=1");

        let name = format!("concertina-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), &reloading(5)).unwrap();
        let count = listener.recv(&mut text).unwrap();
        assert_eq!(&text[..count], b"RELOADING=1\nMONOTONIC_USEC=5000");
    }
}
