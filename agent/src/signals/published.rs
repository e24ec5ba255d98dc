//! What a vmm publishes of itself ([`concertina_api::counters`]): one read, and nobody has to be asked.
//!
//! The file is the vmm's, and its content is not believed further than that: a record that is torn, cut
//! off, too old or from the future is none, and then the vmm is asked.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use concertina_api::counters::{BadCounters, Counters, RECORD_BYTES};

/// How often one record is read at most: a reader that meets the writer once does not meet it again.
const ATTEMPTS: usize = 3;

/// The counters file of one life of a vmm.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
    file: Option<File>,
}

impl Published {
    /// Names the file; it is opened when it is first read.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
        }
    }

    /// The record, if it was written in the last `max_age_ms` before `now_ms` (`CLOCK_MONOTONIC`).
    pub fn read(&mut self, now_ms: u64, max_age_ms: u64) -> Option<Counters> {
        if self.file.is_none() {
            self.file = open(&self.path).ok();
        }
        let file = self.file.as_ref()?;
        // One byte more than there should be, so that a longer file is seen to be one.
        let mut buffer = [0; RECORD_BYTES + 1];
        for _ in 0..ATTEMPTS {
            let len = file.read_at(&mut buffer, 0).ok()?;
            match Counters::decode(buffer.get(..len)?) {
                Err(BadCounters::Torn) => {}
                Err(_) => return None,
                Ok(counters) => {
                    let age_ms = now_ms.checked_sub(counters.published_ms)?;
                    return (age_ms <= max_age_ms).then_some(counters);
                }
            }
        }
        None
    }
}

/// Opens a file that is written again and again so that reading it writes nothing: the time of the last
/// access is of no interest, and costs more than the read. Only the file's owner may do that.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    let quiet = options.clone().custom_flags(libc::O_NOATIME).open(path);
    quiet.or_else(|_| options.open(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use concertina_api::Bytes;
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn record(published_ms: u64) -> Counters {
        Counters {
            published_ms,
            statistics_ms: Some(published_ms),
            balloon: Bytes(published_ms),
            statistics: [Some(published_ms); 16],
        }
    }

    #[test]
    fn only_a_whole_record_of_the_present_is_taken() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("counters");
        let mut published = Published::new(&path);
        assert_eq!(published.read(1000, 100), None, "there is no file");
        let whole = record(1000).encode();
        fs::write(&path, whole).unwrap();
        assert_eq!(published.read(1100, 100), Some(record(1000)));
        assert_eq!(published.read(1101, 100), None, "too old");
        assert_eq!(published.read(999, 100), None, "from the future");
        let mut torn = whole;
        torn[100] ^= 1;
        let longer = [whole.as_slice(), b"x"].concat();
        for bad in [&torn[..], &longer, &whole[..50], b""] {
            fs::write(&path, bad).unwrap();
            assert_eq!(published.read(1000, 100), None, "{} bytes", bad.len());
        }
    }

    #[test]
    fn beside_a_writer_each_record_that_is_read_is_whole() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("counters");
        fs::write(&path, record(1).encode()).unwrap();
        let writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut number = 1;
                while !done.load(Ordering::Relaxed) {
                    writer.write_all_at(&record(number).encode(), 0).unwrap();
                    number += 1;
                }
            });
            let mut published = Published::new(&path);
            let mut seen = 0;
            while seen < 1000 {
                // All of them are old enough.
                if let Some(counters) = published.read(u64::MAX, u64::MAX) {
                    assert_eq!(counters, record(counters.published_ms));
                    seen += 1;
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
