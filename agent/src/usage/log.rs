//! Writes the chain of one instance: `usage.jsonl` in its folder.
//!
//! A record that cannot be written (the disk is full) is not lost: the meter runs on, and the next
//! record that can be written covers the time. The chain of a name goes on over all its launches.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use concertina_api::Bytes;

use super::chain::{GENESIS, open, seal};
use super::meter::{Held, Meter};
use super::{Reason, UsageRecord};
use crate::clock::{Moment, wall_text};
use crate::journal::UsageMark;
use crate::policy::Size;

/// A record is written at least so often, in milliseconds.
pub const TICK: u64 = 60_000;
/// The last record lies within so many bytes of the end.
const LAST_LINE_MAX: u64 = 16 << 10;

/// The usage of one instance.
#[derive(Debug)]
pub struct UsageLog {
    instance: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Length of the whole lines.
    end: u64,
    head: String,
    next: u64,
    /// The last record, when the instance had not ended with it.
    unended: Option<UsageRecord>,
    meter: Option<Meter>,
    /// Beginning of the time that is not written down yet.
    from: Option<Moment>,
    /// The launch, or the adoption, is written down.
    is_begun: bool,
    /// A write has failed since the last good one.
    failing: bool,
}

impl UsageLog {
    /// Opens the file of an instance, or makes it. A line that a crash cut off is removed.
    ///
    /// # Errors
    /// The file cannot be used, or its last line is not a record with a good hash: it is left as it
    /// is, since to go on would hide the change.
    pub fn open(path: &Path, instance: &str) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        let (end, last) = last_line(&mut file)?;
        file.set_len(end)?;
        let mut inner = Inner {
            file,
            end,
            head: GENESIS.into(),
            next: 0,
            unended: None,
            meter: None,
            from: None,
            is_begun: false,
            failing: false,
        };
        if let Some(line) = last {
            let (record, hash) = open(&line).map_err(|problem| {
                let text = format!("the last usage record in {} {problem}", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            inner.head = hash;
            inner.next = record.sequence.saturating_add(1);
            inner.unended = Some(record).filter(|record| record.reason != Reason::End);
        }
        Ok(Self {
            instance: instance.to_owned(),
            inner: Mutex::new(inner),
        })
    }

    /// The guest has begun to run, at this size. A guest that starts again after a reset goes on.
    pub fn launched(&self, now: &Moment, size: Size, resident: Bytes) {
        let mut inner = self.inner();
        if inner.meter.is_some() {
            drop(inner);
            return self.resized(now, size, resident);
        }
        inner.meter = Some(Meter::begin(now.clone(), size, resident));
        inner.from = Some(now.clone());
        inner.is_begun = false;
        inner.write(&self.instance, Reason::Launch);
    }

    /// An agent has found the instance running. What it held since the last record is counted, when
    /// that was in this boot of the host.
    pub fn adopted(&self, now: &Moment, size: Size, resident: Bytes) {
        let mut inner = self.inner();
        let last = inner.unended.take().filter(|last| last.boot == now.boot);
        let Some(last) = last else {
            drop(inner);
            return self.launched(now, size, resident);
        };
        let at = Moment {
            boot: last.boot,
            monotonic_ms: last.to_ms,
            wall_ms: now.wall_ms,
        };
        let held = Size {
            cpus: last.cpus,
            memory: last.memory,
        };
        let mut meter = Meter::begin(at.clone(), held, last.resident);
        meter.advance(now, size, resident);
        inner.meter = Some(meter);
        inner.from = Some(at);
        inner.is_begun = true;
        inner.write(&self.instance, Reason::Adopt);
    }

    /// A change was committed: this is held from here on. The same size as before writes nothing.
    pub fn resized(&self, now: &Moment, size: Size, resident: Bytes) {
        let mut inner = self.inner();
        let Some(meter) = &mut inner.meter else {
            return;
        };
        let changed = meter.size() != size;
        meter.advance(now, size, resident);
        if changed {
            inner.write(&self.instance, Reason::Resize);
        }
    }

    /// Whether a record is due.
    pub fn is_due(&self, now: &Moment) -> bool {
        let inner = self.inner();
        let long_ago = |from: &Moment| now.since(from).is_none_or(|ms| ms >= TICK);
        inner.meter.is_some() && inner.from.as_ref().is_none_or(long_ago)
    }

    /// Time has passed: writes a record.
    pub fn passed(&self, now: &Moment, resident: Bytes) {
        let mut inner = self.inner();
        let Some(meter) = &mut inner.meter else {
            return;
        };
        meter.advance(now, meter.size(), resident);
        inner.write(&self.instance, Reason::Minute);
    }

    /// The instance has ended. Without a launch before it nothing is written.
    pub fn ended(&self, now: &Moment) {
        let mut inner = self.inner();
        let Some(mut meter) = inner.meter.take() else {
            return;
        };
        let (size, resident) = (meter.size(), meter.resident());
        meter.advance(now, size, resident);
        inner.meter = Some(meter);
        inner.write(&self.instance, Reason::End);
        inner.meter = None;
        // A bill is made from it; what is lost of it before is at most the kernel's write-back time.
        let _ = inner.file.sync_data();
    }

    /// The head of the chain, for the journal; `None` before the first record.
    pub fn mark(&self) -> Option<UsageMark> {
        let inner = self.inner();
        Some(UsageMark {
            sequence: inner.next.checked_sub(1)?,
            hash: inner.head.clone(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Inner {
    /// Writes what the meter has added up.
    fn write(&mut self, instance: &str, reason: Reason) {
        let Some(meter) = &mut self.meter else {
            return;
        };
        let (at, size, held) = (meter.at().clone(), meter.size(), meter.held());
        // Of another boot, nothing of the time before it is known.
        let from_ms = match &self.from {
            Some(from) if from.boot == at.boot => from.monotonic_ms,
            _ => at.monotonic_ms,
        };
        let Held {
            vcpu_us,
            promised_kib_ms,
            resident_kib_ms,
            ..
        } = held;
        // A launch that could not be written is a launch still.
        let reason = if self.is_begun {
            reason
        } else {
            Reason::Launch
        };
        let record = UsageRecord {
            sequence: self.next,
            instance: instance.to_owned(),
            reason,
            time: wall_text(at.wall_ms),
            boot: at.boot.clone(),
            from_ms,
            to_ms: at.monotonic_ms,
            vcpu_us,
            promised_kib_ms,
            resident_kib_ms,
            cpus: size.cpus,
            memory: size.memory,
            resident: meter.resident(),
            previous: self.head.clone(),
        };
        let Ok((line, hash)) = seal(&record) else {
            return;
        };
        let written = self
            .file
            .seek(SeekFrom::Start(self.end))
            .and_then(|_| self.file.write_all(line.as_bytes()));
        if let Err(error) = written {
            // Half a line would be a broken chain; opening removes it too.
            let _ = self.file.set_len(self.end);
            if !self.failing {
                eprintln!("concertina: Usage of {instance} could not be written: {error}");
            }
            self.failing = true;
            return;
        }
        self.failing = false;
        self.end = self.end.saturating_add(line.len() as u64);
        self.head = hash;
        self.next = self.next.saturating_add(1);
        self.from = Some(at);
        self.is_begun = true;
        self.unended = None;
        meter.settle();
    }
}

/// Where the whole lines end, and the last of them.
fn last_line(file: &mut File) -> io::Result<(u64, Option<String>)> {
    let length = file.seek(SeekFrom::End(0))?;
    let begin = length.saturating_sub(2 * LAST_LINE_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
        let empty = begin == 0;
        let long = || io::Error::new(io::ErrorKind::InvalidData, "the usage file has no lines");
        return empty.then_some((0, None)).ok_or_else(long);
    };
    let lines = bytes.get(..end).unwrap_or_default();
    let line = lines
        .rsplit(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let text = String::from_utf8_lossy(line).into_owned();
    Ok((begin + end as u64 + 1, Some(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::{read_chain, total};
    use concertina_api::Cpus;

    fn at(seconds: u64) -> Moment {
        Moment {
            boot: "boot".into(),
            monotonic_ms: seconds * 1000,
            wall_ms: 0,
        }
    }

    #[test]
    fn what_a_write_refuses_is_in_the_next_record() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("usage.jsonl");
        let log = UsageLog::open(&path, "web").unwrap();
        let size = Size {
            cpus: Cpus::whole(1),
            memory: Bytes::mib(1024),
        };
        // A descriptor that cannot be written plays the full disk: at the launch, and later.
        let full = || File::open(&path).unwrap();
        let good = std::mem::replace(&mut log.inner().file, full());
        log.launched(&at(0), size, Bytes(0));
        assert!(log.mark().is_none());
        log.inner().file = good;
        log.passed(&at(60), Bytes(0));
        let good = std::mem::replace(&mut log.inner().file, full());
        log.passed(&at(120), Bytes(0));
        log.passed(&at(180), Bytes(0));
        log.inner().file = good;
        log.ended(&at(200));
        let chain = read_chain(&path, "web").unwrap();
        let reasons: Vec<Reason> = chain.records.iter().map(|record| record.reason).collect();
        assert_eq!(reasons, [Reason::Launch, Reason::End]);
        let totals = total(&chain.records, None);
        assert_eq!((totals.seconds(), totals.vcpu_seconds()), (200.0, 200.0));
    }
}
