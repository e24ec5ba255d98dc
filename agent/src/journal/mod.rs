//! The host's journal: an append-only file of checksummed records, from which an agent that died
//! knows what it had begun, promised and remembered.
//!
//! ```text
//! append ─► fits the book? ─► write ─► fsync (where a promise depends on it) ─► acknowledged
//!            └ refused          └─ fails: the file is cut back, the caller is told
//! ```
//! An acknowledged [`Durability::Synced`] append survives a power loss. At opening, what a crash left
//! of an unacknowledged write is cut and said ([`Opened::cut`]); damage before that is an error, and
//! is never skipped. The journal keeps the [`HostBook`], the sum of its records, so that compaction
//! (the book as records in another file, put in place by rename) needs nobody's help.
//!
//! [`SharedJournal`] lets many threads append at once, with one fsync for all that wait.

mod book;
#[cfg(test)]
pub(crate) mod crashes;
mod disk;
mod frame;
mod record;
mod shared;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use book::{Answer, EndedResize, HostBook, InstanceBook, Misfit, PolicyMark, open_intents};
pub use record::{Action, Conclusion, Intent, IntentId, Record, UsageMark};
pub use shared::SharedJournal;

use book::Undo;
use disk::{Disk, DiskFile, HostDisk};
use frame::{FILE_HEADER, FRAME_HEADER, PAYLOAD_MAX, Tail};

/// A file smaller than this is not compacted.
const COMPACT_AT: u64 = 4 << 20;
/// For errors.
const SYNCING_FOLDER: &str = "Syncing the folder of";

/// Why the journal could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The system refused something; the journal holds what it held before.
    #[error("{what} the journal {path} failed")]
    Io {
        /// What was tried, as the beginning of a sentence.
        what: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The file is not a journal of this version.
    #[error("{0} is not a journal that this version can read")]
    Foreign(String),
    /// Records that were once whole cannot be read.
    #[error(
        "The journal {path} is damaged: nothing can be read at byte {at}, and what follows at byte \
         {proof} was written later. Move the file away to start without it"
    )]
    Damaged {
        /// The file.
        path: String,
        /// Where reading ended.
        at: usize,
        /// The later record.
        proof: usize,
    },
    /// A whole record says something that this version does not know, or that contradicts those
    /// before it.
    #[error("The journal {path} cannot be followed at record {sequence}: {why}")]
    Unreadable {
        /// The file.
        path: String,
        /// Number of the record.
        sequence: u64,
        /// Why.
        why: String,
    },
    /// The record contradicts those before it; it was not written.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The record is too large; it was not written.
    #[error("A record of {0} bytes is too large for the journal: {PAYLOAD_MAX} bytes are allowed")]
    TooLarge(usize),
}

/// How sure an append has to be before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// In the kernel's hands: survives the death of the agent, not that of the host.
    Written,
    /// On the disk, with all that was appended before.
    Synced,
}

/// What was found at opening.
#[derive(Debug)]
pub struct Opened {
    /// The journal, ready to append.
    pub journal: Journal,
    /// What was cut off its end: worth a line in a log.
    pub cut: Option<Cut>,
}

/// The rest of a write that was never acknowledged; or the last record, damaged after it was
/// written, which looks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Where the whole records end.
    pub at: usize,
    /// How many bytes were cut.
    pub bytes: usize,
}

/// The journal of one host. One process has it open: whoever opens it holds the daemon's lock.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    disk: Box<dyn Disk>,
    file: Box<dyn DiskFile>,
    book: HostBook,
    /// Number of the next frame.
    sequence: u64,
    /// Length of the file, and how much of it is known to be on the disk.
    end: u64,
    synced: u64,
    /// The file may not hold what was written: the kernel drops pages that it failed to write, and a
    /// later fsync does not say so. Only a copy of the book in another file mends it.
    in_doubt: bool,
    /// Compact when the file is longer than this.
    compact_at: u64,
}

impl Journal {
    /// Opens a journal, or begins one where there is none. The folder has to exist.
    ///
    /// # Errors
    /// The file is damaged, not a journal, or cannot be used.
    pub fn open(path: &Path) -> Result<Opened, JournalError> {
        Self::open_on(Box::new(HostDisk), path)
    }

    fn open_on(disk: Box<dyn Disk>, path: &Path) -> Result<Opened, JournalError> {
        let io = |what| io_error(what, path);
        // A compaction that did not come to its end.
        disk.remove(&beside(path))
            .map_err(io("Clearing up beside"))?;
        let Some(mut file) = disk.open(path).map_err(io("Opening"))? else {
            let book = HostBook::default();
            let (file, end, sequence) = write_beside(disk.as_ref(), path, &book, 0)?;
            disk.rename(&beside(path), path)
                .map_err(io("Putting in place"))?;
            disk.sync_folder_of(path).map_err(io(SYNCING_FOLDER))?;
            let journal = Self::assemble(path, disk, file, book, sequence, end);
            return Ok(Opened { journal, cut: None });
        };
        let bytes = file.read_all().map_err(io("Reading"))?;
        if !bytes.starts_with(FILE_HEADER) {
            return Err(JournalError::Foreign(path.display().to_string()));
        }
        let scan = frame::scan(&bytes);
        let cut = match scan.tail {
            Tail::Clean => None,
            Tail::Torn => Some(Cut {
                at: scan.end,
                bytes: bytes.len().saturating_sub(scan.end),
            }),
            Tail::Damaged { proof } => {
                return Err(JournalError::Damaged {
                    path: path.display().to_string(),
                    at: scan.end,
                    proof,
                });
            }
        };
        let mut book = HostBook::default();
        let mut sequence = 0;
        for frame in scan.frames {
            let payload = bytes.get(frame.payload).unwrap_or_default();
            let applied = serde_json::from_slice::<Record>(payload)
                .map_err(|error| error.to_string())
                .and_then(|record| book.apply(&record).map_err(|misfit| misfit.to_string()));
            applied.map_err(|why| JournalError::Unreadable {
                path: path.display().to_string(),
                sequence: frame.sequence,
                why,
            })?;
            sequence = frame.sequence.saturating_add(1);
        }
        let end = scan.end as u64;
        if cut.is_some() {
            file.cut(end).map_err(io("Cutting the torn end of"))?;
        }
        // What the agent before wrote may not have reached the disk yet, and is relied on from here.
        file.sync().map_err(io("Syncing"))?;
        let journal = Self::assemble(path, disk, file, book, sequence, end);
        Ok(Opened { journal, cut })
    }

    fn assemble(
        path: &Path,
        disk: Box<dyn Disk>,
        file: Box<dyn DiskFile>,
        book: HostBook,
        sequence: u64,
        end: u64,
    ) -> Self {
        Self {
            path: path.to_owned(),
            disk,
            file,
            book,
            sequence,
            end,
            synced: end,
            in_doubt: false,
            compact_at: COMPACT_AT.max(end.saturating_mul(2)),
        }
    }

    /// What the records add up to.
    pub fn book(&self) -> &HostBook {
        &self.book
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.end
    }

    /// Appends one record.
    ///
    /// # Errors
    /// It contradicts those before it, or could not be written (the disk is full): file and book are
    /// as they were, and a later append may succeed.
    pub fn append(&mut self, record: &Record, durability: Durability) -> Result<(), JournalError> {
        let results = self.append_batch(std::slice::from_ref(record), durability);
        results.into_iter().next().unwrap_or(Ok(None)).map(|_| ())
    }

    /// Appends an intent and gives the number that it got, when it is on the disk.
    ///
    /// # Errors
    /// See [`Self::append`].
    pub fn begin(&mut self, intent: Intent) -> Result<IntentId, JournalError> {
        let results = self.append_batch(&[Record::Intent(intent)], Durability::Synced);
        let number = results.into_iter().next().unwrap_or(Ok(None))?;
        Ok(number.unwrap_or(IntentId::NEXT))
    }

    /// Appends several records with one write and at most one fsync. A record that does not fit fails
    /// alone; a failure of the disk fails all of them. An intent gets its number.
    pub fn append_batch(
        &mut self,
        records: &[Record],
        durability: Durability,
    ) -> Vec<Result<Option<IntentId>, JournalError>> {
        if let Err(error) = self.mend() {
            return records.iter().map(|_| Err(error.clone())).collect();
        }
        let mut bytes = Vec::new();
        let mut undo = Vec::new();
        let mut results = Vec::with_capacity(records.len());
        for record in records {
            let taken = self.take_in(record, &mut bytes);
            results.push(taken.map(|(number, undone)| {
                undo.push(undone);
                number
            }));
        }
        if let Err(error) = self.put_down(&bytes, durability) {
            self.sequence = self.sequence.saturating_sub(undo.len() as u64);
            while let Some(undone) = undo.pop() {
                self.book.undo(undone);
            }
            for result in results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(error.clone());
            }
            return results;
        }
        if self.end > self.compact_at && self.compact().is_err() {
            // The file goes on as it is; the next try comes when it has grown further.
            self.compact_at = self.end.saturating_add(COMPACT_AT);
        }
        results
    }

    /// Returns when all that was appended is on the disk.
    ///
    /// # Errors
    /// See [`Self::append`]; the journal mends itself at its next use.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.mend()?;
        if self.synced == self.end {
            return Ok(());
        }
        if let Err(error) = self.file.sync() {
            self.in_doubt = true;
            return Err(io_error("Syncing", &self.path)(error));
        }
        self.synced = self.end;
        Ok(())
    }

    /// Writes the book into another file and puts that in this one's place. A crash at any point
    /// leaves the one or the other.
    ///
    /// # Errors
    /// It could not be written; the journal goes on with the file that it has.
    pub fn compact(&mut self) -> Result<(), JournalError> {
        let beside = beside(&self.path);
        let written = write_beside(self.disk.as_ref(), &self.path, &self.book, self.sequence)
            .and_then(|written| {
                let renamed = self.disk.rename(&beside, &self.path);
                renamed.map_err(io_error("Putting in place", &self.path))?;
                Ok(written)
            });
        let (file, end, sequence) = written.inspect_err(|_| {
            // Opening clears it up as well.
            let _ = self.disk.remove(&beside);
        })?;
        self.file = file;
        self.sequence = sequence;
        self.end = end;
        self.synced = end;
        self.compact_at = COMPACT_AT.max(end.saturating_mul(2));
        // Until the name is on the disk, a power loss may bring back the file before: what is
        // appended to this one would be lost with it.
        let named = self.disk.sync_folder_of(&self.path);
        self.in_doubt = named.is_err();
        named.map_err(io_error(SYNCING_FOLDER, &self.path))
    }

    /// After a failed fsync, nothing goes on before the book is safe in another file.
    fn mend(&mut self) -> Result<(), JournalError> {
        if self.in_doubt {
            self.compact()
        } else {
            Ok(())
        }
    }

    /// Adds a record to the book and its frame to `bytes`. Gives the number of an intent.
    fn take_in(
        &mut self,
        record: &Record,
        bytes: &mut Vec<u8>,
    ) -> Result<(Option<IntentId>, Undo), JournalError> {
        let mut record = Cow::Borrowed(record);
        let mut number = None;
        if let Record::Intent(intent) = record.as_ref() {
            let mut intent = intent.clone();
            if intent.id == IntentId::NEXT {
                intent.id = self.book.next_intent();
            }
            number = Some(intent.id);
            record = Cow::Owned(Record::Intent(intent));
        }
        let payload = serde_json::to_vec(record.as_ref())
            .map_err(|error| io_error("Encoding for", &self.path)(error.into()))?;
        if payload.len() > PAYLOAD_MAX {
            return Err(JournalError::TooLarge(payload.len()));
        }
        let undo = self.book.apply(record.as_ref())?;
        frame::encode(self.sequence, self.synced, &payload, bytes);
        self.sequence = self.sequence.saturating_add(1);
        Ok((number, undo))
    }

    /// Writes frames at the end; on failure the file is as it was.
    fn put_down(&mut self, bytes: &[u8], durability: Durability) -> Result<(), JournalError> {
        if bytes.is_empty() {
            // Nothing fitted: there is nothing to promise.
            return Ok(());
        }
        if let Err(error) = self.file.write_at(bytes, self.end) {
            self.cut_back();
            return Err(io_error("Writing to", &self.path)(error));
        }
        let end = self.end.saturating_add(bytes.len() as u64);
        if durability == Durability::Synced {
            if let Err(error) = self.file.sync() {
                self.cut_back();
                self.in_doubt = true;
                return Err(io_error("Syncing", &self.path)(error));
            }
            self.synced = end;
        }
        self.end = end;
        Ok(())
    }

    /// Removes what a failed write may have left. Where that fails too, whole frames of it would be
    /// taken for acknowledged ones: only another file helps.
    fn cut_back(&mut self) {
        if self.file.cut(self.end).is_err() {
            self.in_doubt = true;
        }
    }
}

/// Writes a whole journal beside `path` and syncs it. Gives the file, its length, and the number of
/// the next frame.
fn write_beside(
    disk: &dyn Disk,
    path: &Path,
    book: &HostBook,
    first: u64,
) -> Result<(Box<dyn DiskFile>, u64, u64), JournalError> {
    let payloads: Result<Vec<_>, _> = book.to_records().iter().map(serde_json::to_vec).collect();
    let payloads = payloads.map_err(|error| io_error("Encoding for", path)(error.into()))?;
    let frames: usize = payloads
        .iter()
        .map(|payload| FRAME_HEADER + payload.len())
        .sum();
    // It is put in place only when all of it is on the disk, so each of its frames may say so.
    let synced = (FILE_HEADER.len() + frames) as u64;
    let mut bytes = FILE_HEADER.to_vec();
    let mut sequence = first;
    for payload in payloads {
        frame::encode(sequence, synced, &payload, &mut bytes);
        sequence = sequence.saturating_add(1);
    }
    let io = |what| io_error(what, path);
    let mut file = disk.create(&beside(path)).map_err(io("Beginning"))?;
    file.write_at(&bytes, 0).map_err(io("Writing"))?;
    file.sync().map_err(io("Syncing"))?;
    Ok((file, synced, sequence))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError + use<> {
    let path = path.display().to_string();
    move |source| JournalError::Io {
        what,
        path,
        source: Arc::new(source),
    }
}
