//! The lines of a file that only grows, by their numbers. What was counted once is not read again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

/// Where every so many-th line begins is remembered.
const STRIDE: u64 = 64;

/// One file.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    /// Whole lines that were seen.
    count: u64,
    /// Where they end, in bytes.
    end: u64,
    /// Where line 0, 64, 128, … begin.
    marks: Vec<u64>,
}

impl Lines {
    /// Of a file that may not be there yet.
    pub fn of(path: PathBuf) -> Self {
        Self {
            path,
            count: 0,
            end: 0,
            marks: Vec::new(),
        }
    }

    /// How many whole lines there are. What cannot be read is not there.
    pub fn count(&mut self) -> u64 {
        // It is asked for again in a moment.
        let _ = self.follow();
        self.count
    }

    fn follow(&mut self) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        if file.metadata()?.len() <= self.end {
            return Ok(());
        }
        file.seek(SeekFrom::Start(self.end))?;
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            // Half a line is being written, or was cut off.
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            if self.count.is_multiple_of(STRIDE) {
                self.marks.push(self.end);
            }
            self.count += 1;
            self.end += length as u64;
        }
    }

    /// Lines from a number on, without their ends.
    pub fn read(&mut self, from: u64, limit: usize) -> Vec<String> {
        if from >= self.count() {
            return Vec::new();
        }
        self.read_known(from, limit).unwrap_or_default()
    }

    fn read_known(&self, from: u64, limit: usize) -> io::Result<Vec<String>> {
        let mark = usize::try_from(from / STRIDE).ok();
        let Some(begin) = mark.and_then(|mark| self.marks.get(mark)) else {
            return Ok(Vec::new());
        };
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(*begin))?;
        let mut reader = BufReader::new(file);
        let wanted = self.count.min(from.saturating_add(limit as u64));
        let mut lines = Vec::new();
        for number in from / STRIDE * STRIDE..wanted {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line)?;
            if number >= from {
                let text = String::from_utf8_lossy(&line);
                lines.push(text.trim_end_matches('\n').to_owned());
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_counted_as_they_come_and_found_by_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut lines = Lines::of(path.clone());
        assert_eq!((lines.count(), lines.read(0, 9).len()), (0, 0));
        let mut file = File::create(&path).unwrap();
        for number in 0..200 {
            writeln!(file, "line {number}").unwrap();
            if number % 50 == 0 {
                assert_eq!(lines.count(), number + 1);
            }
        }
        write!(file, "half").unwrap();
        assert_eq!(lines.count(), 200);
        for from in [0, 63, 64, 65, 127, 199] {
            let read = lines.read(from, 3);
            let wanted: Vec<String> = (from..200.min(from + 3))
                .map(|number| format!("line {number}"))
                .collect();
            assert_eq!(read, wanted, "{from}");
        }
        assert!(lines.read(200, 1).is_empty());
        writeln!(file, " whole").unwrap();
        assert_eq!(lines.read(200, 9), ["half whole"]);
    }
}
