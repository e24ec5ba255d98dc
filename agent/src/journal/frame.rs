//! The bytes of a journal file.
//!
//! ```text
//! file   "CONCJRN1"  frame  frame  …
//! frame  magic u32 │ length u32 │ sequence u64 │ synced u64 │ crc u32 │ payload (JSON, `length` bytes)
//! ```
//! Little endian. `crc` is the CRC-32 of the header before it and of the payload. `synced` is the
//! length of the file that was known to be on the disk when the frame was written: it tells damage
//! from a crash. After a crash, any part of what was written after the last fsync may be missing,
//! also in the middle (sectors reach the disk in any order), but a frame that says "the disk had
//! everything up to here" proves that what lies before was whole once.

use std::ops::Range;

/// First bytes of a journal: what it is, and the version of this format.
pub(super) const FILE_HEADER: &[u8; 8] = b"CONCJRN1";
/// Bytes of a frame before its payload.
pub(super) const FRAME_HEADER: usize = 28;
/// Largest payload. More than any record needs; a damaged length is not believed.
pub(super) const PAYLOAD_MAX: usize = 4 << 20;

const MAGIC: [u8; 4] = *b"cj1\n";

/// One frame in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its number; each is one more than the one before.
    pub sequence: u64,
    /// See the module.
    pub synced: u64,
    /// Where the payload lies in the file.
    pub payload: Range<usize>,
}

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Whole frames from the beginning.
    pub frames: Vec<Frame>,
    /// Where they end.
    pub end: usize,
    /// What follows them.
    pub tail: Tail,
}

/// What follows the last whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing.
    Clean,
    /// What a crash leaves of a write that nobody was told had succeeded; or the last frame was
    /// damaged later, which looks the same.
    Torn,
    /// A later frame proves that what is unreadable here was whole once.
    Damaged {
        /// Where that frame is.
        proof: usize,
    },
}

/// Appends a frame to `out`.
pub(super) fn encode(sequence: u64, synced: u64, payload: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&synced.to_le_bytes());
    let crc = checksum(out.get(start..).unwrap_or_default(), payload);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
}

/// Reads a file that begins with [`FILE_HEADER`].
pub(super) fn scan(file: &[u8]) -> Scan {
    let mut frames: Vec<Frame> = Vec::new();
    let mut end = FILE_HEADER.len();
    while let Some(frame) = decode(file, end) {
        // A whole frame out of order is no torn write: a frame before it was lost.
        let follows = frames
            .last()
            .is_none_or(|last| last.sequence.checked_add(1) == Some(frame.sequence));
        if !follows {
            let tail = Tail::Damaged { proof: end };
            return Scan { frames, end, tail };
        }
        end = frame.payload.end;
        frames.push(frame);
    }
    let tail = if end >= file.len() {
        Tail::Clean
    } else {
        proof_of_damage(file, end).map_or(Tail::Torn, |proof| Tail::Damaged { proof })
    };
    Scan { frames, end, tail }
}

/// A whole frame anywhere behind `bad` that was written when `bad` was already on the disk.
fn proof_of_damage(file: &[u8], bad: usize) -> Option<usize> {
    (bad.saturating_add(1)..file.len()).find(|&at| {
        file.get(at..).is_some_and(|rest| rest.starts_with(&MAGIC))
            && decode(file, at).is_some_and(|frame| frame.synced > bad as u64)
    })
}

/// The frame at `at`; `None` when there is no whole one.
fn decode(file: &[u8], at: usize) -> Option<Frame> {
    let rest = file.get(at..)?;
    let (header, rest) = rest.split_at_checked(FRAME_HEADER)?;
    let (summed, crc) = header.split_last_chunk::<4>()?;
    let (magic, fields) = summed.split_first_chunk::<4>()?;
    let (length, fields) = fields.split_first_chunk::<4>()?;
    let (sequence, synced) = fields.split_first_chunk::<8>()?;
    let synced: [u8; 8] = synced.try_into().ok()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if *magic != MAGIC || length > PAYLOAD_MAX {
        return None;
    }
    let payload = rest.get(..length)?;
    if checksum(summed, payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    let begin = at.checked_add(FRAME_HEADER)?;
    Some(Frame {
        sequence: u64::from_le_bytes(*sequence),
        synced: u64::from_le_bytes(synced),
        payload: begin..begin.checked_add(length)?,
    })
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file of frames with these payloads, each written when all before it was on the disk, and
    /// where each frame ends.
    fn file_of(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let mut file = FILE_HEADER.to_vec();
        let mut ends = Vec::new();
        for (number, payload) in payloads.iter().enumerate() {
            let synced = file.len() as u64;
            encode(number as u64, synced, payload, &mut file);
            ends.push(file.len());
        }
        (file, ends)
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8)
    }

    proptest! {
        #[test]
        fn every_prefix_holds_exactly_the_frames_that_fit(payloads in payloads()) {
            let (file, ends) = file_of(&payloads);
            for length in FILE_HEADER.len()..=file.len() {
                let scan = scan(&file[..length]);
                let whole = ends.iter().filter(|end| **end <= length).count();
                prop_assert_eq!(scan.frames.len(), whole);
                let clean = scan.end == length;
                prop_assert_eq!(scan.tail, if clean { Tail::Clean } else { Tail::Torn });
                for (frame, payload) in scan.frames.iter().zip(&payloads) {
                    prop_assert_eq!(&file[frame.payload.clone()], payload.as_slice());
                }
            }
        }

        #[test]
        fn a_changed_byte_is_never_read_as_content(
            payloads in payloads(), at in any::<prop::sample::Index>(), flip in 1..=255u8,
        ) {
            let (mut file, ends) = file_of(&payloads);
            let at = FILE_HEADER.len() + at.index(file.len() - FILE_HEADER.len());
            file[at] ^= flip;
            let hit = ends.iter().filter(|end| **end <= at).count();
            let scan = scan(&file);
            prop_assert_eq!(scan.frames.len(), hit);
            // Only damage to the last frame can be taken for a torn write.
            let is_last = hit + 1 == ends.len();
            prop_assert_eq!(matches!(scan.tail, Tail::Damaged { .. }), !is_last);
        }
    }

    #[test]
    fn a_hole_in_what_was_never_synced_is_a_torn_write_not_damage() {
        let mut file = FILE_HEADER.to_vec();
        let synced = file.len() as u64;
        for sequence in 0..3 {
            encode(sequence, synced, b"one batch", &mut file);
        }
        let first = FILE_HEADER.len()..FILE_HEADER.len() + FRAME_HEADER;
        file[first].fill(0);
        let scan = scan(&file);
        assert_eq!((scan.frames.len(), scan.tail), (0, Tail::Torn));
    }

    #[test]
    fn a_lost_frame_in_the_middle_is_damage() {
        let mut file = FILE_HEADER.to_vec();
        encode(0, 8, b"a", &mut file);
        encode(2, 8, b"c", &mut file);
        assert!(matches!(scan(&file).tail, Tail::Damaged { .. }));
    }

    #[test]
    fn an_absurd_length_is_not_believed() {
        let mut file = FILE_HEADER.to_vec();
        encode(0, 8, b"a", &mut file);
        file[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(scan(&file).tail, Tail::Torn);
    }
}
