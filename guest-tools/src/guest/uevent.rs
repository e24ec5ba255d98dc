//! Kernel events about devices (`NETLINK_KOBJECT_UEVENT`): a header `ACTION@DEVPATH` and then
//! `KEY=VALUE` texts, each ended by a zero byte.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::sys::Netlink;

/// A burst of memory blocks (64 GiB are 512 events) must fit while one is being brought online.
const BUFFER_BYTES: u32 = 1 << 20;

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub struct Uevent<'a> {
    /// `add`, `remove`, `online`, …
    pub action: &'a str,
    /// Path below `/sys`, beginning with a slash.
    pub path: &'a str,
    /// `cpu`, `memory`, …
    pub subsystem: &'a str,
}

impl<'a> Uevent<'a> {
    /// Takes a message apart; `None` when something that we need is missing.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let (mut action, mut path, mut subsystem) = (None, None, None);
        for field in message.split(|byte| *byte == 0) {
            let Some((key, value)) = std::str::from_utf8(field)
                .ok()
                .and_then(|f| f.split_once('='))
            else {
                continue;
            };
            match key {
                "ACTION" => action = Some(value),
                "DEVPATH" => path = Some(value),
                "SUBSYSTEM" => subsystem = Some(value),
                _ => {}
            }
        }
        let path = path.filter(|p| p.starts_with('/') && !p.split('/').any(|part| part == ".."))?;
        Some(Self {
            action: action?,
            path,
            subsystem: subsystem?,
        })
    }
}

/// What waiting for an event brought.
pub enum Received<'a> {
    /// An event.
    Event(Uevent<'a>),
    /// A message that is none of ours.
    Nothing,
    /// Events were lost because too many came at once: look at everything again.
    Overrun,
}

/// The stream of events.
pub struct UeventSocket(Netlink);

impl UeventSocket {
    /// Subscribes to the kernel's events (not to those that udev sends on).
    pub fn open() -> io::Result<Self> {
        let socket = Netlink::open(libc::NETLINK_KOBJECT_UEVENT, 1)?;
        socket.enlarge_buffer(BUFFER_BYTES);
        Ok(Self(socket))
    }

    /// Waits for the next one.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Received<'a>> {
        match self.0.receive(buffer) {
            Ok(message) => Ok(Uevent::parse(message).map_or(Received::Nothing, Received::Event)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Received::Overrun),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }
}

impl AsRawFd for UeventSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_added_cpu_is_understood() {
        let message = b"add@/devices/system/cpu/cpu1\0ACTION=add\0\
            DEVPATH=/devices/system/cpu/cpu1\0SUBSYSTEM=cpu\0SEQNUM=7\0";
        let event = Uevent::parse(message).expect("complete");
        assert_eq!(
            event,
            Uevent {
                action: "add",
                path: "/devices/system/cpu/cpu1",
                subsystem: "cpu"
            }
        );
    }

    #[test]
    fn messages_that_lack_something_or_climb_out_of_sys_are_dropped() {
        for message in [
            &b""[..],
            b"\0\0\0",
            b"add@/x\0ACTION=add\0SUBSYSTEM=cpu\0",
            b"ACTION=add\0DEVPATH=/a/../../etc\0SUBSYSTEM=cpu\0",
            b"ACTION=add\0DEVPATH=relative\0SUBSYSTEM=cpu\0",
            b"ACTION=add\0DEVPATH=/a\xff\0SUBSYSTEM=cpu\0",
            b"libudev\0\xfe\xed\xca\xfe",
        ] {
            assert_eq!(Uevent::parse(message), None, "{message:?}");
        }
    }
}
