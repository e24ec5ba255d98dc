//! The latest events of an instance, from its `events.jsonl`, looked at again and again.

use std::io;
use std::path::Path;

use concertina_api::event::Event;

use crate::follow::{GrowingFile, Lines};

/// How much of a past that nobody watched is read: some two hundred events.
const PAST_BYTES: u64 = 64 << 10;

/// Reads events as they are appended. Needs no descriptor that is scarce, so that there can be one
/// for each instance of a host.
pub struct EventTail {
    file: GrowingFile,
    lines: Lines,
}

impl EventTail {
    /// Begins with the last events that are there; the file need not exist.
    pub fn new(path: &Path) -> Self {
        Self {
            file: GrowingFile::from_last(path, PAST_BYTES),
            lines: Lines::default(),
        }
    }

    /// The same, from the first event on.
    pub fn whole(path: &Path) -> Self {
        Self {
            file: GrowingFile::from_start(path),
            lines: Lines::default(),
        }
    }

    /// Events since the last call, oldest first. A line that is no event, as a later version may
    /// write it, is left out.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            let chunk = self.file.read()?;
            if chunk.is_empty() {
                return Ok(events);
            }
            let lines = self.lines.push(&chunk);
            events.extend(
                lines
                    .iter()
                    .filter_map(|line| serde_json::from_str(line).ok()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn events_come_once_and_other_lines_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut tail = EventTail::new(&path);
        assert!(tail.read().unwrap().is_empty());
        let line = |ms| format!("{{\"time\":\"t\",\"uptime_ms\":{ms},\"event\":\"rebooted\"}}\n");
        let mut file = fs::File::create(&path).unwrap();
        write!(file, "{}nonsense\n{}", line(1), line(2)).unwrap();
        let times = |events: Vec<Event>| -> Vec<u64> {
            events.iter().map(|event| event.uptime_ms).collect()
        };
        assert_eq!(times(tail.read().unwrap()), [1, 2]);
        let (half, rest) = (line(3), line(4));
        let (half, whole) = half.split_at(10);
        write!(file, "{half}").unwrap();
        assert!(tail.read().unwrap().is_empty());
        write!(file, "{whole}{rest}").unwrap();
        assert_eq!(times(tail.read().unwrap()), [3, 4]);
    }

    #[test]
    fn of_a_long_past_only_the_end_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let lines: String = (0..10_000)
            .map(|ms| format!("{{\"time\":\"t\",\"uptime_ms\":{ms},\"event\":\"rebooted\"}}\n"))
            .collect();
        fs::write(&path, lines).unwrap();
        let events = EventTail::new(&path).read().unwrap();
        assert_eq!(events.last().map(|event| event.uptime_ms), Some(9999));
        assert!((100..2000).contains(&events.len()), "{}", events.len());
    }
}
