//! What a vmm process publishes of its VM, again and again, for whoever looks at many of them: a file
//! that holds one small record, so that a look costs one read and asks nobody.
//!
//! ```text
//! bytes 0      8            16            24     28     32        40 … 168   168   172
//!       magic  published_ms statistics_ms known  zero   balloon   values     CRC   end
//! ```
//! All numbers are little-endian. The record is rewritten in place: a reader that comes in between finds
//! a checksum that does not fit, and reads again. Who reads it trusts it as far as the guest, whose
//! statistics are in it, and not further than the process that wrote it.

use crate::units::Bytes;

/// Length of the record, which is that of the file, in bytes.
pub const RECORD_BYTES: usize = 172;
/// Names of the guest's statistics, by their tag in virtio 1.2 §5.5.6.4 (the last six since Linux 6.12).
pub const STATISTIC_NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];
/// Values of the guest's statistics by tag; absent where the guest did not say.
pub type Statistics = [Option<u64>; STATISTIC_NAMES.len()];

/// The last byte is the version of the layout.
const MAGIC: [u8; 8] = *b"cncount\x01";
const VALUES_AT: usize = 40;
const CHECKED_BYTES: usize = RECORD_BYTES - 4;

/// The record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// When it was written: `CLOCK_MONOTONIC` of the host in milliseconds.
    pub published_ms: u64,
    /// When the guest's statistics have come, by the same clock; `None`: there are none yet.
    pub statistics_ms: Option<u64>,
    /// What the guest has given to the balloon.
    pub balloon: Bytes,
    /// What the guest's balloon driver says of its memory. Untrusted.
    pub statistics: Statistics,
}

/// Why a record is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCounters {
    /// It is shorter or longer.
    #[error("The record has not {RECORD_BYTES} bytes")]
    Length,
    /// It is something else, or of another version.
    #[error("The record does not begin as this version's do")]
    Magic,
    /// It was read while it was written, or it is damaged.
    #[error("The record's checksum does not fit")]
    Torn,
}

impl Counters {
    /// As it is in the file.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        let mut known = 0u32;
        for (tag, value) in self.statistics.iter().enumerate() {
            known |= u32::from(value.is_some()) << tag;
            put(&mut record, VALUES_AT + 8 * tag, value.unwrap_or(0));
        }
        record[..8].copy_from_slice(&MAGIC);
        put(&mut record, 8, self.published_ms);
        // Time 0 is the boot of the host: nothing is published then.
        put(&mut record, 16, self.statistics_ms.unwrap_or(0));
        put(&mut record, 24, u64::from(known));
        put(&mut record, 32, self.balloon.get());
        let crc = crc32fast::hash(&record[..CHECKED_BYTES]);
        record[CHECKED_BYTES..].copy_from_slice(&crc.to_le_bytes());
        record
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is not a whole record of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadCounters> {
        let record: &[u8; RECORD_BYTES] = bytes.try_into().map_err(|_| BadCounters::Length)?;
        if record[..8] != MAGIC {
            return Err(BadCounters::Magic);
        }
        let crc = crc32fast::hash(&record[..CHECKED_BYTES]);
        if record[CHECKED_BYTES..] != crc.to_le_bytes() {
            return Err(BadCounters::Torn);
        }
        let known = take(record, 24);
        Ok(Self {
            published_ms: take(record, 8),
            statistics_ms: Some(take(record, 16)).filter(|ms| *ms > 0),
            balloon: Bytes(take(record, 32)),
            statistics: std::array::from_fn(|tag| {
                (known >> tag & 1 == 1).then(|| take(record, VALUES_AT + 8 * tag))
            }),
        })
    }

    /// One value by its name.
    pub fn statistic(&self, name: &str) -> Option<u64> {
        let tag = STATISTIC_NAMES.iter().position(|known| *known == name)?;
        self.statistics.get(tag).copied().flatten()
    }
}

// The places below are constants, or tags, of the layout above: all of them lie in the record.

fn put(record: &mut [u8; RECORD_BYTES], at: usize, value: u64) {
    record[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn take(record: &[u8; RECORD_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&record[at..at + 8]);
    u64::from_le_bytes(bytes)
}

const _: () = assert!(VALUES_AT + 8 * STATISTIC_NAMES.len() == CHECKED_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counters() -> impl Strategy<Value = Counters> {
        let statistics = prop::array::uniform16(any::<Option<u64>>());
        let statistics_ms = any::<Option<u64>>().prop_map(|at| at.filter(|at| *at > 0));
        (any::<u64>(), statistics_ms, any::<u64>(), statistics).prop_map(
            |(published_ms, statistics_ms, balloon, statistics)| Counters {
                published_ms,
                statistics_ms,
                balloon: Bytes(balloon),
                statistics,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(counters in counters()) {
            prop_assert_eq!(Counters::decode(&counters.encode()), Ok(counters));
        }

        #[test]
        fn half_of_one_record_and_half_of_another_are_torn(
            old in counters(), new in counters(), cut in 8..RECORD_BYTES,
        ) {
            let (old, new) = (old.encode(), new.encode());
            let mut mixed = old;
            mixed[..cut].copy_from_slice(&new[..cut]);
            let whole = mixed == old || mixed == new;
            prop_assert_eq!(Counters::decode(&mixed) == Err(BadCounters::Torn), !whole);
        }

        #[test]
        fn anything_else_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..2 * RECORD_BYTES)) {
            prop_assert!(Counters::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_file_that_is_cut_off_or_of_another_version_is_no_record() {
        let counters = Counters {
            published_ms: 5,
            statistics_ms: Some(4),
            balloon: Bytes(0),
            statistics: Statistics::default(),
        };
        let mut record = counters.encode();
        assert_eq!(Counters::decode(&record[1..]), Err(BadCounters::Length));
        assert_eq!(Counters::decode(&[]), Err(BadCounters::Length));
        record[7] = 2;
        assert_eq!(Counters::decode(&record), Err(BadCounters::Magic));
    }

    #[test]
    fn a_statistic_is_found_by_its_name() {
        let mut counters = Counters {
            published_ms: 105,
            statistics_ms: Some(100),
            balloon: Bytes(0),
            statistics: Statistics::default(),
        };
        counters.statistics[5] = Some(7);
        assert_eq!(counters.statistic("total_memory"), Some(7));
        assert_eq!(counters.statistic("swap_in"), None);
        assert_eq!(counters.statistic("nonsense"), None);
    }
}
