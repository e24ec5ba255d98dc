//! What the guest asks of the network device: frames to be sent, each behind a header, and buffers to
//! be filled. All of it is checked here.

use virtio_queue::DescriptorChain;

use super::features;
use super::segments::Segments;
use crate::memory::GuestRam;

/// Bytes of `struct virtio_net_hdr_mrg_rxbuf` (§5.1.6), in front of each frame.
pub const HEADER_BYTES: usize = 12;
/// Longest frame: what an IP header can express, behind an Ethernet header with a VLAN tag.
pub const MAX_FRAME_BYTES: usize = 65_535 + 18;
/// Shortest frame: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;
/// Longest frame with its header.
pub const MAX_PACKET_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES;
/// Most descriptors of one chain. Linux uses up to 47 (`MAX_SKB_FRAGS` and two).
pub const MAX_DESCRIPTORS: usize = 64;

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A buffer that the device may not write, where it has to; or the other way round.
    #[error("The request has a buffer of the wrong direction")]
    Direction,
    /// Not the guest's memory.
    #[error("The request has a buffer outside the guest's memory")]
    OutsideRam,
    /// Too many descriptors.
    #[error("The request has more than {MAX_DESCRIPTORS} descriptors")]
    TooMany,
    /// No room for a header.
    #[error("The request is shorter than a header")]
    NoHeader,
    /// Less than an Ethernet header, or more than an IP packet with one.
    #[error("The frame has less than {MIN_FRAME_BYTES} or more than {MAX_FRAME_BYTES} bytes")]
    Length,
    /// A checksum or segmentation that was not agreed on, or that makes no sense.
    #[error("The header asks for an offload that was not negotiated, or that is absurd")]
    Offload,
}

/// The parts of a frame that the driver wants to be sent, its header included.
///
/// # Errors
/// The chain is no such frame; nothing was added.
pub fn frame<'a>(
    ram: &'a GuestRam,
    chain: DescriptorChain<&'a GuestRam>,
    segments: &mut Segments<'a>,
) -> Result<(), Malformed> {
    let parse = |segments: &mut Segments<'a>| {
        let mut total = 0usize;
        for (count, descriptor) in chain.enumerate() {
            if descriptor.is_write_only() {
                return Err(Malformed::Direction);
            }
            if count >= MAX_DESCRIPTORS {
                return Err(Malformed::TooMany);
            }
            let len = descriptor.len() as usize;
            total = total.saturating_add(len);
            if total > MAX_PACKET_BYTES {
                return Err(Malformed::Length);
            }
            segments.push(ram, descriptor.addr(), len)?;
        }
        match total {
            0..HEADER_BYTES => Err(Malformed::NoHeader),
            _ if total < HEADER_BYTES + MIN_FRAME_BYTES => Err(Malformed::Length),
            _ => Ok(()),
        }
    };
    let before = segments.count();
    parse(segments).inspect_err(|_| segments.truncate(before))
}

/// Adds the room that a buffer of the driver has, at most [`MAX_PACKET_BYTES`].
///
/// # Errors
/// The chain has a buffer that may not be written, or no room for a header; nothing was added.
pub fn room<'a>(
    ram: &'a GuestRam,
    chain: DescriptorChain<&'a GuestRam>,
    segments: &mut Segments<'a>,
) -> Result<(), Malformed> {
    let parse = |segments: &mut Segments<'a>| {
        let mut left = MAX_PACKET_BYTES;
        for (count, descriptor) in chain.enumerate() {
            if !descriptor.is_write_only() {
                return Err(Malformed::Direction);
            }
            if count >= MAX_DESCRIPTORS {
                return Err(Malformed::TooMany);
            }
            let len = left.min(descriptor.len() as usize);
            segments.push(ram, descriptor.addr(), len)?;
            left -= len;
            if left == 0 {
                break;
            }
        }
        if MAX_PACKET_BYTES - left < HEADER_BYTES {
            return Err(Malformed::NoHeader);
        }
        Ok(())
    };
    let before = segments.count();
    parse(segments).inspect_err(|_| segments.truncate(before))
}

/// A header as the host is given it: only what was negotiated, and only what makes sense for a frame
/// of `frame_bytes`. The driver may change its own copy at any time; ours it cannot.
///
/// # Errors
/// It asks for something else.
pub fn checked_header(
    header: [u8; HEADER_BYTES],
    frame_bytes: usize,
    acked: u64,
) -> Result<[u8; HEADER_BYTES], Malformed> {
    let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1, _, _] = header;
    let field = |low, high| usize::from(u16::from_le_bytes([low, high]));
    let allowed = |feature: u64| acked & feature != 0;
    let needs_csum = flags & FLAG_NEEDS_CSUM != 0;
    if needs_csum {
        let checksum_end = field(c0, c1) + field(o0, o1) + 2;
        if !allowed(features::CSUM) || checksum_end > frame_bytes {
            return Err(Malformed::Offload);
        }
    }
    let feature = match gso & !GSO_ECN {
        GSO_NONE => {
            // Without segmentation its lengths mean nothing, and other flags are not for devices.
            let mut plain = [0; HEADER_BYTES];
            if needs_csum {
                plain = [FLAG_NEEDS_CSUM, 0, 0, 0, 0, 0, c0, c1, o0, o1, 0, 0];
            }
            return Ok(plain);
        }
        GSO_TCPV4 => features::HOST_TSO4,
        GSO_TCPV6 => features::HOST_TSO6,
        _ => return Err(Malformed::Offload),
    };
    let ecn = gso & GSO_ECN == 0 || allowed(features::HOST_ECN);
    let lengths = field(s0, s1) > 0 && field(h0, h1) <= frame_bytes;
    if !needs_csum || !allowed(feature) || !ecn || !lengths {
        return Err(Malformed::Offload);
    }
    Ok([FLAG_NEEDS_CSUM, gso, h0, h1, s0, s1, c0, c1, o0, o1, 0, 0])
}
