//! Files that are read again at each look: opened once, read by `pread`, since opening is the dearer
//! half. A file that is missing or says something unexpected gives no value.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest text that is read of one file; all of them are far shorter.
const TEXT_MAX_BYTES: usize = 2048;

/// A counter file of `/proc` or of a cgroup.
#[derive(Debug)]
pub struct CounterFile {
    path: PathBuf,
    file: Option<File>,
}

impl CounterFile {
    /// Names the file; it is opened when it is first read, and again while it does not exist.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
        }
    }

    /// Reads it into `buffer` and gives it as text.
    pub fn read<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Option<&'b str> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        buffer.resize(TEXT_MAX_BYTES, 0);
        let len = match self.file.as_ref()?.read_at(buffer, 0) {
            Ok(len) => len,
            Err(_) => {
                // A thread that is gone: the same name may come back as another file.
                self.file = None;
                return None;
            }
        };
        std::str::from_utf8(buffer.get(..len)?).ok()
    }
}

/// A running total, of which only the growth between two looks is of interest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Total(Option<u64>);

impl Total {
    /// Takes the present value; gives the growth since the last one. `None`: one of the two is
    /// unknown, or the total went backwards, which it cannot.
    pub fn advance(&mut self, now: Option<u64>) -> Option<u64> {
        let before = std::mem::replace(&mut self.0, now);
        now?.checked_sub(before?)
    }

    /// Whether the next value has one to be compared with.
    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_known_from_its_second_look_on() {
        let mut total = Total::default();
        assert_eq!(total.advance(Some(10)), None);
        assert_eq!(total.advance(Some(15)), Some(5));
        assert_eq!(total.advance(None), None);
        assert_eq!(
            total.advance(Some(20)),
            None,
            "what happened in the gap is not one period's"
        );
        assert_eq!(total.advance(Some(19)), None);
        assert_eq!(total.advance(Some(19)), Some(0));
    }

    #[test]
    fn a_file_that_appears_later_is_read_then() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("cpu.stat");
        let mut file = CounterFile::new(&path);
        let mut buffer = Vec::new();
        assert_eq!(file.read(&mut buffer), None);
        std::fs::write(&path, "usage_usec 5\n").unwrap();
        assert_eq!(file.read(&mut buffer), Some("usage_usec 5\n"));
        std::fs::write(&path, "usage_usec 77\n").unwrap();
        assert_eq!(file.read(&mut buffer), Some("usage_usec 77\n"));
    }
}
