//! The power button, by the kernel's ACPI event channel (generic netlink, family `acpi_event`).
//!
//! The `button` driver sends each press there as well as to the input layer; this way needs no
//! `evdev` module and no search through input devices. Message layouts: linux/netlink.h,
//! linux/genetlink.h and drivers/acpi/event.c.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::sys::Netlink;

const NETLINK_HEADER_BYTES: usize = 16;
const GENERIC_HEADER_BYTES: usize = 4;
/// Attributes begin after both headers.
const HEADERS_BYTES: usize = NETLINK_HEADER_BYTES + GENERIC_HEADER_BYTES;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
/// The two highest bits of an attribute's type are flags.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

const ACPI_FAMILY: &[u8] = b"acpi_event\0";
const ACPI_GROUP: &[u8] = b"acpi_mc_group\0";
const ACPI_ATTR_EVENT: u16 = 1;
/// The event begins with the device's class in a field of 20 bytes.
const POWER_BUTTON_CLASS: &[u8] = b"button/power";

/// A subscription to ACPI events.
pub struct PowerButton(Netlink);

impl PowerButton {
    /// Subscribes; an error means that this kernel has no ACPI event channel.
    pub fn open() -> io::Result<Self> {
        let socket = Netlink::open(libc::NETLINK_GENERIC, 0)?;
        socket.send(&family_request())?;
        let mut buffer = [0u8; 4096];
        let group = find_group(socket.receive(&mut buffer)?)
            .ok_or_else(|| io::Error::other("the kernel has no acpi_event family"))?;
        socket.join(group)?;
        Ok(Self(socket))
    }

    /// Reads one waiting event; true when it is a press of the power button.
    pub fn pressed(&self) -> bool {
        let mut buffer = [0u8; 4096];
        self.0.receive(&mut buffer).is_ok_and(is_power_button)
    }
}

impl AsRawFd for PowerButton {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn family_request() -> Vec<u8> {
    let attribute_bytes = 4 + ACPI_FAMILY.len();
    let total = HEADERS_BYTES + attribute_bytes.next_multiple_of(4);
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&(total as u32).to_ne_bytes());
    message.extend_from_slice(&GENL_ID_CTRL.to_ne_bytes());
    message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes()); // sequence number
    message.extend_from_slice(&0u32.to_ne_bytes()); // to the kernel
    message.extend_from_slice(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    message.extend_from_slice(&(attribute_bytes as u16).to_ne_bytes());
    message.extend_from_slice(&CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    message.extend_from_slice(ACPI_FAMILY);
    message.resize(total, 0);
    message
}

/// The attributes in a run of bytes, as pairs of type and content. Ends at the first that is broken.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(*bytes.first_chunk::<2>()?);
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk::<2>()?);
        let content = bytes.get(4..usize::from(length))?;
        bytes = bytes
            .get(usize::from(length).next_multiple_of(4)..)
            .unwrap_or_default();
        Some((kind & ATTRIBUTE_TYPE_MASK, content))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, content)| content)
}

fn find_group(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk::<2>()?);
    if kind != GENL_ID_CTRL {
        return None; // an error, not an answer
    }
    let groups = attribute(answer.get(HEADERS_BYTES..)?, CTRL_ATTR_MCAST_GROUPS)?;
    let (_, group) = attributes(groups)
        .find(|(_, group)| attribute(group, CTRL_ATTR_MCAST_GRP_NAME) == Some(ACPI_GROUP))?;
    let id = attribute(group, CTRL_ATTR_MCAST_GRP_ID)?;
    Some(u32::from_ne_bytes(*id.first_chunk::<4>()?))
}

fn is_power_button(message: &[u8]) -> bool {
    message
        .get(HEADERS_BYTES..)
        .and_then(|body| attribute(body, ACPI_ATTR_EVENT))
        .is_some_and(|event| event.starts_with(POWER_BUTTON_CLASS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
        let mut bytes = ((content.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS_BYTES];
        bytes[4] = GENL_ID_CTRL as u8;
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn the_acpi_group_is_found_among_others() {
        let group = |name: &[u8], id: u32| {
            [
                nested(CTRL_ATTR_MCAST_GRP_ID, &id.to_ne_bytes()),
                nested(CTRL_ATTR_MCAST_GRP_NAME, name),
            ]
            .concat()
        };
        let groups = [
            nested(1, &group(b"other\0", 3)),
            nested(2, &group(ACPI_GROUP, 9)),
        ]
        .concat();
        let body = [
            nested(2, ACPI_FAMILY),
            nested(CTRL_ATTR_MCAST_GROUPS | 0x8000, &groups),
        ]
        .concat();
        assert_eq!(find_group(&message(&body)), Some(9));
        assert_eq!(find_group(&message(&nested(2, ACPI_FAMILY))), None);
    }

    #[test]
    fn only_the_power_button_counts_as_a_press() {
        let event = |class: &[u8]| {
            let mut event = class.to_vec();
            event.resize(44, 0);
            message(&nested(ACPI_ATTR_EVENT, &event))
        };
        assert!(is_power_button(&event(b"button/power")));
        assert!(!is_power_button(&event(b"ac_adapter")));
    }

    #[test]
    fn broken_messages_are_no_press_and_no_group() {
        let whole = message(&nested(ACPI_ATTR_EVENT, b"button/power"));
        for length in 0..whole.len() - 1 {
            assert!(!is_power_button(&whole[..length]), "{length}");
        }
        let endless = message(&[0, 0, 1, 0]);
        assert!(!is_power_button(&endless));
        assert_eq!(find_group(&message(&[0xff; 64])), None);
    }
}
