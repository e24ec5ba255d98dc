//! What the guest asks of a disk (virtio 1.2 §5.2.6): the one place where its words are parsed.
//!
//! A request is 16 bytes of header, data, and one byte of status. How they are spread over
//! descriptors is the driver's choice (§2.7.4), so both ends are cut off the whole, wherever the
//! borders are. Out comes either something that can be carried out as it is, or why not.

use std::ops::Deref;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::buffers::HostBuffers;
use crate::memory::GuestRam;

/// Unit of positions and lengths, whatever the block size is.
pub const SECTOR_BYTES: u64 = 512;
/// Most pieces of data in one request: a queue's worth, less header and status.
pub const SEGMENTS_MAX: usize = 254;
/// Most bytes of data in one request: what one system call surely moves.
pub const DATA_MAX_BYTES: u64 = 1 << 30;
/// Most sectors that one discard or write of zeroes names.
pub const RANGE_MAX_SECTORS: u32 = 1 << 22;
/// Bytes of a request's header.
const HEADER_BYTES: usize = 16;
/// Bytes of a range in a discard or write of zeroes; one a request, as configured.
const RANGE_BYTES: usize = 16;

/// What a disk allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Its size.
    pub sectors: u64,
    /// Nothing may change it.
    pub read_only: bool,
}

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes, at least one sector.
    pub len: u64,
}

/// What is to be done.
#[derive(Debug)]
pub enum Work {
    /// From disk to guest.
    Read(u64, HostBuffers),
    /// From guest to disk.
    Write(u64, HostBuffers),
    /// What was written is to survive a loss of power.
    Flush,
    /// The serial number goes to these pieces, address and length.
    GetId(Vec<Piece>),
    /// The content of a range does not matter any more.
    Discard(Range),
    /// A range is to read as zeroes; `unmap`: it need not keep its space.
    WriteZeroes {
        /// Which.
        range: Range,
        /// Its space may be given back.
        unmap: bool,
    },
}

/// A request with a place for its answer.
#[derive(Debug)]
pub struct Request {
    /// First descriptor, by which the driver knows it.
    pub head: u16,
    /// Where the status byte goes.
    pub status_at: GuestAddress,
    /// What to do, or what to answer at once.
    pub work: Result<Work, Refusal>,
}

/// Why a request is not carried out. All but [`Refusal::Unsupported`] are the driver's mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A type or flag that was not offered: the answer is "unsupported".
    #[error("The request is of a kind that this disk does not offer")]
    Unsupported,
    /// Less than a header.
    #[error("The request has no header of {HEADER_BYTES} bytes")]
    NoHeader,
    /// Data where none belongs, none where it belongs, or no whole sectors.
    #[error("The request's data has a length that does not belong to its kind")]
    WrongLength,
    /// Larger than anything configured.
    #[error("The request is larger than allowed")]
    TooLarge,
    /// Behind the end of the disk.
    #[error("The request reaches behind the end of the disk")]
    BehindEnd,
    /// The disk cannot be changed.
    #[error("The request would change a read-only disk")]
    ReadOnly,
    /// Not the guest's memory, or an unplugged block of it.
    #[error("The request has a buffer outside the guest's memory")]
    OutsideRam,
}

/// A chain that has no place for an answer: it is counted and given back as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The chain is cut by a loop, an index outside the table, or a table outside memory; or it has
    /// more descriptors than a request may have.
    #[error("The descriptors of the request are no chain")]
    Chain,
    /// A buffer to be read behind one to be written (§2.7.4.2).
    #[error("The request has a readable buffer behind a writable one")]
    Order,
    /// No byte for the status in the guest's memory.
    #[error("The request has no place for its status")]
    NoStatus,
}

/// A piece of guest memory, not yet checked.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// First byte.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u64,
}

/// The two parts of a chain, each as the bytes that it stands for.
#[derive(Debug, Default)]
struct Pieces {
    readable: Vec<Piece>,
    writable: Vec<Piece>,
}

fn collect<M>(chain: DescriptorChain<M>) -> Result<Pieces, Malformed>
where
    M: Deref,
    M::Target: GuestMemory,
{
    let mut pieces = Pieces::default();
    let mut goes_on = true;
    for (count, descriptor) in chain.enumerate() {
        if count >= SEGMENTS_MAX + 2 {
            return Err(Malformed::Chain);
        }
        goes_on = descriptor.has_next();
        let piece = Piece {
            address: descriptor.addr(),
            len: u64::from(descriptor.len()),
        };
        if descriptor.is_write_only() {
            pieces.writable.push(piece);
        } else if pieces.writable.is_empty() {
            pieces.readable.push(piece);
        } else {
            return Err(Malformed::Order);
        }
    }
    // A chain whose last descriptor names another one was cut off on the way.
    if goes_on {
        return Err(Malformed::Chain);
    }
    Ok(pieces)
}

/// Takes the last byte off the end of the writable part.
fn take_status(writable: &mut Vec<Piece>, ram: &GuestRam) -> Result<GuestAddress, Malformed> {
    while writable.last().is_some_and(|piece| piece.len == 0) {
        writable.pop();
    }
    let last = writable.last_mut().ok_or(Malformed::NoStatus)?;
    last.len -= 1;
    let at = last.address.0.checked_add(last.len).map(GuestAddress);
    let at = at.ok_or(Malformed::NoStatus)?;
    // Is it memory? What is there does not matter.
    ram.read_obj::<u8>(at).map_err(|_| Malformed::NoStatus)?;
    Ok(at)
}

/// Takes bytes off the front of the readable part.
fn take_bytes<const N: usize>(
    readable: &mut Vec<Piece>,
    ram: &GuestRam,
    missing: Refusal,
) -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    let mut rest = bytes.as_mut_slice();
    for piece in readable.iter_mut() {
        let part = usize::try_from(piece.len)
            .unwrap_or(usize::MAX)
            .min(rest.len());
        let (now, later) = rest.split_at_mut(part);
        ram.read_slice(now, piece.address)
            .map_err(|_| Refusal::OutsideRam)?;
        let address = piece.address.0.checked_add(part as u64);
        piece.address = GuestAddress(address.ok_or(Refusal::OutsideRam)?);
        piece.len -= part as u64;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    if !rest.is_empty() {
        return Err(missing);
    }
    readable.retain(|piece| piece.len > 0);
    Ok(bytes)
}

fn le_u32(bytes: &[u8; 16], at: usize) -> u32 {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    field.map_or(0, u32::from_le_bytes)
}

fn le_u64(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(le_u32(bytes, at)) | u64::from(le_u32(bytes, at + 4)) << 32
}

/// Bytes of a range of sectors, if all of it is on the disk.
fn range(sector: u64, sectors: u64, limits: &Limits) -> Result<Range, Refusal> {
    let end = sector.checked_add(sectors).ok_or(Refusal::BehindEnd)?;
    if end > limits.sectors {
        return Err(Refusal::BehindEnd);
    }
    // No overflow: the end is inside a disk whose bytes are counted in 64 bits.
    Ok(Range {
        offset: sector * SECTOR_BYTES,
        len: sectors * SECTOR_BYTES,
    })
}

fn total(pieces: &[Piece]) -> u64 {
    // No overflow: at most 256 lengths of 32 bits.
    pieces.iter().map(|piece| piece.len).sum()
}

/// Memory for data that starts at `sector`, with its offset on the disk.
fn data(
    pieces: &[Piece],
    ram: &Arc<GuestRam>,
    sector: u64,
    limits: &Limits,
) -> Result<(u64, HostBuffers), Refusal> {
    let bytes = total(pieces);
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Refusal::WrongLength);
    }
    if bytes > DATA_MAX_BYTES {
        return Err(Refusal::TooLarge);
    }
    let range = range(sector, bytes / SECTOR_BYTES, limits)?;
    Ok((range.offset, host_buffers(pieces, ram)?))
}

fn host_buffers(pieces: &[Piece], ram: &Arc<GuestRam>) -> Result<HostBuffers, Refusal> {
    let mut buffers = HostBuffers::new(ram.clone());
    for piece in pieces {
        let pushed = buffers.push(piece.address, piece.len);
        pushed.map_err(|_| Refusal::OutsideRam)?;
    }
    Ok(buffers)
}

/// The range of a discard or write of zeroes, and its flags.
fn named_range(
    pieces: &mut Pieces,
    ram: &GuestRam,
    limits: &Limits,
) -> Result<(Range, u32), Refusal> {
    let words = take_bytes::<RANGE_BYTES>(&mut pieces.readable, ram, Refusal::WrongLength)?;
    if total(&pieces.readable) > 0 {
        // More ranges than configured.
        return Err(Refusal::TooLarge);
    }
    let (sector, sectors, flags) = (le_u64(&words, 0), le_u32(&words, 8), le_u32(&words, 12));
    if sectors == 0 {
        return Err(Refusal::WrongLength);
    }
    if sectors > RANGE_MAX_SECTORS {
        return Err(Refusal::TooLarge);
    }
    Ok((range(sector, sectors.into(), limits)?, flags))
}

fn work(mut pieces: Pieces, ram: &Arc<GuestRam>, limits: &Limits) -> Result<Work, Refusal> {
    let header = take_bytes::<HEADER_BYTES>(&mut pieces.readable, ram, Refusal::NoHeader)?;
    let (kind, sector) = (le_u32(&header, 0), le_u64(&header, 8));
    let changes = matches!(
        kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    );
    if changes && limits.read_only {
        return Err(Refusal::ReadOnly);
    }
    match kind {
        VIRTIO_BLK_T_IN => {
            let (offset, buffers) = data(&pieces.writable, ram, sector, limits)?;
            Ok(Work::Read(offset, buffers))
        }
        VIRTIO_BLK_T_OUT => {
            let (offset, buffers) = data(&pieces.readable, ram, sector, limits)?;
            Ok(Work::Write(offset, buffers))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Work::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Work::GetId(pieces.writable)),
        VIRTIO_BLK_T_DISCARD => match named_range(&mut pieces, ram, limits)? {
            (range, 0) => Ok(Work::Discard(range)),
            _ => Err(Refusal::Unsupported),
        },
        VIRTIO_BLK_T_WRITE_ZEROES => match named_range(&mut pieces, ram, limits)? {
            (range, flags @ (0 | VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)) => Ok(Work::WriteZeroes {
                range,
                unmap: flags != 0,
            }),
            _ => Err(Refusal::Unsupported),
        },
        _ => Err(Refusal::Unsupported),
    }
}

/// Parses one chain.
///
/// # Errors
/// It has no place for an answer.
pub fn parse<M>(
    chain: DescriptorChain<M>,
    ram: &Arc<GuestRam>,
    limits: &Limits,
) -> Result<Request, Malformed>
where
    M: Deref,
    M::Target: GuestMemory,
{
    let head = chain.head_index();
    let mut pieces = collect(chain)?;
    let status_at = take_status(&mut pieces.writable, ram)?;
    Ok(Request {
        head,
        status_at,
        work: work(pieces, ram, limits),
    })
}
